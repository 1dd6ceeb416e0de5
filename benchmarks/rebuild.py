"""How fast read models are rebuilt, beside mere reading, raw COPY and the peers, in one run.

The server is started for the benchmark on disk, with fsync on. For each size there is one history;
the rebuild is the command that users call. Beside it, on the same server: the same reading without
and with decoding, by as many processes as fold; COPY of the very same audit rows with the same
indexes; and the peers' own rebuilds on as many events as the time they are given allows.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import psutil

from benchmarks import peers
from benchmarks.history import Plan
from benchmarks.measure import machine
from benchmarks.server import DATABASE, described, history_server, tell
from ledger import console
from ledger.journal import Journal, open_journal
from ledger.lens import Lens
from ledger.settings import Settings
from projections.building import CHUNK_SIZE, CHUNKS_AHEAD
from projections.fold import Group
from projections.groups import GROUPS, TABLES
from projections.rebuilding.plan import Share, plans
from tests.postgres import PostgresServer

ROOT = Path(__file__).parent.parent
AUDIT = "security_audit_logs"
OTHERS = ("users", "api_keys", "positions", "orders", "marks")
KINDS = {
    "all tables": (*OTHERS, AUDIT),
    "all but the audit log": OTHERS,
    "the audit log": (AUDIT,),
}
"""The first fills the tables, the others find them filled and are compared with them."""

JOURNAL = "main"
SAMPLE_SECONDS = 1.0
START_SECONDS_MAX = 60
INDEX_MEMORY = "256MB"
"""As the rebuild has it."""

RAW = "raw COPY of the audit rows, and indexes"
PEERS = {"eventsourcing": peers.eventsourcing, "Emmett": peers.emmett}


class Measured(NamedTuple):
    """What took how long, the peak memory of its processes, and its phases in seconds."""

    what: str
    events: int
    seconds: float
    memory_bytes: int = 0
    phases: tuple[tuple[str, float], ...] = ()

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds


class Memory:
    """Watches the memory of this process's children, or of another process and its children.

    Counted is the proportional share (PSS) where the system tells it, so that pages which processes
    share count once.
    """

    def __init__(self, pid: int | None = None) -> None:
        self.peak_bytes = 0
        self._process = psutil.Process(pid)
        self._is_own = pid is None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        self.peak_bytes = self._total_bytes()
        while not self._ended.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, self._total_bytes())

    def _total_bytes(self) -> int:
        try:
            family = self._process.children(recursive=True)
        except psutil.NoSuchProcess:
            return 0
        return sum(map(_memory_bytes, family if self._is_own else [self._process, *family]))


def _memory_bytes(process: psutil.Process) -> int:
    """Return the memory of a process, 0 when it is gone."""
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        pass
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def parts_of(tables: Sequence[str]) -> list[tuple[str, Share]]:
    """Return the group and what is filled of each part in which a rebuild fills these tables."""
    return [(plan.group.name, share) for plan in plans(tables, "parts") for share in plan.parts]


def read(
    url: str, plan: Plan, what: str, tables: Sequence[str], workers: int, *, decoded: bool
) -> Measured:
    """Read for each part what the rebuild of these tables reads, and do no more."""
    with _pool(workers) as pool, Memory() as memory:
        began = time.perf_counter()
        for done in [
            pool.submit(scan, url, group, share, plan.events, decoded)
            for group, share in parts_of(tables)
        ]:
            done.result()
        seconds = time.perf_counter() - began
    how = "read and decode only" if decoded else "read without decoding"
    return Measured(f"{what}, {how}", plan.events, seconds, memory.peak_bytes)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Give processes that have started, so that no time is taken for it."""
    context = get_context("spawn")
    all_there = context.Barrier(workers)
    with ProcessPoolExecutor(workers, context, all_there.wait, (START_SECONDS_MAX,)) as pool:
        list(pool.map(len, [()] * workers))
        yield pool


def scan(url: str, group: str, share: Share, size: int, decoded: bool) -> int:
    """Be a process that reads for one part; return the number of its events."""
    part = GROUPS[group].only(share.tables, share.types)
    return asyncio.run(_scan(url, part, size, decoded=decoded))


async def _scan(url: str, group: Group, size: int, *, decoded: bool) -> int:
    """Read in the way of `projections.building`, as many chunks ahead."""
    lens = Lens(group.event_types, envelope=any(p.reads_envelope for p in group.projections))
    starts, count = iter(range(0, size, CHUNK_SIZE)), 0
    async with open_journal(Settings(database_url=url), JOURNAL) as journal:
        read_chunk = partial(_decoded if decoded else _packed, journal, lens)
        coming = deque[asyncio.Task[int]]()
        while True:
            for start in islice(starts, CHUNKS_AHEAD - len(coming)):
                stop = min(size, start + CHUNK_SIZE)
                coming.append(asyncio.create_task(read_chunk(start, stop)))
            if not coming:
                return count
            count += await coming.popleft()


async def _decoded(journal: Journal, lens: Lens, start: int, stop: int) -> int:
    return len(await journal.read_lens(lens, start, stop))


async def _packed(journal: Journal, lens: Lens, start: int, stop: int) -> int:
    found = await journal.store.read_packed(
        journal.journal_id,
        start,
        stop,
        lens.ignored,
        envelope=lens.envelope,
        streams_of=lens.streams_of,
    )
    return len(found.offsets)


def rebuild(url: str, plan: Plan, what: str, tables: Sequence[str], workers: int) -> Measured:
    """Run the command that users call; its phases are what it says on stderr."""
    command = [sys.executable, str(ROOT / "replay.py"), "rebuild", *tables]
    command += ["--workers", str(workers), "--accept", "--replace-old"]
    environment = os.environ | {"LEDGER_DATABASE_URL": url}
    began = time.perf_counter()
    said = [("starting", began)]
    with (
        subprocess.Popen(
            command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, stdout=sys.stderr, text=True
        ) as process,
        Memory(process.pid) as memory,
    ):
        assert process.stderr is not None
        for line in process.stderr:
            said.append((line.rstrip(), time.perf_counter()))
            print(line, end="", file=sys.stderr, flush=True)
        process.wait()
        ended = time.perf_counter()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Measured(what, plan.events, ended - began, memory.peak_bytes, _phases(said, ended))


def _phases(said: Sequence[tuple[str, float]], ended: float) -> tuple[tuple[str, float], ...]:
    """Return how long it took from each line to the next; indented ones tell only how far it is."""
    begun = [(line, at) for line, at in said if line and not line.startswith(" ")]
    ends = [*(at for _, at in begun[1:]), ended]
    return tuple((line, end - at) for (line, at), end in zip(begun, ends, strict=True))


async def raw_copy(url: str, plan: Plan, workers: int) -> Measured:
    """Copy the audit rows that a rebuild has made into a table of the same shape: the limit."""
    connection = await asyncpg.connect(url, command_timeout=24 * 3600)
    indexes, keys = await _shape(connection)
    with tempfile.NamedTemporaryFile(dir=Path.cwd()) as file:
        await connection.copy_from_table(AUDIT, output=Path(file.name), format="binary")
        await connection.execute(f"CREATE TABLE raw_audit (LIKE {AUDIT})")
        began = time.perf_counter()
        await connection.copy_to_table("raw_audit", source=Path(file.name), format="binary")
        copied = time.perf_counter()
    await _in_parallel(url, indexes, workers)
    indexed = time.perf_counter()
    for statement in [*keys, "ANALYZE raw_audit"]:
        await connection.execute(statement)
    ended = time.perf_counter()
    await connection.execute("DROP TABLE raw_audit")
    await connection.close()
    phases = (("COPY", copied - began), ("indexes", indexed - copied), ("keys", ended - indexed))
    return Measured(
        "raw COPY of the audit rows, and indexes", plan.events, ended - began, 0, phases
    )


async def _shape(connection: asyncpg.Connection[Any]) -> tuple[list[str], list[str]]:
    """Return the statements that make indexes and constraints like those of the audit log."""
    made = await connection.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = $1 ORDER BY 1", AUDIT
    )
    indexes = [
        definition.replace(f" {name} ", f" raw_{name[-50:]} ").replace(f".{AUDIT} ", ".raw_audit ")
        for name, definition in made
    ]
    found = await connection.fetch(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = $1::text::regclass AND contype IN ('f', 'c')",
        AUDIT,
    )
    keys = [f"ALTER TABLE raw_audit ADD {definition}" for (definition,) in found]
    primary = f"raw_{f'pk_{AUDIT}'[-50:]}"
    return indexes, [f"ALTER TABLE raw_audit ADD PRIMARY KEY USING INDEX {primary}", *keys]


async def _in_parallel(url: str, statements: Sequence[str], connections: int) -> None:
    """Execute the statements on so many connections, with the settings of the rebuild."""
    async with asyncpg.create_pool(
        url,
        min_size=connections,
        max_size=connections,
        command_timeout=24 * 3600,
        server_settings={"maintenance_work_mem": INDEX_MEMORY},
    ) as pool:
        await asyncio.gather(*(pool.execute(statement) for statement in statements))


async def _forget_tables(url: str) -> None:
    """Empty the read side, so that each run begins with the same."""
    tables = ", ".join([*TABLES, "checkpoints", "side_tables", "side_checkpoints"])
    connection = await asyncpg.connect(url)
    kept = await connection.fetch("SELECT name FROM side_tables")
    for (name,) in kept:
        await connection.execute(f'DROP TABLE IF EXISTS "{name}" CASCADE')
    await connection.execute(f"TRUNCATE {tables}")
    await connection.close()


@contextmanager
def measuring(found: list[Measured]) -> Iterator[Callable[[Measured], None]]:
    """Take figures as they come, and say them at once."""

    def take(measured: Measured) -> None:
        found.append(measured)
        tell(f"{measured.what}: {measured.rate:,.0f} events/s, {measured.seconds:.1f} s")

    yield take


def measure(
    server: PostgresServer, plan: Plan, workers: int, peer_seconds: float
) -> list[Measured]:
    """Measure everything at one size."""
    url, found = server.url(DATABASE), list[Measured]()
    asyncio.run(_forget_tables(url))
    with measuring(found) as take:
        for what, tables in KINDS.items():
            take(read(url, plan, what, tables, workers, decoded=False))
            take(read(url, plan, what, tables, workers, decoded=True))
            take(rebuild(url, plan, what, tables, workers))
        take(asyncio.run(raw_copy(url, plan, workers)))
        for name, peer in PEERS.items():
            pace = peer(server, plan, peer_seconds) if peer_seconds else None
            if pace is None:
                print(f"{name} was left out: no time was given, or node or npm is missing")
            else:
                take(Measured(name, pace.events, pace.seconds))
    return found


def report(plan: Plan, found: Sequence[Measured]) -> None:
    """Print the figures of one size as Markdown."""
    print(f"\n## {plan.events:,} events\n")
    print("| what | events | events/s | s | peak MiB |\n|---|--:|--:|--:|--:|")
    for each in found:
        memory = f"{each.memory_bytes / 2**20:,.0f}" if each.memory_bytes else ""
        print(
            f"| {each.what} | {each.events:,} | {each.rate:,.0f} | {each.seconds:.1f} | {memory} |"
        )
    print()
    for line in ratios({each.what: each.rate for each in found}):
        print(f"- {line}")
    if any(each.phases for each in found):
        print("\n| what | phase | s |\n|---|---|--:|")
    for each in found:
        for phase, seconds in each.phases:
            print(f"| {each.what} | {phase} | {seconds:.1f} |")


def ratios(rates: dict[str, float]) -> list[str]:
    """Return the ratios that count, of what was measured."""
    lines = []
    for what in [each for each in rates if each in KINDS]:
        decoded = rates[f"{what}, read and decode only"]
        lines.append(f"{what}: {rates[what] / decoded:.0%} of reading and decoding only")
        lines += [
            f"{what}: {rates[what] / rates[peer]:,.0f} x {peer}" for peer in PEERS if peer in rates
        ]
    if RAW in rates:
        lines.append(f"the audit log: {rates['the audit log'] / rates[RAW]:.0%} of {RAW}")
    return lines


def report_growth(sizes: dict[int, list[Measured]]) -> None:
    """Print how the time grows with the number of events, from the smallest size on."""
    first = min(sizes)
    print("\n## Growth\n\n| what | events | s | time by events, against the smallest |")
    print("|---|--:|--:|--:|")
    base = {each.what: each.seconds / each.events for each in sizes[first]}
    for events, found in sorted(sizes.items()):
        for each in found:
            if each.events == events:
                growth = each.seconds / each.events / base.get(each.what, float("nan"))
                print(f"| {each.what} | {events:,} | {each.seconds:.1f} | {growth:.2f} |")


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="a folder to keep the histories in")
    parser.add_argument("--peer-seconds", type=float, default=60, help="0 leaves the peers out")
    given = parser.parse_args()
    print(f"{machine()}; {given.workers} workers, seed {given.seed}")
    sizes = {}
    for events in given.events:
        plan = Plan(events, given.seed)
        with history_server(plan, given.keep) as server:
            print(console.run(described(server.url(DATABASE))))
            sizes[events] = measure(server, plan, given.workers, given.peer_seconds)
        report(plan, sizes[events])
    if len(sizes) > 1:
        report_growth(sizes)


if __name__ == "__main__":
    os.environ.pop("LEDGER_DATABASE_URL", None)
    main()
