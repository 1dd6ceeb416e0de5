"""The projector: keeps a group's tables up to date with a journal."""

from __future__ import annotations

import asyncio
import contextlib

from ledger.event import RecordedEvent
from ledger.journal import Journal
from projections import checkpoints, tables
from projections.database import Database
from projections.fold import Group

BATCH_SIZE = 1000
POLL_SECONDS = 0.05


class Projector:
    """Folds a journal into the tables of one group, batch by batch.

    Each batch is one transaction: rows and checkpoint are committed together, and the checkpoint's
    row is locked first, so that several projectors of one group take turns.
    """

    def __init__(
        self, database: Database, journal: Journal, group: Group, *, batch_size: int = BATCH_SIZE
    ) -> None:
        """Take where to read and where to write; `batch_size` is in events."""
        self._database = database
        self._journal = journal
        self._group = group
        self._batch_size = batch_size

    async def advance(self, stop: int | None = None) -> int:
        """Fold the next batch, not beyond size `stop`; return the number of events folded."""
        async with (
            self._journal.store.write_turn(),
            self._database.transaction() as connection,
        ):
            size = await checkpoints.lock(connection, self._journal.journal_id, self._group)
            events = await self._read(size, stop)
            if events:
                state = self._group.state(self._journal.journal_id, self._journal.name)
                await tables.load(connection, state, events)
                self._group.fold(state, events)
                await tables.write(connection, self._group, state)
                end = size + len(events)
                await checkpoints.advance(connection, state.journal_id, self._group, end)
        if not events:
            await self._check_not_ahead(size)
        return len(events)

    async def _check_not_ahead(self, checkpoint: int) -> None:
        size = await self._journal.size()
        if checkpoint > size:
            raise checkpoints.CheckpointAhead(self._group.name, checkpoint, size)

    async def _read(self, start: int, stop: int | None) -> list[RecordedEvent]:
        end = start + self._batch_size if stop is None else min(stop, start + self._batch_size)
        chunks = self._journal.read_chunks(start, end, chunk_size=self._batch_size)
        async for chunk in chunks:
            return chunk
        return []

    async def catch_up(self, stop: int | None = None) -> int:
        """Fold up to the journal's present size, or to `stop`; return the number of events."""
        end = await self._journal.size() if stop is None else stop
        return await self.run(asyncio.Event(), end)

    async def run(self, stopping: asyncio.Event, stop: int | None = None) -> int:
        """Fold until `stopping` is set or size `stop` is reached; return the number of events.

        A batch under way is finished first.
        """
        folded = 0
        while not stopping.is_set():
            count = await self.advance(stop)
            folded += count
            if count == 0:
                if stop is not None:
                    break
                await self._wait_for_events(stopping)
        return folded

    async def _wait_for_events(self, stopping: asyncio.Event) -> None:
        size = await self.checkpoint()
        while not stopping.is_set() and await self._journal.size() <= size:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), POLL_SECONDS)

    async def checkpoint(self) -> int:
        """Return the size up to which the tables are folded."""
        async with self._database.snapshot() as connection:
            return await checkpoints.read(connection, self._journal.journal_id, self._group)


async def wait_visible(
    database: Database,
    journal: Journal,
    size: int,
    group: Group,
    timeout_seconds: float | None = None,
) -> int:
    """Wait until the tables of `group` hold the first `size` events; return the size seen.

    A service that has appended waits for `offset + 1`. Raises TimeoutError after `timeout_seconds`.
    """
    projector = Projector(database, journal, group)
    async with asyncio.timeout(timeout_seconds):
        while (seen := await projector.checkpoint()) < size:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(POLL_SECONDS)
    return seen
