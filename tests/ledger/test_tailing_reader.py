"""A reader that follows the journal misses nothing, whatever happens to the writers.

LEDGER_TEST_TAIL_SECONDS says for how long they write.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from ledger.event import RecordedEvent
from ledger.journal import Journal
from ledger.stores import Appended
from tests.ledger.support import assert_sound, note, opened, read_all
from tests.ledger.workers import Record, append_steadily, ended, hold_transactions, start

SECONDS = float(os.environ.get("LEDGER_TEST_TAIL_SECONDS", "4"))
STEADY, HOLDING = 6, 2
KILL_EVERY_EVENTS = 500


class Tail:
    """Follows a journal and checks what it is given."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.ids: list[UUID] = []
        self.versions: dict[str, int] = {}

    async def follow(self, ended: asyncio.Event) -> None:
        """Read what comes until the writers have ended and everything is read."""
        while True:
            last_round = ended.is_set()
            with suppress(TimeoutError):
                size = await self.journal.wait(len(self.ids) + 1, timeout_seconds=0.2)
                await self._read_to(size)
                continue
            if last_round:
                return

    async def _read_to(self, size: int) -> None:
        async for chunk in self.journal.read_chunks(len(self.ids), size):
            for event in chunk:
                self._take(event)
        assert len(self.ids) == size, f"missed events: size {size}, but {len(self.ids)} read"

    def _take(self, event: RecordedEvent) -> None:
        assert event.offset == len(self.ids), f"missed events before offset {event.offset}"
        version = self.versions.get(event.stream, 0) + 1
        assert event.version == version, f"missed versions before offset {event.offset}"
        self.versions[event.stream] = version
        self.ids.append(event.event_id)


class Writers:
    """Eight processes: steady ones, which are killed now and then, and holders of transactions."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.deadline = time.monotonic() + SECONDS
        self.records: list[Record] = []
        self.withdrawn: list[Record] = []
        self.processes: list[BaseProcess] = []
        self.killed = 0

    def start_all(self) -> None:
        """Start the writers."""
        for _ in range(STEADY):
            self._start_steady()
        for _ in range(HOLDING):
            self.withdrawn.append(Record(self.folder / f"withdrawn {len(self.withdrawn)}"))
            arguments = (self._seconds(), self._record(), self.withdrawn[-1])
            self.processes.append(start(hold_transactions, self.url, *arguments))

    def kill_one(self) -> None:
        """Kill a steady writer in the middle of its work and start another."""
        victim = self.processes.pop(0)
        victim.kill()
        victim.join()
        self.killed += 1
        self._start_steady(place=STEADY - 1)

    async def join(self) -> None:
        """Wait until all have ended by themselves."""
        for process in self.processes:
            await asyncio.to_thread(process.join, 60)
            assert process.exitcode == 0

    def _start_steady(self, place: int | None = None) -> None:
        process = start(append_steadily, self.url, self._seconds(), self._record())
        self.processes.insert(len(self.processes) if place is None else place, process)

    def _record(self) -> Record:
        self.records.append(Record(self.folder / f"record {len(self.records)}"))
        return self.records[-1]

    def _seconds(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


async def disturb(writers: Writers, tail: Tail) -> None:
    """Kill writers as the reader gets on, until the time is over."""
    goal = KILL_EVERY_EVENTS
    while time.monotonic() < writers.deadline:
        if len(tail.ids) >= goal:
            writers.kill_one()
            goal = len(tail.ids) + KILL_EVERY_EVENTS
        await asyncio.sleep(0.01)


async def test_a_tailing_reader_misses_nothing(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It sees every event once and in order, and none that was rolled back."""
    writers = Writers(database_url, tmp_path)
    async with opened(database_url) as journal:
        tail, done = Tail(journal), asyncio.Event()
        following = asyncio.create_task(tail.follow(done))
        with ended(writers.processes):
            writers.start_all()
            await disturb(writers, tail)
            await writers.join()
        done.set()
        await following
        assert tail.ids == [event.event_id for event in await read_all(journal)]
    offsets = {event_id: offset for offset, event_id in enumerate(tail.ids)}
    for record in writers.records:
        assert record.read().items() <= offsets.items()
    for record in writers.withdrawn:
        assert offsets.keys().isdisjoint(record.read())
    assert writers.killed > 0
    withdrawn = sum(len(record.read()) for record in writers.withdrawn)
    assert withdrawn > 0
    with capsys.disabled():
        kind = database_url.partition(":")[0]
        print(
            f"\n{kind}: {len(tail.ids):,} events read in {SECONDS:g} s of writing; "
            f"{writers.killed} writers killed, {withdrawn} events rolled back"
        )


INSERT = """INSERT INTO events (journal_id, "offset", event_id, stream, version, type,
    schema_version, occurred_at, recorded_at, body) VALUES """
BODY = b'{"type":"Noted"}'


async def write_unlocked_postgres(url: str) -> None:
    """Take an offset from a sequence and commit a little later, as one would without the lock."""
    connection = await asyncpg.connect(url)
    values = "(1, $1, gen_random_uuid(), $2, 1, 'Noted', 1, now(), now(), $3)"
    try:
        while True:
            async with connection.transaction():
                offset = await connection.fetchval("SELECT nextval('offsets')")
                await connection.execute(INSERT + values, offset, f"s{offset}", BODY)
                await asyncio.sleep(random.random() * 0.02)
    finally:
        connection.terminate()


async def write_unlocked_sqlite(url: str) -> None:
    """Take an offset in a transaction of its own, and write the event in the next."""
    path = url.removeprefix("sqlite:///")
    now = "'2026-01-01T00:00:00.000000Z'"
    values = f"(1, ?, ?, ?, 1, 'Noted', 1, {now}, {now}, ?)"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        while True:
            [(offset,)] = connection.execute("UPDATE offsets SET n = n + 1 RETURNING n").fetchall()
            await asyncio.sleep(random.random() * 0.02)
            connection.execute(INSERT + values, (offset, uuid4().hex, f"s{offset}", BODY))
            await asyncio.sleep(0)


async def take_the_lock_out(url: str) -> Callable[[str], Coroutine[None, None, None]]:
    """Prepare a database for writers that do not take turns; return such a writer."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file, file:
            file.execute("DROP TRIGGER events_replace")
            file.execute("CREATE TABLE offsets AS SELECT -1 AS n")
        return write_unlocked_sqlite
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE SEQUENCE offsets MINVALUE 0")
    await connection.close()
    return write_unlocked_postgres


async def visible_size(url: str) -> int:
    """Return what a reader takes for the size where no row keeps it."""
    sql = 'SELECT coalesce(max("offset") + 1, 0) FROM events'
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            return int(file.execute(sql).fetchone()[0])
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval(sql))
    finally:
        await connection.close()


async def test_without_the_lock_the_reader_does_miss_events(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above means something: it fails where offsets are not given out under the lock."""
    write = await take_the_lock_out(database_url)
    async with opened(database_url) as journal:
        monkeypatch.setattr(journal.store, "size", lambda _: visible_size(database_url))
        writers = [asyncio.create_task(write(database_url)) for _ in range(8)]
        try:
            with pytest.raises(AssertionError, match="missed events"):
                await asyncio.wait_for(Tail(journal).follow(asyncio.Event()), 60)
        finally:
            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)


async def test_without_the_lock_the_keys_still_hold(postgres_url: str) -> None:
    """Should the function lose its lock, the key keeps an offset from being given out twice."""
    owner = await asyncpg.connect(postgres_url)
    source = await owner.fetchval("SELECT pg_get_functiondef('ledger_append'::regproc)")
    assert source.count("FOR UPDATE") == 1
    slow = "PERFORM pg_sleep(0.05); v_now := greatest"
    await owner.execute(source.replace("FOR UPDATE", "").replace("v_now := greatest", slow))
    await owner.close()
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        results = await asyncio.gather(
            *(journal.append(note(f"s{n}")) for n, journal in enumerate([one, two] * 5)),
            return_exceptions=True,
        )
        events = await read_all(one)
    assert_sound(events)
    acknowledged = [result.offsets[0] for result in results if isinstance(result, Appended)]
    assert sorted(acknowledged) == [event.offset for event in events]
