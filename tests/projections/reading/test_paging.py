"""Filters, orders and cursors: the same rows from a database and from a fold."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.settings import Settings
from projections.database import Database
from projections.model import ReadModel, values_of
from projections.orders import orders
from projections.points import InvalidRequest
from projections.reading.filtering import (
    filter_pattern,
    named_filter_pattern,
    operators_of,
    visible_columns,
)
from projections.reading.paging import CursorUnknown, Filter, Query, Selection, parsed_sort
from projections.sort_keys import amount_key
from projections.users import users
from tests.projections.support import an_id

START = datetime(2026, 1, 1, tzinfo=UTC)
JOURNAL_ID = 1

AMOUNTS = st.sampled_from(
    [None, *map(Decimal, ("0", "1", "-1", "1.5", "-1.5", "10", "9.99999999", "0.00000001", "100"))]
)
TEXTS = st.sampled_from([None, "", "a", "B", "ab", "ä", "Z", "%", "a_b", "null:x", "true"])
ROWS = st.fixed_dictionaries(
    {
        "token": TEXTS,
        "quantity": AMOUNTS,
        "amount_in": AMOUNTS,
        "raw_amount_in": AMOUNTS,
        "reduce_only": st.booleans(),
        "slippage_bps": st.sampled_from([None, 0, 5, -5, 2**62]),
        "expires_at": st.sampled_from([None, START, START + timedelta(microseconds=1)]),
        "closes_position_id": st.sampled_from([None, an_id("a"), an_id("b")]),
        "flags": st.sampled_from([{}, {"overfill": 1}, {"overfill": 2, "ä": 1}]),
        "extra_data": st.sampled_from([None, {}, {"a": "b"}]),
    }
)
"""Values of columns of all types in orders, NULL where they may be; what is not there is fixed."""

VALUES = {
    "token": ["a", "ab", "B", "", "%", "_", "ä"],
    "quantity": ["1", "1.0", "1.50", "-1.5", "0", "0.000000010"],
    "amount_in": ["10", "-1"],
    "raw_amount_in": ["9.99999999", "100.0"],
    "reduce_only": ["true", "false"],
    "slippage_bps": ["5", "-5", "0"],
    "expires_at": ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00.000001+01:00"],
    "closes_position_id": [str(an_id("a")), str(an_id("c")).upper()],
    "flags": ["overfill", "ä"],
    "extra_data": ["a"],
}
COLUMNS = {each.name: each for each in visible_columns(orders) if each.name in VALUES}


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    """Return any filter on one of those columns."""
    name = draw(st.sampled_from(sorted(COLUMNS)))
    operator = draw(st.sampled_from(operators_of(COLUMNS[name])))
    value = st.sampled_from(VALUES[name])
    if operator == "null":
        return Filter(name, operator, draw(st.sampled_from(["true", "false"])))
    if operator == "in":
        return Filter(name, operator, ",".join(draw(st.lists(value, min_size=1, max_size=3))))
    return Filter(name, operator, draw(value))


SORTS = st.lists(
    st.tuples(
        st.sampled_from([name for name in COLUMNS if name not in ("flags", "extra_data")]),
        st.booleans(),
    ),
    max_size=3,
    unique_by=lambda each: each[0],
)


def an_order(number: int, values: dict[str, Any]) -> ReadModel:
    """Return a row as a fold has it, or as a lens has it, where ids are text."""
    fixed = {
        "journal_id": JOURNAL_ID,
        "order_id": an_id(f"order {number}"),
        "changed_size": number,
        "created_at": START,
        "updated_at": START,
        "status": "pending",
        "ord_status": "New",
    }
    return orders.row(**fixed, **values)


class Rows:
    """Rows of orders in a database, without what they refer to; one engine for all examples."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._database = Database(Settings(database_url=url), checks_foreign_keys=False)

    def close(self) -> None:
        """Let go of the database."""
        self._runner.run(self._database.close())
        self._runner.close()

    def selected(self, rows: Sequence[ReadModel], queries: Sequence[Query]) -> list[list[UUID]]:
        """Return the keys of all rows of each query, page by page, from the database."""
        return self._runner.run(self._selected(rows, queries))

    async def _selected(
        self, rows: Sequence[ReadModel], queries: Sequence[Query]
    ) -> list[list[UUID]]:
        async with self._database.engine.connect() as connection:
            await connection.execute(orders.table.insert(), list(map(values_of, rows)))
            found = [await self._walk(connection, query) for query in queries]
            await connection.rollback()
        return found

    async def _walk(self, connection: Any, query: Query) -> list[UUID]:
        dialect, keys = connection.dialect.name, []
        for selection in walk(query):
            statement = selection.statement(JOURNAL_ID, dialect)
            page = [orders.row(*each) for each in await connection.execute(statement)]
            keys += [each.order_id for each in selection.send_back(page)]
        return keys


class _Walking(Selection):
    """A selection that is told what was found for it."""

    next_cursor: str | None = None

    def send_back(self, rows: Sequence[ReadModel]) -> Sequence[Any]:
        """Return a page's rows of those found, and note the cursor."""
        page, self.next_cursor = self.cut(rows, 0)
        return page


def walk(query: Query) -> Iterator[_Walking]:
    """Yield the selection of each page, which must be told what was found."""
    cursor = None
    while True:
        selection = _Walking(
            Query(query.table, query.filters, query.sort, cursor, query.limit), orders
        )
        yield selection
        cursor = selection.next_cursor
        if cursor is None:
            return


def picked(rows: Sequence[ReadModel], query: Query) -> list[UUID]:
    """Return the keys of all rows of a query, page by page, from rows of a fold."""
    keys: list[UUID] = []
    for selection in walk(query):
        keys += [UUID(str(each.order_id)) for each in selection.send_back(selection.pick(rows))]
    return keys


@pytest.fixture
def stored(database_url: str) -> Iterator[Rows]:
    """Where rows are put for one example at a time."""
    rows = Rows(database_url)
    yield rows
    rows.close()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROWS, min_size=1, max_size=12),
    asked=st.lists(st.tuples(st.lists(filters(), max_size=2), SORTS), min_size=1, max_size=6),
    limit=st.integers(1, 5),
    as_text=st.booleans(),
)
def test_a_database_and_a_fold_give_the_same_pages(
    stored: Rows, rows: list[dict[str, Any]], asked: list[Any], limit: int, as_text: bool
) -> None:
    """Filters of all columns and operators, any order, page by page: the same rows, each once."""
    made = [an_order(number, values) for number, values in enumerate(rows)]
    queries = [Query("orders", tuple(found), tuple(sort), limit=limit) for found, sort in asked]
    folded = [orders.row(**_as_text(values_of(each), as_text)) for each in made]
    found = stored.selected(made, queries)
    assert found == [picked(folded, query) for query in queries]
    for keys, query in zip(found, queries, strict=True):
        conditions = [each.on(orders) for each in query.filters]
        matching = [row for row in made if all(each.holds(row) for each in conditions)]
        assert sorted(keys) == sorted(values_of(row)["order_id"] for row in matching)


def _as_text(values: dict[str, Any], as_text: bool) -> dict[str, Any]:
    """Return the columns of a row, with ids as a lens has them if so wanted."""
    if not as_text:
        return values
    return {k: str(value) if isinstance(value, UUID) else value for k, value in values.items()}


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=6), min_size=2))
def test_keys_of_amounts_sort_as_the_amounts_do(amounts: list[Decimal]) -> None:
    """Of any two amounts the keys compare as they do, and are the same for equal ones."""
    for first, second in itertools.pairwise(amounts):
        keys = [amount_key(format(each, "f")) for each in (first, second)]
        assert (keys[0] < keys[1], keys[0] == keys[1]) == (first < second, first == second)  # type: ignore[operator]


@settings(max_examples=40)
@given(st.data())
def test_the_pattern_of_a_column_is_what_is_taken(data: st.DataObject) -> None:
    """Whatever matches the pattern that OpenAPI shows of a filter is taken."""
    column = data.draw(st.sampled_from([*visible_columns(orders), *visible_columns(users)]))
    projection = orders if column.table is orders.table else users
    text = data.draw(st.from_regex(filter_pattern(column), fullmatch=True).filter(_is_short))
    Filter.parsed(column.name, text).on(projection)


def _is_short(text: str) -> bool:
    return len(text) <= 1000 and not any("\ud800" <= each <= "\udfff" for each in text)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("password_hash", "a"),
        ("journal_id", "1"),
        ("nothing", "1"),
        ("permissions", "eq:a"),
        ("is_active", "lt:true"),
        ("is_active", "yes"),
        ("user_id", "in:a,b"),
        ("failed_login_attempts", "1.5"),
        ("failed_login_attempts", "1" * 30),
        ("created_at", "2026-01-01"),
        ("created_at", "2026-01-01T00:00:00"),
        ("username", "a\0b"),
        ("username", "x" * 1001),
    ],
)
def test_filters_that_make_no_sense_are_refused(column: str, text: str) -> None:
    """Hidden and unknown columns, operators and values that do not fit raise InvalidRequest."""
    with pytest.raises(InvalidRequest, match=column):
        Filter.parsed(column, text).on(users)


def test_texts_that_look_like_operators_can_be_asked_for() -> None:
    """An unknown operator is a part of the value; `eq:` in front leaves any text as it is."""
    assert Filter.parsed("book", "book:1:BTC") == Filter("book", "eq", "book:1:BTC")
    assert Filter.parsed("book", "eq:in:a") == Filter("book", "eq", "in:a")
    assert Filter.parsed("book", "null:perhaps") == Filter("book", "eq", "null:perhaps")
    assert parsed_sort("-created_at,token") == (("created_at", True), ("token", False))


def test_a_cursor_goes_with_its_own_question_only() -> None:
    """One of another table, order or point, or one that was made up, is no page."""
    rows = [an_order(number, {}) for number in range(3)]
    selection = Selection(Query("orders", sort=(("token", False),), limit=1), orders, "7")
    _, cursor = selection.cut(rows, 7)
    again = Query("orders", sort=(("token", False),), cursor=cursor, limit=1)
    assert Selection(again, orders, "7").size == 7
    made_up = base64.urlsafe_b64encode(
        json.dumps(["orders", "token,order_id", "7", 7, ["a", "b"]]).encode()
    )
    for query, at in (
        (again, None),
        (again, "8"),
        (Query("orders", cursor=cursor), "7"),
        (Query("orders", cursor="%"), None),
        (Query("orders", cursor="bm8"), None),
        (Query("orders", sort=(("token", False),), cursor=made_up.decode()), "7"),
    ):
        with pytest.raises(CursorUnknown):
            Selection(query, orders, at)


def test_filters_can_be_named_in_one_parameter() -> None:
    """The pattern of all filters takes each one of a column, with the column before it."""
    pattern = re.compile(named_filter_pattern(orders))
    for named in ("token:BTC", "token:in:a,b", "quantity:gt:-0.5", "flags:contains:overfill"):
        assert pattern.fullmatch(named)
    for other in ("quantity:many", "password_hash:a", "exact_size:1", "token", "flags:eq:a"):
        assert not pattern.fullmatch(other)
