"""The auditors' console: pages over the tables, the events and their proofs, at any moment.

    mount(app)

Pages are made on the server and work without scripts; small modules make the time bar move, verify
proofs in the browser, and keep progress up to date. They need what the service has opened at its
start: `app.state.ledger`, `settings`, `database`, `reading` and `operations`.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from ledger.http.looks import Looks
from projections.console.desk import STATIC, PageRoute
from projections.console.routes import (
    difference,
    events,
    operations,
    security,
    sessions,
    tables,
)
from projections.console.visiting import ROOT

__all__ = ["mount"]

_fallback = APIRouter(route_class=PageRoute)


class _Files(StaticFiles):
    """Files whose addresses name their version: they never change."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """Let browsers keep them."""
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


@_fallback.get("/{path:path}")
async def _nothing(request: Request) -> Response:
    raise HTTPException(404, f"there is no page {request.url.path}")


def mount(app: FastAPI) -> None:
    """Add the console to an application, under /console."""
    app.state.looks = Looks()
    app.mount(f"{ROOT}/static", _Files(directory=str(STATIC)), name="console-static")
    pages = (sessions, tables, events, security, difference, operations)
    for router in (*(each.router for each in pages), _fallback):
        app.include_router(router, prefix=ROOT, include_in_schema=False)
