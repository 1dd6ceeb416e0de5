"""Orders: what users asked for and what the venue did with it.

Stages and statuses are those of `ledger.domain.order_stages`, which the decider uses too. Facts
that do not fit are folded all the same and counted in `flags`; docs/order-states.md lists them.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ledger.domain.order_stages import (
    ENDED,
    EXECUTED,
    PARTIALLY_FILLED,
    PENDING,
    STATUSES,
    amended,
    leaves,
    names,
    reaches,
    step,
)
from ledger.domain.orders import (
    Action,
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
    OrderType,
    TimeInForce,
    kept_token,
    position_tag,
)
from ledger.event import RecordedEvent
from ledger.sqltypes import OFFSET
from projections.model import AMOUNT, PRODUCT, Flags, TimedModel, exact, one_of, refers_to
from projections.numbers import CONTEXT, ZERO, bounded, short
from projections.projection import Projection, State, flag

__all__ = ["EXECUTED", "PARTIALLY_FILLED", "PENDING", "Order", "orders"]

INEXACT = "inexact_amount"
"""Flags an order whose sums have as many digits as are kept: it has no exact integers."""

BUY = Action.BUY
EXACT_DIGITS_MAX = CONTEXT.prec - 1
_UNITS = [Decimal(1).scaleb(-places) for places in range(100)]
BASIS_POINTS = Decimal(10_000)


class Order(TimedModel):
    """An order; `order_type` is NULL if it is known only from the venue's facts.

    `quantity` is in the token, `amount` in the quote currency. A buy spends `amount_in` of the
    quote currency and gets `amount_out` of the token, a sell the other way round, before fees;
    `raw_amount_…` are the same as exact integers, times 10 to the power of `amount_…_decimals`.
    `status` is the platform's name of the state, `ord_status` FIX's, `stage` what both follow from.
    `book` is what the fills of an order that may only reduce will move.
    `fees` are in the quote currency, `other_fees` the sums in third currencies.
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
    reference_price: Mapped[Decimal | None] = mapped_column(AMOUNT)
    trigger_price: Mapped[Decimal | None] = mapped_column(AMOUNT)
    time_in_force: Mapped[str | None] = mapped_column(sa.String(20))
    expires_at: Mapped[datetime | None]
    reduce_only: Mapped[bool] = mapped_column(default=False)
    closes_position_id: Mapped[UUID | None]
    book: Mapped[str | None]
    placed_size: Mapped[int | None] = mapped_column(OFFSET)
    fees: Mapped[Decimal | None] = mapped_column(PRODUCT)
    other_fees: Mapped[dict[str, str]] = mapped_column(default=dict)
    slippage_bps: Mapped[int | None] = mapped_column(sa.BigInteger)
    slippage_actual: Mapped[Decimal | None] = mapped_column(AMOUNT)
    status: Mapped[str] = mapped_column(sa.String(20), default=PENDING)
    ord_status: Mapped[str] = mapped_column(sa.String(20), default="PendingNew")
    stage: Mapped[int] = mapped_column(default=0)
    leaves_quantity: Mapped[Decimal | None] = mapped_column(AMOUNT)
    venue_order_id: Mapped[str | None]
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
    raw_amount_in: Mapped[Decimal | None] = exact(None)
    raw_amount_out: Mapped[Decimal | None] = exact(None)
    amount_in_decimals: Mapped[int | None]
    amount_out_decimals: Mapped[int | None]

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
        Index(None, "journal_id", "venue_order_id"),
        Index(None, "journal_id", "book"),
        Index(None, "journal_id", "closes_position_id"),
    )

    @property
    def is_finished(self) -> bool:
        """Whether the order was filled, or has ended otherwise."""
        return self.status not in (PENDING, PARTIALLY_FILLED)

    @property
    def total_value(self) -> Decimal | None:
        """The order's value in the quote currency, before fees.

        What was filled, at the prices of the fills; before the first fill, what was asked for: the
        amount, or quantity times limit price. None where there is no price either.
        """
        if self.exact_filled_quantity > 0:
            return self.exact_notional
        if self.amount is not None:
            return self.amount
        if self.exact_quantity is None or self.exact_price is None:
            return None
        return CONTEXT.multiply(self.exact_quantity, self.exact_price)

    @property
    def fill_ratio(self) -> Decimal | None:
        """The filled part of what was ordered, 1 for all of it; None where that is not known."""
        done, target = self.exact_filled_quantity, self.exact_quantity
        if target is None:
            done, target = self.exact_notional, self.amount
        return CONTEXT.divide(done, target) if target else None


def _derived(row: Order) -> dict[str, Decimal | None]:
    action, filled, notional = row.action, row.exact_filled_quantity, row.exact_notional
    spent, got = (notional, filled) if action == BUY else (filled, notional)
    is_known, is_exact = action is not None, INEXACT not in row.flags
    average = notional / filled if filled else None
    return {
        "quantity": row.exact_quantity,
        "price": row.exact_price,
        "filled_quantity": filled,
        "leaves_quantity": leaves(row.stage, row.status == EXECUTED, filled, row.exact_quantity),
        "average_fill_price": average,
        "amount_in": spent if is_known else None,
        "amount_out": got if is_known else None,
        "raw_amount_in": _integer(spent, row.amount_in_decimals) if is_exact else None,
        "raw_amount_out": _integer(got, row.amount_out_decimals) if is_exact else None,
        "fees": row.exact_fees,
        "slippage_actual": None if average is None else _slippage(row, average),
    }


def _integer(amount: Decimal, decimals: int | None) -> Decimal | None:
    return None if decimals is None else amount.scaleb(decimals)


def _slippage(row: Order, average: Decimal) -> Decimal | None:
    """Return basis points from the reference, or else the limit price; positive is adverse."""
    reference = row.reference_price or row.exact_price
    if not reference or row.action is None:
        return None
    adverse = BASIS_POINTS if row.action == BUY else -BASIS_POINTS
    return (average - reference) / reference * adverse


def _rests(row: Order) -> bool:
    return row.status not in (PENDING, PARTIALLY_FILLED)


orders = Projection(Order, looks_up=["users", "positions"], derived=_derived, rests=_rests)


@orders.on(OrderPlaced)
def _placed(state: State, recorded: RecordedEvent, event: OrderPlaced) -> None:
    """Take the order's terms; facts may have come before it. Only the first placing counts."""
    rows = state.rows(Order)
    row = rows.edit(event.order_id, recorded) or rows.add(event.order_id, recorded)
    is_first = row.order_type is None
    _step(row, OrderPlaced)
    if is_first:
        row.placed_size = recorded.offset + 1
        _take_terms(state, row, event)
        if row.exact_filled_quantity > ZERO:  # else the step has named the state already
            _settle(row, recorded)


def _take_terms(state: State, row: Order, event: OrderPlaced) -> None:
    row.position_id = row.position_id or state.reference("positions", event.position_id)
    if event.reduce_only:
        row.book = short(position_tag(event.user_id, event.token, event.position_id))
    if _has_other_terms(row, event):
        flag(row, "other_terms")
    row.user_id = state.reference("users", event.user_id)
    if row.user_id is None:
        flag(row, "unknown_user")
    if row.action not in (None, event.action):
        sold, bought = row.amount_out_decimals, row.amount_in_decimals
        row.amount_in_decimals, row.amount_out_decimals = sold, bought
    row.token, row.action, row.order_type = kept_token(event.token), event.action, event.order_type
    row.exact_quantity, row.amount, row.exact_price = event.quantity, event.amount, event.price
    row.reference_price, row.trigger_price = event.reference_price, event.trigger_price
    row.time_in_force, row.expires_at = event.time_in_force, event.expires_at
    row.reduce_only, row.closes_position_id = event.reduce_only, event.closes_position_id
    row.slippage_bps, row.strategy = bounded(event.slippage_bps), short(event.strategy)
    row.extra_data = event.extra_data


def _has_other_terms(row: Order, event: OrderPlaced) -> bool:
    """Whether the first of the fills that came before the placing does not fit it."""
    if row.token is None:
        return False
    is_other = (row.token, row.action) != (kept_token(event.token), event.action)
    return is_other or row.user_id not in (None, event.user_id)


def _fact(state: State, recorded: RecordedEvent, event: OrderEvent) -> Order:
    """Return the row that a venue's fact is about, made from the fact if need be."""
    rows = state.rows(Order)
    return rows.edit(event.order_id, recorded) or rows.add(event.order_id, recorded)


def _step(row: Order, event_type: type[OrderEvent]) -> None:
    """Move the stage by an event, with the quantities before it, and count it if it misfits."""
    has_fills = row.exact_filled_quantity > ZERO
    is_filled = has_fills and _is_filled(row)
    row.stage, misfit, row.ord_status, row.status = step(
        row.stage, event_type, has_fills, is_filled
    )
    if misfit is not None:
        flag(row, misfit)


def _is_filled(row: Order) -> bool:
    return reaches(row.exact_filled_quantity, row.exact_notional, row.exact_quantity, row.amount)


def _settle(row: Order, recorded: RecordedEvent) -> None:
    """Name the state that the stage and other quantities add up to."""
    has_fills = row.exact_filled_quantity > ZERO
    is_filled = has_fills and _is_filled(row)
    row.ord_status, row.status = names(row.stage, has_fills, is_filled)
    if row.status == EXECUTED:
        row.executed_at = row.executed_at or recorded.occurred_at
    elif not row.stage & ENDED:
        row.executed_at = None


@orders.on(
    OrderTriggered,
    OrderStopped,
    OrderDoneForDay,
    OrderReplacePending,
    OrderReplaceRejected,
    OrderCancelPending,
    OrderCancelRejected,
    OrderCancelled,
    OrderExpired,
)
def _reported(state: State, recorded: RecordedEvent, event: OrderEvent) -> None:
    """Take what the venue says of the order's state; one that is finished already stays so."""
    _step(_fact(state, recorded, event), event.kind)


@orders.on(OrderAccepted)
def _accepted(state: State, recorded: RecordedEvent, event: OrderAccepted) -> None:
    """Take the venue's id of the order too."""
    row = _fact(state, recorded, event)
    _step(row, OrderAccepted)
    row.venue_order_id = short(event.venue_order_id) or row.venue_order_id


@orders.on(OrderRejected, OrderFailed)
def _failed(state: State, recorded: RecordedEvent, event: OrderRejected | OrderFailed) -> None:
    """End the order and keep the reason, unless it is finished already."""
    row = _fact(state, recorded, event)
    had_ended = row.stage & ENDED
    _step(row, event.kind)
    if row.stage & ENDED and not had_ended:
        row.failed_reason = event.reason


@orders.on(OrderReplaced, OrderRestated)
def _amended(state: State, recorded: RecordedEvent, event: OrderReplaced | OrderRestated) -> None:
    """Take the new terms; an order that has all of its new quantity is executed."""
    row = _fact(state, recorded, event)
    _step(row, event.kind)
    row.exact_quantity = amended(row.exact_quantity, event)
    if isinstance(event, OrderRestated):
        flag(row, "restated")
    elif event.price is not None:
        row.exact_price = +event.price
    _check_overfill(row)
    _settle(row, recorded)


@orders.on(FillConflicted)
def _conflicted(state: State, recorded: RecordedEvent, event: FillConflicted) -> None:
    """Count it: somebody has to find out which of the reports is right."""
    row = _fact(state, recorded, event)
    _step(row, FillConflicted)
    flag(row, "fill_conflicted")


@orders.on(OrderFilled, FillBusted)
def _executed(state: State, recorded: RecordedEvent, event: Execution) -> None:
    """Move the quantities, whatever the status: a late fill is real."""
    row = _fact(state, recorded, event)
    _step(row, event.kind)
    if event.quantity <= ZERO:
        flag(row, "quantity_not_positive")
    else:
        token = kept_token(event.token)
        _match(state, row, event, token)
        _book(row, event)
        if event.fee is not None:
            _book_fee(row, event, event.fee)
        row.transaction_signature = short(event.transaction_signature) or row.transaction_signature
        _link(state, recorded, event, row, token)
    _settle(row, recorded)


def _match(state: State, row: Order, event: Execution, token: str) -> None:
    """Compare the fill with the order's terms, which it stands for if there are none."""
    is_first = False
    if row.order_type is None:
        row.user_id = row.user_id or state.reference("users", event.user_id)
        is_first = row.token is None and row.action is None
    if is_first:
        row.token, row.action = token, event.action
    elif row.token != token or row.action != event.action or _is_of_another(row, event):
        flag(row, "other_terms")


def _is_of_another(row: Order, event: Execution) -> bool:
    ordered, filled = row.user_id, event.user_id
    return ordered != filled and ordered is not None and filled is not None


def _book(row: Order, event: Execution) -> None:
    """Add the fill to the order's sums, or take a busted one back out."""
    quantity, notional = +event.quantity, event.notional()
    if row.action == BUY:
        paid_places = row.amount_in_decimals = _places(notional, row.amount_in_decimals)
        size_places = row.amount_out_decimals = _places(quantity, row.amount_out_decimals)
    else:
        size_places = row.amount_in_decimals = _places(quantity, row.amount_in_decimals)
        paid_places = row.amount_out_decimals = _places(notional, row.amount_out_decimals)
    if event.kind is FillBusted:
        quantity, notional = -quantity, -notional
        flag(row, "fill_busted")
    row.exact_filled_quantity = filled = row.exact_filled_quantity + quantity
    row.exact_notional = paid = row.exact_notional + notional
    if _is_too_long(filled, size_places) or _is_too_long(paid, paid_places):
        flag(row, INEXACT)
    if filled < ZERO:
        flag(row, "more_busted_than_filled")
    _check_overfill(row)


def _is_too_long(total: Decimal, places: int) -> bool:
    """Whether a sum with so many places has more digits than are kept for certain."""
    # Of a zero the exponent says nothing, and tables do not keep it.
    return (total.adjusted() if total else 0) + places >= EXACT_DIGITS_MAX


def _check_overfill(row: Order) -> None:
    """Count that more is filled than was ordered."""
    done, target = row.exact_filled_quantity, row.exact_quantity
    if target is None:
        done, target = row.exact_notional, row.amount
    if target is not None and done > target:
        flag(row, "overfill")


def _places(amount: Decimal, known: int | None) -> int:
    """Return the number of places of an amount, or the known one if that is larger."""
    if known is not None and amount.same_quantum(_UNITS[known]):
        return known  # as good as always, and much faster than taking the number apart
    text = str(amount)
    if "E" in text:
        text = f"{amount:f}"
    return max(known or 0, len(text.partition(".")[2]))


def _book_fee(row: Order, event: Execution, fee: Decimal) -> None:
    """Add the fee, or take it back out: in the quote currency, or among those of others."""
    fee = -fee if event.kind is FillBusted else +fee
    if event.fee_currency is None:
        row.exact_fees += fee
    elif event.fee_currency == event.token:
        row.exact_fees += event.worth(fee)
    else:
        total = Decimal(row.other_fees.get(event.fee_currency, ZERO)) + fee
        row.other_fees[event.fee_currency] = format(total, "f")


def _link(state: State, recorded: RecordedEvent, event: Execution, row: Order, token: str) -> None:
    """Note the position that this very fill has moved, or why it has moved none."""
    if event.user_id is None:
        if event.kind is OrderFilled:
            flag(row, "fill_without_position")
        return
    book = position_tag(event.user_id, event.token, event.position_id)
    position = state.tables["positions"].find("book", book)
    if position is None or position.changed_size != recorded.offset + 1:
        return
    if position.token != token or position.owner_id != event.user_id:
        flag(row, "fill_of_another")
    else:
        row.position_id = row.position_id or position.position_id
