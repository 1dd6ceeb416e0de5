"""When a protective order is to be placed or activated, and under which conditions: pure decisions.

Rows are those of the live tables at one size; `reactor` reads them and appends what comes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import ROUND_DOWN, Decimal, localcontext
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa

from ledger.conditions import Condition, ExpectedVersion, NoEvent
from ledger.domain.marks import PriceMarked
from ledger.domain.order_stages import Stage, step
from ledger.domain.orders import (
    Action,
    OrderAccepted,
    OrderCancelRejected,
    OrderCancelRequested,
    OrderPlaced,
    OrderReplaceRejected,
    OrderReplaceRequested,
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
    """Open positions, and unfinished stops and targets, of some tokens as of one size."""

    size: int
    positions: Sequence[Row]
    resting: Sequence[Row]

    def position(self, book: str) -> Row | None:
        """Return the open position of a book."""
        return next((each for each in self.positions if each.book == book), None)

    def reducing(self, position: Row) -> list[Row]:
        """Return the stops and targets that would reduce a position and may do nothing else."""
        return [order for order in self.resting if reduces(order, position)]

    def uncovered(self, position: Row) -> Decimal:
        """Return how much of a position no activated stop or target is closing already."""
        at_work = [order for order in self.reducing(position) if order.stage & Stage.TRIGGERED]
        with localcontext(CONTEXT):
            size: Decimal = abs(position.exact_size)
            return size - sum(map(leaves, at_work))


class Crossing(msgspec.Struct, frozen=True):
    """A mark that reached a level of a position."""

    mark: Mark
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


def reduces(order: Row, position: Row | None) -> bool:
    """Whether an order may only reduce, and this position is what it would reduce."""
    if position is None or not order.reduce_only or order.book != position.book:
        return False
    return bool(order.action == closing_action(position))


def leaves(order: Row) -> Decimal:
    """Return what is still to be filled of an unfinished order."""
    if order.exact_quantity is None:
        return Decimal(0)
    return max(Decimal(0), CONTEXT.subtract(order.exact_quantity, order.exact_filled_quantity))


def crossing(tables: Tables, position: Row, marks: Iterable[Mark]) -> Crossing | None:
    """Return the first mark since the levels were armed that reaches one of them.

    None where all of the position is being closed already.
    """
    if position.armed_size is None or position.closing_order_id is not None:
        return None
    if tables.uncovered(position) <= 0:
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
                return Crossing((recorded, mark), level, kind)
    return None


def closing_order(tables: Tables, position: Row, crossed: Crossing) -> OrderPlaced | None:
    """Return the order that closes a position, None where less than a unit is left of it.

    Raises CannotProtect.
    """
    size = tables.uncovered(position)
    if position.user_id is None:
        raise CannotProtect("its user is not registered")
    if size >= _LIMIT:
        raise CannotProtect("its size is more than one order can have")
    if (quantity := orderable(size)) == 0:
        return None
    return OrderPlaced(
        order_id=closing_order_id(position.position_id, position.armed_size),
        user_id=position.user_id,
        token=position.token,
        action=closing_action(position),
        order_type=OrderType.MARKET,
        quantity=quantity,
        reference_price=Amount(crossed.level),
        position_id=explicit_id(position.book),
        reduce_only=True,
        closes_position_id=position.position_id,
        strategy=position.strategy,
        extra_data={"protection": crossed.kind.value},
    )


def orderable(size: Decimal) -> Amount:
    """Return how much of a size an order can have: it never asks for more than there is."""
    return Amount(size.quantize(_UNIT, ROUND_DOWN, CONTEXT))


def explicit_id(book: str) -> UUID | None:
    """Return the explicit position id that orders for a book have to name, None when netting."""
    name = book.removeprefix("position:")
    return None if name == book else UUID(name)


def closing_conditions(tables: Tables, position: Row, placed: OrderPlaced) -> list[Condition]:
    """Return what must hold so that the closing order is the only one, and fits the position."""
    stream = position_stream(position.position_id)
    levels = (ProtectionSet, PositionLiquidated)
    return [
        ExpectedVersion(order_stream(placed.order_id), 0),
        NoEvent(types=levels, stream=stream, after=tables.size - 1),
        unmoved(position.book, tables.size),
        *(_not_activated(order.order_id, tables) for order in tables.reducing(position)),
    ]


def activating(order: Row, history: Sequence[RecordedEvent], marks: Iterable[Mark]) -> Mark | None:
    """Return the first mark since the venue took the order that reaches its trigger price."""
    taken = [each.offset for each in history if isinstance(each.event, OrderAccepted)]
    if not taken or not _is_resting(order) or is_being_cancelled(history):
        return None
    kind, action = OrderType(order.order_type), Action(order.action)
    for recorded, mark in marks:
        if recorded.offset > taken[0] and reaches(mark.price, order.trigger_price, kind, action):
            return recorded, mark
    return None


def _is_resting(order: Row) -> bool:
    """Whether the states of orders let it be activated."""
    has_fills = order.exact_filled_quantity > 0
    return step(order.stage, OrderTriggered, has_fills, is_filled=False).misfit is None


def may_activate(tables: Tables, order: Row) -> bool:
    """Whether an order that may only reduce a position would, and nothing else does so already."""
    position = tables.position(order.book)
    if position is None or not reduces(order, position):
        return False
    return position.closing_order_id is None and tables.uncovered(position) > 0


def activating_conditions(
    tables: Tables, order: Row, history: Sequence[RecordedEvent]
) -> list[Condition]:
    """Return what must hold so that nothing but this order closes a position."""
    found: list[Condition] = [ExpectedVersion(order_stream(order.order_id), history[-1].version)]
    position = tables.position(order.book) if order.reduce_only else None
    if position is not None:
        found.append(unmoved(order.book, tables.size))
        others = [each for each in tables.reducing(position) if each.order_id != order.order_id]
        found += (_not_activated(each.order_id, tables) for each in others)
        if position.armed_size is not None:
            closing = closing_order_id(position.position_id, position.armed_size)
            found.append(NoEvent(stream=order_stream(closing)))
    return found


def is_orphan(order: Row, position: Row | None, closed_size: int | None) -> bool:
    """Whether what an order was to reduce is gone.

    `position` is the open one of its book, `closed_size` the size at which the last one closed.
    """
    if order.closes_position_id is not None:
        return position is None or position.position_id != order.closes_position_id
    is_over = closed_size is not None and closed_size > order.placed_size
    return is_over and not reduces(order, position)


def excess(order: Row, position: Row | None) -> Amount | None:
    """Return the total quantity that a closing order should have, if it has more than that."""
    if position is None or position.position_id != order.closes_position_id:
        return None
    size = abs(position.exact_size)
    wanted = CONTEXT.add(order.exact_filled_quantity, size)
    return orderable(wanted) if leaves(order) > size and wanted < _LIMIT else None


def is_being_replaced(history: Iterable[RecordedEvent], quantity: Amount) -> bool:
    """Whether somebody asked for this quantity and the venue has not refused it."""
    asked = [
        isinstance(each.event, OrderReplaceRequested) and each.event.quantity == quantity
        for each in history
        if isinstance(each.event, OrderReplaceRequested | OrderReplaceRejected)
    ]
    return bool(asked) and asked[-1]


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
