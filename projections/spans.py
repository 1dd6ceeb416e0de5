"""Traces of projected batches: each names, by links, the requests whose events it has folded.

Without an SDK of OpenTelemetry in the process nothing is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from opentelemetry import trace
from opentelemetry.trace import (
    Link,
    NoOpTracerProvider,
    ProxyTracerProvider,
    SpanContext,
    TraceFlags,
)

from ledger.event import RecordedEvent

NAME = "trading-ledger"
BATCH = "projection.batch"
LINKS_MAX = 128
_TRACED = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})")
"""The id of a request that was traced: its trace and its span."""


def are_made() -> bool:
    """Whether this process has something that takes spans."""
    provider = trace.get_tracer_provider()
    return not isinstance(provider, ProxyTracerProvider | NoOpTracerProvider)


def projected(
    group: str, journal: str, sizes: tuple[int, int], events: Iterable[RecordedEvent], began_ns: int
) -> None:
    """Tell of a batch from one size to another that was begun at `began_ns` and has just ended."""
    if not are_made():
        return
    names = {"group": group, "journal": journal}
    attributes: dict[str, str | int] = {**names, "from": sizes[0], "to": sizes[1]}
    links = list(islice(_links(events), LINKS_MAX))
    tracer = trace.get_tracer(NAME)
    span = tracer.start_span(BATCH, links=links, attributes=attributes, start_time=began_ns)
    span.end()


def _links(events: Iterable[RecordedEvent]) -> Iterator[Link]:
    """Yield a link to each traced request, once."""
    seen: set[str] = set()
    for event in events:
        request_id = event.metadata.request_id
        if request_id is None or request_id in seen:
            continue
        seen.add(request_id)
        if found := _TRACED.fullmatch(request_id):
            trace_id, span_id = (int(part, 16) for part in found.groups())
            sampled = TraceFlags(TraceFlags.SAMPLED)
            yield Link(SpanContext(trace_id, span_id, is_remote=True, trace_flags=sampled))
