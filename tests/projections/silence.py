"""Sessions on PostgreSQL whose program stands still in the middle of something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import asyncpg
import sqlalchemy as sa

from ledger.settings import Settings
from projections.database import Database

WAIT_SECONDS = 20
_WAITING = sa.text("SELECT wait_event FROM pg_stat_activity WHERE pid = :pid AND state = 'active'")


class Silent:
    """A session, and what leaves it in the middle of a statement."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        """Take its connection."""
        self._connection: Any = connection  # of which more is needed than is public
        self._asked: list[asyncio.Task[object]] = []

    @classmethod
    @asynccontextmanager
    async def connected(cls, settings: Settings) -> AsyncIterator[Self]:
        """Connect to a test database; at the end leave nothing behind, whatever is under way."""
        silent = cls(await asyncpg.connect(settings.database_url))
        try:
            yield silent
        finally:
            for task in silent._asked:
                task.cancel()
            await asyncio.gather(*silent._asked, return_exceptions=True)
            silent._connection.terminate()

    async def run(self, sql: str) -> None:
        """Run statements to their end."""
        await self._connection.execute(sql)

    async def begin_statement(self) -> None:
        """Let the server understand a statement, and do not go on with it.

        This is how far a driver is that was frozen in the middle of a statement new to it.
        """
        await self._connection.prepare("SELECT 1")

    async def ask(self, sql: str) -> None:
        """Send a statement, and wait for no answer."""
        self._asked.append(asyncio.create_task(self._connection.execute(sql)))

    async def ask_to_copy(self, table: str) -> None:
        """Begin to load a table, with rows that do not come."""
        copied = self._connection.copy_to_table(table, source=_nothing())
        self._asked.append(asyncio.create_task(copied))

    def receive_no_more(self) -> None:
        """Take none of what the server sends from now on."""
        self._connection._transport.pause_reading()

    async def is_waiting(self, event: str, database: Database) -> None:
        """Wait until the server waits for that within a statement of this session."""
        pid = self._connection.get_server_pid()
        async with asyncio.timeout(WAIT_SECONDS):
            while await _waiting(database, pid) != event:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)


async def _nothing() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def _waiting(database: Database, pid: int) -> object:
    async with database.snapshot() as connection:
        return (await connection.execute(_WAITING, {"pid": pid})).scalar()
