"""One database under test: its writers, projectors and rebuilds, and what all must come back to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import TypeVar

from ledger.domain.marks import PriceMarked
from ledger.errors import LedgerError
from ledger.event import NewEvent, VenueAmount
from ledger.journal import Journal, open_journal
from projections.database import Database
from projections.groups import GROUPS, TABLES
from projections.health import pair_statuses
from projections.rebuilding import drop_old
from tests.faults.account import Account, history
from tests.faults.checking import Broken, Checker, hold_cleared
from tests.faults.processes import (
    Gate,
    Process,
    append_steadily,
    catch_up,
    rebuild_all,
    rebuild_steadily,
    settings_for,
    settled,
    work_steadily,
)
from tests.postgres import PostgresServer
from tests.projections.support import an_id

RECOVERY_SECONDS = 60
POLL_SECONDS = 0.02
APPEND_PAUSE_SECONDS = 0.02
T = TypeVar("T")


@dataclass
class Tally:
    """What was injected and survived, by store and kind of fault."""

    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All faults."""
        return self.faults.total()

    @property
    def remarks(self) -> str:
        """What was not done, to follow a line."""
        return "".join(f"; no {kind}: {why}" for (_, kind), why in self.skipped.items())

    def add(self, other: Tally) -> None:
        """Count in what another scenario has seen."""
        self.faults += other.faults
        self.acknowledged += other.acknowledged
        self.skipped |= other.skipped


class Bench:
    """A database under test.

    `url` is its own address; who is to meet a fault of the network is given another one.
    """

    def __init__(
        self, store: str, url: str, folder: Path, seed: str, server: PostgresServer | None = None
    ) -> None:
        """Take a migrated, empty database, an empty folder for the account, and the server."""
        self.store = store
        self.url = url
        self.folder = folder
        self.random = Random(seed)
        self.server = server
        self.account = Account(folder)
        self.checker = Checker(self.account)
        self.tally = Tally()
        self._makers: dict[str, Callable[[], Process]] = {}
        self._processes: dict[str, Process] = {}
        self._probes = 0
        self._is_finished = False
        self._history = history(f"{seed} here")
        self._seed = seed

    @property
    def own_server(self) -> PostgresServer:
        """The server, where there is one."""
        assert self.server is not None
        return self.server

    def start_appender(
        self, name: str, url: str | None = None, pause_seconds: float = APPEND_PAUSE_SECONDS
    ) -> None:
        """Have a process append all the while, with pauses."""
        place = (url or self.url, self.folder, f"{self._seed} {name}", pause_seconds)
        self._start(name, lambda: Process(append_steadily, *place))

    def start_worker(self, name: str, url: str | None = None) -> None:
        """Have a process project all the while."""
        self._start(name, lambda: Process(work_steadily, url or self.url, name))

    def start_rebuilds(self, name: str, url: str | None = None) -> None:
        """Have a process rebuild and roll back all the while."""
        self._start(name, lambda: Process(rebuild_steadily, url or self.url, list(TABLES)))

    def _start(self, name: str, make: Callable[[], Process]) -> None:
        self._makers[name] = make
        self._processes[name] = make()

    def process(self, name: str) -> Process:
        """Return a process that was started."""
        return self._processes[name]

    def kill(self, name: str) -> None:
        """Kill a process; it is started again when the fault is settled."""
        self._processes[name].kill()

    def end(self, *names: str) -> None:
        """Kill processes for good; all, where none is named."""
        for name in names or tuple(self._processes):
            self._processes.pop(name).kill()
            del self._makers[name]

    async def pause(self, seconds_max: float) -> None:
        """Let some time pass, so that the fault strikes at a random moment."""
        await asyncio.sleep(self.random.uniform(0, seconds_max))

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something holds; Broken where it does not in time."""
        with in_time(what):
            async with asyncio.timeout(RECOVERY_SECONDS):
                while not holds():  # noqa: ASYNC110 - other processes do it
                    await asyncio.sleep(POLL_SECONDS)

    async def settle(self, kind: str, count: int = 1) -> None:
        """Wait until all works again, hold that all is whole, and count the fault."""
        await self.mend()
        with self.account.held():
            self._revive()
            with in_time(f"after the fault {kind!r} all works again"):
                async with asyncio.timeout(RECOVERY_SECONDS), self.opened() as (journal, database):
                    await self._project(journal, database)
            await self.check()
        if count:
            self.tally.faults[self.store, kind] += count

    def skip(self, kind: str, why: str) -> None:
        """Note that a kind of fault cannot be injected here."""
        self.tally.skipped[self.store, kind] = why

    async def mend(self) -> None:
        """Start the server again if it was killed."""
        if self.server is not None and not self.server.running:
            await asyncio.to_thread(self.server.restart)

    async def check(self) -> None:
        """Hold that all is whole; a rebuild, which would change it under way, is ended before."""
        rebuilds = [name for name in self._processes if "rebuild" in name]
        for name in rebuilds:
            self._hold_own(name)
            self.kill(name)
        async with self.opened() as (journal, database):
            await self.checker.check(journal, database)
        for name in rebuilds:
            self._processes[name] = self._makers[name]()

    def _revive(self) -> None:
        for name, process in self._processes.items():
            self._hold_own(name)
            if not process.is_alive and "rebuild" not in name:
                self._processes[name] = self._makers[name]()

    def _hold_own(self, name: str) -> None:
        """Hold that a process lives, or was killed here."""
        process = self._processes[name]
        if not process.is_alive and not process.is_killed:
            raise Broken(f"{name} has ended by itself, with {process.wait()}")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[Journal, Database]]:
        """Open the database, which may take its time to be back."""
        settings = settings_for(self.url)
        async with AsyncExitStack() as stack:
            journal = await retried(lambda: stack.enter_async_context(open_journal(settings)))
            yield journal, await stack.enter_async_context(Database(settings))

    async def _project(self, journal: Journal, database: Database) -> None:
        """Append one event and wait until it is projected, by whoever there is to do it."""
        self._probes += 1
        mark = PriceMarked(token="SOL", price=VenueAmount(str(self._probes)))
        probe = NewEvent(mark, event_id=an_id(f"{self._seed} probe {self._probes}"))
        size = (await settled(journal, self.account, [probe])).offsets[0] + 1
        if not any("worker" in name for name in self._processes):
            await retried(lambda: catch_up(journal, database))
            return
        while not await retried(lambda: is_projected(database, size)):  # noqa: ASYNC110 - workers do
            await asyncio.sleep(POLL_SECONDS)

    async def append_some(self, count: int) -> None:
        """Append the next of a history here and now, in so many appends."""
        async with self.opened() as (journal, _):
            for events in islice(self._history, count):
                await settled(journal, self.account, events)

    async def finish(self) -> Tally:
        """End all processes; hold that a rebuild goes through and leaves nothing behind.

        A scenario whose database does not outlive it does so itself.
        """
        self.end()
        if self._is_finished:
            return self.tally
        self._is_finished = True
        settings = settings_for(self.url)
        async with self.opened() as (journal, database):
            await catch_up(journal, database)
            await rebuild_all(settings, list(TABLES), Gate())
            await hold_cleared(database)
            await self.checker.check(journal, database)
            await drop_old(settings)
            await hold_cleared(database)
            await self.checker.check(journal, database)
        self.tally.acknowledged[self.store] += self.checker.acknowledged
        return self.tally


async def is_projected(database: Database, size: int) -> bool:
    """Tell whether all groups have folded so much."""
    found = await pair_statuses(database)
    return len(found) == len(GROUPS) and all(each.checkpoint >= size for each in found)


async def retried(work: Callable[[], Awaitable[T]]) -> T:
    """Do something until the database bears it."""
    while True:
        try:
            return await work()
        except LedgerError:
            await asyncio.sleep(POLL_SECONDS)


@contextmanager
def in_time(what: str) -> Iterator[None]:
    """Say what did not happen in time."""
    try:
        yield
    except TimeoutError as error:
        raise Broken(f"it is not so that {what}, after {RECOVERY_SECONDS} s") from error
