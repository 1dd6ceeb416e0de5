"""Rebuilds that are killed: live tables are as they were, or all new, and the next one works."""

from __future__ import annotations

import asyncio
import time
from random import Random

from ledger.journal import Journal
from ledger.settings import Settings
from projections.database import Database
from projections.rebuilding import side_tables
from projections.rebuilding.side import is_side_table
from tests.projections import rebuilders
from tests.projections.random_events import random_events
from tests.projections.rebuilds import assert_verified, execute, fetch, filled, project, rebuilt
from tests.projections.support import append

TABLES = ["positions", "orders"]
STEPS = 16


async def shape_of(database: Database) -> tuple[bool, list[str]]:
    """Return whether the tables were swapped, and whether there are tables that nobody keeps."""
    listed = {each.name: each.role for each in await side_tables(database)}
    swapped = [f"{table}__old" in listed for table in TABLES]
    assert len(set(swapped)) == 1, "one table was swapped without the other"
    return swapped[0], sorted(listed)


async def kill_at(url: str, statement: int, *, back: bool = False) -> bool:
    """Run a rebuild that dies at a statement; return whether it came to its end before."""
    process = rebuilders.start(url, TABLES, statement, back=back)
    await asyncio.to_thread(process.join, 60)
    assert process.exitcode is not None
    return process.exitcode == rebuilders.DONE


async def test_killed_at_every_statement_of_the_swap(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Wherever it dies, rows, checkpoints and what is kept belong together."""
    await filled(journal, database, seed=1, count=150)
    # Old tables are told from new ones by a column that only the old ones have.
    await execute(database, "ALTER TABLE positions ADD COLUMN old_one TEXT")
    random, statement, ended = Random(3), 1, False
    while not ended:
        ended = await kill_at(settings.database_url, statement)
        swapped, _ = await shape_of(database)
        columns = await columns_of(settings, "positions")
        assert ("old_one" in columns) is not swapped
        await assert_verified(journal, database)
        if swapped and not ended:
            break
        statement += random.randrange(4, STEPS)
    await append(journal, random_events(Random(4), 60))
    await project(journal, database)
    await rebuilt(settings, TABLES, rebuilders.Accepting(), replace_old=True)
    await assert_verified(journal, database)
    assert await left_over(settings) == ["orders__old", "positions__old"]


async def test_killed_on_the_way_back(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """The same for a rollback; the kept tables stay good for the next one."""
    await filled(journal, database, seed=5, count=120)
    await rebuilt(settings, TABLES)
    await append(journal, random_events(Random(6), 60))
    await project(journal, database)
    for statement in (1, 8, 20):
        assert not await kill_at(settings.database_url, statement, back=True)
        await assert_verified(journal, database)
        assert (await shape_of(database))[0]
    assert await kill_at(settings.database_url, 0, back=True)
    await assert_verified(journal, database)


async def test_killed_at_any_moment(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Killed from outside with all its processes at work, it leaves no process and no harm."""
    await filled(journal, database, seed=7, count=200)
    random = Random(8)
    for _ in range(4):
        process = rebuilders.start_in_processes(settings.database_url, TABLES)
        await asyncio.sleep(random.uniform(0.2, 2.5))
        process.kill()
        await asyncio.to_thread(process.join, 60)
        await shape_of(database)
        await assert_verified(journal, database)
    await wait_until_free(settings, database)
    await assert_verified(journal, database)


async def wait_until_free(settings: Settings, database: Database) -> None:
    """Rebuild again, as soon as the lock of the killed one is gone."""
    deadline = time.monotonic() + 20
    while True:
        try:
            await rebuilt(settings, TABLES, rebuilders.Accepting(), replace_old=True)
        except Exception:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


async def columns_of(settings: Settings, table: str) -> list[str]:
    """Return the names of a table's columns."""
    async with Database(settings) as database, database.snapshot() as connection:
        found = await connection.exec_driver_sql(f"SELECT * FROM {table} LIMIT 0")
        return list(found.keys())


async def left_over(settings: Settings) -> list[str]:
    """Return the names of all tables beside live ones."""
    async with Database(settings) as database:
        names = "SELECT name FROM sqlite_master WHERE type = 'table'"
        if database.engine.dialect.name != "sqlite":
            names = "SELECT relname FROM pg_class WHERE relkind = 'r'"
        return sorted(row[0] for row in await fetch(database, names) if is_side_table(row[0]))
