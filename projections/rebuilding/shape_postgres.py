"""The shape of new tables, and the swap, on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError
from projections.database import explained, one_line
from projections.projection import Projection
from projections.rebuilding import carried
from projections.rebuilding.carried import Reference
from projections.rebuilding.declared import Declared
from projections.rebuilding.errors import DependsOnTable
from projections.rebuilding.plan import Plan
from projections.rebuilding.shape import Swap
from projections.rebuilding.side import BACK, OLD, beside, kept_name, restored
from projections.rebuilding.work import APPLICATION_NAME, Work

INDEX_MEMORY = "256MB"
ROW_LOCK_MS = 2000
LOCK_STATES = frozenset({"55P03", "57014", "40P01"})
"""lock_not_available, query_canceled (by its timeout), deadlock_detected."""
HOLDERS_SHOWN_MAX = 5

_TERMINATE = """
SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.relation = ANY (:olds) AND l.database = (
        SELECT oid FROM pg_database WHERE datname = current_database())
    AND a.pid <> pg_backend_pid() AND a.usename = current_user AND a.application_name = :program
"""
_INDEXES = """
SELECT c.relname, i.relname FROM pg_index JOIN pg_class c ON c.oid = indrelid
JOIN pg_class i ON i.oid = indexrelid WHERE indrelid = ANY (:olds) ORDER BY 1, 2
"""
_UNVALIDATED = """
SELECT CAST(CAST(conrelid AS regclass) AS text), quote_ident(conname) FROM pg_constraint
WHERE contype = 'f' AND NOT convalidated AND (conrelid = ANY (:olds) OR confrelid = ANY (:olds))
ORDER BY 1, 2
"""
_COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = to_regclass(quote_ident(CAST(:name AS text))) AND attnum > 0 AND NOT attisdropped
ORDER BY attnum
"""
_UNFILLED = """
SELECT attname FROM pg_attribute
WHERE attrelid = to_regclass(quote_ident(CAST(:name AS text))) AND attnum > 0 AND NOT attisdropped
    AND attnotnull AND NOT atthasdef AND attidentity = '' ORDER BY attnum
"""
_HOLDERS = """
SELECT DISTINCT a.pid, a.usename, a.application_name, a.state, a.xact_start, left(a.query, 60)
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE (l.relation = ANY (:olds) OR l.relation IN (
        SELECT CASE WHEN conrelid = ANY (:olds) THEN confrelid ELSE conrelid END
        FROM pg_constraint
        WHERE contype = 'f' AND (conrelid = ANY (:olds) OR confrelid = ANY (:olds)))
        OR l.relation = to_regclass('checkpoints') AND l.mode = 'RowExclusiveLock')
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.granted AND a.pid <> pg_backend_pid()
ORDER BY a.xact_start LIMIT :most
"""


class PostgresShape:
    """The statements of PostgreSQL."""

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
            numbers = await carried.oids(connection, [declared.table.name, name])
            old, new = numbers[declared.table.name], numbers[name]
            for statement in await carried.storage(connection, old, name, new):
                await connection.exec_driver_sql(statement)

    async def finish(self, plan: Plan) -> None:
        """Build indexes in parallel, then add what follows from them, then gather statistics.

        What the loading has made to find rows again, goes first.
        """
        await self._drop_indexes(plan)
        indexes = [
            statement
            for name, declared in self._declared(plan)
            for statement in (
                declared.created_key(name, plan.token),
                *declared.created_indexes(
                    name, plan.token, only_aliases=declared.table.name in plan.scratch
                ),
            )
        ]
        await self._run_in_parallel(indexes)
        await self._run_in_parallel(
            self._keyed(name, declared, plan) for name, declared in self._declared(plan)
        )
        for statement in self._references_among(plan):
            await self._run_in_parallel([statement])
        await self._run_in_parallel(f"ANALYZE {self._quoted(name)}" for name in plan.names.values())

    async def _drop_indexes(self, plan: Plan) -> None:
        async with self._work.database.transaction() as connection:
            for number in (await carried.oids(connection, list(plan.names.values()))).values():
                for index in await self._index_names(connection, number):
                    await connection.exec_driver_sql(f"DROP INDEX {self._quoted(index)}")

    def _keyed(self, name: str, declared: Declared, plan: Plan) -> str:
        index = self._quoted(beside(declared.key_name, plan.token))
        parts = [f"ADD CONSTRAINT {index} PRIMARY KEY USING INDEX {index}"]
        if declared.table.name in plan.asked:
            parts += [f"ADD {check}" for check in declared.checks]
        return f"ALTER TABLE {self._quoted(name)} {', '.join(parts)}"

    def _references_among(self, plan: Plan) -> Iterable[str]:
        """Yield the foreign keys between tables that are swapped together."""
        for name, declared in self._declared(plan):
            for key in declared.foreign_keys:
                if declared.table.name in plan.asked and key.target in plan.asked:
                    yield key.added(self._quoted(name), self._quoted(plan.names[key.target]))

    async def _run_in_parallel(self, statements: Iterable[str]) -> None:
        turns = asyncio.Semaphore(self._work.options.workers)

        async def run(statement: str) -> None:
            async with turns, self._work.database.transaction() as connection:
                await connection.exec_driver_sql(
                    f"SET LOCAL maintenance_work_mem = '{INDEX_MEMORY}'"
                )
                await connection.exec_driver_sql(statement)

        try:
            async with asyncio.TaskGroup() as group:
                for statement in statements:
                    group.create_task(run(statement))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def drop(self, connection: AsyncConnection, names: Sequence[str]) -> None:
        """Drop side tables; an index that a killed rebuild has left being built is given up.

        Only sessions of rebuilds are ended: others, such as a dump, are waited for.
        """
        numbers = await carried.oids(connection, names)
        if numbers:
            values = {"olds": list(numbers.values()), "program": APPLICATION_NAME}
            await connection.execute(sa.text(_TERMINATE), values)
            listed = ", ".join(self._quoted(name) for name in numbers)
            await connection.exec_driver_sql(f"DROP TABLE {listed}")

    async def refuse_obstacles(self, connection: AsyncConnection, tables: Sequence[str]) -> None:
        """Raise DependsOnTable for materialised views, rules, functions … that hold on."""
        numbers = await carried.oids(connection, tables)
        found = await carried.obstacles(connection, list(numbers.values()))
        if found:
            raise DependsOnTable(tables, found)

    async def columns(self, connection: AsyncConnection, name: str) -> dict[str, str]:
        """Return the types of a table's columns; none where there is no such table."""
        found = await connection.execute(sa.text(_COLUMNS), {"name": name})
        return {row[0]: row[1] for row in found}

    async def unfilled(self, connection: AsyncConnection, name: str) -> list[str]:
        """Return the columns that every insert must name."""
        found = await connection.execute(sa.text(_UNFILLED), {"name": name})
        return [row[0] for row in found]

    @contextlib.asynccontextmanager
    async def swapping(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that waits a little for the projectors' batches."""
        async with self._work.database.transaction() as connection:
            await connection.exec_driver_sql(f"SET LOCAL lock_timeout = {ROW_LOCK_MS}")
            yield connection

    async def swap(self, connection: AsyncConnection, swap: Swap, patience_seconds: float) -> None:
        """Read all definitions, exclude everybody, and execute all statements in one go.

        Views are locked before the tables that they read, in the order in which readers do it.
        """
        tables = [each.name for each in swap.projections]
        numbers = await carried.oids(connection, [*tables, *swap.incoming.values()])
        olds = [numbers[table] for table in tables]
        views = await carried.views(connection, olds)
        references = await carried.references(connection, olds)
        script = await self._script(connection, swap, numbers, references)
        locked = [
            *views,
            *await self._concerned(connection, swap, olds, references),
            *map(self._quoted, tables),
        ]
        await self._lock(connection, locked, round(patience_seconds * 1000))
        await run_script(connection, [*script, *views.values(), *(k.added for k in references)])

    async def _concerned(
        self,
        connection: AsyncConnection,
        swap: Swap,
        olds: Sequence[int],
        references: Sequence[Reference],
    ) -> list[str]:
        """Return other tables that are locked when foreign keys to or from them come and go."""
        tables = {each.name for each in swap.projections}
        declared = {
            self._quoted(key.target)
            for projection in swap.projections
            for key in Declared(projection, self._dialect).foreign_keys
            if key.target not in tables
        }
        present = await carried.targets(connection, olds)
        return sorted(declared.union(present, (each.table for each in references)))

    async def _lock(
        self, connection: AsyncConnection, locked: Sequence[str], patience_ms: int
    ) -> None:
        """Exclude everybody from tables and views, if that is possible in all this time.

        First, whoever is making a checkpoint for a new journal ends, and nobody makes another. The
        rows of the other checkpoints are locked before: a projector that holds one goes on to
        write, so the other order would be a deadlock.

        It must be shorter than PostgreSQL's `deadlock_timeout`: a reader that has met the swap half
        way would be the one to get an error.
        """
        before = (await connection.exec_driver_sql("SHOW statement_timeout")).scalar_one()
        for setting in ("lock_timeout", "statement_timeout"):
            await connection.exec_driver_sql(f"SET LOCAL {setting} = {patience_ms}")
        await connection.exec_driver_sql("LOCK TABLE checkpoints IN SHARE ROW EXCLUSIVE MODE")
        await connection.exec_driver_sql(f"LOCK TABLE {', '.join(locked)} IN ACCESS EXCLUSIVE MODE")
        await connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{before}'")

    async def _script(
        self,
        connection: AsyncConnection,
        swap: Swap,
        numbers: dict[str, int],
        references: Sequence[Reference],
    ) -> list[str]:
        """Return what moves the tables, up to their own foreign keys and rights."""
        script = [f"DROP TABLE {self._quoted(name)}" for name in swap.dropped]
        script += [each.dropped for each in references]
        script += await self._made_room(connection, swap, numbers)
        after: list[str] = []
        for projection in swap.projections:
            table, incoming = projection.name, swap.incoming[projection.name]
            script += await self._moved_out(connection, table, numbers[table])
            moved_in = await self._moved_in(connection, projection, swap, numbers[incoming])
            script += moved_in
            after += await carried.rights(
                connection, table, kept_name(table), numbers[table], numbers[incoming]
            )
        present = await self._foreign_keys(connection, swap, numbers)
        return script + present + after

    async def _made_room(
        self, connection: AsyncConnection, swap: Swap, numbers: dict[str, int]
    ) -> list[str]:
        """Give tables that come back from being kept names that are in nobody's way."""
        if swap.suffix != OLD:
            return []
        script: list[str] = []
        for name in swap.incoming.values():
            script.append(self._renamed("TABLE", name, beside(name, BACK)))
            script += [
                self._renamed("INDEX", index, beside(index, BACK))
                for index in await self._index_names(connection, numbers[name])
            ]
        return script

    def _renamed(self, kind: str, name: str, other: str) -> str:
        return f"ALTER {kind} {self._quoted(name)} RENAME TO {self._quoted(other)}"

    async def _moved_out(self, connection: AsyncConnection, table: str, number: int) -> list[str]:
        script = await carried.taken_away(connection, table, number)
        for index in await self._index_names(connection, number):
            script.append(self._renamed("INDEX", index, beside(index, OLD)))
        return [*script, self._renamed("TABLE", table, kept_name(table))]

    async def _moved_in(
        self, connection: AsyncConnection, projection: Projection[Any], swap: Swap, number: int
    ) -> list[str]:
        declared = Declared(projection, self._dialect)

        def present(name: str) -> str:
            return beside(name, BACK) if swap.suffix == OLD else name

        incoming = present(swap.incoming[projection.name])
        script = [self._renamed("TABLE", incoming, projection.name)]
        for index in await self._index_names(connection, number):
            own = restored(index, swap.suffix, declared.index_names)
            script.append(self._renamed("INDEX", present(index), own))
        return script

    async def _foreign_keys(
        self, connection: AsyncConnection, swap: Swap, numbers: dict[str, int]
    ) -> list[str]:
        """Return what adds those of the new tables that they do not have yet."""
        query = sa.text(
            "SELECT quote_ident(conname) FROM pg_constraint WHERE conrelid = :new AND contype = 'f'"
        )
        script: list[str] = []
        for projection in swap.projections:
            values = {"new": numbers[swap.incoming[projection.name]]}
            present = [row[0] for row in await connection.execute(query, values)]
            for key in Declared(projection, self._dialect).foreign_keys:
                if key.name not in present:
                    table, target = self._quoted(projection.name), self._quoted(key.target)
                    script.append(f"{key.added(table, target)} NOT VALID")
        return script

    async def _index_names(self, connection: AsyncConnection, number: int) -> list[str]:
        found = await connection.execute(sa.text(_INDEXES), {"olds": [number]})
        return [row[1] for row in found]

    async def settle(self, tables: Sequence[str]) -> list[str]:
        """Validate the foreign keys that are not yet, which keeps nobody out."""
        async with self._work.database.transaction() as connection:
            numbers = await carried.oids(connection, tables)
            values = {"olds": list(numbers.values())}
            found = list(await connection.execute(sa.text(_UNVALIDATED), values))
        return [note for table, name in found if (note := await self._validate(table, name))]

    async def _validate(self, table: str, name: str) -> str | None:
        statement = f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}"
        try:
            async with self._work.database.transaction() as connection:
                await connection.exec_driver_sql(statement)
        except LedgerError as error:
            cause = error.__cause__
            if isinstance(cause, sa.exc.IntegrityError):
                said = f"does not hold ({one_line(cause)}); mend the rows, then run {statement}"
            else:
                said = f"is still to be checked ({error}); run {statement}"
            return f"foreign key {name} of {table} {said}"
        return None

    async def mend(self, tables: Sequence[str]) -> list[str]:
        """Do what a rebuild that was killed right after its swap has left undone."""
        return await self.settle(tables)

    def may_try_again(self, error: BaseException) -> bool:
        """Whether a swap failed only because somebody else held a lock."""
        cause: BaseException | None = error
        while cause is not None:
            original = getattr(cause, "orig", None)
            if getattr(original, "sqlstate", None) in LOCK_STATES:
                return True
            cause = cause.__cause__
        return False

    async def lock_holders(self, tables: Sequence[str]) -> list[str]:
        """Return who uses the tables at present."""
        async with self._work.database.transaction() as connection:
            numbers = await carried.oids(connection, tables)
            values = {"olds": list(numbers.values()), "most": HOLDERS_SHOWN_MAX}
            found = await connection.execute(sa.text(_HOLDERS), values)
            return [
                f"process {pid} of {user} ({program or 'unnamed'}), {state} since {since}: {query}"
                for pid, user, program, state, since, query in found
            ]


async def run_script(connection: AsyncConnection, statements: Sequence[str]) -> None:
    """Execute the statements in one round trip: all the while, readers wait."""
    raw = await connection.get_raw_connection()
    with explained():
        try:
            await raw.driver_connection.execute(";\n".join(statements))  # type: ignore[union-attr]
        except asyncpg.PostgresError as error:
            raise sa.exc.DBAPIError("swap", None, error) from error
