"""Reading on in a journal: all events, those of some types, of one stream, or with a tag."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ledger.errors import StoredEventInvalid
from ledger.event import Event, RecordedEvent, event_types
from ledger.journal import Journal

READ_AT_ONCE = 1000
READS_MAX = 20
"""So often is read for one answer, however few of the events are wanted."""


class Wanted(msgspec.Struct, frozen=True):
    """Which events are wanted: of some types (of all, if there are none), a stream, a tag."""

    types: frozenset[str] = frozenset()
    stream: str | None = None
    tag: str | None = None

    def is_met(self, recorded: RecordedEvent) -> bool:
        """Whether an event has one of the types, and the tag if one goes with a stream."""
        if self.types and recorded.type not in self.types:
            return False
        return self.stream is None or self.tag is None or self.tag in _tags(recorded.event)


def _tags(event: Event) -> set[str]:
    return {*event.tags(), *event.claims(), *event.releases()}


class Follower:
    """A place in a journal, from which it is read on. `offset` is the last one that was passed."""

    def __init__(self, journal: Journal, wanted: Wanted, after: int = -1) -> None:
        self.offset = after
        self.size = 0
        """The journal's size when it was looked at last."""
        self._journal = journal
        self._wanted = wanted
        self._version: int | None = None
        self._ignored = tuple(sorted(set(event_types()) - wanted.types)) if wanted.types else ()

    @property
    def is_at_end(self) -> bool:
        """Whether all that the journal held when it was looked at has been passed."""
        return self.offset >= self.size - 1

    async def more(self, limit: int) -> list[RecordedEvent]:
        """Return up to `limit` of the next wanted events, in order.

        There may be more of them also where these are fewer, unless it is at the end. Raises
        StoredEventInvalid at an event that this release cannot read, once all before it are passed.
        """
        self.size = await self._journal.size()
        found: list[RecordedEvent] = []
        for _ in range(READS_MAX):
            if self.is_at_end or len(found) >= limit:
                break
            try:
                events = await self._read(limit - len(found), self.size)
            except StoredEventInvalid as error:
                if found:
                    break
                events = await self._read_before(error, limit)
            found += filter(self._wanted.is_met, events)
        return found

    async def _read_before(self, error: StoredEventInvalid, count: int) -> Sequence[RecordedEvent]:
        """Return what comes before an event that cannot be read; raise the error if none does."""
        if error.offset <= self.offset + 1:
            raise error
        return await self._read(count, error.offset)

    async def _read(self, count: int, stop: int) -> Sequence[RecordedEvent]:
        """Return the next events below `stop`, at most `count` wanted ones, and go beyond them."""
        if self._wanted.stream is not None:
            events = await self._read_stream(self._wanted.stream, count, stop)
        elif self._wanted.tag is not None:
            tag = self._wanted.tag
            events = await self._journal.read_tagged(tag, self.offset, stop=stop, limit=count)
        else:
            return await self._read_all(count, stop)
        self.offset = events[-1].offset if len(events) == count else stop - 1
        return events

    async def _read_all(self, count: int, stop: int) -> Sequence[RecordedEvent]:
        start = self.offset + 1
        stop = min(stop, start + (READ_AT_ONCE if self._ignored else count))
        events = await self._journal.read_but(self._ignored, start, stop)
        wanted = [each for each in events if self._wanted.is_met(each)]
        self.offset = wanted[count - 1].offset if len(wanted) > count else stop - 1
        return wanted[:count]

    async def _read_stream(self, stream: str, count: int, stop: int) -> list[RecordedEvent]:
        if self._version is None:
            self._version = await self._version_at(stream)
        read = self._journal.read_stream
        events = await read(stream, self._version, stop=stop, limit=count)
        self._version += len(events)
        return events

    async def _version_at(self, stream: str) -> int:
        """Return the version that a stream has at the offset: of its events those up to there.

        Versions have no gaps, so the place is found by doubling and halving.
        """
        low, high = 0, 1
        while await self._is_passed(stream, high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if await self._is_passed(stream, middle) else (low, middle)
        return low

    async def _is_passed(self, stream: str, version: int) -> bool:
        try:
            found = await self._journal.read_stream(stream, version - 1, limit=1)
        except StoredEventInvalid as error:
            return error.offset <= self.offset
        return bool(found) and found[0].offset <= self.offset
