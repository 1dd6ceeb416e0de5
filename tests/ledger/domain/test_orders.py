"""Deciding on orders: what commands are refused, and how fills are known."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal, getcontext, localcontext
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledger.domain.order_commands import (
    AnyOrderCommand,
    FailOrder,
    OrderState,
    Raw,
    RecordBust,
    RecordFill,
    RequestCancel,
    RequestReplace,
    decide,
    evolve,
)
from ledger.domain.order_stages import Stage
from ledger.domain.orders import (
    Action,
    FillBusted,
    FillConflicted,
    Liquidity,
    OrderAccepted,
    OrderCancelled,
    OrderCancelPending,
    OrderCancelRequested,
    OrderDoneForDay,
    OrderEvent,
    OrderFailed,
    OrderFilled,
    OrderPlaced,
    OrderReplaced,
    OrderReplaceRequested,
    OrderRestated,
    OrderType,
    TimeInForce,
)
from ledger.errors import CommandRefused, InvalidCommand
from ledger.event import CONTEXT, Amount, VenueAmount
from tests.ledger.support import Noted
from tests.support.orders import NOW, ORDER, USER, after, bust, fill, parts, place, placed

ACCEPTED = OrderAccepted(order_id=ORDER)
CANCELLED = OrderCancelled(order_id=ORDER)
LATER = NOW + timedelta(seconds=1)
MARKET = {"order_type": OrderType.MARKET, "price": None, "trigger_price": None}
LIMIT = {"order_type": OrderType.LIMIT, "trigger_price": None}
NETTING_ID = UUID(int=8 << 76 | 2 << 62)
OTHER = UUID(int=7)


def refusal(command: AnyOrderCommand, *events: OrderEvent) -> CommandRefused:
    """Return the error that a command meets after these events."""
    with pytest.raises(CommandRefused) as caught:
        decide(command, after(events))
    return caught.value


EITHER = "give either a quantity or an amount"
POSITIVE = "must be above zero, not "
TRIGGER = "stop_loss and take_profit need one, no others"
EXPIRY = "gtd needs it, no other time in force has it"
TOKEN = "must be 1 to 200 printable characters"
CYCLE = "is of a cycle; give the book's own explicit id, or none for netting"
DIGITS = "has too many digits: at most 12 before and 8 after the point"


@pytest.mark.parametrize(
    ("field", "reason", "values"),
    [
        ("quantity", EITHER, {"quantity": None}),
        ("quantity", EITHER, {"amount": "5"}),
        ("quantity", POSITIVE + "0", {"quantity": 0}),
        ("amount", POSITIVE + "-1", {"quantity": None, "amount": "-1"}),
        ("price", POSITIVE + "0", {"price": "0"}),
        ("trigger_price", POSITIVE + "0", {"trigger_price": "0"}),
        ("reference_price", POSITIVE + "0", {"reference_price": "0"}),
        ("price", "a limit order needs one", LIMIT | {"price": None}),
        ("price", "a market order has none; give a reference_price", MARKET | {"price": "25"}),
        ("trigger_price", TRIGGER, {"trigger_price": None}),
        ("trigger_price", TRIGGER, {"order_type": OrderType.TAKE_PROFIT, "trigger_price": None}),
        ("trigger_price", TRIGGER, {"order_type": OrderType.LIMIT}),
        ("trigger_price", TRIGGER, MARKET | {"trigger_price": "24"}),
        ("slippage_bps", "must be 0 to 10000", {"slippage_bps": -1}),
        ("slippage_bps", "must be 0 to 10000", {"slippage_bps": 10_001}),
        ("expires_at", EXPIRY, {"time_in_force": TimeInForce.GTD}),
        ("expires_at", EXPIRY, {"expires_at": LATER}),
        ("token", TOKEN, {"token": ""}),
        ("token", TOKEN, {"token": "a\nb"}),
        ("token", TOKEN, {"token": "x" * 201}),
        ("order_id", "UUIDs of version 8 are those of closing orders", {"order_id": NETTING_ID}),
        (
            "position_id",
            CYCLE,
            {"position_id": NETTING_ID},
        ),
        (
            "amount",
            "an order that may only reduce needs a quantity",
            {"quantity": None, "amount": "5", "reduce_only": True},
        ),
        ("quantity", f"'0.000000001' {DIGITS}", {"quantity": "0.000000001"}),
        ("price", f"'1000000000000' {DIGITS}", {"price": "1" + "0" * 12}),
    ],
)
def test_what_no_venue_could_carry_out_is_invalid(
    field: str, reason: str, values: dict[str, Any]
) -> None:
    """The error names the command and the value at fault, and says what is wrong with it."""
    with pytest.raises(InvalidCommand) as caught:
        place(**values)
    error = caught.value
    assert (error.command, error.field, error.reason) == ("PlaceOrder", field, reason)


def test_an_order_that_has_expired_is_not_placed() -> None:
    """That is decided, and not a matter of the command: one that is repeated may come late."""
    late = place(time_in_force=TimeInForce.GTD, expires_at=NOW)
    with pytest.raises(InvalidCommand, match=r"expires_at: 2026-01-01T00:00:00\+00:00 has passed"):
        decide(late, OrderState())


@pytest.mark.parametrize(
    "values",
    [
        {"quantity": None, "amount": "5"},
        MARKET,
        LIMIT,
        {"order_type": OrderType.TAKE_PROFIT, "price": None},
        MARKET | {"reference_price": "20"},
        {"slippage_bps": 0},
        {"slippage_bps": 10_000},
        {"time_in_force": TimeInForce.GTD, "expires_at": LATER},
        {"token": "x" * 200},
        {"token": "x"},
        {"position_id": OTHER},
        {"reduce_only": True},
        {"quantity": "0.00000001"},
        {"strategy": "grid", "extra_data": {"note": "x"}},
    ],
)
def test_an_order_is_placed_as_it_is_given(values: dict[str, Any]) -> None:
    """The event has each value of the command, and the state its terms."""
    command = place(**values)
    [event] = decide(command, OrderState())
    assert isinstance(event, OrderPlaced)
    asked = msgspec.structs.asdict(command)
    assert asked.pop("now") == NOW
    assert msgspec.structs.asdict(event) == asked | {"closes_position_id": None}
    state = after([event])
    terms = ("user_id", "token", "action", "order_type", "position_id", "quantity", "amount")
    assert all(getattr(state, name) == getattr(event, name) for name in (*terms, "price"))
    assert state.stage == Stage.PLACED


def test_an_order_is_placed_once() -> None:
    """A second placing is refused in any state, and by name; the state keeps the first terms."""
    for events, state in (
        ([placed()], "PendingNew"),
        ([placed(), ACCEPTED], "New"),
        ([placed(), fill(10)], "Filled"),
        ([placed(), CANCELLED], "Canceled"),
        ([CANCELLED], "Unknown"),
    ):
        error = refusal(place(), *events)
        assert (error.command, error.state, error.subject) == (
            "PlaceOrder",
            state,
            f"order-{ORDER}",
        )
        assert error.reason == "an order is placed once"
    assert after([placed(), placed(20, token="ETH")]) == after([placed()])


def test_a_report_may_overtake_the_placing() -> None:
    """An order that the venue has reported on is placed all the same; its fills count."""
    early = after([fill(4, token="ETH", user_id=OTHER, position_id=USER)])
    assert parts(early.name, early.token, early.user_id) == ["Unknown", "ETH", OTHER]
    assert parts(early.action, early.position_id) == [Action.BUY, USER]
    assert after([fill(1, "2", token="SOL")], early).token == "ETH"
    [event] = decide(place(), early)
    state = evolve(early, event)
    assert parts(state.name, state.token, state.filled) == ["PartiallyFilled", "SOL", 4]


@pytest.mark.parametrize(
    ("events", "state", "reason"),
    [
        ([], "Unknown", "unknown_order:OrderCancelRequested"),
        ([ACCEPTED], "Unknown", "unknown_order:OrderCancelRequested"),
        ([placed(), fill(10)], "Filled", "after_executed:OrderCancelRequested"),
        ([placed(), CANCELLED], "Canceled", "after_cancelled:OrderCancelRequested"),
    ],
)
def test_a_cancel_of_what_is_finished_is_refused(
    events: list[OrderEvent], state: str, reason: str
) -> None:
    """The error names command and state."""
    error = refusal(RequestCancel(order_id=ORDER), *events)
    assert (error.command, error.state, error.reason) == ("RequestCancel", state, reason)
    assert str(error).startswith(f"order-{ORDER}: RequestCancel is refused in state {state}")


def test_an_order_at_work_can_be_cancelled_replaced_or_failed() -> None:
    """Each request is an event with what was asked for."""
    state = after([placed()])
    assert decide(RequestCancel(order_id=ORDER), state) == (OrderCancelRequested(order_id=ORDER),)
    asked = RequestReplace(order_id=ORDER, quantity=Amount(5), price=Amount("24.5"))
    expected = OrderReplaceRequested(order_id=ORDER, quantity=Amount(5), price=Amount("24.5"))
    assert decide(asked, state) == (expected,)
    failed = OrderFailed(order_id=ORDER, reason="no route")
    assert decide(FailOrder(order_id=ORDER, reason="no route"), state) == (failed,)


def test_our_gateway_cannot_fail_what_was_filled() -> None:
    """Failing is for orders that came to nothing."""
    error = refusal(FailOrder(order_id=ORDER, reason="x"), placed(), fill(1))
    assert (error.command, error.state) == ("FailOrder", "PartiallyFilled")
    assert refusal(FailOrder(order_id=ORDER, reason="x")).state == "Unknown"


def test_a_replace_is_refused_while_a_cancel_is_pending() -> None:
    """Not before the venue has answered; another cancel may be asked for."""
    events = [placed(), ACCEPTED, OrderCancelPending(order_id=ORDER)]
    assert (
        refusal(RequestReplace(order_id=ORDER, price=Amount(1)), *events).state == "PendingCancel"
    )
    assert decide(RequestCancel(order_id=ORDER), after(events))


def test_a_filled_order_can_only_be_asked_for_more() -> None:
    """FIX lets Filled become PendingReplace: the quantity must be above what is filled."""
    filled = [placed(), fill(10)]
    for values in ({"quantity": Amount(10)}, {"price": Amount(30)}):
        error = refusal(RequestReplace(order_id=ORDER, **values), *filled)
        reason = "10 are filled; only more can be asked for"
        assert (error.state, error.reason) == ("Filled", reason)
    assert decide(RequestReplace(order_id=ORDER, quantity=Amount("10.1")), after(filled))
    partly = after([placed(), fill(4)])
    assert decide(RequestReplace(order_id=ORDER, quantity=Amount(4)), partly)


@pytest.mark.parametrize(
    ("field", "reason", "values"),
    [
        ("quantity", "give a quantity, a price or both", {}),
        ("quantity", POSITIVE + "0", {"quantity": Amount(0)}),
        ("price", POSITIVE + "-1", {"price": Amount(-1)}),
    ],
)
def test_a_replace_must_ask_for_something(field: str, reason: str, values: dict[str, Any]) -> None:
    """No values, or none that an order can have, are invalid."""
    with pytest.raises(InvalidCommand) as caught:
        RequestReplace(order_id=ORDER, **values)
    assert (caught.value.field, caught.value.reason) == (field, reason)


@pytest.mark.parametrize(
    ("order", "asked", "field", "reason"),
    [
        (placed(**MARKET), {"price": "5"}, "price", "a market order has none"),
        (
            placed(None, amount="1000"),
            {"quantity": "2"},
            "quantity",
            "an order over an amount has none",
        ),
    ],
)
def test_a_replace_asks_for_no_terms_that_the_order_cannot_have(
    order: OrderPlaced, asked: dict[str, Any], field: str, reason: str
) -> None:
    """What placing refuses is invalid later too, also after a fill."""
    for events in ([order], [order, fill(3)]):
        with pytest.raises(InvalidCommand) as caught:
            decide(RequestReplace(order_id=ORDER, **asked), after(events))
        assert (caught.value.field, caught.value.reason) == (field, reason)
    assert decide(RequestReplace(order_id=ORDER, price=Amount(5)), after([placed()]))
    market = after([placed(**MARKET)])
    assert decide(RequestReplace(order_id=ORDER, quantity=Amount(5)), market)


def report(**values: Any) -> RecordFill:
    """Return the report of a fill of 4 at 25."""
    given: dict[str, Any] = {"order_id": ORDER, "fill_id": "1", "quantity": 4, "price": "25"}
    return RecordFill(**given | values)


def test_a_fill_has_the_terms_of_its_order() -> None:
    """What the report leaves out is the order's, what it has is as reported."""
    state = after([placed(position_id=OTHER)])
    details: dict[str, Any] = {
        "fee": VenueAmount("0.1"),
        "fee_currency": "BNB",
        "liquidity": Liquidity.MAKER,
        "transaction_signature": "tx",
        "quote_amount": VenueAmount("100.5"),
    }
    assert decide(report(**details), state) == (fill(4, position_id=OTHER, **details),)
    others: dict[str, Any] = {"token": "ETH", "action": Action.SELL, "user_id": OTHER}
    assert decide(report(**others), state) == (fill(4, position_id=OTHER, **others),)


def test_a_fill_of_an_unknown_order_needs_token_and_side() -> None:
    """Without an order they must be told; the user may stay unknown."""
    for values in ({"token": "SOL"}, {"action": Action.BUY}):
        with pytest.raises(InvalidCommand, match=r"RecordFill\.(action|token): must be given"):
            decide(report(**values), OrderState())
    told = report(token="SOL", action=Action.BUY)
    assert decide(told, OrderState()) == (fill(4, user_id=None),)


def test_a_fill_must_say_how_much_and_for_what() -> None:
    """A quantity, and a price or a quote amount from which the price follows."""
    no_price = "a fill needs a price or a quote_amount"
    tiny = {"quote_amount": "9" * 40, "quantity": "0." + "0" * 29 + "1"}
    large = {"quote_amount": "9" * 31, "quantity": "0.000000001"}
    for field, reason, values in (
        ("quantity", "a fill needs one", {"quantity": None}),
        ("price", no_price, {"price": None}),
        ("price", "quote_amount / quantity is too large", {"price": None} | tiny),
        ("price", "quote_amount / quantity is too large", {"price": None} | large),
    ):
        with pytest.raises(InvalidCommand) as caught:
            report(**values)
        assert (caught.value.field, caught.value.reason) == (field, reason)
    assert report(price=None, quote_amount=1, quantity=3).price == Decimal("0." + "3" * 18)
    assert report(price=None, quote_amount=2, quantity=3).price == Decimal("0." + "6" * 17 + "7")
    assert report(price=None, quote_amount="1" + "0" * 12, quantity=1).price == 10**12
    assert report(quote_amount=1).price == 25
    assert report(price=None, quote_amount=1, quantity=0).price == 0
    assert report(price="25", quantity=0).price == 25


@pytest.mark.parametrize("kind", [RecordFill, RecordBust])
def test_the_id_of_a_cycle_names_no_book(kind: Any) -> None:
    """A fill in it would move a book that protection and liquidation know nothing of."""
    with pytest.raises(InvalidCommand) as caught:
        kind(order_id=ORDER, fill_id="1", quantity=4, price="25", position_id=NETTING_ID)
    assert (caught.value.field, caught.value.reason) == ("position_id", CYCLE)


def test_a_known_fill_is_recorded_once() -> None:
    """The same report again stores nothing, with or without details, however numbers look."""
    state = after([placed(), fill(4, liquidity=Liquidity.MAKER, fee="0.10")])
    for values in (
        {},
        {"quantity": "4.00"},
        {"liquidity": Liquidity.MAKER, "token": "SOL", "user_id": USER},
        {"transaction_signature": "tx"},
    ):
        assert decide(report(fee="0.1", **values), state) == ()


@pytest.mark.parametrize(
    "values",
    [
        {"quantity": 5},
        {"price": "26"},
        {"fee": None},
        {"fee": "0.2"},
        {"fee_currency": "BNB"},
        {"quote_amount": 100},
        {"liquidity": Liquidity.TAKER},
        {"token": "ETH"},
        {"action": Action.SELL},
        {"user_id": OTHER},
        {"transaction_signature": "other"},
    ],
)
def test_a_known_fill_id_with_other_content_is_a_conflict(values: dict[str, Any]) -> None:
    """It is recorded as reported, and nothing is booked for it."""
    first = fill(4, liquidity=Liquidity.MAKER, fee="0.1", transaction_signature="tx")
    state = after([placed(), first])
    [event] = decide(report(**{"fee": "0.1"} | values), state)
    assert isinstance(event, FillConflicted)
    assert event.quantity == values.get("quantity", 4)
    assert event.token == values.get("token", "SOL")
    assert evolve(state, event) == state


def test_a_bust_repeats_the_fill_and_counts_once() -> None:
    """Sums are as before the fill; a second bust, and the fill again, store nothing."""
    first, second = fill(4, fee="0.1"), fill(6, "2")
    state = after([placed(), first, second])
    [event] = decide(RecordBust(order_id=ORDER, fill_id="1"), state)
    assert event == bust(first)
    state = evolve(state, event)
    assert parts(state.filled, state.notional, state.name) == [6, 150, "PartiallyFilled"]
    assert decide(RecordBust(order_id=ORDER, fill_id="1"), state) == ()
    assert decide(report(fee="0.1"), state) == ()
    assert decide(RecordBust(order_id=ORDER, fill_id="2"), state)


def test_a_bust_of_an_unknown_fill_must_describe_it() -> None:
    """It is recorded; the fill that comes late is booked too, so nothing is left of the two."""
    state = after([placed()])
    for values in ({"price": "25"}, {"quantity": 4}):
        with pytest.raises(InvalidCommand, match=r"RecordBust\.(quantity|price): must be given"):
            decide(RecordBust(order_id=ORDER, fill_id="1", **values), state)
    described = RecordBust(
        order_id=ORDER, fill_id="1", price=VenueAmount("25"), quantity=VenueAmount(4)
    )
    [event] = decide(described, state)
    assert event == bust(fill(4))
    state = evolve(state, event)
    assert parts(state.filled, state.has_fills) == [-4, False]
    [late] = decide(report(), state)
    state = evolve(state, late)
    assert parts(state.filled, state.notional) == [0, 0]
    assert decide(described, state) == ()
    assert decide(report(), state) == ()


def busting(**values: Any) -> RecordBust:
    """Return the report of a bust of 4 at 25, all of which is said."""
    given: dict[str, Any] = {"order_id": ORDER, "fill_id": "1", "quantity": 4, "price": "25"}
    return RecordBust(**given | values)


def test_nothing_is_left_of_a_fill_that_was_busted_before() -> None:
    """The late fill is what the bust has taken back; a report that differs is a conflict too."""
    fee: dict[str, Any] = {"fee": "3", "fee_currency": "BNB", "quote_amount": "101"}
    for described, reported in ((fee, fee), ({}, fee), (fee, {}), ({"user_id": OTHER}, {})):
        state = after([placed(), *decide(busting(**described), after([placed()]))])
        [bust_of_it] = state.busted.values()
        mirror = OrderFilled(**msgspec.structs.asdict(bust_of_it))
        events = decide(report(**reported), state)
        is_same = described == reported or "user_id" in described
        assert events[0] == mirror
        assert [type(each) for each in events[1:]] == [FillConflicted] * (not is_same)
        if not is_same:
            expected = msgspec.structs.asdict(fill(4, **reported))
            assert events[1] == FillConflicted(**expected)
        state = after(events, state)
        assert parts(state.filled, state.notional) == [0, 0]
        assert len(decide(report(**reported), state)) == (not is_same)
        assert decide(busting(), state) == ()


def test_the_price_of_a_bust_follows_from_the_quote_amount() -> None:
    """As that of a fill does, so that both say the same."""
    [event] = decide(busting(price=None, quote_amount="101"), after([placed()]))
    assert isinstance(event, FillBusted)
    assert event.price == Decimal("25.25")


def test_of_a_fill_id_stored_twice_the_first_is_known() -> None:
    """Other doors can store a fill id twice: both are booked, the first is what is compared."""
    state = after([placed(), fill(4), fill(3)])
    assert state.filled == 7
    assert decide(report(), state) == ()
    assert decide(RecordBust(order_id=ORDER, fill_id="1"), state) == (bust(fill(4)),)


def test_late_fills_move_the_quantities_only() -> None:
    """After a cancel the status stays, the sums are those of all fills (J.1.b)."""
    state = after([placed(), fill(4), CANCELLED, fill(6, "2", price="30")])
    assert parts(state.name, state.filled, state.notional) == ["Canceled", 10, 280]


def test_an_execution_of_nothing_books_nothing() -> None:
    """Neither sums nor terms come of it; but its id is known, and other content is a conflict."""
    for quantity in (0, -3):
        nothing = fill(quantity)
        state = after([nothing])
        assert state == OrderState(stage=Stage.EARLY, fills={"1": nothing})
        [conflict] = decide(report(token="SOL", action=Action.BUY), state)
        assert isinstance(conflict, FillConflicted)
        state = after([fill(4, "2"), bust(nothing)])
        assert state.busted == {"1": bust(nothing)}
        assert msgspec.structs.replace(state, busted={}) == after([fill(4, "2")])
        assert decide(busting(), state) == ()


def test_other_terms_from_the_venue() -> None:
    """A replaced order has the new quantity and price, a restated one the new quantity."""
    state = after([placed(), OrderReplaced(order_id=ORDER, quantity=VenueAmount(8))])
    assert parts(state.quantity, state.price) == [8, 25]
    state = after([OrderReplaced(order_id=ORDER, price=VenueAmount(24))], state)
    assert parts(state.quantity, state.price) == [8, 24]
    state = after([OrderRestated(order_id=ORDER, quantity_change=VenueAmount("-1.5"))], state)
    assert parts(state.quantity, state.price) == [Decimal("6.5"), 24]
    state = after([OrderRestated(order_id=ORDER, quantity=VenueAmount(5))], state)
    assert state.quantity == 5
    assert after([OrderRestated(order_id=ORDER)], state).quantity == 5
    change = OrderRestated(order_id=ORDER, quantity_change=VenueAmount(1))
    assert after([placed(None, amount="5"), change]).quantity is None


def test_what_was_paid_is_summed_exactly() -> None:
    """The quote amount counts where it is known, and the caller's context does not matter."""
    exact = fill("0.000000000000000003", price="1.5", quote_amount="0.000000000000000005")
    with localcontext(getcontext()) as context:
        context.prec = 3
        state = after([placed(), fill("1.23456789", "2", price="2"), exact])
    assert state.filled == Decimal("1.234567890000000003")
    assert state.notional == Decimal("2.469135780000000005")


def test_an_order_over_an_amount_is_filled_when_that_is_spent() -> None:
    """The quantity does not matter, what was paid does."""
    order = placed(None, amount="100")
    assert after([order, fill(3)]).name == "PartiallyFilled"
    assert after([order, fill(3), fill(1, "2")]).name == "Filled"
    assert after([order, fill(1, quote_amount="100")]).name == "Filled"


def test_a_working_fill_ends_the_day_and_a_bust_does_not() -> None:
    """The stage follows from executions too, each of its own kind."""
    done = after([placed(), ACCEPTED, fill(1), OrderDoneForDay(order_id=ORDER)])
    assert after([bust(fill(1))], done).name == "DoneForDay"
    assert after([fill(1, "2")], done).name == "PartiallyFilled"
    assert after([bust(fill(1))]).stage == Stage.EARLY


def test_foreign_events_change_nothing() -> None:
    """The state is that of the order's own events."""
    state = after([placed()])
    assert evolve(state, Noted()) is state


@given(st.integers(-(10**30), 10**30), st.integers(0, 30))
@example(0, 2)
def test_raw_integers_are_exact(amount: int, decimals: int) -> None:
    """A raw integer keeps all its places, zeros too."""
    exact = Raw(amount, decimals).exact()
    assert exact.scaleb(decimals, CONTEXT) == amount
    assert exact.as_tuple().exponent == -decimals
    assert exact.is_signed() == (amount < 0)


@pytest.mark.parametrize("raw", [Raw(1, -1), Raw(1, 31), Raw(10**41, 0)])
def test_raw_integers_that_no_event_can_hold_are_invalid(raw: Raw) -> None:
    """Too many digits, or fewer places than none."""
    with pytest.raises(InvalidCommand, match=r"Raw\.amount: .*(places|digits)"):
        raw.exact()


def test_other_events_only_move_the_stage() -> None:
    """Quantities and terms stay as they are, and fills are known as before."""
    before = after([placed(), fill(4)])
    state = evolve(before, ACCEPTED)
    assert state == msgspec.structs.replace(before, stage=int(Stage.PLACED | Stage.ACKNOWLEDGED))
    assert isinstance(state.fills["1"], OrderFilled)
    assert FillBusted not in map(type, state.fills.values())
