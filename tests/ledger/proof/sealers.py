"""Sealing in tests: keys, logs, and processes that seal and publish until they are killed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing

import asyncpg

from ledger.errors import LedgerError
from ledger.event import Metadata, NewEvent
from ledger.journal import Journal
from ledger.proof.entries import entry_of
from ledger.proof.folders import Folder
from ledger.proof.log import log_of
from ledger.proof.merkle import leaf_hash, root_of
from ledger.proof.notes import SigningKey
from ledger.proof.publish import publish
from ledger.proof.sealer import Sealer
from ledger.stores import Seal
from tests.ledger.support import Noted, an_id, opened

KEY = SigningKey("ledger/main", bytes(range(32)))
"""The key of the log in all tests."""


def notes(count: int, first: int = 0) -> list[NewEvent]:
    """Return events that always have the same ids, of several streams, some with metadata."""
    return [
        NewEvent(
            Noted(text=f"{number} \u00e4\u4e16\U0001f30d" * (number % 3)),
            f's{number % 7} "\\',
            an_id(number),
            metadata=Metadata(actor=f"a{number}") if number % 2 else None,
        )
        for number in range(first, first + count)
    ]


async def append(journal: Journal, count: int) -> int:
    """Append so many events; return the journal's size."""
    size = await journal.size()
    for first in range(size, size + count, 500):
        await journal.append(notes(min(500, size + count - first), first))
    return size + count


async def seal(journal: Journal, step_events: int = 5_000) -> Seal:
    """Seal up to the end."""
    return await Sealer(journal, KEY, step_events=step_events).catch_up()


async def wait_sealed(journal: Journal, size: int, seconds: float = 60) -> Seal:
    """Wait until so many events are sealed; return the seal."""
    async with asyncio.timeout(seconds):
        while True:
            now = await log_of(journal).seal()
            if now is not None and now.size >= size:
                return now
            await asyncio.sleep(0.01)


async def root_of_events(journal: Journal, size: int) -> bytes:
    """Return the root of the first events, made in another way than the sealer makes it."""
    events = await journal.store.read(journal.journal_id, 0, size)
    return root_of([leaf_hash(entry_of(journal.name, each)) for each in events])


def seal_until_killed(url: str, step_events: int) -> None:
    """Be a process that seals, a little at a time."""
    asyncio.run(_seal_until_killed(url, step_events))


async def _seal_until_killed(url: str, step_events: int) -> None:
    async with opened(url) as journal:
        sealer = Sealer(journal, KEY, step_events=step_events)
        await sealer.follow(asyncio.Event(), _ignore)


def _ignore(_error: LedgerError) -> None:
    pass


def publish_until_killed(url: str, directory: str) -> None:
    """Be a process that publishes again and again."""
    asyncio.run(_publish_until_killed(url, directory))


async def _publish_until_killed(url: str, directory: str) -> None:
    async with opened(url) as journal:
        while True:
            await publish(journal, Folder(directory))


_TRIGGERS = "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE tgenabled = 'A'"


async def tamper(url: str, *statements: str) -> None:
    """Change a database as somebody would who owns it and its files: past all triggers."""
    if url.startswith("sqlite"):
        await asyncio.to_thread(_tamper_sqlite, url.removeprefix("sqlite:///"), statements)
        return
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            triggers = await connection.fetch(_TRIGGERS)
            for table, name in triggers:
                await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {name}")
            for statement in statements:
                await connection.execute(statement)
            for table, name in triggers:
                await connection.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")
    finally:
        await connection.close()


def _tamper_sqlite(file: str, statements: Sequence[str]) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for _, made in triggers:
            connection.execute(made)
        connection.execute("COMMIT")
