"""Verifying: the live tables against a fresh fold of the journal, row by row, column by column."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.journal import Journal
from ledger.proof.keys import read_key
from ledger.proof.log import Sealed, verify_sealed
from ledger.schema import journals
from ledger.settings import Settings
from projections import checkpoints, parking
from projections.database import Database
from projections.fold import Group
from projections.model import ReadModel, values_of
from projections.parking import ParkedKey, SkippedEvent
from projections.people import WITHHELD, is_withheld
from projections.projection import Projection, State
from projections.rendering import as_text
from projections.replaying import Readable, fold_prefix

SHOWN_MAX = 20
ROWS_AT_ONCE = 1000


class Unreadable(msgspec.Struct, frozen=True):
    """What lies in a column and is no value of its type."""

    stored: str

    def __str__(self) -> str:
        return self.stored


class Difference(msgspec.Struct, frozen=True):
    """One difference: a column of a row, or a whole row (`column` is None)."""

    table: str
    key: str
    column: str | None
    journal: str
    live: str

    def __str__(self) -> str:
        where = f"{self.table} {self.key}"
        if self.column is None:
            return f"{where}: journal: {self.journal}; table: {self.live}"
        return f"{where} {self.column}: journal: {self.journal}; table: {self.live}"


class Verified(msgspec.Struct):
    """What was compared, how many differences there are, and the first of them.

    Rows that are `parked` are as they were before the event that their fold could not take, and
    those that it should have made are missing, so they are not verified. What was `skipped` is
    left out of the tables and of the fold alike. What the events were compared with first is what
    was `sealed`, if anything was: tables are compared only with events that are as they were then.
    """

    sizes: dict[str, int] = msgspec.field(default_factory=dict)
    rows: int = 0
    tables: int = 0
    differences: int = 0
    first: list[Difference] = msgspec.field(default_factory=list)
    parked: list[ParkedKey] = msgspec.field(default_factory=list)
    skipped: list[SkippedEvent] = msgspec.field(default_factory=list)
    sealed: Sealed | None = None

    @property
    def is_verified(self) -> bool:
        """Whether the tables are what the journal says, but for what was skipped."""
        return self.differences == 0 and not self.parked and not self.is_unsealed

    @property
    def is_unsealed(self) -> bool:
        """Whether the journal was sealed and is no longer what was sealed."""
        return self.sealed is not None and not self.sealed.is_verified

    @property
    def events(self) -> int:
        """The size up to which all groups were compared."""
        return min(self.sizes.values(), default=0)

    def note(self, difference: Difference) -> None:
        """Count a difference and keep it if it is among the first."""
        self.differences += 1
        if len(self.first) < SHOWN_MAX:
            self.first.append(difference)


async def verify(
    database: Database,
    journal: Journal,
    groups: Iterable[Group],
    advanced: Callable[[int], None] = lambda _: None,
    source: Readable | None = None,
) -> Verified:
    """Compare the tables of `groups` with the journal, each group at its checkpoint.

    The events are those of `source`, if it is given, in place of the database's.
    """
    result = Verified(sealed=await _compare_seal(database.settings, journal, advanced))
    for group in () if result.is_unsealed else groups:
        async with database.snapshot() as connection:
            checkpoint = await checkpoints.read(connection, journal.journal_id, group)
            size = await _compare_checkpoint(journal, group, checkpoint, result)
            rulings = await parking.rulings(connection, journal.journal_id, group)
            state = await fold_prefix(source or journal, group, size, advanced, rulings=rulings)
            result.sizes[group.name] = size
            result.skipped += await parking.skipped(connection, journal.journal_id, group, size)
            await _compare_parking(connection, group, state, result)
            for projection in group.projections:
                await _compare_table(connection, group, projection, state, result)
                await _find_strays(connection, projection, result)
    return result


async def _compare_seal(
    settings: Settings, journal: Journal, advanced: Callable[[int], None]
) -> Sealed | None:
    """Compare the events with what was sealed; signatures too, where the log's key is at hand."""
    file = settings.log_key_file
    return await verify_sealed(journal, None if file is None else read_key(file).verifier, advanced)


async def _compare_checkpoint(
    journal: Journal, group: Group, checkpoint: int, result: Verified
) -> int:
    """Return the size to compare at; a checkpoint beyond the journal's end is a difference."""
    size = await journal.size()
    if checkpoint > size:
        found = str(checkpoint)
        result.note(Difference("checkpoints", group.name, "size", f"at most {size}", found))
    return min(checkpoint, size)


async def _compare_parking(
    connection: AsyncConnection, group: Group, state: State, result: Verified
) -> None:
    """Compare the parked keys with those that the fold has parked."""
    found = await parking.parked(connection, state.journal_id, group)
    result.parked += found
    live = {each.lane: each.offset for each in found}
    expected = {lane: each.offset for lane, each in state.parking.lanes.items()}
    for lane in expected.keys() | live.keys():
        if expected.get(lane) != live.get(lane):
            texts = (_parked_since(each.get(lane)) for each in (expected, live))
            result.note(Difference("parked_keys", str(lane), None, *texts))


def _parked_since(offset: int | None) -> str:
    return "is not parked" if offset is None else f"is parked at offset {offset}"


async def _find_strays(
    connection: AsyncConnection, projection: Projection[Any], result: Verified
) -> None:
    """Note rows of journals that do not exist: no journal's comparison would meet them."""
    table = projection.table
    known = sa.select(journals.c.journal_id)
    strays = sa.select(table.c.journal_id, table.c[projection.key]).where(
        table.c.journal_id.not_in(known)
    )
    for journal_id, key in await connection.execute(strays):
        there = f"has it under journal_id {journal_id}"
        result.note(Difference(projection.name, as_text(key), None, "no such journal", there))


async def _compare_table(
    connection: AsyncConnection,
    group: Group,
    projection: Projection[Any],
    state: State,
    result: Verified,
) -> None:
    """Compare one table both ways."""
    expected = {getattr(row, projection.key): row for row in group.finished(state, projection.name)}
    result.tables += 1
    result.rows += len(expected)
    async for live in _live_rows(connection, projection, state.journal_id):
        row = expected.pop(live[projection.key], None)
        for difference in _compare_row(projection, row, live):
            result.note(difference)
    for key in expected:
        result.note(Difference(projection.name, as_text(key), None, "has the row", "lacks it"))


def _compare_row(
    projection: Projection[Any], row: ReadModel | None, live: dict[str, Any]
) -> Iterator[Difference]:
    key = as_text(live[projection.key])
    if row is None:
        yield Difference(projection.name, key, None, "has no such row", "has it")
        return
    for column, value in values_of(row).items():
        if live[column] != value:
            is_gone = is_withheld(projection.name, column, value)
            found = WITHHELD if is_gone else as_text(live[column])
            yield Difference(projection.name, key, column, as_text(value), found)


async def _live_rows(
    connection: AsyncConnection, projection: Projection[Any], journal_id: int
) -> AsyncIterator[dict[str, Any]]:
    """Yield the table's rows in the order of their keys."""
    table, dialect = projection.table, connection.dialect
    columns: list[sa.ColumnElement[Any]] = list(table.columns)
    readers: list[Callable[[Any], Any]] = [_unchanged] * len(columns)
    if dialect.name == "sqlite":
        readers = [_reader(column.type, dialect) for column in columns]
        columns = [sa.type_coerce(column, sa.types.NullType()) for column in columns]
    query = sa.select(*columns).where(table.c.journal_id == journal_id)
    records = await connection.stream(query.order_by(table.c[projection.key]))
    async for chunk in records.partitions(ROWS_AT_ONCE):
        for record in chunk:
            values = (reader(stored) for reader, stored in zip(readers, record, strict=True))
            yield dict(zip(projection.columns, values, strict=True))


def _unchanged(stored: Any) -> Any:
    return stored


def _reader(column_type: sa.types.TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any]:
    """Return the function from what SQLite holds, which may be anything, to a value.

    What is no value of the column's type becomes Unreadable.
    """
    process = column_type.dialect_impl(dialect).result_processor(dialect, None)
    if process is None:
        return _unchanged

    def read(stored: Any) -> Any:
        try:
            value = process(stored)
        except (ArithmeticError, AttributeError, TypeError, ValueError):
            return Unreadable(str(stored))
        # Any number but 0 would pass for true.
        return stored if isinstance(value, bool) and value != stored else value

    return read
