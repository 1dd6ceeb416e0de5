"""Orders: commands of our own users and programs, and what venues report."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, cast
from uuid import UUID, uuid5

import msgspec
from uuid_utils.compat import uuid7

from ledger.codec import encode_event
from ledger.conditions import Condition, NoEvent
from ledger.deciding import ORIGIN, Deciding, Guard, Origin
from ledger.domain.order_commands import (
    ORDERS,
    AnyOrderCommand,
    FailOrder,
    OrderState,
    PlaceOrder,
    Raw,
    RecordBust,
    RecordFill,
    RequestCancel,
    RequestReplace,
)
from ledger.domain.orders import (
    Action,
    Execution,
    FillConflicted,
    Liquidity,
    OrderAccepted,
    OrderCancelled,
    OrderCancelPending,
    OrderCancelRejected,
    OrderDoneForDay,
    OrderEvent,
    OrderExpired,
    OrderRejected,
    OrderReplaced,
    OrderReplacePending,
    OrderReplaceRejected,
    OrderRestated,
    OrderStopped,
    OrderTriggered,
    OrderType,
    TimeInForce,
    order_stream,
    position_tag,
)
from ledger.domain.positions import BookDecider
from ledger.domain.users import USER, UserDeactivated, UserErased, user_stream
from ledger.errors import EventIdConflict, InvalidCommand
from ledger.event import NewEvent, VenueAmount
from ledger.stores import Appended

AnyAmount = Decimal | str | int
"""An exact amount; text is in plain notation, `"12.50"`."""

VenueFigure = AnyAmount | Raw
"""An amount as a venue reports it, also as an integer with its decimals."""

TRIES_MAX = 5

_EXECUTIONS = UUID("3f0f6c0e-3a55-5d1c-8f0e-0a3a6c9b7f11")
"""The namespace of the event ids of fills, busts and conflicts."""


class Recorded(msgspec.Struct, frozen=True):
    """What was stored of an order; `size` is a size of the journal that includes it.

    `event` and `appended` are None where it was known already, so that nothing was to be stored.
    """

    order_id: UUID
    event: OrderEvent | None
    appended: Appended | None
    size: int

    @property
    def is_new(self) -> bool:
        """Whether this very call has stored an event."""
        return self.appended is not None and not self.appended.duplicate

    @property
    def is_conflict(self) -> bool:
        """Whether a known fill id came with other content, for which nothing was booked."""
        return isinstance(self.event, FillConflicted)


class Orders:
    """The commands and facts of the orders of one journal."""

    def __init__(self, deciding: Deciding) -> None:
        self._deciding = deciding
        self._journal = deciding.journal
        self._books = BookDecider(deciding.journal.name)

    async def place(
        self,
        *,
        user_id: UUID,
        token: str,
        action: Action,
        order_type: OrderType,
        order_id: UUID | None = None,
        quantity: AnyAmount | None = None,
        amount: AnyAmount | None = None,
        price: AnyAmount | None = None,
        trigger_price: AnyAmount | None = None,
        reference_price: AnyAmount | None = None,
        time_in_force: TimeInForce = TimeInForce.GTC,
        expires_at: datetime | None = None,
        slippage_bps: int | None = None,
        position_id: UUID | None = None,
        reduce_only: bool = False,
        strategy: str | None = None,
        extra_data: dict[str, str] | None = None,
        origin: Origin = ORIGIN,
    ) -> Recorded:
        """Place an order of an active user; the fields are those of OrderPlaced.

        Without `order_id` one is made, which follows from the origin's command id if it has one;
        UUIDs of version 8 are the ledger's own.
        Raises InvalidCommand, and CommandRefused where the order exists, the user may not act or
        the explicit position is open and another's.
        """
        command = PlaceOrder(
            order_id=order_id or _new_order_id(origin),
            now=self._journal.now(),
            user_id=user_id,
            token=token,
            action=action,
            order_type=order_type,
            quantity=_given(quantity),
            amount=_given(amount),
            price=_given(price),
            trigger_price=_given(trigger_price),
            reference_price=_given(reference_price),
            time_in_force=time_in_force,
            expires_at=expires_at,
            slippage_bps=slippage_bps,
            position_id=position_id,
            reduce_only=reduce_only,
            strategy=strategy,
            extra_data=extra_data,
        )
        tries = itertools.count()

        async def guard() -> Sequence[Condition]:
            return await self._may_place(command, loads=next(tries) > 0)

        return await self._command(command, origin, guard, is_first=True)

    async def request_replace(
        self,
        *,
        order_id: UUID,
        quantity: AnyAmount | None = None,
        price: AnyAmount | None = None,
        origin: Origin = ORIGIN,
    ) -> Recorded:
        """Ask the venue for another total quantity or price.

        Raises InvalidCommand, also for terms that an order of this type does not have, and
        CommandRefused for an order that is unknown, has ended, or is being cancelled, for a filled
        one unless more is asked for than was filled, and where its user may not act.
        """
        command = RequestReplace(order_id=order_id, quantity=_given(quantity), price=_given(price))
        return await self._command(command, origin, partial(self._may_replace, command))

    async def request_cancel(self, *, order_id: UUID, origin: Origin = ORIGIN) -> Recorded:
        """Ask the venue to cancel; CommandRefused for an order that is unknown or finished."""
        return await self._command(RequestCancel(order_id=order_id), origin)

    async def fail(self, *, order_id: UUID, reason: str, origin: Origin = ORIGIN) -> Recorded:
        """Give up an order that our gateway could not carry out.

        Raises CommandRefused for an order that is unknown or finished, or has fills.
        """
        return await self._command(FailOrder(order_id=order_id, reason=reason), origin)

    async def accepted(
        self, *, order_id: UUID, venue_order_id: str | None = None, origin: Origin = ORIGIN
    ) -> Recorded:
        """Record that the venue took the order."""
        event = OrderAccepted(order_id=order_id, venue_order_id=venue_order_id)
        return await self._fact(event, origin)

    async def triggered(
        self, *, order_id: UUID, price: VenueFigure | None = None, origin: Origin = ORIGIN
    ) -> Recorded:
        """Record that the trigger price was reached, at a market price of `price`."""
        event = OrderTriggered(order_id=order_id, price=_venue("OrderTriggered", "price", price))
        return await self._fact(event, origin)

    async def stopped(
        self, *, order_id: UUID, price: VenueFigure | None = None, origin: Origin = ORIGIN
    ) -> Recorded:
        """Record that the venue guarantees to execute the order, at `price` or better."""
        event = OrderStopped(order_id=order_id, price=_venue("OrderStopped", "price", price))
        return await self._fact(event, origin)

    async def fill(
        self,
        *,
        order_id: UUID,
        fill_id: str,
        quantity: VenueFigure,
        price: VenueFigure | None = None,
        quote_amount: VenueFigure | None = None,
        fee: VenueFigure | None = None,
        fee_currency: str | None = None,
        liquidity: Liquidity | None = None,
        transaction_signature: str | None = None,
        token: str | None = None,
        action: Action | None = None,
        user_id: UUID | None = None,
        position_id: UUID | None = None,
        origin: Origin = ORIGIN,
    ) -> Recorded:
        """Record that the venue executed `quantity` at `price`, or for `quote_amount` in all.

        Nothing is stored for a fill id that is known; with other content it is recorded as
        FillConflicted. A fill that was busted before is stored as the bust has it, and a report
        that differs as FillConflicted as well. The ids of the events follow from order and fill id,
        so a repetition is always safe. Token, action, user and position are those of the order
        where they are not given; for an order that is unknown, token and action are needed
        (InvalidCommand). `position_id` is the explicit one of a book, never that of a cycle.
        """
        command = RecordFill(
            order_id=order_id,
            fill_id=fill_id,
            quantity=_given(quantity),
            price=_given(price),
            quote_amount=_given(quote_amount),
            fee=_given(fee),
            fee_currency=fee_currency,
            liquidity=liquidity,
            transaction_signature=transaction_signature,
            token=token,
            action=action,
            user_id=user_id,
            position_id=position_id,
        )
        return await self._execution(command, origin)

    async def bust(
        self,
        *,
        order_id: UUID,
        fill_id: str,
        quantity: VenueFigure | None = None,
        price: VenueFigure | None = None,
        quote_amount: VenueFigure | None = None,
        fee: VenueFigure | None = None,
        fee_currency: str | None = None,
        token: str | None = None,
        action: Action | None = None,
        user_id: UUID | None = None,
        position_id: UUID | None = None,
        origin: Origin = ORIGIN,
    ) -> Recorded:
        """Record that the venue took a fill back; a second time nothing is stored.

        What is said of a known fill is not looked at. For one that is not known, quantity and price
        or `quote_amount` are needed (InvalidCommand), and token and action if the order is not
        known either.
        """
        command = RecordBust(
            order_id=order_id,
            fill_id=fill_id,
            quantity=_given(quantity),
            price=_given(price),
            quote_amount=_given(quote_amount),
            fee=_given(fee),
            fee_currency=fee_currency,
            token=token,
            action=action,
            user_id=user_id,
            position_id=position_id,
        )
        return await self._execution(command, origin)

    async def replace_pending(self, *, order_id: UUID, origin: Origin = ORIGIN) -> Recorded:
        """Record that the venue is looking at a replace request."""
        return await self._fact(OrderReplacePending(order_id=order_id), origin)

    async def replace_rejected(
        self, *, order_id: UUID, reason: str | None = None, origin: Origin = ORIGIN
    ) -> Recorded:
        """Record that the venue refused to replace the order."""
        return await self._fact(OrderReplaceRejected(order_id=order_id, reason=reason), origin)

    async def replaced(
        self,
        *,
        order_id: UUID,
        quantity: VenueFigure | None = None,
        price: VenueFigure | None = None,
        origin: Origin = ORIGIN,
    ) -> Recorded:
        """Record that the venue changed the order to this total quantity and price."""
        event = OrderReplaced(
            order_id=order_id,
            quantity=_venue("OrderReplaced", "quantity", quantity),
            price=_venue("OrderReplaced", "price", price),
        )
        return await self._fact(event, origin)

    async def restated(
        self,
        *,
        order_id: UUID,
        quantity: VenueFigure | None = None,
        quantity_change: VenueFigure | None = None,
        reason: str | None = None,
        origin: Origin = ORIGIN,
    ) -> Recorded:
        """Record that the venue changed the order unasked, or put it to work for another day."""
        event = OrderRestated(
            order_id=order_id,
            quantity=_venue("OrderRestated", "quantity", quantity),
            quantity_change=_venue("OrderRestated", "quantity_change", quantity_change),
            reason=reason,
        )
        return await self._fact(event, origin)

    async def cancel_pending(self, *, order_id: UUID, origin: Origin = ORIGIN) -> Recorded:
        """Record that the venue is looking at a cancel request."""
        return await self._fact(OrderCancelPending(order_id=order_id), origin)

    async def cancel_rejected(
        self, *, order_id: UUID, reason: str | None = None, origin: Origin = ORIGIN
    ) -> Recorded:
        """Record that the venue refused to cancel the order."""
        return await self._fact(OrderCancelRejected(order_id=order_id, reason=reason), origin)

    async def cancelled(
        self, *, order_id: UUID, reason: str | None = None, origin: Origin = ORIGIN
    ) -> Recorded:
        """Record that the order is cancelled."""
        return await self._fact(OrderCancelled(order_id=order_id, reason=reason), origin)

    async def done_for_day(self, *, order_id: UUID, origin: Origin = ORIGIN) -> Recorded:
        """Record that there will be no more executions today."""
        return await self._fact(OrderDoneForDay(order_id=order_id), origin)

    async def rejected(self, *, order_id: UUID, reason: str, origin: Origin = ORIGIN) -> Recorded:
        """Record that the venue refused the order."""
        return await self._fact(OrderRejected(order_id=order_id, reason=reason), origin)

    async def expired(self, *, order_id: UUID, origin: Origin = ORIGIN) -> Recorded:
        """Record that the order's time in force ended."""
        return await self._fact(OrderExpired(order_id=order_id), origin)

    async def state(self, order_id: UUID) -> OrderState:
        """Return an order as its events have it now; `stage` is 0 if there are none."""
        return (await self._deciding.load(ORDERS, order_stream(order_id))).state

    async def _command(
        self,
        command: AnyOrderCommand,
        origin: Origin,
        guard: Guard | None = None,
        *,
        is_first: bool = False,
    ) -> Recorded:
        stream = order_stream(command.order_id)
        done = await self._deciding.execute(
            ORDERS, stream, command, guard=guard, origin=origin, is_first=is_first
        )
        [event] = cast("Sequence[OrderEvent]", done.events)
        appended = cast("Appended", done.appended)
        return Recorded(command.order_id, event, appended, appended.size)

    async def _fact(self, event: OrderEvent, origin: Origin) -> Recorded:
        """Record a fact whatever the order's state: nothing is decided, so nothing is loaded."""
        return await self._append(origin.of(type(event).__name__, [event]))

    async def _append(self, new: Sequence[NewEvent]) -> Recorded:
        appended = await self._journal.append(new)
        event = cast("OrderEvent", new[-1].event)
        return Recorded(event.order_id, event, appended, appended.size)

    async def _execution(
        self, command: RecordFill | RecordBust, origin: Origin, tries: int = TRIES_MAX
    ) -> Recorded:
        """Record a report once; decide anew where another process reported the id meanwhile."""
        loaded = await self._deciding.load(ORDERS, order_stream(command.order_id))
        events = ORDERS.decide(command, loaded.state)
        if not events:
            return Recorded(command.order_id, None, None, loaded.offset + 1)
        executions = cast("Sequence[Execution]", events)
        try:
            return await self._append([self._identified(each, origin) for each in executions])
        except EventIdConflict:
            if tries == 1:
                raise
        return await self._execution(command, origin, tries - 1)

    def _identified(self, event: Execution, origin: Origin) -> NewEvent:
        """Give an event the id that follows from what it reports."""
        is_conflict = isinstance(event, FillConflicted)
        what = encode_event(event).decode() if is_conflict else event.fill_id
        name = f"{self._journal.name}:{event.order_id}:{type(event).__name__}:{what}"
        return NewEvent(
            event,
            event_id=uuid5(_EXECUTIONS, name),
            occurred_at=origin.occurred_at,
            metadata=origin.metadata,
        )

    async def _may_place(self, command: PlaceOrder, *, loads: bool) -> Sequence[Condition]:
        """Refuse users who may not act, and an explicit position that is open and another's."""
        if command.position_id is not None:
            tag = position_tag(command.user_id, command.token, command.position_id)
            book = (await self._deciding.load_tagged(self._books, tag)).state
            if book.size != 0 and not book.is_of(command.user_id, command.token):
                raise command.refused(tag, "held by another", "a position has one user and token")
        return await self._may_act(command, command.user_id, loads=loads)

    async def _may_replace(self, command: RequestReplace) -> Sequence[Condition]:
        user_id = (await self.state(command.order_id)).user_id
        return () if user_id is None else await self._may_act(command, user_id)

    async def _may_act(
        self, command: PlaceOrder | RequestReplace, user_id: UUID, *, loads: bool = True
    ) -> Sequence[Condition]:
        """Refuse users who are not active; return the condition under which this one stays so.

        Who was active when last looked is looked up only if it `loads`: the condition finds out.
        """
        stream = user_stream(user_id)
        user = self._deciding.known(USER, stream)
        if loads or not user.state.is_active:
            user = await self._deciding.load(USER, stream)
        if not user.state.is_active:
            state = "Deactivated" if user.state.is_known else "Unknown"
            raise command.refused(stream, state, "only an active user may act")
        ends = (UserDeactivated, UserErased)
        return (NoEvent(types=ends, stream=stream, after=user.offset),)


def _new_order_id(origin: Origin) -> UUID:
    return uuid7() if origin.command_id is None else uuid5(origin.command_id, "order")


def _given(value: VenueFigure | None) -> Any:
    """Return an amount for a command, which checks it."""
    return value.exact() if isinstance(value, Raw) else value


def _venue(fact: str, field: str, value: VenueFigure | None) -> VenueAmount | None:
    """Return an amount of a fact; InvalidCommand where it is none."""
    try:
        return None if value is None else VenueAmount(_given(value))
    except ValueError as error:
        raise InvalidCommand(fact, field, str(error)) from error
