"""Facts about markets."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Response

from ledger.http import routing
from ledger.http.answering import making, stored
from ledger.http.calls import Call, call
from ledger.http.models import MarkStored, NewMark
from ledger.http.permissions import MARKS_WRITE

router = routing.router("marks")

Marking = Annotated[Call, Depends(call(MARKS_WRITE, decides=False))]


@router.post("/marks", status_code=201, responses=making(MarkStored))
async def record_mark(body: NewMark, by: Marking, response: Response) -> MarkStored:
    """Record a token's mark price; marks count in the order in which they are stored."""
    marked = await by.ledger.markets.mark(
        token=body.token,
        price=body.price,
        source=body.source,
        occurred_at=body.occurred_at,
        origin=by.origin,
    )
    return MarkStored(**await stored(by, response, marked.appended))
