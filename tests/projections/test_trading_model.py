"""Random commands against a plain model in fractions, step by step, without a database."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ledger.domain.orders import (
    Action,
    FillBusted,
    OrderCancelled,
    OrderFilled,
    OrderPlaced,
    OrderRejected,
    OrderType,
    position_tag,
)
from ledger.domain.positions import PositionLiquidated, ProtectionSet, closing_order_id
from ledger.domain.users import UserRegistered
from ledger.event import Amount, Event, VenueAmount
from projections.groups import POSTINGS, TRADING
from projections.orders import Order
from projections.positions import Position
from projections.postings import BookBalance, Posting
from projections.trial_balance import trial_balance
from tests.projections.support import JOURNAL, JOURNAL_ID, an_id, record

USERS = [an_id(name) for name in ("known", "unknown")]
HEDGED = an_id("hedged")
NEAR = Fraction(1, 10**20)


@dataclass
class Cycle:
    """What one position should come to: signed size and cost, sums of gains and fees."""

    size: Fraction = Fraction(0)
    cost: Fraction = Fraction(0)
    gained: Fraction = Fraction(0)
    fees: Fraction = Fraction(0)
    other_fees: Fraction = Fraction(0)
    status: str = "open"
    levels: bool = False
    armed: int | None = None
    closing: UUID | None = None

    def guard(self, size: int) -> None:
        """Arm the levels, if there are any."""
        self.armed = size if self.levels else None


@dataclass
class Deal:
    """What a fill is worth: `quoted` is the quote amount where that is known exactly."""

    price: str
    fee: str | None
    currency: str | None
    quoted: str | None


@dataclass
class Asked:
    """What an order asked for and got."""

    user: UUID
    token: str
    action: Action
    position_id: UUID | None
    quantity: Fraction
    filled: Fraction = Fraction(0)
    is_over: bool = False
    fills: list[OrderFilled] = field(default_factory=list)

    @property
    def book(self) -> str:
        """The book that its fills move."""
        return position_tag(self.user, self.token, self.position_id)


@dataclass
class Model:
    """All cycles by book, the latest last, and all orders."""

    books: dict[str, list[Cycle]] = field(default_factory=dict)
    orders: dict[UUID, Asked] = field(default_factory=dict)

    def current(self, book: str) -> Cycle | None:
        """Return the open cycle of a book."""
        cycles = self.books.get(book, [])
        return cycles[-1] if cycles and cycles[-1].status == "open" else None

    def trade(self, book: str, size: Fraction, value: Fraction, fees: list[Fraction]) -> None:
        """Buy `size` for `value` (both negative: sell); fees are in quote and third currency."""
        cycle = self.current(book)
        if cycle and cycle.size * size < 0 and abs(size) >= abs(cycle.size):
            part = -cycle.size / size
            self.end(cycle, value * part, [fee * part for fee in fees], "closed")
            rest = 1 - part
            size, value, fees = size * rest, value * rest, [fee * rest for fee in fees]
            cycle = None
        if cycle is None:
            if size == 0:
                return
            cycle = Cycle()
            self.books.setdefault(book, []).append(cycle)
        self.charge(cycle, fees)
        leaving = value
        if cycle.size * size < 0:
            leaving = cycle.cost * size / cycle.size
        cycle.gained += leaving - value
        cycle.cost += leaving
        cycle.size += size

    def undo(self, book: str, size: Fraction, value: Fraction, fees: list[Fraction]) -> None:
        """Take a trade back: at its own cost, unless that closes or flips the position."""
        cycle = self.current(book)
        if cycle and cycle.size * size > 0 and abs(size) < abs(cycle.size):
            self.charge(cycle, [-fee for fee in fees])
            cycle.cost -= value
            cycle.size -= size
        else:
            self.trade(book, -size, -value, [-fee for fee in fees])

    def charge(self, cycle: Cycle, fees: list[Fraction]) -> None:
        """Add fees."""
        cycle.fees += fees[0]
        cycle.other_fees += fees[1]

    def end(self, cycle: Cycle, value: Fraction, fees: list[Fraction], status: str) -> None:
        """Close a cycle for this value, negative where it brings something in."""
        cycle.gained -= cycle.cost + value
        cycle.size = cycle.cost = Fraction(0)
        cycle.status = status
        cycle.armed = cycle.closing = None
        self.charge(cycle, fees)


def terms(event: OrderFilled) -> tuple[Fraction, Fraction, list[Fraction]]:
    """Return a fill's size after the token's fee, what that cost, and its two kinds of fee."""
    side = 1 if event.action == Action.BUY else -1
    size, price = side * Fraction(event.quantity), Fraction(event.price)
    value = size * price if event.quote_amount is None else side * Fraction(event.quote_amount)
    fee = Fraction(event.fee or 0)
    if event.fee_currency is None:
        return size, value, [fee, Fraction(0)]
    if event.fee_currency == event.token:
        worth = fee * value / size
        return size - fee, value - worth, [worth, Fraction(0)]
    return size, value, [Fraction(0), fee]


amounts = st.one_of(
    st.integers(1, 12).map(str),
    st.decimals("0.001", "20", places=3).map(str),
    st.decimals("0.000000000000000001", "9", places=18).map(lambda value: f"{value:f}"),
)
placed_amounts = st.decimals("0.01", "30", places=2).map(str)
fees = st.one_of(st.none(), st.decimals("-0.05", "0.05", places=4).map(str))
deals = st.builds(
    Deal,
    price=amounts,
    fee=fees,
    currency=st.sampled_from([None, "token", "BNB"]),
    quoted=st.one_of(st.none(), st.none(), amounts),
)


class Trading(RuleBasedStateMachine):
    """Two folds, fed with the events of random commands, beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.trading = TRADING.state(JOURNAL_ID, JOURNAL)
        self.booked = POSTINGS.state(JOURNAL_ID, JOURNAL)
        self.size = 0

    def happen(self, event: Event) -> None:
        """Fold an event into both groups."""
        recorded = record([event], self.size)
        self.size += 1
        TRADING.fold(self.trading, recorded)
        POSTINGS.fold(self.booked, recorded)

    @initialize()
    def register(self) -> None:
        """Let one of the two users exist."""
        self.happen(UserRegistered(user_id=USERS[0], username="known"))

    @rule(
        user=st.sampled_from(USERS),
        token=st.sampled_from(["SOL", "SOL", "ETH"]),
        action=st.sampled_from(list(Action)),
        hedging=st.booleans(),
        quantity=placed_amounts,
        deal=st.one_of(st.none(), deals),
    )
    def place(
        self,
        user: UUID,
        token: str,
        action: Action,
        hedging: bool,
        quantity: str,
        deal: Deal | None,
    ) -> None:
        """Place an order, which may be filled at once; only SOL of one user is hedged."""
        position_id = HEDGED if hedging and (user, token) == (USERS[0], "SOL") else None
        asked = Asked(user, token, action, position_id, Fraction(quantity))
        order_id = self.ask(asked, quantity)
        if deal is not None:
            self.execute(order_id, asked, quantity, deal)

    def ask(
        self,
        asked: Asked,
        quantity: str,
        closes: UUID | None = None,
        order_id: UUID | None = None,
    ) -> UUID:
        """Place an order and note it in the model."""
        order_id = order_id or an_id(f"order {len(self.model.orders)}")
        self.model.orders[order_id] = asked
        self.happen(
            OrderPlaced(
                order_id=order_id,
                user_id=asked.user,
                token=asked.token,
                action=asked.action,
                order_type=OrderType.MARKET,
                quantity=Amount(quantity),
                position_id=asked.position_id,
                reduce_only=closes is not None,
                closes_position_id=closes,
            )
        )
        return order_id

    def pick(self, number: int) -> tuple[UUID, Asked]:
        """Return one of the orders, the latest ones more often."""
        orders = list(self.model.orders.items())
        return orders[-1 - number % min(len(orders), 6)]

    @precondition(lambda self: self.model.orders)
    @rule(number=st.integers(0, 5), quantity=st.one_of(st.none(), amounts), deal=deals)
    def fill(self, number: int, quantity: str | None, deal: Deal) -> None:
        """Fill an order, in full or in part, also too much or after its end."""
        order_id, asked = self.pick(number)
        left = asked.quantity - asked.filled
        if quantity is None and left > 0:
            quantity = format(decimal(left), "f")
        if quantity is not None:
            self.execute(order_id, asked, quantity, deal)

    def execute(self, order_id: UUID, asked: Asked, quantity: str, deal: Deal) -> None:
        """Let the venue report a fill."""
        event = OrderFilled(
            order_id=order_id,
            fill_id=f"fill {self.size}",
            user_id=asked.user,
            token=asked.token,
            action=asked.action,
            price=VenueAmount(deal.price),
            quantity=VenueAmount(quantity),
            position_id=asked.position_id,
            fee=None if deal.fee is None else VenueAmount(deal.fee),
            fee_currency=asked.token if deal.currency == "token" else deal.currency,
            quote_amount=None if deal.quoted is None else VenueAmount(deal.quoted),
        )
        self.happen(event)
        asked.fills.append(event)
        asked.filled += Fraction(event.quantity)
        self.model.trade(asked.book, *terms(event))
        if asked.filled >= asked.quantity:
            self.end_closing(order_id)

    @precondition(lambda self: any(asked.fills for asked in self.model.orders.values()))
    @rule(number=st.integers(0, 50))
    def bust(self, number: int) -> None:
        """Take one of the last fills back."""
        fills = [(asked, each) for asked in self.model.orders.values() for each in asked.fills]
        asked, event = fills[-1 - number % len(fills)]
        asked.fills.remove(event)
        asked.filled -= Fraction(event.quantity)
        self.happen(FillBusted(**{name: getattr(event, name) for name in event.__struct_fields__}))
        self.model.undo(asked.book, *terms(event))

    @precondition(lambda self: self.model.orders)
    @rule(number=st.integers(0, 5), rejected=st.booleans())
    def cancel(self, number: int, rejected: bool) -> None:
        """End an order without the rest of its fills."""
        order_id, asked = self.pick(number)
        if asked.is_over or asked.filled >= asked.quantity:
            return
        asked.is_over = True
        if rejected:
            self.happen(OrderRejected(order_id=order_id, reason="no"))
        else:
            self.happen(OrderCancelled(order_id=order_id))
        self.end_closing(order_id)

    def end_closing(self, order_id: UUID) -> None:
        """Arm the levels again of the cycle that the order was to close."""
        for cycle in (each for cycles in self.model.books.values() for each in cycles):
            if cycle.closing == order_id:
                cycle.closing = None
                cycle.guard(self.size)

    def open_row(self, number: int) -> tuple[Position, Cycle] | None:
        """Return one of the open positions, and its counterpart in the model."""
        rows = [row for row in self.trading.rows(Position) if row.status == "open"]
        if not rows:
            return None
        row = rows[number % len(rows)]
        cycle = self.model.current(row.book)
        assert cycle is not None
        return row, cycle

    @precondition(lambda self: self.size % 4 == 0)
    @rule(number=st.integers(0, 5), price=amounts, fee=fees)
    def liquidate(self, number: int, price: str, fee: str | None) -> None:
        """Let the venue close a position, and report it a second time."""
        found = self.open_row(number)
        if found is None:
            return
        row, cycle = found
        event = PositionLiquidated(
            position_id=row.position_id,
            book=row.book,
            price=VenueAmount(price),
            fee=None if fee is None else VenueAmount(fee),
        )
        self.happen(event)
        value = -cycle.size * Fraction(price)
        self.model.end(cycle, value, [Fraction(fee or 0), Fraction(0)], "liquidated")
        self.happen(event)
        self.model.charge(cycle, [Fraction(fee or 0), Fraction(0)])

    @rule(number=st.integers(0, 5), level=st.one_of(placed_amounts, placed_amounts, st.none()))
    def protect(self, number: int, level: str | None) -> None:
        """Set or take away a stop loss."""
        found = self.open_row(number)
        if found is None:
            return
        row, cycle = found
        stop = None if level is None else Amount(level)
        self.happen(ProtectionSet(position_id=row.position_id, book=row.book, stop_loss=stop))
        cycle.levels = stop is not None
        cycle.guard(self.size)

    @rule(
        number=st.integers(0, 5),
        quantity=placed_amounts,
        deal=st.one_of(st.none(), deals),
        meant=st.sampled_from([True, True, False]),
    )
    def close(self, number: int, quantity: str, deal: Deal | None, meant: bool) -> None:
        """Place a protective order, which counts if the levels wait for it and none is at work."""
        found = self.open_row(number)
        if found is None:
            return
        row, cycle = found
        assert row.owner_id
        assert row.token
        action = Action.SELL if cycle.size > 0 else Action.BUY
        explicit = HEDGED if row.book == f"position:{HEDGED}" else None
        asked = Asked(row.owner_id, row.token, action, explicit, Fraction(quantity))
        order_id = None
        if meant and cycle.armed is not None and cycle.closing is None:
            order_id = cycle.closing = closing_order_id(row.position_id, cycle.armed)
        order_id = self.ask(asked, quantity, row.position_id, order_id)
        if deal is not None:
            self.execute(order_id, asked, quantity, deal)

    @invariant()
    def positions_are_right(self) -> None:
        """Sizes are exact, money is right to 1e-20, and so are states, levels and orders."""
        rows: dict[str, list[Position]] = {}
        for row in self.trading.rows(Position):
            rows.setdefault(row.book, []).append(row)
        assert rows.keys() == self.model.books.keys()
        for book, cycles in self.model.books.items():
            for row, cycle in zip(rows[book], cycles, strict=True):
                compare(row, cycle)

    @invariant()
    def orders_are_right(self) -> None:
        """What orders have got is exact."""
        rows = {row.order_id: row for row in self.trading.rows(Order)}
        assert rows.keys() == self.model.orders.keys()
        for order_id, asked in self.model.orders.items():
            assert Fraction(rows[order_id].exact_filled_quantity) == asked.filled

    @invariant()
    def books_balance(self) -> None:
        """The trial balance is zero, and postings and positions agree."""
        balances = self.booked.rows(BookBalance)
        rows = (self.booked.rows(Posting), balances, self.trading.rows(Position))
        found = trial_balance(self.size, *rows)
        assert found.faults == []
        assert all(total == 0 for total in found.totals.values())
        for balance in balances:
            cycles = self.model.books[balance.book]
            assert Fraction(balance.holding) == sum(cycle.size for cycle in cycles)
            gained = sum((cycle.gained for cycle in cycles), Fraction(0))
            assert is_near(balance.realized_pnl, gained)


def compare(row: Position, cycle: Cycle) -> None:
    """Hold a position against its counterpart in the model."""
    assert row.status == cycle.status
    assert Fraction(row.exact_size) == cycle.size
    assert is_near(row.cost_basis, cycle.cost if cycle.size > 0 else -cycle.cost)
    assert is_near(row.exact_realized_pnl, cycle.gained)
    assert is_near(row.exact_fees, cycle.fees)
    other_fees = Decimal(row.other_fees.get("BNB", "0"))
    assert is_near(other_fees, cycle.other_fees)
    assert (row.armed_size, row.closing_order_id) == (cycle.armed, cycle.closing)


def is_near(value: Decimal, expected: Fraction) -> bool:
    """Whether a value is right to 1e-20."""
    return abs(Fraction(value) - expected) <= NEAR


def decimal(value: Fraction) -> Decimal:
    """Return a fraction that is a decimal."""
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    return Decimal((value * 10**places).numerator).scaleb(-places)


TestTrading: Any = Trading.TestCase
TestTrading.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],
)
