"""The routes of commands as a service of their own, and people who may do this and that there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
from fastapi import FastAPI

from ledger.event import Event
from ledger.http import install
from ledger.http.routes import api_keys, executions, marks, orders, positions, users
from ledger.services import Ledger
from tests.ledger.services.support import a_ledger, stored
from tests.ledger.support import settings_for

ROUTERS = [each.router for each in (orders, marks, executions, positions, users, api_keys)]
PASSWORD = "an engine weaves"


class Service:
    """A running service, and the ledger behind it."""

    def __init__(self, app: FastAPI, ledger: Ledger, client: httpx.AsyncClient) -> None:
        self.app = app
        self.ledger = ledger
        self.client = client

    async def user(self, name: str = "", **fields: Any) -> UUID:
        """Register a user, under any name."""
        name = name or f"user-{uuid4()}"
        registered = await self.ledger.users.register(username=name, **fields)
        return registered.user_id

    async def key(self, *permissions: str, user_id: UUID | None = None) -> dict[str, str]:
        """Return the headers of somebody with a key for these permissions."""
        user_id = user_id or await self.user()
        issued = await self.ledger.api_keys.issue(
            user_id=user_id, name="k", permissions=permissions
        )
        assert issued.key is not None
        return {"X-API-Key": issued.key.reveal()}

    async def post(
        self, path: str, headers: dict[str, str], body: dict[str, Any] | None = None, **more: str
    ) -> httpx.Response:
        """Send a command; `more` are headers, with _ for -."""
        named = {name.replace("_", "-"): text for name, text in more.items()}
        sent = {"Content-Type": "application/json"} | headers | named
        return await self.client.post(
            path, content=json.dumps({} if body is None else body), headers=sent
        )

    async def asked(
        self, permissions: str, path: str, body: dict[str, Any] | None = None, **more: str
    ) -> httpx.Response:
        """Send a command by a new user whose key has these permissions, written with spaces."""
        return await self.post(path, await self.key(*permissions.split()), body, **more)

    async def events(self) -> list[Event]:
        """Return all events but uses of keys."""
        return [e for e in await stored(self.ledger.journal) if type(e).__name__ != "ApiKeyUsed"]


@contextlib.asynccontextmanager
async def a_service(url: str) -> AsyncIterator[Service]:
    """Open the routes of commands on a test database."""
    app = FastAPI()
    install(app, settings_for(url))
    for router in ROUTERS:
        app.include_router(router)
    async with a_ledger(url) as ledger:
        app.state.ledger = ledger
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield Service(app, ledger, client)
