"""Keeping new tables up with the live ones, through the ordinary fold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from time import monotonic

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError
from ledger.event import RecordedEvent
from ledger.journal import Journal
from projections import batches
from projections.bookkeeping import checkpoints, skipped_events
from projections.checkpoints import CheckpointAhead
from projections.dialects import insert
from projections.fold import Group
from projections.lanes import Place
from projections.rebuilding import side
from projections.rebuilding.errors import CannotCatchUp, CannotSwap
from projections.rebuilding.plan import Plan
from projections.rebuilding.shape import Shape
from projections.rebuilding.work import Work

BATCH_SIZE = 2000
ROUNDS_MAX = 30
PAUSE_SECONDS = 0.1


class Follower:
    """Folds what the live tables of a group hold already into the new ones of a plan.

    All new tables of a plan are at one size, so that each fold sees the rows that it looks up as
    they were. None is ever folded further than the live tables, once it has met them.
    """

    def __init__(self, work: Work, plan: Plan, names: Mapping[str, str]) -> None:
        """Take the names of the new tables by those of the live ones."""
        self._work = work
        self._plan = plan
        self._names = dict(names)
        self._group = plan.closure.at(names)

    async def sizes(self, connection: AsyncConnection) -> dict[int, int]:
        """Return the size of the new tables by journal."""
        return await side.read_sizes(connection, next(iter(self._names.values())))

    async def catch_up(self) -> None:
        """Fold until less than a batch is missing; CannotCatchUp where that does not end."""
        lag = 0
        for _ in range(ROUNDS_MAX):
            lag = 0
            live = await self._live_sizes()
            for journal in await self._work.journals():
                lag += await self._catch_up(journal, live.get(journal.journal_id, 0))
            if lag < BATCH_SIZE:
                return
        raise CannotCatchUp(self._plan.group.name, lag, ROUNDS_MAX)

    async def _live_sizes(self) -> dict[int, int]:
        async with self._work.database.transaction() as connection:
            return await live_sizes(connection, self._plan.group.name)

    async def _catch_up(self, journal: Journal, stop: int) -> int:
        """Fold up to size `stop`; return by how much the tables were behind."""
        start = await self._size(journal)
        attempt = partial(self._attempt, journal, stop)
        while True:
            try:
                if await attempt(BATCH_SIZE, None) == 0:
                    return max(0, stop - start)
            except LedgerError as error:
                if not batches.is_refusal(error):
                    raise
                size = await self._size(journal)
                events = await self._read(journal, size, min(stop, size + BATCH_SIZE))
                await batches.past_refusals(attempt, events, len(events), self._group, error)

    async def _size(self, journal: Journal) -> int:
        async with self._work.database.transaction() as connection:
            return (await self.sizes(connection)).get(journal.journal_id, 0)

    async def _attempt(
        self, journal: Journal, stop: int, count: int, poisoned: Mapping[Place, str] | None
    ) -> int:
        """Fold at most `count` events; return how many they were."""
        async with self._work.store.write_turn(), self._work.database.transaction() as connection:
            size = (await self.sizes(connection)).get(journal.journal_id, 0)
            end = min(stop, size + count)
            if size < end:
                await self._fold_batch(connection, journal, size, end, poisoned)
            return max(0, end - size)

    async def fold_to(self, connection: AsyncConnection, live: Mapping[int, int]) -> dict[int, int]:
        """Fold what is missing to the locked checkpoints; return the sizes of the new tables."""
        own = await self.sizes(connection)
        for journal in await self._work.journals():
            size, stop = own.get(journal.journal_id, 0), live.get(journal.journal_id, 0)
            while size < stop:
                end = min(stop, size + BATCH_SIZE)
                await self._fold_batch(connection, journal, size, end)
                size = end
            own[journal.journal_id] = size
        return own

    async def meet(self, shape: Shape, reader: AsyncConnection) -> dict[int, int]:
        """Let a reader's snapshot begin with the new tables at the sizes of the live ones.

        Returns the live sizes. The checkpoints are locked no longer than this takes. Raises
        CannotSwap where they could not be locked within `swap_seconds`.
        """
        deadline = monotonic() + self._work.options.swap_seconds
        while True:
            await self.catch_up()
            try:
                async with shape.swapping() as connection:
                    journals = await self._work.journals()
                    live = await lock_checkpoints(connection, self._plan.group, journals)
                    await self._fold_apart(connection, live)
                    await reader.exec_driver_sql("SELECT count(*) FROM checkpoints")
                    return live
            except LedgerError as error:
                if not (shape.may_try_again(error) or batches.is_refusal(error)):
                    raise
                if monotonic() >= deadline:
                    reason = (
                        f"the new tables could not meet the live ones in time ({error}); try again"
                    )
                    raise CannotSwap(self._plan.asked, reason) from error
            await asyncio.sleep(PAUSE_SECONDS)

    async def _fold_apart(self, connection: AsyncConnection, live: Mapping[int, int]) -> None:
        """Fold to the locked checkpoints, and let it be seen before they are unlocked."""
        if self._work.is_sqlite:
            # Only one may write; under this process's turn nobody else does in between.
            await self.fold_to(connection, live)
            await connection.commit()
            return
        async with self._work.database.transaction() as other:
            await self.fold_to(other, live)

    async def _fold_batch(
        self,
        connection: AsyncConnection,
        journal: Journal,
        size: int,
        end: int,
        poisoned: Mapping[Place, str] | None = None,
    ) -> None:
        events = await self._read(journal, size, end)
        named = (journal.journal_id, journal.name)
        await batches.fold_batch(
            connection, self._group, named, events, poisoned, self._plan.lanes, self._names.keys()
        )
        await side.set_size(connection, self._names.values(), journal.journal_id, end)

    async def _read(self, journal: Journal, start: int, stop: int) -> list[RecordedEvent]:
        """Return the events; CheckpointAhead where there are not as many as a checkpoint says."""
        events = [
            event
            async for chunk in journal.read_chunks(start, stop, chunk_size=stop - start)
            for event in chunk
        ]
        if len(events) < stop - start:
            raise CheckpointAhead(self._plan.group.name, stop, await journal.size())
        return events


async def live_sizes(connection: AsyncConnection, group: str) -> dict[int, int]:
    """Return the checkpoint of the live tables by journal."""
    columns = (checkpoints.c.journal_id, checkpoints.c.size)
    found = await connection.execute(sa.select(*columns).where(checkpoints.c.group_name == group))
    return {row[0]: row[1] for row in found}


async def skipped(connection: AsyncConnection, plan: Plan) -> frozenset[tuple[int, str, int]]:
    """Return what is left out of the tables of a plan, and of those that their folds look up."""
    c = skipped_events.c
    tables = [each.name for each in plan.closure.projections]
    own = c.group_name == plan.group.name, c.table_name.in_(tables)
    found = await connection.execute(sa.select(c.journal_id, c.table_name, c.offset).where(*own))
    return frozenset((row[0], row[1], row[2]) for row in found)


async def lock_checkpoints(
    connection: AsyncConnection, group: Group, journals: Iterable[Journal]
) -> dict[int, int]:
    """Lock the checkpoints of all journals until the transaction ends; return their sizes."""
    version = await live_fold_version(connection, group)
    rows = [
        {
            "journal_id": journal.journal_id,
            "group_name": group.name,
            "size": 0,
            "fold_version": version,
            "updated_at": datetime.now(UTC),
        }
        for journal in journals
    ]
    await connection.execute(insert(checkpoints, connection.dialect).on_conflict_do_nothing(), rows)
    query = (
        sa.select(checkpoints.c.journal_id, checkpoints.c.size)
        .where(checkpoints.c.group_name == group.name)
        .order_by(checkpoints.c.journal_id)
        .with_for_update()
    )
    return {row[0]: row[1] for row in await connection.execute(query)}


async def live_fold_version(connection: AsyncConnection, group: Group) -> str:
    """Return the version of the fold that filled the live tables, the group's own if none did.

    Where they are several, by journal, they are all named, and so equal to none.
    """
    query = (
        sa.select(checkpoints.c.fold_version)
        .where(checkpoints.c.group_name == group.name, checkpoints.c.size > 0)
        .distinct()
        .order_by(checkpoints.c.fold_version)
    )
    return ", ".join(await connection.scalars(query)) or group.fold_version
