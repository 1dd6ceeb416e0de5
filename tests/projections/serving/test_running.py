"""What runs beside the requests: it outlasts outages, and its state decides on readiness."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from ledger.journal import Journal, open_journal
from ledger.proof.keys import KeyUnusable, read_key, write_key
from ledger.proof.log import log_of
from ledger.proof.notes import SigningKey
from ledger.proof.sealer import CannotSeal, Sealer
from ledger.settings import Settings
from projections.database import Database
from projections.groups import GROUPS
from projections.projector import Projector
from projections.serving.app import make_app
from projections.serving.health import Readiness
from projections.serving.running import (
    EVERYTHING,
    Parts,
    Services,
    warn_of_token_key,
    with_log_key,
)
from projections.waiting import outlast_outages
from tests.postgres import PostgresServer
from tests.projections.random_events import random_events
from tests.projections.rebuilds import until
from tests.projections.support import append

SECONDS = 30.0
STALL_SECONDS_MAX = 0.02
LOSE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"


@asynccontextmanager
async def at_work(settings: Settings) -> AsyncIterator[tuple[FastAPI, list[Exception]]]:
    """Open an application that does everything; give it, and what has ended for good."""
    failures: list[Exception] = []
    app = make_app(settings, everything=True, failed=failures.append)
    async with app.router.lifespan_context(app):
        yield app, failures


async def append_at_last(journal: Journal, seed: int) -> None:
    """Append some events, once the database takes them."""
    events = list(random_events(Random(seed), 20))
    await outlast_outages(lambda: append(journal, events), asyncio.Event(), lambda _: None)


def caught_up(app: FastAPI) -> Callable[[], Awaitable[bool]]:
    """Return what says whether all there is has been projected and sealed."""
    journal: Journal = app.state.ledger.journal

    async def holds() -> bool:
        size = await journal.size()
        seal = await log_of(journal).seal()
        is_sealed = seal is not None and seal.size >= size
        return is_sealed and await app.state.wait_projected(size, 0.2)

    return holds


async def test_all_parts_outlast_their_connections(
    postgres_server: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    """When the database has dropped every connection, they go on where they were."""
    write_key(tmp_path / "key", SigningKey.generate("ledger/main"))
    settings = Settings(database_url=postgres_url, log_key_file=tmp_path / "key", lease_seconds=1)
    async with at_work(settings) as (app, failures):
        for seed in (1, 2):
            await append_at_last(app.state.ledger.journal, seed)
            await until(caught_up(app), SECONDS)
            name = postgres_url.rpartition("/")[2]
            await asyncio.to_thread(postgres_server.psql, LOSE.format(name))
        assert not failures


async def test_a_part_that_cannot_work_is_told(postgres_url: str, tmp_path: Path) -> None:
    """With another log's key nothing can be sealed: that is told, and the other parts go on."""
    write_key(tmp_path / "key", SigningKey.generate("ledger/another"))
    settings = Settings(database_url=postgres_url, log_key_file=tmp_path / "key")
    async with at_work(settings) as (app, failures):
        await append(app.state.ledger.journal, random_events(Random(1), 5))
        assert await app.state.wait_projected(await app.state.ledger.journal.size(), SECONDS)
        await until(lambda: _is(bool(failures)), SECONDS)
        assert [type(each) for each in failures] == [CannotSeal]


async def test_parts_at_work_stall_no_request(sqlite_url: str) -> None:
    """What they fold and hash is never done in one go by the thread that answers requests."""
    settings = Settings(database_url=sqlite_url)
    async with open_journal(settings) as journal:
        await append(journal, random_events(Random(5), 2000, odd_chance=0))
    longest = 0.0

    async def look() -> None:
        nonlocal longest
        while True:
            began = time.thread_time()
            await asyncio.sleep(0.001)
            longest = max(longest, time.thread_time() - began)

    async with at_work(settings) as (app, failures):
        gc.disable()  # or its pauses would be counted to whichever thread has them
        looking = asyncio.create_task(look())
        try:
            await until(caught_up(app), SECONDS)
        finally:
            looking.cancel()
            gc.enable()
    assert not failures
    assert longest < STALL_SECONDS_MAX


async def test_a_defect_of_a_part_is_told_as_well(sqlite_url: str) -> None:
    """Whatever a part ends with reaches who decides on the process, on their event loop."""
    loops: list[asyncio.AbstractEventLoop] = []
    failures: list[Exception] = []

    class Defective(Services):
        async def _react(self) -> None:
            raise ZeroDivisionError

    def failed(error: Exception) -> None:
        failures.append(error)
        loops.append(asyncio.get_running_loop())

    async with Defective(Settings(database_url=sqlite_url), Parts(react=True), failed).running():
        await until(lambda: _is(bool(failures)), SECONDS)
    assert isinstance(failures[0], ZeroDivisionError)
    assert loops == [asyncio.get_running_loop()]


async def _is(value: bool) -> bool:
    return value


async def test_who_projects_is_ready_only_if_the_tables_are_near(
    journal: Journal, database: Database
) -> None:
    """Tables that are behind count against the process that is to bring them up, and no other."""
    await append(journal, random_events(Random(3), 5))
    near = partial(Readiness, database, lag_seconds_max=0.0)
    assert (await near(is_projecting=False).look()).status == "ready"
    seen = await near(is_projecting=True).look()
    assert (seen.status, seen.checks.projections) == ("unready", "failed")
    for group in GROUPS.values():
        await Projector(database, journal, group).catch_up()
    assert (await near(is_projecting=True).look()).status == "ready"


async def test_a_database_that_is_away_is_not_ready() -> None:
    """The answer says so without asking whoever may read it to wait."""
    settings = Settings(database_url="postgresql://nobody@127.0.0.1:1/nothing")
    async with Database(settings) as database:
        seen = await Readiness(database, is_projecting=True).look()
    assert (seen.status, seen.checks.database) == ("unready", "failed")


async def test_however_often_readiness_is_asked_for_the_database_is_asked_once(
    settings: Settings,
) -> None:
    """Strangers may ask, so it must cost nothing."""
    async with Database(settings) as database:
        readiness = Readiness(database, is_projecting=False)
        await readiness.look()
        await database.close()
        asked = database.pool_statistics().open
        await asyncio.gather(*(readiness.look() for _ in range(50)))
        assert database.pool_statistics().open == asked


async def test_the_key_beside_the_database_is_made_once(sqlite_url: str) -> None:
    """It is for one journal's log; one that is there, or that is set, is used as it is."""
    settings = Settings(database_url=sqlite_url)
    database = Path(settings.address().database or "")
    async with open_journal(settings) as journal:
        await journal.store.create_journal("an/other")
        made = (await with_log_key(settings, journal)).log_key_file
        assert made == database.with_name("ledger.db.log-key")
        assert made.stat().st_mode & 0o777 == 0o600
        key = read_key(made)
        again = await with_log_key(settings, journal)
        assert read_key(again.log_key_file or Path()).vkey == key.vkey
        own = settings.model_copy(update={"log_key_file": database.with_name("own")})
        assert await with_log_key(own, journal) is own
        with pytest.raises(KeyUnusable, match="LEDGER_LOG_KEY_FILE"):
            await with_log_key(Settings(database_url="postgresql://db/ledger"), journal)
    async with open_journal(settings, "an/other") as other:
        found = (await with_log_key(settings, other)).log_key_file
    assert found == database.with_name("ledger.db.an%2Fother.log-key")
    assert (key.name, read_key(found).name) == ("ledger/main", "ledger/an/other")


async def test_a_log_is_continued_with_its_own_key_only(sqlite_url: str) -> None:
    """Where it has been sealed with a key that is not beside the database, none is made."""
    settings = Settings(database_url=sqlite_url)
    async with open_journal(settings) as journal:
        await Sealer(journal, SigningKey.generate("ledger/main")).catch_up()
        for _ in range(2):
            with pytest.raises(KeyUnusable, match="set LEDGER_LOG_KEY_FILE to it"):
                await with_log_key(settings, journal)


def test_everything_is_every_part() -> None:
    """A new part must not be forgotten there."""
    assert {getattr(EVERYTHING, name) for name in EVERYTHING.__struct_fields__} == {True}


def test_a_readable_token_key_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Once, where the database of several processes has all that access tokens are signed with."""
    readable = Settings(database_url="postgresql://db/ledger")
    warn_of_token_key(readable)
    [line] = caplog.messages
    assert "LEDGER_TOKEN_KEY" in line
    for name in ("token_key", "name_key", "master_key"):
        warn_of_token_key(readable.model_copy(update={name: SecretStr("k" * 32)}))
    warn_of_token_key(readable.model_copy(update={"key_service": "kms"}))
    warn_of_token_key(Settings(database_url="sqlite:///ledger.db"))
    assert caplog.messages == [line]
