"""A read model is changed from start to end, while all others go on; then it is changed back."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from uuid import uuid4

from ledger.journal import open_journal
from ledger.settings import Settings
from projections.database import Database
from projections.groups import TRADING
from tests.ledger.support import ROOT
from tests.postgres import PostgresServer
from tests.projections.rebuilds import execute, fetch, project, until
from tests.projections.schema_change import (
    VIEW,
    Reader,
    append_steadily,
    changed_copy,
    desk,
    desk_events,
    read_by_itself,
    read_long,
    read_prepared,
    read_snapshots,
    read_through_view,
    run,
    worker,
)
from tests.projections.support import append
from tests.support.forks import FORKS

APPENDS_PER_SECOND = 2000
APPENDS_MIN = float(os.environ.get("LEDGER_TEST_APPENDS_MIN", APPENDS_PER_SECOND / 4))
"""So many a second must be made: near the rate on a machine that does nothing else."""
LOOKS_MIN = 20
READS_MAX = 100_000
KINDS = {
    "by itself": read_by_itself,
    "prepared": read_prepared,
    "through a view": read_through_view,
    "long, by hand": read_long,
    "long, by the library": read_snapshots,
}


@contextlib.asynccontextmanager
async def readers(url: str, reader_url: str) -> AsyncIterator[list[Reader]]:
    """Keep a reader of each kind looking; what one has seen wrong is raised in the end."""
    stopping = asyncio.Event()
    all_kinds = [(kind, url) for kind in KINDS] + [("by itself", reader_url)]
    found = [Reader(f"{kind} as {address}") for kind, address in all_kinds]
    async with asyncio.TaskGroup() as group:
        for reader, (kind, address) in zip(found, all_kinds, strict=True):
            group.create_task(KINDS[kind](address, reader, lambda: not stopping.is_set()))
        try:
            yield found
        finally:
            stopping.set()


async def test_a_column_is_added_under_load(
    postgres_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """Migrated, rebuilt and rolled back under appends: no reader sees an error or half a change."""
    url, name = postgres_url, f"auditor_{uuid4().hex[:8]}"
    told = tmp_path / "appended"
    new_tree = await asyncio.to_thread(changed_copy, tmp_path / "next")
    async with Database(Settings(database_url=url)) as database:
        async with open_journal(Settings(database_url=url)) as journal:
            await append(journal, [*desk(), *desk_events(Random(1), 3000)])
            await project(journal, database)
        await execute(database, VIEW, f"CREATE ROLE {name} LOGIN", f"GRANT ledger_reader TO {name}")
        reader_url = postgres_server.url(url.rpartition("/")[2], name)
        with worker(ROOT, url):
            async with readers(url, reader_url) as found:
                await change_and_change_back(url, database, new_tree, told)
        await execute(database, "DROP VIEW seen_positions", f"DROP ROLE {name}")
    for reader in found:
        assert reader.looks > LOOKS_MIN, reader.kind
        seen = ["old"] if "view" in reader.kind else ["old", "new", "old"]
        assert reader.shapes == seen, reader.kind
    assert "verified" in await asyncio.to_thread(run, ROOT, url, "replay.py", "verify")


@contextlib.contextmanager
def appends(url: str, told: Path) -> Iterator[None]:
    """Keep a process appending, at no less than APPENDS_MIN."""
    process = FORKS.Process(
        target=append_steadily, args=(url, APPENDS_PER_SECOND, told), daemon=True
    )
    process.start()
    try:
        yield
        # It is written anew all the time: read it before the process may be killed halfway.
        read = (told.read_text() for _ in range(READS_MAX))
        text = next(filter(str.strip, read))
    finally:
        process.kill()
        process.join()
    appended, seconds = map(float, text.split())
    print(f"{appended / seconds:,.0f} appends/s")
    assert appended / seconds > APPENDS_MIN


async def change_and_change_back(url: str, database: Database, new_tree: Path, told: Path) -> None:
    """Go through what docs/change-a-read-model.md says."""

    async def in_new_tree(*command: str) -> str:
        return await asyncio.to_thread(run, new_tree, url, *command)

    message = ("-m", "count fills", "--rev-id", "next")
    await in_new_tree("-m", "alembic", "revision", "--autogenerate", *message)
    with worker(new_tree, url):
        with appends(url, told):
            await in_new_tree("-m", "ledger", "migrate")
            output = await in_new_tree("replay.py", "rebuild", "positions", "--accept")
            assert "fills_count differs in" in output
            assert "rebuilt: positions" in output
            await moved_by(database, "next")
        await in_new_tree("-m", "alembic", "check")
        assert "verified" in await in_new_tree("replay.py", "verify")
        with appends(url, told):
            await asyncio.to_thread(run, ROOT, url, "replay.py", "rollback", "positions")
            await moved_by(database, TRADING.fold_version)


async def moved_by(database: Database, version: str) -> None:
    """Wait until a worker with this version of the fold has moved the checkpoint."""
    query = f"""SELECT size FROM checkpoints
        WHERE group_name = 'trading' AND journal_id = 1 AND fold_version = '{version}'"""
    [(size,)] = await fetch(database, query)

    async def has_moved() -> bool:
        return bool((await fetch(database, query))[0][0] > size)

    await until(has_moved)
