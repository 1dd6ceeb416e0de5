"""The audit trail of orders: each event of each order, with the state that it led to."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ledger.domain.orders import (
    Action,
    OrderAccepted,
    OrderCancelled,
    OrderCancelRequested,
    OrderEvent,
    OrderFilled,
    OrderPlaced,
    OrderReplaced,
    OrderReplaceRequested,
    OrderType,
)
from ledger.domain.users import UserRegistered
from ledger.event import Amount, Event, Metadata, NewEvent, VenueAmount, event_types
from ledger.journal import Journal
from projections.groups import TRADING
from projections.model import values_of
from projections.orders import Order, orders
from projections.rendering import plain
from projections.reports import order_trail
from projections.reports.order_trail import ACTIVITIES, COLUMNS, KINDS
from projections.reports.writing import Format
from tests.ledger.support import an_id
from tests.projections.random_events import random_events
from tests.projections.reports.support import lines_of, reported
from tests.projections.support import append

ROOT = Path(__file__).parents[3]
ORDER, USER = an_id("order"), an_id("user")
LIVE = {
    "venue_order_id": "venue_order_id",
    "order_type": "order_type",
    "filled_quantity": "exact_filled_quantity",
    "order_quantity": "exact_quantity",
    "order_price": "exact_price",
    "ord_status": "ord_status",
    "status": "status",
    "closes_position_id": "closes_position_id",
}
"""Columns of the trail, and those of the table that must say the same."""


def test_every_event_of_an_order_has_a_name() -> None:
    """A new type of event must be given one."""
    own = {each for each in event_types().values() if issubclass(each, OrderEvent)}
    assert set(ACTIVITIES) == {each for each in own if each.__module__.startswith("ledger.domain")}
    assert len(set(ACTIVITIES.values())) == len(ACTIVITIES)


def test_every_column_is_described() -> None:
    """docs/reports.md has the columns in their order, with what they say."""
    text = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
    rows = [f"| `{name}` | {says} | {KINDS[name]} |" for name, says in COLUMNS.items()]
    assert "\n".join(rows) in text
    assert all(f"`{name}`" in text for name in ACTIVITIES.values())


async def test_an_erased_address_is_missing(journal: Journal) -> None:
    """The rest of the trail is as it was."""
    metadata = Metadata(ip_address="192.0.2.7")
    registered = UserRegistered(user_id=USER, username="ann")
    for event in (registered, *life()):
        await journal.append(NewEvent(event, metadata=metadata))
    before = await lines_of("orders", journal)
    assert {line["ip_address"] for line in before} == {"192.0.2.7"}
    await journal.privacy.destroy(f"user-{USER}")
    assert await lines_of("orders", journal) == [line | {"ip_address": None} for line in before]


def life() -> list[Event]:
    """Return an order that is changed, filled in part and cancelled."""
    placed = OrderPlaced(
        order_id=ORDER, user_id=USER, token="BTC", action=Action.BUY, order_type=OrderType.LIMIT,
        quantity=Amount("10"), price=Amount("1.50"), strategy="s", closes_position_id=an_id("p"),
    )  # fmt: skip
    filled = OrderFilled(
        order_id=ORDER, fill_id="f1", token="BTC", action=Action.BUY, price=VenueAmount("1.4"),
        quantity=VenueAmount("2.5"), user_id=USER, fee=VenueAmount("-0.1"),
    )  # fmt: skip
    return [
        placed,
        OrderAccepted(order_id=ORDER, venue_order_id="v1"),
        OrderReplaceRequested(order_id=ORDER, quantity=Amount("8")),
        OrderReplaced(order_id=ORDER, quantity=VenueAmount("8")),
        filled,
        OrderCancelRequested(order_id=ORDER),
        OrderCancelled(order_id=ORDER, reason="user"),
    ]


async def test_the_life_of_an_order(journal: Journal) -> None:
    """What happened, what the event names, and what is left."""
    await append(journal, life())
    lines = await lines_of("orders", journal)
    seen = ("activity", "event_quantity", "event_price", "order_quantity", "leaves_quantity",
            "ord_status")  # fmt: skip
    assert [tuple(line[name] for name in seen) for line in lines] == [
        ("received", None, None, "10", "10", "PendingNew"),
        ("routed", None, None, "10", "10", "New"),
        ("modification_requested", "8", None, "10", "10", "New"),
        ("modified", "8", None, "8", "8", "New"),
        ("executed", "2.5", "1.4", "8", "5.5", "PartiallyFilled"),
        ("cancel_requested", None, None, "8", "5.5", "PartiallyFilled"),
        ("cancelled", None, None, "8", "0", "Canceled"),
    ]
    assert {line["order_id"] for line in lines} == {str(ORDER)}
    assert {line["closes_position_id"] for line in lines} == {str(an_id("p"))}
    assert [line["venue_order_id"] for line in lines] == [None] + ["v1"] * 6


async def test_a_line_in_full(journal: Journal) -> None:
    """Every column of one event."""
    ids = {name: an_id(name) for name in ("correlation_id", "causation_id")}
    metadata = Metadata(**ids, request_id="r", actor="a", ip_address="2001:db8::7")
    await journal.append([NewEvent(each, metadata=metadata) for each in life()])
    recorded = [each async for each in journal.read()][4]
    line = (await lines_of("orders", journal))[4]
    assert list(line) == list(COLUMNS) == list(KINDS)
    assert {name: value for name, value in line.items() if value is not None} == {
        "journal": "main",
        "offset": 4,
        "version": 5,
        "event_id": str(recorded.event_id),
        "event_type": "OrderFilled",
        "activity": "executed",
        "occurred_at": plain(recorded.occurred_at),
        "recorded_at": plain(recorded.recorded_at),
        "order_id": str(ORDER),
        "venue_order_id": "v1",
        "user_id": str(USER),
        "actor": "a",
        "token": "BTC",
        "side": "buy",
        "order_type": "limit",
        "order_quantity": "8",
        "order_price": "1.5",
        "event_quantity": "2.5",
        "event_price": "1.4",
        "fee": "-0.1",
        "fill_id": "f1",
        "filled_quantity": "2.5",
        "leaves_quantity": "5.5",
        "ord_status": "PartiallyFilled",
        "status": "partially_filled",
        "closes_position_id": str(an_id("p")),
        "request_id": "r",
        "correlation_id": str(an_id("correlation_id")),
        "causation_id": str(an_id("causation_id")),
        "ip_address": "2001:db8::7",
        "journal_size": 7,
    }


@pytest.mark.parametrize(("seed", "kept_max"), [(1, 20_000), (2, 3), (3, 1)])
async def test_the_trail_says_what_the_table_says(
    sqlite_journal: Journal, monkeypatch: pytest.MonkeyPatch, seed: int, kept_max: int
) -> None:
    """After each event of any history, also where orders are forgotten and read again."""
    monkeypatch.setattr(order_trail, "ORDERS_KEPT_MAX", kept_max)
    await append(sqlite_journal, random_events(Random(seed), 400, odd_chance=0.1))
    lines = {line["offset"]: line for line in await lines_of("orders", sqlite_journal)}
    state = TRADING.state(sqlite_journal.journal_id, sqlite_journal.name)
    flags: dict[Any, dict[str, int]] = {}
    seen = misfits = 0
    async for recorded in sqlite_journal.read():
        TRADING.fold(state, [recorded])
        if isinstance(recorded.event, OrderEvent):
            row = state.rows(Order).get(recorded.event.order_id)
            assert row is not None
            line, values = lines.pop(recorded.offset), values_of(row)
            own = {name: line[name] for name in LIVE}
            assert own == {name: plain(values[column]) for name, column in LIVE.items()}, line
            before = flags.get(row.order_id, {})
            flags[row.order_id] = dict(row.flags)
            gained = {name for name, count in row.flags.items() if count > before.get(name, 0)}
            if type(recorded.event) in orders.handlers:  # the table leaves out our own requests
                assert {line["misfit"]} - {None} == {each for each in gained if is_misfit(each)}
            misfits += line["misfit"] is not None
            seen += 1
    assert not lines
    assert seen > 50
    assert misfits > 5


def is_misfit(flag: str) -> bool:
    """Whether a flag says that an event did not fit the order's state, not what it amounts to."""
    return ":" in flag or flag in (
        "accepted_again",
        "triggered_again",
        "placed_again",
        "placed_late",
    )


async def test_a_report_may_begin_in_the_middle_of_an_order(journal: Journal) -> None:
    """What came before is known all the same."""
    await append(journal, life())
    whole, late = await lines_of("orders", journal), await lines_of("orders", journal, "4")
    assert late == whole[4:]
    early = await lines_of("orders", journal, "1", "3")
    assert early == [line | {"journal_size": 3} for line in whole[1:3]]


async def test_csv_and_ndjson_say_the_same(sqlite_journal: Journal) -> None:
    """Any text survives, and nothing is not the same as an empty text."""
    odd = OrderCancelled(order_id=ORDER, reason='a "quoted", long\nreason ä ')
    empty = OrderCancelled(order_id=ORDER, reason="")
    await append(sqlite_journal, [*life(), odd, empty])
    text, _ = await reported("orders", sqlite_journal, Format.CSV)
    rows = list(csv.DictReader(io.StringIO(text.decode(), newline="")))
    lines = await lines_of("orders", sqlite_journal)
    assert [list(row.values()) for row in rows] == [
        [as_csv(value) for value in line.values()] for line in lines
    ]
    assert list(rows[0]) == list(COLUMNS)
    assert b',"",' in text.splitlines()[-1]
    assert not text.splitlines()[1].count(b'""')


def as_csv(value: Any) -> str:
    """Return a JSON value as the text of a field."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("lines_at_once", [1, 3, 10_000])
async def test_parquet_says_the_same(
    sqlite_journal: Journal, monkeypatch: pytest.MonkeyPatch, lines_at_once: int
) -> None:
    """With types of its own for times, numbers and booleans; amounts are exact text."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    monkeypatch.setattr("projections.reports.span.CHUNK_SIZE", 2)
    monkeypatch.setattr("projections.reports.writing.ROWS_AT_ONCE", lines_at_once)
    await append(sqlite_journal, life())
    found, _ = await reported("orders", sqlite_journal, Format.PARQUET)
    table = parquet.read_table(io.BytesIO(found))
    rows = [{name: plain(value) for name, value in row.items()} for row in table.to_pylist()]
    assert rows == await lines_of("orders", sqlite_journal)
    assert str(table.schema.field("occurred_at").type) == "timestamp[us, tz=UTC]"
    assert str(table.schema.field("order_price").type) == "string"
    assert table.schema.names == list(COLUMNS)
