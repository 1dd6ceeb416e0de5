"""What the tests of rebuilding share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import sqlalchemy as sa

from ledger.journal import Journal
from ledger.settings import Settings
from projections.database import Database
from projections.fold import Group
from projections.groups import GROUPS, TABLES
from projections.projector import Projector
from projections.rebuilding import Comparison, Options, Outcome, Watch, rebuild, rollback
from projections.verification import verify
from tests.projections.random_events import random_events
from tests.projections.support import append

ALL = list(TABLES)
OPTIONS = Options(workers=2, swap_seconds=60)


class Asked(Watch):
    """Answers what is asked, and keeps it."""

    def __init__(self, *, accepts: bool = False) -> None:
        self.stages: list[str] = []
        self.compared: list[Comparison] = []
        self._accepts = accepts

    def stage(self, text: str) -> None:
        """Keep it."""
        self.stages.append(text)

    def accepts(self, compared: Sequence[Comparison]) -> bool:
        """Answer."""
        self.compared = [each for each in compared if not each.is_same]
        return self._accepts


async def rebuilt(
    settings: Settings, tables: Sequence[str] = (), watch: Watch | None = None, **options: Any
) -> Outcome:
    """Rebuild with parts folded by threads, which need no time to start."""
    with ThreadPoolExecutor(2) as executor:
        chosen = Options(**{"workers": 2, "swap_seconds": 60.0, **options})
        return await rebuild(
            settings, tables or ALL, options=chosen, executor=executor, watch=watch
        )


async def rolled_back(settings: Settings, tables: Sequence[str] = ()) -> Outcome:
    """Roll back in the same way."""
    with ThreadPoolExecutor(2) as executor:
        return await rollback(settings, tables or ALL, options=OPTIONS, executor=executor)


async def project(
    journal: Journal, database: Database, groups: Iterable[Group] = GROUPS.values()
) -> None:
    """Bring the live tables up to date."""
    for group in groups:
        await Projector(database, journal, group).catch_up()


async def filled(journal: Journal, database: Database, seed: int, count: int = 300) -> int:
    """Append a random history and project it; return the journal's size."""
    size = await append(journal, random_events(Random(seed), count))
    await project(journal, database)
    return size


async def assert_verified(journal: Journal, database: Database) -> None:
    """Hold that every row and column is what the journal says."""
    result = await verify(database, journal, GROUPS.values())
    assert [str(each) for each in result.first] == []
    assert result.parked == []


async def fetch(database: Database, query: str) -> list[tuple[Any, ...]]:
    """Return what a query finds."""
    async with database.transaction() as connection:
        return [tuple(row) for row in await connection.execute(sa.text(query))]


async def execute(database: Database, *statements: str) -> None:
    """Execute statements in a transaction."""
    async with database.transaction() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def until(condition: Any, seconds: float = 30) -> None:
    """Wait until an asynchronous condition holds, within a bound."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
