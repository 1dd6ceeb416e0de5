"""Positions and orders in plain fractions, written without the help of the real fold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from uuid import UUID

from ledger.domain.orders import (
    Execution,
    FillBusted,
    FillConflicted,
    OrderAccepted,
    OrderCancelled,
    OrderCancelPending,
    OrderCancelRejected,
    OrderDoneForDay,
    OrderEvent,
    OrderExpired,
    OrderFailed,
    OrderFilled,
    OrderPlaced,
    OrderRejected,
    OrderReplaced,
    OrderReplacePending,
    OrderReplaceRejected,
    OrderRestated,
    OrderStopped,
    OrderTriggered,
)
from ledger.domain.positions import PositionLiquidated, ProtectionSet, closing_order_id
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
REPORTS = (
    OrderStopped | OrderReplacePending | OrderReplaceRejected | OrderCancelPending
    | OrderCancelRejected | FillConflicted
)  # fmt: skip
"""Facts that move no quantities."""

Book = tuple[UUID | None, UUID | None, str | None]
"""An explicit position, or a user and a token."""


@dataclass
class Cycle:
    """From flat to flat; `average` is the entry price, `holder` the user, known or not."""

    book: Book
    token: str | None
    holder: UUID | None
    owner: UUID | None
    size: Fraction = Fraction(0)
    average: Fraction = Fraction(0)
    gained: Fraction = Fraction(0)
    fees: Fraction = Fraction(0)
    other_fees: dict[str, Fraction] = field(default_factory=dict)
    status: str = "open"
    has_levels: bool = False
    armed_size: int | None = None
    closer: Closer | None = None


@dataclass
class Closer:
    """The order that is to close a cycle, as far as that matters to the cycle."""

    order_id: UUID
    quantity: Fraction | None
    amount: Fraction | None
    filled: Fraction = Fraction(0)
    notional: Fraction = Fraction(0)

    def is_done_after(self, event: OrderEvent) -> bool:
        """Take in what happened to the order, and tell whether that was all."""
        if isinstance(event, Execution) and event.quantity > 0:
            sign = -1 if isinstance(event, FillBusted) else 1
            self.filled += sign * Fraction(event.quantity)
            self.notional += sign * notional_of(event)
            return sign > 0 and self.is_full()
        if isinstance(event, OrderReplaced | OrderRestated):
            difference = None if isinstance(event, OrderReplaced) else event.quantity_change
            if event.quantity is not None:
                self.quantity = Fraction(event.quantity)
            elif difference is not None and self.quantity is not None:
                self.quantity += Fraction(difference)
            return self.quantity is not None and self.filled >= self.quantity
        return type(event) in ENDINGS

    def is_full(self) -> bool:
        """Whether all that was asked for is done."""
        if self.quantity is not None:
            return self.filled >= self.quantity
        return self.amount is not None and self.notional >= self.amount


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
    is_taken: bool = False
    is_disowned: bool = False

    def status(self) -> str:
        """Return what follows from the sums, or how the order ended."""
        if self.ending:
            return self.ending
        if self.filled <= 0 and self.is_disowned and not (self.is_placed or self.is_taken):
            return "failed"
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
    nothing: dict[Book, Cycle] = field(default_factory=dict)

    def fold(self, events: list[Event]) -> None:
        """Take in events."""
        for offset, event in enumerate(events):
            if isinstance(event, UserRegistered):
                self.users.add(event.user_id)
            if isinstance(event, Execution):
                self.trade(event)
            if isinstance(event, PositionLiquidated):
                self.liquidate(event)
            self.protect(event, offset + 1)
            if isinstance(event, OrderPlaced | FACTS | REPORTS):
                self.order(event)

    def open_cycle(self, book: Book) -> Cycle | None:
        """Return the open cycle of a book."""
        found = [each for each in self.cycles if each.book == book and each.status == "open"]
        assert len(found) < 2
        return found[0] if found else None

    def trade(self, event: Execution) -> None:
        """Move the position of a fill."""
        if isinstance(event, FillConflicted) or event.user_id is None or event.quantity <= 0:
            return
        explicit = event.position_id
        book = (explicit, None, None) if explicit else (None, event.user_id, event.token)
        cycle = self.open_cycle(book)
        owner = event.user_id if event.user_id in self.users else None
        if cycle and (cycle.token, cycle.holder) != (event.token, event.user_id):
            return
        effect = signed_effect(event)
        if cycle:
            cycle.owner = owner
        if cycle and cycle.size * effect[0] < 0 and abs(effect[0]) >= abs(cycle.size):
            part = -cycle.size / effect[0]
            _, value, *fees = (each * part for each in effect)
            close(cycle, value, "closed")
            charge(cycle, event, fees)
            effect, cycle = [each * (1 - part) for each in effect], None
        if cycle or effect[0]:
            cycle = cycle or self.opened(book, event, owner)
            change(cycle, effect[0], effect[1], undone=isinstance(event, FillBusted))
            charge(cycle, event, effect[2:])

    def opened(self, book: Book, event: Execution, owner: UUID | None) -> Cycle:
        """Begin a cycle."""
        assert event.user_id
        self.cycles.append(Cycle(book, event.token, event.user_id, owner))
        if book[0]:
            self.first_of.setdefault(book[0], self.cycles[-1])
        return self.cycles[-1]

    def liquidate(self, event: PositionLiquidated) -> None:
        """Close an explicit position by force, or charge the fee for nothing."""
        book: Book = (event.position_id, None, None)
        cycle = self.cycle_of(event.position_id)
        if event.book is not None:
            _, user, token = event.book.split(":")
            cycle, book = None, (None, UUID(user), token)
        if cycle is None and book not in self.nothing:
            self.nothing[book] = Cycle(book, None, None, None, status="liquidated")
            self.cycles.append(self.nothing[book])
        cycle = cycle or self.nothing[book]
        cycle.fees += Fraction(event.fee or 0)
        if cycle.status == "open":
            close(cycle, -cycle.size * Fraction(event.price), "liquidated")

    def cycle_of(self, position_id: UUID) -> Cycle | None:
        """Return the open cycle of an explicit position, else its first."""
        return self.open_cycle((position_id, None, None)) or self.first_of.get(position_id)

    def protect(self, event: Event, size: int) -> None:
        """Arm and disarm levels, and follow the orders that are to close a cycle."""
        if isinstance(event, ProtectionSet):
            cycle = self.cycle_of(event.position_id)
            if cycle and cycle.status == "open":
                cycle.has_levels = (event.stop_loss, event.take_profit) != (None, None)
                cycle.armed_size = size if cycle.has_levels else None
        if isinstance(event, OrderPlaced) and event.closes_position_id:
            cycle = self.first_of.get(event.closes_position_id)
            is_new = event.order_id not in self.orders
            wanted = closing_order_id(event.closes_position_id, (cycle and cycle.armed_size) or -1)
            if is_new and cycle and cycle.closer is None and event.order_id == wanted:
                quantity, amount = fraction(event.quantity), fraction(event.amount)
                cycle.closer = Closer(event.order_id, quantity, amount)
        if isinstance(event, FACTS):
            self.follow(event, size)

    def follow(self, event: OrderEvent, size: int) -> None:
        """Arm the levels again where the order that was to close the cycle is done."""
        for cycle in self.cycles:
            closer = cycle.closer
            if closer and closer.order_id == event.order_id and closer.is_done_after(event):
                cycle.closer, cycle.armed_size = None, size if cycle.has_levels else None

    def order(self, event: OrderEvent) -> None:
        """Move an order's sums, terms or ending."""
        order = self.orders.setdefault(event.order_id, SlowOrder())
        order.is_taken |= isinstance(event, OrderAccepted | OrderTriggered)
        if isinstance(event, OrderPlaced):
            if not order.is_placed:
                order.is_placed = True
                order.quantity = fraction(event.quantity)
                order.amount = fraction(event.amount)
        elif isinstance(event, OrderFilled | FillBusted) and event.quantity > 0:
            sign = -1 if isinstance(event, FillBusted) else 1
            order.filled += sign * Fraction(event.quantity)
            order.notional += sign * notional_of(event)
            order.fees += sign * fee_of(event)
        elif isinstance(event, OrderReplaced | OrderRestated):
            amend(order, event)
        elif isinstance(event, OrderCancelRejected | OrderReplaceRejected):
            order.is_disowned |= not order.is_placed
        elif order.ending is None and order.status() != "executed":
            order.ending = ENDINGS.get(type(event))


def fraction(value: object) -> Fraction | None:
    """Return an amount as a fraction."""
    return None if value is None else Fraction(str(value))


def fee_of(event: Execution) -> Fraction:
    """Return the fee in the quote currency; none where it was paid in a third one."""
    fee = Fraction(event.fee or 0)
    if event.fee_currency == event.token:
        return fee * notional_of(event) / Fraction(event.quantity)
    return fee if event.fee_currency is None else Fraction(0)


def notional_of(event: Execution) -> Fraction:
    """Return what a fill was worth in the quote currency."""
    if event.quote_amount is not None:
        return Fraction(event.quote_amount)
    return Fraction(event.quantity) * Fraction(event.price)


def signed_effect(event: Execution) -> list[Fraction]:
    """Return what a fill adds to the size and what that cost, and both kinds of fee."""
    side = Fraction(1 if event.action == "buy" else -1)
    quantity, value, fee = side * Fraction(event.quantity), side * notional_of(event), fee_of(event)
    other_fee = Fraction(0)
    if event.fee_currency == event.token:
        quantity -= Fraction(event.fee or 0)
        value -= fee
    elif event.fee_currency is not None:
        other_fee = Fraction(event.fee or 0)
    effect = [quantity, value, fee, other_fee]
    return [-each for each in effect] if isinstance(event, FillBusted) else effect


def amend(order: SlowOrder, event: OrderReplaced | OrderRestated) -> None:
    """Give an order another quantity."""
    difference = None if isinstance(event, OrderReplaced) else event.quantity_change
    if event.quantity is not None:
        order.quantity = Fraction(event.quantity)
    elif difference is not None and order.quantity is not None:
        order.quantity += Fraction(difference)


def close(cycle: Cycle, value: Fraction, status: str) -> None:
    """End a cycle, which costs `value` (what it brings in is negative)."""
    cycle.gained -= cycle.average * cycle.size + value
    cycle.size, cycle.status = Fraction(0), status
    cycle.closer = cycle.armed_size = None


def charge(cycle: Cycle, event: Execution, fees: Iterable[Fraction]) -> None:
    """Add fees in the quote currency and in a third one."""
    fee, other_fee = fees
    cycle.fees += fee
    currency = event.fee_currency
    if currency not in (None, event.token):
        cycle.other_fees[currency] = cycle.other_fees.get(currency, Fraction(0)) + other_fee


def change(cycle: Cycle, quantity: Fraction, value: Fraction, *, undone: bool) -> None:
    """Increase a cycle, or reduce it without closing it."""
    before, after = cycle.size, cycle.size + quantity
    if before * quantity >= 0 or undone:
        cycle.average = (before * cycle.average + value) / after
    else:
        cycle.gained += cycle.average * quantity - value
    cycle.size = after
