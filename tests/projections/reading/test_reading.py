"""Reading live tables and the past: what is folded, what is kept of it, and what is waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from ledger.errors import LedgerError
from ledger.journal import Journal, open_journal
from ledger.services import Ledger
from ledger.settings import Settings
from projections.database import Database
from projections.groups import GROUPS, TABLES
from projections.history import Window
from projections.keyed import projection_of
from projections.model import values_of
from projections.points import InvalidRequest
from projections.projector import Projector
from projections.reading import NotCaughtUp, PointUnknown, Reading
from projections.reading.apart import Apart, ExportTooLong, ReplayTooLong, Shared
from projections.reading.attributes import ATTRIBUTES, Shown
from projections.reading.folded import Folded
from projections.reading.paging import Filter, Query
from projections.reading.spooling import Form
from projections.rendering import plain
from tests.projections.erasing import VICTIM, live
from tests.projections.random_events import random_events
from tests.projections.support import append

SIZE = 250


@pytest.fixture
async def reading(
    settings: Settings, journal: Journal, database: Database
) -> AsyncIterator[Reading]:
    """The read side of the default journal, with events of all kinds that are projected."""
    await append(journal, random_events(Random(7), SIZE, odd_chance=0))
    await project(journal, database)
    reading = Reading(settings, journal, database)
    yield reading
    await reading.close()


@pytest.fixture
async def journal_and_database(sqlite_url: str) -> AsyncIterator[tuple[Journal, Database]]:
    """Both on a fresh SQLite file; data keys are kept no longer than they are used."""
    settings = Settings(database_url=sqlite_url, key_cache_seconds=0)
    async with open_journal(settings) as journal, Database(settings) as database:
        yield journal, database


async def project(journal: Journal, database: Database) -> None:
    """Let all groups catch up."""
    for group in GROUPS.values():
        await Projector(database, journal, group).catch_up()


async def test_one_row_is_what_pages_show(
    reading: Reading, journal: Journal, database: Database
) -> None:
    """A row by its key is that of the page, live and in the past; so ends its history."""
    await append(journal, random_events(Random(8), 50, odd_chance=0))
    for at in (None, str(SIZE - 40)):
        for table in TABLES:
            key = projection_of(table).key
            page = await reading.page(Query(table, limit=5), at)
            assert page.rows, table
            for row in page.rows[:2]:
                point, found = await reading.row(table, row[key], at)
                assert (point.size, found) == (page.point.size, row)
                _, history = await reading.history(table, row[key], str(page.point.size))
                last = history.changes[-1].columns
                assert last == {name: row[name] for name in page.columns}
                assert history.changes[-1].offset + 1 == row["changed_size"]


async def test_what_is_not_projected_yet_can_be_read_by_its_size(
    reading: Reading, journal: Journal
) -> None:
    """At the journal's end tables are folded where they are behind, also those that only grow."""
    size = await append(journal, random_events(Random(8), 100, odd_chance=0))
    for table in ("orders", "security_audit_logs", "postings"):
        query = Query(table, limit=1000)
        behind, now = await reading.page(query), await reading.page(query, str(size))
        assert (behind.point.size, now.point.size) == (SIZE, size)
        assert len(now.rows) > len(behind.rows)
        new = next(row for row in now.rows if row["changed_size"] > SIZE)
        key = new[projection_of(table).key]
        assert (await reading.row(table, key, str(size)))[1] == new
        assert (await reading.row(table, key))[1] != new
    with pytest.raises(PointUnknown, match="holds only"):
        await reading.page(Query("orders"), str(size + 1))


async def test_folds_are_shared_and_kept(
    journal_and_database: tuple[Journal, Database],
) -> None:
    """Who asks at the same time waits for one fold, who asks later finds it, within bounds."""
    journal, database = journal_and_database
    await append(journal, random_events(Random(7), SIZE, odd_chance=0))
    folded, orders = Folded(kept_max=2), projection_of("orders")
    await asyncio.gather(*(folded.table(journal, database, orders, 100) for _ in range(5)))
    assert folded.folds == 1
    for size in (100, 101, 100, 102, 100):
        await folded.table(journal, database, orders, size)
    assert folded.folds == 3
    await folded.table(journal, database, orders, 101)
    assert folded.folds == 4
    narrow = Folded(rows_max=1)
    for _ in range(2):
        await narrow.table(journal, database, orders, 200)
    assert narrow.folds == 2


async def test_what_is_too_large_to_keep_leaves_the_rest(
    journal_and_database: tuple[Journal, Database],
) -> None:
    """A fold with more rows than are kept in all is not kept, and drops no other one."""
    journal, database = journal_and_database
    await append(journal, random_events(Random(7), SIZE, odd_chance=0))
    orders = projection_of("orders")
    few = len((await Folded().table(journal, database, orders, 60)).rows)
    folded = Folded(rows_max=few)
    for size in (60, SIZE, 60, SIZE):
        await folded.table(journal, database, orders, size)
    assert folded.folds == 3


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_states_of_a_row_come_in_parts(reading: Reading) -> None:
    """Parts of a history fit together, also where all events have to be folded for it."""
    for table in ("positions", "orders", "marks", "security_audit_logs"):
        key = projection_of(table).key
        rows = (await reading.page(Query(table, sort=(("changed_size", True),), limit=2))).rows
        for row in rows:
            _, whole = await reading.history(table, row[key])
            parts: list[Any] = []
            after = -1
            while len(parts) < len(whole.changes):
                _, found = await reading.history(table, row[key], None, Window(after, 2))
                assert 1 <= len(found.changes) <= 2
                parts, after = parts + found.changes, found.changes[-1].offset
            assert parts == whole.changes


async def test_histories_are_shared_and_come_one_at_a_time(
    journal_and_database: tuple[Journal, Database],
) -> None:
    """Who asks for the same states at the same time gets those of one look at the journal."""
    journal, database = journal_and_database
    folded, at_work, most, made = Folded(), 0, 0, 0
    part, go_on = TABLES["marks"].only(["marks"]), asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, go_on.set)

    async def make() -> int:
        nonlocal at_work, most, made
        at_work, made = at_work + 1, made + 1
        most = max(most, at_work)
        await go_on.wait()
        at_work -= 1
        return made

    asked = [("marks", token, 0, None) for token in ("BTC", "ETH", "BTC", "BTC")]
    await asyncio.gather(*(folded.one_row(journal, database, part, each, make) for each in asked))
    assert (made, most) == (2, 1)


@pytest.mark.usefixtures("reading")
async def test_computed_attributes_are_those_of_the_models(
    journal: Journal, database: Database
) -> None:
    """Rows are shown with just what the models compute of their columns."""
    for table, names in ATTRIBUTES.items():
        projection = projection_of(table)
        rows = (await Folded().table(journal, database, projection, SIZE)).rows
        shown = Shown(projection, {"BTC": Decimal(90), "ETH": Decimal(7)})
        assert rows
        for row in rows:
            model: Any = projection.model(**values_of(row))
            if table == "positions":
                model.current_price = shown.prices.get(model.token)
            found = shown.row(row)
            assert {name: found[name] for name in names} == {
                name: plain(getattr(model, name)) for name in names
            }


async def test_one_who_goes_away_spoils_it_for_none() -> None:
    """Shared work goes on while anybody waits for it, and is given up when all have gone."""
    shared, begun, go_on, given_up = Shared(), asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> int:
        begun.set()
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            given_up.set()
            raise
        return 7

    gone, stays = (asyncio.create_task(shared.get("key", work)) for _ in range(2))
    await begun.wait()
    gone.cancel()
    await asyncio.wait([gone])
    assert not given_up.is_set()
    go_on.set()
    assert await stays == 7
    go_on.clear()
    begun.clear()
    alone = asyncio.create_task(shared.get("key", work))
    await begun.wait()
    alone.cancel()
    await asyncio.wait_for(given_up.wait(), 10)


async def test_what_was_kept_of_the_erased_is_dropped(
    journal_and_database: tuple[Journal, Database],
) -> None:
    """After an erasure no kept fold shows what it held of the person."""
    journal, database = journal_and_database
    ledger = Ledger(journal, database.settings)
    await live(ledger, VICTIM)
    reading = Reading(database.settings, journal, database)
    size = str(await journal.size())
    query = Query("users", filters=(Filter("user_id", "eq", str(VICTIM.user_id)),))
    for _ in range(2):
        [row] = (await reading.page(query, size)).rows
        assert (row["username"], row["is_erased"]) == (VICTIM.name, False)
    await ledger.users.erase(user_id=VICTIM.user_id, reason="case 1")
    [row] = (await reading.page(query, size)).rows
    assert (row["username"], row["email"], row["is_erased"]) == (None, None, True)
    await reading.close()
    await ledger.close()


async def test_a_fold_that_takes_too_long_is_given_up(
    journal_and_database: tuple[Journal, Database],
) -> None:
    """It ends with an error that says what to do; what comes after it is answered."""
    journal, database = journal_and_database
    await append(journal, random_events(Random(7), SIZE, odd_chance=0))
    hasty = database.settings.model_copy(update={"http_timeout_seconds": 0.001})
    reading = Reading(hasty, journal, database)
    with pytest.raises(ReplayTooLong, match="snapshot"):
        await reading.page(Query("orders"), str(SIZE - 1))
    assert (await reading.page(Query("orders"))).point.size == 0
    await reading.close()


async def test_a_file_that_takes_too_long_is_given_up(
    journal_and_database: tuple[Journal, Database],
) -> None:
    """It ends with an error of its own: nothing was folded for it."""
    journal, database = journal_and_database
    hasty = database.settings.model_copy(update={"http_timeout_seconds": 0.001})
    reading = Reading(hasty, journal, database)
    with pytest.raises(ExportTooLong, match="fewer rows"):
        await reading.export(Query("orders"), Form.CSV)
    await reading.close()


async def test_files_wait_for_their_turn_and_pages_of_the_past_do_not(
    journal_and_database: tuple[Journal, Database],
) -> None:
    """While two files are written, a third one waits as long as it may; what is folded comes."""
    journal, database = journal_and_database
    await append(journal, random_events(Random(7), 20, odd_chance=0))
    brief = database.settings.model_copy(update={"http_timeout_seconds": 2})
    reading = Reading(brief, journal, database)
    for _ in range(2):
        await reading.exporting.acquire()
    assert (await reading.page(Query("orders"), "20")).point.size == 20
    waiting = asyncio.create_task(reading.export(Query("orders"), Form.CSV))
    assert (await reading.page(Query("orders"), "19")).point.size == 19
    with pytest.raises(ExportTooLong):
        await waiting
    await reading.close()


async def test_work_apart_runs_in_a_thread_that_ends(sqlite_url: str) -> None:
    """It has its own journal and database; errors come back, and closing ends what is under way."""
    before = set(threading.enumerate())
    apart = Apart(Settings(database_url=sqlite_url), "main")

    async def named(journal: Journal, _database: Database) -> tuple[str, str]:
        return journal.name, threading.current_thread().name

    async def failing(_journal: Journal, _database: Database) -> None:
        raise LedgerError("no")

    async def endless(_journal: Journal, _database: Database) -> None:
        started.set()
        await asyncio.Event().wait()

    started = threading.Event()
    assert await apart.run(named, 10) == ("main", "apart")
    with pytest.raises(LedgerError, match="no"):
        await apart.run(failing, 10)
    waiting = asyncio.create_task(apart.run(endless, 60))
    await asyncio.to_thread(started.wait, 10)
    await apart.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    begun = set(threading.enumerate()) - before  # others may have such threads too
    assert "apart" not in {each.name for each in begun}


async def test_readers_wait_until_the_tables_have_come(
    reading: Reading, journal: Journal, database: Database
) -> None:
    """All tables, or those that are shown together, have come to a size, or that is said."""
    assert await reading.wait_projected(SIZE, 0)
    await reading.wait_for_table("positions", SIZE, 0)
    size = await append(journal, random_events(Random(8), 10, odd_chance=0))
    assert not await reading.wait_projected(size, 0.01)
    waiting = [asyncio.create_task(reading.wait_projected(size, 10)) for _ in range(3)]
    with pytest.raises(NotCaughtUp):
        await reading.wait_for_table("marks", size, 0.01)
    await Projector(database, journal, GROUPS["marks"]).catch_up()
    await reading.wait_for_table("marks", size, 10)
    with pytest.raises(NotCaughtUp):
        await reading.wait_for_table("positions", size, 0.01)
    assert not any(each.done() for each in waiting)
    await project(journal, database)
    assert await asyncio.gather(*waiting) == [True] * 3
    with pytest.raises(PointUnknown):
        await reading.wait_for_table("marks", size + 1, 10)


async def test_differences_come_in_parts(reading: Reading) -> None:
    """Parts of a difference fit together; what changed is what two points show."""
    ends = str(SIZE - 60), str(SIZE)
    _, _, whole = await reading.diff(*ends)
    parts: list[Any] = []
    while len(found := (await reading.diff(*ends, limit=9, start=len(parts)))[2]) == 9:
        parts += found
    assert parts + found == whole
    with pytest.raises(InvalidRequest, match="sizes"):
        await reading.diff("2026-01-01T00:00:00Z", ends[1], start=1)
    _, _, orders = await reading.diff(*ends, table="orders")
    before = {row["order_id"]: row for row in (await _orders(reading, ends[0]))}
    after = {row["order_id"]: row for row in (await _orders(reading, ends[1]))}
    differing = {key for key, row in after.items() if before.get(key) != row}
    assert {each.key for each in orders} == differing
    for each in orders:
        assert each.after == {name: after[each.key][name] for name in each.after or ()}


async def _orders(reading: Reading, at: str) -> list[dict[str, Any]]:
    return (await reading.page(Query("orders", limit=1000), at)).rows
