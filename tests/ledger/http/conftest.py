"""An application with the routes for sessions, on a fresh SQLite file, and users to log in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI

from ledger.http import Principal, install, require, require_api_key
from ledger.http.auth import require_session
from ledger.http.routes import sessions
from ledger.services import Ledger
from tests.ledger.http.applications import client_of
from tests.ledger.services.support import a_ledger
from tests.ledger.support import Clock, settings_for


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
async def ledger(sqlite_url: str, clock: Clock) -> AsyncIterator[Ledger]:
    """The facade, by that clock."""
    async with a_ledger(sqlite_url, clock, login_failures_max=100) as opened:
        yield opened


@pytest.fixture
def app(ledger: Ledger, sqlite_url: str) -> FastAPI:
    """The routes for sessions, and one for each way to ask who is there."""
    made = FastAPI()
    install(made, settings_for(sqlite_url))
    made.state.ledger = ledger
    made.include_router(sessions.router)

    @made.get("/things/{thing}")
    async def read(who: Annotated[Principal, Depends(require("tables:read"))]) -> str:
        return who.actor

    @made.get("/anybody")
    async def anybody(who: Annotated[Principal, Depends(require())]) -> list[str]:
        return sorted(who.permissions)

    @made.get("/keys-only")
    async def by_key(who: Annotated[Principal, Depends(require_api_key("tables:read"))]) -> str:
        return who.actor

    @made.get("/sessions-only")
    async def by_token(who: Annotated[Principal, Depends(require_session("tables:read"))]) -> str:
        return who.actor

    return made


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of that application."""
    async with client_of(app) as made:
        yield made
