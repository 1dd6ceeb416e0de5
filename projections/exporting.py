"""Rows of read tables in the formats that other programs read: JSON lines, CSV, Parquet, SQLite.

Amounts are exact in all of them: decimal text in JSON, CSV and SQLite; in Parquet `decimal128` if
the column has a bounded precision, else text.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from ledger.errors import LedgerError
from ledger.sqltypes import ExactNumeric, UtcTimestamp, time_to_text
from projections.model import ReadModel, values_of
from projections.points import InvalidRequest, Point
from projections.projection import Projection
from projections.rendering import amount_text, plain, plain_row

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 10_000

_EMPTY: dict[type[Any], str] = {dict: "{}", list: "[]"}
_needs_quotes = re.compile(r'^$|[,"\r\n]|^\s|\s$').search
_FORMULA = re.compile(r"^(?=[=+\-@\t\r])")
_FORMULA_WITHIN = re.compile(r"(?<=[,;\t])(?=\s*[=+\-@])")

Tables = Mapping[str, tuple[Projection[Any], Sequence[ReadModel]]]
"""Rows, and the projection whose they are, by the names of tables."""


class ParquetMissing(LedgerError):
    """Parquet files are written by a library that is not installed."""

    exit_code = 3

    def __init__(self) -> None:
        super().__init__(
            "--format parquet needs pyarrow, which is not installed: pip install pyarrow, or the "
            "extra trading-ledger[parquet]"
        )


class FileExists(InvalidRequest):
    """An answer never replaces a file."""

    def __init__(self, file: Path) -> None:
        super().__init__(f"--output: {file} exists already; remove it or name another")


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a new file's name, under which it is written; it gets its own when it is whole.

    Raises FileExists, also where somebody else has made the file meanwhile.
    """
    if file.exists():
        raise FileExists(file)
    part = file.with_name(f"{file.name}.{uuid4().hex[:8]}.part")
    try:
        yield part
        _appear(part, file)
    finally:
        part.unlink(missing_ok=True)


def _appear(part: Path, file: Path) -> None:
    try:
        os.link(part, file)  # unlike a rename, it never replaces
    except FileExistsError as error:
        raise FileExists(file) from error
    except OSError:  # a file system without links
        if file.exists():
            raise FileExists(file) from None
        part.rename(file)


def only_one(tables: Tables, output: str) -> tuple[Projection[Any], Sequence[ReadModel]]:
    """Return the only table; InvalidRequest where there are several and a format holds one."""
    if len(tables) != 1:
        raise InvalidRequest(f"--format {output} holds one table: name it with --table")
    [found] = tables.values()
    return found


def json_text(value: Any) -> str:
    """Return one line of JSON."""
    return json.dumps(value, ensure_ascii=False, default=_json_value)


def _json_value(value: Any) -> Any:
    shown = plain(value)
    if shown is value:
        raise TypeError(f"no column can hold {type(value).__name__}")
    return shown


def write_ndjson(file: IO[str], journal: str, point: Point, tables: Tables) -> None:
    """Write a line that names the point, then one for each row, with its table."""
    file.write(json_text(point.described(journal)) + "\n")
    for name, (_, rows) in tables.items():
        for row in rows:
            file.write(json_text({"table": name, "row": plain_row(row)}) + "\n")


def write_csv(file: IO[str], journal: str, point: Point, tables: Tables) -> None:
    """Write a comment that names the point, a line of columns, and one for each row.

    NULL is an empty field, an empty text is in quotes; lists and objects are JSON.
    """
    projection, rows = only_one(tables, "csv")
    columns = list(projection.table.columns)
    file.write(csv_head(journal, point, columns))
    file.writelines(map(csv_line_of(columns), rows))


def for_sheets(text: str) -> str:
    """Return a text that spreadsheets do not compute: `'` goes before what begins like a formula.

    Others than the reader choose texts: names of users and of keys, tokens, reasons.
    """
    return _FORMULA.sub("'", text)


def comment_for_sheets(text: str) -> str:
    """Return a comment as one line, of which no cell of a spreadsheet is computed."""
    return _FORMULA_WITHIN.sub("'", " ".join(text.splitlines()))


def csv_head(
    journal: str,
    point: Point,
    columns: Sequence[sa.Column[Any]],
    *,
    is_for_sheets: bool = False,
) -> str:
    """Return the comment that names the point, and the line of columns."""
    comment = "; ".join(point.heading(journal))
    if is_for_sheets:
        comment = comment_for_sheets(comment)
    return f"# {comment}\n" + ",".join(each.name for each in columns) + "\n"


def csv_line_of(
    columns: Sequence[sa.Column[Any]], *, is_for_sheets: bool = False
) -> Callable[[ReadModel], str]:
    """Return what writes these columns of a row, two or more, as a line.

    For spreadsheets texts are not exact: they are made by `for_sheets`.
    """
    text = _csv_sheet_text if is_for_sheets else _csv_text
    fields = [_csv_field_of(column.type, text) for column in columns]
    values_of_row = attrgetter(*(column.name for column in columns))

    def line(row: ReadModel) -> str:
        values = zip(fields, values_of_row(row), strict=True)
        return ",".join(["" if v is None else field(v) for field, v in values]) + "\n"

    return line


def _csv_field_of(column_type: Any, text: Callable[[str], str]) -> Callable[[Any], str]:
    """Return the function that writes a value of a column which is not NULL."""
    if isinstance(column_type, ExactNumeric):
        return amount_text
    if isinstance(column_type, UtcTimestamp):
        return time_to_text
    if isinstance(column_type, sa.Boolean):
        return _csv_flag
    if isinstance(column_type, sa.Integer | sa.Uuid):
        return str
    return _csv_json if isinstance(column_type, sa.JSON) else text


def _csv_flag(value: bool) -> str:
    return "true" if value else "false"


def _csv_json(value: Any) -> str:
    return _csv_text(json.dumps(value, ensure_ascii=False)) if value else _EMPTY[type(value)]


def _csv_text(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _needs_quotes(text) else text


def _csv_sheet_text(text: str) -> str:
    return _csv_text(for_sheets(text))


def write_sqlite(file: Path, journal: str, point: Point, tables: Tables) -> None:
    """Write a SQLite file with the declared tables, and `as_of`, which names the point."""
    engine = sa.create_engine(f"sqlite:///{file}")
    try:
        with engine.begin() as connection:
            about = _about()
            about.create(connection)
            described = {name: _about_text(v) for name, v in point.described(journal).items()}
            rows = [{"name": name, "value": value} for name, value in described.items()]
            connection.execute(sa.insert(about), rows)
            for projection, found in tables.values():
                _fill(connection, projection, found)
    finally:
        engine.dispose()


def _about() -> sa.Table:
    name = sa.Column("name", sa.String, primary_key=True)
    return sa.Table("as_of", sa.MetaData(), name, sa.Column("value", sa.String))


def _about_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _fill(
    connection: sa.Connection, projection: Projection[Any], rows: Iterable[ReadModel]
) -> None:
    """Make a table with the declared columns and indexes, without the keys to other tables."""
    table = projection.table.to_metadata(sa.MetaData())
    for constraint in list(table.foreign_key_constraints):
        table.constraints.remove(constraint)
        for key in constraint.elements:
            table.foreign_keys.discard(key)
            key.parent.foreign_keys.discard(key)
    table.create(connection)
    ids = [each.name for each in table.columns if isinstance(each.type, sa.Uuid)]
    remaining = iter(rows)
    while piece := list(islice(remaining, ROWS_AT_ONCE)):
        connection.execute(sa.insert(table), [_bound(row, ids) for row in piece])


def _bound(row: ReadModel, ids: Iterable[str]) -> dict[str, Any]:
    values = values_of(row)
    for name in ids:
        if values[name] is not None:
            values[name] = UUID(str(values[name]))
    return values


def write_parquet(file: Path, journal: str, point: Point, tables: Tables) -> None:
    """Write one table as a Parquet file, whose metadata name the point; raises ParquetMissing."""
    projection, rows = only_one(tables, "parquet")
    columns = list(projection.table.columns)
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra, which few need and none waits for
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise ParquetMissing from error
    about = {f"ledger.{k}": _about_text(v) or "" for k, v in point.described(journal).items()}
    fields = [
        pa.field(column.name, _arrow_type(column.type), column.nullable) for column in columns
    ]
    schema = pa.schema(fields, metadata=about)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        remaining = iter(rows)
        while piece := list(islice(remaining, ROWS_AT_ONCE)):
            writer.write_batch(_batch(schema, columns, piece))


def _batch(
    schema: pa.Schema, columns: Sequence[sa.Column[Any]], rows: Sequence[ReadModel]
) -> pa.RecordBatch:
    import pyarrow as pa  # noqa: PLC0415

    arrays = [
        pa.array((_arrow_value(getattr(row, column.name), column.type) for row in rows), field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _arrow_type(column_type: Any) -> pa.DataType:
    """Return the Arrow type of a column; what has none of its own is text."""
    import pyarrow as pa  # noqa: PLC0415

    if isinstance(column_type, ExactNumeric):
        bounds = column_type.precision, column_type.scale
        return pa.string() if None in bounds else pa.decimal128(*bounds)
    if isinstance(column_type, UtcTimestamp):
        return pa.timestamp("us", tz="UTC")
    if isinstance(column_type, sa.Boolean):
        return pa.bool_()
    return pa.int64() if isinstance(column_type, sa.Integer) else pa.string()


def _arrow_value(value: Any, column_type: Any) -> Any:
    if value is None:
        return None
    if isinstance(column_type, ExactNumeric):
        return value if column_type.precision is not None else amount_text(value)
    if isinstance(column_type, sa.JSON):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(column_type, UtcTimestamp | sa.Boolean | sa.Integer):
        return value
    return str(value)
