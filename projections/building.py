"""Folding a journal into tables that nobody reads yet: what the processes of a rebuild do.

The fold is the one that all others use; what is different is how its events come and where its rows
go. Events come through a lens. Rows that rest (an order that is filled) leave early for the new
table, so that the database works meanwhile; if one is needed again, it is taken back out.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from time import monotonic
from typing import Any

import msgspec
import sqlalchemy as sa

from ledger.event import RecordedEvent
from ledger.journal import Journal, open_journal
from ledger.lens import Lens
from ledger.settings import Settings
from projections import parking, snapshots
from projections.bookkeeping import side_checkpoints
from projections.database import Database
from projections.fold import Group
from projections.groups import GROUPS
from projections.guarding import fold_guarded
from projections.lanes import Parking, Rulings
from projections.loading import Loader, open_loaders
from projections.projection import Rows
from projections.slicing import NO_CLAIMS, Claims, Entangled, Slice, Slicer

ROWS_MAX = 1_000_000
CHUNK_SIZE = 10_000
CHUNKS_AHEAD = 2
PIECE_SIZE = 500
"""So many events are folded before reading and writing get a turn: a few milliseconds."""
RESTING_ROWS = 20_000
"""As soon as about so many rows of a table rest they are written."""
PROGRESS_SECONDS = 0.5


class Part(msgspec.Struct, frozen=True):
    """A piece of a rebuild: which tables of a group are filled from a journal, and where.

    `targets` are the names of the new tables by those of the live ones; they exist, without indexes
    and empty of the journal's rows. `name` is where the part keeps account of how far it is (the
    row of `side_checkpoints` with this name and the journal's id, which exists). `rows_max` bounds
    the rows in memory, but for those that can be found otherwise than by their key: open positions.
    Of the append-only tables in `types` only those rows are made that events of these types make;
    other parts make the others, in the same table. Lanes of the new tables that a poisoned event
    parks are noted under the part's name. With a `slice` the rows are made that the events of some
    of the users make; other parts make the others, in the same tables.
    """

    name: str
    journal: str
    journal_id: int
    group: str
    targets: dict[str, str]
    size: int
    rows_max: int = ROWS_MAX
    types: Mapping[str, Sequence[str]] = {}
    slice: Slice | None = None


class Built(msgspec.Struct, frozen=True):
    """What was folded, and how many rows each live table's new one has got of the journal.

    A slice says which events it `claims`, and whether it `is_entangled`: then slices do not go,
    and its rows are of no use.
    """

    events: int
    rows: dict[str, int]
    claims: Claims = NO_CLAIMS
    is_entangled: bool = False


def build(settings: Settings, part: Part) -> Built:
    """Fold the first `part.size` events of the journal into the new tables; called in a process.

    The tables are written in transactions of their own and are of no use until this returns.
    """
    gc.freeze()
    gc.disable()  # nothing here makes cycles, and looking for them among the rows takes long
    try:
        return asyncio.run(_build(settings, part))
    finally:
        gc.enable()


async def _build(settings: Settings, part: Part) -> Built:
    group = GROUPS[part.group].only(part.targets, part.types)
    async with AsyncExitStack() as stack:
        journal = await stack.enter_async_context(open_journal(settings, part.journal))
        database = await stack.enter_async_context(Database(settings))
        loaders = await open_loaders(stack, journal, database, group.projections, part.targets)
        async with database.snapshot() as connection:
            rulings = await parking.rulings(connection, journal.journal_id, group, poisoned=False)
        building = _Building(journal, database, part, group, loaders, rulings)
        try:
            return await building.run()
        except Entangled:
            return Built(0, {}, is_entangled=True)
        except _Spoilt as spoilt:
            return await building.run_again(spoilt.size)


class _Spoilt(Exception):
    """A handler has raised after the first `size` events: nobody knows what it did to the rows."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class _Building:
    """One part under way."""

    def __init__(
        self,
        journal: Journal,
        database: Database,
        part: Part,
        group: Group,
        loaders: dict[str, Loader],
        rulings: Rulings,
    ) -> None:
        self._journal = journal
        self._database = database
        self._part = part
        self._group = group
        self._loaders = loaders
        self._rulings = rulings
        self._guarded_from: int | None = None
        self._state = group.state(journal.journal_id, journal.name, str)
        self._away: dict[str, set[Hashable]] = {each.name: set() for each in group.projections}
        self._written = dict.fromkeys(part.targets, 0)
        self._appended_sizes: dict[str, int] = {}
        self._noted_at = 0.0
        self._slicer: Slicer | None = None

    async def run_again(self, size: int) -> Built:
        """Begin anew, and fold by the guarded fold after the first `size` events.

        Rows that are only appended were right as far as they were written, and stay.
        """
        for table, loader in self._loaders.items():
            if not self._state.tables[table].projection.append_only:
                await loader.clear()
                self._away[table].clear()
                self._written.update({table: 0} if table in self._written else {})
        self._state = self._group.state(self._journal.journal_id, self._journal.name, str)
        self._guarded_from = size
        return await self.run()

    async def _note_parked(self) -> None:
        lanes = self._state.parking.lanes
        own = Parking({lane: each for lane, each in lanes.items() if lane.table in self._written})
        own.changed = dict.fromkeys(own.lanes)
        async with self._journal.store.write_turn(), self._database.transaction() as connection:
            await parking.save(connection, self._journal.journal_id, self._part.name, own)

    async def run(self) -> Built:
        """Fold all events, by the plain fold if possible.

        Raises _Spoilt where that raises, and Entangled where a slice cannot be folded by itself.
        """
        folded = await self._begin()
        if not self._cut(folded):
            await self._note_progress(self._part.size, at_once=True)
            return Built(0, dict.fromkeys(self._written, 0))
        async for events, stop in self._chunks(folded):
            await self._take_back(events)
            for start in range(0, len(events), PIECE_SIZE):
                self._fold(events[start : start + PIECE_SIZE])
                await asyncio.sleep(0)
            folded += len(events)
            await self._let_go()
            await self._note_progress(stop)
        await self._write_the_rest()
        await self._note_parked()
        await self._note_progress(self._part.size, at_once=True)
        if self._slicer is None:
            return Built(folded, self._written)
        return Built(folded, self._written, self._slicer.claims)

    def _cut(self, folded: int) -> bool:
        """Take only the events of the part's slice; return whether there is anything to do.

        A state that comes from a snapshot is not cut: the first slice goes on with all of it. What
        is parked or left out is a matter of single events, so that is done in one piece as well.
        """
        part = self._part.slice
        if part is None or folded:
            return part is None or part.is_first
        if self._rulings:
            raise Entangled
        self._slicer = Slicer(part, self._part.size, self._group, self._state, self._away)
        return True

    async def _begin(self) -> int:
        """Take the state from a snapshot of the same fold, if there is one; return its size."""
        found = await snapshots.load(
            self._database,
            self._journal,
            self._group,
            self._part.size,
            rows_max=self._part.rows_max,
            as_id=str,
        )
        if found is None:
            return 0
        self._state, size = found
        return size

    def _fold(self, events: Sequence[RecordedEvent]) -> None:
        first, last = events[0].offset, events[-1].offset
        is_forced = self._guarded_from is not None and self._guarded_from <= last
        if is_forced or self._state.parking or self._rulings.concern(first, last + 1):
            fold_guarded(self._group, self._state, events, self._rulings)
            return
        slicer = self._slicer
        try:
            self._group.fold(self._state, events if slicer is None else slicer.pick(events))
        except (MemoryError, Entangled):
            raise
        except Exception as error:
            if slicer is not None:
                raise Entangled from error
            raise _Spoilt(first) from error

    async def _chunks(self, begin: int) -> AsyncIterator[tuple[list[RecordedEvent], int]]:
        """Yield what the folds need and the size that it goes up to; the next is on its way."""
        envelope = any(each.reads_envelope for each in self._group.projections)
        lens = Lens(self._group.event_types, envelope=envelope)
        size = self._part.size
        starts = range(begin, size, CHUNK_SIZE)
        stops = [min(size, start + CHUNK_SIZE) for start in starts]
        coming = deque[asyncio.Task[list[RecordedEvent]]]()
        pieces = iter(zip(starts, stops, strict=True))
        try:
            for stop in stops:
                for start, end in islice(pieces, CHUNKS_AHEAD - len(coming)):
                    reading = self._journal.read_lens(lens, start, end)
                    coming.append(asyncio.create_task(reading))
                yield await coming.popleft(), stop
        finally:
            for task in coming:
                task.cancel()

    async def _take_back(self, events: Sequence[RecordedEvent]) -> None:
        """Bring back the rows that the folds of `events` may look at."""
        for table, away in self._away.items():
            rows = self._state.tables[table]
            wanted = _keys(rows, events, away) if away else away
            if wanted:
                away.difference_update(wanted)
                for row in await self._loaders[table].take(wanted):
                    rows.put(row)
                if table in self._written:
                    self._written[table] -= len(wanted)

    async def _let_go(self) -> None:
        """Write rows that rest; where too many are in memory, whatever may leave."""
        tables = self._state.tables.values()
        for rows in tables:
            name = rows.projection.name
            if rows.projection.append_only and name not in self._written:
                rows.forget(list(rows))
            elif name in self._written and len(rows.changed) >= RESTING_ROWS:
                await self._write(rows, rows.resting())
        if sum(map(len, tables)) > self._part.rows_max:
            for rows in tables:
                await self._write(rows, rows.resting())
        if sum(map(len, tables)) > self._part.rows_max:
            for rows in tables:
                await self._write(rows, rows.oldest(len(rows) // 2))

    async def _write(self, rows: Rows[Any], leaving: Sequence[Any]) -> None:
        """Write rows and forget them, but not that they are away."""
        rows.changed.clear()
        projection = rows.projection
        if not leaving:
            return
        rows.forget(leaving)
        if projection.append_only:
            stored_size = self._appended_sizes.get(projection.name, 0)
            self._appended_sizes[projection.name] = leaving[-1].changed_size
            leaving = [row for row in leaving if row.changed_size > stored_size]
        else:
            key = projection.key
            self._away[projection.name].update(getattr(row, key) for row in leaving)
        if projection.name in self._written:
            self._written[projection.name] += len(leaving)
        await self._loaders[projection.name].put(leaving)

    async def _write_the_rest(self) -> None:
        for table in self._part.targets:
            rows = self._state.tables[table]
            await self._write(rows, list(rows))
        for table in self._part.targets:
            await self._loaders[table].finish()

    async def _note_progress(self, size: int, *, at_once: bool = False) -> None:
        if not at_once and monotonic() < self._noted_at + PROGRESS_SECONDS:
            return
        self._noted_at = monotonic()
        own = side_checkpoints.c
        update = sa.update(side_checkpoints).where(
            own.name == self._part.name, own.journal_id == self._part.journal_id
        )
        async with self._journal.store.write_turn(), self._database.transaction() as connection:
            noted = await connection.execute(update.values(size=size))
        if self._slicer is not None and noted.rowcount == 0:
            raise Entangled  # another slice was, so that nobody keeps account of this one any more


def _keys(rows: Rows[Any], events: Sequence[RecordedEvent], away: set[Hashable]) -> set[Hashable]:
    """Return the keys in `away` of rows that the folds of `events` may look up."""
    projection, folded = rows.projection, [each.event for each in events]
    wanted = {key for event in folded if (key := projection.wanted(event)) in away}
    for alias in projection.aliases:
        if alias.column == projection.key:
            named = (str(name) for event in folded for name in alias.wanted(event))
            wanted.update(away.intersection(named))
    return wanted
