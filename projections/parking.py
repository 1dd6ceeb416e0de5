"""What the database keeps of poisoned events: lanes that are parked, events that were skipped."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError
from projections.bookkeeping import parked_keys, skipped_events
from projections.dialects import insert, is_among
from projections.fold import Group
from projections.lanes import Lane, Parked, Parking, Rulings
from projections.projection import Projection

_parked, _skipped = parked_keys.c, skipped_events.c


class RowParked(LedgerError):
    """A row stays as it is, since an event that it depends on is poisoned or waits."""

    exit_code = 3

    def __init__(self, row: str, lane: Lane, parked: Parked) -> None:
        super().__init__(
            f"{lane.table} {row} does not change: {lane.column}={lane.value} {parked}; mend the "
            "fold and run `projections retry`, or `projections skip` the event"
        )
        self.lane = lane
        self.parked = parked


class ParkedKey(msgspec.Struct, frozen=True):
    """A parked lane as it is shown: since which event, why, and how many events are held back.

    `error` is what the fold of the event raised; one that only waits has `waits_for` instead.
    """

    group: str
    table: str
    column: str
    value: str
    offset: int
    event_id: UUID
    event_type: str
    error: str | None
    waits_for: str | None
    waiting: int
    parked_at: datetime

    @property
    def lane(self) -> Lane:
        """The lane itself."""
        return Lane(self.table, self.column, self.value)

    @property
    def as_parked(self) -> Parked:
        """Since when and why."""
        return Parked(**{name: getattr(self, name) for name in Parked.__struct_fields__})

    def __str__(self) -> str:
        return f"{self.lane} {self.as_parked}"


class SkippedEvent(msgspec.Struct, frozen=True):
    """An event that is left out of a table, why, and who decided so."""

    group: str
    table: str
    offset: int
    event_id: UUID
    event_type: str
    error: str | None
    reason: str
    actor: str | None
    skipped_at: datetime

    def __str__(self) -> str:
        who = f" by {self.actor}" if self.actor else ""
        return (
            f"{self.table} without the {self.event_type} at offset {self.offset}, skipped{who} "
            f"at {self.skipped_at:%Y-%m-%dT%H:%M:%SZ}: {self.reason}"
        )


class Part(msgspec.Struct, frozen=True):
    """Which of many are asked for: of one table, of one event, `limit` of them from `start` on."""

    table: str | None = None
    offset: int | None = None
    start: int = 0
    limit: int | None = None

    def of(self, query: sa.Select[Any], columns: Any) -> sa.Select[Any]:
        """Return a query for this part of what it asks for."""
        if self.table is not None:
            query = query.where(columns.table_name == self.table)
        if self.offset is not None:
            query = query.where(columns.offset == self.offset)
        return query.limit(self.limit).offset(self.start or None)


EVERYTHING = Part()


async def parked(
    connection: AsyncConnection,
    journal_id: int,
    group: Group | None = None,
    part: Part = EVERYTHING,
) -> list[ParkedKey]:
    """Return the parked lanes of a journal (of one group, if given): the oldest, causes first."""
    names = [each.name for each in parked_keys.columns if each.name != "journal_id"]
    query = sa.select(*(_parked[name] for name in names)).where(_shown_of(journal_id, group))
    causes_first = (_parked.offset, _parked.error.is_(None))
    order = (*causes_first, _parked.table_name, _parked.column_name, _parked.value)
    rows = await connection.execute(part.of(query.order_by(*order), _parked))
    return [ParkedKey(*row) for row in rows]


async def count_parked(
    connection: AsyncConnection,
    journal_id: int,
    group: Group | None = None,
    table: str | None = None,
) -> int:
    """Return how many lanes of a journal (of a group, of a table) are parked."""
    query = sa.select(sa.func.count()).where(_shown_of(journal_id, group))
    return (await connection.scalar(Part(table).of(query, _parked))) or 0


async def skipped(
    connection: AsyncConnection,
    journal_id: int,
    group: Group,
    stop: int | None = None,
    part: Part = EVERYTHING,
) -> list[SkippedEvent]:
    """Return what was skipped of a journal in the tables of a group, below offset `stop`."""
    names = [each.name for each in skipped_events.columns if each.name != "journal_id"]
    own = _is_skipped_of(journal_id, group), _is_of_tables(_skipped, group)
    query = sa.select(*(_skipped[name] for name in names)).where(*own)
    if stop is not None:
        query = query.where(_skipped.offset < stop)
    query = query.order_by(_skipped.offset, _skipped.table_name)
    return [SkippedEvent(*row) for row in await connection.execute(part.of(query, _skipped))]


async def count_skipped(
    connection: AsyncConnection, journal_id: int, group: Group, table: str
) -> int:
    """Return how many events were skipped in a table of a group."""
    query = sa.select(sa.func.count()).where(_is_skipped_of(journal_id, group))
    return (await connection.scalar(Part(table).of(query, _skipped))) or 0


async def rulings(
    connection: AsyncConnection, journal_id: int, group: Group, *, poisoned: bool = True
) -> Rulings:
    """Return which events are skipped in the tables of a group, and which count as poisoned.

    A fold with them gives just what the live tables hold. Without the poisoned ones it gives what
    they would hold if all was retried now: that is for folds that are to replace the live tables.
    """
    skips = await skipped(connection, journal_id, group)
    own = _is_parked_of(journal_id, group.name), _is_of_tables(_parked, group)
    query = sa.select(_parked.table_name, _parked.offset, _parked.error).where(
        *own, _parked.error.is_not(None)
    )
    found = await connection.execute(query) if poisoned else ()
    return Rulings(
        frozenset((each.table, each.offset) for each in skips),
        {(table, offset): error for table, offset, error in found},
    )


async def is_noted(
    connection: AsyncConnection, journal_id: int, group: Group, start: int, stop: int, name: str
) -> bool:
    """Whether the plain fold of the events with start <= offset < stop might be wrong.

    That is where a lane of `name` is parked in a table of the group, or one of these events is
    skipped.
    """
    own = _is_parked_of(journal_id, name), _is_of_tables(_parked, group)
    some_parked = sa.exists().where(*own)
    of_these = sa.and_(_skipped.offset >= start, _skipped.offset < stop)
    some_skipped = sa.exists().where(_is_skipped_of(journal_id, group), of_these)
    return bool((await connection.execute(sa.select(some_parked | some_skipped))).scalar())


async def load(
    connection: AsyncConnection,
    journal_id: int,
    name: str,
    lanes: Collection[Lane] | None = None,
) -> Parking:
    """Return those of `lanes` (all, if None) that are parked under the group's name."""
    columns = (_parked.table_name, _parked.column_name, _parked.value)
    fields = (_parked[field] for field in Parked.__struct_fields__)
    query = sa.select(*columns, *fields).where(_is_parked_of(journal_id, name))
    if lanes is not None:
        values = {lane.value for lane in lanes}
        query = query.where(is_among(_parked.value, values, connection.dialect))
    rows = await connection.execute(query)
    found = {Lane(*row[:3]): Parked(*row[3:]) for row in rows}
    wanted = found if lanes is None else found.keys() & set(lanes)
    return Parking({lane: found[lane] for lane in wanted})


async def save(connection: AsyncConnection, journal_id: int, name: str, parking: Parking) -> None:
    """Write the lanes that were parked or met."""
    changed = [_row(journal_id, name, lane, parking.lanes[lane]) for lane in parking.changed]
    if changed:
        statement = insert(parked_keys, connection.dialect)
        await connection.execute(
            statement.on_conflict_do_update(
                index_elements=list(parked_keys.primary_key),
                set_={"waiting": statement.excluded.waiting},
            ),
            changed,
        )


async def replace(
    connection: AsyncConnection, journal_id: int, group: Group, parking: Parking
) -> None:
    """Let just these lanes be parked of the tables of a group; what stays keeps its time."""
    own = _is_parked_of(journal_id, group.name), _is_of_tables(_parked, group)
    before = {each.lane: each for each in await parked(connection, journal_id, group)}
    await connection.execute(parked_keys.delete().where(*own))
    rows = []
    for lane, each in parking.lanes.items():
        row = _row(journal_id, group.name, lane, each)
        known = before.get(lane)
        if known is not None and known.offset == each.offset:
            row["parked_at"] = known.parked_at
        rows.append(row)
    if rows:
        await connection.execute(parked_keys.insert(), rows)


async def record_skip(connection: AsyncConnection, journal_id: int, skip: SkippedEvent) -> None:
    """Note for ever that an event is left out of a table."""
    values = (journal_id, *msgspec.structs.astuple(skip))
    named = dict(zip(skipped_events.c.keys(), values, strict=True))
    await connection.execute(skipped_events.insert(), named)


async def check_row(
    connection: AsyncConnection, journal_id: int, group: Group, table: str, key: Any, size: int
) -> None:
    """Raise RowParked where the row does not hold all of the first `size` events."""
    projection = next(each for each in group.projections if each.name == table)
    columns = projection.table.c
    named = [columns[name] for name in projection.name_columns]
    own = columns.journal_id == journal_id, columns[projection.key] == key
    row = (await connection.execute(sa.select(*named).where(*own))).first()
    names = [(projection.key, str(key))] if row is None else projection.names_of(row)
    lanes = [Lane(table, *name) for name in names]
    for lane, each in (await load(connection, journal_id, group.name, lanes)).lanes.items():
        if each.offset < size:
            raise RowParked(str(key), lane, each)


def lanes_of_rows(rows: Iterable[tuple[Projection[Any], sa.Row[Any]]]) -> set[Lane]:
    """Return the lanes in which rows are that have been read with all columns."""
    return {
        Lane(projection.name, *name)
        for projection, row in rows
        for name in projection.names_of(row)
    }


def _row(journal_id: int, name: str, lane: Lane, parked: Parked) -> dict[str, Any]:
    return {
        "journal_id": journal_id,
        "group_name": name,
        "table_name": lane.table,
        "column_name": lane.column,
        "value": lane.value,
        "parked_at": datetime.now(UTC),
        **msgspec.structs.asdict(parked),
    }


def _is_parked_of(journal_id: int, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(_parked.journal_id == journal_id, _parked.group_name == name)


def _shown_of(journal_id: int, group: Group | None) -> sa.ColumnElement[bool]:
    if group is None:  # those beside a live table have names with two underscores
        live = ~_parked.group_name.contains("__", autoescape=True)
        return sa.and_(_parked.journal_id == journal_id, live)
    return sa.and_(_is_parked_of(journal_id, group.name), _is_of_tables(_parked, group))


def _is_skipped_of(journal_id: int, group: Group) -> sa.ColumnElement[bool]:
    return sa.and_(_skipped.journal_id == journal_id, _skipped.group_name == group.name)


def _is_of_tables(columns: Any, group: Group) -> sa.ColumnElement[bool]:
    return columns.table_name.in_([each.name for each in group.projections])  # type: ignore[no-any-return]
