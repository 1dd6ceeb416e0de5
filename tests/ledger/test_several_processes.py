"""Several processes write to one journal."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ledger.errors import StoreUnavailable
from ledger.stores.turns import turn
from tests.ledger.support import assert_sound, note, opened, read_all, store_of
from tests.ledger.workers import Record, append_count, append_steadily, ended, increment, start

PROCESSES = 4


async def test_every_acknowledged_event_is_stored_once(database_url: str, tmp_path: Path) -> None:
    """No gaps, versions in order, and each event where its writer was told it is."""
    records = [Record(tmp_path / str(n)) for n in range(PROCESSES)]
    processes = [start(append_count, database_url, 100, record) for record in records]
    with ended(processes):
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * PROCESSES
    async with opened(database_url) as journal:
        events = await read_all(journal)
    assert_sound(events)
    acknowledged = {key: at for record in records for key, at in record.read().items()}
    assert acknowledged == {event.event_id: event.offset for event in events}
    assert len(events) == 100 * PROCESSES


async def test_a_hot_stream_counts_exactly(database_url: str) -> None:
    """Deciding again after each conflict loses nothing and counts nothing twice."""
    processes = [start(increment, database_url, 40) for _ in range(PROCESSES)]
    with ended(processes):
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * PROCESSES
    async with opened(database_url) as journal:
        events = await read_all(journal)
    assert [event.version for event in events] == list(range(1, 40 * PROCESSES + 1))


def test_nobody_starves(database_url: str, tmp_path: Path) -> None:
    """In a given time each process gets its share of the turns to write."""
    seconds = 2.0
    records = [Record(tmp_path / str(n)) for n in range(PROCESSES)]
    processes = [start(append_steadily, database_url, seconds, record) for record in records]
    started = time.monotonic()
    with ended(processes):
        for process in processes:
            process.join(60)
    assert time.monotonic() - started < 30
    counts = [len(record.read()) for record in records]
    assert min(counts) > max(counts) / 5, counts


async def test_killed_processes_block_nobody(database_url: str, tmp_path: Path) -> None:
    """Locks of processes that die while they write are free at once, and nothing is half done."""
    records = [Record(tmp_path / str(n)) for n in range(PROCESSES)]
    processes = [start(append_steadily, database_url, 60, record) for record in records]
    with ended(processes):
        deadline = time.monotonic() + 30
        while min(len(record.read()) for record in records) < 20:
            assert time.monotonic() < deadline
    async with opened(database_url) as journal:
        await journal.append(note())
        events = await read_all(journal)
        stored = {event.event_id: event.offset for event in events}
        for record in records:
            assert record.read().items() <= stored.items()
        assert await journal.size() == len(events)
    assert_sound(events)


async def test_a_frozen_writer_does_not_stop_the_others_for_ever(sqlite_url: str) -> None:
    """Who waits too long for its turn is told that nothing was stored, and by whom."""
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    async with opened(sqlite_url, append_timeout_seconds=0.2) as journal:
        with turn(path, 1), pytest.raises(StoreUnavailable, match="another process has held"):
            await journal.append(note())
        appended = await journal.append(note())
    assert appended.offsets == (0,)


async def test_opening_at_the_same_moment(sqlite_url: str) -> None:
    """Whoever puts a file into WAL mode while others do waits, though SQLite itself does not."""
    path = sqlite_url.removeprefix("sqlite:///")
    for _ in range(20):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
        stores = [store_of(sqlite_url) for _ in range(8)]
        found = await asyncio.gather(*(store.journals() for store in stores))
        await asyncio.gather(*(store.close() for store in stores))
        assert [each[0].name for each in found] == ["main"] * 8


async def test_a_refused_change_to_wal_mode_is_tried_again(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite may refuse it at once, rarely, while others open the file; that is no error."""
    refusals = iter([True, True])

    class Refused(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if "journal_mode" in sql and next(refusals, False):
                raise sqlite3.OperationalError("database is locked")
            return super().execute(sql, *arguments)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Refused))
    store = store_of(sqlite_url)
    assert [each.name for each in await store.journals()] == ["main"]
    await store.close()
    assert next(refusals, None) is None
