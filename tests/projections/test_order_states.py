"""The rows of orders: states as the decider has them, misfits by name, exact amounts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.domain.order_commands import OrderState, evolve
from ledger.domain.order_stages import ENDED, EXECUTED
from ledger.domain.orders import (
    Action,
    FillConflicted,
    OrderAccepted,
    OrderCancelled,
    OrderCancelRejected,
    OrderCancelRequested,
    OrderEvent,
    OrderExpired,
    OrderFailed,
    OrderPlaced,
    OrderRejected,
    OrderReplaced,
    OrderReplaceRequested,
    OrderRestated,
    OrderType,
)
from ledger.domain.users import UserRegistered
from ledger.event import Event, VenueAmount
from projections.groups import TRADING
from projections.model import values_of
from projections.orders import Order
from projections.projection import State
from tests.projections.random_events import random_events
from tests.projections.support import JOURNAL, JOURNAL_ID, START, all_rows, folded, one_row, record
from tests.support.orders import ORDER, USER, bust, fill, parts, placed, scenarios

REGISTERED = UserRegistered(user_id=USER, username="user")
MARKET: dict[str, Any] = {"order_type": OrderType.MARKET, "price": None, "trigger_price": None}
ACCEPTED = OrderAccepted(order_id=ORDER)
CANCELLED = OrderCancelled(order_id=ORDER)


def row_after(*events: Event) -> Order:
    """Return the row of the order of a registered user."""
    return one_row([REGISTERED, *events], Order)


def model_after(*events: Event) -> Order:
    """Return the same as readers get it."""
    return Order(**values_of(row_after(*events)))


def test_fix_scenarios_step_by_step(data_dir: Path) -> None:
    """The row says what each report of FIX's nine matrices says."""
    checked = 0
    for scenario in scenarios(data_dir):
        events: list[Event] = []
        for event, (_, _, expected, quantity, filled, left, _) in scenario.events():
            events.append(event)
            if expected is not None:
                row = row_after(*events)
                assert row.ord_status == expected, (scenario.name, len(events))
                found = (row.quantity, row.filled_quantity, row.leaves_quantity)
                assert quantity is None or found == (quantity, filled, left)
                checked += 1
    assert checked == 39


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 150))
def test_a_row_is_what_the_decider_has(seed: int, count: int) -> None:
    """After every event, whatever facts came in which order, stage and sums of both are equal."""
    found, deciding = folded([]), defaultdict[UUID, OrderState](OrderState)
    for recorded in record(random_events(Random(seed), count)):
        TRADING.fold(found, [recorded])
        event = recorded.event
        if isinstance(event, OrderEvent):
            expected = deciding[event.order_id] = evolve(deciding[event.order_id], event)
            row = found.rows(Order).get(event.order_id)
            if row is not None and row.changed_size == recorded.offset + 1:
                assert_same(row, expected)
            else:
                assert isinstance(event, OrderReplaceRequested | OrderCancelRequested)


def assert_same(row: Order, state: OrderState) -> None:
    """Compare a row in the fold with a state."""
    sums = (row.exact_filled_quantity, row.exact_notional, row.exact_quantity, row.exact_price)
    assert sums == (state.filled, state.notional, state.quantity, state.price)
    assert row.stage == state.stage
    assert (row.status == EXECUTED) == (state.is_filled and not state.stage & ENDED)
    assert row.order_type is None or row.ord_status == state.name


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(7)))
def test_no_fact_is_lost_in_any_order(order: list[int]) -> None:
    """Facts in any order come to the same sums, and each that does not fit is counted."""
    first, second, third = fill(4), fill(3, "2", price="26"), fill(5, "3", price="30.5")
    facts: list[Event] = [placed(20), first, second, third, bust(second), ACCEPTED, CANCELLED]
    row = row_after(*(facts[number] for number in order))
    assert parts(row.filled_quantity, row.exact_notional) == [9, Decimal("252.5")]
    assert parts(row.status, row.ord_status, row.leaves_quantity) == ["cancelled", "Canceled", 0]
    before = facts[:0] + [facts[n] for n in order[: order.index(0)]]
    unknown = sum(n for name, n in row.flags.items() if name.startswith("unknown_order:"))
    assert unknown == len(before)
    assert row.flags.get("placed_late", 0) == bool(before)
    late = order[max(order.index(0), order.index(6)) + 1 :]
    after_cancel = [n for name, n in row.flags.items() if name.startswith("after_cancelled:")]
    assert sum(after_cancel) == len(late)


@pytest.mark.parametrize(
    ("events", "status", "flags"),
    [
        (
            [placed(), fill(4), CANCELLED, fill(6, "2")],
            "cancelled",
            {"after_cancelled:OrderFilled"},
        ),
        (
            [placed(), ACCEPTED, OrderExpired(order_id=ORDER), fill(1)],
            "expired",
            {"after_expired:OrderFilled"},
        ),
        ([placed(), fill(11)], "executed", {"overfill"}),
        ([placed(None, amount="100"), fill(5)], "executed", {"overfill"}),
        ([placed(None, amount="100"), fill(4)], "executed", set()),
        (
            [placed(), fill(4), OrderReplaced(order_id=ORDER, quantity=VenueAmount(3))],
            "executed",
            {"overfill"},
        ),
        ([placed(), fill(0)], "pending", {"quantity_not_positive"}),
        ([fill(-1)], "pending", {"unknown_order:OrderFilled", "quantity_not_positive"}),
        ([placed(), bust(fill(1))], "pending", {"fill_busted", "more_busted_than_filled"}),
        ([placed(), fill(4), bust(fill(4))], "pending", {"fill_busted"}),
        ([placed(), fill(4, token="ETH")], "partially_filled", {"other_terms"}),
        ([placed(), fill(4, action=Action.SELL)], "partially_filled", {"other_terms"}),
        ([placed(), fill(4, user_id=ORDER)], "partially_filled", {"other_terms"}),
        ([placed(), fill(4, user_id=None)], "partially_filled", {"fill_without_position"}),
        (
            [fill(4, user_id=None), placed()],
            "partially_filled",
            {"unknown_order:OrderFilled", "placed_late", "fill_without_position"},
        ),
        *(
            (
                [UserRegistered(user_id=ORDER, username="other"), fill(4, **other), placed()],
                "partially_filled",
                {"unknown_order:OrderFilled", "placed_late", "other_terms"},
            )
            for other in ({"token": "ETH"}, {"user_id": ORDER}, {"action": Action.SELL})
        ),
        ([placed(), OrderRestated(order_id=ORDER)], "pending", {"restated"}),
        ([placed(), ACCEPTED, ACCEPTED], "pending", {"accepted_again"}),
        ([placed(), placed()], "pending", {"placed_again"}),
        ([ACCEPTED, placed()], "pending", {"unknown_order:OrderAccepted", "placed_late"}),
        (
            [OrderCancelRejected(order_id=ORDER)],
            "failed",
            {"unknown_order:OrderCancelRejected"},
        ),
        ([placed(), OrderCancelRejected(order_id=ORDER)], "pending", set()),
        ([placed(), fill(10), CANCELLED], "executed", {"after_executed:OrderCancelled"}),
        ([placed(user_id=ORDER)], "pending", {"unknown_user"}),
    ],
)
def test_misfits_are_counted_by_name(events: list[Event], status: str, flags: set[str]) -> None:
    """Each fact takes effect, and the row counts what does not fit under its own name."""
    row = row_after(*events)
    assert parts(row.status, row.flags) == [status, dict.fromkeys(flags, 1)]


def test_a_conflicting_fill_is_counted_and_not_booked() -> None:
    """Sums and status are those of the first report."""
    conflict = FillConflicted(
        order_id=ORDER,
        fill_id="1",
        token="SOL",
        action=Action.BUY,
        price=VenueAmount(30),
        quantity=VenueAmount(9),
        user_id=USER,
    )
    row = row_after(placed(), fill(4), conflict, conflict)
    assert parts(row.filled_quantity, row.exact_notional) == [4, 100]
    assert parts(row.status, row.flags) == ["partially_filled", {"fill_conflicted": 2}]
    alone = row_after(conflict)
    assert parts(alone.token, alone.filled_quantity) == [None, 0]
    assert alone.flags == {"fill_conflicted": 1, "unknown_order:FillConflicted": 1}


def test_the_first_user_whom_early_fills_name_is_compared_with_the_placing() -> None:
    """Also where the very first fill named nobody; then the order is the placing user's."""
    registered = UserRegistered(user_id=ORDER, username="other")
    early = [registered, fill(1, user_id=None), fill(2, "2", user_id=ORDER)]
    assert row_after(*early).user_id == ORDER
    row = row_after(*early, placed())
    assert (row.user_id, row.flags["other_terms"]) == (USER, 1)
    assert row.flags["fill_without_position"] == 1


def test_slippage_is_measured_from_the_reference() -> None:
    """Positive is adverse for both sides; without a reference price the limit is the reference."""
    for action, price, expected in (
        (Action.BUY, "22", 1000),
        (Action.BUY, "19", -500),
        (Action.SELL, "19", 500),
        (Action.SELL, "22", -1000),
    ):
        order = placed(action=action, reference_price="20", **MARKET)
        row = row_after(order, fill(4, price=price, action=action))
        assert row.slippage_actual == expected
        assert row.reference_price == 20
    assert row_after(placed(reference_price="20"), fill(1)).slippage_actual == 2500
    assert row_after(placed(), fill(1, price="26")).slippage_actual == 400
    assert row_after(placed(**MARKET), fill(1)).slippage_actual is None
    assert row_after(fill(1)).slippage_actual is None


def test_fees_are_summed_by_currency() -> None:
    """In the quote currency, taken from the token at the fill's price, or among the others."""
    third = fill(1, "4", fee="0.25", fee_currency="BNB")
    fills = [
        fill(1, "1", fee="0.5"),
        fill(1, "2", fee="-0.1"),
        fill(1, "3", fee="0.01", fee_currency="SOL"),
        third,
        fill(1, "5", fee="0.05", fee_currency="BNB"),
        fill(1, "6", fee="0.0000000001", fee_currency="X"),
        fill(1, "7"),
    ]
    row = row_after(placed(), *fills)
    assert row.fees == Decimal("0.65")
    assert row.other_fees == {"BNB": "0.30", "X": "0.0000000001"}
    assert row.flags == {}
    undone = row_after(placed(), *fills, bust(third), bust(fills[0]))
    assert parts(undone.fees, undone.other_fees["BNB"]) == [Decimal("0.15"), "0.05"]


def test_a_fee_in_the_token_is_worth_what_was_paid() -> None:
    """The quote amount says more than a price that was rounded to zero."""
    paid = fill(4, price="0", quote_amount="1", fee="1", fee_currency="SOL")
    assert row_after(placed(), paid).fees == Decimal("0.25")


@pytest.mark.parametrize("thief", [{"user_id": ORDER}, {"token": "ETH"}])
def test_a_fill_on_anothers_explicit_position_is_flagged(thief: dict[str, Any]) -> None:
    """The order is not linked to the position that it did not move."""
    mine = msgspec.structs.replace(fill(4, position_id=ORDER), order_id=USER)
    stolen = fill(1, position_id=ORDER, **thief)
    first, second = all_rows([REGISTERED, mine, stolen], Order)
    assert (first.position_id, first.flags) == (ORDER, {"unknown_order:OrderFilled": 1})
    assert (second.position_id, second.flags) == (
        None,
        {"unknown_order:OrderFilled": 1, "fill_of_another": 1},
    )


def test_amounts_are_exact_integers_too() -> None:
    """Raw amounts have the places of the most exact fill, on each side of the order."""
    fills = [
        fill("1.5", "1", price="2.00"),
        fill("0.000000000000000003", "2", price="3", quote_amount="0.00007"),
    ]
    row = row_after(placed(), *fills)
    assert parts(row.amount_in_decimals, row.amount_out_decimals) == [5, 18]
    assert parts(row.raw_amount_in, row.raw_amount_out) == [300_007, 1_500_000_000_000_000_003]
    assert row.amount_in == Decimal("3.00007")
    sold = row_after(
        placed(action=Action.SELL), *(fill(f.quantity, f.fill_id, price=f.price,
        quote_amount=f.quote_amount, action=Action.SELL) for f in fills)
    )  # fmt: skip
    assert parts(sold.raw_amount_in, sold.raw_amount_out) == [1_500_000_000_000_000_003, 300_007]
    undone = row_after(placed(), *fills, bust(fills[1]))
    assert parts(undone.raw_amount_in, undone.raw_amount_out) == [
        300_000,
        1_500_000_000_000_000_000,
    ]
    assert parts(undone.amount_in_decimals, undone.amount_out_decimals) == [5, 18]
    untouched = row_after(placed())
    assert parts(untouched.raw_amount_in, untouched.amount_in_decimals) == [None, None]


def test_a_late_placing_on_the_other_side_turns_the_amounts_round() -> None:
    """The order's own side says what went in; each side keeps its number of places."""
    row = row_after(fill("1.5", price="2"), placed(action=Action.SELL))
    assert parts(row.amount_in, row.amount_out) == [Decimal("1.5"), 3]
    assert parts(row.amount_in_decimals, row.amount_out_decimals) == [1, 1]
    row = row_after(fill("1.55", quote_amount="3"), placed(action=Action.SELL))
    assert parts(row.raw_amount_in, row.raw_amount_out) == [155, 3]
    row = row_after(fill("1.55", quote_amount="3"), placed())
    assert parts(row.raw_amount_in, row.raw_amount_out) == [3, 155]


def test_sums_of_too_many_digits_have_no_integers() -> None:
    """What 50 digits cannot hold is flagged and NULL, also when it is taken back out."""
    large, small = fill("9" * 40, price="1"), fill("0." + "0" * 29 + "1", "2", price="1")
    for events in ([large, small], [large, small, bust(large)]):
        row = row_after(placed(), *events)
        assert parts(row.raw_amount_in, row.raw_amount_out) == [None, None]
        assert row.flags["inexact_amount"] == 1
    row = row_after(placed(), fill("9" * 40, price="1"))
    assert row.raw_amount_out == 10**40 - 1
    for places, expected in ((8, None), (9, 1)):
        large, small = (
            fill("1" + "0" * 39, price="1"),
            fill("0." + "0" * places + "1", "2", price=1),
        )
        row = row_after(placed(), large, small)
        assert row.flags.get("inexact_amount") == expected
        assert (row.raw_amount_out is None, row.raw_amount_in is None) == (expected == 1,) * 2


def test_when_an_order_was_executed() -> None:
    """At the fill that completed it; a bust takes that back; a late fill completes nothing."""
    first, second = fill(4), fill(6, "2")
    row = row_after(placed(), first, second, OrderReplaced(order_id=ORDER, price=VenueAmount(26)))
    assert parts(row.executed_at, row.price) == [START.replace(second=3), 26]
    assert row_after(placed(), first, second, bust(second)).executed_at is None
    assert row_after(placed(), first, CANCELLED, second).executed_at is None


def test_what_the_venue_and_the_gateway_say_is_kept() -> None:
    """The venue's id of the order, and the first reason why it came to nothing."""
    taken = OrderAccepted(order_id=ORDER, venue_order_id="v1")
    row = row_after(placed(), taken, ACCEPTED, fill(1, transaction_signature="tx"), fill(1, "2"))
    assert parts(row.venue_order_id, row.transaction_signature) == ["v1", "tx"]
    refused = OrderRejected(order_id=ORDER, reason="no funds")
    failed = OrderFailed(order_id=ORDER, reason="no route")
    assert row_after(placed(), refused, failed).failed_reason == "no funds"
    assert row_after(placed(), failed, refused).failed_reason == "no route"
    assert row_after(placed(), CANCELLED, refused).failed_reason is None
    assert row_after(placed(), fill(10), refused).failed_reason is None


def test_what_readers_compute() -> None:
    """Value and filled part of an order, before and after its fills."""
    order = model_after(placed())
    assert parts(order.total_value, order.fill_ratio, order.is_finished) == [250, 0, False]
    order = model_after(placed(), fill(4, price="26"))
    assert parts(order.total_value, order.fill_ratio) == [104, Decimal("0.4")]
    assert not order.is_finished
    order = model_after(placed(None, amount="100", **MARKET))
    assert parts(order.total_value, order.fill_ratio) == [100, 0]
    assert model_after(placed(None, amount="100"), fill(1)).fill_ratio == Decimal("0.25")
    order = model_after(placed(**MARKET))
    assert parts(order.total_value, order.fill_ratio) == [None, 0]
    order = model_after(fill(4))
    assert parts(order.total_value, order.fill_ratio) == [100, None]
    for end in (CANCELLED, fill(10), OrderRejected(order_id=ORDER, reason="no")):
        assert model_after(placed(), end).is_finished


def test_an_order_that_may_only_reduce_names_its_book() -> None:
    """The book that its fills will move; and every order the journal's size with its placing."""
    row = row_after(placed(position_id=ORDER, reduce_only=True))
    assert parts(row.book, row.placed_size) == [f"position:{ORDER}", 2]
    assert row_after(placed(reduce_only=True)).book == f"book:{USER}:SOL"
    assert row_after(placed()).book is None
    closing = msgspec.structs.replace(placed(reduce_only=True), closes_position_id=ORDER)
    late = row_after(fill(1), closing)
    assert parts(late.placed_size, late.reduce_only, late.closes_position_id) == [3, True, ORDER]


def test_requests_leave_the_row_as_it_is() -> None:
    """What a user asks for is on record, but is no state before the venue says so."""
    asked = [OrderCancelRequested(order_id=ORDER), OrderReplaceRequested(order_id=ORDER)]
    row = row_after(placed(), *asked)
    assert parts(row.ord_status, row.changed_size) == ["PendingNew", 2]
    assert all_rows(asked, Order) == []


def states_by_batches(events: Iterable[Event], size: int) -> State:
    """Fold in batches, as a projector does that keeps its rows."""
    recorded = record(events)
    state = TRADING.state(JOURNAL_ID, JOURNAL)
    for start in range(0, len(recorded), size):
        TRADING.fold(state, recorded[start : start + size])
        TRADING.finished(state, "orders")
    return state


def test_finishing_a_row_does_not_change_what_follows() -> None:
    """Raw amounts and leaves are derived only: rows that were read come to the same."""
    events = [REGISTERED, placed(), fill("1.25"), fill("0.5", "2"), bust(fill("1.25"))]
    expected = values_of(row_after(*events[1:]))
    for size in (1, 2, 5):
        [row] = states_by_batches(events, size).rows(Order)
        TRADING.finished(states_by_batches(events, size), "orders")
        assert values_of(row) == expected


def test_only_a_placing_has_terms() -> None:
    """An order known from facts has no type; its fills say token and side."""
    row = row_after(fill(4))
    assert parts(row.order_type, row.token, row.action) == [None, "SOL", Action.BUY]
    assert parts(row.leaves_quantity, row.ord_status) == [None, "PartiallyFilled"]
    assert isinstance(placed(), OrderPlaced)
