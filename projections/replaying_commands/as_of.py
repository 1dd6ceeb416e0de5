"""The command `replay.py as-of`: tables, or one row, as they stood at a point of a journal."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import msgspec
import typer

from ledger import console
from ledger.journal import Journal
from projections import snapshots
from projections.cli import JournalOption
from projections.database import Database
from projections.effective import EffectiveOrder
from projections.fold import Group
from projections.groups import TABLES
from projections.history import folded_note
from projections.keyed import NotFromStreams, fold_events, gather, key_of, row_of
from projections.model import ReadModel
from projections.points import InvalidRequest, Point, Request, point_of
from projections.projection import Projection, State, itself
from projections.replaying import fold_prefix, fold_through_lens, from_the_start
from projections.replaying_commands.shared import (
    Condition,
    Format,
    FromOption,
    LogKeyOption,
    Origin,
    OutputOption,
    RecordedOption,
    SizeOption,
    Source,
    TableOption,
    check_output,
    decided,
    named_tables,
    parts_of,
    waiting,
    write_tables,
)
from projections.snapshot_format import AsId

Advanced = Callable[[int], None]
Found = dict[str, tuple[Projection[Any], Sequence[ReadModel]]]


def as_of(
    size: SizeOption = None,
    recorded: RecordedOption = None,
    effective: Annotated[
        str | None,
        typer.Option(help="What had happened by this time, as known at --recorded, or else now."),
    ] = None,
    table: TableOption = None,
    key: Annotated[
        str | None, typer.Option(help="Only the row with this key, from its own streams.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE; repeatable.")
    ] = None,
    output: Annotated[
        Format, typer.Option("--format", help="How to give it out; parquet and sqlite need a file.")
    ] = Format.TABLE,
    file: OutputOption = None,
    no_snapshots: Annotated[
        bool, typer.Option("--no-snapshots", help="Fold from the first event in any case.")
    ] = False,
    journal: JournalOption = None,
    directory: FromOption = None,
    log_key: LogKeyOption = None,
) -> None:
    """Show tables as they stood at a point of the journal, folded from it.

    The fold begins at the latest usable snapshot, and says so, if all tables are kept in it. One
    row (--table and --key) comes from its own streams, without the others, if they are enough.
    """
    asked = Request.of(size, recorded, effective)
    projections = named_tables(table)
    conditions = [Condition.parsed(each, projections) for each in where or ()]
    check_output(output, file)
    if key is not None and (table is None or len(projections) != 1):
        raise InvalidRequest("--key needs the one --table that it is a key of")
    row_key = None if key is None else key_of(projections[0].name, key)
    origin = Origin(journal, directory, log_key)
    name, point, rows = console.run(
        _as_of(asked, projections, row_key, origin, from_start=no_snapshots)
    )
    chosen = {table: (each, _matching(found, conditions)) for table, (each, found) in rows.items()}
    write_tables(output, file, name, point, chosen)


def _matching(rows: Iterable[ReadModel], conditions: Sequence[Condition]) -> list[ReadModel]:
    return [row for row in rows if all(condition.holds(row) for condition in conditions)]


async def _as_of(
    asked: Request,
    projections: Sequence[Projection[Any]],
    key: Any,
    origin: Origin,
    *,
    from_start: bool,
) -> tuple[str, Point, Found]:
    """Fold what is asked for; return the journal's name, the point and the rows of each table."""
    async with origin.opened() as (journal, database):
        point = await point_of(journal, asked)
        point = msgspec.structs.replace(point, notes=origin.notes)
        folding = Folding(journal, database, point, from_start=from_start)
        if key is None:
            return journal.name, *await folding.tables(projections)
        return journal.name, *await folding.row(projections[0], key)


class Folding:
    """An answer under way: tables at a point of a journal, or of a published log without tables."""

    def __init__(
        self, journal: Source, database: Database | None, point: Point, *, from_start: bool = False
    ) -> None:
        self._journal = journal
        self._database = database
        self._point = point
        self._from_start = from_start
        self._begun: dict[str, int] = {}
        self._notes = list(point.notes)

    async def row(self, projection: Projection[Any], key: Any) -> tuple[Point, Found]:
        """Return the row with this key, from its own streams if possible."""
        try:
            rows = await self._own_row(projection, key)
        except NotFromStreams as reason:
            self._notes.append(folded_note(reason))
            _, found = await self.tables([projection])
            everything = found[projection.name][1]
            rows = [row for row in everything if str(getattr(row, projection.key)) == str(key)]
        return self._answered(), {projection.name: (projection, rows)}

    async def _own_row(self, projection: Projection[Any], key: Any) -> list[ReadModel]:
        """Return the row from its own streams; raises NotFromStreams."""
        if not isinstance(self._journal, Journal):
            raise NotFromStreams("a published log has no index of streams")
        if self._point.effective_at is not None:
            raise NotFromStreams("of effective times all streams have to be known")
        table, size = projection.name, self._point.size
        events = await gather(self._journal, self._database, table, key, size)
        state = fold_events(TABLES[table].only([table]), self._journal, events)
        row = row_of(state, table, key)
        return [] if row is None else [row]

    async def tables(self, projections: Sequence[Projection[Any]]) -> tuple[Point, Found]:
        """Return all rows of these tables."""
        parts = parts_of(projections)
        passes = len(parts) + (self._point.effective_at is not None)
        found: Found = {}
        gc.disable()  # rows make no cycles, and looking for them takes long
        try:
            with console.folding(self._point.size * passes) as advanced:
                order = await self._order(advanced)
                for part in parts:
                    state = await self._fold(part, order, advanced)
                    self._notes += waiting(state)
                    for each in part.projections:
                        if each in projections:
                            found[each.name] = each, list(part.finished(state, each.name))
        finally:
            gc.enable()
        return self._answered(), {each.name: found[each.name] for each in projections}

    def _answered(self) -> Point:
        return msgspec.structs.replace(self._point, snapshots=self._begun, notes=self._notes)

    async def _order(self, advanced: Advanced) -> EffectiveOrder | None:
        """Return the order of events by effective times, if one was asked for."""
        moment = self._point.effective_at
        if moment is None:
            return None
        order = await EffectiveOrder.of(self._journal, moment, self._point.size, advanced)
        self._point = msgspec.structs.replace(self._point, events=order.count)
        return order

    async def _fold(self, part: Group, order: EffectiveOrder | None, advanced: Advanced) -> State:
        """Fold the events, the fast way where nothing is left out or waits."""
        size, journal = self._point.size, self._journal
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
