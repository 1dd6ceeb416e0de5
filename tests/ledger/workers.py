"""What tests run in processes of their own: writers of several kinds."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from ledger.conditions import ExpectedVersion
from ledger.errors import VersionConflict
from ledger.event import NewEvent
from ledger.prepare import prepare
from ledger.stores import PreparedAppend
from ledger.stores.postgres import _APPEND
from ledger.stores.postgres_batch import Batch as PostgresBatch
from ledger.stores.sqlite_batch import Batch as SqliteBatch
from ledger.stores.turns import turn
from tests.ledger.support import note, opened
from tests.support.forks import FORKS

HOLD_SECONDS_MAX = 0.03
MAIN = 1


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a process that does `work`."""
    process = FORKS.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


@contextmanager
def ended(processes: list[BaseProcess]) -> Iterator[None]:
    """Leave no process behind, whatever happens."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


class Record:
    """A file of event ids and the offsets they were acknowledged with, which outlives a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, events: Sequence[NewEvent], offsets: Sequence[int]) -> None:
        """Write at once what was acknowledged."""
        lines = [f"{new.event_id} {at}\n" for new, at in zip(events, offsets, strict=True)]
        with self.path.open("a") as file:
            file.write("".join(lines))

    def read(self) -> dict[UUID, int]:
        """Return what was acknowledged."""
        if not self.path.exists():
            return {}
        pairs = (line.split() for line in self.path.read_text().splitlines())
        return {UUID(event_id): int(offset) for event_id, offset in pairs}


def some_notes() -> list[NewEvent]:
    """Return one to four events for streams that all writers share."""
    return [note(f"s{random.randrange(10)}") for _ in range(random.randint(1, 4))]


def append_steadily(url: str, seconds: float, record: Record) -> None:
    """Append from several callers at once until the time is over."""
    asyncio.run(_append_steadily(url, time.monotonic() + seconds, record))


async def _append_steadily(url: str, deadline: float, record: Record) -> None:
    async with opened(url) as journal:

        async def caller() -> None:
            while time.monotonic() < deadline:
                events = some_notes()
                record.note(events, (await journal.append(events)).offsets)

        await asyncio.gather(*(caller() for _ in range(3)))


def append_count(url: str, count: int, record: Record) -> None:
    """Append so many events one after the other."""
    asyncio.run(_append_count(url, count, record))


async def _append_count(url: str, count: int, record: Record) -> None:
    async with opened(url) as journal:
        for _ in range(count):
            event = note(f"s{random.randrange(3)}")
            record.note([event], (await journal.append(event)).offsets)


def increment(url: str, count: int) -> None:
    """Append so many events to one hot stream, each expecting the version seen last."""
    asyncio.run(_increment(url, count))


async def _increment(url: str, count: int) -> None:
    version = 0
    async with opened(url) as journal:
        while count:
            try:
                await journal.append(note("hot"), ExpectedVersion("hot", version))
            except VersionConflict as conflict:
                version = conflict.actual
            else:
                version += 1
                count -= 1


def hold_transactions(url: str, seconds: float, record: Record, withdrawn: Record) -> None:
    """Append in transactions that stay open for a while; roll every other one back."""
    deadline = time.monotonic() + seconds
    if url.startswith("sqlite"):
        _hold_on_sqlite(Path(url.removeprefix("sqlite:///")), deadline, record, withdrawn)
    else:
        asyncio.run(_hold_on_postgres(url, deadline, record, withdrawn))


def _hold_on_sqlite(path: Path, deadline: float, record: Record, withdrawn: Record) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        while time.monotonic() < deadline:
            events = some_notes()
            with turn(path, 30):
                connection.execute("BEGIN IMMEDIATE")
                batch = SqliteBatch(connection, MAIN, datetime.now(UTC))
                first = batch.size
                batch.run([prepare(events, ())])
                time.sleep(random.random() * HOLD_SECONDS_MAX)
                kept = random.random() < 0.5
                connection.execute("COMMIT" if kept else "ROLLBACK")
            (record if kept else withdrawn).note(events, range(first, first + len(events)))


async def _hold_on_postgres(url: str, deadline: float, record: Record, withdrawn: Record) -> None:
    connection = await asyncpg.connect(url)
    while time.monotonic() < deadline:
        events = some_notes()
        transaction = connection.transaction()
        await transaction.start()
        answer = await connection.fetchrow(_APPEND, *append_arguments(prepare(events, ())))
        assert answer is not None
        await asyncio.sleep(random.random() * HOLD_SECONDS_MAX)
        kept = random.random() < 0.5
        await (transaction.commit() if kept else transaction.rollback())
        (record if kept else withdrawn).note(events, answer["e_offset"])
    await connection.close()


def append_arguments(append: PreparedAppend) -> list[Any]:
    """Return the arguments of `ledger_append` for one append."""
    return [MAIN, None, [1], *PostgresBatch([append], [1]).arguments()]
