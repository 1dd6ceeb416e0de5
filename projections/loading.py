"""Many rows into tables that nobody reads yet: the fastest way that each database has.

A table is filled over a connection of its own, in transactions of its own, and rows may be taken
back out of it by their keys: what does not fit in memory waits in the table.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Collection, Hashable, Sequence
from contextlib import AsyncExitStack
from decimal import localcontext
from itertools import islice
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.engine import postgres_dsn
from ledger.journal import Journal
from projections.database import Database, explained
from projections.dialects import is_among
from projections.model import ReadModel, values_of
from projections.numbers import CONTEXT
from projections.projection import Projection
from projections.rendering import encodable

TAKING_INDEX = "_taking"
"""Ends the name of the index by which rows are taken back out; it goes before others are made."""

ROWS_AT_ONCE = 2000
"""So many rows are encoded before others get a turn: a few hundredths of a second."""

COPY_OPTIONS: dict[str, Any] = {"format": "csv", "null": "null", "quote": '"', "escape": "\\"}

_encode_lines = msgspec.json.Encoder(enc_hook=encodable).encode_lines
_EMPTY: dict[type[Any], str] = {dict: "{}", list: "[]"}
_encode_json = msgspec.json.Encoder(order="deterministic").encode
_astuple = msgspec.structs.astuple
_other_escape = re.compile(rb'\\[^"]').search


class Loader(Protocol):
    """Fills one table with rows of one journal. Rows put in and not taken out are never looked at.

    Ids in rows may be text or `UUID`; in rows that are taken back out they are text.
    """

    async def put(self, rows: Sequence[ReadModel]) -> None:
        """Write rows as they leave the fold; returns when the rows before them are stored."""
        ...

    async def take(self, keys: Collection[Hashable]) -> list[ReadModel]:
        """Take the rows with these keys back out of the table and return them."""
        ...

    async def clear(self) -> None:
        """Take all rows of the journal out of the table, and forget them."""
        ...

    async def finish(self) -> None:
        """Wait until all rows are stored."""
        ...

    async def close(self) -> None:
        """Give the connection back; rows that were not stored are lost."""
        ...


async def open_loaders(
    stack: AsyncExitStack,
    journal: Journal,
    database: Database,
    projections: Sequence[Projection[Any]],
    targets: dict[str, str],
) -> dict[str, Loader]:
    """Return a loader for each projection, closed with `stack`.

    Rows of a table without a target go to a temporary one, which vanishes with the connection.
    """
    kind = SqliteLoader if database.engine.dialect.name == "sqlite" else PostgresLoader
    loaders: dict[str, Loader] = {}
    for each in projections:
        if each.append_only and each.name not in targets:
            continue  # nobody looks up its rows
        loaders[each.name] = await kind.open(journal, database, each, targets.get(each.name))
        stack.push_async_callback(loaders[each.name].close)
    return loaders


class PostgresLoader:
    """COPY, while the rows that come next are being folded."""

    def __init__(
        self,
        connection: asyncpg.Connection[Any],
        journal_id: int,
        projection: Projection[Any],
        table: str,
    ) -> None:
        self._connection = connection
        self._journal_id = journal_id
        self._projection = projection
        self._table = table
        self._encode = CsvEncoder(projection)
        self._copying: asyncio.Task[Any] | None = None
        self._is_indexed = False

    @classmethod
    async def open(
        cls, journal: Journal, database: Database, projection: Projection[Any], target: str | None
    ) -> PostgresLoader:
        """Connect as the owner of the new tables."""
        url = database.settings.address(database.settings.migration_url)
        settings = {"application_name": "ledger rebuild", "jit": "off", "timezone": "UTC"}
        with explained():
            connection = await asyncpg.connect(
                postgres_dsn(url),
                timeout=database.settings.connect_timeout_seconds,
                server_settings=settings,
            )
            try:
                table = await _prepared(connection, projection, target)
            except BaseException:
                connection.terminate()
                raise
        return cls(connection, journal.journal_id, projection, table)

    async def put(self, rows: Sequence[ReadModel]) -> None:
        """Begin to copy the rows, after those before them."""
        await self.finish()
        if rows:
            self._copying = asyncio.create_task(self._copy(rows))

    async def _copy(self, rows: Sequence[ReadModel]) -> None:
        columns, source = self._projection.columns, self._encoded(rows)
        await self._connection.copy_to_table(
            self._table, columns=columns, source=source, **COPY_OPTIONS
        )

    async def _encoded(self, rows: Sequence[ReadModel]) -> AsyncIterator[bytes]:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            yield self._encode(rows[start : start + ROWS_AT_ONCE])
            await asyncio.sleep(0)

    async def take(self, keys: Collection[Hashable]) -> list[ReadModel]:
        """Delete and return the rows; the first time, make the index by which they are found."""
        await self.finish()
        key = self._projection.key
        with explained():
            if not self._is_indexed:
                await self._index(key)
                self._is_indexed = True
            listed = ", ".join(f'"{column}"' for column in self._projection.columns)
            where = f'journal_id = $1 AND "{key}" = ANY($2)'
            delete = f'DELETE FROM "{self._table}" WHERE {where} RETURNING {listed}'  # noqa: S608
            records = await self._connection.fetch(delete, self._journal_id, list(keys))
        return [self._projection.row(*record) for record in records]

    async def _index(self, key: str) -> None:
        """Make the index, unless the part of another journal has made it."""
        async with self._connection.transaction():
            lock = "SELECT pg_advisory_xact_lock(hashtext($1))"
            await self._connection.execute(lock, self._table)
            name = f'"{self._table}{TAKING_INDEX}"'
            on = f'"{self._table}" (journal_id, "{key}")'
            await self._connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {on}")

    async def clear(self) -> None:
        """Delete the rows of the journal."""
        await self.finish()
        delete = f'DELETE FROM "{self._table}" WHERE journal_id = $1'  # noqa: S608
        with explained():
            await self._connection.execute(delete, self._journal_id)

    async def finish(self) -> None:
        """Wait for the rows under way."""
        copying, self._copying = self._copying, None
        if copying is not None:
            with explained():
                await copying

    async def close(self) -> None:
        """Drop the connection, and with it a copy under way."""
        if self._copying is not None:
            self._copying.cancel()
            await asyncio.wait([self._copying])
        self._connection.terminate()


async def _prepared(
    connection: asyncpg.Connection[Any], projection: Projection[Any], target: str | None
) -> str:
    """Let ids be text and JSON be values, and return the table's name, made if there is none."""
    types: dict[str, Any] = {"uuid": (str, str), "json": (json.dumps, json.loads)}
    for name, (encoder, decoder) in types.items():
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=encoder, decoder=decoder, format="text"
        )
    if target is None:
        target = f"{projection.name}__scratch"
        like = f'"{target}" (LIKE "{projection.name}")'
        await connection.execute(f"CREATE TEMPORARY TABLE {like}")
    return target


class CsvEncoder:
    """Encodes rows for COPY with the options COPY_OPTIONS.

    Lines of JSON arrays without their brackets are CSV: text is quoted, `null` is not, and a quote
    in text is escaped. Other things are escaped in ways that COPY does not know, so what holds
    control characters or backslashes goes another, slow way.
    """

    def __init__(self, projection: Projection[Any]) -> None:
        columns = list(projection.table.columns)
        self._finish = projection.finish
        self._json = [n for n, each in enumerate(columns) if isinstance(each.type, sa.JSON)]

    def __call__(self, rows: Sequence[ReadModel]) -> bytes:
        """Return the lines of some rows."""
        with localcontext(CONTEXT):
            values = [self._values(row) for row in rows]
        encoded = _encode_lines(values)
        if _other_escape(encoded):
            return "".join(map(_quoted, values)).encode()
        # A line's end within text is escaped, so these are the ends of lines. Splitting and joining
        # takes half as long as replacing.
        return b"\n".join(encoded[1:-2].split(b"]\n[")) + b"\n"

    def _values(self, row: ReadModel) -> list[Any]:
        values = list(_astuple(self._finish(row)))
        for number in self._json:
            value = values[number]
            if value:
                values[number] = _encode_json(value).decode()
            elif value is not None:
                values[number] = _EMPTY.get(type(value)) or _encode_json(value).decode()
        return values


def _quoted(values: Sequence[Any]) -> str:
    """Return a line as COPY_OPTIONS have it, whatever text it holds."""
    return ",".join(map(_field, values)) + "\n"


def _field(value: Any) -> str:
    if value is None:
        return "null"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


class SqliteLoader:
    """Ordinary inserts, some thousand rows in a transaction, under the process's turn."""

    def __init__(
        self,
        journal: Journal,
        connection: AsyncConnection,
        projection: Projection[Any],
        table: sa.Table,
    ) -> None:
        self._journal = journal
        self._connection = connection
        self._projection = projection
        self._table = table
        self._ids = [c.name for c in table.columns if isinstance(c.type, sa.Uuid)]
        on = f'"{table.name}" (journal_id, "{projection.key}")'
        self._indexing = f'CREATE INDEX IF NOT EXISTS "{table.name}{TAKING_INDEX}" ON {on}'

    @classmethod
    async def open(
        cls, journal: Journal, database: Database, projection: Projection[Any], target: str | None
    ) -> SqliteLoader:
        """Connect, and make a temporary table where there is no target."""
        with explained():
            connection = await database.engine.connect()
            name = target or f"{projection.name}__scratch"
            table = projection.table.to_metadata(sa.MetaData(), name=name)
            if target is None:
                columns = ", ".join(f'"{column}"' for column in projection.columns)
                await connection.exec_driver_sql(f'CREATE TEMPORARY TABLE "{name}" ({columns})')
                await connection.commit()
        return cls(journal, connection, projection, table)

    async def put(self, rows: Sequence[ReadModel]) -> None:
        """Write the rows."""
        remaining = iter(rows)
        while piece := list(islice(remaining, ROWS_AT_ONCE)):
            with localcontext(CONTEXT):
                values = [self._values(self._projection.finish(row)) for row in piece]
            with explained():
                async with self._journal.store.write_turn():
                    await self._connection.execute(sa.insert(self._table), values)
                    await self._connection.commit()

    def _values(self, row: ReadModel) -> dict[str, Any]:
        values = values_of(row)
        for name in self._ids:
            if values[name] is not None:
                values[name] = UUID(str(values[name]))
        return values

    async def take(self, keys: Collection[Hashable]) -> list[ReadModel]:
        """Delete and return the rows."""
        column = self._table.c[self._projection.key]
        wanted = [UUID(str(k)) for k in keys] if self._projection.key in self._ids else list(keys)
        delete = self._deletion().where(is_among(column, wanted, self._connection.dialect))
        with explained():
            async with self._journal.store.write_turn():
                await self._connection.exec_driver_sql(self._indexing)
                found = await self._connection.execute(delete.returning(*self._table.columns))
                rows = [self._row(record) for record in found.mappings()]
                await self._connection.commit()
        return rows

    def _row(self, record: Any) -> ReadModel:
        values = dict(record)
        for name in self._ids:
            if values[name] is not None:
                values[name] = str(values[name])
        row: ReadModel = self._projection.row(**values)
        return row

    async def clear(self) -> None:
        """Delete the rows of the journal."""
        with explained():
            async with self._journal.store.write_turn():
                await self._connection.execute(self._deletion())
                await self._connection.commit()

    def _deletion(self) -> sa.Delete:
        return sa.delete(self._table).where(self._table.c.journal_id == self._journal.journal_id)

    async def finish(self) -> None:
        """Do nothing: rows are stored when `put` returns."""

    async def close(self) -> None:
        """Give the connection up: it may have a temporary table of its own."""
        await self._connection.invalidate()
        await self._connection.close()
