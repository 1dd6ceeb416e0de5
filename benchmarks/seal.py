"""How fast a journal is sealed, and how far a signed checkpoint is behind under load.

The server is started for the benchmark on disk, with fsync on, and the SQLite file has the settings
that the ledger itself gives it. Each journal is sealed from its first event by the command that
users call, in a process of its own; its processor time says how much of one core it takes. Then a
process appends at a fixed rate while a sealer follows, and the newest signed checkpoint is looked
up 20 times a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import asyncpg

from benchmarks.history import Plan, load
from benchmarks.measure import machine
from benchmarks.server import DATABASE, LASTING, SIZES, described, history_server, tell
from ledger.migrate import migrate
from ledger.proof.keys import write_key
from ledger.proof.log import default_origin
from ledger.proof.notes import SigningKey
from ledger.settings import Settings
from tests.postgres import PostgresServer

ROOT = Path(__file__).parent.parent
RATES = (1_000, 4_000, 8_000)
APPEND_EVENTS = 20
SAMPLES_PER_SECOND = 20
WARM_UP_SECONDS = 2.0

_LAG = """
SELECT j.size - c.size AS events, coalesce(extract(epoch FROM clock_timestamp() - (
        SELECT e.recorded_at FROM events e
        WHERE e.journal_id = j.journal_id AND e."offset" = c.size))::float8, 0) AS seconds
FROM journals j CROSS JOIN LATERAL (
    SELECT max(k.size) AS size FROM signed_checkpoints k WHERE k.journal_id = j.journal_id) c
WHERE j.name = 'main'
"""


class Sealing(NamedTuple):
    """What one run of `ledger seal` took."""

    what: str
    events: int
    seconds: float
    processor_seconds: float


def environment(url: str, key: Path) -> dict[str, str]:
    """Return the environment of a sealer."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")}
    own = {"LEDGER_DATABASE_URL": url, "LEDGER_LOG_KEY_FILE": str(key), "PYTHONPATH": str(ROOT)}
    return kept | own


def seal(what: str, url: str, key: Path, events: int) -> Sealing:
    """Run `ledger seal` to its end and say what it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "ledger", "seal"],
        env=environment(url, key), cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert f"size {events}," in done.stdout, done.stdout
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sealing(what, events, seconds, spent)


def sealed_sqlite(events: int, key: Path) -> tuple[Sealing, str]:
    """Seal a history in a SQLite file; return also the durability settings."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.db"
        url = f"sqlite:///{file}"
        migrate(Settings(database_url=url))
        load(url, Plan(events), tell)
        tell(f"sealing {events:,} events on SQLite")
        found = seal("SQLite", url, key, events)
        with closing(sqlite3.connect(file)) as connection:
            mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    return found, f"SQLite {sqlite3.sqlite_version}: journal_mode={mode}, synchronous=FULL"


def sealed_postgres(events: int, key: Path, kept_in: Path | None) -> tuple[Sealing, str]:
    """Seal a history in PostgreSQL; return also the durability settings."""
    with history_server(Plan(events), kept_in) as server:
        name = server.create_database(template=DATABASE)
        tell(f"sealing {events:,} events on PostgreSQL")
        found = seal("PostgreSQL", name, key, events)
        return found, asyncio.run(described(name))


async def lags(url: str, seconds: float) -> list[tuple[int, float]]:
    """Look up how far the newest signed checkpoint is behind, in events and in seconds."""
    connection = await asyncpg.connect(url)
    found = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        row = await connection.fetchrow(_LAG)
        if row is not None and row["events"] is not None:
            found.append((row["events"], row["seconds"]))
        await asyncio.sleep(1 / SAMPLES_PER_SECOND)
    await connection.close()
    return found


@contextmanager
def started(url: str, key: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program beside this one; it does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment(url, key),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def behind(server: PostgresServer, rate: int, seconds: float, key: Path) -> str:
    """Append at a rate while a sealer follows; return what was seen as a line of the table."""
    url = server.create_database()
    migrate(Settings(database_url=url))
    tell(f"appending {rate:,} events a second")
    appends = ("benchmarks.seal", "--append", url, str(rate), str(seconds))
    with started(url, key, *appends) as appending:
        assert appending.stdout is not None
        appending.stdout.readline()
        with started(url, key, "ledger", "seal", "--follow"):
            time.sleep(WARM_UP_SECONDS)
            done, seen = asyncio.run(_appended(appending, url, seconds))
    server.drop_database(url)
    times = sorted(each for _, each in seen)
    most, middle = max(events for events, _ in seen), times[len(times) // 2]
    appended = done["events"] / done["seconds"]
    return (
        f"| {rate:,} | {appended:,.0f} | {len(seen)} | {middle:.2f} | {times[-1]:.2f} | {most:,} |"
    )


async def _appended(
    appending: subprocess.Popen[bytes], url: str, seconds: float
) -> tuple[dict[str, float], list[tuple[int, float]]]:
    """Let the appends begin; return what was appended, and how far the checkpoints were behind."""
    ended = asyncio.create_task(asyncio.to_thread(appending.communicate, b"go\n", 10 * seconds))
    await asyncio.sleep(WARM_UP_SECONDS)
    seen = await lags(url, seconds - 2 * WARM_UP_SECONDS)
    printed, _ = await ended
    return json.loads(printed.splitlines()[-1]), seen


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of load, for each rate")
    parser.add_argument("--keep", type=Path, help="keep PostgreSQL's history below this folder")
    parser.add_argument("--append", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.append:
        from benchmarks.live import append  # noqa: PLC0415 - only the process that appends

        url, rate, seconds = options.append
        asyncio.run(append(url, int(rate), float(seconds), APPEND_EVENTS))
        return
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "key"
        write_key(key, SigningKey.generate(default_origin("main")))
        report(options.events, options.seconds, options.keep, key)


def report(events: int, seconds: float, kept_in: Path | None, key: Path) -> None:
    """Measure everything and print it."""
    sealings = [sealed_postgres(events, key, kept_in), sealed_sqlite(events, key)]
    print(f"\n{machine()}")
    for _, settings in sealings:
        print(settings)
    print("\n| sealed | events | s | events/s | processor s | events/s of one core |")
    print("|---|--:|--:|--:|--:|--:|")
    for (what, count, took, spent), _ in sealings:
        rates = f"{count / took:,.0f} | {spent:.1f} | {count / spent:,.0f}"
        print(f"| {what} | {count:,} | {took:.1f} | {rates} |")
    print("\n| rate | appends/s | samples | median s behind | most s behind | most events behind |")
    print("|--:|--:|--:|--:|--:|--:|")
    with PostgresServer(SIZES) as server:
        server.restart(LASTING)
        for rate in RATES:
            print(behind(server, rate, seconds, key), flush=True)


if __name__ == "__main__":
    main()
