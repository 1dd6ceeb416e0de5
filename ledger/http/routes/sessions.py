"""Logging in with a password, going on with a refresh token, logging out."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints

from ledger.deciding import Origin
from ledger.domain.users import TEXT_CHARS_MAX
from ledger.errors import CommandRefused
from ledger.http import routing, tokens
from ledger.http.answering import not_found, stored
from ledger.http.auth import (
    Principal,
    ledger_of,
    log_refused,
    metadata_of,
    principal_of,
    require_session,
)
from ledger.http.calls import Call, call
from ledger.http.errors import InvalidCredentials, Unauthenticated
from ledger.http.models import Body, Password, ShownOnce, Stored, UserStored, Why
from ledger.http.permissions import USERS_WRITE
from ledger.http.problems import responses
from ledger.services import Ledger
from ledger.services.sessions import SessionOpen
from ledger.stores import Appended

REFRESH_TOKEN_CHARS_MAX = 255

router = routing.router("sessions")

LoggedIn = Annotated[Principal, Depends(require_session())]
Administering = Annotated[Call, Depends(call(USERS_WRITE))]

_NOT_STORED = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class Credentials(Body):
    """What somebody logs in with; the username may be the e-mail address."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"username": "ada", "password": "an engine weaves"}]},
    )

    username: Annotated[
        str, StringConstraints(strict=True, min_length=1, max_length=TEXT_CHARS_MAX)
    ]
    password: Password


class Refreshing(Body):
    """The latest refresh token of a session."""

    refresh_token: Annotated[SecretStr, Field(min_length=1, max_length=REFRESH_TOKEN_CHARS_MAX)]


class SessionTokens(BaseModel):
    """What somebody who is logged in goes on with; no answer shows these tokens again.

    The access token is good for `expires_in` seconds, the refresh token once. The permissions are
    those of now: each request is met with those of its own time.
    """

    access_token: ShownOnce
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - a scheme
    expires_in: int
    refresh_token: ShownOnce
    session_id: UUID
    user_id: UUID
    roles: list[str]
    permissions: list[str]


class SessionStored(Stored):
    """What was done to a session."""

    session_id: UUID


@router.post("/sessions", status_code=201)
async def log_in(body: Credentials, request: Request, response: Response) -> SessionTokens:
    """Log in with a password.

    Whatever the reason of a refusal is, the answer is the same `invalid-credentials`: too many
    wrong passwords lock the account for a while, and nobody is told.
    """
    ledger = ledger_of(request)
    opened = await ledger.sessions.start(
        username=body.username,
        password=body.password.get_secret_value(),
        origin=Origin(metadata=metadata_of(request)),
    )
    if opened is None:
        raise InvalidCredentials
    return await _shown(ledger, opened, response)


@router.post("/sessions/refresh")
async def refresh(body: Refreshing, request: Request, response: Response) -> SessionTokens:
    """Go on in a session: the refresh token is used up, and another one takes its place.

    One that was used before ends the session, since somebody else may have it. So do not repeat
    the request where its answer was lost: log in again.
    """
    ledger = ledger_of(request)
    opened = await ledger.sessions.refresh(
        refresh_token=body.refresh_token.get_secret_value(),
        origin=Origin(metadata=metadata_of(request)),
    )
    if opened is None:
        log_refused(request, "refresh token", "not_good")
        raise Unauthenticated("the refresh token is not good now; log in again")
    return await _shown(ledger, opened, response)


async def _shown(ledger: Ledger, opened: SessionOpen, response: Response) -> SessionTokens:
    response.headers.update(_NOT_STORED | {"Ledger-Size": str(opened.appended.size)})
    holder, journal = opened.holder, ledger.journal
    token = await tokens.issue(ledger.sessions, holder, journal.name, journal.now())
    return SessionTokens(
        access_token=SecretStr(token.text),
        expires_in=token.expires_seconds,
        refresh_token=SecretStr(opened.refresh_token.reveal()),
        session_id=holder.session_id,
        user_id=holder.user_id,
        roles=sorted(holder.roles),
        permissions=sorted(principal_of(holder).permissions),
    )


@router.delete("/sessions/current")
async def log_out(who: LoggedIn, request: Request, response: Response) -> SessionStored:
    """Log out of the session of the access token: neither of its tokens is good any more."""
    session_id, ledger = who.session_id, ledger_of(request)
    if session_id is None:
        raise Unauthenticated
    closed = await ledger.sessions.end(session_id=session_id, origin=_origin(request, who))
    fields = await _stored(request, response, closed.appended)
    return SessionStored(session_id=session_id, **fields)


@router.delete("/sessions", responses=responses(409))
async def log_out_everywhere(who: LoggedIn, request: Request, response: Response) -> UserStored:
    """End all sessions of one's own user, that of the access token too."""
    ledger = ledger_of(request)
    ended = await ledger.users.end_sessions(user_id=who.user_id, origin=_origin(request, who))
    return UserStored(user_id=who.user_id, **await _stored(request, response, ended.appended))


@router.post("/users/{user_id}/end-sessions", responses=responses(404, 409, 412))
async def end_sessions(
    user_id: UUID, body: Why, by: Administering, response: Response
) -> UserStored:
    """End all sessions of a user, who can log in again; deactivate the user to prevent that."""
    try:
        ended = await by.ledger.users.end_sessions(
            user_id=user_id, reason=body.reason, origin=by.origin
        )
    except CommandRefused as error:
        if error.state == "unknown":
            raise not_found("user") from error
        raise
    return UserStored(user_id=user_id, **await stored(by, response, ended.appended))


def _origin(request: Request, who: Principal) -> Origin:
    return Origin(metadata=metadata_of(request, who))


async def _stored(
    request: Request, response: Response, appended: Appended | None
) -> dict[str, Any]:
    """Return the fields of an answer that say where its events are."""
    if appended is not None:
        request.state.has_stored = True  # the request takes no entry of its own in the audit log
    size = await ledger_of(request).journal.size() if appended is None else appended.size
    response.headers["Ledger-Size"] = str(size)
    offsets = [] if appended is None else list(appended.offsets)
    return {"offsets": offsets, "size": size, "duplicate": appended is None}
