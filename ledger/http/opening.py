"""The ledger of an application: opened at its start, closed at its end, at hand in its routes.

app = FastAPI(lifespan=lifespan)
install(app)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware

from ledger.http import problems
from ledger.http.auditing import AuditMiddleware
from ledger.http.auth import API_KEY, BEARER, ledger_of
from ledger.http.middleware import ServiceMiddleware
from ledger.journal import Journal
from ledger.services import Ledger, open_ledger
from ledger.settings import Settings

METHODS = ("GET", "POST", "DELETE")
ASKED = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "X-API-Key",
    "X-Request-ID",
    "traceparent",
)
"""Headers that pages of other origins may send."""

TOLD = ("ETag", "Ledger-Size", "Preference-Applied", "Retry-After", "X-Request-ID")
"""Headers that they may read."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep a ledger open while an application runs, as `app.state.ledger`.

    `app.state.settings` are those that were set before, else those of the environment.
    """
    settings = settings_of(app)
    async with open_ledger(settings) as ledger:
        app.state.ledger = ledger
        yield


def settings_of(app: FastAPI) -> Settings:
    """Return the settings of an application; the first call takes those of the environment."""
    settings = getattr(app.state, "settings", None)
    if not isinstance(settings, Settings):
        settings = app.state.settings = Settings()
    return settings


def get_ledger(request: Request) -> Ledger:
    """Return the ledger; a dependency for routes that give commands."""
    return ledger_of(request)


def get_journal(request: Request) -> Journal:
    """Return the journal; a dependency for routes that append and read events."""
    return ledger_of(request).journal


def install(
    app: FastAPI,
    settings: Settings | None = None,
    *,
    audits: bool | None = None,
    unlimited: Collection[str] = (),
) -> None:
    """Give an application problems as errors, limits, safe headers, and audit entries if wanted.

    `audits` is `http_audits_reads` of the settings by default; requests to the paths `unlimited`
    are let in however many there are.
    """
    if settings is not None:
        app.state.settings = settings
    settings = settings_of(app)
    problems.install(app)
    app.openapi = _described(app.openapi)  # type: ignore[method-assign]
    # Each is put around those before it.
    app.add_middleware(ServiceMiddleware, settings=settings, unlimited=unlimited)
    if settings.http_audits_reads if audits is None else audits:
        app.add_middleware(AuditMiddleware)
    if origins := settings.http_cors_origins.split():
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=ASKED,
            expose_headers=TOLD,
        )


def _described(own: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Add to an application's OpenAPI what its routes refer to by name."""
    schemes = {
        scheme.scheme_name: scheme.model.model_dump(mode="json", by_alias=True, exclude_none=True)
        for scheme in (API_KEY, BEARER)
    }

    def openapi() -> dict[str, Any]:
        described = own()
        components = described.setdefault("components", {})
        components.setdefault("schemas", {}).update(problems.schemas())
        components.setdefault("securitySchemes", {}).update(schemes)
        return described

    return openapi
