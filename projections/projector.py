"""The projector: keeps a group's tables up to date with a journal."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import time_ns
from typing import Any, NamedTuple

from ledger.errors import LedgerError, StoredEventInvalid
from ledger.event import RecordedEvent
from ledger.journal import Journal
from projections import batches, checkpoints, parking, spans
from projections.analysing import ANALYSE_SECONDS, EVENTS_FIRST, analyse_grown
from projections.database import Database
from projections.fold import Group
from projections.lanes import Place
from projections.leases import Lease, bound
from projections.projection import State
from projections.waiting import first_of, pause

BATCH_SIZE = 4000
POLL_SECONDS = 0.05
FIRST_POLL_SECONDS = 0.005
FOLD_EVENTS_PER_SECOND_MIN = 2000
"""A batch that is folded more slowly than this, beyond a lease's time, is taken for frozen."""

UNCONCERNED_SECONDS = 0.02
"""So long a group leaves the others the processor that the latest events did not concern."""

KEPT_ROWS_MAX = 20_000
"""So many rows that may change again are kept for the next batch: some 30 MB for each pair."""


class _Kept(NamedTuple):
    """Rows as they stand in the tables at a checkpoint."""

    state: State
    at: checkpoints.Checkpoint


class Projector:
    """Folds a journal into the tables of one group, batch by batch.

    Each batch is one transaction: rows and checkpoint are committed together, and the checkpoint's
    row is locked first, so that several projectors of one group take turns. One with a lease raises
    LeaseLost once somebody else has claimed it; each batch prolongs the lease, and whoever gave it
    does so while there is nothing to fold.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        group: Group,
        *,
        batch_size: int = BATCH_SIZE,
        lease: Lease | None = None,
    ) -> None:
        """Take where to read and where to write; `batch_size` is in events."""
        self._database = database
        self._journal = journal
        self._group = group
        self._batch_size = batch_size
        self._lease = lease
        self._kept: _Kept | None = None
        self._size = 0
        self._is_concerned = True
        self._analyse_at = EVENTS_FIRST
        self.folded = 0
        """Events that this projector has passed so far, whether its group folds them or not."""
        lease_seconds = database.settings.lease_seconds
        self._silent_seconds = lease_seconds + batch_size / FOLD_EVENTS_PER_SECOND_MIN
        self._lock_seconds = 0 if lease is None else lease_seconds

    async def advance(self, stop: int | None = None) -> int:
        """Fold the next batch, not beyond size `stop`; return the number of events passed.

        Whom a poisoned event concerns is parked; see `batches`.
        """
        try:
            return await self._advance(stop, self._batch_size)
        except LedgerError as error:
            if not batches.is_refusal(error):
                raise
            start = await self.checkpoint()
            events, end = await self._read(start, stop, self._batch_size)
            attempt = functools.partial(self._advance, stop)
            return await batches.past_refusals(attempt, events, end - start, self._group, error)

    async def _advance(
        self, stop: int | None, batch_size: int, poisoned: Mapping[Place, str] | None = None
    ) -> int:
        named = (self._journal.journal_id, self._journal.name)
        kept, self._kept = self._kept, None
        began_ns = time_ns()
        async with (
            self._journal.store.write_turn(),
            self._database.transaction() as connection,
        ):
            await bound(connection, self._silent_seconds, self._lock_seconds)
            at = await checkpoints.lock(connection, named[0], self._group, self._lease)
            events, end = await self._read(at.size, stop, batch_size)
            state = None if kept is None or kept.at != at else kept.state
            if events:
                state = await batches.fold_batch(
                    connection, self._group, named, events, poisoned, kept=state
                )
            written_at = at.updated_at
            if end > at.size:
                written_at = await checkpoints.advance(
                    connection, named[0], self._group, end, self._lease
                )
        self._keep(state, checkpoints.Checkpoint(end, at.epoch, written_at))
        self._size = end
        self._is_concerned = end - at.size == batch_size or self._concern(events)
        self.folded += end - at.size
        if end > at.size:
            spans.projected(self._group.name, named[1], (at.size, end), events, began_ns)
        await self._analyse()
        return end - at.size

    async def _analyse(self) -> None:
        """Have the tables looked at whenever twice as many events have been folded.

        Where that cannot be done now, it is done at the next time, or by autovacuum.
        """
        if self.folded < self._analyse_at:
            return
        self._analyse_at = 2 * self.folded
        seconds = min(ANALYSE_SECONDS, self._database.settings.lease_seconds / 2)
        with suppress(LedgerError):
            async with self._database.transaction() as connection:
                await analyse_grown(connection, self._group, seconds)

    def _concern(self, events: Sequence[RecordedEvent]) -> bool:
        """Whether the group folds any of a batch; the last one is there whatever it is."""
        return len(events) > 1 or any(each.event.kind in self._group.steps for each in events)

    def _keep(self, state: State | None, at: checkpoints.Checkpoint) -> None:
        """Keep the rows that may change again, as long as nobody else changes them."""
        if state is None:
            return
        for rows in state.tables.values():
            rows.settle()
        if sum(map(len, state.tables.values())) <= KEPT_ROWS_MAX:
            self._kept = _Kept(state, at)

    async def _read(
        self, start: int, stop: int | None, count: int
    ) -> tuple[list[RecordedEvent], int]:
        """Return what the group folds of the next events, and the size after them.

        They go up to one that cannot be decoded; that one is an error.
        """
        size = await self._journal.size()
        if start > size:
            raise checkpoints.CheckpointAhead(self._group.name, start, size)
        end = min(size, start + count, size if stop is None else max(start, stop))
        try:
            return await self._journal.read_but(self._group.ignored, start, end), end
        except StoredEventInvalid as error:
            if error.offset <= start:
                raise
            return await self._read(start, error.offset, count)

    async def catch_up(self, stop: int | None = None) -> int:
        """Fold up to the journal's present size, or to `stop`; return the number of events."""
        end = await self._journal.size() if stop is None else stop
        return await self.run(asyncio.Event(), end)

    async def run(self, stopping: asyncio.Event, stop: int | None = None) -> int:
        """Fold until `stopping` is set or size `stop` is reached; return the number of events.

        A batch under way is finished first.
        """
        before = self.folded
        while not stopping.is_set():
            if await self.advance(stop) == 0:
                if stop is not None:
                    break
                await self._wait_for_events(stopping)
            elif stop is None and not self._is_concerned:
                await pause(stopping, UNCONCERNED_SECONDS)
        return self.folded - before

    async def _wait_for_events(self, stopping: asyncio.Event) -> None:
        async with self._journal.wakeups() as wakeups:
            # A journal that got shorter is for the next batch to find out.
            while not stopping.is_set() and await self._journal.size() == self._size:
                await first_of(stopping.wait(), wakeups.wait())

    async def checkpoint(self) -> int:
        """Return the size up to which the tables are folded."""
        async with self._database.snapshot() as connection:
            return await checkpoints.read(connection, self._journal.journal_id, self._group)

    async def check_row(self, table: str, key: Any, size: int) -> None:
        """Raise RowParked where a row waits for a poisoned event among the first `size`."""
        async with self._database.snapshot() as connection:
            await parking.check_row(
                connection, self._journal.journal_id, self._group, table, key, size
            )


async def wait_visible(
    database: Database,
    journal: Journal,
    size: int,
    group: Group,
    timeout_seconds: float | None = None,
    row: tuple[str, Any] | None = None,
) -> int:
    """Wait until the tables of `group` hold the first `size` events; return the size seen.

    A service that has appended waits for `offset + 1`. Who waits for one row names its table and
    key; where that row waits for a poisoned event among these, RowParked is raised at once. Raises
    TimeoutError after `timeout_seconds`.
    """
    projector = Projector(database, journal, group)
    async with asyncio.timeout(timeout_seconds):
        pause_seconds = FIRST_POLL_SECONDS
        while True:
            seen = await projector.checkpoint()
            if row is not None:
                await projector.check_row(*row, size)
            if seen >= size:
                return seen
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(POLL_SECONDS, pause_seconds * 1.5)
