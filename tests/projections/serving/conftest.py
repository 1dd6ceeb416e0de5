"""The whole application, open, and a client that calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from ledger.services import Ledger
from ledger.settings import Settings
from projections.serving.app import make_app
from projections.serving.running import Parts

Opened = tuple[FastAPI, httpx.AsyncClient]
Open = Callable[[Settings, Parts], AbstractAsyncContextManager[Opened]]


@asynccontextmanager
async def opened(settings: Settings, parts: Parts | None = None) -> AsyncIterator[Opened]:
    """Open the application; give it, and a client."""
    app = make_app(settings, parts=parts or Parts())
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield app, client


@pytest.fixture
def open_app() -> Open:
    """What opens an application with settings and parts of its own."""
    return opened


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Opened]:
    """The application on SQLite, with a token for its metrics."""
    token = "a token of the metrics"
    settings = Settings.model_validate({"database_url": sqlite_url, "metrics_token": token})
    async with opened(settings) as both:
        yield both


@pytest.fixture
def app(service: Opened) -> FastAPI:
    """The application."""
    return service[0]


@pytest.fixture
def client(service: Opened) -> httpx.AsyncClient:
    """Who calls it."""
    return service[1]


@pytest.fixture
def ledger(app: FastAPI) -> Ledger:
    """The ledger behind it."""
    opened_ledger: Ledger = app.state.ledger
    return opened_ledger
