"""Waiting for whichever comes first, and trying again with growing pauses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any, TypeVar

from ledger.errors import AppendOutcomeUnknown, SchemaMissing, StoreUnavailable

T = TypeVar("T")

PAUSE_SECONDS_FIRST = 0.05
PAUSE_SECONDS_MAX = 5.0


class Backoff:
    """Pauses between tries: each twice as long as the last, up to a bound, never quite the same."""

    def __init__(self) -> None:
        self._seconds = PAUSE_SECONDS_FIRST

    def next_seconds(self) -> float:
        """Return how long to pause now."""
        seconds = self._seconds * random.uniform(0.5, 1)  # noqa: S311 - so that not all try at once
        self._seconds = min(2 * self._seconds, PAUSE_SECONDS_MAX)
        return seconds

    def reset(self) -> None:
        """Begin again with short pauses: something has worked."""
        self._seconds = PAUSE_SECONDS_FIRST


async def first_of(
    *waits: Coroutine[Any, Any, object], timeout_seconds: float | None = None
) -> None:
    """Wait until one of them ends, or the time is over; cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Wait for so long, or until `stopping` is set."""
    await first_of(stopping.wait(), timeout_seconds=seconds)


async def outlast_outages(
    work: Callable[[], Awaitable[T]],
    stopping: asyncio.Event,
    lost: Callable[[Exception], None],
) -> T | None:
    """Do `work`; where the database is lost on the way begin again, until `stopping` is set.

    `work` must bear being begun again. `lost` is told of each error. Returns None when stopped.
    """
    backoff = Backoff()
    while not stopping.is_set():
        began = monotonic()
        try:
            return await work()
        except SchemaMissing:
            raise
        except (StoreUnavailable, AppendOutcomeUnknown) as error:
            lost(error)
            if monotonic() - began > PAUSE_SECONDS_MAX:
                backoff.reset()
            await pause(stopping, backoff.next_seconds())
    return None
