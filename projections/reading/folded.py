"""Tables as they stood at points of the past, folded and kept for a while.

What is kept is bound to what it was made from, as a snapshot is: the fold, what it leaves out, the
last event, and how many people were erased. So nothing that was erased is shown from memory.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import msgspec

from ledger.journal import Journal
from projections.database import Database
from projections.diffing import RowChange, diff
from projections.fold import Group
from projections.folding import Folding, decided, parts_of
from projections.model import ReadModel
from projections.people import sees_people
from projections.points import Point
from projections.projection import Projection
from projections.reading.apart import Shared
from projections.snapshots import Beginning, binding_of

T = TypeVar("T", bound=Sequence[Any])
Made = TypeVar("Made")

KEPT_MAX = 8
ROWS_MAX = 200_000
"""So many rows are kept in all, some 3 KB each."""


class Answer(msgspec.Struct, Generic[T], frozen=True):
    """Rows, with what is to be said about how they were found."""

    rows: T
    snapshots: dict[str, int]
    notes: list[str]

    def at(self, point: Point) -> Point:
        """Return a point with that."""
        notes = [*point.notes, *self.notes]
        return msgspec.structs.replace(point, snapshots=self.snapshots, notes=notes)


class Folded:
    """Folds what is asked for, one at a time, and keeps the last few answers."""

    def __init__(self, *, kept_max: int = KEPT_MAX, rows_max: int = ROWS_MAX) -> None:
        self.folds = 0
        """How many folds were begun."""
        self._kept: OrderedDict[object, Answer[Any]] = OrderedDict()
        self._kept_max = kept_max
        self._rows_max = rows_max
        self._shared = Shared()
        self._turn = asyncio.Lock()
        self._turn_of_rows = asyncio.Lock()

    async def table(
        self, journal: Journal, database: Database, projection: Projection[Any], size: int
    ) -> Answer[Sequence[ReadModel]]:
        """Return all rows of a table after the first `size` events; their ids may be text."""

        async def fold() -> Answer[Sequence[ReadModel]]:
            folding = Folding(journal, database, Point(size))
            point, found = await folding.tables([projection])
            return Answer(found[projection.name][1], point.snapshots, point.notes)

        [part] = parts_of([projection])
        bound = _Bound(journal, database, part, size)
        return await self._get((projection.name, size), bound, fold)

    async def one_row(
        self,
        journal: Journal,
        database: Database,
        part: Group,
        asked: tuple[str, Any, int, Any],
        make: Callable[[], Awaitable[Made]],
    ) -> Made:
        """Return what is made of one row's events: one at a time, shared, and not kept.

        `asked` says which table, key, size, and what else. Most take milliseconds, and need not
        wait for whole tables.
        """
        bound = _Bound(journal, database, part, asked[2])

        async def in_turn() -> Made:
            async with self._turn_of_rows:
                return await make()

        return await self._shared.get((asked, await bound.text()), in_turn)

    async def changes(
        self,
        journal: Journal,
        database: Database,
        projections: Sequence[Projection[Any]],
        sizes: tuple[int, int],
    ) -> Answer[Sequence[RowChange]]:
        """Return which rows of these tables came, changed or went from one size to another."""
        found = [
            await self._changes_of(journal, database, part, projections, sizes)
            for part in parts_of(projections)
        ]
        return Answer(
            [change for each in found for change in each.rows],
            {name: size for each in found for name, size in each.snapshots.items()},
            [note for each in found for note in each.notes],
        )

    async def _changes_of(
        self,
        journal: Journal,
        database: Database,
        part: Group,
        projections: Sequence[Projection[Any]],
        sizes: tuple[int, int],
    ) -> Answer[Sequence[RowChange]]:
        wanted = {each.name for each in projections}

        async def fold() -> Answer[Sequence[RowChange]]:
            begin = Beginning(database)
            rulings, skips = await decided(database, journal, part, max(sizes))
            found = await diff(journal, part, *sizes, rulings=rulings, begin=begin)
            changes = [each for each in found if each.table in wanted]
            return Answer(changes, begin.sizes, [str(each) for each in skips])

        tables = tuple(each.name for each in part.projections if each.name in wanted)
        bound = _Bound(journal, database, part, max(sizes))
        return await self._get((tables, sizes), bound, fold)

    async def _get(
        self, key: object, bound: _Bound, fold: Callable[[], Awaitable[Answer[T]]]
    ) -> Answer[T]:
        named = (key, await bound.text())
        kept = self._kept.get(named)
        if kept is not None:
            self._kept.move_to_end(named)
            return kept

        async def make() -> Answer[T]:
            async with self._turn:
                self.folds += 1
                answer = await fold()
                if await bound.text() == named[1] and await bound.is_settled():
                    self._keep(named, answer)
                return answer

        return await self._shared.get(named, make)

    def _keep(self, named: object, answer: Answer[Any]) -> None:
        """Keep an answer, unless it alone is too large: no others go for it then."""
        if len(answer.rows) > self._rows_max:
            return
        self._kept[named] = answer
        while len(self._kept) > self._kept_max or self._rows > self._rows_max:
            self._kept.popitem(last=False)

    @property
    def _rows(self) -> int:
        return sum(len(each.rows) for each in self._kept.values())


class _Bound(msgspec.Struct, frozen=True):
    """What an answer is good for."""

    journal: Journal
    database: Database
    part: Group
    size: int

    async def text(self) -> str:
        """Return it; the same text stands for the same answer."""
        async with self.database.snapshot() as connection:
            return str(await binding_of(connection, self.journal, self.part, self.size))

    async def is_settled(self) -> bool:
        """Whether no data key that is destroyed can still be in this process's memory."""
        if not sees_people(self.part):
            return True
        kept = timedelta(seconds=self.database.settings.key_cache_seconds)
        destroyed = await self.journal.privacy.destroyed()
        return all(each.destroyed_at + kept < datetime.now(UTC) for each in destroyed)
