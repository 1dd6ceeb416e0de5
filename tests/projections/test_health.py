"""What is said about the read models' state, to people and to health checks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from ledger.errors import JournalNotFound
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections import checkpoints, leases
from projections.bookkeeping import checkpoints as table
from projections.bookkeeping import parked_keys
from projections.cli import app
from projections.database import Database
from projections.dialects import time_now
from projections.fold import Group
from projections.groups import GROUPS, MARKS, POSTINGS, TRADING
from projections.health import (
    PARKED_SHOWN_MAX,
    STALLED_AFTER_LEASES,
    PairStatus,
    health,
    judge,
    pair_statuses,
)
from projections.projector import Projector
from tests.projections.random_events import random_events
from tests.projections.support import an_id, append

LEASE_SECONDS = 0.001
"""Nothing here has to wait, to be stale or stalled."""


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings with the shortest of leases."""
    return Settings(database_url=database_url, lease_seconds=LEASE_SECONDS)


async def status_of(database: Database, group: Group, journal: str = "main") -> PairStatus:
    """Return what is said about one pair."""
    [found] = await pair_statuses(database, groups=[group], journal_names=[journal])
    return found


async def set_checkpoint(database: Database, **values: object) -> None:
    """Change the rows of all checkpoints."""
    async with database.transaction() as connection:
        await connection.execute(table.update().values(**values))


async def test_how_far_each_group_is(journal: Journal, database: Database) -> None:
    """Lag counts against the journal's end, in events and as the age of the first that lacks."""
    await journal.store.create_journal("empty")
    size = await append(journal, random_events(Random(1), 50))
    await Projector(database, journal, MARKS).catch_up()
    await Projector(database, journal, TRADING).catch_up(20)
    found = await pair_statuses(database)
    seen = [(each.journal, each.group, each.checkpoint, each.lag_events) for each in found]
    assert seen == [
        ("empty", "trading", 0, 0),
        ("empty", "marks", 0, 0),
        ("empty", "postings", 0, 0),
        ("main", "trading", 20, size - 20),
        ("main", "marks", size, 0),
        ("main", "postings", 0, size),
    ]
    [lacked] = [event async for event in journal.read(20, 21)]
    age_seconds = (datetime.now(UTC) - lacked.recorded_at).total_seconds()
    assert found[3].lag_seconds == pytest.approx(age_seconds, abs=5)
    assert found[3].lag_seconds > 0
    assert [each.lag_seconds for each in found if each.lag_events == 0] == [0.0] * 4


async def test_leases_are_held_stale_or_free(journal: Journal, database: Database) -> None:
    """A lease that has ended without being given back is stale, and not well."""
    await append(journal, random_events(Random(2), 10))
    await Projector(database, journal, MARKS).catch_up()
    assert (await status_of(database, MARKS)).lease == "free"
    async with database.transaction() as connection:
        [seen] = await leases.look(connection, 600)
        lease = await leases.claim(connection, seen, "somebody", 600)
    assert lease is not None
    held = await status_of(database, MARKS)
    assert (held.lease, held.worker_id, held.epoch) == ("held", "somebody", 1)
    assert judge([held]).ok
    async with database.transaction() as connection:
        await connection.execute(
            table.update().values(lease_expires_at=time_now(connection.dialect, -1))
        )
    stale = await status_of(database, MARKS)
    assert stale.lease == "stale"
    assert judge([stale]).reasons == (
        "marks of journal main is left by worker somebody, whose lease is over",
    )
    async with database.transaction() as connection:
        await leases.give_back(connection, lease)
    assert judge([await status_of(database, MARKS)]).ok


async def test_what_stands_still_is_stalled(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Events that wait for several leases while the checkpoint stands still; not just one of it."""
    size = await append(journal, random_events(Random(3), 30))
    await Projector(database, journal, MARKS).catch_up(10)
    assert (await status_of(database, POSTINGS)).stalled  # nobody has ever projected it
    async with Database(settings.model_copy(update={"lease_seconds": 600})) as patient:
        await set_checkpoint(patient, updated_at=datetime(2020, 1, 1, tzinfo=UTC))
        assert not (await status_of(patient, MARKS)).stalled  # the events are new
    stalled = await status_of(database, MARKS)
    assert stalled.stalled
    assert "marks of journal main is stalled at checkpoint 10" in judge([stalled]).reasons[0]
    await set_checkpoint(database, updated_at=datetime(2100, 1, 1, tzinfo=UTC))
    assert not (await status_of(database, MARKS)).stalled  # it moves
    await Projector(database, journal, MARKS).catch_up()
    await set_checkpoint(database, updated_at=datetime(2020, 1, 1, tzinfo=UTC))
    at_end = await status_of(database, MARKS)
    assert (at_end.stalled, at_end.checkpoint) == (False, size)
    assert STALLED_AFTER_LEASES * LEASE_SECONDS < 1


async def test_a_pair_without_an_owner(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """It is told once it is free for longer than a lease while workers live, or events wait."""
    await append(journal, random_events(Random(6), 10))
    await Projector(database, journal, MARKS).catch_up()
    fault = "marks of journal main has no owner, for longer than a lease"
    assert judge([await status_of(database, MARKS)]).ok  # nobody works, and nothing is to do
    assert any("no owner" in each for each in judge([await status_of(database, POSTINGS)]).reasons)
    async with database.transaction() as connection:
        await leases.register(connection, "somebody", 600)
    assert judge([await status_of(database, MARKS)]).reasons == (fault,)
    async with Database(settings.model_copy(update={"lease_seconds": 600})) as patient:
        assert judge([await status_of(patient, MARKS)]).ok


async def test_parked_keys_are_counted_and_listed(journal: Journal, database: Database) -> None:
    """Each pair has its own; those with an error come first, and of many the first are shown."""
    count = PARKED_SHOWN_MAX + 20
    async with database.transaction() as connection:
        await checkpoints.create(connection, journal.journal_id, TRADING)
        await connection.execute(parked_keys.insert(), [parked(number) for number in range(count)])
    found = await status_of(database, TRADING)
    assert (found.parked, len(found.parked_keys)) == (count, PARKED_SHOWN_MAX)
    first = found.parked_keys[0]
    assert (first.table, first.column, first.value) == ("orders", "order_id", "7")
    assert (first.offset, first.error, first.waiting) == (7, "ValueError: odd", 8)
    assert found.parked_keys[1].waits_for == "orders order_id=7"
    assert judge([found]).reasons == (f"trading of journal main has {count} parked keys",)
    assert (await status_of(database, MARKS)).parked == 0


def parked(number: int) -> dict[str, object]:
    """Return a row: the seventh has an error, the others wait for it."""
    return {
        "journal_id": 1,
        "group_name": "trading",
        "table_name": "orders",
        "column_name": "order_id",
        "value": str(number),
        "offset": number,
        "event_id": an_id(str(number)),
        "event_type": "OrderPlaced",
        "error": "ValueError: odd" if number == 7 else None,
        "waits_for": None if number == 7 else "orders order_id=7",
        "waiting": number + 1,
        "parked_at": datetime.now(UTC),
    }


async def test_other_reasons_not_to_be_well(journal: Journal, database: Database) -> None:
    """Tables of another version, a checkpoint beyond the journal's end, more lag than allowed."""
    size = await append(journal, random_events(Random(4), 10))
    for group in GROUPS.values():
        await Projector(database, journal, group).catch_up()
    assert await health(database, lag_seconds_max=0) == judge(await pair_statuses(database))
    assert (await health(database)).ok
    await set_checkpoint(database, fold_version="other", size=size + 1)
    assert judge([await status_of(database, MARKS)]).reasons == (
        f"marks of journal main is at checkpoint {size + 1}, beyond the journal's size {size}",
        "marks of journal main has tables of version other of the fold, not this program's",
    )
    await set_checkpoint(database, fold_version=MARKS.fold_version, size=size - 1)
    behind = {"lag_seconds": 7, "stalled": False, "ownerless": False}
    found = msgspec.structs.replace(await status_of(database, MARKS), **behind)
    assert judge([found], 7).ok
    assert judge([found], 6).reasons == ("marks of journal main is 7.0 s behind",)


async def test_a_health_check_answers_without_a_database() -> None:
    """That the database is away is an answer, not an error; so is a journal that is not there."""
    url = "postgresql://nobody@127.0.0.1:1/none"
    async with Database(Settings(database_url=url)) as database:
        verdict = await health(database)
    assert not verdict.ok
    assert len(verdict.reasons) == 1


async def test_a_journal_that_is_not_there(database: Database) -> None:
    """A name that no journal has is an error for people, and a reason for health checks."""
    with pytest.raises(JournalNotFound, match="nowhere"):
        await pair_statuses(database, journal_names=["nowhere"])
    assert "nowhere" in (await health(database, journal_names=["nowhere"])).reasons[0]


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What runs `projections` with some arguments."""
    monkeypatch.setenv("LEDGER_DATABASE_URL", database_url)
    monkeypatch.setenv("LEDGER_LEASE_SECONDS", str(LEASE_SECONDS))
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_the_command(settings: Settings, command: Callable[..., Any]) -> None:
    """`status` prints a table or JSON; with --check the exit code says whether all is well."""
    size = asyncio.run(fill(settings))
    checked = command("status", "--check", "--json")
    assert checked.exit_code == 1
    assert "trading of journal main is stalled at checkpoint 0" in checked.stderr
    first = json.loads(checked.stdout)[0]
    assert {"group", "checkpoint", "size", "lag_events", "lag_seconds"} <= set(first)
    done = command("run", "--once")
    assert done.stdout.splitlines()[:3] == [f"{group}: {size} events" for group in GROUPS]
    assert command("status", "--check").exit_code == 0
    asyncio.run(park(settings, 7))
    shown = command("status", "--journal", "main")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "parked from offset 7 on (OrderPlaced): ValueError: odd" in shown.stdout
    assert "other" not in shown.stdout
    assert command("status", "--check").exit_code == 1
    assert isinstance(command("status", "--journal", "nowhere").exception, JournalNotFound)
    assert isinstance(command("run", "--once", "-j", "nowhere").exception, JournalNotFound)


async def fill(settings: Settings) -> int:
    """Append some events, and make another journal; return the size."""
    async with open_journal(settings) as journal:
        await journal.store.create_journal("other")
        return await append(journal, random_events(Random(5), 20))


async def park(settings: Settings, number: int) -> None:
    """Park a key."""
    async with Database(settings) as database, database.transaction() as connection:
        await connection.execute(parked_keys.insert(), [parked(number)])
