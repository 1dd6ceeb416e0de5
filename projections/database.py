"""The connections of the read side: a pool, sessions for readers, transactions for projectors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, Self

import asyncpg
import msgspec
from sqlalchemy import URL, Connection, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
)
from sqlalchemy.pool import QueuePool

from ledger.engine import make_engine
from ledger.errors import SchemaMissing, StoreUnavailable
from ledger.settings import Settings, async_url
from projections.model import Base

RECYCLE_SECONDS = 3600
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
    ) -> None:
        """Take the address and the pool's bounds; connections are made when they are needed.

        SQLite does not check foreign keys, if so wanted. PostgreSQL must answer each statement
        within `answer_seconds`, if given; a server that is cut off would be waited for otherwise.
        """
        self.settings = settings
        self.engine = _make_engine(async_url(settings.database_url), settings, answer_seconds)
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


def _make_engine(url: URL, settings: Settings, answer_seconds: float | None) -> AsyncEngine:
    is_sqlite = url.get_backend_name() == "sqlite"
    engine = make_engine(
        url,
        _sqlite_options(settings) if is_sqlite else _postgres_options(settings, answer_seconds),
        pool_size=settings.pool_size,
        max_overflow=settings.pool_overflow,
        pool_pre_ping=True,
        pool_recycle=RECYCLE_SECONDS,
        json_serializer=partial(json.dumps, sort_keys=True, separators=(",", ":")),
    )
    if is_sqlite:
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    else:
        event.listen(engine.sync_engine, "handle_error", _leave_standby)
    return engine


def _postgres_options(settings: Settings, answer_seconds: float | None) -> dict[str, Any]:
    timeout_ms = round(settings.statement_timeout_seconds * 1000)
    return {
        "timeout": settings.connect_timeout_seconds,
        "command_timeout": answer_seconds,
        "server_settings": {"statement_timeout": str(timeout_ms)},
    }


def _sqlite_options(settings: Settings) -> dict[str, Any]:
    """SQLite has no statement timeout; it is the wait for locks that needs a bound."""
    return {"timeout": settings.statement_timeout_seconds}


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Take transactions out of the driver's hands: it would begin them too late."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


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
