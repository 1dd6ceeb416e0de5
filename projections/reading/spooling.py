"""All rows of a query in one file, for other programs to read."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import IO

import msgspec

from projections.exporting import csv_head, csv_line_of, json_text
from projections.model import ReadModel, values_of
from projections.points import Point, untold
from projections.reading.attributes import shown_values
from projections.reading.filtering import visible_columns
from projections.reading.paging import Selection
from projections.reading.past import Past
from projections.reading.stored import ROWS_AT_ONCE, NotStored, fitting, read_all

BYTES_IN_MEMORY = 1 << 20


class Form(StrEnum):
    """How all rows of a query are given out at once."""

    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"


class Export(msgspec.Struct, frozen=True):
    """A file of rows, to be read from its start; it vanishes when it is closed.

    A difference begins at the point `since`.
    """

    point: Point
    file: IO[bytes]
    size_bytes: int
    since: Point | None = None


@contextlib.contextmanager
def spooled() -> Iterator[IO[bytes]]:
    """Give a new file, which is closed where it cannot be written to its end."""
    file = tempfile.SpooledTemporaryFile(BYTES_IN_MEMORY)  # noqa: SIM115 - whoever reads closes it
    try:
        yield file
    except BaseException:
        file.close()
        raise


def written(file: IO[bytes], point: Point, since: Point | None = None) -> Export:
    """Return a file that has been written."""
    size_bytes = file.tell()
    file.seek(0)
    return Export(point, file, size_bytes, since)


class Asked(msgspec.Struct, frozen=True):
    """Which rows are wanted as a file, and whether keys and errors of others may be named in it."""

    selection: Selection
    form: Form
    point: Point | None
    tells_all: bool = True

    def told(self, point: Point) -> Point:
        """Return a point with what may be said of it."""
        return point if self.tells_all else untold(point)


async def spool(past: Past, asked: Asked) -> Export:
    """Write all rows of a query into a file, live or at a point."""
    with spooled() as file:
        try:
            point = await _write_stored(past, asked, file)
        except NotStored as missing:
            point = await _write_folded(past, asked, missing.point, file)
        return written(file, point)


async def _write_folded(past: Past, asked: Asked, point: Point, file: IO[bytes]) -> Point:
    """Write what only a fold can tell."""
    selection = asked.selection
    answer = await past.folded.table(past.journal, past.database, selection.projection, point.size)
    told = asked.told(answer.at(point))
    writing = _Writing(file, asked.form, past.journal.name, selection, told)
    rows = selection.sorted(selection.matching(answer.rows))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        writing.write(rows[start : start + ROWS_AT_ONCE])
        await asyncio.sleep(0)  # others read in this thread too
    writing.end()
    return told


async def _write_stored(past: Past, asked: Asked, file: IO[bytes]) -> Point:
    """Write what the live table can tell; raises NotStored before anything is written."""
    journal, selection = past.journal, asked.selection
    async with past.database.snapshot() as connection:
        fit = await fitting(connection, journal, selection.projection, asked.point)
        told = asked.told(fit.point)
        writing = _Writing(file, asked.form, journal.name, selection, told)
        async for rows in read_all(connection, journal.journal_id, selection, fit):
            writing.write(rows)
    writing.end()
    return told


class _Writing:
    """A file being written: a head that names the point, a line for each row."""

    def __init__(
        self, file: IO[bytes], form: Form, journal: str, selection: Selection, point: Point
    ) -> None:
        columns = visible_columns(selection.projection)
        self._file = file
        self._form = form
        self._table = selection.projection.name
        of_csv = csv_line_of(columns, is_for_sheets=True)
        self._line = of_csv if form is Form.CSV else self._json_line
        self._is_first = True
        head = {
            Form.CSV: lambda: csv_head(journal, point, columns, is_for_sheets=True),
            Form.NDJSON: lambda: json_text(point.described(journal)) + "\n",
            Form.JSON: lambda: f'{{"point": {json_text(point.described(journal))}, "rows": [',
        }
        self._put(head[form]())

    def _put(self, text: str) -> None:
        self._file.write(text.encode())

    def _json_line(self, row: ReadModel) -> str:
        shown = shown_values(values_of(row))
        if self._form is Form.NDJSON:
            return json_text({"table": self._table, "row": shown}) + "\n"
        comma, self._is_first = "" if self._is_first else ",", False
        return f"{comma}\n{json_text(shown)}"

    def write(self, rows: Iterable[ReadModel]) -> None:
        """Write some rows."""
        for row in rows:
            self._put(self._line(row))

    def end(self) -> None:
        """Write what comes behind the last row."""
        if self._form is Form.JSON:
            self._put('\n], "next": null}\n')
