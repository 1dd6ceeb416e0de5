"""The projector: live tables are always a fold of the journal's beginning."""

from __future__ import annotations

import asyncio
from multiprocessing.process import BaseProcess
from random import Random

import pytest
import sqlalchemy as sa

from ledger.domain.users import RolesChanged, UserRegistered
from ledger.errors import SchemaMissing
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections import bookkeeping, checkpoints
from projections.checkpoints import CheckpointAhead, FoldChanged
from projections.database import Database
from projections.fold import Group
from projections.groups import GROUPS, MARKS, TRADING
from projections.projector import Projector, wait_visible
from projections.users import users
from tests.ledger.support import environment
from tests.projections.random_events import random_events
from tests.projections.support import an_id, append, assert_live_is_replay, live_tables
from tests.support import programs

POINTS = 50


async def test_live_tables_equal_a_replay_at_any_point(
    journal: Journal, database: Database
) -> None:
    """A projector stopped anywhere, with any batch sizes, has written what a replay gives."""
    random = Random(2)
    size = await append(journal, random_events(random, 600))
    for point in [*sorted(random.sample(range(size), POINTS)), size]:
        for group in GROUPS.values():
            batch_size = random.randrange(1, 40)
            projector = Projector(database, journal, group, batch_size=batch_size)
            await projector.catch_up(point)
            assert await assert_live_is_replay(journal, database, group) == point


async def test_a_killed_projector_leaves_a_whole_number_of_events(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """After SIGKILL at any moment rows and checkpoint agree, and the next run goes on there."""
    size = await append(journal, random_events(Random(3), 900))
    kills, reached = 0, 0
    while reached < size:
        process = start_projector(settings, "--batch-size", "20")
        try:
            target = min(reached + 250, size)
            await wait_visible(database, journal, target, TRADING, timeout_seconds=60)
        finally:
            process.kill()
            process.join()
        kills += 1
        reached = await assert_live_is_replay(journal, database, TRADING)
    assert kills > 2


def start_projector(settings: Settings, *options: str) -> BaseProcess:
    """Start `projections run` on the database; once it is killed, its leases end soon."""
    variables = environment(settings.database_url, LEDGER_LEASE_SECONDS="0.5")
    return programs.start("projections", "run", *options, environment=variables)


async def test_two_projectors_share_the_work(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Two projectors started at once fold each event exactly once between them."""
    size = await append(journal, random_events(Random(4), 500))
    async with open_journal(settings) as other_journal, Database(settings) as other_database:
        counts = await asyncio.gather(
            Projector(database, journal, TRADING, batch_size=7).catch_up(size),
            Projector(other_database, other_journal, TRADING, batch_size=5).catch_up(size),
        )
    assert sum(counts) == size
    assert await assert_live_is_replay(journal, database, TRADING) == size


async def test_a_service_waits_for_its_own_write(journal: Journal, database: Database) -> None:
    """wait_visible returns once the tables hold the event, and times out before."""
    size = await append(journal, [UserRegistered(user_id=an_id("user"), username="user")])
    with pytest.raises(TimeoutError):
        await wait_visible(database, journal, size, TRADING, timeout_seconds=0.2)
    waiting = asyncio.create_task(wait_visible(database, journal, size, TRADING, 30))
    await Projector(database, journal, TRADING).catch_up()
    assert await waiting == size


async def test_a_stopped_projector_finishes_its_batch(journal: Journal, database: Database) -> None:
    """A projector that runs for ever folds what comes, and ends when it is told to."""
    stopping = asyncio.Event()
    running = asyncio.create_task(Projector(database, journal, MARKS).run(stopping))
    size = await append(journal, random_events(Random(5), 50))
    await wait_visible(database, journal, size, MARKS, timeout_seconds=30)
    stopping.set()
    assert await running == size


async def test_a_journal_that_got_shorter_is_noticed(
    journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a projector that is at the end and waits for events."""
    size = await append(journal, random_events(Random(12), 20))
    projector = Projector(database, journal, MARKS)
    running = asyncio.create_task(projector.run(asyncio.Event()))
    await wait_visible(database, journal, size, MARKS, timeout_seconds=30)

    async def shorter(_journal: Journal) -> int:
        return size - 1

    monkeypatch.setattr(Journal, "size", shorter)
    with pytest.raises(CheckpointAhead, match=f"beyond the journal's size {size - 1}"):
        await asyncio.wait_for(running, 30)


async def test_another_version_of_the_fold_is_refused(journal: Journal, database: Database) -> None:
    """A program with another fold does not write into tables that it would not fill like this."""
    await append(journal, random_events(Random(6), 10))
    await Projector(database, journal, MARKS).catch_up()
    changed = Group(MARKS.name, *MARKS.projections, fold_version="other")
    with pytest.raises(FoldChanged, match="version other"):
        await Projector(database, journal, changed).catch_up()


async def test_a_database_without_tables_is_named(sqlite_url: str) -> None:
    """Where the read tables are missing, the error says what to do."""
    settings = Settings(database_url=sqlite_url)
    async with open_journal(settings) as journal, Database(settings) as database:
        async with database.transaction() as connection:
            await connection.run_sync(bookkeeping.checkpoints.drop)
        with pytest.raises(SchemaMissing, match="ledger migrate"):
            await Projector(database, journal, MARKS).catch_up()


async def test_health_and_pool_statistics(database: Database) -> None:
    """A database that answers is healthy; the pool counts what is lent out."""
    assert (await database.health()).healthy
    async with database.session():
        assert database.pool_statistics().in_use == 1
    assert database.pool_statistics().in_use == 0


async def test_an_unreachable_database_is_unhealthy() -> None:
    """A health check answers also when the database does not."""
    url = "postgresql://nobody@127.0.0.1:1/none"
    async with Database(Settings(database_url=url)) as database:
        health = await database.health()
    assert not health.healthy
    assert health.error


async def test_rows_that_are_kept_are_those_of_the_tables(
    journal: Journal, database: Database
) -> None:
    """Projectors that take turns see what the others have written, and go on with their own."""
    dice = Random(11)
    await append(journal, random_events(dice, 500))
    for group in GROUPS.values():
        ones = [Projector(database, journal, group, batch_size=dice.randint(1, 40)) for _ in "ab"]
        while await ones[0].checkpoint() < 500:
            await dice.choice(ones).advance()
            if dice.random() < 0.3:
                await dice.choice(ones).advance(await ones[0].checkpoint() + dice.randint(0, 3))
        assert await assert_live_is_replay(journal, database, group) == 500


async def test_rows_changed_at_the_same_size_are_read_anew(
    journal: Journal, database: Database
) -> None:
    """Whoever changes rows at one size says so, and nobody goes on with the old ones."""
    user_id = an_id("ada")
    await append(journal, [UserRegistered(user_id=user_id, username="ada")])
    projector = Projector(database, journal, TRADING)
    await projector.advance()
    async with database.transaction() as connection:
        await checkpoints.lock(connection, journal.journal_id, TRADING)
        changed = sa.update(users.table).values(email="somebody@else")
        await connection.execute(changed)
        await checkpoints.renounce(connection, journal.journal_id, TRADING)
    await append(journal, [RolesChanged(user_id=user_id, roles=("admin",))])
    await projector.advance()
    [row] = (await live_tables(database, TRADING))["users"].values()
    assert (row["email"], row["roles"]) == ("somebody@else", ["admin"])
