"""What venues report of orders: facts, which are recorded whatever the state of the order."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Response

from ledger.http import routing
from ledger.http.answering import changing, dated, stored, unchanged
from ledger.http.calls import Call, call
from ledger.http.models import (
    AcceptedFact,
    BustFact,
    Fact,
    FillFact,
    OrderStored,
    PriceFact,
    ReasonFact,
    RejectedFact,
    RestatedFact,
    TermsFact,
)
from ledger.http.permissions import VENUE_WRITE
from ledger.services.orders import Recorded

router = routing.router("venue")

_FACT = changing()

Reporting = Annotated[Call, Depends(call(VENUE_WRITE, decides=False))]
Executing = Annotated[Call, Depends(call(VENUE_WRITE, decides=False, is_keyed=False))]


@router.post("/orders/{order_id}/fills", responses=changing(409))
async def record_fill(
    order_id: UUID, body: FillFact, by: Executing, response: Response
) -> OrderStored:
    """Record that the venue executed a quantity; each `fill_id` is booked once.

    It stands for the report, so that an Idempotency-Key is not looked at. One that comes again with
    other content is recorded as a conflict, and not booked. For an order that is not known, token
    and action are needed.
    """
    recorded = await by.ledger.orders.fill(order_id=order_id, **_said(by, body))
    return await _executed(by, response, recorded)


@router.post("/orders/{order_id}/busts", responses=changing(409))
async def record_bust(
    order_id: UUID, body: BustFact, by: Executing, response: Response
) -> OrderStored:
    """Record that the venue took a fill back; a second time nothing is stored.

    The `fill_id` stands for the report, so that an Idempotency-Key is not looked at. Of a fill that
    is not known, quantity and price or `quote_amount` are needed.
    """
    recorded = await by.ledger.orders.bust(order_id=order_id, **_said(by, body))
    return await _executed(by, response, recorded)


@router.post("/orders/{order_id}/accepted", responses=_FACT)
async def record_accepted(
    order_id: UUID, body: AcceptedFact, by: Reporting, response: Response
) -> OrderStored:
    """Record that the venue took an order."""
    recorded = await by.ledger.orders.accepted(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


@router.post("/orders/{order_id}/triggered", responses=_FACT)
async def record_triggered(
    order_id: UUID, body: PriceFact, by: Reporting, response: Response
) -> OrderStored:
    """Record that the trigger price of an order was reached, at a market price of `price`."""
    recorded = await by.ledger.orders.triggered(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


@router.post("/orders/{order_id}/stopped", responses=_FACT)
async def record_stopped(
    order_id: UUID, body: PriceFact, by: Reporting, response: Response
) -> OrderStored:
    """Record that the venue guarantees to execute an order, at `price` or better."""
    recorded = await by.ledger.orders.stopped(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


@router.post("/orders/{order_id}/replace-pending", responses=_FACT)
async def record_replace_pending(
    order_id: UUID, body: Fact, by: Reporting, response: Response
) -> OrderStored:
    """Record that the venue is looking at a request to replace an order."""
    recorded = await by.ledger.orders.replace_pending(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


@router.post("/orders/{order_id}/replace-rejected", responses=_FACT)
async def record_replace_rejected(
    order_id: UUID, body: ReasonFact, by: Reporting, response: Response
) -> OrderStored:
    """Record that the venue refused to replace an order."""
    recorded = await by.ledger.orders.replace_rejected(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


@router.post("/orders/{order_id}/replaced", responses=_FACT)
async def record_replaced(
    order_id: UUID, body: TermsFact, by: Reporting, response: Response
) -> OrderStored:
    """Record that the venue changed an order to this total quantity and price."""
    recorded = await by.ledger.orders.replaced(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


@router.post("/orders/{order_id}/restated", responses=_FACT)
async def record_restated(
    order_id: UUID, body: RestatedFact, by: Reporting, response: Response
) -> OrderStored:
    """Record that the venue changed an order unasked, or put it to work for another day."""
    recorded = await by.ledger.orders.restated(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


@router.post("/orders/{order_id}/cancel-pending", responses=_FACT)
async def record_cancel_pending(
    order_id: UUID, body: Fact, by: Reporting, response: Response
) -> OrderStored:
    """Record that the venue is looking at a request to cancel an order."""
    recorded = await by.ledger.orders.cancel_pending(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


@router.post("/orders/{order_id}/cancel-rejected", responses=_FACT)
async def record_cancel_rejected(
    order_id: UUID, body: ReasonFact, by: Reporting, response: Response
) -> OrderStored:
    """Record that the venue refused to cancel an order."""
    recorded = await by.ledger.orders.cancel_rejected(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


@router.post("/orders/{order_id}/cancelled", responses=_FACT)
async def record_cancelled(
    order_id: UUID, body: ReasonFact, by: Reporting, response: Response
) -> OrderStored:
    """Record that an order is cancelled; what was filled stays filled."""
    recorded = await by.ledger.orders.cancelled(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


@router.post("/orders/{order_id}/done-for-day", responses=_FACT)
async def record_done_for_day(
    order_id: UUID, body: Fact, by: Reporting, response: Response
) -> OrderStored:
    """Record that there will be no more executions of an order today."""
    recorded = await by.ledger.orders.done_for_day(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


@router.post("/orders/{order_id}/rejected", responses=_FACT)
async def record_rejected(
    order_id: UUID, body: RejectedFact, by: Reporting, response: Response
) -> OrderStored:
    """Record that the venue refused an order."""
    recorded = await by.ledger.orders.rejected(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


@router.post("/orders/{order_id}/expired", responses=_FACT)
async def record_expired(
    order_id: UUID, body: Fact, by: Reporting, response: Response
) -> OrderStored:
    """Record that the time in force of an order ended."""
    recorded = await by.ledger.orders.expired(order_id=order_id, **_said(by, body))
    return await _recorded(by, response, recorded)


def _said(by: Call, body: Fact) -> dict[str, Any]:
    """Return what a report says, and where it comes from."""
    said = body.given("occurred_at")
    return {**said, "origin": dated(by.origin, body.occurred_at)}


async def _recorded(by: Call, response: Response, done: Recorded) -> OrderStored:
    return _answer(done, await stored(by, response, done.appended))


async def _executed(by: Call, response: Response, done: Recorded) -> OrderStored:
    """Answer for what is stored once by its fill id, whichever request says it."""
    if done.is_new:
        return await _recorded(by, response, done)
    offsets = () if done.appended is None else done.appended.offsets
    return _answer(done, await unchanged(by, response, done.size, offsets))


def _answer(done: Recorded, fields: dict[str, Any]) -> OrderStored:
    event = None if done.event is None else type(done.event).__name__
    return OrderStored(order_id=done.order_id, event=event, conflict=done.is_conflict, **fields)
