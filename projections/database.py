"""The connections of the read side: a pool, sessions for readers, transactions for projectors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from time import monotonic, perf_counter
from typing import Any, Self

import asyncpg
import msgspec
from sqlalchemy import URL, Connection, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
)
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from ledger.engine import make_engine
from ledger.errors import SchemaMissing, StoreUnavailable
from ledger.settings import Settings
from projections.model import Base
from projections.sort_keys import amount_key

RECYCLE_SECONDS = 3600
PING_IDLE_SECONDS = 0.25
"""In a batch only what has lain idle for so long is tried out first: that is 3 round trips."""
_USED_AT = "ledger_used_at"
_MISSING_TABLE = ("no such table", "UndefinedTableError", "no such column", "UndefinedColumnError")

_AWAY = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
"""Errors of the database; those of connecting come from the driver itself."""
_READ_ONLY_STATE = "25006"
_READABLE = text(
    "SELECT name FROM unnest(CAST(:names AS text[])) WITH ORDINALITY AS t(name, place)"
    " WHERE has_table_privilege(to_regclass(quote_ident(name)), 'SELECT') ORDER BY place"
)


class Health(msgspec.Struct, frozen=True):
    """Whether the database answered, how fast, and why it did not."""

    healthy: bool
    latency_seconds: float
    error: str | None = None


class PoolStatistics(msgspec.Struct, frozen=True):
    """How many connections the pool may have, has open, and has lent out."""

    size: int
    overflow_max: int
    open: int
    in_use: int


class Database:
    """The read side's database; close it after use, or use it as a context manager."""

    def __init__(
        self,
        settings: Settings,
        *,
        checks_foreign_keys: bool = True,
        answer_seconds: float | None = None,
        for_batches: bool = False,
    ) -> None:
        """Take the address and the pool's bounds; connections are made when they are needed.

        SQLite does not check foreign keys, if so wanted. PostgreSQL must answer each statement
        within `answer_seconds`, if given; a server that is cut off would be waited for otherwise.
        A database `for_batches` is for whoever begins a batch that failed again: lost connections
        may show as errors, and commits wait for the disk only if the settings say so.
        """
        self.settings = settings
        url = settings.address()
        options = _connect_options(url, settings, answer_seconds, for_batches=for_batches)
        self.engine = _make_engine(url, settings, options)
        idle_seconds = PING_IDLE_SECONDS if for_batches else 0
        event.listen(self.engine.sync_engine, "checkin", _note_use)
        event.listen(self.engine.sync_engine, "checkout", partial(self._ping, idle_seconds))
        is_sqlite = self.engine.dialect.name == "sqlite"
        if is_sqlite and not checks_foreign_keys:
            event.listen(self.engine.sync_engine, "connect", _spare_foreign_keys)
        self._snapshot = {} if is_sqlite else {"isolation_level": "REPEATABLE READ"}
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._lock: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Give a reader a session, in which all reads see the tables at one size."""
        with explained():
            lock = await self._lock_statement()
            async with self._sessions() as session:
                connection = await session.connection(execution_options=self._snapshot)
                if lock:
                    await connection.exec_driver_sql(lock)
                yield session

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Give a reader a connection, on which all reads see the tables at one size."""
        with explained():
            lock = await self._lock_statement()
            async with self.engine.connect() as connection:
                await connection.execution_options(**self._snapshot)
                async with connection.begin():
                    if lock:
                        await connection.exec_driver_sql(lock)
                    yield connection

    def _ping(
        self, idle_seconds: float, connection: Any, record: ConnectionPoolEntry, _proxy: object
    ) -> None:
        """Let the pool connect anew where a connection was lost while nobody used it."""
        used_at = record.info.get(_USED_AT)
        if used_at is None or monotonic() - used_at < idle_seconds:
            return
        dialect = self.engine.dialect
        try:
            dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error

    async def _lock_statement(self) -> str | None:
        """Return what a snapshot must begin with, so that no table is swapped while it is read.

        A snapshot that is older than the rows of a table which a rebuild swaps in would see none of
        them. What the role may not read, or is not there, cannot be locked and need not be.
        """
        if self._lock is None:
            names = [] if self.engine.dialect.name == "sqlite" else read_tables()
            async with self.engine.connect() as connection:
                found = await connection.execute(_READABLE, {"names": names}) if names else ()
                readable = [row.name for row in found]
            self._lock = lock_statement(readable) if readable else ""
        return self._lock

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Give a writer a connection; its transaction commits at the end, or rolls back."""
        with explained():
            async with self.engine.connect() as connection:
                await connection.execution_options(sqlite_begin="BEGIN IMMEDIATE")
                async with connection.begin():
                    yield connection

    async def health(self) -> Health:
        """Ask the database for a sign of life; this never raises because of the database."""
        started = perf_counter()
        try:
            async with self.engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except _AWAY as error:
            return Health(False, perf_counter() - started, one_line(error))
        return Health(True, perf_counter() - started)

    def pool_statistics(self) -> PoolStatistics:
        """Return the pool's present state."""
        pool = self.engine.pool
        if not isinstance(pool, QueuePool):
            raise TypeError(f"{type(pool).__name__} keeps no statistics")
        in_use = pool.checkedout()
        return PoolStatistics(
            pool.size(), self.settings.pool_overflow, pool.checkedin() + in_use, in_use
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


def read_tables() -> list[str]:
    """Return the names of all read tables that this program declares, in the order of locking."""
    return sorted(each.local_table.name for each in Base.registry.mappers)  # type: ignore[attr-defined]


def lock_statement(names: Iterable[str]) -> str:
    """Return the statement with which a long REPEATABLE READ transaction on PostgreSQL begins.

    It keeps nobody from reading or projecting, but a rebuild from swapping these tables.
    """
    listed = ", ".join(f'"{name}"' for name in names)
    return f"LOCK TABLE {listed} IN ACCESS SHARE MODE"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn the database's errors into this project's, in one line."""
    try:
        yield
    except _AWAY as error:
        reason = one_line(error)
        if isinstance(error, DBAPIError) and any(word in reason for word in _MISSING_TABLE):
            raise SchemaMissing(f"{reason}; run `ledger migrate`") from error
        raise StoreUnavailable(f"database: {reason}") from error


def one_line(error: Exception) -> str:
    """Return the first line of what the database said, without the statement."""
    said = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return (str(said).splitlines() or [type(said).__name__])[0]


def _make_engine(url: URL, settings: Settings, connect_options: dict[str, Any]) -> AsyncEngine:
    engine = make_engine(
        url,
        connect_options,
        pool_size=settings.pool_size,
        max_overflow=settings.pool_overflow,
        pool_recycle=RECYCLE_SECONDS,
        hide_parameters=True,  # rows hold personal data, and errors are logged
        json_serializer=partial(json.dumps, sort_keys=True, separators=(",", ":")),
    )
    if url.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    else:
        event.listen(engine.sync_engine, "handle_error", _leave_standby)
    return engine


def _note_use(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info[_USED_AT] = monotonic()


def _connect_options(
    url: URL, settings: Settings, answer_seconds: float | None, *, for_batches: bool
) -> dict[str, Any]:
    """Return what the driver is told; SQLite has no statement timeout but a wait for locks."""
    timeout_seconds = settings.statement_timeout_seconds
    if url.get_backend_name() == "sqlite":
        return {"timeout": timeout_seconds}
    session = {"statement_timeout": str(round(timeout_seconds * 1000))}
    if for_batches and not settings.projector_waits_for_disk:
        session["synchronous_commit"] = "off"
    return {
        "timeout": settings.connect_timeout_seconds,
        "command_timeout": answer_seconds,
        "server_settings": session,
    }


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Take transactions out of the driver's hands: it would begin them too late."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()
    connection.create_function("amount_key", 1, amount_key, deterministic=True)


def _spare_foreign_keys(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=OFF")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    connection.exec_driver_sql(options.get("sqlite_begin", "BEGIN"))


def _leave_standby(context: ExceptionContext) -> None:
    """Let go of all connections to a server that only reads: the one that writes is elsewhere."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY_STATE:
        context.is_disconnect = True
