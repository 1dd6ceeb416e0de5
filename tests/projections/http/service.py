"""The service of reads under test, and what its callers do."""

from __future__ import annotations

from random import Random
from typing import Any
from uuid import UUID, uuid4

import httpx
from fastapi import FastAPI

from ledger.domain.marks import PriceMarked
from ledger.domain.orders import Action, OrderFilled, OrderType
from ledger.event import NewEvent, VenueAmount
from ledger.journal import Journal
from ledger.services import Ledger
from projections.database import Database
from projections.groups import GROUPS
from projections.projector import Projector
from tests.projections.random_events import random_events
from tests.projections.support import append

Headers = dict[str, str]


class Service:
    """A running service."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        self.app = app
        self.client = client

    @property
    def ledger(self) -> Ledger:
        """The commands."""
        ledger: Ledger = self.app.state.ledger
        return ledger

    @property
    def journal(self) -> Journal:
        """The journal that is read."""
        return self.ledger.journal

    @property
    def database(self) -> Database:
        """The read side's database."""
        database: Database = self.app.state.database
        return database

    async def user(self) -> UUID:
        """Register a user."""
        name = f"user-{uuid4()}"
        return (await self.ledger.users.register(username=name, email=f"{name}@x.org")).user_id

    async def key(self, *permissions: str, user_id: UUID | None = None) -> Headers:
        """Return the headers of somebody with a key for these permissions."""
        issued = await self.ledger.api_keys.issue(
            user_id=user_id or await self.user(), name="k", permissions=permissions
        )
        assert issued.key is not None
        return {"X-API-Key": issued.key.reveal()}

    async def project(self) -> None:
        """Let all tables catch up."""
        for group in GROUPS.values():
            await Projector(self.database, self.journal, group).catch_up()

    async def trade(self, count: int = 120, seed: int = 7) -> int:
        """Append random events, project them; return the size."""
        await append(self.journal, random_events(Random(seed), count, odd_chance=0))
        await self.project()
        return await self.journal.size()

    async def open_position(self, user_id: UUID, token: str = "BTC") -> None:  # noqa: S107
        """Let a user hold 2 of a token, bought at 100, now at 130."""
        placed = await self.ledger.orders.place(
            user_id=user_id,
            token=token,
            action=Action.BUY,
            order_type=OrderType.MARKET,
            quantity="2",
        )
        fill = OrderFilled(
            order_id=placed.order_id,
            user_id=user_id,
            token=token,
            action=Action.BUY,
            quantity=VenueAmount(2),
            price=VenueAmount(100),
            fill_id=str(uuid4()),
        )
        mark = PriceMarked(token=token, price=VenueAmount(130))
        await self.journal.append([NewEvent(fill), NewEvent(mark)])

    async def get(self, path: str, headers: Headers, **asked: Any) -> dict[str, Any]:
        """Return what a path answers with, which must be good."""
        answer = await self.client.get(path, params=asked, headers=headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def status(self, path: str, headers: Headers | None = None) -> int:
        """Return the status of an answer, which is a problem if it is not good."""
        answer = await self.client.get(path, headers=headers)
        if answer.status_code != 200:
            assert answer.headers["content-type"] == "application/problem+json"
        return answer.status_code
