"""Tables and rows at any point of a journal, folded by the same code for whoever asks."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from ledger.journal import Journal
from projections import parking, snapshots
from projections.database import Database
from projections.effective import EffectiveOrder
from projections.fold import Group
from projections.groups import TABLES
from projections.history import folded_note
from projections.keyed import NotFromStreams, fold_events, gather, row_of
from projections.lanes import Rulings
from projections.model import ReadModel
from projections.parking import SkippedEvent
from projections.points import Point, Sized
from projections.projection import Projection, State, itself
from projections.replaying import (
    LensReadable,
    Readable,
    fold_prefix,
    fold_through_lens,
    from_the_start,
)
from projections.snapshot_format import AsId
from projections.verification import SHOWN_MAX

Advanced = Callable[[int], None]
Found = dict[str, tuple[Projection[Any], Sequence[ReadModel]]]


class Source(LensReadable, Sized, Protocol):
    """Where tables are folded from: a journal of the database, or a published log of one."""


def nobody(_events: int) -> None:
    """Hear how many events were folded, and tell nobody."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let a program fold without a break for collecting garbage.

    Rows make no cycles, and looking for them takes long.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def parts_of(projections: Sequence[Projection[Any]]) -> list[Group]:
    """Return the smallest parts of groups whose folds give these tables."""
    names = [each.name for each in projections]
    groups = {TABLES[name].name: TABLES[name] for name in names}
    return [
        group.only([name for name in names if TABLES[name] is group]) for group in groups.values()
    ]


async def decided(
    database: Database | None, journal: Readable, group: Group, size: int
) -> tuple[Rulings, list[SkippedEvent]]:
    """Return what was decided about single events, and which of the first `size` are skipped."""
    if database is None:  # a published log knows nothing of tables
        return Rulings(), []
    async with database.snapshot() as connection:
        rulings = await parking.rulings(connection, journal.journal_id, group)
        return rulings, await parking.skipped(connection, journal.journal_id, group, size)


def waiting(state: State) -> Iterator[str]:
    """Say what is parked in a state, the first of it in words."""
    lanes = state.parking.lanes
    for lane, parked in list(lanes.items())[:SHOWN_MAX]:
        yield f"{lane} {parked}"
    if len(lanes) > SHOWN_MAX:
        yield f"and {len(lanes) - SHOWN_MAX:,} more parked keys"


class Folding:
    """An answer under way: tables at a point of a journal, or of a published log without tables.

    `advanced` is told how many events were folded, chunk by chunk.
    """

    advanced: Advanced

    def __init__(
        self,
        journal: Source,
        database: Database | None,
        point: Point,
        *,
        from_start: bool = False,
    ) -> None:
        self._journal = journal
        self._database = database
        self._point = point
        self._from_start = from_start
        self.advanced = nobody
        self._begun: dict[str, int] = {}
        self._notes = list(point.notes)

    def events_to_fold(self, projections: Sequence[Projection[Any]]) -> int:
        """Return how many events are read for these tables, if no snapshot spares any."""
        passes = len(parts_of(projections)) + (self._point.effective_at is not None)
        return self._point.size * passes

    async def row(self, projection: Projection[Any], key: Any) -> tuple[Point, Found]:
        """Return the row with this key, from its own streams if possible."""
        try:
            rows = await self.own_row(projection, key)
        except NotFromStreams as reason:
            self._notes.append(folded_note(reason))
            _, found = await self.tables([projection])
            everything = found[projection.name][1]
            rows = [row for row in everything if str(getattr(row, projection.key)) == str(key)]
        return self._answered(), {projection.name: (projection, rows)}

    async def own_row(
        self, projection: Projection[Any], key: Any, most: int | None = None
    ) -> list[ReadModel]:
        """Return the row from its own streams, with at most so many events each.

        Raises NotFromStreams.
        """
        if not isinstance(self._journal, Journal):
            raise NotFromStreams("a published log has no index of streams")
        if self._point.effective_at is not None:
            raise NotFromStreams("of effective times all streams have to be known")
        table, size = projection.name, self._point.size
        events = await gather(self._journal, self._database, table, key, size, most=most)
        state = fold_events(TABLES[table].only([table]), self._journal, events)
        row = row_of(state, table, key)
        return [] if row is None else [row]

    async def tables(self, projections: Sequence[Projection[Any]]) -> tuple[Point, Found]:
        """Return all rows of these tables."""
        found: Found = {}
        order = await self._order()
        for part in parts_of(projections):
            state = await self._fold(part, order)
            self._notes += waiting(state)
            for each in part.projections:
                if each in projections:
                    found[each.name] = each, list(part.finished(state, each.name))
        return self._answered(), {each.name: found[each.name] for each in projections}

    def _answered(self) -> Point:
        return msgspec.structs.replace(self._point, snapshots=self._begun, notes=self._notes)

    async def _order(self) -> EffectiveOrder | None:
        """Return the order of events by effective times, if one was asked for."""
        moment = self._point.effective_at
        if moment is None:
            return None
        size = self._point.size
        order = await EffectiveOrder.of(self._journal, moment, size, self.advanced)
        self._point = msgspec.structs.replace(self._point, events=order.count)
        return order

    async def _fold(self, part: Group, order: EffectiveOrder | None) -> State:
        """Fold the events, the fast way where nothing is left out or waits."""
        size, journal, advanced = self._point.size, self._journal, self.advanced
        rulings, skips = await decided(self._database, journal, part, size)
        self._notes += map(str, skips)
        if order is not None:
            return await fold_prefix(order, part, order.count, advanced, rulings=rulings)
        if not rulings:
            begin = None if self._from_start else self._beginning(str)
            state = await fold_through_lens(journal, part, size, advanced, begin)
            if state is not None:
                return state
        how = from_the_start if self._from_start else self._beginning(itself)
        return await fold_prefix(journal, part, size, advanced, how, rulings)

    def _beginning(self, as_id: AsId) -> Any:
        """Return how a fold begins: at the latest usable snapshot, else before the first event."""

        async def begin(journal: Source, part: Group, size: int) -> tuple[State, int]:
            database, found = self._database, None
            if database is not None and isinstance(journal, Journal):
                found = await snapshots.load(database, journal, part, size, as_id=as_id)
            if found is None:
                self._begun.pop(part.name, None)
                return part.state(journal.journal_id, journal.name, as_id), 0
            self._begun[part.name] = found[1]
            return found

        return begin
