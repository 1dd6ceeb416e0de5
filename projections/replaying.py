"""Folding a journal afresh, in memory: the state of all tables as of any size."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import islice
from typing import Any, Protocol

from ledger.event import RecordedEvent
from ledger.lens import Lens
from projections.fold import Group
from projections.guarding import Trace, fold_guarded
from projections.lanes import NO_RULINGS, Rulings
from projections.projection import State

CHUNK_SIZE = 5000
LENS_CHUNK_SIZE = 10_000

CHUNKS_AHEAD = 2

Begin = Callable[[Any, Group, int], Awaitable[tuple[State, int]]]
"""Returns a fresh state after some of the first events, at most so many, and how many they are."""

Watch = Callable[[State, RecordedEvent], None]
"""Looks at the state after each event; it begins again with another state where the fold does."""


class Readable(Protocol):
    """What a fold reads: a journal, a published log of one, or its events in another order."""

    @property
    def journal_id(self) -> int:
        """Which journal of its store it is."""
        ...

    @property
    def name(self) -> str:
        """The journal's name."""
        ...

    def read_chunks(
        self, start: int = 0, stop: int | None = None, *, chunk_size: int = CHUNK_SIZE
    ) -> AsyncIterator[list[RecordedEvent]]:
        """Yield the events from the start-th on, up to the one before the stop-th."""
        ...


class LensReadable(Readable, Protocol):
    """What can also be read through a lens."""

    async def read_lens(self, lens: Lens, start: int, stop: int) -> list[RecordedEvent]:
        """Return what a lens sees of the events with start <= offset < stop."""
        ...


async def from_the_start(journal: Readable, group: Group, _size: int) -> tuple[State, int]:
    """Return the state before the first event."""
    return group.state(journal.journal_id, journal.name), 0


async def fold_prefix(
    journal: Readable,
    group: Group,
    size: int,
    advanced: Callable[[int], None] = lambda _: None,
    begin: Begin = from_the_start,
    rulings: Rulings = NO_RULINGS,
) -> State:
    """Return read_model(size): the state of `group` after the first `size` events.

    What raises is parked, as in the live tables: see the state's `parking`. `rulings` say what has
    been skipped or counts as poisoned. `advanced` is told how many events were folded, chunk by
    chunk (a negative number, where the fold begins again); `begin` may spare some of them.
    """
    refold = Refold(journal, group, rulings, advanced=advanced, begin=begin)
    return await refold.advance(size)


class _Spoilt(Exception):
    """A handler has raised in the plain fold: nobody knows what it did to the state."""


async def fold_through_lens(
    journal: LensReadable,
    group: Group,
    size: int,
    advanced: Callable[[int], None] = lambda _: None,
    begin: Begin | None = None,
) -> State | None:
    """Return the same as `fold_prefix` without rulings, in half the time, with ids as text.

    `begin` returns a state with such ids too. None where a handler raises: nobody knows then what
    it did, and only the other fold can say what is parked.
    """
    state, start = group.state(journal.journal_id, journal.name, str), 0
    if begin is not None:
        state, start = await begin(journal, group, size)
        advanced(start)
    async for events, count in _through_lens(journal, group, start, size):
        try:
            group.fold(state, events)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever a fold raises is poison
            advanced(-start)
            return None
        advanced(count)
        start += count
    return state


async def _through_lens(
    journal: LensReadable, group: Group, start: int, stop: int
) -> AsyncIterator[tuple[list[RecordedEvent], int]]:
    """Yield what the folds need, and of how many events; the next chunk is on its way."""
    envelope = any(each.reads_envelope for each in group.projections)
    lens = Lens(group.event_types, envelope=envelope)
    starts = range(start, stop, LENS_CHUNK_SIZE)
    pieces = [(each, min(stop, each + LENS_CHUNK_SIZE)) for each in starts]
    coming = deque[asyncio.Task[list[RecordedEvent]]]()
    asked = iter(pieces)
    try:
        for first, end in pieces:
            for piece in islice(asked, CHUNKS_AHEAD - len(coming)):
                coming.append(asyncio.create_task(journal.read_lens(lens, *piece)))
            yield await coming.popleft(), end - first
    finally:
        for task in coming:
            task.cancel()


class Refold:
    """A fold of a journal in memory, which goes on where it stands.

    It is plain as long as nothing is parked and no event is ruled about; where a handler raises, it
    begins again, and is guarded from there on. With a `trace` it is guarded all the time, and keeps
    only such rows of append-only tables as the trace has noted. A `watch` sees the state after each
    event.
    """

    def __init__(
        self,
        journal: Readable,
        group: Group,
        rulings: Rulings = NO_RULINGS,
        *,
        advanced: Callable[[int], None] = lambda _: None,
        begin: Begin = from_the_start,
        trace: Trace | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.size = 0
        self.rulings = rulings
        self._journal = journal
        self._group = group
        self._advanced = advanced
        self._begin = begin
        self._trace = trace
        self._watch = watch
        self._state: State | None = None
        self._guarded_from: int | None = None if trace is None else 0

    async def advance(self, size: int) -> State:
        """Fold up to `size`, and return the state."""
        try:
            return await self._advance(size)
        except _Spoilt:
            self._guarded_from = self.size
            self._advanced(-self.size)
            self._state = None
            return await self._advance(size)

    async def _advance(self, size: int) -> State:
        state = self._state or await self._first(size)
        async for events in self._journal.read_chunks(self.size, size, chunk_size=CHUNK_SIZE):
            for piece in [events] if self._watch is None else [[each] for each in events]:
                self._fold(state, piece)
                self.size += len(piece)
                if self._watch is not None:
                    self._watch(state, piece[0])
            self._advanced(len(events))
        return state

    async def _first(self, size: int) -> State:
        state, start = await self._begin(self._journal, self._group, size)
        if any(offset < start for _, offset in self.rulings.poisoned):
            state, start = await from_the_start(self._journal, self._group, size)
        self._state, self.size = state, start
        self._advanced(start)
        return state

    def _fold(self, state: State, events: Sequence[RecordedEvent]) -> None:
        is_forced = self._guarded_from is not None and self._guarded_from < self.size + len(events)
        if is_forced or state.parking or self._concerned(events):
            fold_guarded(self._group, state, events, self.rulings, self._trace)
            self._forget(state)
            return
        try:
            self._group.fold(state, events)
        except Exception as error:
            raise _Spoilt from error

    def _concerned(self, events: Sequence[RecordedEvent]) -> bool:
        """Whether one of the events may be ruled about; they need not be in recorded order."""
        if not self.rulings:
            return False
        offsets = [each.offset for each in events]
        return self.rulings.concern(min(offsets), max(offsets) + 1)

    def _forget(self, state: State) -> None:
        """Drop rows that nobody will look up or write."""
        for name, rows in state.tables.items():
            if self._trace is not None and rows.projection.append_only:
                rows.keep_only(self._trace.touched.get(name, {}))
