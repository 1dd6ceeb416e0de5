"""A FastAPI application beside the ledger: its users call with API keys that the ledger issued.

uvicorn --factory examples.fastapi_app:make_app

It reads its own user's positions from the read model. Each use of a key is an event, stored before
the route runs, and so an entry of the audit log; a request that fails gets one more.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI
from pydantic import BaseModel, ConfigDict, PlainSerializer
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from ledger.http import Principal, get_journal, install, require_api_key
from ledger.journal import Journal
from ledger.settings import Settings
from projections.http import get_session, lifespan
from projections.positions import Position
from projections.rendering import amount_text

Amount = Annotated[Decimal, PlainSerializer(amount_text)]


class OpenPosition(BaseModel):
    """An open position; `pnl` is None as long as nobody has reported a price of the token."""

    model_config = ConfigDict(from_attributes=True)

    position_id: UUID
    token: str
    size: Amount
    entry_price: Amount
    pnl: Amount | None


async def positions(
    who: Annotated[Principal, Depends(require_api_key("own:read"))],
    journal: Annotated[Journal, Depends(get_journal)],
    session: Annotated[AsyncSession, Depends(get_session)],
) -> list[OpenPosition]:
    """List the open positions of whoever the key belongs to."""
    own = select(Position).filter_by(journal_id=journal.journal_id, user_id=who.user_id)
    found = await session.scalars(own.filter_by(status="open").order_by(Position.opened_at))
    return [OpenPosition.model_validate(each) for each in found]


def make_app(settings: Settings | None = None) -> FastAPI:
    """Return the application; the settings are those of the environment by default."""
    app = FastAPI(title="Positions", lifespan=lifespan)
    install(app, settings, audits=True)
    app.get("/positions")(positions)
    return app
