"""The read side as a service of its own, with people, keys, orders and positions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from ledger.http import install
from ledger.settings import Settings
from projections.http import lifespan, read_routers
from tests.projections.http.service import Service


@contextlib.asynccontextmanager
async def a_service(url: str) -> AsyncIterator[Service]:
    """Open the service on a database."""
    app = FastAPI(lifespan=lifespan)
    install(app, Settings(database_url=url))
    for router in read_routers():
        app.include_router(router)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield Service(app, client)


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """The open service on a fresh SQLite file."""
    async with a_service(sqlite_url) as opened:
        yield opened


@pytest.fixture
async def each_service(database_url: str) -> AsyncIterator[Service]:
    """The open service on fresh databases of both kinds, one after the other."""
    async with a_service(database_url) as opened:
        yield opened
