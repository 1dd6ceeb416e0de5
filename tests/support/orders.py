"""Orders for tests: their events, and the reference results that concern their states."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import msgspec

from ledger.domain.order_commands import (
    AnyOrderCommand,
    OrderState,
    PlaceOrder,
    RequestCancel,
    RequestReplace,
    decide,
    evolve,
)
from ledger.domain.order_stages import Stage
from ledger.domain.orders import (
    Action,
    FillBusted,
    OrderAccepted,
    OrderCancelled,
    OrderCancelPending,
    OrderCancelRejected,
    OrderCancelRequested,
    OrderDoneForDay,
    OrderEvent,
    OrderExpired,
    OrderFilled,
    OrderPlaced,
    OrderRejected,
    OrderReplaced,
    OrderReplacePending,
    OrderReplaceRequested,
    OrderRestated,
    OrderTriggered,
    OrderType,
)
from ledger.errors import CommandRefused
from ledger.event import Amount, VenueAmount

ORDER, USER = uuid5(NAMESPACE_OID, "order"), uuid5(NAMESPACE_OID, "user")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
QUANTITY = 10


def place(**values: Any) -> PlaceOrder:
    """Return a valid command to buy 10 SOL with a stop-limit order, or with other values."""
    given: dict[str, Any] = {
        "order_id": ORDER,
        "now": NOW,
        "user_id": USER,
        "token": "SOL",
        "action": Action.BUY,
        "order_type": OrderType.STOP_LOSS,
        "quantity": QUANTITY,
        "price": "25",
        "trigger_price": "24",
    }
    return PlaceOrder(**given | values)


def placed(quantity: object = QUANTITY, **values: Any) -> OrderPlaced:
    """Return the placing of that order."""
    [event] = decide(place(quantity=quantity, **values), OrderState())
    assert isinstance(event, OrderPlaced)
    return event


def fill(quantity: object, fill_id: str = "1", **values: Any) -> OrderFilled:
    """Return a fill of the order, at 25 unless it is given otherwise."""
    given: dict[str, Any] = {"user_id": USER, "token": "SOL", "action": Action.BUY, "price": "25"}
    return OrderFilled(order_id=ORDER, fill_id=fill_id, quantity=quantity, **given | values)  # type: ignore[arg-type] # becomes a venue's amount


def bust(filled: OrderFilled) -> FillBusted:
    """Return the bust of a fill."""
    return FillBusted(**msgspec.structs.asdict(filled))


def after(events: Iterable[OrderEvent], state: OrderState | None = None) -> OrderState:
    """Return the state of an order after events."""
    return reduce(evolve, events, state or OrderState())


def parts(*values: object) -> list[object]:
    """Return values to compare with others, numbers by their worth."""
    return list(values)


class Scenario(msgspec.Struct, frozen=True):
    """A matrix of FIX Appendix D."""

    name: str
    steps: list[list[Any]]

    def events(self) -> Iterator[tuple[OrderEvent, list[Any]]]:
        """Yield each step's event with the step: message, ExecType, OrdStatus, quantities."""
        fills: list[OrderFilled] = []
        for number, step in enumerate(self.steps):
            event = _event_of(step, str(number), fills)
            if isinstance(event, OrderFilled):
                fills.append(event)
            yield event, step


def _event_of(step: list[Any], fill_id: str, fills: list[OrderFilled]) -> OrderEvent:
    message, exec_type, _, quantity, _, _, last = step
    makers: dict[str | None, Callable[[], OrderEvent]] = {
        "NewOrder": lambda: placed(quantity),
        "CancelRequest": lambda: OrderCancelRequested(order_id=ORDER),
        "ReplaceRequest": lambda: OrderReplaceRequested(order_id=ORDER, quantity=Amount(quantity)),
        "CancelReject": lambda: OrderCancelRejected(order_id=ORDER),
        "New": lambda: OrderAccepted(order_id=ORDER),
        "Trade": lambda: fill(last, fill_id),
        "TradeCancel": lambda: bust(fills[-1]),
        "PendingCancel": lambda: OrderCancelPending(order_id=ORDER),
        "PendingReplace": lambda: OrderReplacePending(order_id=ORDER),
        "Canceled": lambda: OrderCancelled(order_id=ORDER),
        "DoneForDay": lambda: OrderDoneForDay(order_id=ORDER),
        "Restated": lambda: OrderRestated(order_id=ORDER, quantity=VenueAmount(quantity)),
        "Replaced": lambda: OrderReplaced(order_id=ORDER, quantity=VenueAmount(quantity)),
    }
    return makers[exec_type or message.partition("(")[0]]()


def scenarios(data_dir: Path) -> list[Scenario]:
    """Return FIX's scenarios."""
    matrices = json.loads((data_dir / "oracle_fix_matrices.json").read_text())
    return [Scenario(each["id"], each["steps"]) for each in matrices["scenarios"]]


ILLEGAL = "ILLEGAL"
_ACCEPTED = (placed(), OrderAccepted(order_id=ORDER))
WAYS: dict[str, tuple[OrderEvent, ...]] = {
    "INITIALIZED": (),
    "SUBMITTED": _ACCEPTED[:1],
    "ACCEPTED": _ACCEPTED,
    "TRIGGERED": (*_ACCEPTED, OrderTriggered(order_id=ORDER)),
    "REJECTED": (*_ACCEPTED, OrderRejected(order_id=ORDER, reason="no")),
    "PENDING_UPDATE": (*_ACCEPTED, OrderReplacePending(order_id=ORDER)),
    "PENDING_CANCEL": (*_ACCEPTED, OrderCancelPending(order_id=ORDER)),
    "PARTIALLY_FILLED": (*_ACCEPTED, fill(4)),
    "FILLED": (*_ACCEPTED, fill(10)),
    "CANCELED": (*_ACCEPTED, OrderCancelled(order_id=ORDER)),
    "EXPIRED": (*_ACCEPTED, OrderExpired(order_id=ORDER)),
}
"""How an order of ours gets into each state of the other engine."""

_NAMES = {
    "PendingNew": "SUBMITTED",
    "New": "ACCEPTED",
    "PendingReplace": "PENDING_UPDATE",
    "PendingCancel": "PENDING_CANCEL",
    "PartiallyFilled": "PARTIALLY_FILLED",
}
_COMMANDS: dict[str, AnyOrderCommand] = {
    "submitted": place(),
    "pending_update": RequestReplace(order_id=ORDER, quantity=Amount(20)),
    "pending_cancel": RequestCancel(order_id=ORDER),
}


def answer(state_name: str, event_name: str) -> str:
    """Return the state that ours gets into, ILLEGAL for what is refused or flagged."""
    before = after(WAYS[state_name])
    command = _COMMANDS.get(event_name)
    if command is not None:
        try:
            decide(command, before)
        except CommandRefused:
            return ILLEGAL
    event = _fact(event_name, before)
    state = after([event], before)
    is_overfilled = state.quantity is not None and state.filled > state.quantity
    misfit = before.step(type(event)).misfit
    return ILLEGAL if misfit or is_overfilled else _their_name(state)


def _fact(name: str, before: OrderState) -> OrderEvent:
    facts: dict[str, OrderEvent] = {
        "submitted": placed(),
        "accepted": OrderAccepted(order_id=ORDER),
        "rejected": OrderRejected(order_id=ORDER, reason="no"),
        "triggered": OrderTriggered(order_id=ORDER),
        "pending_update": OrderReplacePending(order_id=ORDER),
        "pending_cancel": OrderCancelPending(order_id=ORDER),
        "updated": OrderReplaced(order_id=ORDER, quantity=VenueAmount(QUANTITY)),
        "canceled": OrderCancelled(order_id=ORDER),
        "expired": OrderExpired(order_id=ORDER),
        "fill_partial": fill(3, "next"),
        "fill_all": fill(max(1, QUANTITY - before.filled), "next"),
    }
    return facts[name]


def _their_name(state: OrderState) -> str:
    name = _NAMES.get(state.name, state.name.upper())
    return "TRIGGERED" if name == "ACCEPTED" and state.stage & Stage.TRIGGERED else name
