"""Positions and orders in plain fractions, written without the help of the real fold."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from uuid import UUID

from ledger.domain.orders import (
    Execution,
    FillBusted,
    OrderAccepted,
    OrderCancelled,
    OrderDoneForDay,
    OrderEvent,
    OrderExpired,
    OrderFailed,
    OrderFilled,
    OrderPlaced,
    OrderRejected,
    OrderReplaced,
    OrderRestated,
    OrderTriggered,
)
from ledger.domain.positions import PositionLiquidated
from ledger.domain.users import UserRegistered
from ledger.event import Event

ENDINGS: dict[type[Event], str] = {
    OrderCancelled: "cancelled",
    OrderExpired: "expired",
    OrderRejected: "failed",
    OrderFailed: "failed",
}
FACTS = (
    OrderFilled | FillBusted | OrderReplaced | OrderRestated | OrderCancelled | OrderExpired
    | OrderRejected | OrderFailed | OrderAccepted | OrderTriggered | OrderDoneForDay
)  # fmt: skip

Book = tuple[UUID | None, UUID | None, str | None]
"""An explicit position, or a user and a token."""


@dataclass
class Cycle:
    """From flat to flat; `average` is the entry price."""

    book: Book
    token: str
    owner: UUID | None
    size: Fraction = Fraction(0)
    average: Fraction = Fraction(0)
    gained: Fraction = Fraction(0)
    fees: Fraction = Fraction(0)
    status: str = "open"


@dataclass
class SlowOrder:
    """An order's sums."""

    quantity: Fraction | None = None
    amount: Fraction | None = None
    is_placed: bool = False
    filled: Fraction = Fraction(0)
    notional: Fraction = Fraction(0)
    fees: Fraction = Fraction(0)
    ending: str | None = None

    def status(self) -> str:
        """Return what follows from the sums, or how the order ended."""
        if self.ending:
            return self.ending
        if self.filled <= 0:
            return "pending"
        if self.quantity is not None:
            return "executed" if self.filled >= self.quantity else "partially_filled"
        is_done = self.amount is not None and self.notional >= self.amount
        return "executed" if is_done else "partially_filled"


@dataclass
class SlowFold:
    """All cycles in the order in which they opened, and all orders."""

    cycles: list[Cycle] = field(default_factory=list)
    orders: dict[UUID, SlowOrder] = field(default_factory=dict)
    users: set[UUID] = field(default_factory=set)
    first_of: dict[UUID, Cycle] = field(default_factory=dict)

    def fold(self, events: list[Event]) -> None:
        """Take in events."""
        for event in events:
            if isinstance(event, UserRegistered):
                self.users.add(event.user_id)
            if isinstance(event, Execution):
                self.trade(event)
            if isinstance(event, PositionLiquidated):
                self.liquidate(event)
            if isinstance(event, OrderPlaced | FACTS):
                self.order(event)

    def open_cycle(self, book: Book) -> Cycle | None:
        """Return the open cycle of a book."""
        found = [each for each in self.cycles if each.book == book and each.status == "open"]
        assert len(found) < 2
        return found[0] if found else None

    def trade(self, event: Execution) -> None:
        """Move the position of a fill."""
        if event.user_id is None or event.quantity <= 0:
            return
        explicit = event.position_id
        book = (explicit, None, None) if explicit else (None, event.user_id, event.token)
        cycle = self.open_cycle(book)
        owner = event.user_id if event.user_id in self.users else None
        if cycle and (cycle.token != event.token or cycle.owner not in (None, event.user_id)):
            return
        quantity, fee = signed_effect(event)
        if cycle:
            cycle.owner = owner
        if cycle and cycle.size * quantity < 0 and abs(quantity) >= abs(cycle.size):
            part = -cycle.size / quantity
            close(cycle, Fraction(event.price), fee * part, "closed")
            quantity, fee, cycle = quantity * (1 - part), fee * (1 - part), None
        if cycle or quantity:
            change(cycle or self.opened(book, event.token, owner), quantity, fee, event)

    def opened(self, book: Book, token: str, owner: UUID | None) -> Cycle:
        """Begin a cycle."""
        self.cycles.append(Cycle(book, token, owner))
        if book[0]:
            self.first_of.setdefault(book[0], self.cycles[-1])
        return self.cycles[-1]

    def liquidate(self, event: PositionLiquidated) -> None:
        """Close a position by force."""
        cycle = self.open_cycle((event.position_id, None, None))
        cycle = cycle or self.first_of.get(event.position_id)
        if cycle and cycle.status == "open":
            close(cycle, Fraction(event.price), Fraction(event.fee or 0), "liquidated")

    def order(self, event: OrderEvent) -> None:
        """Move an order's sums, terms or ending."""
        order = self.orders.setdefault(event.order_id, SlowOrder())
        if isinstance(event, OrderPlaced):
            if not order.is_placed:
                order.is_placed = True
                order.quantity = fraction(event.quantity)
                order.amount = fraction(event.amount)
        elif isinstance(event, Execution) and event.quantity > 0:
            sign = -1 if isinstance(event, FillBusted) else 1
            order.filled += sign * Fraction(event.quantity)
            order.notional += sign * Fraction(event.quantity) * Fraction(event.price)
            order.fees += sign * fee_of(event)
        elif isinstance(event, OrderReplaced | OrderRestated):
            amend(order, event)
        elif type(event) in ENDINGS and order.status() in {"pending", "partially_filled"}:
            order.ending = ENDINGS[type(event)]


def fraction(value: object) -> Fraction | None:
    """Return an amount as a fraction."""
    return None if value is None else Fraction(str(value))


def fee_of(event: Execution) -> Fraction:
    """Return the fee in the quote currency; none where it was paid in a third one."""
    fee = Fraction(event.fee or 0)
    if event.fee_currency == event.token:
        return fee * Fraction(event.price)
    return fee if event.fee_currency is None else Fraction(0)


def signed_effect(event: Execution) -> tuple[Fraction, Fraction]:
    """Return what a fill adds to the size, and its fee in the quote currency."""
    quantity, fee = Fraction(event.quantity), fee_of(event)
    if event.action == "sell":
        quantity = -quantity
    if event.fee_currency == event.token:
        quantity -= Fraction(event.fee or 0)
    return (-quantity, -fee) if isinstance(event, FillBusted) else (quantity, fee)


def amend(order: SlowOrder, event: OrderReplaced | OrderRestated) -> None:
    """Give an order another quantity."""
    difference = None if isinstance(event, OrderReplaced) else event.quantity_change
    if event.quantity is not None:
        order.quantity = Fraction(event.quantity)
    elif difference is not None and order.quantity is not None:
        order.quantity += Fraction(difference)


def close(cycle: Cycle, price: Fraction, fee: Fraction, status: str) -> None:
    """End a cycle."""
    cycle.gained += (price - cycle.average) * cycle.size
    cycle.size, cycle.status = Fraction(0), status
    cycle.fees += fee


def change(cycle: Cycle, quantity: Fraction, fee: Fraction, event: Execution) -> None:
    """Increase a cycle, or reduce it without closing it."""
    cycle.fees += fee
    price, before, after = Fraction(event.price), cycle.size, cycle.size + quantity
    if before * quantity >= 0 or isinstance(event, FillBusted):
        cycle.average = (before * cycle.average + quantity * price) / after
    else:
        cycle.gained += (price - cycle.average) * -quantity
    cycle.size = after
