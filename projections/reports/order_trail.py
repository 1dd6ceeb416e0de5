"""The audit trail of orders: one line for each event of an order, with the state it led to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from decimal import localcontext
from typing import Any
from uuid import UUID

import msgspec

from ledger.domain import order_stages as stages
from ledger.domain.order_commands import ORDERS, OrderState
from ledger.domain.orders import (
    Execution,
    FillBusted,
    FillConflicted,
    OrderAccepted,
    OrderCancelled,
    OrderCancelPending,
    OrderCancelRejected,
    OrderCancelRequested,
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
    OrderReplaceRequested,
    OrderRestated,
    OrderStopped,
    OrderTriggered,
)
from ledger.event import CONTEXT, RecordedEvent
from ledger.journal import Journal
from projections.rendering import plain
from projections.reports.span import Span, read_span
from projections.reports.writing import Kind

ORDERS_KEPT_MAX = 20_000

Row = dict[str, Any]

ACTIVITIES: Mapping[type[OrderEvent], str] = {
    OrderPlaced: "received",
    OrderAccepted: "routed",
    OrderTriggered: "triggered",
    OrderStopped: "guaranteed",
    OrderFilled: "executed",
    FillBusted: "execution_busted",
    FillConflicted: "execution_conflicted",
    OrderReplaceRequested: "modification_requested",
    OrderReplacePending: "modification_pending",
    OrderReplaceRejected: "modification_rejected",
    OrderReplaced: "modified",
    OrderRestated: "restated",
    OrderCancelRequested: "cancel_requested",
    OrderCancelPending: "cancel_pending",
    OrderCancelRejected: "cancel_rejected",
    OrderCancelled: "cancelled",
    OrderDoneForDay: "done_for_day",
    OrderRejected: "rejected",
    OrderFailed: "failed",
    OrderExpired: "expired",
}
"""What the trail calls the events of orders."""

COLUMNS: Mapping[str, str] = {
    "journal": "the journal's name",
    "offset": "the event's place in the journal: 0, 1, 2, …",
    "version": "the event's place among those of its order: 1, 2, 3, …",
    "event_id": "the event's id",
    "event_type": "the event's type",
    "activity": "what happened to the order, in a word",
    "occurred_at": "when it happened",
    "recorded_at": "when the journal took it",
    "order_id": "the order's id, the same through all its life",
    "venue_order_id": "the venue's id of the order, from when it is known",
    "user_id": "whose order it is",
    "actor": "who or what brought the event about",
    "token": "what is traded",
    "side": "`buy` or `sell`",
    "order_type": "`market`, `limit`, `stop_loss` or `take_profit`",
    "time_in_force": "how long the order works, in the line of its receipt",
    "expires_at": "when it ends at the latest, in the line of its receipt",
    "reduce_only": "whether it may only reduce a position, in the line of its receipt",
    "order_quantity": "the quantity ordered after the event, in the token",
    "order_amount": "the amount ordered, in the quote currency, where no quantity was",
    "order_price": "the limit price after the event",
    "trigger_price": "the price at which it begins to work, in the line of its receipt",
    "event_quantity": "the quantity that the event itself names: executed, or asked for",
    "quantity_change": "by how much the venue changed the quantity, where only that is known",
    "event_price": "the price that the event itself names",
    "quote_amount": "what was paid or received before fees, where that was reported",
    "fee": "the fee of the execution; a rebate is negative",
    "fee_currency": "the fee's currency, where it is another than the quote currency",
    "liquidity": "`maker` or `taker`",
    "fill_id": "the venue's id of the execution",
    "transaction_signature": "the transaction of the execution",
    "filled_quantity": "what is filled after the event",
    "leaves_quantity": "what may still be filled after the event",
    "ord_status": "the order's state after the event, in FIX's words",
    "status": "the same in the platform's words",
    "misfit": "why the event did not fit the order's state, where it did not",
    "position_id": "the explicit position that the order is for, when hedging",
    "closes_position_id": "the cycle of a position that a protective order is to close",
    "strategy": "the strategy that placed it, in the line of its receipt",
    "reason": "the reason given",
    "request_id": "the caller's id of the request",
    "correlation_id": "what ties the events of one business transaction together",
    "causation_id": "the id of the event that led to this one",
    "ip_address": "from where it came",
    "journal_size": "the size of the journal that the report is as of",
    "journal_root": "the journal's Merkle root at that size, in base64, where it is sealed",
}
"""The columns and what they say, in their order."""

KINDS: Mapping[str, Kind] = dict.fromkeys(COLUMNS, Kind.TEXT) | {
    "offset": Kind.INTEGER,
    "version": Kind.INTEGER,
    "journal_size": Kind.INTEGER,
    "occurred_at": Kind.TIME,
    "recorded_at": Kind.TIME,
    "expires_at": Kind.TIME,
    "reduce_only": Kind.BOOLEAN,
}
"""What the columns hold."""

_OWN = ("time_in_force", "expires_at", "trigger_price", "strategy", "reduce_only")
_EXECUTION = (
    "quote_amount",
    "fee",
    "fee_currency",
    "liquidity",
    "fill_id",
    "transaction_signature",
)
_ORIGIN = ("actor", "request_id", "correlation_id", "causation_id", "ip_address")


class Tracked(msgspec.Struct, frozen=True):
    """An order's state, and the ids that only one of its events names."""

    state: OrderState = OrderState()
    venue_order_id: str | None = None
    closes_position_id: UUID | None = None

    def after(self, recorded: RecordedEvent) -> Tracked:
        """Return the order after an event of it."""
        event, venue, closes = recorded.event, self.venue_order_id, self.closes_position_id
        if isinstance(event, OrderAccepted):
            venue = event.venue_order_id or venue
        elif isinstance(event, OrderPlaced):
            closes = closes or event.closes_position_id
        return Tracked(ORDERS.take(self.state, recorded), venue, closes)


class Orders:
    """The orders whose events came last, up to a number; what is not kept is read again."""

    def __init__(self, journal: Journal) -> None:
        """Take the journal that the orders are in."""
        self._journal = journal
        self._kept: OrderedDict[str, Tracked] = OrderedDict()

    async def step(self, recorded: RecordedEvent) -> tuple[Tracked, Tracked]:
        """Return the order of an event before it and after it."""
        before = self._kept.get(recorded.stream)
        if before is None:
            before = Tracked() if recorded.version == 1 else await self._load(recorded)
        after = self._kept[recorded.stream] = before.after(recorded)
        self._kept.move_to_end(recorded.stream)
        if len(self._kept) > ORDERS_KEPT_MAX:
            self._kept.popitem(last=False)
        return before, after

    async def _load(self, until: RecordedEvent) -> Tracked:
        tracked = Tracked()
        async for recorded in self._journal.read(0, until.offset, stream=until.stream):
            tracked = tracked.after(recorded)
        return tracked


async def order_trail(journal: Journal, span: Span) -> AsyncIterator[tuple[list[Row], int]]:
    """Yield the trail's lines in lists, in the order of the journal, each with the offsets read."""
    orders = Orders(journal)
    async for chunk, count in read_span(journal, span, ACTIVITIES):
        yield [line(span, each, *await orders.step(each)) for each in chunk], count


def line(span: Span, recorded: RecordedEvent, before: Tracked, after: Tracked) -> Row:
    """Return the line of an event: every column, None where there is nothing to say."""
    event = recorded.event
    found: Row = {
        "journal": span.journal,
        "journal_size": span.size,
        "journal_root": span.root,
        "offset": recorded.offset,
        "version": recorded.version,
        "event_id": recorded.event_id,
        "event_type": recorded.type,
        "occurred_at": recorded.occurred_at,
        "recorded_at": recorded.recorded_at,
        "venue_order_id": after.venue_order_id,
        "closes_position_id": after.closes_position_id,
        "reason": getattr(event, "reason", None),
    }
    found |= {name: getattr(recorded.metadata, name) for name in _ORIGIN}
    found |= {name: getattr(event, name, None) for name in (*_OWN, *_EXECUTION)}
    if isinstance(event, OrderEvent):
        found |= _of_event(event, before.state) | _of_order(event, after.state)
    return {name: plain(found.get(name)) for name in COLUMNS}


def _of_event(event: OrderEvent, before: OrderState) -> Row:
    is_placing = isinstance(event, OrderPlaced)
    return {
        "activity": ACTIVITIES[type(event)],
        "order_id": event.order_id,
        "event_quantity": None if is_placing else getattr(event, "quantity", None),
        "quantity_change": getattr(event, "quantity_change", None),
        "event_price": None if is_placing else getattr(event, "price", None),
        "misfit": before.step(type(event)).misfit,
    }


def _of_order(event: OrderEvent, after: OrderState) -> Row:
    """Return the order's terms and state; a fill of an unknown order brings terms of its own."""
    with localcontext(CONTEXT):
        leaves = stages.leaves(after.stage, after.is_filled, after.filled, after.quantity)
    own = event if isinstance(event, Execution) else None
    ord_status, status = stages.names(after.stage, after.has_fills, after.is_filled)
    return {
        "user_id": after.user_id or getattr(own, "user_id", None),
        "token": after.token or getattr(own, "token", None),
        "side": after.action or getattr(own, "action", None),
        "position_id": after.position_id or getattr(own, "position_id", None),
        "order_type": after.order_type,
        "order_quantity": after.quantity,
        "order_amount": after.amount,
        "order_price": after.price,
        "filled_quantity": after.filled,
        "leaves_quantity": leaves,
        "ord_status": ord_status,
        "status": status,
    }
