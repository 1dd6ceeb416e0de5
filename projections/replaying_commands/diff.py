"""The command `replay.py diff`: what changed in the tables between two points of a journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import IO, Annotated, Any

import msgspec
import typer

from ledger import console
from ledger.options import JournalOption
from projections.diffing import ADDED, CHANGED, GONE, RowChange, diff
from projections.exporting import json_text
from projections.folding import decided, parts_of, undisturbed
from projections.options import TableOption
from projections.points import Point, Request, parsed_point, point_of
from projections.projection import Projection
from projections.rendering import as_text, plain
from projections.replaying import from_the_start
from projections.replaying_commands.history import plain_values
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
from projections.snapshots import Beginning

Points = tuple[Point, Point]

SIGNS = {ADDED: "+", CHANGED: "~", GONE: "-"}


def show_diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A size, or a time of recording.")],
    second: Annotated[str, typer.Argument(metavar="B", help="A size, or a time of recording.")],
    table: TableOption = None,
    output: Annotated[
        LineFormat, typer.Option("--format", help="How to give it out.")
    ] = LineFormat.TABLE,
    as_json: AsJsonOption = False,
    file: OutputOption = None,
    no_snapshots: Annotated[
        bool, typer.Option("--no-snapshots", help="Fold from the first event in any case.")
    ] = False,
    journal: JournalOption = None,
    directory: FromOption = None,
    log_key: LogKeyOption = None,
) -> None:
    """Show which rows came, changed (column by column) or went from point A to point B.

    The exit code is 1 if there are any.
    """
    asked = parsed_point(first), parsed_point(second)
    projections = named_tables(table)
    origin = Origin(journal, directory, log_key)
    name, points, changes = console.run(_diff(asked, projections, origin, from_start=no_snapshots))
    with text_output(file) as out:
        _WRITERS[LineFormat.JSON if as_json else output](out, name, points, changes)
    if changes:
        raise typer.Exit(1)


async def _diff(
    asked: tuple[Request, Request],
    projections: list[Projection[Any]],
    origin: Origin,
    *,
    from_start: bool,
) -> tuple[str, Points, list[RowChange]]:
    wanted = {each.name for each in projections}
    changes: list[RowChange] = []
    async with origin.opened() as (journal, database):
        points = await point_of(journal, asked[0]), await point_of(journal, asked[1])
        notes = list(origin.notes)
        sizes = points[0].size, points[1].size
        begin = from_the_start if from_start or database is None else Beginning(database)
        parts = parts_of(projections)
        with undisturbed(), console.folding(max(sizes) * len(parts)) as advanced:
            for part in parts:
                rulings, skips = await decided(database, journal, part, max(sizes))
                notes += map(str, skips)
                found = await diff(
                    journal, part, *sizes, rulings=rulings, advanced=advanced, begin=begin
                )
                changes += (each for each in found if each.table in wanted)
    begun = begin.sizes if isinstance(begin, Beginning) else {}
    first = msgspec.structs.replace(points[0], snapshots=begun)
    return journal.name, (first, msgspec.structs.replace(points[1], notes=notes)), changes


def _described(journal: str, points: Points) -> dict[str, Any]:
    described = [{k: v for k, v in p.described(journal).items() if k != "journal"} for p in points]
    return {"journal": journal, "from": described[0], "to": described[1]}


def _plain(change: RowChange) -> dict[str, Any]:
    """Return a change for JSON: the columns that differ, or a whole row that came or went."""
    answer: dict[str, Any] = {"table": change.table, "key": change.key, "change": change.kind}
    if change.before is not None and change.after is not None:
        columns = change.columns().items()
        return answer | {"columns": {name: [plain(a), plain(b)] for name, (a, b) in columns}}
    return answer | {"row": plain_values(change.before or change.after or {})}


def _write_json(out: IO[str], journal: str, points: Points, changes: list[RowChange]) -> None:
    answer = _described(journal, points)
    print(json_text(answer | {"changes": [_plain(each) for each in changes]}), file=out)


def _write_ndjson(out: IO[str], journal: str, points: Points, changes: list[RowChange]) -> None:
    print(json_text(_described(journal, points)), file=out)
    for each in changes:
        print(json_text(_plain(each)), file=out)


def _write_text(out: IO[str], journal: str, points: Points, changes: list[RowChange]) -> None:
    for word, point in zip(("from", "to"), points, strict=True):
        print(f"{word} journal {journal} as of {point}; root: {point.root_text}", file=out)
    for note in points[1].notes:
        print(f"note: {note}", file=out)
    counted = Counter((each.table, each.kind) for each in changes)
    for table in dict.fromkeys(each.table for each in changes):
        kinds = ", ".join(f"{counted[table, kind]:,} {kind}" for kind in SIGNS)
        print(f"\n{table}: {kinds}", file=out)
        for each in changes:
            if each.table == table:
                print("\n".join(_lines(each)), file=out)
    if not changes:
        print("\nno differences", file=out)


def _lines(change: RowChange) -> Iterator[str]:
    yield f"{SIGNS[change.kind]} {change.key}"
    for column, (old, new) in change.columns().items():
        texts = as_text(old), as_text(new)
        if is_shown(column) and texts[0] != texts[1]:
            yield f"    {column}: " + (
                " -> ".join(texts) if change.kind == CHANGED else texts[change.kind == ADDED]
            )


_WRITERS = {
    LineFormat.TABLE: _write_text,
    LineFormat.JSON: _write_json,
    LineFormat.NDJSON: _write_ndjson,
}
