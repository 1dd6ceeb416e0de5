"""Long work beside a service, in a thread with an event loop of its own: it blocks nobody."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")

INSIST_SECONDS = 5.0


class Aside(Generic[T]):
    """A coroutine that runs in a thread of its own until it ends or is cancelled.

    What it works with (connections, journals) must be made in it: they belong to its event loop.
    """

    def __init__(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        """Take what the thread is called, and what makes the coroutine; it begins at once."""
        self.result: Future[T] = Future()
        self._work = work
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[T] | None = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.result.set_running_or_notify_cancel()
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                value = runner.run(self._watched())
        except BaseException as error:  # noqa: BLE001 - whoever waits for the result gets it
            self.result.set_exception(error)
        else:
            self.result.set_result(value)

    async def _watched(self) -> T:
        self._task = asyncio.create_task(self._work())
        if self._cancelled.is_set():
            self._task.cancel()
        return await self._task

    async def wait(self) -> T:
        """Return what the coroutine returns, or raise what it raises; it goes on without us."""
        return await asyncio.shield(asyncio.wrap_future(self.result))

    def call(self, function: Callable[[], object]) -> None:
        """Have its event loop call something soon; nothing where it has ended."""
        with contextlib.suppress(RuntimeError):  # the loop has just been closed
            self._loop.call_soon_threadsafe(function)

    async def cancel(self) -> None:
        """Cancel it, and wait until it has cleaned up after itself.

        Drivers may lose a cancellation before Python 3.12, so it is repeated.
        """
        self._cancelled.set()
        while self._thread.is_alive():
            self.call(self._cancel_task)
            await asyncio.to_thread(self._thread.join, INSIST_SECONDS)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()
