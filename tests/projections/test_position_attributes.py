"""What a position says at the mark, and the levels and closing orders that protect it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from ledger import amounts
from ledger.domain.marks import PriceMarked
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
    position_tag,
)
from ledger.domain.positions import (
    PositionLiquidated,
    ProtectionSet,
    closing_order_id,
    id_of_nothing,
)
from ledger.domain.users import UserRegistered
from ledger.event import CONTEXT, Amount, Event, VenueAmount
from ledger.journal import Journal
from projections import numbers
from projections.database import Database
from projections.groups import GROUPS
from projections.positions import Position
from projections.projector import Projector
from tests.projections.support import all_rows, an_id, append, one_row

USER, EXPLICIT = an_id("user"), an_id("position")
CLOSER, SECOND = (closing_order_id(EXPLICIT, armed_size) for armed_size in (3, 6))
ORDERS = {"closer": CLOSER, "second": SECOND}
"""Orders under the ids that levels lead to which are armed at these sizes."""
REGISTERED = UserRegistered(user_id=USER, username="user")


def fill(quantity: str, price: str = "10", order: str = "order", **fields: Any) -> OrderFilled:
    """Return a fill of the explicit position; one of a negative quantity sells."""
    event = OrderFilled(
        order_id=ORDERS.get(order) or an_id(order),
        fill_id="fill",
        user_id=USER,
        token="SOL",
        action=Action.SELL if quantity.startswith("-") else Action.BUY,
        price=VenueAmount(price),
        quantity=VenueAmount(quantity.lstrip("-")),
        position_id=EXPLICIT,
    )
    return msgspec.structs.replace(event, **fields)


def busted(filled: OrderFilled) -> FillBusted:
    """Return the bust of a fill."""
    return FillBusted(**{name: getattr(filled, name) for name in filled.__struct_fields__})


@pytest.mark.parametrize(
    ("size", "cost", "mark", "pnl", "pnl_pct", "value"),
    [
        ("4", "40", "12.5", "10", "25", "50"),
        ("-4", "40", "12.5", "-10", "-25", "50"),
        ("4", "40", "8", "-8", "-20", "32"),
        ("-4", "40", "8", "8", "20", "32"),
        ("0", "0", "8", "0", None, "0"),
        ("3", "1", "0.33333333", "-0.00000001", "-0.000001", "0.99999999"),
        ("4", "-40", "8", "72", "-180", "32"),
        ("4", "40", None, None, None, None),
    ],
)
def test_what_a_position_is_worth(
    size: str, cost: str, mark: str | None, pnl: str | None, pnl_pct: str | None, value: str | None
) -> None:
    """Gain, percentage and value follow from the exact columns; without a mark there are none."""
    row = Position(exact_size=Decimal(size), cost_basis=Decimal(cost), status="open")
    row.current_price = decimal(mark)
    assert row.entry_value == Decimal(cost)
    assert (row.pnl, row.pnl_pct, row.position_value) == (
        decimal(pnl),
        decimal(pnl_pct),
        decimal(value),
    )


def decimal(text: str | None) -> Decimal | None:
    """Return an amount, or None."""
    return None if text is None else Decimal(text)


@pytest.mark.parametrize(
    ("size", "mark", "stop", "target"),
    [
        ("4", "9", True, False),
        ("4", "9.01", False, False),
        ("4", "11", False, True),
        ("4", "10.99", False, False),
        ("-4", "9", False, True),
        ("-4", "9.01", False, False),
        ("-4", "11", True, False),
        ("-4", "10.99", False, False),
        ("4", None, None, None),
    ],
)
def test_when_a_level_is_reached(
    size: str, mark: str | None, stop: bool | None, target: bool | None
) -> None:
    """A long position stops at or below, a short one at or above; targets the other way round."""
    low, high = Decimal(9), Decimal(11)
    levels = (low, high) if Decimal(size) > 0 else (high, low)
    row = Position(exact_size=Decimal(size), status="open", stop_loss=None, take_profit=None)
    row.current_price = decimal(mark)
    assert (row.should_stop_loss, row.should_take_profit) == (None, None)
    row.stop_loss, row.take_profit = levels
    assert (row.should_stop_loss, row.should_take_profit) == (stop, target)
    row.status = "liquidated"
    closed = None if mark is None else False
    assert (row.should_stop_loss, row.should_take_profit) == (closed, closed)
    assert (row.is_open, row.is_liquidated) == (False, True)


async def test_attributes_are_there_when_rows_are_read(
    journal: Journal, database: Database
) -> None:
    """A position that is read from the database follows the last mark of its token."""
    levels = ProtectionSet(position_id=EXPLICIT, stop_loss=Amount(9), take_profit=Amount(12))
    marked = PriceMarked(token="SOL", price=VenueAmount("12.5"))
    await append(journal, [REGISTERED, fill("4"), levels])
    for group in GROUPS.values():
        await Projector(database, journal, group).catch_up()
    async with database.session() as session:
        row = (await session.scalars(sa.select(Position))).one()
        assert (row.pnl, row.should_take_profit, row.armed_size) == (None, None, 3)
    await append(journal, [marked])
    for group in GROUPS.values():
        await Projector(database, journal, group).catch_up()
    async with database.session() as session:
        row = (await session.scalars(sa.select(Position))).one()
        worth = (Decimal(10), Decimal(25), Decimal(50))
        assert (row.pnl, row.pnl_pct, row.position_value) == worth
        assert (row.should_stop_loss, row.should_take_profit) == (False, True)


def test_fees_in_third_currencies_are_kept() -> None:
    """They are summed by currency in plain notation, split on a flip, and taken back by a bust."""
    in_bnb: dict[str, Any] = {"fee": VenueAmount("0.0000001"), "fee_currency": "BNB"}
    first = fill("4", **in_bnb)
    flip = fill("-10", fee=VenueAmount("2.5"), fee_currency="BNB")
    other = fill("-1", fee=VenueAmount("-3"), fee_currency="ZRX")
    rows = all_rows([REGISTERED, first, first, busted(first), flip, other], Position)
    assert [row.other_fees for row in rows] == [
        {"BNB": "1.0000001"},
        {"BNB": "1.5", "ZRX": "-3"},
    ]
    assert [row.exact_fees for row in rows] == [0, 0]
    assert one_row([REGISTERED, fill("4", fee=VenueAmount(1))], Position).other_fees == {}


def test_what_was_paid_counts_more_than_price_times_quantity() -> None:
    """Cost and proceeds are the quote amounts where the venue gives them."""
    bought = fill("4", "10", quote_amount=VenueAmount("41"))
    sold = fill("-2", "10", quote_amount=VenueAmount("23"))
    row = one_row([REGISTERED, bought, sold], Position)
    assert (row.cost_basis, row.exact_realized_pnl) == (Decimal("20.5"), Decimal("2.5"))
    flip = fill("-8", "10", quote_amount=VenueAmount("88"))
    closed, opened = all_rows([REGISTERED, bought, flip], Position)
    assert (closed.exact_realized_pnl, opened.cost_basis) == (Decimal(3), Decimal(44))


def test_nobody_moves_the_explicit_position_of_a_user_who_is_not_known() -> None:
    """The position is that of the user in its fills, registered or not."""
    thief = fill("-4", user_id=an_id("other"))
    row = one_row([fill("4"), thief], Position)
    assert (row.exact_size, row.owner_id, row.user_id) == (Decimal(4), USER, None)
    assert row.flags == {"unknown_user": 1, "fill_of_another": 1}


def protect(**levels: str) -> ProtectionSet:
    """Return levels for the explicit position."""
    amounts: dict[str, Any] = {name: Amount(level) for name, level in levels.items()}
    return ProtectionSet(position_id=EXPLICIT, **amounts)


def closing(order: str = "closer", quantity: str | None = "4", **fields: Any) -> OrderPlaced:
    """Return an order that is to close the explicit position."""
    event = OrderPlaced(
        order_id=ORDERS.get(order) or an_id(order),
        user_id=USER,
        token="SOL",
        action=Action.SELL,
        order_type=OrderType.MARKET,
        quantity=None if quantity is None else Amount(quantity),
        reduce_only=True,
        position_id=EXPLICIT,
        closes_position_id=EXPLICIT,
    )
    return msgspec.structs.replace(event, **fields)


OPENED = [REGISTERED, fill("4")]
ARMED = [*OPENED, protect(stop_loss="9")]
AT_WORK = [*ARMED, closing()]


def guard_of(events: list[Event]) -> tuple[Any, Any]:
    """Return since when the levels of the first position are armed, and its closing order."""
    row = all_rows(events, Position)[0]
    return row.armed_size, row.closing_order_id


def test_levels_are_armed_by_what_sets_them() -> None:
    """Each setting arms anew, one without levels disarms, and a flip's new position has none."""
    assert guard_of(OPENED) == (None, None)
    assert guard_of(ARMED) == (3, None)
    assert guard_of([*ARMED, fill("1"), protect(take_profit="12")]) == (5, None)
    assert guard_of([*ARMED, protect()]) == (None, None)
    closed, opened = all_rows([*ARMED, fill("-6")], Position)
    assert (closed.armed_size, opened.armed_size, opened.stop_loss) == (None, None, None)
    assert closed.stop_loss == Amount(9)


def test_one_closing_order_is_at_work() -> None:
    """Only that whose id follows from cycle and levels counts, whoever else names the cycle."""
    assert guard_of(AT_WORK) == (3, CLOSER)
    assert guard_of([*AT_WORK, closing("second")]) == (3, CLOSER)
    assert guard_of([*OPENED, closing()]) == (None, None)
    assert guard_of([*ARMED, closing(closes_position_id=an_id("another"))]) == (3, None)
    assert guard_of([*ARMED, closing(closes_position_id=None)]) == (3, None)
    for stranger in ("second", "of another user", "in another token"):
        assert guard_of([*ARMED, closing(stranger)]) == (3, None)
    known = OrderAccepted(order_id=CLOSER)
    assert guard_of([*ARMED, known, closing()]) == (3, None)
    assert guard_of([*ARMED, fill("-4"), closing()]) == (None, None)
    assert guard_of([*AT_WORK, known]) == (3, CLOSER)
    row = one_row(AT_WORK, Position)
    assert row.changed_size == 4


@pytest.mark.parametrize(
    "ending",
    [
        OrderRejected(order_id=CLOSER, reason="no"),
        OrderFailed(order_id=CLOSER, reason="no"),
        OrderCancelled(order_id=CLOSER),
        OrderExpired(order_id=CLOSER),
        OrderReplaced(order_id=CLOSER, quantity=VenueAmount("1")),
        OrderRestated(order_id=CLOSER, quantity_change=VenueAmount("-3")),
    ],
)
def test_a_closing_order_that_ends_arms_the_levels_again(ending: Event) -> None:
    """After its end, or when nothing is left of it, the levels wait for later marks."""
    history = [*AT_WORK, fill("-1", order="closer")]
    assert guard_of(history) == (3, CLOSER)
    assert guard_of([*history, ending]) == (6, None)
    assert guard_of([*AT_WORK, protect(), fill("-1", order="closer"), ending]) == (None, None)
    assert guard_of([*history, ending, closing("second")]) == (6, SECOND)
    assert guard_of([*history, msgspec.structs.replace(ending, order_id=an_id("x"))])[0] == 3
    closed = [*AT_WORK, fill("-4")]
    assert guard_of([*closed, ending]) == (None, None)
    assert all_rows([*closed, ending], Position)[0].changed_size == 5


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([closing(quantity="3"), fill("-3", order="closer")], (5, None)),
        ([closing(quantity="3"), fill("-2", order="closer")], (3, CLOSER)),
        (
            [closing(quantity="3"), fill("-2", order="closer"), fill("-1", order="closer")],
            (6, None),
        ),
        ([closing(quantity="4"), fill("-3", order="closer")], (3, CLOSER)),
        ([closing(), fill("-1"), fill("-3", order="closer")], (None, None)),
        ([closing(), OrderReplaced(order_id=CLOSER, price=VenueAmount(9))], (3, CLOSER)),
        ([closing(), OrderReplaced(order_id=CLOSER, quantity=VenueAmount(1))], (3, CLOSER)),
        ([closing(), OrderRestated(order_id=CLOSER, quantity=VenueAmount(0))], (5, None)),
        ([closing(), fill("-3", order="closer", user_id=None)], (3, CLOSER)),
        ([closing(), fill("-4", order="closer", user_id=None)], (5, None)),
        ([closing(quantity=None, amount=Amount(30)), fill("-3", order="closer")], (5, None)),
        ([closing(quantity=None, amount=Amount(31)), fill("-3", order="closer")], (3, CLOSER)),
        ([closing(quantity=None), fill("-3", order="closer")], (3, CLOSER)),
    ],
)
def test_a_closing_order_without_anything_left_arms_the_levels_again(
    events: list[Event], expected: tuple[Any, Any]
) -> None:
    """Completely filled while the cycle is open, it has done its work and the rest is guarded."""
    assert guard_of([*ARMED, *events]) == expected


def test_a_liquidation_ends_all_protection() -> None:
    """A liquidated cycle keeps its levels to be read, but neither arms nor closing order."""
    price, fee = VenueAmount(5), VenueAmount("0.5")
    forced = PositionLiquidated(position_id=EXPLICIT, price=price, fee=fee)
    row = one_row([*AT_WORK, forced, protect(stop_loss="8")], Position)
    assert (row.armed_size, row.closing_order_id, row.stop_loss) == (None, None, Amount(9))
    assert (row.exact_realized_pnl, row.exact_fees) == (Decimal(-20), fee)
    assert row.status == "liquidated"
    assert row.flags == {"after_liquidated:ProtectionSet": 1}
    short = one_row([REGISTERED, fill("-4"), forced], Position)
    assert short.exact_realized_pnl == Decimal(20)
    assert short.exact_size == short.cost_basis == 0


def test_decisions_and_folds_compute_alike() -> None:
    """There is one decimal context, for the write side and the read side."""
    assert amounts.CONTEXT is CONTEXT is numbers.CONTEXT


NETTING = position_tag(USER, "SOL", None)


def netting(quantity: str, **fields: Any) -> OrderFilled:
    """Return a fill of the user's netting book."""
    return fill(quantity, position_id=None, **fields)


def forced(**fields: Any) -> PositionLiquidated:
    """Return a liquidation at 5 for a fee of 2."""
    return PositionLiquidated(price=VenueAmount(5), fee=VenueAmount(2), **fields)


def told(events: list[Event]) -> list[tuple[Any, ...]]:
    """Return book, status, size, fees, stop loss and flags of all positions."""
    rows = all_rows(events, Position)
    return [(r.book, r.status, r.size, r.fees, r.stop_loss, r.flags) for r in rows]


def test_the_id_of_a_netting_cycle_is_not_that_of_a_book() -> None:
    """Where an event gives the book, an explicit one of the same id is left alone, and flagged."""
    opened = [REGISTERED, netting("4")]
    [row] = all_rows(opened, Position)
    named = fill("-1", position_id=row.position_id)
    level = ProtectionSet(position_id=row.position_id, book=NETTING, stop_loss=Amount(9))
    liquidated = forced(position_id=row.position_id, book=NETTING)
    other = (f"position:{row.position_id}", "open", -1, 0, None, {"derived_position_id": 1})
    assert told([*opened, named, level]) == [(NETTING, "open", 4, 0, 9, {}), other]
    assert told([*opened, named, level, liquidated]) == [
        (NETTING, "liquidated", 0, 2, 9, {}),
        other,
    ]


def test_a_liquidation_without_the_book_of_its_position_closes_nothing() -> None:
    """What is decided about the book does not see it; the row is flagged, its fee stands apart."""
    opened = [REGISTERED, netting("4")]
    [row] = all_rows(opened, Position)
    lost = f"position:{row.position_id}"
    assert told([*opened, forced(position_id=row.position_id)]) == [
        (NETTING, "open", 4, 0, None, {"liquidated_without_book": 1}),
        (lost, "liquidated", 0, 2, None, {"liquidated_nothing": 1}),
    ]


def test_a_liquidation_of_nothing_is_on_record() -> None:
    """It has one row for each book, with its fees; the book is opened by the next fill as ever."""
    nothing = forced(position_id=id_of_nothing(NETTING), book=NETTING)
    for events in ([REGISTERED, nothing, nothing, netting("4")],
                   [REGISTERED, netting("3"), nothing, netting("1"), nothing]):  # fmt: skip
        rows = sorted(told(list(events)), key=lambda each: str(each[1]))
        assert rows == [
            (NETTING, "liquidated", 0, 4, None, {"liquidated_nothing": 2}),
            (NETTING, "open", 4, 0, None, {}),
        ]


def test_a_liquidation_after_a_close_books_its_fee() -> None:
    """The cycle stays closed and is flagged, but the venue has charged for it."""
    assert told([*OPENED, fill("-4"), forced(position_id=EXPLICIT)]) == [
        (f"position:{EXPLICIT}", "closed", 0, 2, None, {"after_closed:PositionLiquidated": 1})
    ]


def test_a_bust_that_opens_a_cycle_is_flagged() -> None:
    """The position is back without the levels that it had."""
    closed = fill("-4")
    rows = all_rows([*ARMED, closed, busted(closed)], Position)
    assert [(row.status, row.stop_loss, row.armed_size) for row in rows] == [
        ("closed", Amount(9), None),
        ("open", None, None),
    ]
    assert rows[1].flags == {"fill_busted": 1, "reopened_unprotected": 1}


def test_long_tokens_are_told_apart() -> None:
    """Two tokens that no column holds are not one position under an explicit id."""
    one, other = fill("4", token="a" * 256), fill("3", token="b" * 256)
    row = one_row([REGISTERED, one, other], Position)
    assert (row.size, row.flags) == (Decimal(4), {"fill_of_another": 1})
    row = one_row([REGISTERED, one, one], Position)
    assert (row.size, row.flags) == (Decimal(8), {})


async def test_a_small_mark_is_not_rounded(journal: Journal, database: Database) -> None:
    """Gain, value and levels follow from the mark with all its places."""
    small = VenueAmount("0.000000012345")
    bought = fill("1000000000", price=str(small))
    levels = ProtectionSet(position_id=EXPLICIT, stop_loss=Amount("0.00000001"))
    await append(journal, [REGISTERED, bought, levels, PriceMarked(token="SOL", price=small)])
    for group in GROUPS.values():
        await Projector(database, journal, group).catch_up()
    async with database.session() as session:
        row = (await session.scalars(sa.select(Position))).one()
        assert (row.pnl, row.position_value) == (Decimal(0), Decimal("12.345"))
        assert row.should_stop_loss is False
