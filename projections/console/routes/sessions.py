"""Logging in and out with the browser."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import Response

from projections.console.desk import Desk, PageRoute, at_desk
from projections.console.here import Here
from projections.console.visiting import (
    LOGIN,
    drop_cookie,
    keep,
    local_path,
    same_origin,
)

router = APIRouter(route_class=PageRoute, dependencies=[Depends(same_origin)])

Field = Annotated[str, Form(max_length=1000)]
Seated = Annotated[Desk, Depends(at_desk(None))]

REFUSED = "The username or the password is wrong, or nobody can log in with them now."


@router.get("/login")
async def form(request: Request) -> Response:
    """Ask for username and password."""
    here = Here.of(request)
    return await Desk(request, here).page("login.html", next=local_path(here.get("next")))


@router.post("/login")
async def login(
    request: Request,
    username: Field,
    password: Field,
    wanted: Annotated[str, Form(alias="next")] = "",
) -> Response:
    """Log in; who is refused is not told why."""
    desk = Desk(request, Here.of(request))
    path = local_path(wanted)
    opened = await desk.ledger.sessions.start(
        username=username, password=password, source=desk.source, origin=desk.origin
    )
    if opened is None:
        return await desk.page("login.html", 401, next=path, refused=REFUSED, username=username)
    response = desk.go(path)
    await keep(request, response, opened.holder)
    return response


@router.post("/logout")
async def logout(desk: Seated) -> Response:
    """End the session, here and wherever else its token is."""
    session_id = desk.principal.session_id
    if session_id is not None:
        await desk.ledger.sessions.end(session_id=session_id, origin=desk.origin)
    response = desk.go(LOGIN)
    drop_cookie(desk.request, response)
    return response


@router.get("")
async def start(desk: Seated) -> Response:
    """Go to the first page."""
    return desk.go(desk.here.to("tables", "positions"))
