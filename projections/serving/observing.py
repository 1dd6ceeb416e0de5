"""Looking on: the outermost layer of the application, and what watches the journal append."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledger.errors import LedgerError
from ledger.event import NewEvent
from ledger.stores import Outcome
from projections.serving.logs import RequestLog
from projections.serving.metrics import Appends, Metrics
from projections.serving.tracing import Tracing, answered

UNKNOWN_ROUTE = "(none)"
FAILED = 500
_LOGGED_HEADERS = {b"x-request-id": "request_id", b"ledger-size": "size"}


class Observing:
    """Counts, logs and traces each request; what is answered is passed on as it is."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, tracing: Tracing, log: RequestLog
    ) -> None:
        """Take the application, and whom to tell."""
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        counted = self._metrics.requests.in_progress.track_inprogress()
        with counted, self._tracing.request(scope) as span:
            try:
                await self._app(scope, receive, answer)
            finally:
                route = route_of(scope)
                answered(span, scope["method"], route, answer.status)
                self._tell(scope, route, answer)

    def _tell(self, scope: Scope, route: str, answer: _Answer) -> None:
        method, status, seconds = scope["method"], answer.status, answer.seconds()
        self._metrics.requests.answered(method, route, status, seconds)
        fields: dict[str, Any] = {
            "method": method,
            "route": route,
            "status": status,
            "latency_ms": round(1000 * seconds, 2),
            **answer.fields(),
        }
        principal = scope.get("state", {}).get("principal")
        for name in ("user_id", "key_id"):
            if value := getattr(principal, name, None):
                fields[name] = str(value)
        self._log("request", **fields)


class Looking(msgspec.Struct, frozen=True):
    """Looks on as the journal appends: for the metrics and for traces."""

    appends: Appends
    tracing: Tracing

    def around(self, events: Sequence[NewEvent]) -> AbstractContextManager[object]:
        """Return what an append runs in."""
        return self.tracing.around(events)

    def stored(self, outcomes: Sequence[Outcome], seconds: Sequence[float]) -> None:
        """Count a batch."""
        self.appends.stored(outcomes, seconds)

    def refused(self, error: LedgerError) -> None:
        """Count what never got into one."""
        self.appends.refused(error)


class _Answer:
    """Passes an answer on, and remembers how it began."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._began = perf_counter()
        self._seconds: float | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self.status = FAILED

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._seconds = perf_counter() - self._began
            self.status = message["status"]
            self._headers = message.get("headers", [])
        await self._send(message)

    def seconds(self) -> float:
        """Return how long it took until the answer began, or until now."""
        return perf_counter() - self._began if self._seconds is None else self._seconds

    def fields(self) -> dict[str, str]:
        """Return what the headers say that is logged."""
        found = ((_LOGGED_HEADERS.get(name.lower()), value) for name, value in self._headers)
        return {name: value.decode("latin-1") for name, value in found if name is not None}


def route_of(scope: Scope) -> str:
    """Return the path as the route declares it: the path itself may hold anything.

    A route of a router that was included under a prefix knows only a part of it.
    """
    included = scope.get("fastapi", {}).get("effective_route_context")
    return getattr(included or scope.get("route"), "path_format", None) or UNKNOWN_ROUTE
