"""Reading the tables, live or as of any point: what the HTTP service and the console answer from.

What is live, or can be told by the live tables, is read from them, at one size. All else is folded
in a thread apart (see `projections.reading.apart`), so that nobody who reads live waits for it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec

from ledger.errors import LedgerError
from ledger.journal import Journal
from ledger.settings import Settings
from projections.database import Database
from projections.diffing import RowChange
from projections.groups import GROUPS, TABLES
from projections.history import ALL_STATES, History, Window
from projections.keyed import projection_of
from projections.marks import marks
from projections.model import ReadModel
from projections.points import InvalidRequest, Point, Request, point_of
from projections.projection import Projection
from projections.reading.apart import Apart, ExportTooLong, ReplayTooLong
from projections.reading.attributes import POSITIONS, Shown
from projections.reading.catching_up import CatchingUp
from projections.reading.differing import Span, spool_difference
from projections.reading.filtering import SIZE, parsed_moment, visible_columns
from projections.reading.folded import Folded
from projections.reading.paging import Filter, Page, Query, Selection
from projections.reading.past import Past, Points
from projections.reading.spooling import Asked, Export, Form, spool
from projections.reading.stored import NotStored, read_page

T = TypeVar("T")

TIME_SHARE = 0.9
"""So much of the time for a request may be spent on folding."""

CHANGES_MAX = 10_000
EXPORTS_MAX = 2
ROWS_IN_ONE_GO = 200


class PointUnknown(InvalidRequest):
    """The journal has not come to the size that was asked for."""


class NotCaughtUp(LedgerError):
    """The tables have not come to the size that was asked for, within the time there was."""

    exit_code = 3

    def __init__(self, size: int) -> None:
        super().__init__(
            f"the tables have not come to size {size} yet; ask again, or see whether a projector "
            "runs (`projections status`)"
        )
        self.size = size


class Reading:
    """The read side of one journal; close it after use."""

    def __init__(self, settings: Settings, journal: Journal, database: Database) -> None:
        """Take journal and database for what is live; the thread apart has its own."""
        self.journal = journal
        self._settings = settings
        self._database = database
        self._apart = Apart(settings, journal.name)
        self._folded = Folded()
        self._catching_up = CatchingUp(journal, database)
        self.exporting = asyncio.Semaphore(EXPORTS_MAX)
        """The turns of those who write files, in the thread apart."""

    async def close(self) -> None:
        """Give up what is under way."""
        await self._catching_up.close()
        await self._apart.close()

    async def point(self, at: str | None) -> Point:
        """Return the point that a size or an RFC 3339 time names, the journal's end without one.

        Raises InvalidRequest.
        """
        if at is None:
            return await point_of(self.journal, Request())
        if re.fullmatch(SIZE, at) is None:
            return await point_of(self.journal, Request(recorded=parsed_moment("at", at)))
        end = await self.journal.size()
        if int(at) > end:
            raise PointUnknown(f"at: journal {self.journal.name!r} holds only {end} events")
        return await point_of(self.journal, Request(size=int(at)))

    async def page(self, query: Query, at: str | None = None) -> Page:
        """Return a page of a table, live or at a point; raises InvalidRequest and ReplayTooLong.

        Pages of a point fit together exactly. Each page of a live table is what the table is when
        it is read: a row is met twice, or not at all, if what it is sorted by changes meanwhile.
        """
        if not 1 <= query.limit <= self._settings.http_page_rows_max:
            most = self._settings.http_page_rows_max
            raise InvalidRequest(f"limit: a page has 1 to {most} rows")
        selection = Selection(query, _projection(query.table), at)
        point = None if at is None else await self._point_of_page(selection, at)
        try:
            found = await read_page(self.journal, self._database, selection, point)
        except NotStored as asked:
            wanted = asked.point
            found = await self._apart_from_here(lambda past: past.page(selection, wanted))
        rows, cursor = selection.cut(found.rows, found.point.size)
        columns = tuple(each.name for each in visible_columns(selection.projection))
        return Page(found.point, await _shown(found.shown, rows), cursor, columns)

    async def _point_of_page(self, selection: Selection, at: str) -> Point:
        """Return the point of a page: that of the first page, where this is a later one."""
        point = await self.point(at)
        if selection.size in (None, point.size):
            return point
        first = await self.point(str(selection.size))
        return msgspec.structs.replace(point, size=first.size, root=first.root)

    async def row(
        self, table: str, key: str, at: str | None = None
    ) -> tuple[Point, dict[str, Any] | None]:
        """Return the row with a key, live or at a point, None where there is none.

        Raises InvalidRequest and ReplayTooLong.
        """
        selection = _only(table, key)
        point = None if at is None else await self.point(at)
        try:
            found = await read_page(self.journal, self._database, selection, point)
        except NotStored as asked:
            wanted = asked.point
            found = await self._apart_from_here(lambda past: past.row(selection, key, wanted))
        rows = found.shown.rows(found.rows)
        return found.point, rows[0] if rows else None

    async def history(
        self, table: str, key: str, at: str | None = None, window: Window = ALL_STATES
    ) -> tuple[Point, History]:
        """Return states of a row up to a point, or up to the journal's end.

        Columns have the values that JSON shows, without those that are hidden. Raises
        InvalidRequest and ReplayTooLong.
        """
        projection = _only(table, key).projection
        point = await self.point(at)
        found = await self._apart_from_here(
            lambda past: past.history(projection, key, point.size, window)
        )
        notes = [*point.notes, *([found.note] if found.note else [])]
        return msgspec.structs.replace(point, notes=notes), found

    async def diff(
        self,
        first: str,
        second: str,
        table: str | None = None,
        limit: int = 1000,
        start: int = 0,
    ) -> tuple[Point, Point, list[RowChange]]:
        """Return which rows came, changed or went between two points, `limit` of them from `start`.

        Columns have the values that JSON shows, without those that are hidden. Whoever goes on
        names the sizes of the first part: what a time stands for may change. Raises InvalidRequest
        and ReplayTooLong.
        """
        span = await self._span(first, second, table, limit, start)

        async def work(past: Past) -> tuple[Points, list[RowChange]]:
            points, changes = await past.changes(span.projections, span.points)
            return points, list(span.of(changes))

        (before, after), changes = await self._apart_from_here(work)
        return before, after, changes

    async def diff_page(
        self, first: str, second: str, table: str | None = None, limit: int = 1000, start: int = 0
    ) -> Export:
        """Return the same as JSON in a file, with the `start` of what comes next."""
        span = await self._span(first, second, table, limit, start)
        return await self._apart_from_here(lambda past: spool_difference(past, span, Form.JSON))

    async def export_diff(
        self, first: str, second: str, form: Form, table: str | None = None
    ) -> Export:
        """Return all that changed between two points in a file; raises ExportTooLong too."""
        span = await self._span(first, second, table)
        return await self._exported(lambda past: spool_difference(past, span, form))

    async def _span(
        self, first: str, second: str, table: str | None, limit: int | None = None, start: int = 0
    ) -> Span:
        if not (1 <= (limit or 1) <= CHANGES_MAX and start >= 0):
            raise InvalidRequest(f"limit: 1 to {CHANGES_MAX} changes, from the first one on")
        if start and not all(re.fullmatch(SIZE, each) for each in (first, second)):
            raise InvalidRequest("start: go on between the sizes that the first answer names")
        projections = [_projection(each) for each in (TABLES if table is None else [table])]
        points = await self.point(first), await self.point(second)
        return Span(points, projections, start, limit)

    async def export(
        self, query: Query, form: Form, at: str | None = None, *, tells_all: bool = True
    ) -> Export:
        """Return all rows of a query in a file, in the order and at the point that are asked for.

        Rows have the columns that are shown, and no computed attributes. They are read at once, so
        that a slow reader of the file holds nothing up. Its head names neither keys nor errors
        unless it `tells_all`. Raises InvalidRequest and ExportTooLong.
        """
        whole = msgspec.structs.replace(query, cursor=None)
        selection = Selection(whole, _projection(query.table), at)
        point = None if at is None else await self.point(at)
        asked = Asked(selection, form, point, tells_all)
        return await self._exported(lambda past: spool(past, asked))

    async def _exported(self, write: Callable[[Past], Coroutine[Any, Any, Export]]) -> Export:
        """Have a file written, few at a time, so that pages of the past come through meanwhile."""

        async def in_turn(past: Past) -> Export:
            async with self.exporting:
                return await write(past)

        return await self._apart_from_here(in_turn, ExportTooLong)

    async def wait_projected(self, size: int, timeout_seconds: float) -> bool:
        """Wait until all tables show the first `size` events; return whether they do in time."""
        return await self._catching_up.wait(size, timeout_seconds)

    async def wait_for_table(self, table: str, size: int, timeout_seconds: float) -> None:
        """Wait until a table, and the marks it is shown with, have come to a size.

        Raises NotCaughtUp, and PointUnknown where the journal has not come there itself.
        """
        if size > (end := await self.journal.size()):
            raise PointUnknown(f"at_least: journal {self.journal.name!r} holds only {end} events")
        shown = (table, marks.name) if table == POSITIONS else (table,)
        groups = {TABLES[_projection(each).name].name for each in shown}
        if not await self._catching_up.wait(size, timeout_seconds, groups):
            raise NotCaughtUp(size)

    async def checkpoints(self) -> dict[str, int]:
        """Return how far the tables are, by the names of their groups."""
        return dict.fromkeys(GROUPS, 0) | await self._catching_up.sizes()

    async def _apart_from_here(
        self,
        work: Callable[[Past], Coroutine[Any, Any, T]],
        too_long: Callable[[float], LedgerError] = ReplayTooLong,
    ) -> T:
        """Run what takes long in the thread apart; raises `too_long`."""

        async def there(journal: Journal, database: Database) -> T:
            return await work(Past(journal, database, self._folded))

        seconds = TIME_SHARE * self._settings.http_timeout_seconds
        return await self._apart.run(there, seconds, too_long)


async def _shown(shown: Shown, rows: Sequence[ReadModel]) -> list[dict[str, Any]]:
    """Return rows for JSON; others are answered in between."""
    found: list[dict[str, Any]] = []
    for start in range(0, len(rows), ROWS_IN_ONE_GO):
        found += shown.rows(rows[start : start + ROWS_IN_ONE_GO])
        await asyncio.sleep(0)
    return found


def _projection(table: str) -> Projection[Any]:
    if table not in TABLES:
        raise InvalidRequest(f"table: {table[:100]!r} is not one of {', '.join(TABLES)}")
    return projection_of(table)


def _only(table: str, key: str) -> Selection:
    """Return the query for the row with a key; raises InvalidRequest where it can be none."""
    projection = _projection(table)
    return Selection(Query(table, (Filter(projection.key, "eq", key),), limit=1), projection)
