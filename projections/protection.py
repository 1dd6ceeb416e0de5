"""When a protective order is to be placed or activated, and under which conditions: pure decisions.

Rows are those of the live tables at one size; `reactor` reads them and appends what comes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import ROUND_DOWN, Decimal
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa

from ledger.conditions import Condition, ExpectedVersion, NoEvent
from ledger.domain.marks import PriceMarked
from ledger.domain.order_stages import Stage
from ledger.domain.orders import (
    Action,
    OrderAccepted,
    OrderCancelRejected,
    OrderCancelRequested,
    OrderPlaced,
    OrderTriggered,
    OrderType,
    order_stream,
)
from ledger.domain.positions import (
    MOVING,
    PositionLiquidated,
    ProtectionSet,
    closing_order_id,
    position_stream,
)
from ledger.event import Amount, RecordedEvent
from projections.numbers import CONTEXT

PROTECTIVE = (OrderType.STOP_LOSS, OrderType.TAKE_PROFIT)
CHANGING = (*MOVING, ProtectionSet)
"""What changes a position or its levels."""

_UNIT = Decimal(1).scaleb(-Amount.decimal_places)
_LIMIT = Decimal(10) ** Amount.integer_digits

Row = sa.Row[Any]
Mark = tuple[RecordedEvent, PriceMarked]


class Tables(msgspec.Struct, frozen=True):
    """Open positions and unfinished stops and targets of some tokens, as of one size."""

    size: int
    positions: Sequence[Row]
    resting: Sequence[Row]

    def position(self, book: str) -> Row | None:
        """Return the open position of a book."""
        return next((each for each in self.positions if each.book == book), None)

    def reducing(self, book: str) -> list[Row]:
        """Return the stops and targets that may only reduce the position of a book."""
        return [order for order in self.resting if order.reduce_only and order.book == book]

    def is_at_work(self, book: str) -> bool:
        """Whether one of them has been activated and closes the position already."""
        return any(order.stage & Stage.TRIGGERED for order in self.reducing(book))


class Crossing(msgspec.Struct, frozen=True):
    """A mark that reached a level of a position."""

    mark: RecordedEvent
    level: Decimal
    kind: OrderType


class CannotProtect(Exception):
    """No order that the ledger could hold would close the position; the message says why."""


def reaches(price: Decimal, level: Decimal | None, kind: OrderType, action: Action) -> bool:
    """Whether a price reaches the level of a stop or a target whose order would buy or sell.

    A stop that sells waits for the price to fall, a target that sells for it to rise.
    """
    if level is None:
        return False
    is_downwards = (kind == OrderType.STOP_LOSS) == (action == Action.SELL)
    return price <= level if is_downwards else price >= level


def closing_action(position: Row) -> Action:
    """Return the side of an order that closes a position."""
    return Action.SELL if position.exact_size > 0 else Action.BUY


def crossing(tables: Tables, position: Row, marks: Iterable[Mark]) -> Crossing | None:
    """Return the first mark since the levels were armed that reaches one of them.

    None where a closing order is at work already.
    """
    if position.armed_size is None or position.closing_order_id is not None:
        return None
    if tables.is_at_work(position.book):
        return None
    action = closing_action(position)
    levels = (
        (OrderType.STOP_LOSS, position.stop_loss),
        (OrderType.TAKE_PROFIT, position.take_profit),
    )
    for recorded, mark in marks:
        for kind, level in levels:
            is_armed = recorded.offset >= position.armed_size
            if is_armed and reaches(mark.price, level, kind, action):
                return Crossing(recorded, level, kind)
    return None


def closing_order(position: Row, crossed: Crossing) -> OrderPlaced | None:
    """Return the order that closes a position, None where less than a unit is left of it.

    Raises CannotProtect.
    """
    size = abs(position.exact_size).quantize(_UNIT, ROUND_DOWN, CONTEXT)
    if size == 0:
        return None
    if position.user_id is None:
        raise CannotProtect("its user is not registered")
    if size >= _LIMIT:
        raise CannotProtect(f"its size {size} is more than one order can have")
    is_explicit = position.book == f"position:{position.position_id}"
    return OrderPlaced(
        order_id=closing_order_id(position.position_id, position.armed_size),
        user_id=position.user_id,
        token=position.token,
        action=closing_action(position),
        order_type=OrderType.MARKET,
        quantity=Amount(size),
        reference_price=Amount(crossed.level),
        position_id=position.position_id if is_explicit else None,
        reduce_only=True,
        closes_position_id=position.position_id,
        strategy=position.strategy,
        extra_data={"protection": crossed.kind.value},
    )


def closing_conditions(tables: Tables, position: Row, placed: OrderPlaced) -> list[Condition]:
    """Return what must hold so that the closing order is the only one, and fits the position."""
    stream = position_stream(position.position_id)
    levels = (ProtectionSet, PositionLiquidated)
    return [
        ExpectedVersion(order_stream(placed.order_id), 0),
        NoEvent(types=levels, stream=stream, after=tables.size - 1),
        unmoved(position.book, tables.size),
        *(_not_activated(order.order_id, tables) for order in tables.reducing(position.book)),
    ]


def activating(order: Row, history: Sequence[RecordedEvent], marks: Iterable[Mark]) -> Mark | None:
    """Return the first mark since the venue took the order that reaches its trigger price."""
    taken = [each.offset for each in history if isinstance(each.event, OrderAccepted)]
    is_activated = any(isinstance(each.event, OrderTriggered) for each in history)
    if not taken or is_activated or is_being_cancelled(history):
        return None
    kind, action = OrderType(order.order_type), Action(order.action)
    for recorded, mark in marks:
        if recorded.offset > taken[0] and reaches(mark.price, order.trigger_price, kind, action):
            return recorded, mark
    return None


def may_activate(tables: Tables, order: Row) -> bool:
    """Whether an order that may only reduce a position would, and nothing else does so already."""
    position = tables.position(order.book)
    if position is None or order.action != closing_action(position):
        return False
    return position.closing_order_id is None and not tables.is_at_work(order.book)


def activating_conditions(
    tables: Tables, order: Row, history: Sequence[RecordedEvent]
) -> list[Condition]:
    """Return what must hold so that nothing but this order closes a position."""
    found: list[Condition] = [ExpectedVersion(order_stream(order.order_id), history[-1].version)]
    position = tables.position(order.book)
    if order.reduce_only and position is not None:
        found.append(unmoved(order.book, tables.size))
        others = [each for each in tables.reducing(order.book) if each.order_id != order.order_id]
        found += (_not_activated(each.order_id, tables) for each in others)
        if position.armed_size is not None:
            closing = closing_order_id(position.position_id, position.armed_size)
            found.append(NoEvent(stream=order_stream(closing)))
    return found


def is_being_cancelled(history: Iterable[RecordedEvent]) -> bool:
    """Whether somebody asked to cancel an order and the venue has not refused it."""
    asked = [
        isinstance(each.event, OrderCancelRequested)
        for each in history
        if isinstance(each.event, OrderCancelRequested | OrderCancelRejected)
    ]
    return bool(asked) and asked[-1]


def unmoved(book: str, size: int) -> NoEvent:
    """Rule out that the position of a book moved after `size`."""
    return NoEvent(types=CHANGING, tag=book, after=size - 1)


def _not_activated(order_id: UUID, tables: Tables) -> NoEvent:
    """Rule out that an order was activated since the tables were read."""
    return NoEvent(types=(OrderTriggered,), stream=order_stream(order_id), after=tables.size - 1)
