"""Traces of requests, and of the appends that they make.

A request goes on with the trace that its `traceparent` names. Without an SDK of OpenTelemetry in
the process nothing is made; whether there is one is looked up once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.trace import Span, SpanKind, StatusCode
from starlette.types import Scope

from ledger.event import NewEvent
from projections import spans

APPEND = "journal.append"
UNTRACED: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
"""What an application is made with: spans are made here, and hold nothing that was sent."""

CARRIED = frozenset({"traceparent", "tracestate", "baggage"})


class Tracing:
    """Makes spans, if anybody takes them."""

    def __init__(self) -> None:
        """Look up whether there is an SDK."""
        self._tracer = trace.get_tracer(spans.NAME) if spans.are_made() else None

    def request(self, scope: Scope) -> AbstractContextManager[Span | None]:
        """Return the span of a request, which is the current one as long as it is entered."""
        return nullcontext() if self._tracer is None else self._request(self._tracer, scope)

    @contextmanager
    def _request(self, tracer: trace.Tracer, scope: Scope) -> Iterator[Span]:
        headers = ((name.decode("latin-1"), value) for name, value in scope["headers"])
        carrier = {name: value.decode("latin-1") for name, value in headers if name in CARRIED}
        method: str = scope["method"]
        with tracer.start_as_current_span(
            method,
            context=extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method},
            record_exception=False,  # its text may hold what was sent
        ) as span:
            yield span

    def around(self, events: Sequence[NewEvent]) -> AbstractContextManager[object]:
        """Return the span of an append, if it belongs to a request that is traced."""
        if self._tracer is None or not trace.get_current_span().is_recording():
            return nullcontext()
        attributes = {"events": len(events)}
        return self._tracer.start_as_current_span(APPEND, attributes=attributes)


def answered(span: Span | None, method: str, route: str, status: int) -> None:
    """Put what became of a request into its span."""
    if span is None:
        return
    span.update_name(f"{method} {route}")
    span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(StatusCode.ERROR)
