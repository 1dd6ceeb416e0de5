"""Wake-ups between processes by NOTIFY and LISTEN.

NOTIFY is no part of an append: its transactions take turns at a lock of the whole server while they
commit. It is sent afterwards, on a connection of its own, for all batches since the last one. Where
it fails, the poll of those who wait has to do.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import asyncpg

from ledger.stores.wakeups import POLL_SECONDS, Hub

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Connect = Callable[[], Awaitable[Connection]]

CHANNEL = "ledger_events"
LISTENING_POLL_SECONDS = 0.5
"""A connection that is dead looks healthy, so the poll goes on while one listens."""

_NOTIFY = "SELECT pg_notify($1, j::text) FROM unnest($2::bigint[]) j"
_PAUSE_SECONDS = 0.005
_FAILED_PAUSE_SECONDS = 1.0
_CLOSE_SECONDS = 0.5
_RETRY_SECONDS_MAX = 5.0
_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


class Notifier:
    """Tells other processes which journals have grown, some milliseconds later at the most."""

    def __init__(self, connect: Connect, timeout_seconds: float) -> None:
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._connection: Connection | None = None
        self._grown: set[int] = set()
        self._sending: asyncio.Task[None] | None = None

    def notify(self, journal_id: int) -> None:
        """Tell it soon; this returns at once and never fails."""
        self._grown.add(journal_id)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        try:
            while self._grown:
                grown, self._grown = sorted(self._grown), set()
                try:
                    await self._send(grown)
                except _AWAY:
                    self._drop()
                    await asyncio.sleep(_FAILED_PAUSE_SECONDS)
                else:
                    await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            self._sending = None

    async def _send(self, grown: list[int]) -> None:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        await self._connection.execute(_NOTIFY, CHANNEL, grown, timeout=self._timeout_seconds)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Send what is left, if the database is quick, and let go of the connection."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=_CLOSE_SECONDS)
        await _end(self._sending)
        self._drop()


class Listener:
    """Listens on one connection for all who wait in this process; a lost one is made again."""

    def __init__(self, connect: Connect, hub: Hub) -> None:
        self._connect = connect
        self._hub = hub
        self._listening: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen from now on, until closed."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._keep_listening())

    async def _keep_listening(self) -> None:
        pause_seconds = POLL_SECONDS
        while True:
            try:
                await self._listen()
                pause_seconds = POLL_SECONDS
            except _AWAY:
                pause_seconds = min(2 * pause_seconds, _RETRY_SECONDS_MAX)
            await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.5))  # noqa: S311 - jitter

    async def _listen(self) -> None:
        """Pass on what is heard until the connection is lost."""
        connection = await self._connect()
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(CHANNEL, self._heard)
            self._hub.poll_seconds = LISTENING_POLL_SECONDS
            self._hub.wake_all()
            await lost.wait()
        finally:
            self._hub.poll_seconds = POLL_SECONDS
            connection.terminate()

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        text = str(payload)
        if text.isdecimal():
            self._hub.wake(int(text))

    async def close(self) -> None:
        """Stop listening."""
        listening, self._listening = self._listening, None
        await _end(listening)


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
