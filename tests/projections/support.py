"""Recorded events without a journal, and what folding them gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import sqlalchemy as sa

from ledger.codec import encode_event
from ledger.domain.users import UserDeactivated, UserErased
from ledger.event import Event, Metadata, NewEvent, RecordedEvent
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections.database import Database
from projections.fold import Group
from projections.groups import TRADING
from projections.model import Model, values_of
from projections.projection import State
from projections.projector import Projector
from projections.replaying import fold_prefix

JOURNAL_ID, JOURNAL = 1, "main"
Run = Callable[..., tuple[int, str, str]]
"""Runs a program by its name, with arguments; returns exit code, output and errors."""

START = datetime(2026, 1, 1, tzinfo=UTC)


def an_id(name: str) -> UUID:
    """Return an id that is the same for the same name."""
    return uuid5(NAMESPACE_OID, name)


def record(
    events: Iterable[Event], first_offset: int = 0, metadata: Metadata | None = None
) -> list[RecordedEvent]:
    """Return the events as a journal would have recorded them, a second apart."""
    return [
        RecordedEvent(
            offset=offset,
            stream=event.stream() or "any",
            version=1,
            event_id=an_id(f"event {offset}"),
            schema_version=1,
            recorded_at=START + timedelta(seconds=offset),
            occurred_at=START + timedelta(seconds=offset),
            metadata=metadata or Metadata(),
            body=encode_event(event),
            event=event,
        )
        for offset, event in enumerate(events, first_offset)
    ]


def folded(events: Iterable[Event], group: Group = TRADING) -> State:
    """Return the state after these events."""
    state = group.state(JOURNAL_ID, JOURNAL)
    group.fold(state, record(events))
    for table in state.tables:
        group.finished(state, table)
    return state


def all_rows(events: Iterable[Event], model: type[Model]) -> list[Model]:
    """Return all rows of a table after these events, in the order in which they were made."""
    return list(folded(events).rows(model))


def one_row(events: Sequence[Event], model: type[Model]) -> Model:
    """Return the only row of a table after these events."""
    [row] = all_rows(events, model)
    return row


async def append(journal: Journal, events: Iterable[Event]) -> int:
    """Append the events, with an address and a request id; return the journal's size.

    Users are deactivated where they would be erased: after that, rows from before differ from the
    journal until they are scrubbed, which tests of erasing see to themselves.
    """
    metadata = Metadata(ip_address="192.0.2.7", request_id="request 1")
    new = [NewEvent(spared(event), metadata=metadata) for event in events]
    for start in range(0, len(new), 100):
        await journal.append(new[start : start + 100])
    return await journal.size()


def spared(event: Event) -> Event:
    """Return what is appended in place of an erasure, and any other event as it is."""
    return UserDeactivated(user_id=event.user_id) if isinstance(event, UserErased) else event


def fill(url: str, events: Iterable[Event]) -> None:
    """Append events to the default journal of a database."""

    async def work() -> None:
        async with open_journal(Settings(database_url=url)) as journal:
            await append(journal, events)

    asyncio.run(work())


async def live_tables(database: Database, group: Group) -> dict[str, dict[Any, dict[str, Any]]]:
    """Return the rows of a group's tables by key, read through SQLAlchemy."""
    found: dict[str, dict[Any, dict[str, Any]]] = {}
    async with database.snapshot() as connection:
        for each in group.projections:
            records = await connection.execute(sa.select(*each.table.columns))
            found[each.name] = {row[each.key]: dict(row) for row in records.mappings()}
    return found


async def tables_as_of(
    journal: Journal, group: Group, size: int
) -> dict[str, dict[Any, dict[str, Any]]]:
    """Return the same from a fold of the first `size` events."""
    state = await fold_prefix(journal, group, size)
    return {
        each.name: {
            getattr(row, each.key): values_of(row) for row in group.finished(state, each.name)
        }
        for each in group.projections
    }


async def assert_live_is_replay(journal: Journal, database: Database, group: Group) -> int:
    """Compare live tables with a replay to their checkpoint; return the checkpoint."""
    size = await Projector(database, journal, group).checkpoint()
    assert await live_tables(database, group) == await tables_as_of(journal, group, size)
    return size
