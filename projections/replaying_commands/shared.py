"""What the commands have in common: options, where tables come from, and how rows are printed."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import typer

from ledger.console import load_settings
from projections.cli import opened
from projections.database import Database
from projections.exporting import (
    Tables,
    json_text,
    replacing,
    write_csv,
    write_ndjson,
    write_parquet,
    write_sqlite,
)
from projections.folding import Source
from projections.groups import GROUPS, TABLES
from projections.model import ReadModel, values_of
from projections.points import InvalidRequest, Point
from projections.projection import Projection
from projections.published import open_published
from projections.rendering import as_text, plain_row


class Format(StrEnum):
    """How tables are given out."""

    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"
    PARQUET = "parquet"
    SQLITE = "sqlite"


class LineFormat(StrEnum):
    """How lists are given out."""

    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"


SizeOption = Annotated[int | None, typer.Option(help="After this many events.", min=0)]
RecordedOption = Annotated[
    str | None, typer.Option(help="At this time, such as 2026-11-23T14:38:00Z.")
]
AsJsonOption = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write to this new file.", dir_okay=False)
]


FromOption = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="DIR", help="A published log, a folder or a URL, instead of a database."
    ),
]
LogKeyOption = Annotated[
    str | None, typer.Option(metavar="VKEY", help="The key that must have signed the log.")
]

KEYLESS_NOTE = (
    "a published log holds no data keys, and LEDGER_KEYS_DATABASE_URL names no database of them: "
    "personal fields look erased"
)
UNSIGNED_NOTE = "the log is sound, but no --log-key was given that must have signed it"


class Origin(msgspec.Struct, frozen=True):
    """Where the events come from: a journal of the database, or else a published log."""

    journal: str | None = None
    directory: str | None = None
    log_key: str | None = None

    @property
    def notes(self) -> list[str]:
        """What has to be said about it."""
        if self.directory is None:
            return []
        unsigned = [UNSIGNED_NOTE] if self.log_key is None else []
        return unsigned + ([] if load_settings().keys_database_url else [KEYLESS_NOTE])

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[Source, Database | None]]:
        """Open it, and the read side's database, if there is one; raises InvalidRequest."""
        if self.directory is None:
            if self.log_key is not None:
                raise InvalidRequest("--log-key goes with --from")
            async with opened(self.journal) as (journal, database):
                yield journal, database
            return
        async with open_published(self.directory, self.log_key) as published:
            if self.journal not in (None, published.name):
                raise InvalidRequest(f"--journal: the log is one of journal {published.name!r}")
            yield published, None


class Condition(msgspec.Struct, frozen=True):
    """A column and the text of the value that it must have."""

    column: str
    text: str

    @classmethod
    def parsed(cls, text: str, projections: Iterable[Projection[Any]]) -> Condition:
        """Return the condition COLUMN=VALUE; InvalidRequest where a table has no such column."""
        column, equals, value = text.partition("=")
        for projection in projections:
            if not equals or column not in projection.columns:
                raise InvalidRequest(
                    f"--where: {text!r} is not COLUMN=VALUE with a column of {projection.name}: "
                    + ", ".join(projection.columns)
                )
        return cls(column, value)

    def holds(self, row: ReadModel) -> bool:
        """Whether the row's column has the value; amounts compare as numbers."""
        value = getattr(row, self.column)
        if isinstance(value, Decimal):
            return value == self._amount()
        wanted = self.text.lower() if isinstance(value, bool) else self.text
        return as_text(value) == wanted

    def _amount(self) -> Decimal:
        try:
            return Decimal(self.text)
        except InvalidOperation as error:
            raise InvalidRequest(f"--where: {self.text!r} is not an amount") from error


def named_tables(names: Sequence[str] | None) -> list[Projection[Any]]:
    """Return the tables of these names, all without any; raises InvalidRequest."""
    unknown = sorted(set(names or ()) - set(TABLES))
    if unknown:
        raise InvalidRequest(f"--table: {unknown[0]!r} is not one of {', '.join(TABLES)}")
    every = (each for group in GROUPS.values() for each in group.projections)
    return [each for each in every if not names or each.name in names]


def check_output(output: Format, file: Path | None) -> None:
    """Refuse to print what only a file can hold."""
    if file is None and output in (Format.PARQUET, Format.SQLITE):
        raise InvalidRequest(f"--format {output} needs --output FILE")


def write_tables(
    output: Format, file: Path | None, journal: str, point: Point, tables: Tables
) -> None:
    """Give out tables, on standard output or into a new file that appears when it is whole."""
    if file is None:
        _TEXTS[output](sys.stdout, journal, point, tables)
        return
    with replacing(file) as part:
        if output in _FILES:
            _FILES[output](part, journal, point, tables)
        else:
            with part.open("w", encoding="utf-8", newline="") as text:
                _TEXTS[output](text, journal, point, tables)


@contextmanager
def text_output(file: Path | None) -> Iterator[IO[str]]:
    """Give standard output, or a new file that appears when it is whole."""
    if file is None:
        yield sys.stdout
        return
    with replacing(file) as part, part.open("w", encoding="utf-8", newline="") as text:
        yield text


def _write_json(file: IO[str], journal: str, point: Point, tables: Tables) -> None:
    answer = point.described(journal)
    answer["tables"] = {
        name: [plain_row(row) for row in rows] for name, (_, rows) in tables.items()
    }
    print(json_text(answer), file=file)


def _write_text(file: IO[str], journal: str, point: Point, tables: Tables) -> None:
    print("\n".join(point.heading(journal)), file=file)
    for name, (_, rows) in tables.items():
        print(f"\n{name}: {len(rows)} rows", file=file)
        shown = [_shown(row) for row in rows]
        columns = [c for c in (shown[0] if shown else ()) if any(row[c] != "-" for row in shown)]
        print_aligned([columns, *([row[column] for column in columns] for row in shown)], file)


def print_aligned(lines: Sequence[Sequence[str]], file: IO[str] | None = None) -> None:
    """Print a table whose first line names the columns; nothing if there is nothing below it."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines if len(lines) > 1 else ():
        print("  ".join(map(str.ljust, line, widths)).rstrip(), file=file)


def is_shown(column: str) -> bool:
    """Whether people read a column."""
    return column != "journal_id" and not column.startswith("exact_")


def _shown(row: ReadModel) -> dict[str, str]:
    """Return the columns that people read, as text."""
    return {name: as_text(value) for name, value in values_of(row).items() if is_shown(name)}


_TEXTS: dict[Format, Callable[[IO[str], str, Point, Tables], None]] = {
    Format.TABLE: _write_text,
    Format.JSON: _write_json,
    Format.NDJSON: write_ndjson,
    Format.CSV: write_csv,
}
_FILES: dict[Format, Callable[[Path, str, Point, Tables], None]] = {
    Format.PARQUET: write_parquet,
    Format.SQLITE: write_sqlite,
}
