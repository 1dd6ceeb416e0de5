"""The shape of new tables, and the swap, on SQLite.

SQLite can add no constraint to a table and rename no index. So the rows are loaded into a bare
table and then copied, in the order of the key, into one of the declared shape; that also builds its
key in order. Indexes get the declared names at the swap by an edit of the schema table, the way
that SQLite's documentation gives for changes which leave the stored form as it is: to build them
again there would keep all writers waiting for as long as it takes.

Foreign keys, views and the triggers of other tables hold on to names here, not to tables. So they
follow by themselves, as long as renaming does not rewrite them: `legacy_alter_table`, and foreign
keys off, which they are on a rebuild's connections.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from projections.rebuilding.declared import Declared
from projections.rebuilding.plan import Plan
from projections.rebuilding.shape import Swap
from projections.rebuilding.side import BACK, OLD, beside, is_side_table, kept_name, restored
from projections.rebuilding.work import Work

RAW = "_raw"
SHOWN_MAX = 5

_INDEXES = """SELECT name FROM sqlite_master
    WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL ORDER BY name"""
_RENAME_INDEX = "UPDATE sqlite_master SET name = ?, sql = ? WHERE type = 'index' AND name = ?"
_TRIGGERS = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?"


class SqliteShape:
    """The statements of SQLite."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._dialect = work.database.engine.dialect

    def _declared(self, plan: Plan) -> Iterable[tuple[str, Declared]]:
        for projection in plan.closure.projections:
            if projection.name in plan.names:
                yield plan.names[projection.name], Declared(projection, self._dialect)

    def _quoted(self, name: str) -> str:
        return self._dialect.identifier_preparer.quote(name)

    async def make(self, connection: AsyncConnection, plan: Plan) -> None:
        """Make the plan's tables, empty, without keys and indexes."""
        for name, declared in self._declared(plan):
            await connection.exec_driver_sql(declared.created_bare(name))

    async def finish(self, plan: Plan) -> None:
        """Copy each table into the declared shape, and build its indexes."""
        for name, declared in self._declared(plan):
            is_scratch = declared.table.name in plan.scratch
            async with self._writing() as connection:
                await self._copy(connection, name, declared)
            for statement in declared.created_indexes(name, plan.token, only_aliases=is_scratch):
                async with self._writing() as connection:
                    await connection.exec_driver_sql(statement)

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        async with self._work.store.write_turn(), self._work.database.transaction() as connection:
            yield connection

    async def _copy(self, connection: AsyncConnection, name: str, declared: Declared) -> None:
        raw = self._quoted(name + RAW)
        for statement in (
            f"ALTER TABLE {self._quoted(name)} RENAME TO {raw}",
            declared.created_whole(name),
            f"INSERT INTO {self._quoted(name)} ({declared.columns}) "
            f"SELECT {declared.columns} FROM {raw} ORDER BY {declared.key_columns}",
            f"DROP TABLE {raw}",
        ):
            await connection.exec_driver_sql(statement)

    async def drop(self, connection: AsyncConnection, names: Sequence[str]) -> None:
        """Drop side tables, also in the state before they are copied."""
        for name in names:
            for each in (name, name + RAW):
                await connection.exec_driver_sql(f"DROP TABLE IF EXISTS {self._quoted(each)}")

    async def refuse_obstacles(self, connection: AsyncConnection, tables: Sequence[str]) -> None:
        """Do nothing: everything that depends on a table does so by its name."""

    async def columns(self, connection: AsyncConnection, name: str) -> dict[str, str]:
        """Return the types of a table's columns; none where there is no such table."""
        query = "SELECT name, type FROM pragma_table_info(?)"
        found = (await connection.exec_driver_sql(query, (name,))).mappings()
        return {row["name"]: row["type"] for row in found}

    async def unfilled(self, connection: AsyncConnection, name: str) -> list[str]:
        """Return the columns that every insert must name."""
        query = 'SELECT name FROM pragma_table_info(?) WHERE "notnull" AND dflt_value IS NULL'
        return list((await connection.exec_driver_sql(query, (name,))).scalars())

    @contextlib.asynccontextmanager
    async def swapping(self) -> AsyncIterator[AsyncConnection]:
        """Open the one transaction that may write, under this process's turn."""
        async with self._writing() as connection:
            yield connection

    async def swap(self, connection: AsyncConnection, swap: Swap, patience_seconds: float) -> None:
        """Move the new tables into the places of the live ones; readers keep to what they see."""
        await connection.exec_driver_sql("PRAGMA legacy_alter_table = ON")
        try:
            await self._swap(connection, swap)
        finally:
            await connection.exec_driver_sql("PRAGMA legacy_alter_table = OFF")

    async def _swap(self, connection: AsyncConnection, swap: Swap) -> None:
        for name in swap.dropped:
            await connection.exec_driver_sql(f"DROP TABLE {self._quoted(name)}")
        renamed: list[tuple[str, str]] = []
        triggers: list[str] = []
        for projection in swap.projections:
            table, incoming = projection.name, swap.incoming[projection.name]
            declared = Declared(projection, self._dialect)
            triggers += await self._triggers_taken(connection, table)
            renamed += [
                (name, beside(name, OLD)) for name in await self._indexes(connection, table)
            ]
            renamed += [
                (name, restored(name, swap.suffix, declared.index_names))
                for name in await self._indexes(connection, incoming)
            ]
            await self._exchange(connection, table, incoming)
        await self._rename_indexes(connection, renamed)
        for statement in triggers:
            await connection.exec_driver_sql(statement)

    async def _indexes(self, connection: AsyncConnection, table: str) -> list[str]:
        return list((await connection.exec_driver_sql(_INDEXES, (table,))).scalars())

    async def _triggers_taken(self, connection: AsyncConnection, table: str) -> list[str]:
        """Drop the table's triggers; return the statements that make them again."""
        found = (await connection.exec_driver_sql(_TRIGGERS, (table,))).mappings().all()
        for trigger in found:
            await connection.exec_driver_sql(f"DROP TRIGGER {self._quoted(trigger['name'])}")
        return [trigger["sql"] for trigger in found]

    async def _exchange(self, connection: AsyncConnection, table: str, incoming: str) -> None:
        """Rename both tables; the one that comes in may have the name for kept ones itself."""
        between = beside(table, BACK)
        for name, other in ((incoming, between), (table, kept_name(table)), (between, table)):
            await connection.exec_driver_sql(
                f"ALTER TABLE {self._quoted(name)} RENAME TO {self._quoted(other)}"
            )

    async def _rename_indexes(
        self, connection: AsyncConnection, renamed: Sequence[tuple[str, str]]
    ) -> None:
        """Give indexes other names, first such as are in nobody's way."""
        version = (await connection.exec_driver_sql("PRAGMA schema_version")).scalar_one()
        await connection.exec_driver_sql("PRAGMA writable_schema = ON")
        try:
            for name, _ in renamed:
                await self._rename_index(connection, name, beside(name, BACK))
            for name, other in renamed:
                await self._rename_index(connection, beside(name, BACK), other)
            await connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
        finally:
            await connection.exec_driver_sql("PRAGMA writable_schema = RESET")

    async def _rename_index(self, connection: AsyncConnection, name: str, other: str) -> None:
        query = "SELECT sql FROM sqlite_master WHERE type = 'index' AND name = ?"
        sql: str = (await connection.exec_driver_sql(query, (name,))).scalar_one()
        # The name is the only word of the statement between INDEX and ON.
        head, _, tail = sql.partition(" ON ")
        kind = "CREATE UNIQUE INDEX" if head.upper().startswith("CREATE UNIQUE") else "CREATE INDEX"
        changed = f"{kind} {self._quoted(other)} ON {tail}"
        await connection.exec_driver_sql(_RENAME_INDEX, (other, changed, name))

    async def settle(self, tables: Sequence[str]) -> list[str]:
        """Look whether all foreign keys of and to the tables hold."""
        notes: list[str] = []
        async with self._work.database.snapshot() as connection:
            for table in await self._referring(connection):
                query = 'SELECT rowid, "parent" FROM pragma_foreign_key_check(?) LIMIT ?'
                found = await connection.exec_driver_sql(query, (table, SHOWN_MAX))
                notes += [
                    f"row {row['rowid']} of {table} refers to a row that {row['parent']} lacks"
                    for row in found.mappings()
                ]
        return notes

    async def _referring(self, connection: AsyncConnection) -> list[str]:
        """Return the tables with foreign keys; those of kept tables nobody holds to."""
        query = """SELECT DISTINCT m.name FROM sqlite_master m
            JOIN pragma_foreign_key_list(m.name) k ON m.type = 'table' ORDER BY 1"""
        found = [row[0] for row in await connection.exec_driver_sql(query)]
        return [table for table in found if not is_side_table(table)]

    async def mend(self, tables: Sequence[str]) -> list[str]:
        """Do nothing: nothing is left undone after a swap."""
        return []

    def may_try_again(self, error: BaseException) -> bool:
        """Never: under the turn, nobody else writes."""
        return False

    async def lock_holders(self, tables: Sequence[str]) -> list[str]:
        """Return nobody: readers keep no writer out here."""
        return []
