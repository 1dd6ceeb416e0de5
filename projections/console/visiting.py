"""Who visits: the cookie of a session, what it allows, and requests that others have made up.

The cookie goes to the console's paths alone, and no script can read it. Forms of other sites do not
carry it (SameSite), and are turned away by what browsers say of where a request comes from.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ledger.errors import LedgerError
from ledger.http import tokens
from ledger.http.auth import Principal, ledger_of, log_refused, principal_of_token
from ledger.http.errors import Forbidden, TokenRefused
from ledger.services.sessions import Holder

COOKIE = "ledger_session"
ROOT = "/console"
LOGIN = f"{ROOT}/login"


class LogInFirst(LedgerError):
    """Nobody is logged in, or the session is over."""


class FromElsewhere(LedgerError):
    """Another site's page has sent the request."""

    def __init__(self) -> None:
        super().__init__("the form was not sent from a page of this console; go back and try again")


class Visitor(msgspec.Struct, frozen=True):
    """Who is logged in, and what they may do."""

    principal: Principal
    name: str

    def may(self, permission: str) -> bool:
        """Whether they have a permission."""
        return self.principal.may(permission)


async def principal_of(request: Request, permission: str | None) -> Principal:
    """Return who sent a request; raises LogInFirst and Forbidden."""
    token = request.cookies.get(COOKIE)
    if token is None:
        raise LogInFirst("log in to see this page")
    try:
        principal = await principal_of_token(ledger_of(request), token)
    except TokenRefused as error:
        log_refused(request, "console token", error.kind)
        raise LogInFirst("the session is over; log in again") from error
    request.state.principal = principal
    if permission is not None and not principal.may(permission):
        raise Forbidden(permission)
    return principal


async def keep(request: Request, response: Response, holder: Holder) -> None:
    """Let the browser have a new token of a session: whoever goes on reading stays logged in."""
    ledger = ledger_of(request)
    journal = ledger.journal
    token = await tokens.issue(ledger.sessions, holder, journal.name, journal.now())
    response.set_cookie(
        COOKIE,
        token.text,
        max_age=token.expires_seconds,
        path=ROOT,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def drop_cookie(request: Request, response: Response) -> None:
    """Let the browser forget the token."""
    secure = request.url.scheme == "https"
    response.delete_cookie(COOKIE, path=ROOT, secure=secure, httponly=True, samesite="strict")


async def same_origin(request: Request) -> None:
    """Raise FromElsewhere for a request that changes something and is not from our own page."""
    if request.method in {"GET", "HEAD"}:
        return
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    is_own = site == "same-origin" if site is not None else _is_host(origin, request)
    if not is_own or (origin is not None and not _is_host(origin, request)):
        raise FromElsewhere


def _is_host(origin: str | None, request: Request) -> bool:
    if origin is None:
        return False
    return urlsplit(origin).netloc == request.headers.get("host")


def local_path(text: str | None) -> str:
    """Return where to go after the log-in: a page of the console, whatever a link has said."""
    if text is None or not text.isascii() or not text.isprintable() or "\\" in text:
        return ROOT
    parts = urlsplit(text)
    is_ours = parts.path == ROOT or parts.path.startswith(f"{ROOT}/")
    if parts.scheme or parts.netloc or not is_ours or ".." in unquote(parts.path):
        return ROOT
    return text
