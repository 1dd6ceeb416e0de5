"""The rows of positions where they are easily off: small sizes, flags, what an order has left."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal, getcontext, localcontext
from typing import Any

import msgspec
import pytest

from ledger.domain.orders import (
    Action,
    FillBusted,
    OrderAccepted,
    OrderCancelled,
    OrderExpired,
    OrderFailed,
    OrderFilled,
    OrderPlaced,
    OrderRejected,
    OrderReplaced,
    OrderRestated,
    OrderType,
)
from ledger.domain.positions import (
    PositionLiquidated,
    ProtectionSet,
    closing_order_id,
    cycle_id,
)
from ledger.domain.users import UserRegistered
from ledger.event import Amount, Event, VenueAmount
from projections.model import values_of
from projections.positions import Position, positions
from tests.projections.support import JOURNAL, START, all_rows, an_id, one_row
from tests.support.orders import USER, bust, fill, placed

REGISTERED = UserRegistered(user_id=USER, username="user")
EXPLICIT = an_id("explicit")
SELL: dict[str, Any] = {"action": Action.SELL}


def row_after(*events: Event) -> Position:
    """Return the only position of a registered user."""
    return one_row([REGISTERED, *events], Position)


def test_a_closed_cycle_says_at_which_size_it_closed() -> None:
    """That is the journal's size with the event that closed it; an open one has none."""
    opening = fill(1)
    assert row_after(opening).closed_size is None
    closing = fill(1, "2", action=Action.SELL)
    assert row_after(opening, closing).closed_size == len((REGISTERED, opening, closing))


@pytest.mark.parametrize("size", ["0.5", "1"])
@pytest.mark.parametrize(("side", "mark"), [(1, "9"), (1, "11"), (-1, "9"), (-1, "11")])
def test_levels_of_the_smallest_positions(size: str, side: int, mark: str) -> None:
    """A position of one unit, or less, is as long or short as a large one."""
    low, high = Decimal(9), Decimal(11)
    stop, target = (low, high) if side > 0 else (high, low)
    row = Position(exact_size=side * Decimal(size), status="open", stop_loss=stop)
    row.take_profit, row.current_price = target, Decimal(mark)
    reached = (row.current_price == stop, row.current_price == target)
    assert (row.should_stop_loss, row.should_take_profit) == reached


def test_the_readers_decimal_context_does_not_matter() -> None:
    """Value and gain have all their digits, whatever precision the reader has set."""
    row = Position(exact_size=Decimal("1.23456789"), cost_basis=Decimal(3), status="open")
    row.current_price = Decimal("2.0000001")
    with localcontext(getcontext()) as context:
        context.prec = 3
        found = row.position_value, row.pnl, row.pnl_pct
    value = Decimal("2.469135903456789")
    with localcontext(getcontext()) as context:
        context.prec = 50
        gain = value - 3
        assert found == (value, gain, gain / 3 * 100)


def test_a_position_has_the_strategy_of_the_order_that_opened_it() -> None:
    """An order that is not known, or has none, gives none."""
    assert row_after(placed(strategy="grid"), fill(4)).strategy == "grid"
    assert row_after(placed(), fill(4)).strategy is None
    assert row_after(fill(4)).strategy is None


def test_the_id_of_a_netting_position_follows_from_journal_and_fill() -> None:
    """So it is the same in every replay, and another in another journal."""
    opened = fill(4)
    expected = cycle_id(JOURNAL, an_id("event 1"), opened, is_first=True)
    assert row_after(opened).position_id == expected
    assert cycle_id("other", an_id("event 1"), opened, is_first=True) != expected


def test_a_position_is_dated_by_its_first_and_its_last_fill() -> None:
    """While it is open it has no date of closing."""
    row = row_after(fill(4), fill(1, "2", **SELL))
    assert (row.opened_at, row.closed_at) == (START + timedelta(seconds=1), None)
    row = row_after(fill(4), fill(1, "2", **SELL), fill(3, "3", **SELL))
    assert (row.status, row.closed_at) == ("closed", START + timedelta(seconds=3))


def test_what_is_odd_about_fills_is_counted_by_name() -> None:
    """A fee in a third currency and a bust; a fee in the token or the quote currency is not odd."""
    assert row_after(fill(4, fee="1")).flags == {}
    assert row_after(fill(4, fee="1", fee_currency="SOL")).flags == {}
    in_bnb = fill(4, fee="1", fee_currency="BNB")
    assert row_after(in_bnb).flags == {"fee_in_other_currency": 1}
    second = fill(1, "2")
    assert row_after(fill(4), second, bust(second)).flags == {"fill_busted": 1}


def test_an_execution_of_nothing_moves_nothing() -> None:
    """Neither does its fee in the token: no position opens, and an open one is not touched."""
    nothing = fill(0, "2", fee="1", fee_currency="SOL")
    assert all_rows([REGISTERED, nothing], Position) == []
    assert values_of(row_after(fill(4), nothing)) == values_of(row_after(fill(4)))


def test_a_liquidation_of_nothing_has_a_row_that_is_closed_from_the_start() -> None:
    """It opens and closes with the event, and is never among the open positions."""
    row = row_after(PositionLiquidated(position_id=EXPLICIT, price=VenueAmount(5)))
    assert (row.status, row.exact_size) == ("liquidated", Decimal(0))
    assert row.opened_at == row.closed_at == START + timedelta(seconds=1)
    assert row.closed_size == 2


CLOSER = closing_order_id(EXPLICIT, 3)
ARMED = (fill(4, position_id=EXPLICIT), ProtectionSet(position_id=EXPLICIT, stop_loss=Amount(9)))


def closing(**values: Any) -> OrderPlaced:
    """Return the order that is to close the position, whose levels were armed at size 3."""
    given: dict[str, Any] = {"quantity": Amount(4), "position_id": EXPLICIT, "reduce_only": True}
    return OrderPlaced(
        order_id=CLOSER,
        user_id=USER,
        token="SOL",
        action=Action.SELL,
        order_type=OrderType.MARKET,
        closes_position_id=EXPLICIT,
        **given | values,
    )


def sold(quantity: str, fill_id: str) -> OrderFilled:
    """Return a fill of the closing order at 10."""
    event = fill(quantity, fill_id, price="10", position_id=EXPLICIT, **SELL)
    return msgspec.structs.replace(event, order_id=CLOSER)


def test_a_closing_order_that_is_made_smaller_is_at_work_while_something_is_left() -> None:
    """The change is taken from what was ordered; with nothing left the levels are armed again."""
    for change, expected in ((-2, (3, CLOSER)), (-3, (6, None))):
        restated = OrderRestated(order_id=CLOSER, quantity_change=VenueAmount(change))
        row = row_after(*ARMED, closing(), sold("1", "2"), restated)
        assert (row.armed_size, row.closing_order_id) == expected


def test_a_closing_order_over_an_amount_is_done_when_all_of_that_was_got() -> None:
    """Every fill counts towards the amount, not the last one only."""
    order = closing(quantity=None, amount=Amount(30))
    row = row_after(*ARMED, order, sold("1", "2"))
    assert (row.armed_size, row.closing_order_id) == (3, CLOSER)
    row = row_after(*ARMED, order, sold("1", "2"), sold("2", "3"))
    assert (row.armed_size, row.closing_order_id) == (6, None)


def asked_for(event: Event) -> set[tuple[str, Any]]:
    """Return by what names positions are loaded before an event is folded."""
    return {(alias.column, name) for alias in positions.aliases for name in alias.wanted(event)}


@pytest.mark.parametrize(
    ("event", "is_asked"),
    [
        (sold("1", "2"), True),
        (OrderCancelled(order_id=CLOSER), True),
        (OrderRejected(order_id=CLOSER, reason="no"), True),
        (OrderFailed(order_id=CLOSER, reason="no"), True),
        (OrderExpired(order_id=CLOSER), True),
        (OrderReplaced(order_id=CLOSER), True),
        (OrderRestated(order_id=CLOSER), True),
        (OrderAccepted(order_id=CLOSER), False),
        (FillBusted(**msgspec.structs.asdict(sold("1", "2"))), False),
    ],
)
def test_what_may_end_a_closing_order_loads_its_position(event: Event, is_asked: bool) -> None:
    """A batch that holds nothing else of the position finds it by the order that is at work."""
    assert (("closing_order_id", CLOSER) in asked_for(event)) == is_asked
