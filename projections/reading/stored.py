"""What the live tables can tell: rows as they are, and of append-only tables as they were."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.journal import Journal
from projections import checkpoints, parking
from projections.database import Database
from projections.dialects import is_among
from projections.groups import TABLES
from projections.marks import marks
from projections.model import ReadModel
from projections.points import Point, root_at
from projections.projection import Projection
from projections.reading.attributes import POSITIONS, Shown
from projections.reading.paging import Selection
from projections.verification import SHOWN_MAX

ROWS_AT_ONCE = 500


class Rows(msgspec.Struct, frozen=True):
    """Rows of one table at a point, and how they are shown."""

    point: Point
    rows: Sequence[ReadModel]
    shown: Shown


class NotStored(Exception):
    """The live table cannot tell what it held at a point: it has to be folded."""

    def __init__(self, point: Point) -> None:
        super().__init__(point)
        self.point = point


class Fit(msgspec.Struct, frozen=True):
    """How the live table tells what is asked for: the point, and which of its rows."""

    point: Point
    clauses: tuple[sa.ColumnElement[bool], ...] = ()


async def fitting(
    connection: AsyncConnection, journal: Journal, projection: Projection[Any], wanted: Point | None
) -> Fit:
    """Return how a live table tells what it holds at a point; raises NotStored where it cannot.

    It can where it has come to just that size, and if its rows never change, also where it has come
    further. Without a point, it is as far as it has come. Raises FoldChanged.
    """
    group = TABLES[projection.name]
    size = await checkpoints.read(connection, journal.journal_id, group)
    notes = await _notes(connection, journal.journal_id, projection)
    if wanted is None:
        return Fit(Point(size, root=await root_at(journal, size), notes=notes))
    point = msgspec.structs.replace(wanted, notes=[*wanted.notes, *notes])
    if projection.append_only and wanted.size <= size:
        return Fit(point, (projection.table.c.changed_size <= wanted.size,))
    if wanted.size != size or not await _has_marks(connection, journal, projection, size):
        raise NotStored(wanted)
    return Fit(point)


async def _has_marks(
    connection: AsyncConnection, journal: Journal, projection: Projection[Any], size: int
) -> bool:
    """Whether a table is shown without marks, or those have come to the same size."""
    if projection.name != POSITIONS:
        return True
    return await checkpoints.read(connection, journal.journal_id, TABLES[marks.name]) == size


async def _notes(
    connection: AsyncConnection, journal_id: int, projection: Projection[Any]
) -> list[str]:
    """Say what is left out of a table, and what waits in it."""
    group = TABLES[projection.name]
    part = parking.Part(table := projection.name, limit=SHOWN_MAX)
    skips = await parking.skipped(connection, journal_id, group, part=part)
    lanes = await parking.parked(connection, journal_id, group, part)
    told = [*map(str, skips), *map(str, lanes)][:SHOWN_MAX]
    if len(told) < SHOWN_MAX:
        return told
    count = await parking.count_skipped(connection, journal_id, group, table)
    count += await parking.count_parked(connection, journal_id, group, table)
    return told + ([f"and {count - SHOWN_MAX:,} more"] if count > SHOWN_MAX else [])


async def read_page(
    journal: Journal, database: Database, selection: Selection, wanted: Point | None
) -> Rows:
    """Return a page of the live table and one row more; raises NotStored where it cannot tell."""
    projection, dialect = selection.projection, database.engine.dialect.name
    async with database.snapshot() as connection:
        fit = await fitting(connection, journal, projection, wanted)
        query = selection.statement(journal.journal_id, dialect, *fit.clauses)
        rows = [projection.row(*each) for each in await connection.execute(query)]
        prices = {}
        if projection.name == POSITIONS:
            prices = await _prices(connection, journal.journal_id, rows)
    return Rows(fit.point, rows, Shown(projection, prices, is_past=wanted is not None))


async def _prices(
    connection: AsyncConnection, journal_id: int, rows: Sequence[Any]
) -> dict[str, Decimal]:
    """Return the marks of the tokens of positions."""
    column = marks.table.c
    tokens = sorted({each.token for each in rows if each.token is not None})
    query = sa.select(column.token, column.exact_price).where(
        column.journal_id == journal_id, is_among(column.token, tokens, connection.dialect)
    )
    return {token: price for token, price in await connection.execute(query)}  # noqa: C416


async def read_all(
    connection: AsyncConnection, journal_id: int, selection: Selection, fit: Fit
) -> AsyncIterator[list[ReadModel]]:
    """Yield all rows of a query, some at a time."""
    row = selection.projection.row
    query = selection.whole(journal_id, connection.dialect.name, *fit.clauses)
    result = await connection.stream(query)
    async for part in result.partitions(ROWS_AT_ONCE):
        yield [row(*each) for each in part]
