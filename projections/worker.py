"""Workers: any number of processes that share the projecting of all groups of all journals.

Each worker claims pairs of a group and a journal up to its fair share, runs a projector for each,
and gives back what is beyond its share when others come. What a dead worker had is claimed when its
leases end.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from time import monotonic
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import JournalNotFound, LedgerError, StoredEventInvalid
from ledger.journals import Journals
from ledger.proof.witnessing import check_witnessed
from ledger.settings import Settings
from ledger.stores import JournalInfo, Store
from ledger.stores.opening import open_store
from projections import checkpoints, leases
from projections.checkpoints import FoldChanged
from projections.database import Database
from projections.fold import Group
from projections.groups import GROUPS
from projections.leases import (
    Lease,
    LeaseLost,
    Pair,
    PairSeen,
    ProgramFrozen,
    WorkerReplaced,
)
from projections.projector import BATCH_SIZE, Projector
from projections.reporting import Reporter, print_line
from projections.waiting import Backoff, pause

BEATS_IN_LEASE = 8
BEAT_SECONDS_MAX = 1.0
LEFT_ALONE_LEASES = 3
"""For so long a worker leaves a pair to others that its own release cannot project."""
ADOPTED_LEASES_MIN = LEFT_ALONE_LEASES + 1
"""For so long it keeps what is beyond its share, before it offers that to others."""


def new_worker_id() -> str:
    """Return a name that no other worker has."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"


class Worker:
    """One process's part in the projecting."""

    def __init__(
        self,
        settings: Settings,
        groups: Iterable[Group] = tuple(GROUPS.values()),
        journals: Sequence[str] | None = None,
        *,
        worker_id: str | None = None,
        batch_size: int = BATCH_SIZE,
        write: Callable[[str], None] = print_line,
    ) -> None:
        """Take what to project: `journals` by name, None for all that there are and will be.

        `write` is given a line for each error that the worker lives through.
        """
        self.worker_id = worker_id or new_worker_id()
        self.folded: Counter[str] = Counter()
        """Events passed so far, by group, whether it folds them or not."""
        self._settings = settings
        self._seconds = settings.lease_seconds
        self._groups = {group.name: group for group in groups}
        self._names = None if journals is None else set(journals)
        self._batch_size = batch_size
        self._reporter = Reporter(write)
        self._journals: dict[int, JournalInfo] = {}
        self._works: dict[Pair, _Work] = {}
        self._left_alone: dict[Pair, float] = {}
        self._live: list[str] = []
        self._offered: set[Pair] = set()
        self._is_blocked = False
        # The server gives up first, if it is there at all.
        self._answer_seconds = settings.statement_timeout_seconds + settings.connect_timeout_seconds

    async def run(self, stopping: asyncio.Event) -> None:
        """Project until `stopping` is set; then finish the batches and give all leases back.

        Raises what is wrong with the database at the start: StoreUnavailable, SchemaMissing,
        JournalNotFound; also JournalRolledBack where a journal is not all that witnesses have seen.
        Later it is waited for. Raises WorkerReplaced where another worker
        registers under the same name.
        """
        async with self._opened():
            await self._find_journals()
            await self._check_witnessed()
            async with self._transaction() as connection:
                started_at = await leases.register(connection, self.worker_id, self._seconds)
            try:
                await self._beat_until(stopping, started_at)
            finally:
                await self._stop(started_at)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        """Open the store, and one pool for the projectors; leases have a connection of their own.

        Otherwise the sign of life would queue behind the batches of many pairs.
        """
        own = self._settings.model_copy(update={"pool_size": 1, "pool_overflow": 1})
        async with AsyncExitStack() as stack:
            self._store: Store = open_store(self._settings)
            stack.push_async_callback(self._store.close)
            self._keyed = Journals(self._settings, self._store)
            stack.push_async_callback(self._keyed.close)
            for_batches = Database(
                self._settings, answer_seconds=self._answer_seconds, for_batches=True
            )
            for_leases = Database(own, answer_seconds=self._answer_seconds)
            self._database = await stack.enter_async_context(for_batches)
            self._control = await stack.enter_async_context(for_leases)
            yield

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self._store.write_turn(), self._control.transaction() as connection:
            await leases.bound(connection, self._seconds, self._seconds)
            yield connection

    async def _find_journals(self) -> None:
        found = {info.journal_id: info for info in await self._store.journals()}
        if self._names is not None:
            found = {key: info for key, info in found.items() if info.name in self._names}
            if missing := sorted(self._names - {info.name for info in found.values()}):
                raise JournalNotFound(missing[0])
        self._journals = found

    async def _check_witnessed(self) -> None:
        """Refuse journals that have lost what was witnessed; one of many may be never sealed."""
        for info in self._journals.values():
            is_named = self._names is not None or info.name == self._settings.journal
            journal = self._keyed.of(info)
            await check_witnessed(journal, self._settings, must_be_sealed=is_named)

    async def _beat_until(self, stopping: asyncio.Event, started_at: datetime) -> None:
        seconds = min(BEAT_SECONDS_MAX, self._seconds / BEATS_IN_LEASE)
        backoff = Backoff()
        while not stopping.is_set():
            try:
                await self._beat(started_at)
            except WorkerReplaced:
                raise
            except Exception as error:  # noqa: BLE001 - what goes wrong once must not end a worker
                self._is_blocked = True
                self._reporter.tell(f"worker {self.worker_id}", error)
                await pause(stopping, backoff.next_seconds())
            else:
                backoff.reset()
                await pause(stopping, seconds * random.uniform(0.8, 1))  # noqa: S311 - jitter

    async def _beat(self, started_at: datetime) -> None:
        """Give a sign of life, take what is free and due, give back what is too much."""
        await self._find_journals()
        self._forget_ended()
        await self._end_frozen()
        async with self._transaction() as connection:
            await leases.keep_alive(connection, self.worker_id, started_at, self._seconds)
            await leases.forget_dead(connection, self._seconds)
            await leases.renew(connection, [work.lease for work in self._works.values()])
            live = await leases.live_workers(connection)
            seen = await self._look(connection)
            self._stop_lost(seen)
            claimed = await self._claim(connection, seen, self._share(seen, live))
        self._offer_adopted(seen, live)
        for lease, is_adopted in claimed:
            self._start(lease, is_adopted=is_adopted)
        self._give_back_beyond(self._share(seen, live))

    async def _end_frozen(self) -> None:
        """Where the last beat found something locked, see whether its owner is only frozen."""
        if not self._is_blocked:
            return
        async with self._transaction() as connection:
            count = await leases.end_frozen(connection, self._seconds, self._answer_seconds)
        self._is_blocked = False
        if count:
            self._reporter.tell(f"worker {self.worker_id}", ProgramFrozen(count))

    def _forget_ended(self) -> None:
        for pair, work in list(self._works.items()):
            if work.task.done():
                del self._works[pair]
                if error := work.task.exception():
                    self._tell(work, error)

    async def _look(self, connection: AsyncConnection) -> list[PairSeen]:
        """Return the pairs that this worker may project; those of another release are not its."""
        seen = await leases.look(connection, self._seconds)
        known = {each.pair for each in seen}
        missing = [pair for pair in self._wanted() if pair not in known]
        for journal_id, group in missing:
            await checkpoints.create(connection, journal_id, self._groups[group])
        if missing:
            seen = await leases.look(connection, self._seconds)
        wanted = set(self._wanted())
        return [each for each in seen if each.pair in wanted and self._is_own_version(each)]

    def _wanted(self) -> list[Pair]:
        return [(journal_id, group) for journal_id in self._journals for group in self._groups]

    def _is_own_version(self, seen: PairSeen) -> bool:
        own = self._groups[seen.group].fold_version
        if seen.fold_version != own:
            error = FoldChanged(seen.group, seen.fold_version, own)
            self._reporter.tell(self._subject(seen.pair), error)
        return seen.fold_version == own

    def _share(self, seen: Sequence[PairSeen], live: Sequence[str]) -> int:
        """Return how many pairs are this worker's part, rounded up."""
        return -(-len(seen) // max(1, len(live)))

    async def _claim(
        self, connection: AsyncConnection, seen: Iterable[PairSeen], share: int
    ) -> list[tuple[Lease, bool]]:
        """Claim free pairs up to the share, and beyond it those that nobody has wanted for long.

        Returns the leases, each with whether it is beyond the share.
        """
        claimed: list[tuple[Lease, bool]] = []
        count = sum(not work.stopping.is_set() for work in self._works.values())
        for each in self._claimable(seen):
            is_adopted = count + len(claimed) >= share
            if is_adopted and not each.is_abandoned:
                continue
            lease = await leases.claim(connection, each, self.worker_id, self._seconds)
            if lease is None:
                self._is_blocked = True
            else:
                claimed.append((lease, is_adopted))
        return claimed

    def _claimable(self, seen: Iterable[PairSeen]) -> list[PairSeen]:
        """Return the pairs to try, in an order of this worker's own.

        What bears this worker's name without being its work is left from a claim whose commit was
        unclear, from a lease that could not be given back, or from a former life.
        """
        now = monotonic()
        self._left_alone = {pair: until for pair, until in self._left_alone.items() if until > now}
        found = [
            each
            for each in seen
            if (each.is_free or each.worker_id == self.worker_id)
            and each.pair not in self._works
            and each.pair not in self._left_alone
        ]
        random.shuffle(found)
        return found

    def _start(self, lease: Lease, *, is_adopted: bool) -> None:
        journal = self._keyed.of(self._journals[lease.journal_id])
        projector = Projector(
            self._database,
            journal,
            self._groups[lease.group],
            batch_size=self._batch_size,
            lease=lease,
        )
        work = _Work(lease, is_adopted=is_adopted)
        work.task = asyncio.create_task(self._project(projector, work))
        self._works[lease.pair] = work

    def _stop_lost(self, seen: Sequence[PairSeen]) -> None:
        """Stop what is no longer this worker's; where no events come, no batch would notice."""
        found = {each.pair: each for each in seen}
        for pair, work in self._works.items():
            row = found.get(pair)
            own = (self.worker_id, work.lease.epoch)
            if work.stopping.is_set() or (row is not None and (row.worker_id, row.epoch) == own):
                continue
            work.stopping.set()
            if row is not None:
                self._tell(work, LeaseLost(work.lease, row.worker_id, row.epoch))

    def _offer_adopted(self, seen: Sequence[PairSeen], live: Sequence[str]) -> None:
        """Let what is beyond the share be given back where somebody may want it.

        That is who has come, and once who has had less than a share for long. What nobody takes
        even then comes back, and stays until workers come or go.
        """
        if live != self._live:
            self._live, self._offered = list(live), set()
            for work in self._works.values():
                work.is_adopted = False
        held = Counter(each.worker_id for each in seen if not each.is_free)
        if all(held[name] >= len(seen) // len(live) for name in live):
            return
        until = monotonic() - ADOPTED_LEASES_MIN * self._seconds
        for pair, work in self._works.items():
            if work.is_adopted and work.since <= until and pair not in self._offered:
                work.is_adopted = False
                self._offered.add(pair)

    def _give_back_beyond(self, share: int) -> None:
        """Let go of what is more than the share, the latest first; not of what nobody wants."""
        kept = [work for work in self._works.values() if not work.stopping.is_set()]
        excess = max(0, len(kept) - share)
        for work in [each for each in reversed(kept) if not each.is_adopted][:excess]:
            work.stopping.set()

    async def _project(self, projector: Projector, work: _Work) -> None:
        """Project a pair until told to stop or the lease is lost; give the lease back."""
        backoff, folded = Backoff(), 0
        while not work.stopping.is_set():
            try:
                await projector.run(work.stopping)
            except LeaseLost as error:
                self._tell(work, error)
                break
            except (FoldChanged, StoredEventInvalid) as error:
                # Another release may know the fold, or the event.
                self._tell(work, error)
                self._left_alone[work.lease.pair] = monotonic() + LEFT_ALONE_LEASES * self._seconds
                break
            except Exception as error:  # noqa: BLE001 - no pair's failure may stop another
                self._tell(work, error)
                if projector.folded > folded:
                    backoff.reset()
                folded = projector.folded
                await pause(work.stopping, backoff.next_seconds())
        self.folded[work.lease.group] += projector.folded
        work.stopping.set()  # also where it ends by itself: it no longer counts as held
        await self._give_back(work)

    async def _give_back(self, work: _Work) -> None:
        try:
            async with self._transaction() as connection:
                await leases.give_back(connection, work.lease)
        except LedgerError as error:
            self._tell(work, error)

    def _tell(self, work: _Work, error: BaseException) -> None:
        self._reporter.tell(self._subject(work.lease.pair), error)

    def _subject(self, pair: Pair) -> str:
        info = self._journals.get(pair[0])
        return f"{pair[1]} of journal {info.name if info else pair[0]}"

    async def _stop(self, started_at: datetime) -> None:
        """Finish the batches, give the leases back and take this worker off the list."""
        tasks = [work.task for work in self._works.values()]
        for work in self._works.values():
            work.stopping.set()
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self._settings.statement_timeout_seconds)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with self._transaction() as connection:
                await leases.unregister(connection, self.worker_id, started_at)
        except LedgerError as error:
            self._reporter.tell(f"worker {self.worker_id}", error)


class _Work:
    """A pair that this worker projects, and the task that does it."""

    task: asyncio.Task[None]

    def __init__(self, lease: Lease, *, is_adopted: bool) -> None:
        self.lease = lease
        self.is_adopted = is_adopted
        self.since = monotonic()
        self.stopping = asyncio.Event()
