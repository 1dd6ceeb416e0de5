"""Which scenarios there are, and a run of all or some of them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from ledger.migrate import migrate
from ledger.settings import Settings
from tests.faults import boundaries, disks, failover, kills, network
from tests.faults.bench import Bench, Tally
from tests.faults.extent import Extent
from tests.postgres import PostgresServer

SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"
SETTINGS = {"shared_buffers": "32MB", "max_connections": "100", "log_min_messages": "warning"}
TEMPLATE = "faults_template"

Play = Callable[[Bench, Extent], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """Some kind of faults on one store, in full and in the short form that the tests play."""

    name: str
    store: str
    play: Play
    full: Extent
    short: Extent
    has_own_server: bool = False

    @property
    def title(self) -> str:
        """Its name, with the store."""
        return f"{self.name}-{self.store.lower()}"


EVERY = Extent(2000)
SCENARIOS = (
    Scenario("appenders", SQLITE, kills.kill_appenders, Extent(50), Extent(3)),
    Scenario("workers", SQLITE, kills.kill_workers, Extent(25), Extent(2)),
    Scenario("rebuilds", SQLITE, kills.kill_rebuilds, Extent(20), Extent(1)),
    Scenario("frozen", SQLITE, kills.freeze_clients, Extent(10), Extent(1)),
    Scenario("append", SQLITE, boundaries.sqlite_appends, EVERY, Extent(3, 8)),
    Scenario("project", SQLITE, boundaries.sqlite_projecting, EVERY, Extent(3, 25)),
    Scenario("swap", SQLITE, boundaries.sqlite_swaps, EVERY, Extent(3, 40)),
    Scenario("disk", SQLITE, disks.fail_sqlite, Extent(20), Extent(2)),
    Scenario("full", SQLITE, disks.fill_disk, Extent(10), Extent(1)),
    Scenario("appenders", POSTGRESQL, kills.kill_appenders, Extent(50), Extent(3)),
    Scenario("workers", POSTGRESQL, kills.kill_workers, Extent(25), Extent(2)),
    Scenario("rebuilds", POSTGRESQL, kills.kill_rebuilds, Extent(20), Extent(1)),
    Scenario("server", POSTGRESQL, kills.kill_server, Extent(20), Extent(2)),
    Scenario("backends", POSTGRESQL, kills.kill_backends, Extent(20), Extent(1)),
    Scenario("frozen", POSTGRESQL, kills.freeze_server, Extent(8), Extent(1)),
    Scenario("append", POSTGRESQL, boundaries.postgres_appends, EVERY, Extent(1, 8)),
    Scenario("project", POSTGRESQL, boundaries.postgres_projecting, EVERY, Extent(1, 25)),
    Scenario("swap", POSTGRESQL, boundaries.postgres_swaps, EVERY, Extent(1, 25)),
    Scenario("commits", POSTGRESQL, network.cut_commits, Extent(50), Extent(10)),
    Scenario("wakeups", POSTGRESQL, network.disturb_wakeups, Extent(40), Extent(4)),
    Scenario("wal", POSTGRESQL, disks.fail_wal, Extent(12), Extent(2)),
    Scenario("standby", POSTGRESQL, failover.promote_standbys, Extent(6), Extent(1), True),
)


class Grounds:
    """Where databases come from: a template of each kind, and a server."""

    def __init__(self, folder: Path) -> None:
        """Take an empty folder."""
        self._folder = folder
        self._server: PostgresServer | None = None
        self._template = folder / "template.db"
        self._numbers = 0

    def close(self) -> None:
        """Stop the server."""
        if self._server is not None:
            self._server.close()

    async def play(self, scenario: Scenario, seed: str, extent: Extent) -> Tally:
        """Play one scenario on a fresh database; raises Broken where something does not hold."""
        self._numbers += 1
        folder = self._folder / str(self._numbers)
        folder.mkdir()
        async with self._bench(scenario, folder, f"{seed} {scenario.title}") as bench:
            await scenario.play(bench, extent)
            return await bench.finish()

    @asynccontextmanager
    async def _bench(self, scenario: Scenario, folder: Path, seed: str) -> AsyncIterator[Bench]:
        if scenario.store == SQLITE:
            bench = Bench(SQLITE, await asyncio.to_thread(self._file, folder), folder, seed)
        else:
            server = await asyncio.to_thread(self._started, scenario.has_own_server)
            name = "main" if scenario.has_own_server else f"faults_{self._numbers}"
            url = await asyncio.to_thread(server.create_database, name, TEMPLATE)
            bench = Bench(POSTGRESQL, url, folder, seed, server)
        try:
            yield bench
        finally:
            bench.end()
            if scenario.has_own_server:
                bench.own_server.close()

    def _file(self, folder: Path) -> str:
        if not self._template.exists():
            migrate(Settings(database_url=f"sqlite:///{self._template}"))
        return f"sqlite:///{shutil.copy(self._template, folder / 'ledger.db')}"

    def _started(self, is_own: bool) -> PostgresServer:
        if self._server is not None and not is_own:
            return self._server
        server = PostgresServer.start(SETTINGS, in_memory=True)
        if not is_own:
            self._server = server
        migrate(Settings(database_url=server.create_database(TEMPLATE)))
        return server


@contextmanager
def grounds() -> Iterator[Grounds]:
    """Give the grounds in a folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="ledger-faults-") as folder:
        found = Grounds(Path(folder))
        try:
            yield found
        finally:
            found.close()


async def play_all(
    found: Grounds, scenarios: tuple[Scenario, ...], seed: int, *, is_short: bool = False
) -> Tally:
    """Play the scenarios one after the other and tell of each; return what was counted."""
    total = Tally()
    for scenario in scenarios:
        started = monotonic()
        extent = scenario.short if is_short else scenario.full
        tally = await found.play(scenario, str(seed), extent)
        total.add(tally)
        told = f"{tally.total} faults, {monotonic() - started:.1f} s"
        print(f"{scenario.title}: {told}{tally.remarks}", flush=True)
    return total
