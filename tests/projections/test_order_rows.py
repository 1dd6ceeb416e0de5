"""The rows of orders where they are easily off by one: terms, places, digits, positions."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from ledger.domain.orders import Action, OrderAccepted, OrderType
from ledger.domain.users import UserRegistered
from ledger.event import Event
from projections.model import values_of
from projections.orders import Order
from projections.positions import Position
from tests.projections.support import an_id, folded
from tests.support.orders import ORDER, USER, fill, parts, placed

REGISTERED = UserRegistered(user_id=USER, username="user")
OTHER, EXPLICIT = an_id("other"), an_id("explicit")
ACCEPTED = OrderAccepted(order_id=ORDER)


def row_after(*events: Event) -> Order:
    """Return the row of the order after these events, the user being registered before."""
    row = folded([REGISTERED, *events]).rows(Order).get(ORDER)
    assert row is not None
    return row


def of_another_order(event: Event) -> Event:
    """Return the event as one of another order."""
    return msgspec.structs.replace(event, order_id=OTHER)


def test_terms_without_effect_on_fills_are_kept() -> None:
    """Tolerance, strategy and extra data stand in the row as they were placed."""
    row = row_after(placed(slippage_bps=50, strategy="grid", extra_data={"note": "x"}))
    assert parts(row.slippage_bps, row.strategy, row.extra_data) == [50, "grid", {"note": "x"}]
    row = row_after(placed())
    assert parts(row.slippage_bps, row.strategy, row.extra_data) == [None, None, None]


@pytest.mark.parametrize(("quantity", "value"), [("0.5", "12.5"), ("1", "25")])
def test_the_smallest_fill_makes_the_value(quantity: str, value: str) -> None:
    """The value is what was filled, however little that is of what was asked for."""
    order = Order(**values_of(row_after(placed(), fill(quantity))))
    assert order.total_value == Decimal(value)


def test_an_order_over_an_amount_has_nothing_left_when_that_is_spent() -> None:
    """What is left of it is not known in the token before, and is zero then."""
    order = placed(None, amount="100")
    assert row_after(order, fill(3)).leaves_quantity is None
    assert row_after(order, fill(4)).leaves_quantity == 0


def test_without_a_side_nothing_is_spent_or_got() -> None:
    """An order that is known from the venue's word only has no amounts; a placed one has zeros."""
    row = row_after(ACCEPTED)
    assert parts(row.action, row.amount_in, row.amount_out) == [None, None, None]
    row = row_after(placed())
    assert parts(row.amount_in, row.amount_out) == [0, 0]


def test_the_first_fill_of_an_unplaced_order_stands_for_its_terms() -> None:
    """It gives user, token and side; a later fill in another token is counted as other terms."""
    row = row_after(fill(4), fill(1, "2", token="ETH"))
    assert parts(row.user_id, row.token, row.action) == [USER, "SOL", Action.BUY]
    assert row.flags["other_terms"] == 1
    assert "other_terms" not in row_after(fill(4), fill(1, "2")).flags
    assert row_after(fill(4, user_id=OTHER)).user_id is None


def test_the_first_user_of_an_unplaced_order_stays() -> None:
    """A later fill of somebody else is counted as other terms and takes nothing over."""
    events = [UserRegistered(user_id=each, username=str(each)) for each in (USER, OTHER)]
    row = folded([*events, fill(4), fill(1, "2", user_id=OTHER)]).rows(Order).get(ORDER)
    assert row is not None
    assert parts(row.user_id, row.flags["other_terms"]) == [USER, 1]


@pytest.mark.parametrize("action", Action)
def test_a_coarser_fill_keeps_the_places_of_the_finer_one(action: Action) -> None:
    """Raw amounts of either side have the places of the most exact fill, not of the last."""
    fine = fill("1.25", "1", price="2.125", action=action)
    coarse = fill("1.0", "2", price="2", action=action)
    row = row_after(placed(action=action), fine, coarse)
    raw = {row.amount_in_decimals: row.raw_amount_in, row.amount_out_decimals: row.raw_amount_out}
    assert raw == {2: 225, 5: 465_625}
    is_buy = action is Action.BUY
    assert parts(row.amount_in_decimals, row.amount_out_decimals) == ([5, 2] if is_buy else [2, 5])


LARGE = "1" + "0" * 39
DIGITS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "49 digits are paid": ("1" + "0" * 24, {"price": "1" + "0" * 24}, False),
    "50 digits are paid": ("1" + "0" * 24, {"price": "1" + "0" * 25}, True),
    "49 digits are traded": (LARGE + "." + "0" * 9, {"quote_amount": "1"}, False),
    "50 digits are traded": (LARGE + "." + "0" * 10, {"quote_amount": "1"}, True),
    "49 digits are paid, with places": ("1", {"quote_amount": LARGE + "." + "0" * 9}, False),
    "50 digits are paid, with places": ("1", {"quote_amount": LARGE + "." + "0" * 10}, True),
    "each side has its own places": (LARGE, {"quote_amount": "1." + "0" * 20}, False),
    "places of what is large do not add up": ("1." + "0" * 20, {"quote_amount": LARGE}, False),
}


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize(("quantity", "values", "is_inexact"), DIGITS.values(), ids=DIGITS)
def test_a_sum_is_exact_up_to_49_digits(
    quantity: str, values: dict[str, Any], is_inexact: bool, action: Action
) -> None:
    """Each side counts with its own places; where either has more digits, there are no integers."""
    filled = fill(quantity, action=action, **values)
    row = row_after(placed(action=action), filled)
    assert row.flags.get("inexact_amount", 0) == is_inexact
    assert (row.raw_amount_in is None, row.raw_amount_out is None) == (is_inexact, is_inexact)


def test_an_order_is_linked_to_the_position_that_it_names() -> None:
    """As soon as it is placed, if there is such a position."""
    opened = of_another_order(fill(4, position_id=EXPLICIT))
    assert row_after(opened, placed(position_id=EXPLICIT)).position_id == EXPLICIT
    assert row_after(placed(position_id=EXPLICIT)).position_id is None
    assert row_after(opened, placed()).position_id is None


@pytest.mark.parametrize("position_id", [None, EXPLICIT])
def test_an_order_is_linked_to_the_first_position_that_it_moves(position_id: Any) -> None:
    """The cycle that its first fill opens, and not the one that follows after a flip."""
    sold = of_another_order(fill(6, "2", action=Action.SELL, position_id=position_id))
    state = folded(
        [
            REGISTERED,
            placed(position_id=position_id),
            fill(4, position_id=position_id),
            sold,
            fill(1, "3", position_id=position_id),
        ]
    )
    first, second = state.rows(Position)
    row, other = state.rows(Order).get(ORDER), state.rows(Order).get(OTHER)
    assert row is not None
    assert other is not None
    assert row.position_id == first.position_id != second.position_id
    assert other.position_id is not None


def test_a_fill_that_moves_no_position_links_none() -> None:
    """One without a user, one eaten up by its fee, one for a position of other token or user."""
    eaten = fill(1, fee="1", fee_currency="SOL")
    assert row_after(placed(), fill(4, user_id=None)).position_id is None
    assert row_after(placed(), eaten).position_id is None
    cycle = (of_another_order(fill(4)), of_another_order(fill(4, "2", action=Action.SELL)))
    assert row_after(*cycle, placed(), eaten).position_id is None
    held = of_another_order(fill(4, position_id=EXPLICIT))
    order = placed(token="ETH", order_type=OrderType.MARKET, price=None, trigger_price=None)
    row = row_after(held, order, fill(1, token="ETH", position_id=EXPLICIT))
    assert row.position_id is None
    thief = fill(1, user_id=OTHER, position_id=EXPLICIT)
    assert row_after(held, placed(user_id=OTHER), thief).position_id is None
