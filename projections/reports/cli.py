"""The commands `replay.py report …`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ledger import console
from ledger.journal import Journal, open_journal
from ledger.options import JournalOption
from projections.exporting import FileExists
from projections.reports.ocsf import security_events
from projections.reports.order_trail import KINDS, order_trail
from projections.reports.span import Span, find_span
from projections.reports.writing import (
    Format,
    Kind,
    Rows,
    Written,
    about_file,
    destination,
    write_about,
    write_report,
)

app = console.Program(
    help="Write reports for others: security events as OCSF, the audit trail of orders."
)

POINT = "a size, or a time of recording such as 2026-11-23T14:38:00Z."
FromOption = Annotated[
    str | None, typer.Option("--from", help=f"Events after this point (by default all): {POINT}")
]
ToOption = Annotated[
    str | None, typer.Option("--to", help=f"Events up to this point (by default all): {POINT}")
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write this file, and what it was made of beside it."),
]
NdjsonOption = Annotated[bool, typer.Option("--json", help="Short for --format ndjson.")]

Report = Callable[[Journal, Span], Rows]


class SecurityFormat(StrEnum):
    """How security events are written."""

    NDJSON = "ndjson"


@app.command()
def security(
    first: FromOption = None,
    last: ToOption = None,
    output: Annotated[
        SecurityFormat, typer.Option("--format", help="How to write.")
    ] = SecurityFormat.NDJSON,
    as_json: NdjsonOption = False,
    file: OutputOption = None,
    journal: JournalOption = None,
) -> None:
    """Write the security events as OCSF, one JSON object a line."""
    chosen = Format.NDJSON if as_json else Format(output)
    _report("security", security_events, (first, last), chosen, {}, file, journal)


@app.command()
def orders(
    first: FromOption = None,
    last: ToOption = None,
    output: Annotated[Format, typer.Option("--format", help="How to write.")] = Format.CSV,
    as_json: NdjsonOption = False,
    file: OutputOption = None,
    journal: JournalOption = None,
) -> None:
    """Write the audit trail of orders: one line an event, with the state that it led to."""
    chosen = Format.NDJSON if as_json else output
    _report("orders", order_trail, (first, last), chosen, KINDS, file, journal)


def _report(
    name: str,
    report: Report,
    points: tuple[str | None, str | None],
    output: Format,
    columns: Mapping[str, Kind],
    file: Path | None,
    journal: str | None,
) -> None:
    if file is not None and about_file(file).exists():
        raise FileExists(about_file(file))
    written = console.run(_write(name, report, points, output, columns, file, journal))
    if file is not None:
        write_about(file, written)
    print(written, file=sys.stderr)


async def _write(
    name: str,
    report: Report,
    points: tuple[str | None, str | None],
    output: Format,
    columns: Mapping[str, Kind],
    file: Path | None,
    journal_name: str | None,
) -> Written:
    async with open_journal(console.load_settings(), journal_name) as journal:
        span = await find_span(journal, *points)
        rows = report(journal, span)
        with destination(file) as opened, console.folding(span.stop - span.start) as advanced:
            return await write_report(name, span, rows, output, columns, opened, advanced)
