"""The effective order of a journal's events: by when they happened, as known at some size.

The effective time of an event is the later of its own `occurred_at` and that of its stream's first
event: nothing happens to a thing before it is there. Events of the same time keep their order.

Most events come in this order already. They are read as a journal is always read; those that came
late are read apart, and put where they belong. Kept in memory are 8 bytes for each event, 16 for
each late one, and the time of each stream's first event.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from ledger.errors import StoreUnavailable
from ledger.event import RecordedEvent
from ledger.journal import Journal
from projections.points import microseconds
from projections.published import PublishedJournal
from projections.replaying import CHUNK_SIZE, Readable

EXCLUDED = -(2**63)
"""Stands for the time of an event that is not to be folded; times before 1970 are above it."""

LATE_AT_ONCE = 1000
"""So many late events are read together."""

GAP_MAX = 20
"""Late events that lie so close to each other are read with what lies between them."""


class Dated(Protocol):
    """What of an event its effective time depends on."""

    @property
    def offset(self) -> int:
        """Its place in the journal."""
        ...

    @property
    def stream(self) -> str:
        """Its stream."""
        ...

    @property
    def occurred_at(self) -> datetime:
        """When it happened, as it says itself."""
        ...


class Late(NamedTuple):
    """An event that was recorded after one which is effective later."""

    time: int
    offset: int


class Dating:
    """Gives events their effective times; it must see all of them, in the order of offsets."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}

    def __call__(self, event: Dated) -> int:
        """Return the effective time in microseconds."""
        time = microseconds(event.occurred_at)
        return max(time, self._begun.setdefault(event.stream, time))


class EffectiveOrder:
    """The events of a journal that had happened by a time, in the order in which they happened.

    It is read like a journal, by places in this order; `count` says how many there are.
    """

    def __init__(self, source: Readable, times: array[int], late: list[Late]) -> None:
        self.journal_id = source.journal_id
        self.name = source.name
        self.count = len(times) - times.count(EXCLUDED)
        self._source = source
        self._times = times
        self._late = late

    @classmethod
    async def of(
        cls,
        source: Readable,
        moment: datetime,
        size: int,
        advanced: Callable[[int], None] = lambda _: None,
    ) -> EffectiveOrder:
        """Find the order of those of the first `size` events that had happened by `moment`.

        Raises StoreUnavailable where the server that answers does not hold them all yet.
        """
        dating, last, latest = Dating(), microseconds(moment), EXCLUDED
        times, late = array("q"), list[Late]()
        async for chunk in _dated(source, size):
            for event in chunk:
                time = dating(event)
                if time > last:
                    time = EXCLUDED
                elif time < latest:
                    late.append(Late(time, event.offset))
                else:
                    latest = time
                times.append(time)
            advanced(len(chunk))
        if len(times) < size:
            raise StoreUnavailable(
                f"the server holds only {len(times)} of the first {size} events of journal "
                f"{source.name!r}: it is behind another one that was asked before"
            )
        late.sort()
        return cls(source, times, late)

    async def read_chunks(
        self, start: int = 0, stop: int | None = None, *, chunk_size: int = CHUNK_SIZE
    ) -> AsyncIterator[list[RecordedEvent]]:
        """Yield the events from the start-th on, up to the one before the stop-th."""
        place, end = 0, self.count if stop is None else stop
        async for chunk in self._chunks(chunk_size):
            first, last = max(0, start - place), end - place
            if wanted := chunk[first:last]:
                yield wanted
            place += len(chunk)
            if place >= end:
                return

    async def _chunks(self, chunk_size: int) -> AsyncIterator[list[RecordedEvent]]:
        """Yield all, the late ones merged into the others."""
        late = self._read_late()
        waiting, times, latest = await anext(late, None), self._times, EXCLUDED
        chunks = self._source.read_chunks(0, len(times), chunk_size=chunk_size)
        async for chunk in chunks:
            merged: list[RecordedEvent] = []
            for event in chunk:
                time = times[event.offset]
                if time == EXCLUDED or time < latest:
                    continue
                latest = time
                while waiting is not None and self._goes_before(waiting, event):
                    merged.append(waiting)
                    waiting = await anext(late, None)
                merged.append(event)
            yield merged
        while waiting is not None:
            yield [waiting]
            waiting = await anext(late, None)

    def _goes_before(self, late: RecordedEvent, event: RecordedEvent) -> bool:
        times = self._times
        return (times[late.offset], late.offset) < (times[event.offset], event.offset)

    async def _read_late(self) -> AsyncIterator[RecordedEvent]:
        """Yield the late events in their order."""
        for start in range(0, len(self._late), LATE_AT_ONCE):
            offsets = [each.offset for each in self._late[start : start + LATE_AT_ONCE]]
            found: dict[int, RecordedEvent] = {}
            for first, last in _ranges(sorted(offsets)):
                async for chunk in self._source.read_chunks(first, last + 1):
                    found.update((event.offset, event) for event in chunk)
            for offset in offsets:
                yield found[offset]


def _ranges(offsets: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last of offsets that are read together."""
    found: list[tuple[int, int]] = []
    for offset in offsets:
        if found and offset - found[-1][1] <= GAP_MAX:
            found[-1] = found[-1][0], offset
        else:
            found.append((offset, offset))
    return found


async def _dated(source: Readable, size: int) -> AsyncIterator[Sequence[Dated]]:
    """Yield the first `size` events, without decoding them where that can be spared."""
    if not isinstance(source, Journal | PublishedJournal):
        async for chunk in source.read_chunks(0, size):
            yield chunk
        return
    for start in range(0, size, CHUNK_SIZE):
        stop = min(size, start + CHUNK_SIZE)
        yield await source.store.read(source.journal_id, start, stop)
