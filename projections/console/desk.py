"""What a page is made with: its visitor, what they may see, and the templates."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, cast
from urllib.parse import urlencode

import jinja2
import msgspec
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ledger.deciding import Origin
from ledger.errors import LedgerError
from ledger.http.auth import Principal, ip_address_of, ledger_of, metadata_of
from ledger.http.problems import Kind, kind_of, log_failure, request_id_of
from ledger.journal import Journal
from ledger.services import Ledger
from projections.console import cells
from projections.console.bar import bar_of_now
from projections.console.here import Here
from projections.console.views import VIEWS
from projections.console.visiting import (
    LOGIN,
    ROOT,
    FromElsewhere,
    LogInFirst,
    Visitor,
    keep,
    principal_of,
)
from projections.database import Database
from projections.operations import Operations
from projections.reading import Reading

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}

ELSEWHERE = Kind("from-elsewhere", 403, "The form was sent from elsewhere")

STATIC = files("projections.console") / "static"


@cache
def static_url(name: str) -> str:
    """Return the address of a file, another one for each of its versions."""
    digest = sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/console/static/{name}?v={digest}"


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("projections.console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(
        views=VIEWS, static=static_url, cell=cells.cell, field=cells.field, right=cells.RIGHT
    )
    made.filters.update(
        amount=cells.amount,
        full_moment=cells.full_moment,
        grouped=cells.grouped,
        moment=cells.moment,
    )
    return made


_templates = _environment()


class Desk(msgspec.Struct, frozen=True):
    """One request for a page, with all that the page is made from; nobody is logged in at first."""

    request: Request
    here: Here
    visitor: Visitor | None = None

    @property
    def principal(self) -> Principal:
        """Who is logged in; raises LogInFirst where nobody is."""
        if self.visitor is None:
            raise LogInFirst("log in to see this page")
        return self.visitor.principal

    @property
    def ledger(self) -> Ledger:
        """All commands."""
        return ledger_of(self.request)

    @property
    def journal(self) -> Journal:
        """The journal that is looked at."""
        return self.ledger.journal

    @property
    def reading(self) -> Reading:
        """The tables at any point."""
        return cast(Reading, self.request.app.state.reading)

    @property
    def database(self) -> Database:
        """The read side's database."""
        return cast(Database, self.request.app.state.database)

    @property
    def operations(self) -> Operations:
        """What operators do."""
        return cast(Operations, self.request.app.state.operations)

    @property
    def origin(self) -> Origin:
        """What is stored of the request with the events that it leads to."""
        metadata = metadata_of(self.request)
        if self.visitor is not None:
            metadata = msgspec.structs.replace(metadata, actor=self.visitor.principal.actor)
        return Origin(metadata=metadata)

    @property
    def source(self) -> str | None:
        """Where the request came from, if that is no ip address."""
        return None if ip_address_of(self.request) else "console"

    async def page(self, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """Return a page; whoever is logged in gets the time bar with it."""
        bar = None
        if self.visitor is not None:
            bar = await bar_of_now(self.reading, self.journal, self.here)
        text = _templates.get_template(template).render(
            here=self.here, visitor=self.visitor, bar=bar, **context
        )
        response = HTMLResponse(text, status, HEADERS)
        await self._keep(response)
        return response

    async def _keep(self, response: Response) -> None:
        """Let whoever goes on reading stay logged in, for as long as the session lasts."""
        session_id = None if self.visitor is None else self.visitor.principal.session_id
        if session_id is None:
            return
        holder = await self.ledger.sessions.check(session_id)
        if holder is not None:
            await keep(self.request, response, holder)

    def go(self, path: str) -> RedirectResponse:
        """Send the browser to a page, which it asks for anew."""
        return RedirectResponse(path, 303, HEADERS)


def at_desk(permission: str | None) -> Callable[[Request], Awaitable[Desk]]:
    """Return a dependency: a visitor who is logged in and has a permission."""

    async def seated(request: Request) -> Desk:
        return await _seated(request, permission)

    return seated


async def _seated(request: Request, permission: str | None) -> Desk:
    principal = await principal_of(request, permission)
    # What was sent by a form cannot be asked for again: its error page leads to the first page.
    here = Here.of(request) if request.method == "GET" else Here(ROOT)
    desk = Desk(request, here)
    name = await desk.ledger.users.username(principal.user_id) or str(principal.user_id)
    return msgspec.structs.replace(desk, visitor=Visitor(principal, name))


class PageRoute(APIRoute):
    """A route whose errors are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        answered = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await answered(request)
            except LogInFirst:
                return _to_login(request)
            except (LedgerError, HTTPException, RequestValidationError) as error:
                return await _refused(request, error)

        return handler


def _to_login(request: Request) -> Response:
    path = request.url.path
    if request.url.query:
        path += f"?{request.url.query}"
    wanted = {"next": path} if request.method == "GET" else {}
    return RedirectResponse(f"{LOGIN}?{urlencode(wanted)}" if wanted else LOGIN, 303, HEADERS)


async def _refused(request: Request, error: Exception) -> Response:
    """Return the page that says what is wrong."""
    kind = ELSEWHERE if isinstance(error, FromElsewhere) else kind_of(error)
    request_id = request_id_of(request)
    if kind.status >= 500:
        log_failure(request_id, error, kind)
        desk = Desk(request, Here(ROOT))  # where the database is away, there is no time bar either
    else:
        desk = await _perhaps_seated(request)
    detail = kind.detail or _detail_of(error)
    return await desk.page(
        "error.html", kind.status, kind=kind, detail=detail, request_id=request_id
    )


def _detail_of(error: Exception) -> str:
    if isinstance(error, RequestValidationError):
        return "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()[:3])
    return str(error.detail) if isinstance(error, HTTPException) else str(error)


async def _perhaps_seated(request: Request) -> Desk:
    """Return the desk of whoever is logged in, or of nobody."""
    try:
        return await _seated(request, None)
    except LedgerError:
        return Desk(request, Here(ROOT))
