"""The peers' own rebuilds of the same read models from the same events.

Each is given the events of a history as its own store holds them, and processes as many as it can
in a given time, as its documentation says: one transaction for each event with `eventsourcing`,
one for each batch with Emmett. Both run the statements of `peer_statements.json`.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast
from uuid import UUID, uuid5

import asyncpg
from eventsourcing.application import Application
from eventsourcing.domain import DomainEvent
from eventsourcing.persistence import StoredEvent, Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from sqlalchemy import make_url

from benchmarks.history import NULL, Plan, rows
from tests.postgres import PostgresServer

HERE = Path(__file__).parent
STATEMENTS: dict[str, list[str]] = json.loads((HERE / "peer_statements.json").read_text())
TABLES = (HERE / "peer_tables.sql").read_text()
EMMETT = HERE / "emmett"
EMMETT_BATCH = 1000
"""Larger than its default of 100: that is several times slower, since it sorts for each batch."""

EVENTS_PER_SECOND_MAX = {"eventsourcing": 2_500, "Emmett": 3_500}
"""More than either is known to do here; so many are stored for each second that it is given."""
STREAM_IDS = UUID("6f6f3a1e-5a0e-4c5c-8a7f-0d2a9f0c2b11")
INSERTED_AT_ONCE = 1000
POLL_SECONDS = 0.1


class Pace(NamedTuple):
    """How many events were projected in how long."""

    events: int
    seconds: float

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds


class Happened(NamedTuple):
    """An event as the peers store it: its fields, and what belongs to all of them."""

    event_id: str
    stream: str
    version: int
    type: str
    occurred_at: str
    metadata: dict[str, str]
    data: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """What the statements are about; Emmett's script makes the same."""
        quantity = self.data.get("quantity")
        sold = self.data.get("action") == "sell" and quantity is not None
        return self.data | {
            "type": self.type,
            "event_id": self.event_id,
            "stream": self.stream,
            "occurred_at": self.occurred_at,
            "ip_address": self.metadata.get("ip_address"),
            "request_id": self.metadata.get("request_id"),
            "signed_quantity": f"-{quantity}" if sold else quantity,
            "details": json.dumps(self.data),
        }


def happened(plan: Plan, count: int) -> Iterator[Happened]:
    """Yield the first `count` events of the history."""
    for row, _ in islice(rows(plan._replace(encrypted=False)), count):
        _, _, event_id, stream, version, kind, _, occurred_at, _, metadata, body = row
        fields = json.loads(body)
        del fields["type"]
        known = {} if metadata == NULL else json.loads(metadata)
        yield Happened(event_id, stream, int(version), kind, occurred_at, known, fields)


class Recorded(DomainEvent):
    """One event of the history among the peer's own; the fields are text, as JSON has them."""

    event_id: str
    stream: str
    type: str
    occurred_at: str
    metadata: dict[str, str]
    data: dict[str, Any]


class Trading(Application[UUID]):
    """The peer's application, whose events are projected."""


class Tables(PostgresTrackingRecorder):
    """The peer's materialised view: tables, and how far they are."""

    statements: ClassVar[dict[str, list[tuple[str, list[str]]]]] = {}

    def record(self, values: dict[str, Any], tracking: Tracking) -> None:
        """Project one event and note its place, in one transaction."""
        with self.datastore.transaction(commit=True) as cursor:
            for statement, names in self.statements[values["type"]]:
                cursor.execute(statement, [values.get(name) for name in names], prepare=True)
            self._insert_tracking(cursor, tracking)


class ReadModels(Projection[Tables]):
    """The peer's projection."""

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        """Hand the event to the tables."""
        own = domain_event
        it = Happened(
            own.event_id, own.stream, 0, own.type, own.occurred_at, own.metadata, own.data
        )
        self.view.record(it.values, tracking)


def _positional(statement: str) -> tuple[str, list[str]]:
    """Return a statement as psycopg reads it, and the names of its parameters in order."""
    names: list[str] = []

    def place(match: re.Match[str]) -> str:
        names.append(match[1])
        return "%s"

    return re.sub(r"(?<!:):([a-z_]+)", place, statement), names


def eventsourcing(server: PostgresServer, plan: Plan, seconds: float) -> Pace:
    """Measure ProjectionRunner on PostgreSQL; the store is made anew."""
    url = make_url(server.create_database())
    count = min(plan.events, int(seconds * EVENTS_PER_SECOND_MAX["eventsourcing"]))
    Tables.statements = {
        name: [_positional(statement) for statement in listed]
        for name, listed in STATEMENTS.items()
    }
    server.psql(TABLES, str(url.database))
    environment = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(url.database),
        "POSTGRES_HOST": str(url.host),
        "POSTGRES_PORT": str(url.port),
        "POSTGRES_USER": str(url.username),
        "POSTGRES_PASSWORD": "none",
        "POSTGRES_SINGLE_ROW_TRACKING": "t",
    }
    last = _store(environment, plan, count)
    pace = _run(environment, last, seconds)
    server.drop_database(str(url.database))
    return pace


def _store(environment: dict[str, str], plan: Plan, count: int) -> int:
    """Store the events as the application's own; return the last notification's id."""
    application = Trading(env=environment)
    mapper, recorder, last = application.mapper, application.recorder, 0
    source = happened(plan, count)
    while chunk := list(islice(source, INSERTED_AT_ONCE)):
        stored: list[StoredEvent] = [mapper.to_stored_event(_as_own(each)) for each in chunk]
        last = (recorder.insert_events(stored) or [last])[-1]
    application.close()
    return last


def _as_own(event: Happened) -> Any:
    stream_id = uuid5(STREAM_IDS, event.stream)
    return cast("Any", Recorded)(  # its fields become arguments at run time
        originator_id=stream_id,
        originator_version=event.version,
        timestamp=datetime.now(UTC),
        event_id=event.event_id,
        stream=event.stream,
        type=event.type,
        occurred_at=event.occurred_at,
        metadata=event.metadata,
        data=event.data,
    )


def _run(environment: dict[str, str], last: int, seconds: float) -> Pace:
    began = time.perf_counter()
    with ProjectionRunner(
        application_class=Trading, projection_class=ReadModels, view_class=Tables, env=environment
    ) as runner:
        done = 0
        while done < last and time.perf_counter() < began + seconds:
            time.sleep(POLL_SECONDS)
            assert not runner.is_interrupted.is_set(), "the projection failed"
            done = runner.view.max_tracking_id("Trading") or 0
        return Pace(done, time.perf_counter() - began)


def emmett(server: PostgresServer, plan: Plan, seconds: float) -> Pace | None:
    """Measure Emmett's rebuild; None where node or npm is missing, or the packages are."""
    if not all(map(shutil.which, ("node", "npm"))) or not _installed():
        return None
    url = server.create_database()
    count = min(plan.events, int(seconds * EVENTS_PER_SECOND_MAX["Emmett"]))
    name = str(make_url(url).database)
    server.psql(TABLES, name)
    _node("schema", url)
    asyncio.run(_store_messages(url, plan, count))
    found = json.loads(_node("rebuild", url, str(seconds), str(EMMETT_BATCH)))
    server.drop_database(name)
    return Pace(found["events"], found["seconds"])


def _installed() -> bool:
    """Install Emmett beside its script, unless that was done before; return whether it is there."""
    if (EMMETT / "node_modules").exists():
        return True
    command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
    done = subprocess.run(command, cwd=EMMETT, timeout=300, check=False, stdout=sys.stderr)
    return done.returncode == 0


def _node(*arguments: str) -> str:
    command = ["node", "rebuild.mjs", *arguments]
    done = subprocess.run(
        command, cwd=EMMETT, timeout=600, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.splitlines()[-1] if done.stdout else ""


async def _store_messages(url: str, plan: Plan, count: int) -> None:
    """Store the events as Emmett's messages, in the order of their places."""
    connection = await asyncpg.connect(url)
    made = (
        f"{each.version}\t{place}\t3\t{each.stream}\t1\t{each.event_id}\t{each.type}\t"
        f"{json.dumps(each.data, ensure_ascii=False)}\t"
        f"{json.dumps(each.metadata | {'occurred_at': each.occurred_at})}\n"
        for place, each in enumerate(happened(plan, count), 1)
    )

    async def lines() -> Any:
        while chunk := list(islice(made, INSERTED_AT_ONCE)):
            yield "".join(chunk).encode()

    await connection.copy_to_table(
        "emt_messages",
        source=lines(),
        format="text",
        columns=(
            "stream_position", "global_position", "transaction_id", "stream_id",
            "message_schema_version", "message_id", "message_type", "message_data",
            "message_metadata",
        ),
    )  # fmt: skip
    await connection.execute("VACUUM (ANALYZE) emt_messages")
    await connection.close()
