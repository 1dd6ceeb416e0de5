"""Commands for positions, and their liquidation by the venue."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Response

from ledger.http import routing
from ledger.http.answering import changing, dated, stored
from ledger.http.calls import Call, call
from ledger.http.models import LiquidationFact, NewProtection, PositionStored
from ledger.http.permissions import POSITIONS_WRITE, VENUE_WRITE
from ledger.services import positions

router = routing.router("positions")

Protecting = Annotated[Call, Depends(call(POSITIONS_WRITE, decides=False))]
Reporting = Annotated[Call, Depends(call(VENUE_WRITE, decides=False))]


@router.post("/positions/protection", responses=changing(409))
async def set_protection(body: NewProtection, by: Protecting, response: Response) -> PositionStored:
    """Set stop loss and take profit of an open position of one's own, or with `act:any` of any.

    They take the place of those that it has; one that is left out is taken away.
    """
    done = await by.ledger.positions.protect(
        **body.given("user_id"), user_id=by.for_user(body.user_id), origin=by.origin
    )
    return await _stored(by, response, done)


@router.post("/positions/liquidations", responses=changing())
async def record_liquidation(
    body: LiquidationFact, by: Reporting, response: Response
) -> PositionStored:
    """Record that the venue closed a whole position, whether it is open or not."""
    done = await by.ledger.positions.liquidated(
        **body.given("occurred_at"), origin=dated(by.origin, body.occurred_at)
    )
    return await _stored(by, response, done)


async def _stored(by: Call, response: Response, done: positions.PositionStored) -> PositionStored:
    fields = await stored(by, response, done.appended)
    return PositionStored(position_id=done.position_id, **fields)
