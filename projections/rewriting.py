"""Rewriting what a database keeps of rows that are gone: old versions, free pages, statistics.

PostgreSQL keeps old versions of rows until a page is written anew, and samples of values in its
statistics. VACUUM FULL writes a table anew without what nobody can see any more; its own report
says whether that was all. SQLite keeps the content of free pages; VACUUM writes the file anew.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import asyncpg

from ledger.engine import postgres_dsn
from ledger.errors import LedgerError, StoreUnavailable
from ledger.settings import Settings, async_url
from ledger.stores.opening import open_store
from projections.database import explained

KEPT_TABLES = ("subject_keys", "parked_keys", "skipped_events", "snapshots", "snapshot_chunks")
"""What is rewritten as it is, since rows of it may have held values, or a data key."""

VALUES = {"parked_keys": "error", "skipped_events": "error", "snapshot_chunks": "body"}
"""Columns whose statistics are dropped first: those of a table that is empty are never renewed."""

CATALOGS = ("pg_catalog.pg_statistic", "pg_catalog.pg_statistic_ext_data")
"""Where statistics lie."""

LOCK_SECONDS = 5.0
PAUSE_SECONDS = 0.2
HOLDERS_SHOWN_MAX = 3

_LOCKED = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)
_PRESENT = """
    SELECT relname FROM pg_class WHERE oid IN (
        SELECT to_regclass(quote_ident(name)) FROM unnest(CAST($1 AS text[])) AS name)"""
_TYPE = """
    SELECT format_type(atttypid, atttypmod) FROM pg_attribute
    WHERE attrelid = CAST($1 AS regclass) AND attname = $2"""
_HOLDERS = """
    SELECT format('process %s (%s), in a transaction since %s', pid,
        coalesce(nullif(application_name, ''), 'unnamed'), xact_start)
    FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND xact_start IS NOT NULL
        AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
    ORDER BY xact_start LIMIT $1"""

Told = Callable[[str], None]


class StillVisible(LedgerError):
    """Old versions of rows could not be removed, since somebody may still look at them."""

    exit_code = 3

    def __init__(self, where: str, holders: Iterable[str]) -> None:
        who = "; ".join(holders) or "a replication slot or a prepared transaction may"
        super().__init__(
            f"{where} cannot be freed of old rows while others hold on to them ({who}); end that, "
            "then run it again"
        )


class MayNotRewrite(LedgerError):
    """The role is not allowed to rewrite a table."""

    exit_code = 3

    def __init__(self, table: str) -> None:
        super().__init__(
            f"this role may not rewrite {table}; set LEDGER_OWNER_DATABASE_URL (for the data "
            "keys LEDGER_KEYS_DATABASE_URL) to a superuser, or to the owner of the database"
        )


async def rewrite(settings: Settings, url: str, wait_seconds: float, told: Told) -> None:
    """Rewrite what a database keeps beside the tables that people read.

    What others lock or look at is waited for at most `wait_seconds`; then, and where the role may
    not do it, raises StillVisible and MayNotRewrite. `told` is told what is done.
    """
    own = settings.model_copy(update={"database_url": url})
    with explained():
        if async_url(url).get_backend_name() == "sqlite":
            await _rewrite_file(own, wait_seconds, told)
        else:
            await _rewrite_server(own, wait_seconds, told)


async def _rewrite_server(settings: Settings, wait_seconds: float, told: Told) -> None:
    url = settings.address()
    connection = await asyncpg.connect(
        postgres_dsn(url), timeout=settings.connect_timeout_seconds, command_timeout=None
    )
    try:
        await connection.execute(f"SET lock_timeout = {round(LOCK_SECONDS * 1000)}")
        await connection.execute("SET statement_timeout = 0")
        present = {row[0] for row in await connection.fetch(_PRESENT, KEPT_TABLES)}
        tables = [table for table in KEPT_TABLES if table in present]
        rewriting = _Rewriting(connection, monotonic() + wait_seconds)
        for table in tables:
            await rewriting.renew_statistics(table)
        for table in (*tables, *CATALOGS):
            told(f"rewriting {table}")
            await rewriting.vacuum(table)
    finally:
        await connection.close()


class _Rewriting:
    """Rewrites tables of a PostgreSQL database, up to a deadline."""

    def __init__(self, connection: asyncpg.Connection[Any], deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    async def renew_statistics(self, table: str) -> None:
        """Gather a table's statistics anew; changing a column's type to the same drops its own."""
        column = VALUES.get(table)
        statements = [f"ANALYZE {table}"]
        if column is not None:
            kind = await self._connection.fetchval(_TYPE, table, column)
            statements.insert(0, f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {kind}")
        for statement in statements:
            await self._execute(table, statement)

    async def vacuum(self, table: str) -> None:
        """Write a table anew, until no old version of a row is left in it."""
        while True:
            left = await self._vacuum(table)
            if left is None:
                raise MayNotRewrite(table)
            if left == 0:
                return
            await self._pause(table)

    async def _vacuum(self, table: str) -> int | None:
        """Return how many old versions are left, None where the server would not do it."""
        reports: list[str] = []

        def listen(_: object, message: Any) -> None:
            if table.rpartition(".")[2] in message.message and message.detail:
                reports.append(message.detail)

        self._connection.add_log_listener(listen)
        try:
            await self._execute(table, f"VACUUM (FULL, VERBOSE) {table}")
            await asyncio.sleep(0)  # listeners are called by the loop
        finally:
            self._connection.remove_log_listener(listen)
        # "0 dead row versions cannot be removed yet", in whatever language.
        found = [re.search(r"\d+", each) for each in reports]
        return next((int(each[0]) for each in found if each), None)

    async def _execute(self, table: str, statement: str) -> None:
        while True:
            try:
                await self._connection.execute(statement)
                return
            except _LOCKED:
                await self._pause(table)
            except asyncpg.InsufficientPrivilegeError as error:
                raise MayNotRewrite(table) from error

    async def _pause(self, table: str) -> None:
        if monotonic() >= self._deadline:
            holders = await self._connection.fetch(_HOLDERS, HOLDERS_SHOWN_MAX)
            raise StillVisible(table, [row[0] for row in holders])
        await asyncio.sleep(PAUSE_SECONDS)


async def _rewrite_file(settings: Settings, wait_seconds: float, told: Told) -> None:
    file = async_url(settings.database_url).database or ""
    told(f"rewriting {file}")
    store = open_store(settings)
    try:
        async with store.write_turn(), _opened(file, settings) as connection:
            await _in_thread(connection, _statements_of(connection))
            await _empty_log(connection, file, monotonic() + wait_seconds)
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{file} could not be rewritten: {error}") from error
    finally:
        await store.close()


def _statements_of(connection: sqlite3.Connection) -> Sequence[str]:
    """Return what is to be executed; statistics are renewed only where there are any."""
    query = "SELECT count(*) FROM sqlite_master WHERE name LIKE 'sqlite_stat_'"
    analyse = ["ANALYZE"] if connection.execute(query).fetchone()[0] else []
    return ["PRAGMA secure_delete = ON", *analyse, "VACUUM"]


@asynccontextmanager
async def _opened(file: str, settings: Settings) -> AsyncIterator[sqlite3.Connection]:
    connection = sqlite3.connect(
        file,
        timeout=settings.statement_timeout_seconds,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        yield connection
    finally:
        connection.close()


async def _in_thread(connection: sqlite3.Connection, statements: Sequence[str]) -> list[Any]:
    """Execute statements beside the event loop; return the last one's first row."""

    def execute() -> list[Any]:
        rows = [connection.execute(statement).fetchone() for statement in statements]
        return list(rows[-1] or ())

    working = asyncio.ensure_future(asyncio.to_thread(execute))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        connection.interrupt()
        await asyncio.wait([working])
        raise


async def _empty_log(connection: sqlite3.Connection, file: str, deadline: float) -> None:
    """Bring the write-ahead log into the file, and empty it."""
    await _in_thread(connection, [f"PRAGMA busy_timeout = {round(PAUSE_SECONDS * 1000)}"])
    while True:
        is_busy, *_ = await _in_thread(connection, ["PRAGMA wal_checkpoint(TRUNCATE)"])
        if not is_busy:
            return
        if monotonic() >= deadline:
            raise StillVisible(f"the write-ahead log of {file}", ["another program reads the file"])
        await asyncio.sleep(PAUSE_SECONDS)
