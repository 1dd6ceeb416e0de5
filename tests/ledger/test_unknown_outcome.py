"""What callers are told when the database is lost while it commits.

An append either returns the one right answer or says that the outcome is unknown, and then the same
append again settles it: nothing is stored twice, and nothing acknowledged is lost.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from ledger.errors import AppendOutcomeUnknown, StoreUnavailable, TagTaken
from ledger.event import NewEvent
from ledger.journal import Journal
from ledger.migrate import migrate
from ledger.stores import Appended
from tests.ledger.proxy import Cut, Proxy
from tests.ledger.support import (
    assert_sound,
    known_note,
    note,
    opened,
    read_all,
    settings_for,
    store_of,
)
from tests.postgres import PostgresServer

OWN_SETTINGS = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB"}


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that may be crashed and frozen."""
    with PostgresServer.start(OWN_SETTINGS, in_memory=True) as server:
        yield server


@pytest.fixture
def own_url(own_server: PostgresServer) -> Iterator[str]:
    """A fresh, migrated database on it."""
    url = own_server.create_database()
    migrate(settings_for(url))
    yield url
    own_server.drop_database(url)


async def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - it holds elsewhere, nobody tells
            await asyncio.sleep(0.01)


async def settled(journal: Journal, *events: NewEvent) -> Appended:
    """Append until the answer is certain."""
    while True:
        try:
            return await journal.append(events)
        except (AppendOutcomeUnknown, StoreUnavailable):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def behind_proxy(
    url: str, append_timeout_seconds: float = 30
) -> AsyncIterator[tuple[Journal, Proxy]]:
    """Open a journal by way of a proxy; one event is stored already, so the statement is known."""
    async with (
        Proxy.started(url) as proxy,
        opened(proxy.url, append_timeout_seconds=append_timeout_seconds) as journal,
    ):
        await journal.append(note())
        yield journal, proxy


@pytest.mark.parametrize("cut", Cut)
async def test_a_lost_connection_is_made_good(postgres_url: str, cut: Cut) -> None:
    """Wherever the connection is cut, the caller gets the right offset and it is stored once."""
    async with behind_proxy(postgres_url) as (journal, proxy):
        proxy.cut = cut
        appended = await journal.append([known_note(1, text="MARKED"), known_note(2)])
        assert appended.offsets == (1, 2)
        await proxy.deliver_late()
        assert (await journal.append(note())).offsets == (3,)
        assert proxy.cuts == 1
        assert_sound(await read_all(journal))


async def test_the_lost_server_process_is_ended_first(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    """What a second try refuses must not be stored by the first one later on."""
    database = postgres_url.rpartition("/")[2]
    appending = f"""SELECT pid FROM pg_stat_activity
        WHERE datname = '{database}' AND query LIKE '%ledger_append%' AND pid <> pg_backend_pid()"""
    async with behind_proxy(postgres_url) as (journal, proxy):
        await journal.append(note("holder", claimed=("name",)))
        lost = postgres_server.psql(appending)
        proxy.cut = Cut.KEEP_SERVER
        with pytest.raises(TagTaken):
            await journal.append(note("s", text="MARKED", claimed=("name",)))
        await journal.append(note("holder", released=("name",)))
        assert lost
        assert lost not in postgres_server.psql(appending).split()
        await proxy.deliver_late()
        assert await journal.size() == 3


async def test_every_caller_of_a_lost_batch_gets_its_answer(postgres_url: str) -> None:
    """A batch that has to be asked for again answers each of its callers rightly."""
    async with behind_proxy(postgres_url) as (journal, proxy):
        proxy.cut = Cut.BEFORE_ANSWER
        calls = [journal.append(known_note(n, text="MARKED")) for n in range(50)]
        results = await asyncio.gather(*calls)
        assert [result.offsets for result in results] == [(n,) for n in range(1, 51)]
        assert_sound(await read_all(journal))


@pytest.mark.parametrize(
    ("cut", "is_stored"), [(Cut.BEFORE_REQUEST, False), (Cut.BEFORE_ANSWER, True)]
)
async def test_a_database_that_stays_away_leaves_the_outcome_unknown(
    postgres_url: str, cut: Cut, is_stored: bool
) -> None:
    """Neither success nor failure is claimed; the same append settles it when it is back."""
    async with behind_proxy(postgres_url, append_timeout_seconds=1) as (journal, proxy):
        proxy.cut, proxy.refusing = cut, True
        event = known_note(1, text="MARKED")
        started = time.monotonic()
        with pytest.raises(AppendOutcomeUnknown, match="append again with the same event ids"):
            await journal.append(event)
        assert time.monotonic() - started < 3
        with pytest.raises(StoreUnavailable):
            await journal.append(known_note(2))
        proxy.refusing = False
        assert await journal.append(event) == Appended((1,), duplicate=is_stored)
        assert await journal.size() == 2


async def test_a_refusal_after_an_unclear_commit_leaves_the_outcome_unknown(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    """That the second try is refused says nothing about the first, which was committed."""
    name = postgres_url.rpartition("/")[2]
    read_only = f'ALTER DATABASE "{name}" SET default_transaction_read_only TO'
    async with behind_proxy(postgres_url) as (journal, proxy):
        postgres_server.psql(f"{read_only} on")
        proxy.cut = Cut.BEFORE_ANSWER
        event = known_note(1, text="MARKED")
        with pytest.raises(AppendOutcomeUnknown):
            await journal.append(event)
        with pytest.raises(StoreUnavailable, match="read-only"):
            await journal.append(event)
        postgres_server.psql(f"{read_only} off")
    async with opened(postgres_url) as journal:
        assert await journal.append(event) == Appended((1,), duplicate=True)


async def test_terminated_server_processes(own_server: PostgresServer, own_url: str) -> None:
    """Server processes that an administrator ends leave no append without a certain answer."""
    database = own_url.rpartition("/")[2]
    kill = f"""SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = '{database}' AND pid <> pg_backend_pid()"""
    offsets: list[int] = []
    done = False

    async def appending(journal: Journal, stream: str) -> None:
        while not done:
            offsets.extend((await settled(journal, note(stream), note(stream))).offsets)

    async with opened(own_url) as one, opened(own_url) as two:
        tasks = [asyncio.create_task(appending(j, f"s{n}")) for n, j in enumerate((one, two, one))]
        killed = 0
        while killed < 20:
            killed += int(await asyncio.to_thread(own_server.psql, kill))
        done = True
        await asyncio.gather(*tasks)
    async with opened(own_url) as journal:
        events = await read_all(journal)
    assert_sound(events)
    assert sorted(offsets) == [event.offset for event in events]


async def appending_for_ever(journal: Journal, acknowledged: dict[UUID, int]) -> None:
    """Append event after event, each until the answer is certain."""
    while True:
        event = note(f"s{random.randrange(3)}")
        acknowledged[event.event_id] = (await settled(journal, event)).offsets[0]


async def test_a_server_killed_at_random_moments(own_server: PostgresServer, own_url: str) -> None:
    """After each crash every acknowledged event is where it was said to be, none twice."""
    acknowledged: dict[UUID, int] = {}
    async with opened(own_url) as one, opened(own_url) as two:
        tasks = [
            asyncio.create_task(appending_for_ever(journal, acknowledged))
            for journal in (one, two) * 4
        ]
        for _ in range(4):
            goal = len(acknowledged) + random.randint(10, 200)
            await until(lambda goal=goal: len(acknowledged) >= goal)  # type: ignore[misc]
            await asyncio.to_thread(own_server.kill)
            await asyncio.to_thread(own_server.restart)
        goal = len(acknowledged) + 10
        await until(lambda: len(acknowledged) >= goal)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    async with opened(own_url) as journal:
        events = await read_all(journal)
    assert_sound(events)
    stored = {event.event_id: event.offset for event in events}
    assert acknowledged.items() <= stored.items()


@asynccontextmanager
async def standby_missing(server: PostgresServer) -> AsyncIterator[None]:
    """Make every commit wait for a standby that does not exist."""
    await asyncio.to_thread(_set_standby, server, "nobody")
    try:
        yield
    finally:
        await asyncio.to_thread(_set_standby, server, "")


def _set_standby(server: PostgresServer, name: str) -> None:
    server.psql(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
    server.psql("SELECT pg_reload_conf()")
    while server.psql("SHOW synchronous_standby_names") != name:
        time.sleep(0.01)


async def signal_waiting(server: PostgresServer, function: str) -> None:
    """Cancel or terminate the server process that waits for the standby."""
    sql = f"SELECT count({function}(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    await until(lambda: server.psql(sql) == "1")


async def test_a_cancelled_wait_for_a_standby(own_server: PostgresServer, own_url: str) -> None:
    """What is stored here but perhaps nowhere else is no success until a retry has waited too."""
    event = known_note(1)
    async with opened(own_url) as journal:
        await journal.append(note())
        async with standby_missing(own_server):
            task = asyncio.create_task(journal.append(event))
            await signal_waiting(own_server, "pg_cancel_backend")
            with pytest.raises(AppendOutcomeUnknown, match="synchronous replication"):
                await task
            again = asyncio.create_task(journal.append(event))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(again), 0.5)
        assert await again == Appended((1,), duplicate=True)


async def test_a_terminated_wait_for_a_standby(own_server: PostgresServer, own_url: str) -> None:
    """The second try, of the store itself, waits for the standby as the first did."""
    async with opened(own_url) as journal:
        await journal.append(note())
        async with standby_missing(own_server):
            task = asyncio.create_task(journal.append(known_note(1)))
            await signal_waiting(own_server, "pg_terminate_backend")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(task), 0.5)
        assert (await task).offsets == (1,)


async def test_a_standby_that_never_answers(own_server: PostgresServer, own_url: str) -> None:
    """An append that outlasts its time is unknown, not refused: it is stored here."""
    async with opened(own_url, append_timeout_seconds=1) as journal:
        await journal.append(note())
        async with standby_missing(own_server):
            with pytest.raises(AppendOutcomeUnknown):
                await journal.append(known_note(1))
        assert await settled(journal, known_note(1)) == Appended((1,), duplicate=True)


async def test_a_frozen_server(own_server: PostgresServer, own_url: str) -> None:
    """A server that says nothing is given up in time, for appends and for reads."""
    async with opened(
        own_url,
        append_timeout_seconds=1,
        statement_timeout_seconds=1,
        connect_timeout_seconds=1,
    ) as journal:
        await journal.append(note())
        frozen = own_server.pids
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(AppendOutcomeUnknown):
                await journal.append(known_note(1))
            assert time.monotonic() - started < 2
            with pytest.raises(StoreUnavailable):
                await journal.size()
            with pytest.raises(StoreUnavailable):
                await journal.append(known_note(2))
            await journal.store.close()
            assert time.monotonic() - started < 10
        finally:
            for pid in reversed(frozen):
                os.kill(pid, signal.SIGCONT)
    async with opened(own_url) as journal:
        assert (await settled(journal, known_note(1))).offsets == (1,)
        assert [event.offset for event in await read_all(journal)] == [0, 1]


async def test_a_journal_locked_by_somebody_else(postgres_url: str) -> None:
    """An append that cannot get the lock in time is refused for certain, and nothing is stored."""
    locker = await asyncpg.connect(postgres_url)
    async with opened(postgres_url, append_timeout_seconds=1) as journal:
        async with locker.transaction():
            await locker.execute("SELECT * FROM journals FOR UPDATE")
            with pytest.raises(StoreUnavailable, match="statement timeout"):
                await journal.append(known_note(1))
        assert await journal.append(known_note(1)) == Appended((0,))
    await locker.close()


@pytest.mark.parametrize("url", ["postgresql://me:secret@127.0.0.1:1/x", "sqlite:////nowhere/x.db"])
async def test_a_database_that_is_away_from_the_start(url: str) -> None:
    """Nothing was sent, so nothing is unknown; the password is not in the message."""
    store = store_of(url, connect_timeout_seconds=2)
    with pytest.raises(StoreUnavailable) as caught:
        await store.size(1)
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreUnavailable):
        async with opened(url):
            pass
    await store.close()


async def test_a_server_that_comes_late(own_server: PostgresServer, own_url: str) -> None:
    """A journal that found no server works as soon as there is one."""
    async with opened(own_url, connect_timeout_seconds=1) as journal:
        own_server.stop()
        with pytest.raises(StoreUnavailable):
            await journal.append(known_note(1))
        own_server.restart()
        assert await journal.append(known_note(1)) == Appended((0,))


class FailingConnection(sqlite3.Connection):
    """Fails the next commits, before or after they have happened."""

    fail: tuple[str, ...] = ()
    then: str | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Execute, or fail instead or afterwards."""
        cls = FailingConnection
        if sql.startswith("BEGIN") and not cls.fail and cls.then:
            raise sqlite3.OperationalError(cls.then)
        if sql != "COMMIT" or not cls.fail:
            return super().execute(sql, parameters)
        moment, *rest = cls.fail
        cls.fail = tuple(rest)
        if moment == "after":
            super().execute(sql, parameters)
        raise sqlite3.OperationalError("disk I/O error")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[FailingConnection]:
    """Make the connections of the SQLite store fail when told to."""
    connect = functools.partial(sqlite3.connect, factory=FailingConnection)
    monkeypatch.setattr("ledger.stores.sqlite.sqlite3.connect", connect)
    monkeypatch.setattr(FailingConnection, "fail", ())
    monkeypatch.setattr(FailingConnection, "then", None)
    return FailingConnection


@pytest.mark.parametrize(
    "moments", [("before",), ("after",), ("before", "after"), ("before", "before")]
)
async def test_a_failing_commit_is_tried_again(
    sqlite_url: str, failing: type[FailingConnection], moments: tuple[str, ...]
) -> None:
    """A COMMIT that fails, whether it has happened or not, ends in one stored event."""
    async with opened(sqlite_url) as journal:
        failing.fail = moments
        assert (await journal.append(known_note(1))).offsets == (0,)
        assert_sound(await read_all(journal))
        assert await journal.size() == 1


@pytest.mark.parametrize(("moment", "is_stored"), [("before", False), ("after", True)])
async def test_commits_that_keep_failing_leave_the_outcome_unknown(
    sqlite_url: str, failing: type[FailingConnection], moment: str, is_stored: bool
) -> None:
    """After some tries the caller is told; the same append settles it later."""
    async with opened(sqlite_url) as journal:
        failing.fail = (moment,) + ("before",) * 9
        with pytest.raises(AppendOutcomeUnknown, match="disk I/O error"):
            await journal.append(known_note(1))
        failing.fail = ()
        assert await journal.append(known_note(1)) == Appended((0,), duplicate=is_stored)


async def test_an_error_after_an_unclear_commit_leaves_the_outcome_unknown(
    sqlite_url: str, failing: type[FailingConnection]
) -> None:
    """That the second try cannot even begin says nothing about the first."""
    async with opened(sqlite_url) as journal:
        failing.fail, failing.then = ("after",), "database is locked"
        with pytest.raises(AppendOutcomeUnknown):
            await journal.append(known_note(1))
        with pytest.raises(StoreUnavailable, match="locked"):
            await journal.append(known_note(1))
        failing.then = None
        assert await journal.append(known_note(1)) == Appended((0,), duplicate=True)


async def test_a_full_disk_stores_nothing_and_says_so(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite ends the transaction itself then; the next append works when there is room."""
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(file)) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    full = True

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = sqlite3.Connection(*arguments, **options)
        if full:
            connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr("ledger.stores.sqlite.sqlite3.connect", connect)
    async with opened(sqlite_url) as journal:
        with pytest.raises(StoreUnavailable, match="full"):
            await journal.append([note(text="x" * 30_000) for _ in range(3)])
        assert await journal.size() == 0
    full = False
    async with opened(sqlite_url) as journal:
        await journal.append(note())
