"""Applications under test: called without a server, or served on a port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import httpx
import uvicorn
from fastapi import FastAPI

from ledger.http import install
from ledger.http.middleware import ServiceMiddleware
from tests.ledger.support import settings_for


def bare(**settings: float | str) -> FastAPI:
    """Return an application that has nothing but what every request goes through."""
    app = FastAPI()
    install(app, settings_for("sqlite:///never-opened.db", **settings))  # type: ignore[arg-type]
    return app


def client_of(app: FastAPI, scheme: str = "http", **headers: str) -> httpx.AsyncClient:
    """Return a client that calls an application directly."""
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url=f"{scheme}://service", headers=headers)


def limits_of(app: FastAPI) -> ServiceMiddleware:
    """Return the limits of an application that has been called already."""
    outer = app.middleware_stack
    while not isinstance(outer, ServiceMiddleware):
        outer = outer.app  # type: ignore[union-attr] # each has one
    return outer


@contextlib.asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[int]:
    """Serve an application, with its lifespan, on a free port of this machine; give the port."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    serving = asyncio.create_task(server.serve([listening]))
    try:
        await until(lambda: server.started or serving.done())
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until a condition holds, letting others work meanwhile."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - anything may be what changes it
            await asyncio.sleep(0.001)
