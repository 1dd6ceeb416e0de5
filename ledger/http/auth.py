"""Who sent a request: dependencies of routes that take an API key or an access token.

An API key comes in `X-API-Key`, and its use is stored before the route runs. An access token comes
in `Authorization: Bearer`; what has become of its session and its user is read from the journal,
so whoever is logged out, deactivated or has other roles by now is met as such.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Annotated, cast
from urllib.parse import quote
from uuid import UUID

import msgspec
from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from ledger.deciding import Origin
from ledger.domain.api_keys import RATE_WINDOW, KeyReason
from ledger.event import Metadata
from ledger.http import tokens
from ledger.http.errors import Forbidden, RateLimited, TokenRefused, Unauthenticated
from ledger.http.permissions import permissions_of
from ledger.services import Ledger
from ledger.services.api_keys import RESOURCE_CHARS_MAX, KeyUse
from ledger.services.sessions import Holder

API_KEY = APIKeyHeader(
    name="X-API-Key",
    scheme_name="ApiKey",
    description="A key that was issued to a user; each use of it is recorded.",
    auto_error=False,
)
BEARER = HTTPBearer(
    bearerFormat="JWT",
    scheme_name="Bearer",
    description="An access token, as `POST /sessions` answers with.",
    auto_error=False,
)

Key = Annotated[str | None, Security(API_KEY)]
Token = Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)]


_log = logging.getLogger("ledger.http")


class Principal(msgspec.Struct, frozen=True):
    """Who sent a request, and all that they may do.

    `key_id` is given where an API key was used, `session_id` where an access token was.
    """

    user_id: UUID
    permissions: frozenset[str]
    roles: tuple[str, ...] = ()
    key_id: UUID | None = None
    session_id: UUID | None = None

    def may(self, permission: str) -> bool:
        """Whether they have a permission."""
        return permission in self.permissions

    @property
    def actor(self) -> str:
        """What the metadata of their events has as `actor`."""
        return f"user:{self.user_id}" if self.key_id is None else f"key:{self.key_id}"


Dependency = Callable[..., Awaitable[Principal]]


def require(permission: str | None = None) -> Dependency:
    """Return a dependency that takes an API key or an access token, and may need a permission.

    It raises Unauthenticated, Forbidden and RateLimited, and what an append raises; with an API key
    the access token is not looked at.
    """

    async def authenticated(request: Request, key: Key, token: Token) -> Principal:
        if key is not None:
            return await _by_key(request, key, permission)
        if token is None:
            raise Unauthenticated
        return await _by_token(request, token.credentials, permission)

    return authenticated


def require_session(permission: str | None = None) -> Dependency:
    """Return a dependency like that of `require` that takes an access token only."""

    async def authenticated(request: Request, token: Token) -> Principal:
        if token is None:
            raise Unauthenticated
        return await _by_token(request, token.credentials, permission)

    return authenticated


def require_api_key(permission: str | None = None) -> Dependency:
    """Return a dependency like that of `require` that takes an API key only."""

    async def authenticated(request: Request, key: Key) -> Principal:
        if key is None:
            raise Unauthenticated
        return await _by_key(request, key, permission)

    return authenticated


async def _by_key(request: Request, key: str, permission: str | None) -> Principal:
    """Store that a key is used for the route; the principal may do what the key was issued for."""
    used = await ledger_of(request).api_keys.use(
        presented=key,
        action=f"{request.method} {route_of(request)}",
        permission=permission,
        resource=resource_of(request),
        origin=Origin(metadata=metadata_of(request)),
    )
    principal = _principal_of_key(used, permission)
    request.state.principal = principal
    return principal


def _principal_of_key(used: KeyUse, permission: str | None) -> Principal:
    if used.user_id is not None and used.accepted:
        return Principal(used.user_id, frozenset(used.permissions), key_id=used.key_id)
    match used.reason:
        case KeyReason.RATE_LIMITED:
            raise RateLimited(RATE_WINDOW.total_seconds())
        case KeyReason.NOT_PERMITTED if permission is not None:
            raise Forbidden(permission)
        case _:
            raise Unauthenticated


async def _by_token(request: Request, token: str, permission: str | None) -> Principal:
    try:
        principal = await principal_of_token(ledger_of(request), token)
    except TokenRefused as error:
        log_refused(request, "access token", error.kind)
        raise
    request.state.principal = principal
    if permission is not None and not principal.may(permission):
        raise Forbidden(permission)
    return principal


async def principal_of_token(ledger: Ledger, token: str) -> Principal:
    """Return whose access token it is, with what they may do now; else raise TokenRefused."""
    journal, sessions = ledger.journal, ledger.sessions
    claims = tokens.verified(token, await sessions.token_key(), journal.name, journal.now())
    holder = await sessions.check(claims.sid)
    if holder is None or holder.user_id != claims.sub:
        raise TokenRefused("session_over")
    return principal_of(holder)


def log_refused(request: Request, what: str, reason: str) -> None:
    """Log that a token was refused, of which the journal has no event; never the token itself.

    That one has expired is everyday life, anything else may be somebody's guess.
    """
    _log.log(
        logging.INFO if reason == "expired" else logging.WARNING,
        "%s refused: %s",
        what,
        reason,
        extra={"request_id": getattr(request.state, "request_id", None), "reason": reason},
    )


def principal_of(holder: Holder) -> Principal:
    """Return what somebody may do who is logged in."""
    return Principal(
        user_id=holder.user_id,
        permissions=permissions_of(holder.permissions, holder.roles),
        roles=holder.roles,
        session_id=holder.session_id,
    )


def ledger_of(request: Request) -> Ledger:
    """Return the ledger that the application opened at its start."""
    return cast(Ledger, request.app.state.ledger)


def metadata_of(request: Request, who: Principal | None = None) -> Metadata:
    """Return what the events of a request say of where they come from, and who sent it if known."""
    return Metadata(
        correlation_id=getattr(request.state, "correlation_id", None),
        request_id=getattr(request.state, "request_id", None),
        actor=None if who is None else who.actor,
        ip_address=ip_address_of(request),
    )


def ip_address_of(request: Request) -> str | None:
    """Return the address of the client, None where it has none that means something elsewhere.

    The server has put it in place of a trusted proxy's.
    """
    return None if request.client is None else _ip_address(request.client.host)


@lru_cache(maxsize=4096)
def _ip_address(host: str) -> str | None:
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return None


def route_of(request: Request) -> str:
    """Return the path of the route as it was declared, with the names of its parameters."""
    included = request.scope.get("fastapi", {}).get("effective_route_context")
    # An included route itself lacks the prefix of its router.
    route = included or request.scope.get("route")
    return str(getattr(route, "path_format", request.url.path))


def resource_of(request: Request) -> str:
    """Return the path that was asked for, in characters that can be stored."""
    return quote(request.scope["path"] or "/", errors="replace")[:RESOURCE_CHARS_MAX]
