"""Wake-ups: who waits for a journal is told at once, and finds out anyway when nobody tells."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import asyncpg
import pytest

from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from ledger.stores import postgres_wakeups
from ledger.stores.postgres import PostgresStore
from ledger.stores.postgres_wakeups import LISTENING_POLL_SECONDS, Notifier
from ledger.stores.wakeups import POLL_SECONDS, Hub, Wakeups
from projections.database import Database
from projections.groups import MARKS
from projections.projector import Projector, wait_visible
from tests.ledger.support import note
from tests.projections.random_events import random_events
from tests.projections.support import append, assert_live_is_replay

WAIT_SECONDS = 30


@pytest.fixture
def postgres(postgres_url: str) -> Settings:
    """Settings for what only PostgreSQL can do."""
    return Settings(database_url=postgres_url)


async def listening(journal: Journal) -> None:
    """Wait until the journal's store listens."""
    assert isinstance(journal.store, PostgresStore)
    async with asyncio.timeout(WAIT_SECONDS):
        while journal.store._hub.poll_seconds != LISTENING_POLL_SECONDS:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def woken(wakeups: Wakeups) -> None:
    """Wait until somebody wakes, not just until the poll is due."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not await wakeups.wait():
            pass


async def still(wakeups: Wakeups) -> None:
    """Wait until nothing is heard any more."""
    async with asyncio.timeout(WAIT_SECONDS):
        while await wakeups.wait():
            pass


async def test_an_append_wakes_its_own_process(journal: Journal) -> None:
    """Whoever waits in the same process is woken by the append, and by no other journal's."""
    other = Journal(journal.store, await journal.store.create_journal("other"))
    async with journal.wakeups() as wakeups, other.wakeups() as elsewhere:
        if isinstance(journal.store, PostgresStore):
            await listening(journal)
        await still(elsewhere)
        await journal.append(note())
        await woken(wakeups)
        assert not elsewhere._woken.is_set()


async def test_a_wait_ends_without_a_wake_up(journal: Journal) -> None:
    """The poll is due after some time, or after the time given if that is shorter."""
    async with journal.wakeups() as wakeups:
        await still(wakeups)
        async with asyncio.timeout(WAIT_SECONDS):
            assert not await wakeups.wait()
            assert not await wakeups.wait(0)


async def test_an_append_wakes_other_processes(postgres: Settings) -> None:
    """On PostgreSQL the news goes from store to store, without waiting for a poll."""
    async with (
        open_journal(postgres) as writing,
        open_journal(postgres) as reading,
        reading.wakeups() as wakeups,
    ):
        await listening(reading)
        await still(wakeups)
        for _ in range(3):
            await writing.append(note())
            await woken(wakeups)


async def test_a_repeated_append_wakes_nobody(postgres: Settings) -> None:
    """An append that finds its events stored has no news to tell."""
    async with open_journal(postgres) as journal:
        event = note()
        await journal.append(event)
        async with journal.wakeups() as wakeups:
            await still(wakeups)
            assert (await journal.append(event)).duplicate
            assert not wakeups._woken.is_set()


async def test_a_lost_listening_connection_is_made_again(postgres: Settings) -> None:
    """After the server has ended it, the poll is quick until there is another."""
    async with (
        open_journal(postgres) as writing,
        open_journal(postgres) as reading,
        reading.wakeups() as wakeups,
    ):
        await listening(reading)
        await end_listeners(postgres)
        async with asyncio.timeout(WAIT_SECONDS):
            while wakeups._hub.poll_seconds != POLL_SECONDS:  # noqa: ASYNC110 - the server does it
                await asyncio.sleep(0)
        await listening(reading)
        await still(wakeups)
        await writing.append(note())
        await woken(wakeups)


async def end_listeners(settings: Settings) -> None:
    """End all connections that listen."""
    connection = await asyncpg.connect(settings.database_url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    )
    await connection.close()


async def test_a_deaf_listener_does_no_harm(
    postgres: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a connection looks healthy but brings nothing, the poll finds the events."""
    monkeypatch.setattr(postgres_wakeups.Listener, "_heard", lambda *_: None)
    async with open_journal(postgres) as writing, open_journal(postgres) as reading:
        waiting = asyncio.create_task(reading.wait(1, WAIT_SECONDS))
        await asyncio.sleep(0)
        async with reading.wakeups():
            await listening(reading)
        await writing.append(note())
        assert await waiting == 1


async def test_false_and_repeated_wake_ups_do_no_harm(journal: Journal, database: Database) -> None:
    """A projector that is woken again and again, also for nothing, folds each event once."""
    stopping = asyncio.Event()
    projector = Projector(database, journal, MARKS, batch_size=7)
    running = asyncio.create_task(projector.run(stopping))
    store: Any = journal.store
    events = random_events(Random(1), 200)
    for start in range(0, 200, 10):
        await append(journal, events[start : start + 10])
        for _ in range(5):
            store._hub.wake(journal.journal_id)
            store._hub.wake_all()
            await asyncio.sleep(0)
    await wait_visible(database, journal, 200, MARKS, WAIT_SECONDS)
    stopping.set()
    assert await running == 200
    assert await assert_live_is_replay(journal, database, MARKS) == 200


async def test_notifications_that_fail_are_no_ones_business(
    postgres: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Appends succeed, nothing is said, and no task or connection is left behind."""

    async def fail(*_: object, **__: object) -> None:
        raise asyncpg.TooManyConnectionsError("no more connections")

    before = asyncio.all_tasks()
    async with open_journal(postgres) as journal:
        monkeypatch.setattr(Notifier, "_send", fail)
        for size in range(1, 4):
            assert (await journal.append(note())).size == size
    assert asyncio.all_tasks() == before


async def test_notifications_are_put_together() -> None:
    """However many batches there are, one notification is under way at a time, for all of them."""
    sent: list[Any] = []
    is_sending, release = asyncio.Event(), asyncio.Event()

    class Connection:
        def is_closed(self) -> bool:
            return False

        def terminate(self) -> None:
            pass

        async def execute(self, _sql: str, _channel: str, grown: list[int], **_: object) -> None:
            sent.append(grown)
            is_sending.set()
            await release.wait()

    async def connect() -> Any:
        return Connection()

    notifier = Notifier(connect, WAIT_SECONDS)
    notifier.notify(1)
    await is_sending.wait()
    for journal_id in (2, 1, 2, 3) * 10:
        notifier.notify(journal_id)
    release.set()
    await notifier.close()
    assert sent == [[1], [1, 2, 3]]


async def test_a_payload_that_means_nothing_is_ignored() -> None:
    """Anybody may notify the channel; what is no journal's id wakes nobody."""
    hub = Hub()
    listener = postgres_wakeups.Listener(_never, hub)
    with hub.watching(1) as wakeups:
        for payload in ("", "x", "-1", "1; DROP TABLE", "2", "9" * 100):
            listener._heard(None, 0, "", payload)
        assert not wakeups._woken.is_set()
        listener._heard(None, 0, "", "1")
        assert wakeups._woken.is_set()


async def _never() -> Any:
    raise AssertionError
