"""Leases: one owner for each pair, and whoever lost a lease can write nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import StoreUnavailable
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections import checkpoints, leases
from projections.bookkeeping import checkpoints as table
from projections.bookkeeping import workers
from projections.checkpoints import FoldChanged
from projections.database import Database
from projections.dialects import time_now
from projections.fold import Group
from projections.groups import MARKS, TRADING
from projections.leases import Lease, LeaseLost, WorkerReplaced
from projections.projector import Projector
from tests.projections.random_events import random_events
from tests.projections.silence import Silent
from tests.projections.support import append, assert_live_is_replay

LONG_SECONDS = 600.0


@asynccontextmanager
async def writing(journal: Journal, database: Database) -> AsyncIterator[AsyncConnection]:
    """Give a transaction in this process's turn."""
    async with journal.store.write_turn(), database.transaction() as connection:
        yield connection


async def claim(
    journal: Journal, database: Database, worker_id: str, seconds: float = LONG_SECONDS
) -> Lease | None:
    """Try to claim the trading group, whose row is made if there is none."""
    async with writing(journal, database) as connection:
        await checkpoints.create(connection, journal.journal_id, TRADING)
        [seen] = await leases.look(connection, seconds)
        return await leases.claim(connection, seen, worker_id, seconds)


async def claimed(journal: Journal, database: Database, worker_id: str) -> Lease:
    """Claim the trading group, which must be free."""
    lease = await claim(journal, database, worker_id)
    assert lease is not None
    return lease


async def expire(journal: Journal, database: Database, ago_seconds: float = 1) -> None:
    """Let all leases have ended some time ago."""
    async with writing(journal, database) as connection:
        past = time_now(connection.dialect, -ago_seconds)
        await connection.execute(table.update().values(lease_expires_at=past))


async def remaining_seconds(database: Database) -> float:
    """Return for how long the one lease still holds."""
    async with database.snapshot() as connection:
        query = sa.select(table.c.lease_expires_at, time_now(connection.dialect))
        [(until, now)] = (await connection.execute(query)).all()
        return float((until - now).total_seconds())


async def test_a_pair_has_one_owner(journal: Journal, database: Database) -> None:
    """A lease is for one worker until it ends; each claim has the next epoch."""
    first = await claimed(journal, database, "first")
    assert await claim(journal, database, "second") is None
    await expire(journal, database)
    second = await claimed(journal, database, "second")
    assert (first.epoch, second.epoch) == (1, 2)
    assert await claim(journal, database, "first") is None


async def test_whoever_lost_the_lease_writes_nothing(journal: Journal, database: Database) -> None:
    """The batch of an older epoch fails as a whole, and the tables stay as they are."""
    size = await append(journal, random_events(Random(1), 100))
    lost = Projector(
        database, journal, TRADING, batch_size=30, lease=await claimed(journal, database, "first")
    )
    assert await lost.advance() == 30
    await expire(journal, database)
    held = Projector(
        database, journal, TRADING, batch_size=30, lease=await claimed(journal, database, "second")
    )
    with pytest.raises(LeaseLost, match=r"first has lost the lease .*trading.* to second"):
        await lost.advance()
    assert await assert_live_is_replay(journal, database, TRADING) == 30
    assert await held.catch_up(size) == size - 30
    with pytest.raises(LeaseLost):
        await lost.advance()


async def test_the_same_name_does_not_help(journal: Journal, database: Database) -> None:
    """A worker that claimed a pair anew writes under the new epoch only."""
    await append(journal, random_events(Random(2), 20))
    old = Projector(database, journal, TRADING, lease=await claimed(journal, database, "only"))
    new = Projector(database, journal, TRADING, lease=await claimed(journal, database, "only"))
    with pytest.raises(LeaseLost):
        await old.advance()
    assert await new.advance() == 20


async def test_a_checkpoint_that_is_gone_is_a_lost_lease(
    journal: Journal, database: Database
) -> None:
    """Where somebody empties the tables and the checkpoint, the owner stops instead of going on."""
    await append(journal, random_events(Random(3), 20))
    lease = await claimed(journal, database, "first")
    async with writing(journal, database) as connection:
        await connection.execute(table.delete())
    with pytest.raises(LeaseLost, match="was ended"):
        await Projector(database, journal, TRADING, lease=lease).advance()


async def test_a_renounced_lease_says_why(journal: Journal, database: Database) -> None:
    """Who lost it to a retry is not told of silence; the pair is free, but not left alone yet."""
    await append(journal, random_events(Random(8), 20))
    lease = await claimed(journal, database, "first")
    async with writing(journal, database) as connection:
        past = time_now(connection.dialect, -2 * LONG_SECONDS)
        await connection.execute(table.update().values(updated_at=past))
        await checkpoints.renounce(connection, journal.journal_id, TRADING)
    with pytest.raises(LeaseLost, match="was ended, since rows were changed by a retry"):
        await Projector(database, journal, TRADING, lease=lease).advance()
    async with database.snapshot() as connection:
        [seen] = await leases.look(connection, LONG_SECONDS)
    assert (seen.is_free, seen.is_abandoned) == (True, False)


async def test_a_clock_that_stepped_back(journal: Journal, database: Database) -> None:
    """A lease with an end far ahead is renewed by its worker; where that is dead it is free."""
    lease = await claimed(journal, database, "first")
    for is_alive in (True, False):
        await expire(journal, database, ago_seconds=-100 * LONG_SECONDS)
        async with writing(journal, database) as connection:
            await leases.renew(connection, [lease] if is_alive else [])
            [seen] = await leases.look(connection, LONG_SECONDS)
        assert (seen.is_free, seen.is_abandoned) == (not is_alive, not is_alive)
    assert (await claimed(journal, database, "second")).epoch == 2
    assert await remaining_seconds(database) < 2 * LONG_SECONDS


async def test_a_batch_prolongs_the_lease(journal: Journal, database: Database) -> None:
    """Who still holds the epoch may write though the lease has ended, and holds it anew."""
    await append(journal, random_events(Random(4), 20))
    projector = Projector(
        database, journal, TRADING, lease=await claimed(journal, database, "first")
    )
    await expire(journal, database)
    assert await projector.advance() == 20
    assert await remaining_seconds(database) > LONG_SECONDS / 2
    assert await claim(journal, database, "second") is None


async def test_an_idle_owner_renews(journal: Journal, database: Database) -> None:
    """A lease that runs out soon is prolonged; not one of an older epoch, nor of another worker."""
    lease = await claimed(journal, database, "first")
    for held, is_renewed in (
        (Lease(lease.journal_id, lease.group, "first", lease.epoch - 1, LONG_SECONDS), False),
        (Lease(lease.journal_id, lease.group, "second", lease.epoch, LONG_SECONDS), False),
        (lease, True),
    ):
        await expire(journal, database, ago_seconds=-1)
        async with writing(journal, database) as connection:
            await leases.renew(connection, [held])
        assert (await remaining_seconds(database) > LONG_SECONDS / 2) is is_renewed


async def test_giving_back(journal: Journal, database: Database) -> None:
    """What is given back is free at once; an older epoch has nothing to give back."""
    old = await claimed(journal, database, "first")
    new = await claimed(journal, database, "first")
    for lease, is_free in ((old, False), (new, True)):
        async with writing(journal, database) as connection:
            await leases.give_back(connection, lease)
            [seen] = await leases.look(connection, LONG_SECONDS)
        assert (seen.is_free, seen.is_abandoned) == (is_free, False)
    assert (await claimed(journal, database, "second")).epoch == 3


async def test_what_nobody_wants_is_abandoned(journal: Journal, database: Database) -> None:
    """A pair that has been free for as long as a lease lasts may be taken beyond the fair share."""
    await claimed(journal, database, "first")
    for ago_seconds, expected in ((-1, (False, False)), (1, (True, False)), (2000, (True, True))):
        await expire(journal, database, ago_seconds)
        async with database.snapshot() as connection:
            [seen] = await leases.look(connection, LONG_SECONDS)
        assert (seen.is_free, seen.is_abandoned) == expected


async def test_another_version_of_the_fold(journal: Journal, database: Database) -> None:
    """A lease does not let a worker write into tables that another version fills."""
    await append(journal, random_events(Random(5), 20))
    lease = await claimed(journal, database, "first")
    changed = Group(TRADING.name, *TRADING.projections, fold_version="other")
    with pytest.raises(FoldChanged):
        await Projector(database, journal, changed, lease=lease).advance()


async def test_live_workers(journal: Journal, database: Database) -> None:
    """Workers count from a sign of life on until it is too old; long after they are forgotten."""
    async with writing(journal, database) as connection:
        started = await leases.register(connection, "a", LONG_SECONDS)
        await leases.register(connection, "b", LONG_SECONDS)
        assert await leases.live_workers(connection) == ["a", "b"]
        past = time_now(connection.dialect, -1)
        await connection.execute(workers.update().values(expires_at=past))
        assert await leases.live_workers(connection) == []
        await leases.keep_alive(connection, "a", started, LONG_SECONDS)
        assert await leases.live_workers(connection) == ["a"]
        await leases.forget_dead(connection, LONG_SECONDS)
        assert await names(connection) == ["a", "b"]
        await leases.forget_dead(connection, 0.001)
        assert await names(connection) == ["a"]
        await leases.unregister(connection, "a", started)
        assert await names(connection) == []
        await leases.keep_alive(connection, "a", started, LONG_SECONDS)
        assert await leases.live_workers(connection) == ["a"]


async def names(connection: AsyncConnection) -> list[str]:
    """Return the names on the list, of dead workers too."""
    return sorted((await connection.execute(sa.select(workers.c.worker_id))).scalars())


async def test_a_name_is_the_last_ones(journal: Journal, database: Database) -> None:
    """Whoever registers under a name replaces the one before, which notices and removes nobody."""
    async with writing(journal, database) as connection:
        earlier = await leases.register(connection, "a", LONG_SECONDS)
    async with writing(journal, database) as connection:
        later = await leases.register(connection, "a", LONG_SECONDS)
        assert earlier != later
        with pytest.raises(WorkerReplaced, match="'a'"):
            await leases.keep_alive(connection, "a", earlier, LONG_SECONDS)
        await leases.unregister(connection, "a", earlier)
        assert await leases.live_workers(connection) == ["a"]


@pytest.fixture
def postgres(postgres_url: str) -> Settings:
    """Settings for what only PostgreSQL can do."""
    return Settings(database_url=postgres_url, lease_seconds=0.3)


async def test_a_batch_under_way_is_a_sign_of_life(postgres: Settings) -> None:
    """While the row is locked, nobody claims it, and nobody waits for it."""
    async with open_journal(postgres) as journal, Database(postgres) as database:
        await claimed(journal, database, "first")
        await expire(journal, database)
        async with database.transaction() as connection:
            await checkpoints.lock(connection, journal.journal_id, TRADING)
            async with asyncio.timeout(5):
                assert await claim(journal, database, "second") is None
        assert await claim(journal, database, "second") is not None


async def test_a_frozen_batch_is_ended_by_the_server(postgres: Settings) -> None:
    """A client that falls silent in the middle of a batch loses the row's lock before long."""
    async with open_journal(postgres) as journal, Database(postgres) as database:
        await claimed(journal, database, "first")
        await expire(journal, database)
        is_locked, is_claimed = asyncio.Event(), asyncio.Event()
        frozen = asyncio.create_task(fall_silent(journal, database, is_locked, is_claimed))
        await is_locked.wait()
        assert await claim(journal, database, "second") is None
        async with asyncio.timeout(20):
            while await claim(journal, database, "second") is None:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)
        is_claimed.set()
        with pytest.raises(StoreUnavailable):
            await frozen


async def fall_silent(
    journal: Journal, database: Database, locked: asyncio.Event, until: asyncio.Event
) -> None:
    """Begin a batch, do nothing for a while, and try to go on with it."""
    async with database.transaction() as connection:
        await leases.bound(connection, database.settings.lease_seconds)
        await checkpoints.lock(connection, journal.journal_id, TRADING)
        locked.set()
        await until.wait()
        await connection.execute(sa.select(1))


async def ended(database: Database, seconds: float, answer_seconds: float = LONG_SECONDS) -> int:
    """End frozen sessions; return how many there were."""
    async with database.transaction() as connection:
        return await leases.end_frozen(connection, seconds, answer_seconds)


async def test_who_is_frozen_within_a_statement_is_ended(postgres: Settings) -> None:
    """No timeout of the server's ends such a session; once it has been silent, a worker does."""
    async with (
        open_journal(postgres) as journal,
        Database(postgres) as database,
        Silent.connected(postgres) as frozen,
    ):
        await claimed(journal, database, "first")
        await expire(journal, database)
        await frozen.run("SET statement_timeout = '50ms'")
        await frozen.run("SET idle_in_transaction_session_timeout = '50ms'")
        await frozen.run("BEGIN; SELECT FROM checkpoints FOR UPDATE")
        await frozen.begin_statement()
        assert await ended(database, LONG_SECONDS) == 0
        assert await claim(journal, database, "second") is None
        async with asyncio.timeout(20):
            while await ended(database, 0.2) == 0:
                assert await claim(journal, database, "second") is None
            while await claim(journal, database, "second") is None:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.02)


async def test_who_takes_no_rows_is_ended(postgres: Settings) -> None:
    """A session that cannot send its answer is ended when no statement may last that long."""
    async with Database(postgres) as database, Silent.connected(postgres) as frozen:
        await frozen.run("BEGIN; LOCK TABLE workers IN ROW SHARE MODE")
        frozen.receive_no_more()
        await frozen.ask("SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
        await frozen.is_waiting("ClientWrite", database)
        assert await ended(database, 0, LONG_SECONDS) == 0
        assert await ended(database, LONG_SECONDS, 0) == 1


async def test_who_works_or_locks_nothing_of_ours_is_left_alone(postgres: Settings) -> None:
    """Ended is neither a long statement, nor a pause that has its own bound, nor a reader."""
    async with (
        Database(postgres) as database,
        Silent.connected(postgres) as working,
        Silent.connected(postgres) as pausing,
        Silent.connected(postgres) as reading,
        Silent.connected(postgres) as copying,
    ):
        for each in (working, pausing, copying):
            await each.run("BEGIN; LOCK TABLE checkpoints IN ROW SHARE MODE")
        await working.ask("SELECT pg_sleep(60)")
        await working.is_waiting("PgSleep", database)
        await reading.run("BEGIN; SELECT FROM checkpoints")
        await reading.begin_statement()
        await copying.run("CREATE TEMP TABLE copied (number int)")
        await copying.ask_to_copy("copied")
        await copying.is_waiting("ClientRead", database)
        assert await ended(database, 0, 0) == 0


async def test_a_dead_workers_locked_name_is_left(postgres: Settings) -> None:
    """A worker that is frozen with its own row locked keeps nobody from a sign of life."""
    async with open_journal(postgres) as journal, Database(postgres) as database:
        async with writing(journal, database) as connection:
            for name in ("locked", "long dead"):
                await leases.register(connection, name, -2 * leases.FORGOTTEN_AFTER_LEASES)
        async with database.transaction() as frozen, database.transaction() as connection:
            locked = workers.c.worker_id == "locked"
            await frozen.execute(sa.select(workers).where(locked).with_for_update())
            await leases.bound(connection, 5, lock_seconds=0.1)
            await leases.forget_dead(connection, 1)
            assert await names(connection) == ["locked"]


async def test_nobody_waits_for_ever_for_a_lock(postgres: Settings) -> None:
    """A projector with a lease gives up on a row that somebody else has locked for long."""
    async with open_journal(postgres) as journal, Database(postgres) as database:
        await append(journal, random_events(Random(6), 20))
        lease = await claimed(journal, database, "first")
        async with database.transaction() as connection:
            await checkpoints.lock(connection, journal.journal_id, TRADING)
            with pytest.raises(StoreUnavailable, match="lock timeout"):
                await Projector(database, journal, TRADING, lease=lease).advance()


async def test_the_end_of_a_batch_ends_its_bounds(postgres: Settings) -> None:
    """Readers that get the connection afterwards may be silent for as long as they like."""
    postgres = postgres.model_copy(update={"pool_size": 1, "pool_overflow": 0})
    async with open_journal(postgres) as journal, Database(postgres) as database:
        await append(journal, random_events(Random(7), 20))
        await Projector(database, journal, MARKS).catch_up()
        async with database.snapshot() as connection:
            shown = sa.text("SHOW idle_in_transaction_session_timeout")
            assert (await connection.execute(shown)).scalar_one() == "0"
