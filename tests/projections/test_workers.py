"""Workers: they share the work, take over from the dead, and one pair's failure stops no other."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from ledger.errors import (
    AppendOutcomeUnknown,
    JournalNotFound,
    SchemaMissing,
    StoredEventInvalid,
    StoreUnavailable,
)
from ledger.event import Event
from ledger.journal import Journal, open_journal
from ledger.migrate import migrate
from ledger.settings import Settings
from ledger.stores import Store
from ledger.stores.opening import open_store
from projections import checkpoints as checkpoint_rows
from projections import reporting, worker
from projections.bookkeeping import checkpoints, workers
from projections.database import Database, explained
from projections.fold import Group
from projections.groups import GROUPS, MARKS, POSTINGS, TRADING
from projections.health import pair_statuses
from projections.leases import Pair, WorkerReplaced
from projections.projector import Projector, wait_visible
from projections.reporting import Reporter
from projections.verification import verify
from projections.waiting import (
    PAUSE_SECONDS_FIRST,
    PAUSE_SECONDS_MAX,
    Backoff,
    outlast_outages,
)
from projections.worker import Worker
from tests.ledger.support import ROOT, environment
from tests.postgres import PostgresServer
from tests.projections import checkpoint_audit
from tests.projections.random_events import random_events
from tests.projections.silence import Silent
from tests.projections.support import an_id, append, assert_live_is_replay
from tests.projections.worker_processes import WorkerProcess, ended

SECONDS = float(os.environ.get("LEDGER_TEST_WORKER_SECONDS", "5"))
LEASE_SECONDS = 1.0
SLACK_SECONDS = 1.5
WAIT_SECONDS = 30
OWN_SETTINGS = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB"}


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that may be stopped and started."""
    with PostgresServer.start(OWN_SETTINGS, in_memory=True) as server:
        yield server


@pytest.fixture
def own_settings(own_server: PostgresServer) -> Iterator[Settings]:
    """Settings that lead to a fresh, migrated database on it."""
    url = own_server.create_database()
    migrate(Settings(database_url=url))
    yield Settings(database_url=url, lease_seconds=LEASE_SECONDS)
    own_server.drop_database(url)


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings with short leases."""
    return Settings(database_url=database_url, lease_seconds=LEASE_SECONDS)


class Running:
    """A worker at work in this process, what it says, and what stops it."""

    def __init__(
        self,
        settings: Settings,
        groups: list[Group] | None = None,
        journals: list[str] | None = None,
        worker_id: str | None = None,
    ) -> None:
        self.lines: list[str] = []
        self.worker = Worker(
            settings,
            groups or list(GROUPS.values()),
            journals,
            worker_id=worker_id,
            write=self.lines.append,
        )
        self.stopping = asyncio.Event()
        self.task = asyncio.create_task(self.worker.run(self.stopping))

    async def stop(self) -> None:
        """Stop it and wait until it has ended."""
        self.stopping.set()
        await self.task


@asynccontextmanager
async def running(settings: Settings, **options: Any) -> AsyncIterator[Running]:
    """Run a worker in this process."""
    worker = Running(settings, **options)
    try:
        yield worker
    finally:
        await worker.stop()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not await holds():  # noqa: ASYNC110 - the database changes, no event tells
            await asyncio.sleep(0.02)


async def owners(database: Database) -> dict[Pair, str | None]:
    """Return who has each pair."""
    own = checkpoints.c
    async with database.snapshot() as connection:
        rows = await connection.execute(sa.select(own.journal_id, own.group_name, own.worker_id))
        return {(journal_id, group): worker_id for journal_id, group, worker_id in rows}


async def counts(database: Database) -> dict[str | None, int]:
    """Return how many pairs each worker has."""
    found = list((await owners(database)).values())
    return {name: found.count(name) for name in found}


@asynccontextmanager
async def journals_of(settings: Settings, *names: str) -> AsyncIterator[list[Journal]]:
    """Make journals and give all that there are."""
    store: Store = open_store(settings)
    try:
        for name in names:
            await store.create_journal(name)
        yield [Journal(store, info) for info in await store.journals()]
    finally:
        await store.close()


async def caught_up(database: Database) -> bool:
    """Tell whether all groups of all journals are at the end."""
    return all(each.lag_events == 0 for each in await pair_statuses(database))


async def test_workers_share_the_pairs(settings: Settings, database: Database) -> None:
    """Each has its part; who comes gets some of the others', who goes leaves its own to them."""
    async with journals_of(settings, "b", "c", "d"), running(settings) as first:
        one = first.worker.worker_id
        await eventually(lambda: is_now(counts(database), {one: 12}))
        async with running(settings) as second:
            two = second.worker.worker_id
            await eventually(lambda: is_now(counts(database), {one: 6, two: 6}))
        assert (await counts(database)).get(two) is None
        await eventually(lambda: is_now(counts(database), {one: 12}))
        assert first.lines == []


async def test_a_quiet_pair_that_was_renounced_is_claimed_again(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Where no events come, a worker still notices that a lease of its has ended, and says so."""
    settings = settings.model_copy(update={"lease_seconds": 2.0})
    async with running(settings) as only:
        name = only.worker.worker_id
        await eventually(lambda: is_now(counts(database), {name: len(GROUPS)}))
        async with journal.store.write_turn(), database.transaction() as connection:
            await checkpoint_rows.renounce(connection, journal.journal_id, TRADING)
        await eventually(lambda: is_now(counts(database), {name: len(GROUPS)}))
    assert len(only.lines) == 1
    assert "was ended, since rows were changed by a retry" in only.lines[0]


async def test_what_was_taken_beyond_the_share_is_offered(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs that a worker took since another left them alone come back to that one in the end."""
    settings = settings.model_copy(update={"lease_seconds": 3.0})  # nobody is late under load
    async with (
        journals_of(settings, "b"),
        running(settings, worker_id="one"),
        running(settings, worker_id="two") as two,
    ):
        await eventually(lambda: is_now(counts(database), {"one": 3, "two": 3}))
        monkeypatch.setattr(worker, "ADOPTED_LEASES_MIN", 1000)
        two.worker._left_alone = dict.fromkeys(await owners(database), float("inf"))

        async def is_all_adopted() -> bool:
            for work in two.worker._works.values():
                work.stopping.set()
            return await counts(database) == {"one": 6}

        await eventually(is_all_adopted)
        two.worker._left_alone.clear()
        monkeypatch.setattr(worker, "ADOPTED_LEASES_MIN", 0)
        await eventually(lambda: is_now(counts(database), {"one": 3, "two": 3}))


async def is_now(found: Awaitable[object], expected: object) -> bool:
    """Tell whether what is found is what is expected."""
    return await found == expected


async def test_a_new_journal_is_noticed(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """A journal made while a worker runs is projected as well, one that was not named is not."""
    async with running(settings), journals_of(settings, "later") as journals:
        size = await append(journals[1], random_events(Random(1), 40))
        assert await wait_visible(database, journals[1], size, TRADING, WAIT_SECONDS) == size
    async with running(settings, journals=["main"]):
        size = await append(journal, random_events(Random(2), 40))
        await wait_visible(database, journal, size, TRADING, WAIT_SECONDS)
        assert {pair for pair, owner in (await owners(database)).items() if owner} == {
            (journal.journal_id, group) for group in GROUPS
        }


async def test_a_stopped_worker_leaves_nothing_behind(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """It finishes, gives its leases back, and is no longer on the list."""
    async with running(settings) as worker:
        size = await append(journal, random_events(Random(3), 60))
        await wait_visible(database, journal, size, POSTINGS, WAIT_SECONDS)
    assert set((await owners(database)).values()) == {None}
    async with database.snapshot() as connection:
        assert (await connection.execute(sa.select(workers))).all() == []
    assert worker.worker.folded[POSTINGS.name] == size


async def test_an_unknown_journal_is_refused(settings: Settings) -> None:
    """A worker that is to project a journal that does not exist says so at once."""
    with pytest.raises(JournalNotFound, match="nowhere"):
        await Worker(settings, journals=["nowhere"]).run(asyncio.Event())


async def test_two_workers_of_one_name(settings: Settings, database: Database) -> None:
    """The later one stays; the earlier one ends with an error, and writes no more."""
    earlier = Running(settings, worker_id="same")
    await eventually(lambda: is_now(counts(database), {"same": 3}))
    async with running(settings, worker_id="same"):
        with pytest.raises(WorkerReplaced, match="same"):
            await asyncio.wait_for(earlier.task, WAIT_SECONDS)
        await eventually(lambda: is_now(counts(database), {"same": 3}))


async def test_an_event_that_cannot_be_read_stops_its_pairs_only(
    settings: Settings, database: Database
) -> None:
    """Where a journal holds what this program cannot decode, all others go on; it is told once."""
    async with (
        journals_of(settings, "unreadable") as [journal, unreadable],
        running(settings) as worker,
    ):
        await append(unreadable, random_events(Random(4), 30))
        await store_nonsense(database, unreadable)
        size = await append(journal, random_events(Random(5), 300))
        await wait_visible(database, unreadable, 30, TRADING, WAIT_SECONDS)
        for group in GROUPS.values():
            await wait_visible(database, journal, size, group, WAIT_SECONDS)
        await eventually(lambda: is_now(is_told(worker, "offset 30"), True))
        # Another release may be able to read it.
        await eventually(lambda: is_now(owner(database, unreadable, TRADING), None))
        assert (await verify(database, journal, GROUPS.values())).differences == 0
    told = [line for line in worker.lines if line.startswith("trading of journal unreadable")]
    assert len(told) == 1


async def is_told(worker: Running, text: str) -> bool:
    """Tell whether a worker has said something."""
    return any(text in line for line in worker.lines)


async def owner(database: Database, journal: Journal, group: Group) -> str | None:
    """Return who has a pair."""
    return (await owners(database))[journal.journal_id, group.name]


async def store_nonsense(database: Database, journal: Journal) -> None:
    """Put an event of an unknown type at the end of a journal."""
    copied = sa.text(
        """INSERT INTO events (journal_id, "offset", event_id, stream, version, type,
            schema_version, occurred_at, recorded_at, body)
        SELECT journal_id, "offset" + 1, :event_id, 'nonsense', 1, 'Nonsense', 1, occurred_at,
            recorded_at, :body FROM events WHERE journal_id = :journal_id
        ORDER BY "offset" DESC LIMIT 1"""
    ).bindparams(sa.bindparam("event_id", type_=sa.Uuid()))
    async with database.transaction() as connection:
        values = {"event_id": an_id("nonsense"), "body": b'{"type":"Nonsense"}'}
        await connection.execute(copied, values | {"journal_id": journal.journal_id})
        await connection.execute(
            sa.text("UPDATE journals SET size = size + 1 WHERE journal_id = :journal_id"),
            {"journal_id": journal.journal_id},
        )


async def test_workers_of_two_releases_run_side_by_side(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """When tables become another version's, they go at once to the worker that has it."""
    later = Group(MARKS.name, *MARKS.projections, fold_version="later")
    async with running(settings) as old:
        await eventually(lambda: is_now(counts(database), {old.worker.worker_id: 3}))
        async with running(settings, groups=[TRADING, later, POSTINGS]) as new:
            await eventually(lambda: is_now(is_told(new, "version 1 of the fold"), True))
            size = await append(journal, random_events(Random(6), 60))
            await wait_visible(database, journal, size, MARKS, WAIT_SECONDS)
            assert await owner(database, journal, MARKS) != new.worker.worker_id
            await set_version(journal, database, "later")
            size = await append(journal, random_events(Random(7), 60))
            await wait_visible(database, journal, size, later, WAIT_SECONDS)
            assert await owner(database, journal, MARKS) == new.worker.worker_id
    told = [line for line in old.lines + new.lines if line.startswith("marks of journal main")]
    assert len(told) == len(set(told))


async def set_version(journal: Journal, database: Database, fold_version: str) -> None:
    """Let the marks be of another version, as a rebuild does when it swaps."""
    own = checkpoints.c.group_name == MARKS.name
    async with journal.store.write_turn(), database.transaction() as connection:
        await connection.execute(checkpoints.update().where(own).values(fold_version=fold_version))


async def lease_of_marks(database: Database) -> tuple[int, datetime]:
    """Return the epoch and the end of the lease on the marks."""
    own = checkpoints.c
    async with database.snapshot() as connection:
        query = sa.select(own.epoch, own.lease_expires_at).where(own.group_name == MARKS.name)
        [(epoch, until)] = (await connection.execute(query)).all()
        return epoch, until


async def test_an_idle_worker_keeps_its_leases(settings: Settings, database: Database) -> None:
    """While nothing happens, leases are prolonged before they end."""
    async with running(settings) as worker:
        await eventually(lambda: is_now(counts(database), {worker.worker.worker_id: 3}))
        epoch, first = await lease_of_marks(database)
        later = first + timedelta(seconds=1.5 * LEASE_SECONDS)
        await eventually(lambda: is_later(database, later))
        assert (await lease_of_marks(database))[0] == epoch == 1


async def is_later(database: Database, moment: datetime) -> bool:
    """Tell whether the lease on the marks ends later than that."""
    return (await lease_of_marks(database))[1] > moment


def test_errors_of_connecting_are_the_databases() -> None:
    """What the driver says while it connects, as to a server that is starting, is an outage too."""
    for error in (asyncpg.CannotConnectNowError("starting up"), ConnectionRefusedError()):
        with pytest.raises(StoreUnavailable), explained():
            raise error


async def test_a_restarted_server_is_waited_for(
    own_settings: Settings, own_server: PostgresServer
) -> None:
    """A worker outlives its server, says in one line that it was away, and goes on by itself."""
    async with (
        open_journal(own_settings) as journal,
        Database(own_settings) as database,
        running(own_settings) as worker,
    ):
        size = await append(journal, random_events(Random(8), 60))
        await wait_visible(database, journal, size, TRADING, WAIT_SECONDS)
        own_server.kill()
        await eventually(lambda: is_now(is_told(worker, "cannot reach"), True))
        own_server.restart()
        await eventually(lambda: is_healthy(database))
        more = await append(journal, random_events(Random(9), 60))
        for group in GROUPS.values():
            await wait_visible(database, journal, more, group, WAIT_SECONDS)
            assert await assert_live_is_replay(journal, database, group) == more
    assert len(worker.lines) == len(set(worker.lines)) < 20


async def is_healthy(database: Database) -> bool:
    """Tell whether the database answers."""
    return (await database.health()).healthy


async def test_a_server_that_only_reads_is_left(
    own_settings: Settings, own_server: PostgresServer
) -> None:
    """After a failover to a standby that is not promoted yet, a worker tries until it can write."""
    name = own_settings.database_url.rpartition("/")[2]
    read_only = f'ALTER DATABASE "{name}" SET default_transaction_read_only TO'
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    async with Database(own_settings) as database, running(own_settings) as worker:
        await eventually(lambda: is_now(counts(database), {worker.worker.worker_id: 3}))
        own_server.psql(f"{read_only} on")
        own_server.psql(cut)
        await eventually(lambda: is_now(is_told(worker, "read-only transaction"), True))
        # Connections that are open keep the setting; only new ones can write.
        own_server.psql(f"{read_only} off")
        async with open_journal(own_settings) as journal:
            size = await append(journal, random_events(Random(10), 60))
            await wait_visible(database, journal, size, TRADING, WAIT_SECONDS)


@pytest.mark.parametrize("command", ["run", "react"])
def test_no_database_at_the_start_is_an_error(command: str) -> None:
    """A program that never had a database does not wait for one: its address may be wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "projections", command],
        env=environment("postgresql://nobody@127.0.0.1:1/none"),
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 3
    assert done.stderr.count(b"\n") == 1


def now() -> datetime:
    """Return this machine's time, which is the databases' too."""
    return datetime.now(UTC)


async def append_steadily(journals: list[Journal], until: float) -> None:
    """Append to all journals in turn until the time is over."""
    loop = asyncio.get_running_loop()
    histories = [random_events(Random(number), 20_000) for number in range(len(journals))]
    start = 0
    while loop.time() < until and start < 20_000:
        for journal, history in zip(journals, histories, strict=True):
            await append(journal, history[start : start + 10])
        start += 10
        await asyncio.sleep(0.05)


class Crowd:
    """Up to three worker processes that are killed and started at random, one at least alive."""

    def __init__(self, url: str, random: Random) -> None:
        self._url = url
        self._random = random
        self.alive: list[WorkerProcess] = []
        self.all: list[WorkerProcess] = []
        self.ends: dict[str, datetime] = {}

    def start(self) -> None:
        """Start another."""
        worker = WorkerProcess(self._url, f"worker {len(self.all)}", LEASE_SECONDS)
        self.alive.append(worker)
        self.all.append(worker)

    async def kill(self) -> None:
        """Kill one of them."""
        worker = self.alive.pop(self._random.randrange(len(self.alive)))
        self.ends[worker.worker_id] = now()
        await asyncio.to_thread(worker.kill)

    async def live(self, until: float) -> None:
        """Let chance rule until the time is over; then there are three."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            await asyncio.sleep(self._random.uniform(0.1, 0.8))  # how long one lives is chance
            if len(self.alive) == 3 or (len(self.alive) == 2 and self._random.random() < 0.4):
                await self.kill()
            else:
                self.start()
        while len(self.alive) < 3:
            self.start()


@pytest.mark.timeout(120 + 2 * SECONDS)
async def test_killed_workers(settings: Settings, database: Database) -> None:
    """Whoever is killed, each pair has an owner within a lease, and never two that write.

    Three workers, three groups, four journals, kills and starts at random while events come.
    """
    crowd = Crowd(settings.database_url, Random(11))
    async with journals_of(settings, "b", "c", "d") as journals:
        await checkpoint_audit.begin(database)
        with ended(crowd.all):
            for _ in range(3):
                crowd.start()
            until = asyncio.get_running_loop().time() + SECONDS
            await asyncio.gather(append_steadily(journals, until), crowd.live(until))
            await eventually(lambda: caught_up(database))
            await eventually(lambda: is_owned_by(database, crowd.alive))
            finished = now()
            assert [worker.stop() for worker in crowd.alive] == [0, 0, 0]
        changes = await checkpoint_audit.read(database)
        assert len(changes) == 12
        longest = timedelta(0)
        for each in changes.values():
            checkpoint_audit.assert_one_writer(each)
            gap = checkpoint_audit.longest_without_owner(each, crowd.ends, finished)
            longest = max(longest, gap)
        print(f"{len(crowd.ends)} kills, without owner for {longest} at most")
        assert longest < timedelta(seconds=LEASE_SECONDS + SLACK_SECONDS)
        for journal in journals:
            assert (await verify(database, journal, GROUPS.values())).differences == 0


async def is_owned_by(database: Database, alive: list[WorkerProcess]) -> bool:
    """Tell whether each pair is one of these workers'."""
    return set((await owners(database)).values()) <= {worker.worker_id for worker in alive}


async def test_a_frozen_worker_writes_nothing_when_it_wakes(postgres_url: str) -> None:
    """Its pairs go to another one; when it goes on, it finds that it has lost them.

    On SQLite one that is frozen in its turn to write keeps everybody from writing.
    """
    settings = Settings(database_url=postgres_url, lease_seconds=LEASE_SECONDS)
    first = WorkerProcess(settings.database_url, "first", LEASE_SECONDS)
    workers_all = [first]
    async with journals_of(settings) as [journal], Database(settings) as database:
        await checkpoint_audit.begin(database)
        with ended(workers_all):
            await append(journal, random_events(Random(12), 300))
            await eventually(lambda: is_now(counts(database), {"first": 3}))
            first.freeze()
            workers_all.append(WorkerProcess(settings.database_url, "second", LEASE_SECONDS))
            await eventually(lambda: is_now(counts(database), {"second": 3}))
            first.thaw()
            size = await append(journal, random_events(Random(13), 300))
            await wait_visible(database, journal, size, TRADING, WAIT_SECONDS)
            await eventually(lambda: caught_up(database))
            assert [worker.stop() for worker in workers_all] == [0, 0]
        for each in (await checkpoint_audit.read(database)).values():
            checkpoint_audit.assert_one_writer(each)
        assert (await verify(database, journal, GROUPS.values())).differences == 0


@pytest.mark.parametrize(
    "locking",
    [
        "SELECT FROM checkpoints WHERE group_name = 'marks' FOR UPDATE",
        "INSERT INTO checkpoints (journal_id, group_name, size, fold_version, updated_at)"
        " SELECT journal_id, 'postings', 0, '', now() FROM journals",
    ],
    ids=["with a row locked", "with a row that keeps others from any beat"],
)
async def test_a_worker_frozen_within_a_statement_is_succeeded(
    locking: str, postgres_url: str
) -> None:
    """No timeout ends its transaction; another one has the server do it, and takes its pairs."""
    settings = Settings(database_url=postgres_url, lease_seconds=0.4)
    async with Database(settings) as database, Silent.connected(settings) as frozen:
        async with running(settings, groups=[TRADING, MARKS]):
            await eventually(lambda: is_now(owned(database), 2))
        await frozen.run(f"BEGIN; {locking}")
        await frozen.begin_statement()
        async with running(settings) as second:
            await eventually(lambda: is_now(counts(database), {second.worker.worker_id: 3}))
        assert await is_told(second, "ended 1 session(s) of a program")


async def owned(database: Database) -> int:
    """Return how many pairs have an owner."""
    return sum(owner is not None for owner in (await owners(database)).values())


async def test_projectors_without_a_lease_do_no_harm(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Those of a reactor, or of `--once`, take turns with a worker's: nothing is folded twice."""
    events: list[Event] = random_events(Random(14), 400)
    async with running(settings) as worker:
        for start in range(0, 400, 20):
            await append(journal, events[start : start + 20])
            await Projector(database, journal, TRADING, batch_size=7).catch_up()
        await eventually(lambda: caught_up(database))
    assert worker.lines == []
    for group in GROUPS.values():
        assert await assert_live_is_replay(journal, database, group) == 400


async def test_a_reactor_outlives_its_server(
    own_settings: Settings, own_server: PostgresServer
) -> None:
    """`projections react` connects again when its server is back, and says that it was away."""
    name = own_settings.database_url.rpartition("/")[2]
    at_work = "SELECT count(*) > 0 FROM checkpoints"
    connected = f"SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = '{name}'"
    process = start_reactor(own_settings)
    try:
        await eventually(lambda: is_now(asked(own_server, at_work, name), "t"))
        own_server.kill()
        assert process.stderr is not None
        told = await asyncio.wait_for(asyncio.to_thread(process.stderr.readline), WAIT_SECONDS)
        own_server.restart()
        await eventually(lambda: is_now(asked(own_server, connected), "t"))
        process.terminate()
        _, more = await asyncio.to_thread(process.communicate, timeout=WAIT_SECONDS)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, more
    assert all(line.startswith(b"reactor: ") for line in (told + more).splitlines())


def start_reactor(settings: Settings) -> subprocess.Popen[bytes]:
    """Start `projections react`."""
    return subprocess.Popen(
        [sys.executable, "-m", "projections", "react"],
        env=environment(settings.database_url),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


async def asked(server: PostgresServer, sql: str, database: str = "postgres") -> str:
    """Return what a server answers."""
    return await asyncio.to_thread(server.psql, sql, database)


async def test_work_is_begun_again_after_an_outage() -> None:
    """A lost database and an unknown outcome are tried again; what is no outage is an error."""
    outages = [StoreUnavailable("away"), AppendOutcomeUnknown("unclear")]
    errors, told = list[Exception](outages), list[Exception]()

    async def work() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    assert await outlast_outages(work, asyncio.Event(), told.append) == "done"
    assert told == outages
    for error in (SchemaMissing("run `ledger migrate`"), KeyError("a defect")):
        errors.append(error)
        with pytest.raises(type(error)):
            await outlast_outages(work, asyncio.Event(), told.append)
    stopping = asyncio.Event()
    errors.append(StoreUnavailable("away"))
    assert await outlast_outages(work, stopping, lambda _: stopping.set()) is None


def test_pauses_grow_up_to_a_bound() -> None:
    """Tries become rare, but never too rare, and no two workers try at the same moments."""
    backoff = Backoff()
    pauses = [backoff.next_seconds() for _ in range(20)]
    assert pauses[0] <= PAUSE_SECONDS_FIRST
    assert all(PAUSE_SECONDS_MAX / 2 <= each <= PAUSE_SECONDS_MAX for each in pauses[-5:])
    assert len(set(pauses)) == 20
    backoff.reset()
    assert backoff.next_seconds() <= PAUSE_SECONDS_FIRST


def test_the_same_error_is_told_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each; a database that is away is told once, not by every pair."""
    lines = list[str]()
    reporter = Reporter(lines.append)
    clock = [0.0]
    monkeypatch.setattr(reporting, "monotonic", lambda: clock[0])
    away = StoreUnavailable("away\nfor now")
    away.__cause__ = ConnectionRefusedError()
    for clock[0] in range(61):
        for pair in ("a", "b"):
            reporter.tell(pair, away)
            reporter.tell(pair, StoredEventInvalid(3, "odd"))
    odd = "event at offset 3 cannot be decoded: odd"
    assert lines == 2 * ["a: away for now", f"a: {odd}", f"b: {odd}"]


def test_only_a_lost_database_is_told_for_all() -> None:
    """What the database refuses of one pair is told with its name, though the error is the same."""
    lines = list[str]()
    reporter = Reporter(lines.append)
    for code in ("08006", "57P01", "55P03"):
        original = asyncpg.PostgresError(code)
        vars(original)["sqlstate"] = code
        for pair in ("a", "b"):
            with pytest.raises(StoreUnavailable) as caught, explained():
                raise sa.exc.OperationalError("SELECT 1", {}, original)
            reporter.tell(pair, caught.value)
    told = [line.replace("database: ", "") for line in lines]
    assert told == ["a: 08006", "a: 57P01", "a: 55P03", "b: 55P03"]
