"""The application: all routes, what they need open, and what runs beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hmac import compare_digest
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import SecretStr
from starlette.exceptions import HTTPException

from ledger.http import Principal, install, require, write_routers
from ledger.http.errors import Unauthenticated
from ledger.http.problems import responses
from ledger.journal import Journal
from ledger.settings import Settings
from projections import console
from projections.http import lifespan, read_routers
from projections.operations import Operations
from projections.serving import routes
from projections.serving.health import LIVE_PATH, READY_PATH, Readiness
from projections.serving.health import make_router as health_router
from projections.serving.logs import RequestLog, to_logging
from projections.serving.metrics import Metrics
from projections.serving.observing import Looking, Observing
from projections.serving.running import EVERYTHING, Failed, Parts, Services, with_log_key
from projections.serving.tracing import UNTRACED, Tracing

TITLE = "Trading ledger"
DESCRIPTION = (
    "Commands, events and read models of an event-sourced trading ledger. Send an API key in "
    "`X-API-Key`, or an access token of `POST /sessions` as `Authorization: Bearer`."
)
METRICS_PATH = "/metrics"
OPENAPI_PATH = "/openapi.json"


def make_app(
    settings: Settings | None = None,
    *,
    everything: bool = False,
    parts: Parts | None = None,
    log: RequestLog = to_logging,
    failed: Failed = lambda _: None,
) -> FastAPI:
    """Return the application; it opens the ledger and the tables when it is started.

    It runs `parts` beside the requests, with `everything` all of them, without either only the
    console. `log` is given a line for each request, `failed` the error with which a part has ended
    for good: the process should then end too. The settings are those of the environment by default.
    """
    settings = settings or Settings()
    parts = parts or (EVERYTHING if everything else Parts())
    app = FastAPI(
        title=TITLE,
        description=DESCRIPTION,
        version=version("trading-ledger"),
        lifespan=_opening(parts, failed),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry=UNTRACED,
    )
    app.state.metrics, app.state.tracing = Metrics(), Tracing()
    install(app, settings, unlimited=(LIVE_PATH, READY_PATH, METRICS_PATH))
    observed = {"metrics": app.state.metrics, "tracing": app.state.tracing, "log": log}
    app.add_middleware(Observing, **observed)
    _include(app, parts)
    return app


def _include(app: FastAPI, parts: Parts) -> None:
    for router in (*write_routers(), *read_routers(), routes.router, health_router()):
        app.router.routes.extend(router.routes)  # an included router is searched twice a request
    app.get(METRICS_PATH, tags=["health"], **_METRICS)(metrics)
    app.get(OPENAPI_PATH, include_in_schema=False)(openapi)
    if parts.console:
        console.mount(app)


def _opening(parts: Parts, failed: Failed) -> Callable[[FastAPI], Any]:
    """Return the lifespan: what is open and at work while the application runs."""

    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app), _operated(app):
            settings, state = app.state.settings, app.state
            journal: Journal = state.ledger.journal
            if parts.seal:
                settings = await with_log_key(settings, journal)
            services = Services(settings, parts, failed, journal.observer)
            state.stopping = asyncio.Event()
            state.readiness = Readiness(state.database, is_projecting=parts.project)
            async with services.running():
                yield

    return opened


@asynccontextmanager
async def _operated(app: FastAPI) -> AsyncIterator[None]:
    """Let operators look at what is open, and measurements be taken of it."""
    state = app.state
    journal, database = state.ledger.journal, state.database
    state.operations = operations = Operations(state.settings, journal, database)
    journal.observer = Looking(state.metrics.watch(journal, database, operations), state.tracing)
    try:
        yield
    finally:
        await operations.close()


async def openapi(request: Request, _who: Annotated[Principal, Depends(require())]) -> JSONResponse:
    """Describe all routes, as OpenAPI."""
    return JSONResponse(request.app.openapi())


_METRICS: dict[str, Any] = {
    "response_class": PlainTextResponse,
    "responses": responses(401, 404),
}


async def metrics(request: Request) -> Response:
    """Return the measurements for Prometheus, to whoever has the token that is set for it."""
    token = request.app.state.settings.metrics_token
    if token is None:
        raise HTTPException(404, "set LEDGER_METRICS_TOKEN, or serve them on a port of their own")
    if not bears(request, token):
        raise Unauthenticated("this takes the token of LEDGER_METRICS_TOKEN")
    return await measured(request.app.state.metrics, request.headers.get("accept", ""))


def bears(request: Request, token: SecretStr) -> bool:
    """Whether a request has a token in its Authorization."""
    given = request.headers.get("authorization", "").encode("latin-1")
    return compare_digest(given, f"Bearer {token.get_secret_value()}".encode())


async def measured(metrics: Metrics, accept: str) -> Response:
    """Return all measurements in a form that is accepted."""
    text, content_type = await metrics.text(accept)
    return Response(text, media_type=content_type)
