"""LOBSTER: order-book messages, and what the orders come to."""

from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from ledger.domain.marks import PriceMarked
from ledger.domain.orders import (
    Action,
    OrderAccepted,
    OrderCancelled,
    OrderFilled,
    OrderPlaced,
    OrderRestated,
)
from ledger.event import Event
from tests.examples.support import Line, convert, facts, write_csv
from tests.examples.test_adapters import LOBSTER_HEADER

Converted = Callable[[str], list[Line]]


def test_messages_become_events_one_by_one(
    converted: Converted, expected_counts: dict[str, Any]
) -> None:
    """Each type of message has its own event; a submitted order is placed and accepted."""
    messages = expected_counts["lobster_goog"]["messages"]
    assert Counter(map(type, facts(converted("lobster")))) == {
        OrderPlaced: messages["1"],
        OrderAccepted: messages["1"],
        OrderRestated: messages["2"],
        OrderCancelled: messages["3"],
        OrderFilled: messages["4"],
        PriceMarked: messages["5"],
    }


def test_submitted_orders_end_as_expected(
    converted: Converted, expected_counts: dict[str, Any]
) -> None:
    """End states and filled shares of the orders submitted in the file."""
    expected = expected_counts["lobster_goog"]
    by_order: dict[UUID, list[Event]] = defaultdict(list)
    for event in facts(converted("lobster")):
        if not isinstance(event, PriceMarked):
            by_order[event.order_id].append(event)
    submitted = [events for events in by_order.values() if isinstance(events[0], OrderPlaced)]
    assert len(submitted) == expected["orders_submitted"]
    assert Counter(map(_end_state, submitted)) == expected["final_states"]
    assert sum(map(_filled, submitted)) == expected["filled_shares_of_submitted_orders"]


def _filled(events: list[Event]) -> Decimal:
    return sum((e.quantity for e in events if isinstance(e, OrderFilled)), Decimal())


def _end_state(events: list[Event]) -> str:
    """Name the end state in the words of the expected tallies."""
    placed, filled = events[0], _filled(events)
    assert isinstance(placed, OrderPlaced)
    assert placed.quantity is not None
    restated = [e.quantity for e in events if isinstance(e, OrderRestated)]
    if any(isinstance(event, OrderCancelled) for event in events):
        return "cancelled after partial fill" if filled else "cancelled"
    if restated and filled == restated[-1]:
        return "filled after a size reduction"
    if filled == placed.quantity:
        return "filled"
    assert filled < placed.quantity
    return "open, partially filled" if filled else "open"


def test_facts_about_unknown_orders_are_kept_and_have_no_user(
    converted: Converted, expected_counts: dict[str, Any]
) -> None:
    """What happens to orders never submitted in the file is recorded as it is."""
    events = facts(converted("lobster"))
    known = {event.order_id for event in events if isinstance(event, OrderPlaced)}
    unknown = [e for e in events if not isinstance(e, PriceMarked) and e.order_id not in known]
    tally = Counter(map(type, unknown))
    assert {
        "type4 for an order never submitted in the file": tally[OrderFilled],
        "type3 for an order never submitted in the file": tally[OrderCancelled],
        "type2 for an order never submitted in the file": tally[OrderRestated],
    } == expected_counts["lobster_goog"]["anomalies"]
    assert tally.total() == 2309 + 2166 + 1
    assert all(e.user_id is None for e in unknown if isinstance(e, OrderFilled))
    assert [e.quantity for e in unknown if isinstance(e, OrderRestated)] == [None]


def test_an_order_is_filled_for_the_user_who_placed_it(converted: Converted) -> None:
    """Twenty made-up users share the orders, and each fill names its order's user."""
    events = facts(converted("lobster"))
    users = {event.order_id: event.user_id for event in events if isinstance(event, OrderPlaced)}
    assert len(set(users.values())) == 20
    fills = (event for event in events if isinstance(event, OrderFilled))
    assert all(fill.user_id == users.get(fill.order_id) for fill in fills)


def test_prices_and_times_are_read_exactly(converted: Converted) -> None:
    """The file's first message: 34200.015105074 s after midnight, 579.40 dollars."""
    first = converted("lobster")[0]
    assert first.occurred_at == datetime(2012, 6, 21, 13, 30, 0, 15105, UTC)
    event = first.event
    assert isinstance(event, OrderFilled)
    assert (event.price, event.quantity) == (Decimal("579.4"), Decimal(4))
    assert event.action is Action.BUY


def test_reductions_add_up(tmp_path: Path) -> None:
    """A known order is restated to its total; of an unknown one only the change is known."""
    rows = ("1,1,7,100,5794000,-1", "2,2,7,30,5794000,-1", "3,2,7,30,5794000,-1", "4,2,8,5,1,1")
    events = facts(convert("lobster", write_csv(tmp_path / "r.csv", LOBSTER_HEADER, *rows)))
    restated = [e for e in events if isinstance(e, OrderRestated)]
    assert [(e.quantity, e.quantity_change) for e in restated] == [
        (70, None),
        (40, None),
        (None, -5),
    ]


def test_halts_are_skipped_and_counted_as_messages(tmp_path: Path) -> None:
    """A halt makes no event, but has its number: ids stay those of the file."""
    rows = ("1,5,0,1,5794000,1", "2,7,0,0,-1,-1", "3,5,0,1,5794000,1")
    found = convert("lobster", write_csv(tmp_path / "halt.csv", LOBSTER_HEADER, *rows))
    without = convert("lobster", write_csv(tmp_path / "no.csv", LOBSTER_HEADER, rows[0], rows[2]))
    assert len(found) == len(without) == 2
    assert found[0].event_id == without[0].event_id
    assert found[1].event_id != without[1].event_id


def test_symbol_and_day_are_part_of_every_id(tmp_path: Path) -> None:
    """The same messages on another day or of another symbol are other events and orders."""
    file = write_csv(tmp_path / "one.csv", LOBSTER_HEADER, "34200,1,7,100,5794000,1")
    runs = [
        convert("lobster", file),
        convert("lobster", file, "--symbol", "AAPL"),
        convert("lobster", file, "--date", "2012-12-21", "--utc-offset", "-5"),
    ]
    assert len({event.order_id for found in runs for event in facts(found)}) == 3
    assert len({line.event_id for found in runs for line in found}) == 1 + 3 * 2
    assert runs[2][1].occurred_at == datetime(2012, 12, 21, 14, 30, tzinfo=UTC)
