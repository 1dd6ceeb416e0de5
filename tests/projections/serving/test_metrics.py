"""What is measured, and that dashboards and alerts ask for nothing else."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message

from ledger.conditions import ExpectedVersion
from ledger.errors import InvalidEvent, Overloaded, VersionConflict
from ledger.journal import Journal, open_journal
from ledger.proof.log import default_origin
from ledger.proof.notes import SigningKey
from ledger.proof.sealer import Sealer
from ledger.settings import Settings
from ledger.stores import JournalInfo
from ledger.stores.opening import open_store
from projections.database import Database
from projections.groups import TRADING
from projections.operations import Operations
from projections.projector import Projector
from projections.serving.metrics import Metrics
from projections.serving.observing import Looking, Observing
from projections.serving.tracing import Tracing
from tests.ledger.support import known_note, note
from tests.projections.random_events import random_events
from tests.projections.support import append

DOCS = Path(__file__).parents[3] / "docs"
_NAME = re.compile(r"\b((?:ledger|projections|process)_[a-z_]+)\b")
_PART = re.compile(r"_(bucket|sum|count)$")
Samples = dict[tuple[str, ...], float]


@pytest.fixture
async def metrics(
    settings: Settings, journal: Journal, database: Database
) -> AsyncIterator[Metrics]:
    """Metrics of an open journal and its tables."""
    made, operations = Metrics(), Operations(settings, journal, database)
    journal.observer = Looking(made.watch(journal, database, operations), Tracing())
    yield made
    await operations.close()


async def samples(metrics: Metrics) -> Samples:
    """Return all samples by name and the values of their labels, in the order of their names."""
    text, _ = await metrics.text("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def test_appends_are_counted_by_what_became_of_them(
    journal: Journal, metrics: Metrics
) -> None:
    """Events, appends, conflicts by kind, duplicates, batches, and how long each append took."""
    await journal.append([note("a"), note("a")])
    known = known_note("x")
    await asyncio.gather(journal.append(known), *(journal.append(note("b")) for _ in range(9)))
    await journal.append(known)
    with pytest.raises(VersionConflict):
        await journal.append(note("a"), ExpectedVersion("a", 7))
    with pytest.raises(InvalidEvent):
        await journal.append([])
    found = await samples(metrics)
    assert found["ledger_events_appended_total", "main"] == 12
    assert found["ledger_appends_total", "main", "stored"] == 11
    assert found["ledger_appends_total", "main", "duplicate"] == 1
    assert found["ledger_appends_total", "main", "VersionConflict"] == 1
    assert found["ledger_appends_total", "main", "InvalidEvent"] == 1
    assert found["ledger_append_seconds_count", "main"] == 13
    assert found["ledger_append_seconds_bucket", "main", "+Inf"] == 13
    assert 0 < found["ledger_append_seconds_sum", "main"] < 60
    assert found["ledger_append_batch_events_sum", "main"] == 12
    assert found["ledger_append_queue_events", "main"] == 0


async def test_appends_that_never_got_into_the_queue_are_counted(
    settings: Settings, database: Database
) -> None:
    """One event waits while another is being stored; more are refused."""
    async with open_journal(settings.model_copy(update={"queue_events_max": 1})) as journal:
        made, operations = Metrics(), Operations(settings, journal, database)
        journal.observer = Looking(made.watch(journal, database, operations), Tracing())
        appends = (journal.append(note("a")) for _ in range(4))
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        refused = sum(isinstance(each, Overloaded) for each in outcomes)
        found = await samples(made)
        await operations.close()
    assert refused > 0
    assert found["ledger_appends_total", "main", "Overloaded"] == refused
    assert found["ledger_appends_total", "main", "stored"] == 4 - refused


async def test_lag_and_seal_are_asked_for_when_the_metrics_are_read(
    journal: Journal, database: Database, metrics: Metrics
) -> None:
    """What only the database knows is as it stands at that moment."""
    size = await append(journal, random_events(Random(1), 30))
    found = await samples(metrics)
    assert found["projections_lag_events", "trading", "main"] == size
    assert found["ledger_journal_size", "main"] == size
    assert ("ledger_sealed_size", "main") not in found
    await Projector(database, journal, TRADING).catch_up()
    await Sealer(journal, SigningKey.generate(default_origin("main"))).catch_up()
    found = await samples(metrics)
    assert found["projections_lag_events", "trading", "main"] == 0
    assert found["projections_lag_events", "marks", "main"] == size
    assert found["projections_checkpoint", "trading", "main"] == size
    assert found["ledger_sealed_size", "main"] == size
    assert 0 <= found["ledger_signed_checkpoint_age_seconds", "main"] < 60
    assert found["ledger_database_up",] == 1


async def test_pools_say_what_is_lent_out(database: Database, metrics: Metrics) -> None:
    """A connection that is in use is seen."""
    before = await samples(metrics)
    async with database.snapshot():
        during = await samples(metrics)
    name = ("ledger_pool_connections_in_use", "read")
    assert during[name] == before[name] + 1
    assert during["ledger_pool_connections_max", "store"] > 0


async def test_metrics_outlive_the_database() -> None:
    """Where the database is away, they say so, and all that the process knows itself."""
    settings = Settings(database_url="postgresql://nobody@127.0.0.1:1/nothing")
    async with Database(settings) as database:
        journal = Journal(open_store(settings), JournalInfo(1, "main", 0, datetime.now(UTC)))
        made = Metrics()
        journal.observer = Looking(
            made.watch(journal, database, Operations(settings, journal, database)), Tracing()
        )
        found = await samples(made)
    assert found["ledger_database_up",] == 0
    assert found["ledger_append_queue_events", "main"] == 0


@pytest.mark.parametrize("version", ["", "abc", "1.x", "1.0.0"])
async def test_no_accepted_form_is_too_strange(version: str) -> None:
    """Whoever asks for a version that there is not gets one that there is."""
    text, _ = await Metrics().text(f"application/openmetrics-text; version={version}")
    assert b"process_start_time_seconds" in text


class Route:
    """What a router finds."""

    path_format = "/orders/{order_id}"


async def answer(metrics: Metrics, status: int, path: str, route: Route | None) -> None:
    """Let a request be answered."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = route
        await send({"type": "http.response.start", "status": status, "headers": []})

    async def send(message: Message) -> None:
        assert message["status"] == status

    observed = Observing(app, metrics=metrics, tracing=Tracing(), log=lambda *_, **__: None)
    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    await observed(scope, nullcontext, send)  # type: ignore[arg-type]


async def test_requests_are_counted_by_template(metrics: Metrics) -> None:
    """Paths that were sent are no labels: whoever sends many makes no more metrics."""
    for number in range(20):
        await answer(metrics, 200, f"/orders/{number}", Route())
        await answer(metrics, 404, f"/secret-{number}", None)
    found = await samples(metrics)
    assert found["ledger_http_requests_total", "GET", "/orders/{order_id}", "200"] == 20
    assert found["ledger_http_requests_total", "GET", "(none)", "404"] == 20
    assert found["ledger_http_request_seconds_count", "GET", "(none)"] == 20
    assert found["ledger_http_requests_in_progress",] == 0
    assert not any("secret" in part for key in found for part in key)


async def test_dashboards_and_alerts_name_only_what_is_measured(
    journal: Journal, database: Database, metrics: Metrics
) -> None:
    """Each metric in a query exists; each alert has a text, each panel a query; the docs agree."""
    await append(journal, random_events(Random(1), 10))
    await Projector(database, journal, TRADING).catch_up()
    await Sealer(journal, SigningKey.generate(default_origin("main"))).catch_up()
    await answer(metrics, 200, "/", Route())
    measured = {name for name, *_ in await samples(metrics)}
    assert _named(_queries()) <= measured
    documented = set(_NAME.findall((DOCS / "observability.md").read_text()))
    own = (name for name in measured if not name.startswith("process_"))
    families = {_PART.sub("", name) for name in own if not name.endswith("_created")}
    assert families - documented == set()


def _queries() -> list[str]:
    dashboard = json.loads((DOCS / "operations" / "grafana.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((DOCS / "operations" / "alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(targets) >= 15
    assert len(alerts) >= 10
    for alert in alerts:
        assert alert["annotations"].keys() == {"summary", "description"}
        assert alert["labels"]["severity"] in {"warning", "critical"}
    return [each["expr"] for each in (*targets, *alerts)]


def _named(queries: Iterable[str]) -> set[str]:
    found = {name for query in queries for name in _NAME.findall(query)}
    assert found
    return found
