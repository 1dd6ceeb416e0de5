"""The states of an order: one machine for the decider and for the read model, after FIX Appendix D.

A stage is what has been reported of an order beside its quantities. `step` says what an event makes
of it, and whether the event fits; `ord_status` and `status` name the state that stage and
quantities add up to. docs/order-states.md has the tables, and where FIX says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import IntFlag
from functools import cache
from typing import NamedTuple

from ledger.domain.orders import (
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

_ZERO = Decimal(0)

PENDING, PARTIALLY_FILLED, EXECUTED = "pending", "partially_filled", "executed"
FAILED, CANCELLED, EXPIRED = "failed", "cancelled", "expired"
STATUSES = (PENDING, PARTIALLY_FILLED, EXECUTED, FAILED, CANCELLED, EXPIRED)
"""The names that the platform has always used."""


class Stage(IntFlag):
    """What has been reported of an order; 0 is an order that nobody has heard of.

    EARLY: the venue reported on it before it was placed. DISOWNED: the venue did not know it when
    asked to cancel or replace it.
    """

    PLACED = 1
    EARLY = 2
    ACKNOWLEDGED = 4
    TRIGGERED = 8
    STOPPED = 16
    DONE_FOR_DAY = 32
    CANCEL_PENDING = 64
    REPLACE_PENDING = 128
    DISOWNED = 256
    CANCELLED = 512
    EXPIRED = 1024
    REJECTED = 2048
    FAILED = 4096


ENDED = int(Stage.CANCELLED | Stage.EXPIRED | Stage.REJECTED | Stage.FAILED)
"""The bits of an order that ended otherwise than by being filled: it stays so whatever comes."""

_PENDING = Stage.CANCEL_PENDING | Stage.REPLACE_PENDING
_PASSING = Stage.STOPPED | Stage.DONE_FOR_DAY | _PENDING
_NONE = Stage(0)

_SETS: Mapping[type[OrderEvent], Stage] = {
    OrderAccepted: Stage.ACKNOWLEDGED,
    OrderTriggered: Stage.TRIGGERED,
    OrderStopped: Stage.STOPPED,
    OrderDoneForDay: Stage.DONE_FOR_DAY,
    OrderCancelPending: Stage.CANCEL_PENDING,
    OrderReplacePending: Stage.REPLACE_PENDING,
}
_CLEARS: Mapping[type[OrderEvent], Stage] = {
    OrderFilled: Stage.STOPPED | Stage.DONE_FOR_DAY,
    OrderRestated: Stage.DONE_FOR_DAY,
    OrderReplaced: Stage.REPLACE_PENDING,
    OrderReplaceRejected: Stage.REPLACE_PENDING,
    OrderCancelRejected: Stage.CANCEL_PENDING,
}
_ENDS: Mapping[type[OrderEvent], Stage] = {
    OrderCancelled: Stage.CANCELLED,
    OrderExpired: Stage.EXPIRED,
    OrderRejected: Stage.REJECTED,
    OrderFailed: Stage.FAILED,
}
_REFUSALS = (OrderCancelRejected, OrderReplaceRejected)
_REQUESTS = (OrderCancelRequested, OrderReplaceRequested)
_FITS_WHEN_ENDED = frozenset((*_REFUSALS, FillConflicted))
_FITS_WHEN_FILLED = _FITS_WHEN_ENDED | {
    OrderAccepted,
    OrderFilled,  # more than was ordered is an overfill, which the quantities tell
    FillBusted,
    OrderReplaceRequested,
    OrderReplacePending,
    OrderReplaced,
    OrderRestated,
}
_ONLY_BEFORE_FILLS = frozenset((OrderTriggered, OrderRejected, OrderFailed))
_ONLY_ONCE_ACCEPTED = frozenset((OrderTriggered, OrderExpired))
_NOT_WHILE_CANCELLING = frozenset((OrderTriggered, OrderReplaceRequested, OrderReplacePending))


class Step(NamedTuple):
    """The stage after an event, and what does not fit about the event (None: it fits).

    `ord_status` and `status` name the state after it, if the event moves no quantities.
    """

    stage: int
    misfit: str | None
    ord_status: str
    status: str


@cache
def step(stage: int, event_type: type[OrderEvent], has_fills: bool, is_filled: bool) -> Step:
    """Return what an event makes of an order of this stage and these quantities before it.

    A misfit of a command's event means that the command is refused. Facts take effect whether they
    fit or not, except that an order that has ended or is filled does not end again; of a filled one
    nothing is pending any more after the report of an end.
    """
    before = Stage(stage)
    misfit = _misfit(before, event_type, has_fills, is_filled)
    after = int(_effect(before, event_type, is_filled))
    if Stage.PLACED not in before and event_type not in (OrderPlaced, *_REQUESTS):
        after |= Stage.EARLY | (Stage.DISOWNED if event_type in _REFUSALS else _NONE)
    return Step(int(after), misfit, *names(after, has_fills, is_filled))


def _effect(before: Stage, event_type: type[OrderEvent], is_filled: bool) -> Stage:
    if event_type is OrderPlaced:
        return before | Stage.PLACED
    if before & ENDED:
        return before
    if event_type in _ENDS:
        return before & ~_PENDING if is_filled else before & ~_PASSING | _ENDS[event_type]
    return before & ~_CLEARS.get(event_type, _NONE) | _SETS.get(event_type, _NONE)


def _misfit(
    before: Stage, event_type: type[OrderEvent], has_fills: bool, is_filled: bool
) -> str | None:
    """Return why an event does not fit."""
    name = event_type.__name__
    is_placed = Stage.PLACED in before
    if event_type is OrderPlaced:
        late = "placed_late" if Stage.EARLY in before else None
        return "placed_again" if is_placed else late
    if not is_placed:
        return f"unknown_order:{name}"
    return _misplaced(before, event_type, has_fills, is_filled)


def _misplaced(
    before: Stage, event_type: type[OrderEvent], has_fills: bool, is_filled: bool
) -> str | None:
    """Return why an event does not fit an order that was placed."""
    name = event_type.__name__
    if before & ENDED:
        fits, state = event_type in _FITS_WHEN_ENDED, status(before, has_fills, is_filled)
        return None if fits else f"after_{state}:{name}"
    if is_filled and event_type not in _FITS_WHEN_FILLED:
        return f"after_{EXECUTED}:{name}"
    if has_fills and event_type in _ONLY_BEFORE_FILLS:
        return f"after_{PARTIALLY_FILLED}:{name}"
    return _out_of_turn(before, event_type, has_fills)


def _out_of_turn(before: Stage, event_type: type[OrderEvent], has_fills: bool) -> str | None:
    """Return why an event does not fit an order that works, or is filled."""
    name = event_type.__name__
    if event_type is OrderAccepted and Stage.ACKNOWLEDGED in before:
        return "accepted_again"
    if event_type is OrderTriggered and Stage.TRIGGERED in before:
        return "triggered_again"
    if event_type in _NOT_WHILE_CANCELLING and Stage.CANCEL_PENDING in before:
        return f"cancel_pending:{name}"
    is_taken = has_fills or Stage.ACKNOWLEDGED in before
    return f"not_accepted:{name}" if event_type in _ONLY_ONCE_ACCEPTED and not is_taken else None


_WHEN_ENDED = (
    (Stage.CANCELLED, "Canceled", CANCELLED),
    (Stage.EXPIRED, "Expired", EXPIRED),
    (Stage.REJECTED, "Rejected", FAILED),
    (Stage.FAILED, "Rejected", FAILED),
)


@cache
def ord_status(stage: int, has_fills: bool, is_filled: bool) -> str:
    """Return FIX's OrdStatus: of all that apply, the one with the highest precedence.

    An end is final, though FIX ranks it below Filled: a late fill leaves the status (J.1.b).
    """
    for ended, name, _ in _WHEN_ENDED:
        if stage & ended:
            return name
    if _is_disowned(stage, has_fills):
        return "Rejected"
    by_precedence = (
        (stage & Stage.CANCEL_PENDING, "PendingCancel"),
        (stage & Stage.REPLACE_PENDING, "PendingReplace"),
        (stage & Stage.DONE_FOR_DAY, "DoneForDay"),
        (is_filled, "Filled"),
        (stage & Stage.STOPPED, "Stopped"),
        (has_fills, "PartiallyFilled"),
        (stage & (Stage.ACKNOWLEDGED | Stage.TRIGGERED), "New"),
    )
    return next((name for applies, name in by_precedence if applies), "PendingNew")


@cache
def status(stage: int, has_fills: bool, is_filled: bool) -> str:
    """Return the platform's own name of the state, one of STATUSES."""
    for ended, _, name in _WHEN_ENDED:
        if stage & ended:
            return name
    if has_fills:
        return EXECUTED if is_filled else PARTIALLY_FILLED
    return FAILED if _is_disowned(stage, has_fills) else PENDING


@cache
def names(stage: int, has_fills: bool, is_filled: bool) -> tuple[str, str]:
    """Return both names of a state, for folds that need them for every event."""
    return ord_status(stage, has_fills, is_filled), status(stage, has_fills, is_filled)


def _is_disowned(stage: int, has_fills: bool) -> bool:
    """Whether neither a user nor the venue knows anything of an order."""
    is_known = has_fills or stage & (Stage.PLACED | Stage.ACKNOWLEDGED | Stage.TRIGGERED)
    return bool(stage & Stage.DISOWNED) and not is_known


def reaches(
    filled: Decimal, notional: Decimal, quantity: Decimal | None, amount: Decimal | None
) -> bool:
    """Whether an order over `quantity`, or else over `amount`, has been filled.

    `filled` and `quantity` are in the token, `notional` and `amount` in the quote currency.
    """
    if filled <= _ZERO:
        return False
    if quantity is not None:
        return filled >= quantity
    return amount is not None and notional >= amount


def leaves(
    stage: int, is_filled: bool, filled: Decimal, quantity: Decimal | None
) -> Decimal | None:
    """Return FIX's LeavesQty: what may still be filled, None where the quantity is not known.

    It is 0 once the order has ended, and stays while it is done for the day (H).
    """
    if stage & ENDED or is_filled:
        return _ZERO
    return None if quantity is None else max(_ZERO, quantity - filled)


def amended(quantity: Decimal | None, event: OrderReplaced | OrderRestated) -> Decimal | None:
    """Return an order's quantity after the venue has changed it."""
    if event.quantity is not None:
        return +event.quantity
    change = event.quantity_change if isinstance(event, OrderRestated) else None
    return quantity if change is None or quantity is None else quantity + change
