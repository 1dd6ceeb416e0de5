"""What changed between two points, in a file: some of it as a page, or all of it."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from projections.diffing import RowChange
from projections.exporting import comment_for_sheets, for_sheets, json_text
from projections.points import shown_point
from projections.projection import Projection
from projections.reading.past import Past, Points, shown_change
from projections.reading.spooling import Export, Form, spooled, written
from projections.reading.stored import ROWS_AT_ONCE

COLUMNS = ("table", "key", "change", "before", "after")


class Span(msgspec.Struct, frozen=True):
    """Between which points, in which tables, and which of the changes: all without a `limit`."""

    points: Points
    projections: Sequence[Projection[Any]]
    start: int = 0
    limit: int | None = None

    def of(self, changes: Sequence[RowChange]) -> Iterator[RowChange]:
        """Return those of all changes that are asked for, as they are shown."""
        stop = None if self.limit is None else self.start + self.limit
        return map(shown_change, islice(changes, self.start, stop))

    def next_start(self, count: int) -> int | None:
        """Return where the next ones of `count` changes begin, None for nothing."""
        if self.limit is None or self.start + self.limit >= count:
            return None
        return self.start + self.limit


class _Telling(msgspec.Struct, frozen=True):
    """A difference, and what is said of it."""

    journal: str
    points: Points
    changes: Iterator[RowChange]
    next_start: int | None

    @property
    def ends(self) -> dict[str, Any]:
        """Both points for JSON."""
        first, second = (shown_point(self.journal, point) for point in self.points)
        return {"from": first, "to": second}


async def spool_difference(past: Past, span: Span, form: Form) -> Export:
    """Write changes into a file."""
    points, changes = await past.changes(span.projections, span.points)
    count = len(changes)
    telling = _Telling(past.journal.name, points, span.of(changes), span.next_start(count))
    with spooled() as file:
        lines = _LINES[form](telling)
        while piece := list(islice(lines, ROWS_AT_ONCE)):
            file.write("".join(piece).encode())
            await asyncio.sleep(0)  # others read in this thread too
        return written(file, points[1], since=points[0])


def _csv(telling: _Telling) -> Iterator[str]:
    ends = zip(("from", "to"), telling.points, strict=True)
    head = "; ".join([f"journal {telling.journal}", *(f"{name} {point}" for name, point in ends)])
    yield f"# {comment_for_sheets(head)}\n"
    line = csv.writer(_Line(), lineterminator="\n").writerow
    yield str(line(COLUMNS))
    for each in telling.changes:
        columns = each.columns()
        sides = [{name: pair[place] for name, pair in columns.items()} for place in (0, 1)]
        before = "" if each.before is None else json_text(sides[0])
        after = "" if each.after is None else json_text(sides[1])
        yield str(line((each.table, for_sheets(each.key), each.kind, before, after)))


class _Line:
    """A file of which each line is returned when it is written."""

    def write(self, text: str) -> str:
        return text


def _ndjson(telling: _Telling) -> Iterator[str]:
    yield f"{json_text(telling.ends)}\n"
    for each in telling.changes:
        yield f"{json_text(_shown(each))}\n"


def _json(telling: _Telling) -> Iterator[str]:
    yield f'{json_text(telling.ends)[:-1]}, "changes": ['
    comma = ""
    for each in telling.changes:
        yield f"{comma}\n{json_text(_shown(each))}"
        comma = ","
    yield f'\n], "next": {json_text(telling.next_start)}}}\n'


def _shown(change: RowChange) -> dict[str, Any]:
    """Return a change for JSON: the columns that differ, each before and after."""
    return {
        "table": change.table,
        "key": change.key,
        "change": change.kind,
        "columns": change.columns(),
    }


_LINES: dict[Form, Callable[[_Telling], Iterator[str]]] = {
    Form.CSV: _csv,
    Form.NDJSON: _ndjson,
    Form.JSON: _json,
}
