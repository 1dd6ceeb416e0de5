"""Where reports go: standard output, or a new file that is there only when it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ledger.sqltypes import text_to_time
from projections.exporting import ROWS_AT_ONCE, ParquetMissing, replacing
from projections.reports.span import Span

Row = dict[str, Any]
Rows = AsyncIterator[tuple[list[Row], int]]
"""Lists of lines, each with the number of offsets that were read for it."""

_QUOTED = frozenset(',"\r\n')
_UNQUOTED_BOOLS = {True: "true", False: "false"}


class Format(StrEnum):
    """How the lines of a report are written."""

    CSV = "csv"
    NDJSON = "ndjson"
    PARQUET = "parquet"


class Kind(StrEnum):
    """What a column holds; amounts, ids and words are text."""

    TEXT = "text"
    INTEGER = "integer"
    TIME = "time"
    BOOLEAN = "boolean"


class Written(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a report was made of; written beside it as `<file>.about.json`.

    `root` is the Merkle root of the journal at `size` in base64, None where it is not sealed so
    far. `sha256` is that of the report's bytes.
    """

    report: str
    format: str
    journal: str
    first_offset: int
    size: int
    lines: int
    bytes: int
    sha256: str
    root: str | None = None
    provisional: bool = False

    def __str__(self) -> str:
        end = f"size {self.size:,}" + (" (provisional)" if self.provisional else "")
        return (
            f"report {self.report}: {self.lines:,} lines, journal {self.journal} from size "
            f"{self.first_offset:,} to {end}, root: {self.root or 'not sealed'}"
        )


class Binary(Protocol):
    """What bytes can be written to."""

    def write(self, data: bytes, /) -> Any:
        """Write all of it."""
        ...

    def flush(self) -> None:
        """Hand over what is still held back."""
        ...


class Counted:
    """Passes bytes on, and knows how many there were and their digest."""

    def __init__(self, file: Binary) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Write all of `data`; return how many bytes that are."""
        piece = bytes(data)
        self._file.write(piece)
        self._digest.update(piece)
        self.bytes += len(piece)
        return len(piece)

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self.bytes

    def flush(self) -> None:
        """Hand over what is still held back."""
        self._file.flush()

    def readable(self) -> bool:
        """Nothing can be read back."""
        return False

    def writable(self) -> bool:
        """Bytes can be written, one after the other."""
        return True

    def seekable(self) -> bool:
        """There is no way back."""
        return False

    @property
    def sha256(self) -> str:
        """The digest so far, in hexadecimal."""
        return self._digest.hexdigest()


Write = Callable[[Sequence[Row]], None]


@contextlib.contextmanager
def writing(output: Format, columns: Mapping[str, Kind], file: Counted) -> Iterator[Write]:
    """Give what writes lines in a format; the file is whole when this is left.

    Raises ParquetMissing where the library for that is not installed.
    """
    if output is Format.CSV:
        file.write(encode_csv([dict(zip(columns, columns, strict=True))], columns))
        yield lambda rows: _write(file, encode_csv(rows, columns))
    elif output is Format.NDJSON:
        yield lambda rows: _write(file, encode_ndjson(rows))
    else:
        with _parquet(columns, file) as write:
            yield write


def _write(file: Counted, data: bytes) -> None:
    file.write(data)


def encode_ndjson(rows: Sequence[Row]) -> bytes:
    """Return one JSON object a line."""
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def encode_csv(rows: Sequence[Row], columns: Mapping[str, Kind]) -> bytes:
    """Return lines of comma-separated values (RFC 4180, but lines end with a newline alone).

    NULL is an empty field, an empty text is in quotes.
    """
    lines = (",".join(_field(row[name]) for name in columns) + "\n" for row in rows)
    return "".join(lines).encode()


def _field(value: Any) -> str:
    if value is None:
        return ""
    text = _UNQUOTED_BOOLS[value] if isinstance(value, bool) else str(value)
    if text and _QUOTED.isdisjoint(text) and text == text.strip():
        return text
    return '"' + text.replace('"', '""') + '"'


@contextlib.contextmanager
def _parquet(columns: Mapping[str, Kind], file: Counted) -> Iterator[Write]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra, which few need and none waits for
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise ParquetMissing from error
    types = {
        Kind.TEXT: pa.string(),
        Kind.INTEGER: pa.int64(),
        Kind.TIME: pa.timestamp("us", tz="UTC"),
        Kind.BOOLEAN: pa.bool_(),
    }
    schema = pa.schema([pa.field(name, types[kind]) for name, kind in columns.items()])
    with pq.ParquetWriter(pa.PythonFile(file, "w"), schema, compression="zstd") as writer:
        waiting: list[Row] = []

        def write(rows: Sequence[Row], lines_min: int | None = None) -> None:
            waiting.extend(_arrow_row(row, columns) for row in rows)
            if len(waiting) >= (lines_min or ROWS_AT_ONCE):
                writer.write_batch(pa.RecordBatch.from_pylist(waiting, schema=schema))
                waiting.clear()

        yield write
        write((), lines_min=1)


def _arrow_row(row: Row, columns: Mapping[str, Kind]) -> Row:
    return {name: _arrow_value(row[name], kind) for name, kind in columns.items()}


def _arrow_value(value: Any, kind: Kind) -> Any:
    if value is None or kind in (Kind.INTEGER, Kind.BOOLEAN):
        return value
    return text_to_time(value) if kind is Kind.TIME else str(value)


async def write_report(
    name: str,
    span: Span,
    rows: Rows,
    output: Format,
    columns: Mapping[str, Kind],
    file: Binary,
    advanced: Callable[[int], None],
) -> Written:
    """Write a report to its end, list by list; `advanced` is told of the offsets read.

    Raises ParquetMissing, and what reading the journal raises.
    """
    counted, lines = Counted(file), 0
    with writing(output, columns, counted) as write:
        async for found, count in rows:
            write(found)
            lines += len(found)
            advanced(count)
    return Written(
        report=name,
        format=output,
        journal=span.journal,
        first_offset=span.start,
        size=span.size,
        lines=lines,
        bytes=counted.bytes,
        sha256=counted.sha256,
        root=span.root,
        provisional=span.provisional,
    )


@contextlib.contextmanager
def destination(path: Path | None) -> Iterator[Binary]:
    """Give the file to write to, standard output without a path.

    A file gets its name when all is written. Raises FileExists: it never replaces another.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with replacing(path) as part, part.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def about_file(path: Path) -> Path:
    """Return the file beside a report that says what it was made of."""
    return path.with_name(f"{path.name}.about.json")


def write_about(path: Path, written: Written) -> None:
    """Write what a report was made of beside it."""
    with destination(about_file(path)) as file:
        file.write(msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")
