"""One trace from the caller's request over its append to the batch that projects it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ledger.event import RecordedEvent
from ledger.http import install
from ledger.http.routes import orders
from ledger.settings import Settings
from projections import spans
from projections.database import Database
from projections.groups import TRADING
from projections.projector import Projector
from projections.serving.metrics import Metrics
from projections.serving.observing import Looking, Observing
from projections.serving.tracing import UNTRACED, Tracing
from tests.ledger.http.applications import client_of
from tests.ledger.http.service import Service
from tests.ledger.services.support import a_ledger

TRACE, PARENT = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
TRACEPARENT = f"00-{TRACE:032x}-{PARENT:016x}-01"
ORDER = {"token": "BTC", "action": "buy", "order_type": "limit", "quantity": "1", "price": "2"}


class Counted:
    """Stands for what counts batches."""

    def stored(self, outcomes: Any, seconds: Any) -> None:
        """Count nothing."""


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What keeps all spans that end, for the time of a test."""
    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return made


async def observed(url: str) -> AsyncIterator[Service]:
    """Open a service whose requests and appends are looked at."""
    app, tracing = FastAPI(telemetry=UNTRACED), Tracing()
    install(app, Settings(database_url=url))
    app.include_router(orders.router)
    app.add_middleware(Observing, metrics=Metrics(), tracing=tracing, log=lambda *_, **__: None)
    async with a_ledger(url) as ledger:
        app.state.ledger = ledger
        ledger.journal.observer = Looking(Counted(), tracing)  # type: ignore[arg-type]
        async with client_of(app) as client:
            yield Service(app, ledger, client)


@pytest.fixture
async def traced(exporter: InMemorySpanExporter, sqlite_url: str) -> AsyncIterator[Service]:
    """A service in a process with an SDK."""
    async for service in observed(sqlite_url):
        yield service


@pytest.fixture
async def untraced(sqlite_url: str) -> AsyncIterator[Service]:
    """A service in a process without."""
    async for service in observed(sqlite_url):
        yield service


async def place(service: Service, **headers: str) -> list[RecordedEvent]:
    """Place an order by a key of its user; return the events of the request."""
    key = await service.key("orders:write")
    size = await service.ledger.journal.size()
    answer = await service.post("/orders", key, ORDER, **headers)
    assert answer.status_code == 201, answer.text
    return [event async for event in service.ledger.journal.read(size)]


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """Return the spans of a name."""
    return [each for each in exporter.get_finished_spans() if each.name == name]


async def test_a_request_its_appends_and_their_projection_are_one_story(
    traced: Service, exporter: InMemorySpanExporter, sqlite_url: str
) -> None:
    """The request goes on with the caller's trace, its appends are in it, the batch links to it."""
    events = await place(traced, traceparent=TRACEPARENT)
    [request] = named(exporter, "POST /orders")
    assert request.context is not None
    assert request.context.trace_id == TRACE
    assert request.parent is not None
    assert request.parent.span_id == PARENT
    assert dict(request.attributes or {})["http.response.status_code"] == 201
    appends = named(exporter, "journal.append")
    assert len(appends) == 2
    assert {each.parent and each.parent.span_id for each in appends} == {request.context.span_id}
    for event in events:
        assert event.metadata.request_id == f"{TRACE:032x}-{request.context.span_id:016x}"
    assert events[-1].metadata.correlation_id == UUID(int=TRACE)

    async with Database(Settings(database_url=sqlite_url)) as database:
        await Projector(database, traced.ledger.journal, TRADING).catch_up()
    [batch] = named(exporter, "projection.batch")
    [link] = batch.links
    assert (link.context.trace_id, link.context.span_id) == (TRACE, request.context.span_id)
    assert dict(batch.attributes or {}) == {
        "group": "trading",
        "journal": "main",
        "from": 0,
        "to": events[-1].offset + 1,
    }


async def test_a_request_without_a_trace_begins_one(
    traced: Service, exporter: InMemorySpanExporter
) -> None:
    """Each gets a trace of its own, under whose id its events are correlated."""
    first, second = await place(traced), await place(traced)
    requests = named(exporter, "POST /orders")
    ids = [each.context.trace_id for each in requests if each.context is not None]
    assert len(set(ids)) == 2
    assert [e[-1].metadata.correlation_id for e in (first, second)] == [UUID(int=i) for i in ids]


async def test_appends_outside_of_requests_make_no_spans(
    traced: Service, exporter: InMemorySpanExporter
) -> None:
    """What a background service appends belongs to no trace."""
    await traced.user()
    assert exporter.get_finished_spans() == ()


async def test_without_an_sdk_nothing_is_made(untraced: Service) -> None:
    """Requests are then named as ever, and there is nothing to enter around an append."""
    events = await place(untraced, traceparent=TRACEPARENT)
    assert events[-1].metadata.correlation_id == UUID(int=TRACE)
    request_id = events[-1].metadata.request_id
    assert request_id is not None
    assert "-7" in request_id  # a UUID of version 7
    assert not spans.are_made()
    assert isinstance(Tracing().around(()), nullcontext)
