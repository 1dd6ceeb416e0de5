"""The command `replay.py as-of`: tables, or one row, as they stood at a point of a journal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
import typer

from ledger import console
from ledger.options import JournalOption
from projections.folding import Folding, Found, undisturbed
from projections.keyed import key_of
from projections.model import ReadModel
from projections.options import TableOption
from projections.points import InvalidRequest, Point, Request, point_of
from projections.projection import Projection
from projections.replaying_commands.shared import (
    AsJsonOption,
    Condition,
    Format,
    FromOption,
    LogKeyOption,
    Origin,
    OutputOption,
    RecordedOption,
    SizeOption,
    check_output,
    named_tables,
    write_tables,
)


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
    as_json: AsJsonOption = False,
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
    chosen = Format.JSON if as_json else output
    check_output(chosen, file)
    if key is not None and (table is None or len(projections) != 1):
        raise InvalidRequest("--key needs the one --table that it is a key of")
    row_key = None if key is None else key_of(projections[0].name, key)
    origin = Origin(journal, directory, log_key)
    name, point, rows = console.run(
        _as_of(asked, projections, row_key, origin, from_start=no_snapshots)
    )
    tables = {table: (each, _matching(found, conditions)) for table, (each, found) in rows.items()}
    write_tables(chosen, file, name, point, tables)


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
        total = folding.events_to_fold(projections)
        with undisturbed(), console.folding(total) as folding.advanced:
            if key is None:
                return journal.name, *await folding.tables(projections)
            return journal.name, *await folding.row(projections[0], key)
