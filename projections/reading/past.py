"""What only a fold can tell: rows as they were, what became of them, and what led to it.

All of it runs apart from whoever answers callers; see `projections.reading.apart`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa

from ledger.journal import Journal
from projections.database import Database
from projections.diffing import RowChange
from projections.folding import Folding, decided
from projections.groups import TABLES
from projections.history import Change, History, Window, change_of, folded_note, history_of
from projections.keyed import NotFromStreams, key_of
from projections.marks import marks
from projections.model import ReadModel, values_of
from projections.points import Point
from projections.projection import Projection
from projections.reading.attributes import POSITIONS, Shown, shown_values
from projections.reading.filtering import is_visible
from projections.reading.folded import Folded
from projections.reading.paging import Selection
from projections.reading.stored import NotStored, Rows, fitting

Points = tuple[Point, Point]

STREAM_MAX = 200_000
"""So many events of one stream are held in memory for a row, some 1 KB each."""


class Past(msgspec.Struct, frozen=True):
    """A journal's past, with the tables that were folded lately."""

    journal: Journal
    database: Database
    folded: Folded

    async def page(self, selection: Selection, point: Point) -> Rows:
        """Return a page of a table at a point, and one row more."""
        projection = selection.projection
        answer = await self.folded.table(self.journal, self.database, projection, point.size)
        rows = selection.pick(answer.rows)
        prices = await self._all_prices(point.size) if projection.name == POSITIONS else {}
        return Rows(answer.at(point), rows, Shown(projection, prices, is_past=True))

    async def _all_prices(self, size: int) -> dict[str, Decimal]:
        answer = await self.folded.table(self.journal, self.database, marks, size)
        return {row.token: row.exact_price for row in _of_any(answer.rows)}

    async def row(self, selection: Selection, key: str, point: Point) -> Rows:
        """Return the one row of a table that has a key, from its own streams if possible."""
        projection = selection.projection
        folding = Folding(self.journal, self.database, point)
        try:
            rows = await folding.own_row(projection, key_of(projection.name, key), STREAM_MAX)
        except NotFromStreams as reason:
            point = msgspec.structs.replace(point, notes=[*point.notes, folded_note(reason)])
            return await self.page(selection, point)
        prices = await self._prices_of(rows, point) if projection.name == POSITIONS else {}
        return Rows(point, rows, Shown(projection, prices, is_past=True))

    async def _prices_of(self, rows: Sequence[ReadModel], point: Point) -> dict[str, Decimal]:
        tokens = [each.token for each in _of_any(rows) if each.token is not None]
        folding = Folding(self.journal, self.database, point)
        try:
            found = [
                row for each in tokens for row in await folding.own_row(marks, each, STREAM_MAX)
            ]
        except NotFromStreams:
            return await self._all_prices(point.size)
        return {row.token: row.exact_price for row in _of_any(found)}

    async def history(
        self, projection: Projection[Any], key: str, size: int, window: Window
    ) -> History:
        """Return states of a row in the first `size` events, as they are shown."""
        row_key = key_of(projection.name, key)

        async def make() -> History:
            found = await self._history(projection, row_key, size, window)
            return History([_shown_state(each) for each in found.changes], found.note)

        asked = (projection.name, row_key, size, window)
        part = TABLES[projection.name].only([projection.name])
        return await self.folded.one_row(self.journal, self.database, part, asked, make)

    async def _history(
        self, projection: Projection[Any], key: Any, size: int, window: Window
    ) -> History:
        if projection.append_only:
            with suppress(NotStored):
                added = await self._added(projection, key, Point(size))
                return History([each for each in added.changes if each.offset > window.after])
        table, group = projection.name, TABLES[projection.name].only([projection.name])
        rulings, _ = await decided(self.database, self.journal, group, size)
        return await history_of(
            self.journal,
            self.database,
            table,
            key,
            size,
            rulings=rulings,
            window=window,
            most=STREAM_MAX,
        )

    async def changes(
        self, projections: Sequence[Projection[Any]], points: Points
    ) -> tuple[Points, Sequence[RowChange]]:
        """Return all rows that came, changed or went between two points, and what to say of it."""
        sizes = points[0].size, points[1].size
        found = await self.folded.changes(self.journal, self.database, projections, sizes)
        before = msgspec.structs.replace(points[0], snapshots=found.snapshots)
        return (before, msgspec.structs.replace(points[1], notes=found.notes)), found.rows

    async def _added(self, projection: Projection[Any], key: Any, point: Point) -> History:
        """Return the one state of a row that never changes; raises NotStored."""
        column, journal_id = projection.table.c, self.journal.journal_id
        async with self.database.snapshot() as connection:
            fit = await fitting(connection, self.journal, projection, point)
            query = sa.select(*projection.table.columns).where(
                column.journal_id == journal_id, column[projection.key] == key, *fit.clauses
            )
            record = (await connection.execute(query)).first()
        if record is None:
            return History([])
        row = projection.row(*record)
        offset = row.changed_size - 1
        [event] = [each async for each in self.journal.read(offset, offset + 1)]
        return History([change_of(event, {}, values_of(row))])


def _shown_state(change: Change) -> Change:
    return msgspec.structs.replace(
        change,
        changed=[name for name in change.changed if is_visible(name)],
        columns=shown_values(change.columns),
    )


def shown_change(change: RowChange) -> RowChange:
    """Return a change with the values that JSON shows, without columns that are hidden."""
    before, after = (
        None if each is None else shown_values(each) for each in (change.before, change.after)
    )
    return RowChange(str(change.table), change.key, before, after)


def _of_any(rows: Sequence[ReadModel]) -> Sequence[Any]:
    """Return rows of a model that the type checker does not know."""
    return rows
