"""Being told that a journal may have grown, and asking now and then all the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator

POLL_SECONDS = 0.05


class Wakeups:
    """Wake-ups for one journal.

    A wake-up says "look again" and no more: it may come late, twice, or for nothing. It may also
    not come at all, so every wait ends by itself when it is time to look.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._woken = asyncio.Event()

    async def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until it is time to look at the journal; return whether somebody said so.

        That is after `timeout_seconds` at the latest, and never later than the poll is due. What
        came since the last call counts, so look first, then wait, and nothing is missed.
        """
        seconds = self._hub.poll_seconds
        if timeout_seconds is not None:
            seconds = min(seconds, timeout_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        woken = self._woken.is_set()
        self._woken.clear()
        return woken

    def wake(self) -> None:
        """Let the present wait, or the next one, end at once."""
        self._woken.set()


class Hub:
    """Who waits for which journal; one for each store, used on one event loop."""

    def __init__(self) -> None:
        self.poll_seconds = POLL_SECONDS
        self._waiting: dict[int, set[Wakeups]] = defaultdict(set)

    @contextlib.contextmanager
    def watching(self, journal_id: int) -> Iterator[Wakeups]:
        """Give wake-ups for a journal."""
        wakeups = Wakeups(self)
        self._waiting[journal_id].add(wakeups)
        try:
            yield wakeups
        finally:
            self._waiting[journal_id].discard(wakeups)
            if not self._waiting[journal_id]:
                del self._waiting[journal_id]

    def wake(self, journal_id: int) -> None:
        """Wake whoever waits for the journal."""
        for each in tuple(self._waiting.get(journal_id, ())):
            each.wake()

    def wake_all(self) -> None:
        """Wake everybody: wake-ups may have been missed."""
        for journal_id in tuple(self._waiting):
            self.wake(journal_id)
