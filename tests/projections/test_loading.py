"""Lines for COPY: whatever rows hold comes back as PostgreSQL reads it."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.groups import TRADING
from projections.loading import CsvEncoder
from projections.model import ReadModel, values_of
from projections.projection import Projection
from projections.rendering import plain_row
from projections.users import users
from tests.projections.random_events import random_events
from tests.projections.support import START, folded

FIELD = re.compile(r'(?:"((?:\\["\\]|[^"])*)"|([^",\n]*))([,\n])')
TEXTS = st.one_of(
    st.text(alphabet='\\"],[\n\r\t nul\x07\u2028é', max_size=8),
    st.sampled_from(["null", "\\N", "\\.", "]\n[", '\\"', '"', "\\", "{}"]),
)


def read(lines: bytes) -> list[list[str | None]]:
    """Return the fields as COPY understands them: an escape counts before a quote or an escape."""
    rows: list[list[str | None]] = [[]]
    for found in FIELD.finditer(text := lines.decode()):
        quoted, plain, end = found.groups()
        is_null = quoted is None and plain == "null"
        field = plain if quoted is None else re.sub(r'\\(["\\])', r"\1", quoted)
        rows[-1].append(None if is_null else field)
        rows += [[]] if end == "\n" else []
    assert sum(len(each[0]) for each in re.finditer(FIELD, text)) == len(text)
    assert rows.pop() == []
    return rows


def a_user(number: int, text: str | None) -> ReadModel:
    """Return a row that holds a text as text and within JSON."""
    return users.row(
        journal_id=1,
        user_id=str(number),
        username=text,
        email=text,
        permissions=[] if text is None else [text],
        created_at=START,
        updated_at=START,
        changed_size=number,
    )


@given(st.lists(st.one_of(st.none(), TEXTS), min_size=1, max_size=4))
def test_any_text_is_read_as_it_is(texts: list[str | None]) -> None:
    """Also where only some of the rows hold what has to be escaped in other ways than JSON does."""
    rows = [a_user(number, text) for number, text in enumerate(texts)]
    found = read(CsvEncoder(users)(rows))
    columns = list(values_of(rows[0]))
    for number, (fields, text) in enumerate(zip(found, texts, strict=True)):
        row = dict(zip(columns, fields, strict=True))
        assert (row["username"], row["email"]) == (text, text)
        assert (row["user_id"], row["changed_size"]) == (str(number), str(number))
        assert row["permissions"] == ("[]" if text is None else json_of(text))


def json_of(text: str) -> str:
    """Return the JSON array that holds a text."""
    return msgspec.json.encode([text]).decode()


@pytest.mark.parametrize("projection", TRADING.projections, ids=lambda each: str(each.name))
def test_every_row_has_its_line(projection: Projection[Any]) -> None:
    """Each line has as many fields as the table has columns, NULL where the row has None."""
    state = folded(random_events(Random(3), 900))
    rows = list(state.tables[projection.name])
    found = read(CsvEncoder(projection)(rows))
    assert len(found) == len(rows) > 0
    for row, fields in zip(rows, found, strict=True):
        shown = list(plain_row(row).values())
        assert [each is None for each in fields] == [each is None for each in shown]
