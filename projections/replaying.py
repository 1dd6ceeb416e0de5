"""Folding a journal afresh, in memory: the state of all tables as of any size."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from ledger.event import RecordedEvent
from ledger.journal import Journal
from projections.fold import Group
from projections.guarding import Trace, fold_guarded
from projections.lanes import NO_RULINGS, Rulings
from projections.projection import State

CHUNK_SIZE = 5000

Begin = Callable[[Journal, Group, int], Awaitable[tuple[State, int]]]
"""Returns a fresh state after some of the first events, at most so many, and how many they are."""


async def from_the_start(journal: Journal, group: Group, _size: int) -> tuple[State, int]:
    """Return the state before the first event."""
    return group.state(journal.journal_id, journal.name), 0


async def fold_prefix(
    journal: Journal,
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


class Refold:
    """A fold of a journal in memory, which goes on where it stands.

    It is plain as long as nothing is parked and no event is ruled about; where a handler raises, it
    begins again, and is guarded from there on. With a `trace` it is guarded all the time, and keeps
    only such rows of append-only tables as the trace has noted.
    """

    def __init__(
        self,
        journal: Journal,
        group: Group,
        rulings: Rulings = NO_RULINGS,
        *,
        advanced: Callable[[int], None] = lambda _: None,
        begin: Begin = from_the_start,
        trace: Trace | None = None,
    ) -> None:
        self.size = 0
        self.rulings = rulings
        self._journal = journal
        self._group = group
        self._advanced = advanced
        self._begin = begin
        self._trace = trace
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
            self._fold(state, events)
            self.size += len(events)
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
        start, stop = events[0].offset, events[-1].offset + 1
        is_forced = self._guarded_from is not None and self._guarded_from < stop
        if is_forced or state.parking or self.rulings.concern(start, stop):
            fold_guarded(self._group, state, events, self.rulings, self._trace)
            self._forget(state)
            return
        try:
            self._group.fold(state, events)
        except Exception as error:
            raise _Spoilt from error

    def _forget(self, state: State) -> None:
        """Drop rows that nobody will look up or write."""
        for name, rows in state.tables.items():
            if self._trace is not None and rows.projection.append_only:
                rows.keep_only(self._trace.touched.get(name, {}))
