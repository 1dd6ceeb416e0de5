"""Positions: average-cost books that follow from fills, one row per cycle.

A cycle opens with a fill from flat and closes at exactly zero; the next fill opens another row.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy import Index
from sqlalchemy.orm import Mapped, column_property, mapped_column, relationship

from ledger.domain.orders import Action, Execution, FillBusted, OrderFilled, position_tag
from ledger.domain.positions import PositionEvent, PositionLiquidated, ProtectionSet
from ledger.event import Event, RecordedEvent
from projections.model import AMOUNT, PRODUCT, Flags, TimedModel, exact, one_of, refers_to
from projections.numbers import ZERO, short
from projections.projection import Alias, Projection, State, flag

OPEN, CLOSED, LIQUIDATED = "open", "closed", "liquidated"
IDS = UUID("6f1c1d8e-52a5-5b0c-9d3f-0d4a4ad1c9f7")
"""The namespace of the ids of cycles."""
DERIVED = 8

_marks = sa.table("marks", sa.column("journal_id"), sa.column("token"), sa.column("price", AMOUNT))


class Position(TimedModel):
    """One cycle of a position. `size` is signed, `cost_basis` is |size| * average entry price.

    `realized_pnl` is gross; `net_pnl` is what remains of it after `fees`. `book` names what fills
    net into: a user's token, or an explicit position when hedging.
    """

    __tablename__ = "positions"

    position_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID | None]
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
    strategy: Mapped[str | None]
    extra_data: Mapped[dict[str, Any] | None]
    flags: Mapped[Flags] = mapped_column(default=dict)
    cost_basis: Mapped[Decimal] = exact()
    exact_size: Mapped[Decimal] = exact()
    exact_entry_price: Mapped[Decimal] = exact()
    exact_realized_pnl: Mapped[Decimal] = exact()
    exact_fees: Mapped[Decimal] = exact()

    orders: Mapped[list[Any]] = relationship("Order", viewonly=True, lazy="raise")

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
    )

    @property
    def is_open(self) -> bool:
        """Whether fills still move this cycle."""
        return self.status == OPEN


Position.current_price = column_property(
    sa.select(_marks.c.price)
    .where(
        _marks.c.journal_id == Position.__table__.c.journal_id,
        _marks.c.token == Position.__table__.c.token,
    )
    .correlate(Position.__table__)
    .scalar_subquery()
)


def _derived(row: Position) -> dict[str, Decimal | None]:
    return {
        "size": row.exact_size,
        "entry_price": row.exact_entry_price,
        "realized_pnl": row.exact_realized_pnl,
        "fees": row.exact_fees,
        "net_pnl": row.exact_realized_pnl - row.exact_fees,
    }


def _books(event: Event) -> Iterable[str]:
    """Name the books whose open cycle the fold of `event` may look up."""
    if isinstance(event, Execution):
        return event.tags()
    return (_explicit_book(event.position_id),) if isinstance(event, PositionEvent) else ()


def _explicit_book(position_id: UUID) -> str:
    return f"position:{position_id}"


positions = Projection(
    Position,
    alias=Alias("book", Position.status == OPEN, _books),
    derived=_derived,
)


@positions.on(OrderFilled, FillBusted)
def _executed(state: State, recorded: RecordedEvent, event: Execution) -> None:
    """Move the book of the fill; the bust of a fill moves it back."""
    if event.user_id is None or event.quantity <= 0:
        return
    row = _open_cycle(state, position_tag(event.user_id, event.token, event.position_id))
    size, fee = _effect(event)
    if row is None:
        _open(state, recorded, event, size, fee)
    elif _is_of_another(row, event):
        flag(state.rows(Position).touch(row, recorded), "fill_of_another")
    else:
        _move(state, recorded, event, row, size, fee)


def _effect(event: Execution) -> tuple[Decimal, Decimal]:
    """Return the signed change of size, and the fee in the quote currency.

    A fee in the token is taken out of what is held, as if sold at the price of the fill.
    """
    size = +event.quantity if event.action == Action.BUY else -event.quantity
    fee = ZERO if event.fee is None else +event.fee
    if event.fee_currency == event.token:
        size, fee = size - fee, fee * event.price
    elif event.fee_currency is not None:
        fee = ZERO
    return (-size, -fee) if isinstance(event, FillBusted) else (size, fee)


def _open_cycle(state: State, book: str) -> Position | None:
    row = state.rows(Position).find(book)
    return row if row is not None and row.status == OPEN else None


def _is_of_another(row: Position, event: Execution) -> bool:
    """Whether an explicit position is claimed by a fill in another token or of another user."""
    return row.token != short(event.token) or row.user_id not in (None, event.user_id)


def _open(
    state: State, recorded: RecordedEvent, event: Execution, size: Decimal, fee: Decimal
) -> None:
    """Begin a cycle, unless the token's fee left nothing to hold."""
    if size == 0 or event.user_id is None:
        return
    order = state.look_up("orders", event.order_id)
    row = state.rows(Position).add(
        _new_id(state, recorded, event),
        recorded,
        book=position_tag(event.user_id, event.token, event.position_id),
        token=short(event.token),
        opened_at=recorded.occurred_at,
        strategy=None if order is None else order.strategy,
    )
    _increase(state, event, row, size, fee)


def _new_id(state: State, recorded: RecordedEvent, event: Execution) -> UUID:
    """Return the explicit id the first time it is used, later one that follows from the fill.

    Derived ids are UUIDs of version 8, which no explicit one may be: else somebody could choose the
    id that a later cycle will have.
    """
    explicit = event.position_id
    usable = explicit is not None and explicit.version != DERIVED
    if explicit is not None and usable and state.rows(Position).get(explicit) is None:
        return explicit
    book = f"{state.journal_name}:{event.user_id}:{event.token}:{explicit or ''}"
    digest = uuid5(IDS, f"{book}:{recorded.event_id}").int
    return UUID(int=digest & ~(0xF << 76) | DERIVED << 76)


def _move(
    state: State,
    recorded: RecordedEvent,
    event: Execution,
    row: Position,
    size: Decimal,
    fee: Decimal,
) -> None:
    """Increase, reduce, close or flip the open cycle."""
    state.rows(Position).touch(row, recorded)
    if size * row.exact_size >= 0:
        _increase(state, event, row, size, fee)
    elif abs(size) < abs(row.exact_size):
        _reduce(state, event, row, size, fee)
    else:
        rest = size + row.exact_size
        closing_fee = fee - fee * rest / size
        _note(state, event, row)
        _close(row, recorded, +event.price, closing_fee, CLOSED)
        _open(state, recorded, event, rest, fee - closing_fee)


def _increase(state: State, event: Execution, row: Position, size: Decimal, fee: Decimal) -> None:
    _note(state, event, row)
    row.exact_size += size
    row.cost_basis += abs(size) * event.price
    row.exact_entry_price = row.cost_basis / abs(row.exact_size)
    row.exact_fees += fee


def _reduce(state: State, event: Execution, row: Position, size: Decimal, fee: Decimal) -> None:
    """Take out a part: at the average cost, or at its own where a fill is taken back."""
    _note(state, event, row)
    proceeds = abs(size) * event.price
    undone = isinstance(event, FillBusted)
    cost = proceeds if undone else row.cost_basis * abs(size) / abs(row.exact_size)
    row.exact_realized_pnl += _gain(row, proceeds - cost)
    row.cost_basis -= cost
    row.exact_size += size
    row.exact_fees += fee
    if undone:
        row.exact_entry_price = row.cost_basis / abs(row.exact_size)


def _gain(row: Position, difference: Decimal) -> Decimal:
    """Return what `difference` between proceeds and cost means for a long or a short position."""
    return difference if row.exact_size > 0 else -difference


def _close(
    row: Position, recorded: RecordedEvent, price: Decimal, fee: Decimal, status: str
) -> None:
    """End the cycle at `price`; its last entry price stays to be read."""
    proceeds = abs(row.exact_size) * price
    row.exact_realized_pnl += _gain(row, proceeds - row.cost_basis)
    row.exact_size = row.cost_basis = ZERO
    row.exact_fees += fee
    row.status = status
    row.closed_at = recorded.occurred_at


def _note(state: State, event: Execution, row: Position) -> None:
    """Set the owner once they are known, and flag what is odd about the fill."""
    row.user_id = state.reference("users", event.user_id)
    if row.user_id is None:
        flag(row, "unknown_user")
    if event.fee_currency not in (None, event.token):
        flag(row, "fee_in_other_currency")
    if isinstance(event, FillBusted):
        flag(row, "fill_busted")


@positions.on(ProtectionSet)
def _protected(state: State, recorded: RecordedEvent, event: ProtectionSet) -> None:
    row = _target(state, recorded, event)
    if row is not None:
        row.stop_loss, row.take_profit = event.stop_loss, event.take_profit


@positions.on(PositionLiquidated)
def _liquidated(state: State, recorded: RecordedEvent, event: PositionLiquidated) -> None:
    row = _target(state, recorded, event)
    if row is not None:
        fee = ZERO if event.fee is None else +event.fee
        _close(row, recorded, +event.price, fee, LIQUIDATED)


def _target(state: State, recorded: RecordedEvent, event: PositionEvent) -> Position | None:
    """Return the open cycle to change; an event that comes too late is flagged."""
    rows = state.rows(Position)
    row = _open_cycle(state, _explicit_book(event.position_id)) or rows.get(event.position_id)
    if row is None:
        return None
    rows.touch(row, recorded)
    if row.status == OPEN:
        return row
    flag(row, f"after_{row.status}:{type(event).__name__}")
    return None
