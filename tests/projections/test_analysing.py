"""Little for each event: plans that fit grown tables, few pings, no batches for nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from ledger.domain.users import LoginSucceeded, UserRegistered
from ledger.event import Event
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections import analysing, projector
from projections import database as database_module
from projections.database import Database
from projections.groups import MARKS, POSTINGS, TRADING
from projections.projector import Projector, wait_visible
from tests.projections.support import an_id, append

USERS = 400
LOGINS = 1600
LOOK_UPS_MAX = 100
"""Index entries of users read for each event; walking them all reads up to USERS."""

_READ = sa.text("SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'users'")


def registered(number: int) -> UserRegistered:
    """Return the first event of a user."""
    return UserRegistered(
        user_id=an_id(f"user {number}"), username=f"user{number}", email=f"{number}@example.org",
        password_hash="x",
    )  # fmt: skip


def history() -> list[Event]:
    """Return events after which each row of the audit log refers to one of many users."""
    logins = (
        LoginSucceeded(user_id=an_id(f"user {n % USERS}"), attempt_id=an_id(f"attempt {n}"))
        for n in range(LOGINS)
    )
    return [*map(registered, range(USERS)), *logins]


async def index_entries_read(url: str, batch_size: int) -> int:
    """Fold the history on empty tables, and return how many entries of users' indexes that read."""
    settings = Settings(database_url=url, pool_size=1, pool_overflow=1)
    async with open_journal(settings) as journal, Database(settings) as database:
        await append(journal, history())
        await Projector(database, journal, TRADING, batch_size=batch_size).catch_up()
        async with database.engine.connect() as connection:
            await connection.execute(sa.text("SELECT pg_stat_force_next_flush()"))
            await connection.rollback()
            return int((await connection.execute(_READ)).scalar_one())


async def test_plans_made_on_empty_tables_are_not_kept(postgres_url: str) -> None:
    """Checks of foreign keys find the one user by key once there are many, not after an hour."""
    read = await index_entries_read(postgres_url, batch_size=100)
    assert read < LOOK_UPS_MAX * (USERS + LOGINS)


def count_pings(monkeypatch: pytest.MonkeyPatch, database: Database) -> list[Any]:
    """Return a list to which each ping of a pooled connection adds one."""
    pings: list[Any] = []
    dialect = database.engine.dialect
    plain = dialect.do_ping

    def ping(connection: Any) -> bool:
        pings.append(connection)
        return plain(connection)

    monkeypatch.setattr(dialect, "do_ping", ping)
    return pings


@pytest.mark.parametrize(("for_batches", "pings_count"), [(True, 0), (False, 2)])
async def test_a_batch_does_not_try_out_a_connection_that_was_just_used(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, for_batches: bool, pings_count: int
) -> None:
    """Readers have connections pinged each time, projectors only after a while."""
    monkeypatch.setattr(database_module, "PING_IDLE_SECONDS", 60.0)
    async with Database(settings, for_batches=for_batches) as database:
        pings = count_pings(monkeypatch, database)
        for _ in range(3):
            assert (await database.health()).healthy
        assert len(pings) == pings_count


@pytest.mark.parametrize("for_batches", [True, False])
async def test_a_connection_lost_while_idle_is_made_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, for_batches: bool
) -> None:
    """Whoever comes back after a while meets no error where the server ended the connection."""
    monkeypatch.setattr(database_module, "PING_IDLE_SECONDS", 0.0)
    async with Database(Settings(database_url=postgres_url), for_batches=for_batches) as database:
        async with database.engine.connect() as connection:
            pid = (await connection.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one()
        await end_backend(postgres_url, pid)
        async with database.snapshot() as connection:
            assert (await connection.execute(sa.text("SELECT 1"))).scalar_one() == 1


@pytest.mark.parametrize(
    ("for_batches", "waits", "is_off"),
    [(True, True, False), (True, False, True), (False, False, False)],
)
async def test_only_batches_are_committed_without_waiting_for_the_disk(
    postgres_url: str, for_batches: bool, waits: bool, is_off: bool
) -> None:
    """What can be folded again may be lost in a crash, if so set; nothing else may."""
    settings = Settings(database_url=postgres_url, projector_waits_for_disk=waits)
    async with (
        Database(settings, for_batches=for_batches) as database,
        database.transaction() as connection,
    ):
        shown = await connection.execute(sa.text("SELECT setting, source FROM pg_settings"
            " WHERE name = 'synchronous_commit'"))  # fmt: skip
        setting, source = shown.one()
    assert (setting == "off" and source == "client") == is_off


async def end_backend(url: str, pid: int) -> None:
    """Let the server end a connection, and wait until it is gone."""
    connection = await asyncpg.connect(url)
    await connection.execute("SELECT pg_terminate_backend($1, 10000)", pid)
    await connection.close()


async def test_a_group_that_events_do_not_concern_lets_others_work(
    journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It pauses after a batch with nothing for it, and only then."""
    paused: list[str] = []

    async def noted_pause(_stopping: asyncio.Event, seconds: float) -> None:
        assert seconds == projector.UNCONCERNED_SECONDS
        paused.append("now")

    monkeypatch.setattr(projector, "pause", noted_pause)
    await append(journal, history()[:10])
    for group, pauses in ((TRADING, 0), (MARKS, 1), (POSTINGS, 1)):
        paused.clear()
        stopping = asyncio.Event()
        running = asyncio.create_task(Projector(database, journal, group).run(stopping))
        await wait_visible(database, journal, 10, group, timeout_seconds=30)
        stopping.set()
        await running
        assert len(paused) == pauses


async def test_an_analysis_that_takes_too_long_stops_nothing(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where tables cannot be looked at in time, projecting goes on, and it is tried later."""
    settings = Settings(database_url=postgres_url)
    monkeypatch.setattr(projector, "ANALYSE_SECONDS", 0.02)
    refusals: list[Exception] = []
    plain = analysing.analyse_grown

    async def noting(connection: Any, *arguments: Any) -> None:
        await connection.execute(sa.text("SET LOCAL vacuum_cost_delay = 100"))
        await connection.execute(sa.text("SET LOCAL vacuum_cost_limit = 1"))
        try:
            await plain(connection, *arguments)
        except Exception as error:
            refusals.append(error)
            raise

    monkeypatch.setattr(projector, "analyse_grown", noting)
    async with open_journal(settings) as journal, Database(settings) as database:
        await append(journal, history())
        folded = await Projector(database, journal, TRADING, batch_size=500).catch_up()
        assert folded == await journal.size()
    assert len(refusals) >= 2
