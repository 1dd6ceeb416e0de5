"""The history that the benchmarks rebuild: what is measured must be what the journal would hold."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import make_url

from benchmarks.history import NULL, START, Lane, Plan, load, rows
from ledger.codec import decode_bodies, decode_metadata, encode_event, encode_metadata
from ledger.domain.orders import OrderEvent, OrderPlaced
from ledger.event import Event, NewEvent, RecordedEvent
from ledger.journal import Journal
from ledger.prepare import prepare
from projections.database import Database
from projections.groups import GROUPS, TRADING
from projections.orders import Order
from projections.positions import Position
from projections.projector import Projector
from projections.verification import verify
from tests.ledger.support import Clock, opened, settings_for
from tests.postgres import PostgresServer

SMALL = Plan(1500, seed=7)
MANY = Plan(60_000, seed=7, encrypted=False)
ORDERS = ("events", "offset"), ("event_tags", "tag"), ("subject_keys", "subject")


def events_of(plan: Plan) -> list[tuple[list[str], Event]]:
    """Return each row with the event that its body holds."""
    made = [event for event, _ in rows(plan)]
    decoded = decode_bodies([row[-1].encode() for row in made], range(len(made)))
    return list(zip(made, decoded, strict=True))


def test_bodies_are_those_of_the_codec() -> None:
    """What a template makes is, byte by byte, what encoding the event gives."""
    for row, event in events_of(MANY):
        assert encode_event(event) == row[-1].encode()
        assert type(event).__name__ == row[5]
        if row[-2] != NULL:
            stored = row[-2].encode()
            assert encode_metadata(decode_metadata(stored)) == stored


def test_tags_and_streams_are_those_of_the_events() -> None:
    """Each event stands in its own stream, at the next version, with the tags that it declares."""
    versions: Counter[str] = Counter()
    for offset, (row, tags) in enumerate(rows(MANY)):
        [event] = decode_bodies([row[-1].encode()], [offset])
        [prepared] = prepare([NewEvent(event, row[3])], []).events
        versions[row[3]] += 1
        assert (row[1], row[4]) == (str(offset), str(versions[row[3]]))
        wanted = [(tag, str(kind), row[5], row[3]) for tag, kind in prepared.tags]
        assert [(tag[1], *tag[3:]) for tag in tags] == wanted
        assert all(tag[2] == row[1] for tag in tags)


def test_a_seed_stands_for_one_history() -> None:
    """The same plan gives the same rows, another seed others."""
    first, again, other = (
        list(Lane(plan, 0).blocks()) for plan in (SMALL, SMALL, Plan(1500, seed=8))
    )
    assert first == again
    assert first != other


def test_the_mix_is_that_of_the_plan() -> None:
    """About 35 % of the events are about orders, 60 % uses of keys, 5 % logins."""
    events = [event for _, event in events_of(MANY)]
    kinds = Counter(type(event).__name__ for event in events)
    logins = sum(count for name, count in kinds.items() if name.startswith("Login"))
    orders = sum(isinstance(event, OrderEvent) for event in events)
    assert 0.33 < orders / len(events) < 0.37
    assert 0.58 < kinds["ApiKeyUsed"] / len(events) < 0.62
    assert 0.04 < logins / len(events) < 0.06
    assert 0.09 < kinds[OrderPlaced.__name__] / len(events) < 0.11


def stored(url: str, table: str, order: str) -> list[dict[str, Any]]:
    """Return all rows of a table, as the database holds them."""
    query = f'SELECT * FROM {table} ORDER BY "{order}"'
    if table == "event_tags":
        query += ', "offset", kind'
    if url.startswith("sqlite"):
        connection = sqlite3.connect(str(make_url(url).database))
        cursor = connection.execute(query)
        names = [column[0] for column in cursor.description]
        found = [dict(zip(names, row, strict=True)) for row in cursor]
        connection.close()
        return found

    async def fetch() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(url)
        found = [dict(row) for row in await connection.fetch(query)]
        await connection.close()
        return found

    return asyncio.run(fetch())


async def append_again(source: list[RecordedEvent], journal: Journal, clock: Clock) -> None:
    """Append what was read, each event at the time at which it was recorded."""
    for event in source:
        clock.now = event.recorded_at
        await journal.append(
            NewEvent(event.event, event.stream, event.event_id, event.occurred_at, event.metadata)
        )


@pytest.fixture
def other_url(database_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a second database of the same kind."""
    if database_url.startswith("sqlite"):
        template: Path = request.getfixturevalue("migrated_sqlite")
        yield f"sqlite:///{shutil.copy(template, tmp_path / 'other.db')}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = server.create_database(template="migrated")
    yield url
    server.drop_database(url)


def test_loading_stores_what_appending_would(database_url: str, other_url: str) -> None:
    """All columns of all rows are the same as after appending the events with the same keys."""

    async def work() -> None:
        clock = Clock()
        async with opened(database_url) as source, opened(other_url, clock=clock) as copy:
            keys = await source.privacy.keys.table.all()
            await copy.privacy.keys.table.make(keys, START)
            await append_again([event async for event in source.read()], copy, clock)

    load(database_url, SMALL)
    asyncio.run(work())
    for table, order in ORDERS:
        assert stored(database_url, table, order) == stored(other_url, table, order)
    [loaded], [appended] = (stored(url, "journals", "name") for url in (database_url, other_url))
    assert loaded | {"created_at": 0} == appended | {"created_at": 0}
    assert len(stored(database_url, "events", "offset")) == SMALL.events


async def test_a_loaded_history_is_projected_and_verified(database_url: str) -> None:
    """The real projectors take the history, and no order or position has a misfit."""
    await asyncio.to_thread(load, database_url, SMALL)
    async with (
        opened(database_url) as journal,
        Database(settings_for(database_url)) as database,
    ):
        for group in GROUPS.values():
            assert await Projector(database, journal, group).catch_up() == SMALL.events
        found = await verify(database, journal, GROUPS.values())
    assert (found.differences, found.first) == (0, [])


def test_positions_live_as_positions_do() -> None:
    """They open, grow, shrink, close and flip; no fact of an order is out of place."""
    state = TRADING.state(1, "main")
    recorded = [
        RecordedEvent(
            offset, row[3], int(row[4]), UUID(row[2]), 1,
            datetime.fromisoformat(row[8]), datetime.fromisoformat(row[7]),
            decode_metadata(None), row[-1].encode(), event,
        )
        for offset, (row, event) in enumerate(events_of(MANY))
    ]  # fmt: skip
    TRADING.fold(state, recorded)
    cycles = list(state.rows(Position))
    books = Counter(cycle.book for cycle in cycles)
    assert max(books.values()) > 2
    assert {cycle.status for cycle in cycles} == {"open", "closed"}
    assert {cycle.exact_size > 0 for cycle in cycles if cycle.status == "open"} == {True, False}
    flags = {name for row in cycles for name in row.flags}
    assert flags == {"fee_in_other_currency"}
    assert not any(row.flags for row in state.rows(Order))
