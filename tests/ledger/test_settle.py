"""Asking for the size at a time waits for appends under way, and holds up none that come later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TypeAlias

import asyncpg
import pytest

from ledger.stores import Appended
from tests.ledger.support import known_note, note, opened

SETTLE = "SELECT * FROM ledger_settle(1, NULL)"
APPEND = """SELECT ledger_append(1, NULL, '{1}', '{1}', '{1}', '{-1}',
    ARRAY[gen_random_uuid()], '{s}', '{Noted}', '{1}', ARRAY[NULL]::timestamptz[],
    ARRAY[NULL]::bytea[], ARRAY['{"type":"Noted"}'::bytea],
    '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')"""
WAITED_SECONDS = 0.5

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def another(postgres_url: str) -> AsyncIterator[Connection]:
    """A session of somebody else."""
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read"])
async def test_a_reader_does_not_hold_up_appends(
    postgres_url: str, another: Connection, isolation: str
) -> None:
    """Whoever has asked and leaves the transaction open is in nobody's way."""
    async with opened(postgres_url, append_timeout_seconds=2) as journal:
        await journal.append(note())
        async with another.transaction(isolation=isolation):  # type: ignore[arg-type]
            settled = await another.fetchrow(SETTLE)
            assert settled is not None
            assert settled["size"] == 1
            assert await journal.append(known_note(1)) == Appended((1,))
            assert await another.fetchval("SELECT 1") == 1
        assert await journal.size() == 2


async def test_two_readers_do_not_hold_up_each_other(
    postgres_url: str, another: Connection
) -> None:
    """An open transaction that has asked lets others ask."""
    async with opened(postgres_url) as journal:
        appended = await journal.append(note())
        [event] = [event async for event in journal.read(appended.offsets[0])]
        async with another.transaction():
            await another.execute(SETTLE)
            async with asyncio.timeout(10):
                assert (await journal.size_at(event.recorded_at)).size == 1


async def test_the_size_at_a_time_waits_for_an_append_under_way(
    postgres_url: str, another: Connection
) -> None:
    """While somebody holds the journal to append to it, there is no answer."""
    async with opened(postgres_url) as journal:
        await journal.append(note())
        [event] = [event async for event in journal.read()]
        async with another.transaction():
            await another.execute("SELECT * FROM journals WHERE journal_id = 1 FOR UPDATE")
            asked = asyncio.create_task(journal.size_at(event.recorded_at))
            done, _ = await asyncio.wait([asked], timeout=WAITED_SECONDS)
            assert not done
        async with asyncio.timeout(10):
            assert (await asked).size == 1


async def test_an_append_under_way_is_counted(postgres_url: str, another: Connection) -> None:
    """What had its time of recording before the question is part of the answer."""
    async with opened(postgres_url) as journal:
        await journal.append(note())
        [event] = [event async for event in journal.read()]
        moment = event.recorded_at + timedelta(days=1)
        async with another.transaction():
            await another.execute(APPEND)
            asked = asyncio.create_task(journal.size_at(moment))
            done, _ = await asyncio.wait([asked], timeout=WAITED_SECONDS)
            assert not done
        async with asyncio.timeout(10):
            assert (await asked).size == 2
