"""Waiting until the tables have come to a size of the journal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection

import msgspec
import sqlalchemy as sa

from ledger.journal import Journal
from projections.bookkeeping import checkpoints
from projections.database import Database
from projections.groups import GROUPS

PAUSE_SECONDS = 0.01


class _Waiting(msgspec.Struct, frozen=True, eq=False):
    """Somebody who waits for groups to come to a size."""

    size: int
    groups: Collection[str]
    done: asyncio.Future[None]

    def has_come(self, sizes: dict[str, int]) -> bool:
        """Whether checkpoints are where they are waited for."""
        return all(sizes.get(name, 0) >= self.size for name in self.groups)


class CatchingUp:
    """Looks at the checkpoints for all who wait, with one query at a time for all of them."""

    def __init__(self, journal: Journal, database: Database) -> None:
        self._journal_id = journal.journal_id
        self._database = database
        self._waiting: set[_Waiting] = set()
        self._looking: asyncio.Task[None] | None = None

    async def wait(
        self, size: int, timeout_seconds: float, groups: Collection[str] = tuple(GROUPS)
    ) -> bool:
        """Wait until these groups have folded `size` events; return whether they have in time.

        However short the time is, it is looked once.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(size, groups, done)
        self._waiting.add(waiting)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            async with asyncio.timeout(timeout_seconds):
                await done
        except TimeoutError:
            return waiting.has_come(await self.sizes())
        finally:
            self._waiting.discard(waiting)
        return True

    async def _look(self) -> None:
        """Look until nobody waits any more."""
        try:
            while self._waiting:
                self._tell(await self.sizes())
                await asyncio.sleep(PAUSE_SECONDS)
        except Exception as error:  # noqa: BLE001 - whoever waits has to hear of it
            for each in self._waiting:
                if not each.done.done():
                    each.done.set_exception(error)
        finally:
            self._looking = None

    def _tell(self, sizes: dict[str, int]) -> None:
        for each in self._waiting:
            if each.has_come(sizes) and not each.done.done():
                each.done.set_result(None)

    async def sizes(self) -> dict[str, int]:
        """Return the checkpoints of the groups that have any."""
        query = sa.select(checkpoints.c.group_name, checkpoints.c.size).where(
            checkpoints.c.journal_id == self._journal_id
        )
        async with self._database.snapshot() as connection:
            return {name: size for name, size in await connection.execute(query)}  # noqa: C416

    async def close(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
