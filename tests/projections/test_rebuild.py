"""Rebuilding: new tables are the fold of the journal, in the declared shape."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError, StoredEventInvalid
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from ledger.stores.opening import open_store
from projections import rebuilding
from projections.bookkeeping import checkpoints, skipped_events
from projections.bookkeeping import side_tables as side_table_rows
from projections.checkpoints import CheckpointAhead
from projections.database import Database
from projections.groups import GROUPS, MARKS, TRADING
from projections.projector import Projector
from projections.rebuilding import (
    BuildFailed,
    CannotSwap,
    InvalidTables,
    KeptFoldUnknown,
    KeptTableExists,
    KeptTableMissing,
    PartlySwapped,
    RebuildRunning,
    Watch,
    drop_old,
    rebuild,
    rollback,
    side_tables,
)
from projections.rebuilding.plan import Plan, Share
from projections.rebuilding.pool import processes
from projections.rebuilding.side import beside, is_side_table, restored
from projections.security_audit_logs import ACTIONS
from tests.ledger.test_migrations import config_for, shape
from tests.projections.random_events import random_events
from tests.projections.rebuilds import (
    ALL,
    OPTIONS,
    Asked,
    assert_verified,
    execute,
    fetch,
    filled,
    project,
    rebuilt,
    rolled_back,
)
from tests.projections.support import append, assert_live_is_replay


async def shapes(database: Database) -> dict[str, Any]:
    """Return all that can be told about the tables, and what else there is in the schema."""
    async with database.engine.connect() as connection:
        return await connection.run_sync(shape)


async def everything(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """Return the rows of all read tables."""
    return {table: await fetch(database, f"SELECT * FROM {table} ORDER BY 1, 2") for table in ALL}


@pytest.mark.parametrize("table", ALL)
async def test_each_table_is_rebuilt_as_it_was(
    settings: Settings, journal: Journal, database: Database, table: str
) -> None:
    """A rebuilt table has the very rows and the very shape; the one before is kept beside it."""
    await filled(journal, database, seed=ALL.index(table))
    before, shaped = await everything(database), await shapes(database)
    outcome = await rebuilt(settings, [table])
    assert outcome.swapped == (table,)
    assert all(each.is_same for each in outcome.compared)
    assert await everything(database) == before
    [kept] = await side_tables(database)
    assert (kept.name, kept.table, kept.role) == (f"{table}__old", table, "old")
    await drop_old(settings, [table])
    assert await shapes(database) == shaped
    await project(journal, database)
    await assert_verified(journal, database)


@pytest.mark.parametrize("seed", range(3))
async def test_all_tables_of_random_histories(
    settings: Settings, journal: Journal, database: Database, seed: int
) -> None:
    """Rebuilt tables equal the live ones, whatever part was projected, and projecting goes on."""
    random = Random(seed)
    size = await append(journal, random_events(random, 400))
    for group in GROUPS.values():
        await Projector(database, journal, group, batch_size=50).catch_up(random.randrange(size))
    outcome = await rebuilt(settings, rows_max=random.choice((1, 50, 100_000)))
    assert outcome.compared
    assert all(each.is_same for each in outcome.compared)
    for group in GROUPS.values():
        assert await assert_live_is_replay(journal, database, group) == size
    await append(journal, random_events(random, 100))
    await project(journal, database)
    await assert_verified(journal, database)


async def test_the_shape_is_the_declared_one(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Whatever was changed by hand, rebuilt tables are as declared, to `alembic check` as well."""
    await filled(journal, database, seed=4, count=100)
    shaped = await shapes(database)
    await execute(
        database,
        "ALTER TABLE orders ADD COLUMN extra TEXT DEFAULT 'x'",
        "DROP INDEX ix_orders_journal_id_book",
    )
    outcome = await rebuilt(settings)
    [orders] = (each for each in outcome.compared if each.table == "orders")
    assert orders.is_same
    assert orders.columns_only_old == ("extra",)
    await asyncio.to_thread(command.check, config_for(settings.database_url))
    await drop_old(settings)
    assert await shapes(database) == shaped


async def test_many_journals(settings: Settings, database: Database) -> None:
    """The rows of all journals are there, whether projected, empty, or new to the projectors."""
    store = open_store(settings)
    for name in ("second", "empty", "new"):
        await store.create_journal(name)
    await store.close()
    for seed, name in enumerate(("main", "second", "new")):
        async with open_journal(settings, name) as journal:
            await append(journal, random_events(Random(seed), 150))
            if name != "new":
                await project(journal, database)
    await rebuilt(settings, rows_max=1)
    for name in ("main", "second", "empty", "new"):
        async with open_journal(settings, name) as journal:
            await assert_verified(journal, database)
    sizes = await fetch(database, "SELECT journal_id, size FROM checkpoints ORDER BY 1, 2")
    assert {size for _, size in sizes} == {0, 150}


async def test_a_part_of_a_group_meets_its_checkpoint(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """A table that is swapped alone is at the size of the others, however long the journal is."""
    size = await append(journal, random_events(Random(5), 300))
    await Projector(database, journal, TRADING).catch_up(120)
    await rebuilt(settings, ["positions"])
    assert await assert_live_is_replay(journal, database, TRADING) == 120
    await rebuilt(settings, [each.name for each in TRADING.projections], replace_old=True)
    assert await assert_live_is_replay(journal, database, TRADING) == size


async def test_differences_are_told_and_asked_about(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """What the new table corrects is told row by row; it is swapped in only if accepted."""
    await filled(journal, database, seed=6)
    await execute(
        database,
        "UPDATE orders SET failed_reason = 'nobody knows'",
        "DELETE FROM postings WHERE entry = 0",
        "INSERT INTO marks SELECT journal_id, 'GONE', price, exact_price, source, marked_at, flags,"
        " changed_size FROM marks LIMIT 1",
    )
    tampered = await everything(database)
    watch = Asked(accepts=False)
    outcome = await rebuilt(settings, ["orders", "postings", "marks"], watch)
    assert outcome.swapped == ()
    orders, marks, postings = watch.compared
    assert (marks.only_old, marks.only_new) == ((1, "GONE"), (0, None))
    assert [each.column for each in orders.differing] == ["failed_reason"]
    assert orders.differing[0].rows == orders.old_rows
    assert orders.differing[0].old == "nobody knows"
    assert postings.only_new[0] == postings.new_rows - postings.old_rows > 0
    assert (postings.only_old[0], postings.differing) == (0, ())
    assert "failed_reason differs in" in str(orders)
    assert await everything(database) == tampered
    assert await side_tables(database) == []
    outcome = await rebuilt(settings, ["orders", "postings", "marks"], Asked(accepts=True))
    assert outcome.swapped == ("orders", "marks", "postings")
    await assert_verified(journal, database)


async def test_a_fold_that_changes_others_is_noticed(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Tables that were not asked for, but would differ, are named: their fold has changed too."""
    await filled(journal, database, seed=7)
    await execute(database, "UPDATE users SET email = 'somebody@example.org'")
    watch = Asked(accepts=False)
    await rebuilt(settings, ["positions"], watch)
    [users] = watch.compared
    assert (users.table, users.is_asked) == ("users", False)
    assert "rebuild it as well" in str(users)


async def test_back_and_forth(settings: Settings, journal: Journal, database: Database) -> None:
    """A rollback brings back the kept table, caught up; the same again brings back the new one."""
    await filled(journal, database, seed=8)
    shaped = await shapes(database)
    await rebuilt(settings, ["positions"])
    await execute(database, "ALTER TABLE positions__old ADD COLUMN mark TEXT")
    for seed, marked in ((9, True), (10, False)):
        await append(journal, random_events(Random(seed), 80))
        await project(journal, database)
        await rolled_back(settings, ["positions"])
        await assert_verified(journal, database)
        columns = (await shapes(database))["positions"]
        assert ("mark" in [column[0] for column in columns["columns"]]) is marked
    await drop_old(settings)
    assert await shapes(database) == shaped


async def test_rollback_needs_the_fold_that_filled_the_table(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """A kept table of another fold is left alone, and its version is named."""
    await filled(journal, database, seed=9, count=60)
    with pytest.raises(KeptTableMissing, match="no table is kept beside marks"):
        await rolled_back(settings, ["marks"])
    update = checkpoints.update().where(checkpoints.c.group_name == MARKS.name)
    async with database.transaction() as connection:
        await connection.execute(update.values(fold_version="0.9"))
    await rebuilt(settings, ["marks"])
    assert (await fetch(database, "SELECT fold_version FROM checkpoints WHERE group_name='marks'"))[
        0
    ] == (MARKS.fold_version,)
    with pytest.raises(KeptFoldUnknown, match=r"version 0\.9"):
        await rolled_back(settings, ["marks"])
    await assert_verified(journal, database)


async def test_what_cannot_be_asked(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Unknown tables, none, and a kept table in the way are refused, and the way out is named."""
    with pytest.raises(InvalidTables, match="'nothing'; there are users"):
        await rebuilt(settings, ["nothing"])
    with pytest.raises(InvalidTables, match="no table is named"):
        await rebuild(settings, [])
    with pytest.raises(KeptTableMissing):
        await drop_old(settings, ["orders"])
    await filled(journal, database, seed=10, count=40)
    await rebuilt(settings, ["marks"])
    with pytest.raises(KeptTableExists, match="drop-old"):
        await rebuilt(settings, ["marks"])
    await rebuilt(settings, ["marks"], replace_old=True)
    assert await drop_old(settings) == ["marks__old"]
    assert await drop_old(settings) == []


async def test_only_one_at_a_time(settings: Settings, journal: Journal, database: Database) -> None:
    """While one rebuilds, another is refused; afterwards it is not."""
    await filled(journal, database, seed=11, count=60)

    held = asyncio.Event()

    class Holding(Watch):
        """Tells when it is at work."""

        def stage(self, text: str) -> None:
            if text == "folding":
                held.set()

    first = asyncio.create_task(rebuilt(settings, ["marks"], Holding()))
    await held.wait()
    with pytest.raises(RebuildRunning, match="another rebuild"):
        await rebuilt(settings, ["orders"])
    assert (await first).swapped == ("marks",)
    assert (await rebuilt(settings, ["orders"])).swapped == ("orders",)


async def test_leftovers_are_cleared_away(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """What a killed rebuild has left is dropped by the next, or by a rollback."""
    await filled(journal, database, seed=12, count=60)
    left = "new_0123abcd"
    columns = "name, table_name, group_name, role, fold_version, made_at"
    for table in ("orders", "users"):
        made = "2026-01-01T00:00:00.000000Z"
        await execute(
            database,
            f"CREATE TABLE {table}__{left} (x INTEGER)",
            f"INSERT INTO side_tables ({columns}) VALUES "
            f"('{table}__{left}', '{table}', 'trading', 'new', '2', '{made}')",
            "INSERT INTO side_checkpoints (name, journal_id, size) "
            f"VALUES ('{left} {table}', 1, 7)",
        )
    await rebuilt(settings, ["marks"])
    assert [each.name for each in await side_tables(database)] == ["marks__old"]
    async with database.engine.connect() as connection:
        names = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
    assert [name for name in names if is_side_table(name)] == ["marks__old"]
    assert await fetch(database, "SELECT name FROM side_checkpoints") == [("marks__old",)]


async def test_a_killed_process_fails_the_rebuild(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Where a process that folds is killed, the rebuild says so and leaves everything as it was."""
    await filled(journal, database, seed=13)
    before = await everything(database)

    with processes(2) as pool, pytest.raises(BuildFailed, match="a process died"):
        await rebuild(settings, ALL, options=OPTIONS, executor=Instead(pool, die))
    with processes(2) as pool, pytest.raises(BuildFailed, match="ValueError: no luck"):
        await rebuild(settings, ALL, options=OPTIONS, executor=Instead(pool, fail))
    with processes(2) as pool, pytest.raises(BuildFailed, match="offset 5 cannot be decoded: odd"):
        await rebuild(settings, ALL, options=OPTIONS, executor=Instead(pool, fail_oddly))
    assert await everything(database) == before
    assert await side_tables(database) == []
    assert (await rebuild(settings, ["marks"], options=OPTIONS)).swapped == ("marks",)


class Instead(Executor):
    """Lets a pool do something else in the place of the last part."""

    def __init__(self, pool: Executor, other: Callable[[], Any]) -> None:
        self._pool = pool
        self._other = other
        self._count = 0

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Hand the work on."""
        self._count += 1
        is_last = self._count == PARTS
        return self._pool.submit(self._other) if is_last else self._pool.submit(work, *arguments)


PARTS = 4


def die() -> None:
    """Die as if killed by the system."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    """Fail."""
    raise ValueError("no luck")


def fail_oddly() -> None:
    """Fail with an error that is made of other things than its text."""
    raise StoredEventInvalid(5, "odd")


def kinds_of(kind: type[LedgerError]) -> Iterator[type[LedgerError]]:
    """Yield a class of errors and all that derive from it."""
    yield kind
    for each in kind.__subclasses__():
        yield from kinds_of(each)


def test_errors_are_told_by_processes() -> None:
    """Each error comes out of a process with its class, text and fields, however it is made."""
    for kind in kinds_of(LedgerError):
        error = kind.__new__(kind, "said")
        error.args, error.offset = ("said",), 5  # type: ignore[attr-defined]
        other = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
        assert (type(other), str(other), vars(other)) == (kind, "said", {"offset": 5})


async def test_a_version_of_a_part_of_a_group(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Tables that keep the rows of the version before are named; all go back, or none."""
    await filled(journal, database, seed=9, count=60)
    update = checkpoints.update().where(checkpoints.c.group_name == TRADING.name)
    async with database.transaction() as connection:
        await connection.execute(update.values(fold_version="0.9"))
    [note] = (await rebuilt(settings, ["positions"])).notes
    assert f"from version 0.9 of its fold to {TRADING.fold_version}: api_keys, sec" in note
    assert (await rebuilt(settings, ["orders"])).notes == ()
    with pytest.raises(InvalidTables, match=r"orders__old may hold rows of version 0\.9"):
        await rolled_back(settings, ["orders"])
    async with database.transaction() as connection:
        await connection.execute(update.values(fold_version="2.1"))
        own = side_table_rows.c.name == "positions__old"
        values = {"fold_version": TRADING.fold_version}
        await connection.execute(side_table_rows.update().where(own).values(values))
    with pytest.raises(
        InvalidTables, match=r"orders went over .*: roll back positions, orders tog"
    ):
        await rolled_back(settings, ["positions"])
    assert (await rolled_back(settings, ["positions", "orders"])).swapped == ("positions", "orders")


async def test_a_skip_meanwhile(settings: Settings, journal: Journal, database: Database) -> None:
    """What was skipped while tables were made ends the rebuild: they hold the event, perhaps."""
    await filled(journal, database, seed=9, count=60)
    before = await everything(database)
    skip = skipped_events.insert().values(
        journal_id=journal.journal_id,
        group_name=MARKS.name,
        table_name="marks",
        offset=1,
        event_id=uuid4(),
        event_type="MarkSet",
        reason="test",
        skipped_at=datetime.now(UTC),
    )

    remembered = rebuilding.side.set_size

    async def skipping(connection: AsyncConnection, *arguments: Any) -> None:
        await remembered(connection, *arguments)
        await connection.execute(skip)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuilding.side, "set_size", skipping)
        with pytest.raises(CannotSwap, match="an event was skipped meanwhile"):
            await rebuilt(settings, ["marks"], Asked(accepts=True))
    assert await everything(database) == before


async def test_a_checkpoint_beyond_the_journal(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """A journal that holds less than was folded is named as the fault, by part and by whole."""
    await filled(journal, database, seed=9, count=60)
    update = checkpoints.update().values(size=1000)
    async with database.transaction() as connection:
        await connection.execute(update)
    for tables in (["marks"], ["positions"]):
        with pytest.raises(CheckpointAhead, match="checkpoint 1000, beyond the journal's size 60"):
            await rebuilt(settings, tables)


async def test_a_later_group_that_fails(
    settings: Settings, journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was swapped before another group failed is named, and stays."""
    await filled(journal, database, seed=9, count=60)
    swap = rebuilding.rebuild.__globals__["swap"]

    async def failing(work: Any, plan: Plan, *others: Any) -> list[str]:
        if plan.group.name == "postings":
            raise CannotSwap(plan.asked, "no luck")
        return await swap(work, plan, *others)  # type: ignore[no-any-return]

    monkeypatch.setitem(rebuilding.rebuild.__globals__, "swap", failing)
    with pytest.raises(PartlySwapped, match=r"marks: swapped.*swap postings: no luck") as raised:
        await rebuilt(settings, ["marks", "postings"])
    assert raised.value.swapped == ("marks",)
    assert [each.name for each in await side_tables(database)] == ["marks__old"]
    monkeypatch.undo()
    assert (await rollback(settings, None, options=OPTIONS)).swapped == ("marks",)
    await assert_verified(journal, database)


def test_the_parts_of_a_rebuild() -> None:
    """Tables that look each other up are filled together, log-like ones where they look up."""
    every = [each.name for each in TRADING.projections]
    keys, orders = Plan(TRADING, every, "new_1").parts
    assert keys.tables == {"users", "api_keys", "security_audit_logs"}
    assert orders.tables == {"positions", "orders", "security_audit_logs"}
    types = [*keys.types["security_audit_logs"], *orders.types["security_audit_logs"]]
    assert sorted(types) == sorted(each.__name__ for each in ACTIONS)
    assert "ApiKeyUsed" in keys.types["security_audit_logs"]
    positions = Plan(TRADING, ["positions"], "new_1")
    assert positions.parts == [Share({"users", "positions", "orders"}, {})]
    both = Plan(GROUPS["postings"], ["book_balances", "postings"], "new_1")
    assert both.parts == [Share({"book_balances", "postings"}, {})]
    assert positions.scratch == ("users", "orders")
    balances = Plan(GROUPS["postings"], ["book_balances"], "new_1")
    assert balances.names == {"book_balances": "book_balances__new_1"}


def test_names_beside_others() -> None:
    """Names beside a live one are never too long, never equal, and lead back to it."""
    longest = "ix_" + "a" * 60
    names = ["short", longest, longest[:-1] + "b"]
    others = [beside(name, "new_0123abcd") for name in names]
    assert len(set(others)) == len(names)
    assert max(map(len, others)) <= 63
    assert [restored(other, "new_0123abcd", names) for other in others] == names
    assert restored("mine__old", "old", []) == "mine"
    assert is_side_table("orders__old")
    assert is_side_table("orders__new_0123abcd")
    assert not any(map(is_side_table, ALL))
    assert not is_side_table("orders__new")
