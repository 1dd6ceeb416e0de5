"""Orders: what users asked for and what the venue did with it.

Facts that do not fit are folded all the same and counted in `flags`: `unknown_order:<event>` (never
placed), `after_<status>:<event>` (the order was finished), `overfill`, and others.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ledger.domain.orders import (
    Action,
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
    OrderType,
    TimeInForce,
    position_tag,
)
from ledger.event import RecordedEvent
from projections.model import AMOUNT, PRODUCT, Flags, TimedModel, exact, one_of, refers_to
from projections.numbers import ZERO, bounded, short
from projections.projection import Projection, State, flag

PENDING, PARTIALLY_FILLED, EXECUTED = "pending", "partially_filled", "executed"
FAILED, CANCELLED, EXPIRED = "failed", "cancelled", "expired"
STATUSES = (PENDING, PARTIALLY_FILLED, EXECUTED, FAILED, CANCELLED, EXPIRED)
ENDED = frozenset((FAILED, CANCELLED, EXPIRED))
"""Statuses that stay whatever comes; the others follow from the quantities."""

BASIS_POINTS = 10_000


class Order(TimedModel):
    """An order; `order_type` is NULL if it is known only from the venue's facts.

    `quantity` is in the token, `amount` in the quote currency. A buy spends `amount_in` of the
    quote currency and gets `amount_out` of the token, a sell the other way round, before fees.
    """

    __tablename__ = "orders"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID | None]
    position_id: Mapped[UUID | None]
    token: Mapped[str | None]
    action: Mapped[str | None] = mapped_column(sa.String(20))
    order_type: Mapped[str | None] = mapped_column(sa.String(20))
    quantity: Mapped[Decimal | None] = mapped_column(AMOUNT)
    amount: Mapped[Decimal | None] = mapped_column(AMOUNT)
    filled_quantity: Mapped[Decimal | None] = mapped_column(AMOUNT)
    average_fill_price: Mapped[Decimal | None] = mapped_column(AMOUNT)
    amount_in: Mapped[Decimal | None] = mapped_column(PRODUCT)
    amount_out: Mapped[Decimal | None] = mapped_column(PRODUCT)
    price: Mapped[Decimal | None] = mapped_column(AMOUNT)
    trigger_price: Mapped[Decimal | None] = mapped_column(AMOUNT)
    time_in_force: Mapped[str | None] = mapped_column(sa.String(20))
    expires_at: Mapped[datetime | None]
    reduce_only: Mapped[bool] = mapped_column(default=False)
    fees: Mapped[Decimal | None] = mapped_column(PRODUCT)
    slippage_bps: Mapped[int | None] = mapped_column(sa.BigInteger)
    slippage_actual: Mapped[Decimal | None] = mapped_column(AMOUNT)
    status: Mapped[str] = mapped_column(sa.String(20), default=PENDING)
    transaction_signature: Mapped[str | None]
    executed_at: Mapped[datetime | None]
    failed_reason: Mapped[str | None] = mapped_column(sa.Text)
    strategy: Mapped[str | None]
    extra_data: Mapped[dict[str, str] | None]
    flags: Mapped[Flags] = mapped_column(default=dict)
    exact_quantity: Mapped[Decimal | None] = exact(None)
    exact_price: Mapped[Decimal | None] = exact(None)
    exact_filled_quantity: Mapped[Decimal] = exact(ZERO)
    exact_notional: Mapped[Decimal] = exact(ZERO)
    exact_fees: Mapped[Decimal] = exact(ZERO)

    user: Mapped[Any] = relationship("User", viewonly=True, lazy="raise")
    position: Mapped[Any] = relationship("Position", viewonly=True, lazy="raise")

    __table_args__ = (
        refers_to("user_id", "users.user_id"),
        refers_to("position_id", "positions.position_id"),
        one_of("status", STATUSES),
        one_of("action", Action),
        one_of("order_type", OrderType),
        one_of("time_in_force", TimeInForce),
        Index(None, "journal_id", "user_id", "created_at"),
        Index(None, "journal_id", "user_id", "status"),
        Index(None, "journal_id", "position_id"),
        Index(None, "journal_id", "token", "created_at"),
        Index(None, "journal_id", "status", "created_at"),
        Index(None, "journal_id", "created_at"),
        Index(None, "journal_id", "transaction_signature"),
    )

    @property
    def is_finished(self) -> bool:
        """Whether nothing more is expected to happen to the order."""
        return self.status == EXECUTED or self.status in ENDED


def _derived(row: Order) -> dict[str, Decimal | None]:
    filled, notional = row.exact_filled_quantity, row.exact_notional
    average = notional / filled if filled else None
    spent, got = (notional, filled) if row.action == Action.BUY else (filled, notional)
    return {
        "quantity": row.exact_quantity,
        "price": row.exact_price,
        "filled_quantity": filled,
        "average_fill_price": average,
        "amount_in": spent if row.action else None,
        "amount_out": got if row.action else None,
        "fees": row.exact_fees,
        "slippage_actual": _slippage(row, average),
    }


def _slippage(row: Order, average: Decimal | None) -> Decimal | None:
    """Return basis points from the limit price to the average fill; positive is adverse."""
    reference = row.exact_price
    if average is None or not reference or row.action is None:
        return None
    side = 1 if row.action == Action.BUY else -1
    return side * (average - reference) / reference * BASIS_POINTS


orders = Projection(Order, derived=_derived)


@orders.on(OrderPlaced)
def _placed(state: State, recorded: RecordedEvent, event: OrderPlaced) -> None:
    """Take the order's terms; facts may have come before it. Only the first placing counts."""
    rows = state.rows(Order)
    row = rows.edit(event.order_id, recorded)
    if row is None:
        row = rows.add(event.order_id, recorded)
    elif row.order_type is not None:
        flag(row, "placed_again")
        return
    else:
        flag(row, "placed_late")
    _take_terms(state, row, event)
    _settle(row, recorded)


def _take_terms(state: State, row: Order, event: OrderPlaced) -> None:
    row.user_id = state.reference("users", event.user_id)
    if row.user_id is None:
        flag(row, "unknown_user")
    row.position_id = row.position_id or state.reference("positions", event.position_id)
    row.token, row.action, row.order_type = short(event.token), event.action, event.order_type
    row.exact_quantity, row.amount, row.exact_price = event.quantity, event.amount, event.price
    row.trigger_price, row.time_in_force = event.trigger_price, event.time_in_force
    row.expires_at, row.reduce_only = event.expires_at, event.reduce_only
    row.slippage_bps, row.strategy = bounded(event.slippage_bps), short(event.strategy)
    row.extra_data = event.extra_data


def _fact(state: State, recorded: RecordedEvent, event: OrderEvent) -> Order:
    """Return the row that a venue's fact is about, made from the fact if need be."""
    rows = state.rows(Order)
    row = rows.edit(event.order_id, recorded) or rows.add(event.order_id, recorded)
    if row.order_type is None:
        flag(row, f"unknown_order:{type(event).__name__}")
    return row


def _flag_if_finished(row: Order, event: OrderEvent) -> None:
    if row.status == EXECUTED or row.status in ENDED:
        flag(row, f"after_{row.status}:{type(event).__name__}")


@orders.on(OrderAccepted, OrderTriggered, OrderDoneForDay)
def _noted(state: State, recorded: RecordedEvent, event: OrderEvent) -> None:
    """Nothing that a row shows changes, but the fact is on record."""
    _flag_if_finished(_fact(state, recorded, event), event)


@orders.on(OrderFilled, FillBusted)
def _executed(state: State, recorded: RecordedEvent, event: Execution) -> None:
    """Move the quantities, whatever the status: a late fill is real."""
    row = _fact(state, recorded, event)
    if event.quantity <= 0:
        flag(row, "quantity_not_positive")
        return
    _match(state, row, event)
    _book(row, event)
    done, target = _progress(row)
    if target is not None and done > target:
        flag(row, "overfill")
    row.transaction_signature = short(event.transaction_signature) or row.transaction_signature
    row.position_id = row.position_id or _cycle(state, recorded, event)
    if row.status in ENDED:
        _flag_if_finished(row, event)
    _settle(row, recorded)


def _match(state: State, row: Order, event: Execution) -> None:
    """Compare the fill with the order's terms, which it stands for if there are none."""
    known = (row.token, row.action)
    if row.order_type is None and known == (None, None):
        row.user_id = state.reference("users", event.user_id)
        row.token, row.action = short(event.token), event.action
    elif known != (short(event.token), event.action) or _is_of_another(row, event):
        flag(row, "other_terms")


def _is_of_another(row: Order, event: Execution) -> bool:
    return None not in (row.user_id, event.user_id) and row.user_id != event.user_id


def _book(row: Order, event: Execution) -> None:
    """Add the fill to the order's sums, or take a busted one back out."""
    quantity, fee = +event.quantity, ZERO if event.fee is None else +event.fee
    if event.fee_currency == event.token:
        fee = fee * event.price
    elif event.fee_currency is not None:
        fee = ZERO
        flag(row, "fee_in_other_currency")
    if isinstance(event, FillBusted):
        quantity, fee = -quantity, -fee
        flag(row, "fill_busted")
    row.exact_filled_quantity += quantity
    row.exact_notional += quantity * event.price
    row.exact_fees += fee


def _cycle(state: State, recorded: RecordedEvent, event: Execution) -> UUID | None:
    """Return the position that this very fill has moved."""
    if event.user_id is None:
        return None
    book = position_tag(event.user_id, event.token, event.position_id)
    position = state.tables["positions"].find(book)
    if position is None or position.changed_size != recorded.offset + 1:
        return None
    return position.position_id if position.token == short(event.token) else None


def _progress(row: Order) -> tuple[Decimal, Decimal | None]:
    """Return how much is done and how much was asked for, in the unit of the order."""
    if row.exact_quantity is None and row.amount is not None:
        return row.exact_notional, row.amount
    return row.exact_filled_quantity, row.exact_quantity


def _settle(row: Order, recorded: RecordedEvent) -> None:
    """Let the status follow from the quantities, unless the order has ended otherwise."""
    if row.status in ENDED:
        return
    done, target = _progress(row)
    if target is not None and row.exact_filled_quantity > 0 and done >= target:
        row.status = EXECUTED
        row.executed_at = row.executed_at or recorded.occurred_at
    else:
        row.status = PARTIALLY_FILLED if row.exact_filled_quantity > 0 else PENDING
        row.executed_at = None


@orders.on(OrderReplaced, OrderRestated)
def _amended(state: State, recorded: RecordedEvent, event: OrderReplaced | OrderRestated) -> None:
    """Take the new terms; an order that has all of its new quantity is executed."""
    row = _fact(state, recorded, event)
    _flag_if_finished(row, event)
    if event.quantity is not None:
        row.exact_quantity = +event.quantity
    if isinstance(event, OrderReplaced):
        row.exact_price = row.exact_price if event.price is None else +event.price
    else:
        flag(row, "restated")
        if event.quantity is None and event.quantity_change and row.exact_quantity is not None:
            row.exact_quantity += event.quantity_change
    _settle(row, recorded)


@orders.on(OrderCancelled, OrderExpired, OrderRejected, OrderFailed)
def _ended(state: State, recorded: RecordedEvent, event: OrderEvent) -> None:
    """End the order; one that is finished already stays as it is."""
    row = _fact(state, recorded, event)
    if row.status == EXECUTED or row.status in ENDED:
        _flag_if_finished(row, event)
    elif isinstance(event, OrderRejected | OrderFailed):
        row.status, row.failed_reason = FAILED, event.reason
    else:
        row.status = CANCELLED if isinstance(event, OrderCancelled) else EXPIRED
