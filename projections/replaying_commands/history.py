"""The command `replay.py history`: every state that a row went through, and what caused each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Annotated, Any

import msgspec
import typer

from ledger import console
from ledger.options import JournalOption
from projections.exporting import json_text
from projections.folding import decided
from projections.groups import TABLES
from projections.history import Change, History, history_of
from projections.keyed import key_of
from projections.options import complete_table
from projections.points import Point, Request, point_of
from projections.rendering import as_text, plain
from projections.replaying_commands.shared import (
    AsJsonOption,
    FromOption,
    LineFormat,
    LogKeyOption,
    Origin,
    OutputOption,
    is_shown,
    named_tables,
    text_output,
)


def history(
    table: Annotated[str, typer.Argument(help="The read table.", autocompletion=complete_table)],
    key: Annotated[str, typer.Argument(help="The row's key.")],
    until: Annotated[
        int | None, typer.Option(min=0, help="Up to this size.", show_default="the journal's end")
    ] = None,
    output: Annotated[
        LineFormat, typer.Option("--format", help="How to give it out.")
    ] = LineFormat.TABLE,
    as_json: AsJsonOption = False,
    file: OutputOption = None,
    journal: JournalOption = None,
    directory: FromOption = None,
    log_key: LogKeyOption = None,
) -> None:
    """Show every state that a row went through, with event, times, actor and request of each.

    It comes from the row's own streams, without the other events, if they are enough.
    """
    [projection] = named_tables([table])
    row_key = key_of(projection.name, key)
    origin = Origin(journal, directory, log_key)
    name, point, found = console.run(_history(table, row_key, until, origin))
    with text_output(file) as out:
        write = _WRITERS[LineFormat.JSON if as_json else output]
        write(out, name, point, f"{table} {key}", found.changes)


async def _history(
    table: str, key: Any, until: int | None, origin: Origin
) -> tuple[str, Point, History]:
    async with origin.opened() as (journal, database):
        point = await point_of(journal, Request(size=until))
        group = TABLES[table].only([table])
        rulings, skips = await decided(database, journal, group, point.size)
        with console.folding(point.size) as advanced:
            found = await history_of(
                journal, database, table, key, point.size, rulings=rulings, advanced=advanced
            )
    notes = [*origin.notes, *map(str, skips), *([found.note] if found.note else [])]
    return journal.name, msgspec.structs.replace(point, notes=notes), found


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a row for JSON."""
    return {name: plain(value) for name, value in values.items()}


def _plain_change(change: Change) -> dict[str, Any]:
    answer = msgspec.structs.asdict(change)
    return {name: value for name, value in answer.items() if name != "columns"} | {
        "row": plain_values(change.columns)
    }


def _write_json(
    out: IO[str], journal: str, point: Point, row: str, changes: Sequence[Change]
) -> None:
    answer = point.described(journal) | {"of": row}
    print(json_text(answer | {"states": [_plain_change(each) for each in changes]}), file=out)


def _write_ndjson(
    out: IO[str], journal: str, point: Point, row: str, changes: Sequence[Change]
) -> None:
    print(json_text(point.described(journal) | {"of": row}), file=out)
    for each in changes:
        print(json_text(_plain_change(each)), file=out)


def _write_text(
    out: IO[str], journal: str, point: Point, row: str, changes: Sequence[Change]
) -> None:
    print("\n".join(point.heading(journal)), file=out)
    print(f"\n{row}: {len(changes)} states", file=out)
    before: dict[str, Any] = {}
    for change in changes:
        print(f"\n{_cause(change)}", file=out)
        for column in filter(is_shown, change.changed):
            old, new = as_text(before.get(column)), as_text(change.columns[column])
            if old != new:
                print(f"  {column}: {new if not before else f'{old} -> {new}'}", file=out)
        before = change.columns


def _cause(change: Change) -> str:
    named = {"by": change.actor, "request": change.request_id, "cause": change.causation_id}
    also = "".join(f", {name} {value}" for name, value in named.items() if value is not None)
    times = f"recorded {change.recorded_at}, occurred {change.occurred_at}"
    return f"offset {change.offset} {change.event_type}: {times}{also}"


_WRITERS = {
    LineFormat.TABLE: _write_text,
    LineFormat.JSON: _write_json,
    LineFormat.NDJSON: _write_ndjson,
}
