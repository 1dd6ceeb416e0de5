"""Tables in other programs' formats: all columns, exact, and named by journal, size and root."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from ledger.sqltypes import ExactNumeric, UtcTimestamp
from projections.exporting import (
    FileExists,
    ParquetMissing,
    Tables,
    comment_for_sheets,
    csv_line_of,
    for_sheets,
    replacing,
    write_csv,
    write_ndjson,
    write_parquet,
    write_sqlite,
)
from projections.fold import Group
from projections.groups import GROUPS
from projections.model import values_of
from projections.points import InvalidRequest, Point
from projections.projection import Projection
from projections.rendering import plain, plain_row
from tests.projections.random_events import random_events
from tests.projections.support import folded

POINT = Point(300, datetime(2026, 3, 2, tzinfo=UTC), root=bytes(range(32)), notes=["a note"])
ROOT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def tables_of(group: Group) -> Iterator[tuple[str, tuple[Projection[Any], list[Any]]]]:
    """Yield the tables of a group after a random history."""
    state = folded(random_events(Random(11), 300, 0.1), group)
    for each in group.projections:
        yield each.name, (each, list(group.finished(state, each.name)))


@pytest.fixture(scope="module")
def tables() -> Tables:
    """All tables, with absurd amounts, NULLs and flags."""
    return {name: found for group in GROUPS.values() for name, found in tables_of(group)}


def test_ndjson_names_the_point_then_each_row(tables: Tables) -> None:
    """One object a line: the point, then rows with the names of their tables."""
    out = io.StringIO()
    write_ndjson(out, "main", POINT, tables)
    first, *lines = map(json.loads, out.getvalue().splitlines())
    assert first == {
        "journal": "main",
        "size": 300,
        "root": ROOT,
        "recorded_at": "2026-03-02T00:00:00.000000Z",
        "provisional": False,
        "notes": ["a note"],
    }
    expected = [
        {"table": name, "row": json.loads(json.dumps(plain_row(row)))}
        for name, (_, rows) in tables.items()
        for row in rows
    ]
    assert lines == expected


def test_csv_has_every_value_as_text(tables: Tables) -> None:
    """A comment, the columns, and rows that any reader of CSV reads back; NULL is empty."""
    for name, found in tables.items():
        out = io.StringIO()
        write_csv(out, "main", POINT, {name: found})
        comment, rest = out.getvalue().split("\n", 1)
        assert comment.startswith("# journal main as of size 300, recorded at or before 2026-03-02")
        assert comment.endswith(f"; root: {ROOT}; note: a note")
        columns, *rows = csv.reader(io.StringIO(rest))
        assert columns == list(found[0].columns)
        assert rows == [
            [_csv_text(plain(value)) for value in values_of(row).values()] for row in found[1]
        ]
    with pytest.raises(InvalidRequest, match="--format csv holds one table"):
        write_csv(io.StringIO(), "main", POINT, tables)


def _csv_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize(
    ("column", "value", "field"),
    [
        ("strategy", None, ""),
        ("strategy", "", '""'),
        ("strategy", "a", "a"),
        ("strategy", " a", '" a"'),
        ("strategy", 'say "x", y', '"say ""x"", y"'),
        ("strategy", "two\nlines", '"two\nlines"'),
        ("price", Decimal("1.50"), "1.5"),
        ("price", Decimal("1E+3"), "1000"),
        ("reduce_only", True, "true"),
        ("reduce_only", False, "false"),
        ("stage", 0, "0"),
        ("flags", {"ä": 1}, '"{""ä"": 1}"'),
        ("flags", {}, "{}"),
    ],
)
def test_csv_fields(tables: Tables, column: str, value: Any, field: str) -> None:
    """Empty text can be told from NULL, and what would break a line is quoted."""
    projection = tables["orders"][0]
    others = dict.fromkeys(projection.columns)
    out = io.StringIO()
    changed = projection.row(**others | {column: value})
    write_csv(out, "main", POINT, {"orders": (projection, [changed])})
    place = projection.columns.index(column)
    line = "," * place + field + "," * (len(projection.columns) - place - 1)
    assert out.getvalue().split("\n", 2)[2] == line + "\n"


def test_sqlite_holds_the_declared_tables(tables: Tables, tmp_path: Path) -> None:
    """The same tables and columns as the live ones, with the very same values, and the point."""
    file = tmp_path / "tables.db"
    write_sqlite(file, "main", POINT, tables)
    engine = sa.create_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        for projection, rows in tables.values():
            found = connection.execute(sa.select(*projection.table.columns)).mappings()
            by_key = {row[projection.key]: dict(row) for row in found}
            assert by_key == {getattr(row, projection.key): values_of(row) for row in rows}
    engine.dispose()
    with closing(sqlite3.connect(file)) as raw:
        about = dict(raw.execute("SELECT name, value FROM as_of"))
        assert (about["journal"], about["size"], about["root"]) == ("main", "300", ROOT)
        texts = raw.execute("SELECT exact_size FROM positions").fetchall()
        assert {type(text) for (text,) in texts} == {str}


def test_ids_that_are_text_are_stored_as_ids(tables: Tables, tmp_path: Path) -> None:
    """Rows of a fold through a lens, whose ids are text, make the same file."""
    projection, rows = tables["orders"]
    texts = [
        projection.row(
            **{k: str(v) if isinstance(v, UUID) else v for k, v in values_of(row).items()}
        )
        for row in rows
    ]
    for name, given in (("ids", rows), ("texts", texts)):
        write_sqlite(tmp_path / name, "main", POINT, {"orders": (projection, given)})
    found = []
    for name in ("ids", "texts"):
        with closing(sqlite3.connect(tmp_path / name)) as raw:
            found.append(raw.execute("SELECT * FROM orders").fetchall())
    assert found[0] == found[1] != []


def test_parquet_is_exact(tables: Tables, tmp_path: Path) -> None:
    """Bounded amounts are decimals, others text; times, numbers and flags have their own types."""
    pq = pytest.importorskip("pyarrow.parquet")
    for name, (projection, rows) in tables.items():
        file = tmp_path / f"{name}.parquet"
        write_parquet(file, "main", POINT, {name: (projection, rows)})
        table = pq.read_table(file)
        assert table.schema.metadata[b"ledger.root"] == ROOT.encode()
        assert table.schema.metadata[b"ledger.size"] == b"300"
        assert table.column_names == list(projection.columns)
        expected = [_as_read(projection, row) for row in rows]
        assert table.to_pylist() == expected
    schema = pq.read_schema(tmp_path / "orders.parquet")
    assert str(schema.field("quantity").type) == "decimal128(20, 8)"
    assert str(schema.field("fees").type) == "decimal128(38, 16)"
    assert str(schema.field("exact_fees").type) == "string"
    assert str(schema.field("created_at").type) == "timestamp[us, tz=UTC]"
    assert not schema.field("order_id").nullable


def _as_read(projection: Projection[Any], row: Any) -> dict[str, Any]:
    return {
        column.name: _arrow(getattr(row, column.name), column.type)
        for column in projection.table.columns
    }


def _arrow(value: Any, column_type: Any) -> Any:
    if isinstance(column_type, sa.JSON) and value is not None:
        return json.dumps(value, ensure_ascii=False)
    if isinstance(column_type, ExactNumeric) and column_type.precision is not None:
        return value
    is_own = isinstance(column_type, UtcTimestamp | sa.Boolean | sa.Integer)
    return value if is_own else plain(value)


def test_without_the_library_it_is_said(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what to install, and is one of the environment."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ParquetMissing, match=r"trading-ledger\[parquet\]") as missing:
        write_parquet(tmp_path / "x", "main", POINT, {"users": tables["users"]})
    assert missing.value.exit_code == 3


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """What fails half-way leaves nothing, and a file that is there is never replaced."""
    file = tmp_path / "answer"

    def write(text: str, *, fails: bool = False) -> None:
        with replacing(file) as part:
            part.write_text(text)
            assert not file.exists()
            if fails:
                raise KeyError

    with pytest.raises(KeyError):
        write("half", fails=True)
    assert list(tmp_path.iterdir()) == []
    write("whole")
    with pytest.raises(FileExists, match="exists already"):
        write("other")
    late = replacing(tmp_path / "late")
    late.__enter__().write_text("other")
    (tmp_path / "late").write_text("first")
    with pytest.raises(FileExists):
        late.__exit__(None, None, None)
    assert (file.read_text(), (tmp_path / "late").read_text()) == ("whole", "first")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_looks_like_a_formula_is_a_text_in_spreadsheets(tables: Tables) -> None:
    """Only where a file is made for them, and never an amount or a time."""
    for text in ("=1+1", "+1", "-1", "@sum", "\tx", "\r=1"):
        assert for_sheets(text) == f"'{text}"
    for text in ("", "a=1", "'=1", "BTC-PERP", " =1"):
        assert for_sheets(text) == text
    assert comment_for_sheets("note: a,=1; -2\n+3") == "note: a,'=1;' -2 +3"
    projection, [order, *_] = tables["orders"]
    order = type(order)(**values_of(order) | {"token": '=A1&"x"', "price": Decimal(-3)})
    columns = list(projection.table.columns)
    for is_for_sheets, token in ((True, '\'=A1&"x"'), (False, '=A1&"x"')):
        line = csv_line_of(columns, is_for_sheets=is_for_sheets)(order)
        [fields] = csv.reader([line])
        row = dict(zip([each.name for each in columns], fields, strict=True))
        assert (row["token"], row["price"]) == (token, "-3")
