"""The audit log's entry of each request that somebody sent."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledger.domain.requests import FAILED_STATUS, RequestHandled
from ledger.errors import LedgerError
from ledger.event import Metadata, NewEvent
from ledger.http.auth import Principal, ledger_of, metadata_of, resource_of, route_of
from ledger.http.middleware import ENCRYPTED
from ledger.http.problems import UNAUDITED, log_failure, request_id_of, respond


class AuditMiddleware:
    """Stores RequestHandled before a request is answered, where no other event speaks of it.

    The use of an API key is an event already, as is what a command stored; a request that failed is
    recorded whatever was stored of it before. So each request of a known sender has one entry, and
    one more if it failed. Nobody is answered whose request could not be recorded: that is a 503.
    A stream is recorded when it begins; of a page that refreshes itself, which has set
    `request.state.looks`, one entry stands for each look (`Looks`). Put it outside of all that may
    answer in the route's stead.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer once it is recorded."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        answer = _Answer(scope, send)
        try:
            await self.app(scope, receive, answer.send)
        except Exception:
            if not answer.is_begun:
                await answer.record(500)
            raise


class _Answer:
    """The answer to one request, which is passed on once the request is recorded."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.is_begun = False
        self._is_withheld = False
        self._scope = scope
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on, unless the request could not be recorded."""
        if message["type"] == "http.response.start":
            self.is_begun = True
            error = await self.record(message["status"])
            if error is not None:
                await self._withhold(message, error)
        if not self._is_withheld:
            await self._send(message)

    async def record(self, status: int) -> LedgerError | None:
        """Store the entry of the request, if it takes one; return why it could not be stored."""
        request = Request(self._scope)
        principal = getattr(request.state, "principal", None)
        if principal is None or not _takes_entry(request, principal, status):
            return None
        looks = getattr(request.state, "looks", None)
        if looks is not None and status < FAILED_STATUS and looks.goes_on(principal.session_id):
            return None
        new = NewEvent(_entry(request, principal, status), metadata=_metadata(request, principal))
        try:
            await ledger_of(request).journal.append(new)
        except LedgerError as error:
            return error
        if looks is not None:
            looks.begin(principal.session_id)
        return None

    async def _withhold(self, message: Message, error: LedgerError) -> None:
        """Answer that the request could not be recorded, with the headers that every answer has."""
        self._is_withheld = True
        request_id = request_id_of(Request(self._scope))
        log_failure(request_id, error, UNAUDITED)
        safe = {name for name, _ in ENCRYPTED} | {b"x-request-id"}
        response = respond(UNAUDITED, request_id)
        response.raw_headers += [each for each in message["headers"] if each[0] in safe]
        await response(self._scope, _nothing, self._send)


def _takes_entry(request: Request, principal: Principal, status: int) -> bool:
    """Whether no other event says what became of the request."""
    if status >= FAILED_STATUS:
        return True
    return principal.key_id is None and not getattr(request.state, "has_stored", False)


def _entry(request: Request, principal: Principal, status: int) -> RequestHandled:
    return RequestHandled(
        user_id=principal.user_id,
        action=f"{request.method} {route_of(request)}",
        status=status,
        resource=resource_of(request),
        key_id=principal.key_id,
        session_id=principal.session_id,
    )


def _metadata(request: Request, principal: Principal) -> Metadata:
    return msgspec.structs.replace(metadata_of(request), actor=principal.actor)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
