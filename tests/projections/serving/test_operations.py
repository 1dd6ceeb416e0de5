"""What operators see and do, as the service's routes and the console ask for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

from ledger.errors import InvalidCommand
from ledger.journal import Journal
from ledger.settings import Settings
from projections.asides import Aside
from projections.database import Database
from projections.groups import TABLES, TRADING
from projections.operations import Operations, RebuildSeen
from projections.parking import ParkedKey, Part
from projections.projector import Projector
from projections.rebuilding import InvalidTables, RebuildRunning
from projections.retrying import NotParked
from tests.projections.poison import at, poisoned
from tests.projections.random_events import random_events
from tests.projections.rebuilds import assert_verified, execute, filled, project, until
from tests.projections.support import append

SECONDS = 30.0
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""What is the same on both databases is tried on the faster one."""


@pytest.fixture
async def operations(
    settings: Settings, journal: Journal, database: Database
) -> AsyncIterator[Operations]:
    """The operations of a service."""
    opened = Operations(settings, journal, database)
    yield opened
    await opened.close()


@pytest.fixture
def executor() -> Iterator[Executor]:
    """Threads that fold parts of rebuilds: they need no time to start."""
    with ThreadPoolExecutor(2) as threads:
        yield threads


class Held(ThreadPoolExecutor):
    """Folds nothing before it may."""

    def __init__(self) -> None:
        super().__init__(1)
        self.may_fold = threading.Event()

    def submit(self, work: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        """Run work once it may be."""

        def held() -> Any:
            assert self.may_fold.wait(SECONDS)
            return work(*arguments, **named)

        return super().submit(held)


async def ended(operations: Operations) -> RebuildSeen:
    """Return the latest rebuild once it has ended."""

    async def has_ended() -> bool:
        return operations.rebuilds()[0].state != "running"

    await until(has_ended, SECONDS)
    return operations.rebuilds()[0]


async def parked_order(journal: Journal, database: Database, operations: Operations) -> ParkedKey:
    """Append orders, let the fold of one fail, and return what is parked by it."""
    await append(journal, random_events(Random(4), 200))
    events = [event async for event in journal.read()]
    offset = next(each.offset for each in events if each.type == "OrderPlaced")
    await Projector(database, journal, poisoned(TRADING, at(("orders", offset)))).catch_up()
    found = await operations.parked()
    return next(each for each in found if (each.table, each.offset) == ("orders", offset))


async def test_a_mended_fold_is_retried(
    journal: Journal, database: Database, operations: Operations
) -> None:
    """A retry folds what is parked and all that has waited for it; then the tables are right."""
    key = await parked_order(journal, database, operations)
    retried = await operations.retry("orders", key.value, actor="user:ada")
    assert retried.freed > 0
    assert await operations.parked() == []
    await project(journal, database)
    await assert_verified(journal, database)


async def test_what_is_parked_comes_in_parts(
    journal: Journal, database: Database, operations: Operations
) -> None:
    """Parts fit together, also those of one table; one event's causes come first."""
    key = await parked_order(journal, database, operations)
    everything = await operations.parked()
    assert await operations.parked_count() == len(everything) > 2
    first, rest = Part(limit=2), Part(start=2, limit=1000)
    assert await operations.parked(first) + await operations.parked(rest) == everything
    orders = [each for each in everything if each.table == "orders"]
    assert await operations.parked(Part("orders")) == orders
    [cause] = await operations.parked(Part("orders", key.offset, limit=1))
    assert cause.error is not None


@on_sqlite
async def test_an_event_is_skipped_by_somebody_for_a_reason(
    journal: Journal, database: Database, operations: Operations
) -> None:
    """A skip is kept with who decided it and why, and what waited goes on."""
    key = await parked_order(journal, database, operations)
    skipped, _ = await operations.skip("orders", key.offset, "sent twice", "user:ada")
    assert (skipped.reason, skipped.actor, skipped.offset) == ("sent twice", "user:ada", key.offset)
    assert await operations.parked() == []
    with pytest.raises(NotParked):
        await operations.skip("orders", key.offset, "once more", "user:ada")


@on_sqlite
async def test_what_cannot_be_skipped_or_retried(operations: Operations) -> None:
    """Unknown tables, keys that are not parked and empty reasons are refused."""
    with pytest.raises(InvalidCommand, match="table"):
        await operations.retry("nowhere", "x")
    with pytest.raises(NotParked):
        await operations.retry("orders", "x")
    for reason in (" ", "two\nlines", "x" * 1001):
        with pytest.raises(InvalidCommand, match="reason"):
            await operations.skip("orders", 0, reason, "user:ada")


async def test_tables_are_rebuilt(
    journal: Journal, database: Database, operations: Operations, executor: Executor
) -> None:
    """A rebuild is done beside the service, says how far it is, and swaps right tables in."""
    size = await filled(journal, database, seed=1, count=100)
    started = operations.start_rebuild(["users"], accept=False, actor="x", executor=executor)
    assert (started.state, started.tables) == ("running", ("users",))
    seen = await ended(operations)
    assert (seen.state, seen.error) == ("done", None)
    assert seen.folded == seen.total > 0
    assert seen.total <= size
    await assert_verified(journal, database)


@on_sqlite
async def test_differences_are_swapped_in_only_if_they_are_accepted(
    journal: Journal, database: Database, operations: Operations, executor: Executor
) -> None:
    """A rebuild that finds the live table wrong says where, and leaves it unless told otherwise."""
    await filled(journal, database, seed=2, count=100)
    await execute(database, "UPDATE users SET is_active = NOT is_active")
    operations.start_rebuild(["users"], accept=False, actor="x", executor=executor)
    seen = await ended(operations)
    assert seen.state == "differs"
    assert "users" in seen.differences[0]
    operations.start_rebuild(["users"], accept=True, actor="x", executor=executor)
    assert (await ended(operations)).state == "done"
    await assert_verified(journal, database)


@on_sqlite
async def test_one_rebuild_at_a_time_and_a_stopped_one_leaves_all_as_it_was(
    journal: Journal, database: Database, operations: Operations
) -> None:
    """A second one is refused; when the service ends, the first is given up without a trace."""
    await filled(journal, database, seed=3, count=50)
    with Held() as executor:
        operations.start_rebuild(["marks"], accept=True, actor="x", executor=executor)
        with pytest.raises(RebuildRunning):
            operations.start_rebuild(["users"], accept=True, actor="x")
        asyncio.get_running_loop().call_later(0.2, executor.may_fold.set)
        await operations.close()
    assert operations.rebuilds()[0].state == "cancelled"
    await assert_verified(journal, database)


@on_sqlite
async def test_a_rebuild_that_cannot_be_done_says_why(operations: Operations) -> None:
    """Tables that are unknown are refused at once."""
    for tables in ([], ["users", "nowhere"]):
        with pytest.raises(InvalidTables):
            operations.start_rebuild(tables, accept=False, actor="x")


async def test_sizes_lag_and_pool(
    journal: Journal, database: Database, operations: Operations
) -> None:
    """Each table has a size, each group a state, and the pool says what is lent out."""
    await filled(journal, database, seed=5, count=60)
    assert [each.table for each in await operations.table_sizes()] == list(TABLES)
    assert {each.lag_events for each in await operations.statuses()} == {0}
    before = operations.pool().in_use
    async with database.snapshot():
        assert operations.pool().in_use == before + 1


async def test_work_aside_is_cancelled_whenever_that_is_asked() -> None:
    """Work in a thread of its own cleans up before `cancel` returns, also if it has just begun."""
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.sleep(SECONDS)
        finally:
            cleaned.append(True)

    aside = Aside("sleeper", work)
    await asyncio.to_thread(lambda: None)
    await aside.cancel()
    assert aside.result.done()
    assert isinstance(aside.result.exception(), asyncio.CancelledError)
