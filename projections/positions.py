"""Positions: average-cost books that follow from fills, one row per cycle.

A cycle opens with a fill from flat and closes at exactly zero; the next fill opens another row. One
that the bust of a fill opens has none of the levels that the cycle before it had.

A bust moves the book back by what its fill did, at the fill's own price. What had increased the
position leaves the cost with what it brought in; what had reduced it comes back at the price it
went for, and the gain that was realised then stays realised. So size, fees, and gains (realised and
at any mark) together are what they would be without the fill. Where other fills have come in
between, a bust may close or flip the position; it does so at its price, as any fill would.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Index
from sqlalchemy.orm import Mapped, column_property, mapped_column, relationship

from ledger.domain.orders import (
    Execution,
    FillBusted,
    OrderCancelled,
    OrderEvent,
    OrderExpired,
    OrderFailed,
    OrderFilled,
    OrderPlaced,
    OrderRejected,
    OrderReplaced,
    OrderRestated,
    kept_token,
    position_tag,
)
from ledger.domain.positions import (
    Effect,
    PositionEvent,
    PositionLiquidated,
    ProtectionSet,
    closing_order_id,
    cycle_id,
    effect_of,
    id_of_nothing,
    is_derived,
)
from ledger.event import Event, RecordedEvent
from ledger.sqltypes import OFFSET, ExactNumeric
from projections.model import AMOUNT, PRODUCT, Flags, TimedModel, exact, one_of, refers_to
from projections.numbers import CONTEXT, ZERO
from projections.projection import Alias, Projection, State, flag
from projections.rendering import amount_text

OPEN, CLOSED, LIQUIDATED = "open", "closed", "liquidated"
PERCENT = 100

_marks = sa.table(
    "marks",
    sa.column("journal_id"),
    sa.column("token"),
    sa.column("exact_price", ExactNumeric()),
)


class Position(TimedModel):
    """One cycle of a position. `size` is signed, `cost_basis` is |size| * average entry price.

    `realized_pnl` is gross; `net_pnl` is what remains of it after `fees`, which are in the quote
    currency; `other_fees` has decimal text by third currency. `book` names what fills net into: a
    user's token, or an explicit position when hedging. `owner_id` is the user whose fills it takes,
    `user_id` is the same where that user is known.

    A liquidation that found no position in its book has a row of its own, liquidated and of size 0.

    `armed_size` is the journal's size after the event that armed the levels, NULL without levels;
    `closing_order_id` is the protective order that is at work to close the position.
    """

    __tablename__ = "positions"

    position_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID | None]
    owner_id: Mapped[UUID | None]
    token: Mapped[str | None]
    book: Mapped[str]
    size: Mapped[Decimal | None] = mapped_column(AMOUNT)
    entry_price: Mapped[Decimal | None] = mapped_column(AMOUNT)
    realized_pnl: Mapped[Decimal | None] = mapped_column(PRODUCT)
    fees: Mapped[Decimal | None] = mapped_column(PRODUCT)
    net_pnl: Mapped[Decimal | None] = mapped_column(PRODUCT)
    stop_loss: Mapped[Decimal | None] = mapped_column(AMOUNT)
    take_profit: Mapped[Decimal | None] = mapped_column(AMOUNT)
    status: Mapped[str] = mapped_column(sa.String(20), default=OPEN)
    opened_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    closed_size: Mapped[int | None] = mapped_column(OFFSET)
    strategy: Mapped[str | None]
    extra_data: Mapped[dict[str, Any] | None]
    other_fees: Mapped[dict[str, str]] = mapped_column(default=dict)
    armed_size: Mapped[int | None] = mapped_column(OFFSET)
    closing_order_id: Mapped[UUID | None]
    flags: Mapped[Flags] = mapped_column(default=dict)
    cost_basis: Mapped[Decimal] = exact()
    exact_size: Mapped[Decimal] = exact()
    exact_entry_price: Mapped[Decimal] = exact()
    exact_realized_pnl: Mapped[Decimal] = exact()
    exact_fees: Mapped[Decimal] = exact()

    orders: Mapped[list[Any]] = relationship("Order", viewonly=True, lazy="raise")
    if TYPE_CHECKING:
        current_price: Mapped[Decimal | None]

    __table_args__ = (
        refers_to("user_id", "users.user_id"),
        one_of("status", (OPEN, CLOSED, LIQUIDATED)),
        Index(
            "uq_positions_open_book",
            "journal_id",
            "book",
            unique=True,
            postgresql_where=sa.text("status = 'open'"),
            sqlite_where=sa.text("status = 'open'"),
        ),
        Index(None, "journal_id", "user_id", "status"),
        Index(None, "journal_id", "token", "status"),
        Index(None, "journal_id", "opened_at"),
        Index(None, "journal_id", "closed_at"),
        Index(None, "journal_id", "closing_order_id"),
        Index(None, "journal_id", "book"),
    )

    @property
    def is_open(self) -> bool:
        """Whether fills still move this cycle."""
        return self.status == OPEN

    @property
    def is_liquidated(self) -> bool:
        """Whether the venue closed this cycle."""
        return self.status == LIQUIDATED

    @property
    def entry_value(self) -> Decimal:
        """What the open position cost, or brought in if it is short, in the quote currency."""
        return self.cost_basis

    @property
    def position_value(self) -> Decimal | None:
        """What the open position is worth at the mark, short or long; None without a mark."""
        if self.current_price is None:
            return None
        with localcontext(CONTEXT):
            return abs(self.exact_size) * self.current_price

    @property
    def pnl(self) -> Decimal | None:
        """The gain that is not realised, at the mark, before fees; None without a mark."""
        if self.current_price is None:
            return None
        with localcontext(CONTEXT):
            return self.exact_size * self.current_price - signed_cost(self)

    @property
    def pnl_pct(self) -> Decimal | None:
        """The same in percent of the entry value; None without a mark or an entry value."""
        pnl = self.pnl
        if pnl is None or self.entry_value == 0:
            return None
        with localcontext(CONTEXT):
            return pnl / self.entry_value * PERCENT

    @property
    def should_stop_loss(self) -> bool | None:
        """Whether the mark has reached the stop loss; None without a mark or a level."""
        return self._is_reached(self.stop_loss, is_upwards=self.exact_size < 0)

    @property
    def should_take_profit(self) -> bool | None:
        """Whether the mark has reached the take profit; None without a mark or a level."""
        return self._is_reached(self.take_profit, is_upwards=self.exact_size > 0)

    def _is_reached(self, level: Decimal | None, *, is_upwards: bool) -> bool | None:
        mark = self.current_price
        if mark is None or level is None:
            return None
        return self.is_open and (mark >= level if is_upwards else mark <= level)


Position.current_price = column_property(
    sa.select(_marks.c.exact_price)
    .where(
        _marks.c.journal_id == Position.__table__.c.journal_id,
        _marks.c.token == Position.__table__.c.token,
    )
    .correlate(Position.__table__)
    .scalar_subquery()
)


def signed_cost(row: Position) -> Decimal:
    """Return what the open position cost: negative where a short one brought it in."""
    return row.cost_basis if row.exact_size > 0 else -row.cost_basis


def _derived(row: Position) -> dict[str, Decimal | None]:
    return {
        "size": row.exact_size,
        "entry_price": row.exact_entry_price,
        "realized_pnl": row.exact_realized_pnl,
        "fees": row.exact_fees,
        "net_pnl": row.exact_realized_pnl - row.exact_fees,
    }


ENDINGS = (OrderRejected, OrderCancelled, OrderExpired, OrderFailed)
AMENDMENTS = (OrderReplaced, OrderRestated)


def _books(event: Event) -> Iterable[str]:
    """Name the books whose open cycle the fold of `event` may look up."""
    return event.tags() if isinstance(event, Execution | PositionEvent) else ()


def _explicit_book(position_id: UUID) -> str:
    return f"position:{position_id}"


def _cycles(event: Event) -> Iterable[UUID]:
    """Name the cycle that a new order is to close, or what a liquidation of nothing stands for."""
    if isinstance(event, PositionLiquidated):
        return (id_of_nothing(_book(event)),)
    if isinstance(event, OrderPlaced) and event.closes_position_id is not None:
        return (event.closes_position_id,)
    return ()


def _book(event: PositionEvent) -> str:
    [book] = event.tags()
    return book


def _orders_at_work(event: Event) -> Iterable[UUID]:
    """Name the order that may be at work to close a cycle, and may end with `event`."""
    return (event.order_id,) if isinstance(event, (OrderFilled, *ENDINGS, *AMENDMENTS)) else ()


def _gives(journal: str, recorded: RecordedEvent) -> Iterator[tuple[str, UUID]]:
    """Name the cycles that a fill may open, and the order that may be at work once it is placed."""
    event = recorded.event
    if isinstance(event, Execution):
        for is_first in (True, False):
            opened = cycle_id(journal, recorded.event_id, event, is_first=is_first)
            yield "position_id", opened
    if isinstance(event, OrderPlaced) and event.closes_position_id is not None:
        yield "closing_order_id", event.order_id


def _rests(row: Position) -> bool:
    """Whether a cycle is over. Its book finds the next one, or none, which is the same."""
    return row.status != OPEN and row.closing_order_id is None


positions = Projection(
    Position,
    looks_up=["users", "orders"],
    # The book is last: by it the open cycle must be found, whatever else is in memory.
    aliases=[
        Alias("position_id", _cycles, types=(PositionLiquidated, OrderPlaced)),
        Alias("closing_order_id", _orders_at_work, types=(OrderFilled, *ENDINGS, *AMENDMENTS)),
        Alias("book", _books, {"status": OPEN}, types=(Execution, PositionEvent)),
    ],
    gives=_gives,
    derived=_derived,
    rests=_rests,
)


@positions.on(OrderFilled, FillBusted)
def _executed(state: State, recorded: RecordedEvent, event: Execution) -> None:
    """Move the book of the fill; the bust of a fill moves it back."""
    if event.quantity <= ZERO:
        return
    if event.user_id is not None:
        _trade(state, recorded, event, event.user_id)
    if event.kind is OrderFilled and _closed_by(state, event) is not None:
        order = state.look_up("orders", event.order_id)
        _end_if_done(state, recorded, event, _leaves(order, event))


def _trade(state: State, recorded: RecordedEvent, event: Execution, user_id: UUID) -> None:
    book = position_tag(user_id, event.token, event.position_id)
    row = _open_cycle(state, book)
    effect = effect_of(event)
    if row is None:
        _open(state, recorded, event, book, effect)
    elif row.token != kept_token(event.token) or row.owner_id != user_id:
        # An explicit position is named by a fill in another token or of another user.
        flag(state.rows(Position).touch(row, recorded), "fill_of_another")
    else:
        _move(state, recorded, event, row, effect)


def _open_cycle(state: State, book: str) -> Position | None:
    row = state.rows(Position).find("book", book)
    return row if row is not None and row.status == OPEN else None


def _open(
    state: State, recorded: RecordedEvent, event: Execution, book: str, effect: Effect
) -> None:
    """Begin a cycle of the book, unless the token's fee left nothing to hold."""
    if not effect.size:
        return
    rows, order = state.rows(Position), state.look_up("orders", event.order_id)
    is_first = event.position_id is None or rows.get(event.position_id) is None
    opened = cycle_id(state.journal_name, recorded.event_id, event, is_first=is_first)
    row = rows.add(
        state.as_id(opened),
        recorded,
        book=book,
        owner_id=event.user_id,
        token=kept_token(event.token),
        opened_at=recorded.occurred_at,
        strategy=None if order is None else order.strategy,
    )
    if event.kind is FillBusted:
        flag(row, "reopened_unprotected")
    _increase(state, event, row, effect)


def _move(
    state: State, recorded: RecordedEvent, event: Execution, row: Position, effect: Effect
) -> None:
    """Increase, reduce, close or flip the open cycle."""
    state.rows(Position).touch(row, recorded)
    if effect.size * row.exact_size >= ZERO:
        _increase(state, event, row, effect)
    elif abs(effect.size) < abs(row.exact_size):
        _reduce(state, event, row, effect)
    else:
        closing, opening = effect.split(effect.size + row.exact_size)
        _note(state, event, row, closing)
        _close(state, recorded, row, closing.value, CLOSED)
        _open(state, recorded, event, row.book, opening)


def _increase(state: State, event: Execution, row: Position, effect: Effect) -> None:
    _note(state, event, row, effect)
    row.exact_size = size = row.exact_size + effect.size
    row.cost_basis += effect.value if size > ZERO else -effect.value
    row.exact_entry_price = row.cost_basis / abs(size)


def _reduce(state: State, event: Execution, row: Position, effect: Effect) -> None:
    """Take out a part: at the average cost, or at its own where a fill is taken back."""
    _note(state, event, row, effect)
    proceeds = -effect.value if row.exact_size > 0 else effect.value
    undone = event.kind is FillBusted
    cost = proceeds if undone else row.cost_basis * abs(effect.size) / abs(row.exact_size)
    row.exact_realized_pnl += _gain(row, proceeds - cost)
    row.cost_basis -= cost
    row.exact_size += effect.size
    if undone:
        row.exact_entry_price = row.cost_basis / abs(row.exact_size)


def _gain(row: Position, difference: Decimal) -> Decimal:
    """Return what `difference` between proceeds and cost means for a long or a short position."""
    return difference if row.exact_size > 0 else -difference


def _close(
    state: State, recorded: RecordedEvent, row: Position, value: Decimal, status: str
) -> None:
    """End the cycle for this signed value; its last entry price stays to be read."""
    row.exact_realized_pnl -= value + signed_cost(row)
    row.exact_size = row.cost_basis = ZERO
    row.status = status
    row.closed_at = recorded.occurred_at
    row.closed_size = recorded.offset + 1
    row.armed_size = None
    state.rows(Position).rename(row, "closing_order_id", None)


def _note(state: State, event: Execution, row: Position, effect: Effect) -> None:
    """Book the fees, set the owner once they are known, and flag what is odd about the fill."""
    row.exact_fees += effect.fee
    row.user_id = state.reference("users", event.user_id)
    if row.user_id is None:
        flag(row, "unknown_user")
    if event.fee_currency is not None and event.fee_currency != event.token:
        flag(row, "fee_in_other_currency")
        _add_other_fee(row, str(event.fee_currency), effect.other_fee)
    if event.kind is FillBusted:
        flag(row, "fill_busted")
    if event.position_id is not None and is_derived(event.position_id):
        flag(row, "derived_position_id")


def _add_other_fee(row: Position, currency: str, fee: Decimal) -> None:
    total = Decimal(row.other_fees.get(currency, "0")) + fee
    row.other_fees = {**row.other_fees, currency: amount_text(total)}


@positions.on(ProtectionSet)
def _protected(state: State, recorded: RecordedEvent, event: ProtectionSet) -> None:
    row = _meant(state, recorded, event)
    if row is not None and _is_in_time(row, event):
        row.stop_loss, row.take_profit = event.stop_loss, event.take_profit
        _arm(row, recorded)


def _arm(row: Position, recorded: RecordedEvent) -> None:
    """Let marks that come after `recorded` reach the levels, if there are any."""
    has_level = row.stop_loss is not None or row.take_profit is not None
    row.armed_size = recorded.offset + 1 if has_level else None


@positions.on(PositionLiquidated)
def _liquidated(state: State, recorded: RecordedEvent, event: PositionLiquidated) -> None:
    """Close the cycle, if it is one of the event's book; the fee is booked in that in any case."""
    row = _meant(state, recorded, event)
    if row is not None and row.book != _book(event):
        flag(row, "liquidated_without_book")
        row = None
    if row is None:
        row = _nothing(state, recorded, event)
    elif _is_in_time(row, event):
        _close(state, recorded, row, -row.exact_size * event.price, LIQUIDATED)
    row.exact_fees += ZERO if event.fee is None else +event.fee


def _nothing(state: State, recorded: RecordedEvent, event: PositionLiquidated) -> Position:
    """Return the row for liquidations that found no position in their book."""
    rows, book = state.rows(Position), _book(event)
    key = state.as_id(id_of_nothing(book))
    row = rows.edit(key, recorded)
    if row is None:
        at = recorded.occurred_at
        times = {"opened_at": at, "closed_at": at, "closed_size": recorded.offset + 1}
        row = rows.add(key, recorded, book=book, status=LIQUIDATED, **times)
    flag(row, "liquidated_nothing")
    return row


def _meant(state: State, recorded: RecordedEvent, event: PositionEvent) -> Position | None:
    """Return the cycle that an event is about: the open one of the explicit book that it names."""
    rows, explicit = state.rows(Position), _explicit_book(event.position_id)
    row = _open_cycle(state, explicit) if _book(event) == explicit else None
    row = row or rows.get(event.position_id)
    if row is None or row.position_id == state.as_id(id_of_nothing(row.book)):
        return None
    return rows.touch(row, recorded)


def _is_in_time(row: Position, event: PositionEvent) -> bool:
    """Whether a cycle is open; an event that comes too late is flagged."""
    if row.status != OPEN:
        flag(row, f"after_{row.status}:{event.kind.__name__}")
    return row.status == OPEN


@positions.on(OrderPlaced)
def _placed(state: State, recorded: RecordedEvent, event: OrderPlaced) -> None:
    """Note the order that closes an armed cycle, if placing is the first that is known of it."""
    if event.closes_position_id is None or state.look_up("orders", event.order_id) is not None:
        return
    rows = state.rows(Position)
    row = rows.find("position_id", event.closes_position_id)
    if row is None or row.armed_size is None or row.closing_order_id is not None:
        return
    # Only the one order that these very levels lead to can stand in for them.
    if event.order_id == state.as_id(closing_order_id(row.position_id, row.armed_size)):
        rows.rename(rows.touch(row, recorded), "closing_order_id", event.order_id)


@positions.on(*ENDINGS)
def _order_ended(state: State, recorded: RecordedEvent, event: OrderEvent) -> None:
    _end_if_done(state, recorded, event, ZERO)


@positions.on(*AMENDMENTS)
def _order_amended(
    state: State, recorded: RecordedEvent, event: OrderReplaced | OrderRestated
) -> None:
    order = state.look_up("orders", event.order_id)
    wanted = None if order is None else order.exact_quantity
    if event.quantity is not None:
        wanted = +event.quantity
    elif wanted is not None and isinstance(event, OrderRestated):
        wanted += event.quantity_change or ZERO
    if order is not None and wanted is not None:
        _end_if_done(state, recorded, event, wanted - order.exact_filled_quantity)


def _closed_by(state: State, event: OrderEvent) -> Position | None:
    """Return the cycle that the event's order is at work to close."""
    return state.rows(Position).find("closing_order_id", event.order_id)


def _leaves(order: Any, event: Execution) -> Decimal | None:
    """Return what is left of an order after a fill, in its own unit; None if that is not known."""
    if order is None:
        return None
    leaves: Decimal | None = None
    if order.exact_quantity is not None:
        leaves = order.exact_quantity - order.exact_filled_quantity - event.quantity
    elif order.amount is not None:
        leaves = order.amount - order.exact_notional - event.notional()
    return leaves


def _end_if_done(
    state: State, recorded: RecordedEvent, event: OrderEvent, leaves: Decimal | None
) -> None:
    """Arm the levels again where the closing order has nothing left and the cycle is still open."""
    row = _closed_by(state, event)
    if row is not None and leaves is not None and leaves <= 0:
        rows = state.rows(Position)
        rows.rename(rows.touch(row, recorded), "closing_order_id", None)
        _arm(row, recorded)
