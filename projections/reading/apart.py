"""A thread for what takes long, with an event loop, a journal and a database of its own.

Folds hold the processor for up to a tenth of a second at a time. Whoever answers many callers on
one event loop has them done here, so that nobody else waits for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ledger.errors import LedgerError
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections.database import Database

T = TypeVar("T")
Work = Callable[[Journal, Database], Coroutine[Any, Any, T]]

CONNECTIONS = 4


class ReplayTooLong(LedgerError):
    """A point of the past could not be folded within the time that an answer may take."""

    exit_code = 3

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the fold to this point was given up after {seconds:g} s; take a snapshot near it "
            "(`replay.py snapshot take`), or ask `replay.py as-of`, which has no limit"
        )
        self.seconds = seconds


class ExportTooLong(LedgerError):
    """A file could not be written within the time that an answer may take."""

    exit_code = 3

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the file was given up after {seconds:g} s; ask for fewer rows, or for a point of the "
            "past take a snapshot near it (`replay.py snapshot take`); `replay.py as-of` and "
            "`replay.py diff` have no limit"
        )
        self.seconds = seconds


class Apart:
    """The thread; it begins with the first work, and ends when it is closed."""

    def __init__(self, settings: Settings, journal: str) -> None:
        """Take which journal of which database it works on."""
        self._settings = settings.model_copy(update={"pool_size": CONNECTIONS, "pool_overflow": 0})
        self._name = journal
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._opening = asyncio.Lock()
        self._opened = contextlib.AsyncExitStack()
        self._parts: tuple[Journal, Database] | None = None

    async def run(
        self,
        work: Work[T],
        timeout_seconds: float,
        too_long: Callable[[float], LedgerError] = ReplayTooLong,
    ) -> T:
        """Return what `work` returns; raises `too_long` where that takes longer than it may."""
        running = asyncio.run_coroutine_threadsafe(self._run(work), self._begun())
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.wrap_future(running)
        except TimeoutError as error:
            raise too_long(timeout_seconds) from error

    def _begun(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._opening = asyncio.Lock()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="apart", daemon=True
            )
            self._thread.start()
        return self._loop

    async def _run(self, work: Work[T]) -> T:
        journal, database = await self._ready()
        return await work(journal, database)

    async def _ready(self) -> tuple[Journal, Database]:
        """Return journal and database, opened by whoever comes first."""
        async with self._opening:
            if self._parts is None:
                journal = await self._opened.enter_async_context(
                    open_journal(self._settings, self._name)
                )
                database = await self._opened.enter_async_context(Database(self._settings))
                self._parts = journal, database
        return self._parts

    async def close(self) -> None:
        """Give up what is under way, and end the thread."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._loop = self._thread = None
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._let_go(), loop))
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()

    async def _let_go(self) -> None:
        own = asyncio.current_task()
        others = [each for each in asyncio.all_tasks() if each is not own]
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._parts = None
        await self._opened.aclose()


class Shared:
    """Lets callers on one event loop who want the same thing at the same time wait for one work.

    It is given up when all who wait for it have gone.
    """

    def __init__(self) -> None:
        self._under_way: dict[object, tuple[asyncio.Task[Any], list[int]]] = {}

    async def get(self, key: object, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what `make` makes, made once for all who ask for `key` meanwhile."""
        if key not in self._under_way:
            self._under_way[key] = asyncio.create_task(make()), [0]
        task, waiting = self._under_way[key]
        waiting[0] += 1
        try:
            found: T = await asyncio.shield(task)
        finally:
            waiting[0] -= 1
            if task.done() or not waiting[0]:
                task.cancel()
                if self._under_way.get(key, (None,))[0] is task:
                    del self._under_way[key]
        return found
