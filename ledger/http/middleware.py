"""What every request goes through: an id, limits on body, number and time, and safe headers.

Plain ASGI: a request costs some microseconds here. Nothing is looked at twice, and an answer that
has begun is passed on as it comes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast
from uuid import UUID

from opentelemetry import trace
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

from ledger.http.problems import (
    BODY_TIMEOUT,
    INTERNAL,
    OVERLOADED,
    TIMEOUT,
    Kind,
    kind_of,
    log_failure,
    respond,
)
from ledger.settings import Settings

BODY_SECONDS_MAX = 10.0
"""So long a client may take to send its body."""

WAITING_SHARE = 4
"""So many times more requests may wait, for a body or for the tables, than are worked on."""

_Headers = tuple[tuple[bytes, bytes], ...]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(
    rb"[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)

PLAIN: _Headers = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""Headers of every answer, unless its route has set its own."""

ENCRYPTED: _Headers = (*PLAIN, (b"strict-transport-security", b"max-age=31536000"))
"""The same for a request that came by HTTPS."""


class BodyTooLarge(HTTPException):
    """The body has more bytes than are taken; the rest of it is not read."""

    def __init__(self, bytes_max: int) -> None:
        detail = f"a body has at most {bytes_max:,} bytes; send less at a time"
        super().__init__(413, detail, {"Connection": "close"})


class ServiceMiddleware:
    """Lets as many requests in at a time as there is room for, and sees each to its end.

    A request counts while it is worked on: not while its body is awaited, nor while it waits
    `aside`, nor once its answer has begun, so that a long stream of events takes no place. Those
    that wait have a bound of their own; where it is reached, the body awaited the longest is given
    up. Requests to paths that are `unlimited` are let in always, so that a busy service is not
    taken for a dead one.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, unlimited: Collection[str] = frozenset()
    ) -> None:
        self.app = app
        self.body_bytes_max = settings.http_body_bytes_max
        self.requests_max = settings.http_requests_max
        self.timeout_seconds = settings.http_timeout_seconds
        self.unlimited = frozenset(unlimited)
        self.waiting_max = WAITING_SHARE * self.requests_max
        self.body_seconds_max = BODY_SECONDS_MAX
        self.working = 0
        self.waiting = 0
        self._awaited: dict[Exchange, float] = {}
        self._look: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        exchange = Exchange(self, scope, receive, send, _named(scope, headers))
        if _length_of(headers) > self.body_bytes_max:
            too_large = BodyTooLarge(self.body_bytes_max)
            await exchange.answer(kind_of(too_large), too_large.detail, too_large.headers)
        elif self.working >= self.requests_max and scope["path"] not in self.unlimited:
            detail = f"{self.working:,} requests are being worked on already; try again"
            await exchange.answer(OVERLOADED, detail)
        else:
            await exchange.run()

    def expect(self, exchange: Exchange) -> None:
        """Note that a request's body is awaited; the first in line makes room for another."""
        if exchange in self._awaited:
            return
        if len(self._awaited) >= self.waiting_max:
            self._give_up(next(iter(self._awaited)))
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._awaited[exchange] = now + self.body_seconds_max
        # One timer for all bodies: most have come already, and one for each would be dear.
        if self._look is None or self._look.when() <= now:
            self._look_at(now + self.body_seconds_max, loop)

    def _look_at(self, at: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._look is not None:
            self._look.cancel()
        self._look = loop.call_at(at, self._give_up_late, loop)

    def _give_up_late(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up the bodies that should have come by now; look again when the next should."""
        for exchange, ends_at in list(self._awaited.items()):
            if ends_at > loop.time():
                self._look_at(ends_at, loop)
                return
            self._give_up(exchange)

    def _give_up(self, exchange: Exchange) -> None:
        self.forget(exchange)
        exchange.give_up()

    def forget(self, exchange: Exchange) -> None:
        """Note that a body is not awaited any more."""
        self._awaited.pop(exchange, None)


class Exchange:
    """One request on its way through and its answer on the way back."""

    def __init__(
        self,
        outer: ServiceMiddleware,
        scope: Scope,
        receive: Receive,
        send: Send,
        request_id: str,
    ) -> None:
        self._outer = outer
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._body_bytes = 0
        self._has_body = False
        self._is_awaiting = False
        self._has_place = False
        self._is_begun = False
        self._timer: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Let the application answer, within the time there is for it."""
        self._take_place()
        state = self._scope["state"]
        state["aside"] = self.aside
        try:
            async with asyncio.timeout(self._outer.timeout_seconds) as self._timer:
                await self._outer.app(self._scope, self.receive, self.send)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception as error:  # noqa: BLE001 - the client gets an answer whatever happens
            await self._failed(error)
        finally:
            del state["aside"]  # or both would keep each other
            self._outer.forget(self)
            self._leave_place()

    async def _failed(self, error: Exception) -> None:
        """Answer in the application's stead; one that has begun is cut off where it is."""
        timer, self._timer = self._timer, None
        kind = INTERNAL
        if timer is not None and timer.expired():
            kind = BODY_TIMEOUT if self._is_awaiting else TIMEOUT
        log_failure(self._request_id, error, kind)
        if not self._is_begun:
            headers = {"Connection": "close"} if kind is BODY_TIMEOUT else None
            await self.answer(kind, headers=headers)

    async def answer(
        self, kind: Kind, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with a problem."""
        response = respond(kind, self._request_id, detail, headers=headers)
        await response(self._scope, self._receive, self.send)

    async def receive(self) -> Message:
        """Pass the body on, as far as it is not too large and comes in time."""
        if self._has_body or self._is_begun:
            return await self._receive()
        message = await self._awaited()
        if message["type"] == "http.request":
            self._body_bytes += len(message.get("body", b""))
            if self._body_bytes > self._outer.body_bytes_max:
                raise BodyTooLarge(self._outer.body_bytes_max)
            if not message.get("more_body", False):
                self._has_body = True
                self._outer.forget(self)
        return message

    async def _awaited(self) -> Message:
        """Wait for a part of the body, whose sender is not known yet, without a place."""
        self._is_awaiting = True
        self._leave_place()
        self._outer.expect(self)
        message = await self._receive()
        self._is_awaiting = False
        if not self._is_begun:
            self._take_place()
        return message

    def give_up(self) -> None:
        """Wait no longer for the body."""
        if self._is_awaiting and self._timer is not None and not self._timer.expired():
            self._timer.reschedule(0)

    @contextmanager
    def aside(self) -> Iterator[bool]:
        """Wait without a place; False where too many do already."""
        if self._outer.waiting >= self._outer.waiting_max:
            yield False
            return
        had_place = self._has_place
        self._leave_place()
        self._outer.waiting += 1
        try:
            yield True
        finally:
            self._outer.waiting -= 1
            if had_place:
                self._take_place()

    async def send(self, message: Message) -> None:
        """Pass the answer on; from its beginning on it has all the time that it takes."""
        if message["type"] == "http.response.start":
            await self._begin()
            headers = message.setdefault("headers", [])
            message["headers"] = [*headers, *self._added(headers)]
        await self._send(message)

    async def _begin(self) -> None:
        if self._timer is not None:
            if self._timer.expired():
                await asyncio.sleep(0)  # is cancelled here: the answer came too late
            self._timer.reschedule(None)
        self._is_begun = True
        self._leave_place()

    def _added(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the headers that the application has not set itself."""
        own = {name for name, _ in headers}
        safe = ENCRYPTED if self._scope["scheme"] == "https" else PLAIN
        added = [header for header in safe if header[0] not in own]
        return [(b"x-request-id", self._request_id.encode()), *added]

    def _take_place(self) -> None:
        self._has_place = True
        self._outer.working += 1

    def _leave_place(self) -> None:
        if self._has_place:
            self._has_place = False
            self._outer.working -= 1


def aside(request: Request) -> AbstractContextManager[bool]:
    """Let another request in while this one waits; it must not wait where that gives False."""
    own = getattr(request.state, "aside", None)
    return nullcontext(True) if own is None else cast(AbstractContextManager[bool], own())


def _named(scope: Scope, headers: Mapping[bytes, bytes]) -> str:
    """Give a request its ids, by which its logs, events and traces are found; return its own.

    They are `request_id` and `correlation_id` of the request's state.
    """
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    span = trace.get_current_span().get_span_context()
    traced = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    correlation_id = made = uuid7()
    made_id = str(made)
    if span.is_valid:
        correlation_id = UUID(int=span.trace_id)
        made_id = f"{span.trace_id:032x}-{span.span_id:016x}"
    elif traced is not None:
        correlation_id = UUID(traced["trace"].decode())
    state = scope.setdefault("state", {})
    state["correlation_id"] = correlation_id
    state["request_id"] = request_id = given if _REQUEST_ID.fullmatch(given) else made_id
    return request_id


def _length_of(headers: Mapping[bytes, bytes]) -> int:
    """Return how long the body says it is; the server has checked that it is a number."""
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() else 0
