"""How many appends a second the projectors keep up with, and how soon an event is visible.

The server is started for the benchmark on disk, with fsync on. A process appends the events of a
realistic history at a fixed rate while worker processes project them; how far they are behind is
looked up in the database 20 times a second. A rate counts as sustained if the appends were made at
that rate and no lag seen after the warm-up was a second or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from benchmarks.history import NULL, Plan, rows
from benchmarks.measure import machine, settle
from benchmarks.server import LASTING, SIZES, described, tell
from ledger import console
from ledger.codec import decode_bodies, decode_metadata
from ledger.event import NewEvent
from ledger.journal import Journal, open_journal
from ledger.migrate import migrate
from ledger.settings import Settings
from projections.groups import GROUPS, TRADING
from projections.worker import Worker
from tests.postgres import PostgresServer

ROOT = Path(__file__).parent.parent
RATES = (4_000, 8_000, 12_000, 16_000, 20_000, 25_000)
USERS = 2_000
ARRIVALS_MAX = 3 * USERS
"""A user has two keys at most; all this is appended and projected before anything is measured."""
AUDIT = "security_audit_logs"
APPEND_EVENTS = 20
UNDER_WAY_MAX = 500
WARM_UP_SECONDS = 3.0
SAMPLES_PER_SECOND = 20
LAG_SECONDS_MAX = 1.0
RATE_SHARE_MIN = 0.98
LATENCY_RATE = 1_000
POLLS_PER_SECOND = 1_000
START_SECONDS_MAX = 60.0
DECODED_AT_ONCE = 1_000

_LAG = """
SELECT j.size - c.size AS events, coalesce(extract(epoch FROM clock_timestamp() - (
        SELECT e.recorded_at FROM events e
        WHERE e.journal_id = j.journal_id AND e."offset" = c.size))::float8, 0) AS seconds
FROM journals j CROSS JOIN LATERAL (
    SELECT min(k.size) AS size FROM checkpoints k WHERE k.journal_id = j.journal_id) c
WHERE j.name = 'main'
"""
_VISIBLE = "SELECT size FROM checkpoints WHERE journal_id = 1 AND group_name = 'trading'"
_HELD = """
SELECT count(*) FROM checkpoints c JOIN journals j USING (journal_id)
WHERE c.worker_id IS NOT NULL AND c.size = j.size
"""


class Lag(NamedTuple):
    """How far the group that is last is behind."""

    events: int
    seconds: float


class Sustained(NamedTuple):
    """What was seen at one rate."""

    rate: int
    appended_rate: float
    lags: list[Lag]

    @property
    def seconds_max(self) -> float:
        """The longest lag."""
        return max(lag.seconds for lag in self.lags)

    @property
    def is_sustained(self) -> bool:
        """Whether appends and projectors kept up."""
        is_on_time = self.appended_rate >= self.rate * RATE_SHARE_MIN
        return is_on_time and self.seconds_max < LAG_SECONDS_MAX


def new_events(count: int) -> list[NewEvent]:
    """Return the arrivals of the users, and so many further events, ready to be appended."""
    found: list[NewEvent] = []
    made = (row for row, _ in rows(Plan(count + ARRIVALS_MAX, users_min=USERS, encrypted=False)))
    while chunk := list(islice(made, DECODED_AT_ONCE)):
        events = decode_bodies([row[-1].encode() for row in chunk], range(len(chunk)))
        for row, event in zip(chunk, events, strict=True):
            metadata = None if row[-2] == NULL else decode_metadata(row[-2].encode())
            found.append(NewEvent(event, row[3], UUID(row[2]), None, metadata))
    return found


async def append(url: str, rate: int, seconds: float, at_once: int) -> None:
    """Be the process that appends; print when each append was begun and the size that it led to."""
    news = new_events(int(rate * seconds))
    async with open_journal(Settings(database_url=url)) as journal:
        for start in range(0, ARRIVALS_MAX, DECODED_AT_ONCE):
            await journal.append(news[start : min(ARRIVALS_MAX, start + DECODED_AT_ONCE)])
        news = news[ARRIVALS_MAX:]
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        settle()
        began = time.monotonic()
        calls = await _append_at(journal, news, rate, at_once)
        ended = time.monotonic()
    print(json.dumps({"seconds": ended - began, "events": len(news), "calls": calls}))


async def _append_at(
    journal: Journal, news: Sequence[NewEvent], rate: int, at_once: int
) -> list[tuple[float, int]]:
    """Append at the rate; return the time of each call by the monotonic clock, and its size."""
    calls: list[tuple[float, int]] = []
    under_way = asyncio.Semaphore(UNDER_WAY_MAX)

    async def append_one(events: Sequence[NewEvent]) -> None:
        called = time.monotonic()
        appended = await journal.append(events)
        under_way.release()
        calls.append((called, appended.size))

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for start in range(0, len(news), at_once):
            await asyncio.sleep(max(0.0, began + start / rate - time.monotonic()))
            await under_way.acquire()
            group.create_task(append_one(news[start : start + at_once]))
    return calls


async def work(url: str) -> None:
    """Be a worker for all tables but the audit log."""
    tables = [each.name for each in TRADING.projections if each.name != AUDIT]
    groups = [TRADING.only(tables) if group is TRADING else group for group in GROUPS.values()]
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await Worker(Settings(database_url=url), groups).run(stopping)


@contextmanager
def workers(url: str, count: int, *, with_audit: bool) -> Iterator[None]:
    """Run worker processes; they must end well."""
    own = [sys.executable, __file__, "--work", url]
    command = [sys.executable, "-m", "projections", "run"] if with_audit else own
    environment = os.environ | {"LEDGER_DATABASE_URL": url}
    started = [
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(START_SECONDS_MAX) for process in started]
    assert set(codes) == {0}, f"workers ended with {codes}"


class Appending:
    """The process that appends, ready to begin."""

    def __init__(self, url: str, rate: int, seconds: float, at_once: int) -> None:
        arguments = [url, str(rate), str(seconds), str(at_once)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--append", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def begin(self) -> asyncio.Task[dict[str, Any]]:
        """Let it append; the task's result is what it tells in the end."""
        return asyncio.create_task(asyncio.to_thread(self._finish))

    def _finish(self) -> dict[str, Any]:
        output, _ = self._process.communicate("go\n")
        told: dict[str, Any] = json.loads(output)
        return told


async def _all_held(connection: asyncpg.Connection[Any]) -> None:
    """Wait until each group has its worker, and is up to date."""
    async with asyncio.timeout(START_SECONDS_MAX):
        while await connection.fetchval(_HELD) < len(GROUPS):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)


async def keep_up(
    url: str, rate: int, seconds: float, processes: int, *, with_audit: bool
) -> Sustained:
    """Measure one rate on a fresh database."""
    appending = Appending(url, rate, seconds + WARM_UP_SECONDS, APPEND_EVENTS)
    connection = await asyncpg.connect(url)
    lags: list[Lag] = []
    with workers(url, processes, with_audit=with_audit):
        await _all_held(connection)
        done, began = appending.begin(), time.monotonic()
        while not done.done():
            await asyncio.sleep(1 / SAMPLES_PER_SECOND)
            found = await connection.fetchrow(_LAG)
            assert found is not None
            if time.monotonic() - began > WARM_UP_SECONDS:
                lags.append(Lag(*found))
        told = await done
    await connection.close()
    return Sustained(rate, told["events"] / told["seconds"], lags)


async def latencies(url: str, seconds: float, processes: int) -> list[float]:
    """Return how many seconds each append took from the call until its event was visible."""
    appending = Appending(url, LATENCY_RATE, seconds + WARM_UP_SECONDS, 1)
    connection = await asyncpg.connect(url)
    seen: list[tuple[float, int]] = []
    with workers(url, processes, with_audit=True):
        await _all_held(connection)
        done, began = appending.begin(), time.monotonic()
        polls = await connection.prepare(_VISIBLE)
        while not (done.done() and seen and seen[-1][1] >= _last_size(done)):
            size = await polls.fetchval()
            now = time.monotonic()
            if not seen or size != seen[-1][1]:
                seen.append((now, size))
            await asyncio.sleep(max(0.0, now + 1 / POLLS_PER_SECOND - time.monotonic()))
        told = await done
    await connection.close()
    return _matched(told["calls"], seen, began + WARM_UP_SECONDS)


def _last_size(done: asyncio.Task[dict[str, Any]]) -> int:
    calls: list[tuple[float, int]] = done.result()["calls"]
    return max(size for _, size in calls)


def _matched(
    calls: Sequence[tuple[float, int]], seen: Sequence[tuple[float, int]], after: float
) -> list[float]:
    """Return the time from each call to the first look that saw its size."""
    found, looks = [], iter(seen)
    at, visible = next(looks)
    for called, size in sorted(calls, key=lambda call: call[1]):
        while visible < size:
            at, visible = next(looks)
        if called > after:
            found.append(at - called)
    return found


def search(
    server: PostgresServer, given: argparse.Namespace, *, with_audit: bool
) -> Iterator[Sustained]:
    """Measure one rate after the other until one is not sustained."""
    for rate in given.rates:
        url = server.create_database(template="migrated")
        found = console.run(keep_up(url, rate, given.seconds, given.workers, with_audit=with_audit))
        server.drop_database(url)
        tell(f"{rate:,}/s: appended {found.appended_rate:,.0f}/s, lag {found.seconds_max:.2f} s")
        yield found
        if not (found.is_sustained or given.all):
            return


def report(what: str, found: Sequence[Sustained]) -> None:
    """Print what was seen at each rate as Markdown."""
    print(f"\n## {what}\n")
    print("| rate | appended/s | longest lag s | median lag ms | longest lag, events | sustained |")
    print("|--:|--:|--:|--:|--:|---|")
    for each in found:
        median_ms = statistics.median(lag.seconds for lag in each.lags) * 1000
        events = max(lag.events for lag in each.lags)
        verdict = "yes" if each.is_sustained else "no"
        print(
            f"| {each.rate:,} | {each.appended_rate:,.0f} | {each.seconds_max:.2f} "
            f"| {median_ms:.0f} | {events:,} | {verdict} |"
        )


def report_latencies(found: Sequence[float]) -> None:
    """Print from append to visible row as Markdown."""
    cuts = statistics.quantiles(found, n=100)
    print(f"\n## From append to visible row, {LATENCY_RATE:,} single events a second\n")
    print("| events | p50 ms | p99 ms | longest ms |\n|--:|--:|--:|--:|")
    shown = [f"{value * 1000:.1f}" for value in (cuts[49], cuts[98], max(found))]
    print(f"| {len(found):,} | {' | '.join(shown)} |")


def measure(server: PostgresServer, given: argparse.Namespace) -> None:
    """Measure what is asked for, and print it."""
    url = server.create_database("migrated")
    migrate(Settings(database_url=url))
    print(console.run(described(url)))
    if not given.latency_only:
        report("All tables", list(search(server, given, with_audit=True)))
        report("Without the audit log", list(search(server, given, with_audit=False)))
    url = server.create_database(template="migrated")
    report_latencies(console.run(latencies(url, given.seconds, given.workers)))


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES))
    parser.add_argument("--all", action="store_true", help="go on after a rate is not sustained")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--latency-only", action="store_true")
    parser.add_argument("--append", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.append:
        url, rate, seconds, at_once = given.append
        console.run(append(url, int(rate), float(seconds), int(at_once)))
    elif given.work:
        console.run(work(given.work))
    else:
        print(f"{machine()}; {given.workers} workers, {APPEND_EVENTS} events in an append")
        with PostgresServer.start(SIZES | LASTING) as server:
            measure(server, given)


if __name__ == "__main__":
    os.environ.pop("LEDGER_DATABASE_URL", None)
    main()
