"""How many orders a second the HTTP service takes, each authenticated by an API key.

The server is started for the benchmark on disk, with fsync on; service, database and wrk, which
sends the requests, share the machine. Each request stores two events, the use of the key and the
order. In the end every order that was answered with 201 is looked for in the journal, where it must
be exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from benchmarks.server import LASTING, SIZES, described, tell
from ledger import console
from ledger.domain.api_keys import ApiKeyUsed
from ledger.domain.orders import OrderPlaced
from ledger.journal import open_journal
from ledger.migrate import migrate
from ledger.services import open_ledger
from ledger.settings import Settings
from tests.postgres import PostgresServer

ROOT = Path(__file__).parent.parent
SCRIPT = Path(__file__).with_suffix(".lua")
CONNECTIONS = 64
THREADS = 1
START_SECONDS_MAX = 30.0
COLUMNS = (
    "service", "orders/s", "p50 ms", "p99 ms", "longest ms", "accepted", "unanswered", "refused",
    "broken",
)  # fmt: skip


async def issue_key(url: str) -> str:
    """Register a user, and return an API key that may place orders."""
    async with open_ledger(Settings(database_url=url)) as ledger:
        registered = await ledger.users.register(username="trader", roles=["trader"])
        issued = await ledger.api_keys.issue(
            user_id=registered.user_id, name="load", permissions=["orders:write"]
        )
    assert issued.key is not None
    return issued.key.reveal()


@contextmanager
def service(url: str, options: Sequence[str]) -> Iterator[str]:
    """Run the service; give its address. It must end well."""
    environment = os.environ | {"LEDGER_DATABASE_URL": url, "LEDGER_HTTP_PORT": "0"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "projections", "serve", *options],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        try:
            yield _address(process)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(START_SECONDS_MAX)
    assert code == 0, f"the service ended with {code}"


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        _, found, address = line.partition("http://")
        if found:
            return f"http://{address.split()[0].rstrip('/')}"
    raise AssertionError("the service has ended before it said where it listens")


def load(address: str, key: str, seconds: int, folder: Path) -> dict[str, Any]:
    """Send orders for so long; return what wrk saw."""
    wrk = shutil.which("wrk")
    assert wrk, "wrk is needed: apt-get install wrk"
    command = [
        wrk, "--latency", f"-t{THREADS}", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s",
        "-s", str(SCRIPT), address, "--", key, str(folder),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


async def stored(url: str) -> tuple[Counter[str], int]:
    """Return how often each order is in the journal, and how many uses of keys are."""
    orders, uses = Counter[str](), 0
    async with open_journal(Settings(database_url=url)) as journal:
        async for recorded in journal.read():
            if isinstance(recorded.event, OrderPlaced):
                orders[str(recorded.event.order_id)] += 1
            uses += isinstance(recorded.event, ApiKeyUsed)
    return orders, uses


def measure(url: str, options: Sequence[str], seconds: int) -> None:
    """Measure one way to run the service, and print a line of the table."""
    key = asyncio.run(issue_key(url))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with service(url, options) as address:
            seen = load(address, key, seconds, folder)
        accepted = [line for file in folder.iterdir() for line in file.read_text().splitlines()]
    orders, uses = console.run(stored(url))
    assert len(accepted) == len(set(accepted)), "an order was accepted twice"
    assert all(orders[each] == 1 for each in accepted), "an accepted order is not there once"
    assert set(orders.values()) == {1}, "an order was stored twice"
    unanswered = len(orders) - len(accepted)
    assert unanswered <= CONNECTIONS, f"{unanswered} orders were stored and not answered"
    assert uses >= len(orders), "an order was placed without a use of the key"
    print(
        f"| `serve {' '.join(options)}` | {len(accepted) / seen['seconds']:,.0f} "
        f"| {seen['p50_ms']:.1f} | {seen['p99_ms']:.1f} | {seen['longest_ms']:.0f} "
        f"| {len(accepted):,} | {unanswered} | {seen['refused']:,} | {seen['broken']} |",
        flush=True,
    )


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--with-projectors", action="store_true", help="measure these as well")
    given = parser.parse_args()
    ways = [["--no-console"]] + [["--no-console", "--project"]] * given.with_projectors
    print(f"{machine()}; {CONNECTIONS} connections, {given.seconds} s a run")
    with PostgresServer.start(SIZES | LASTING) as server:
        migrate(Settings(database_url=server.create_database("migrated")))
        print(asyncio.run(described(server.url("migrated"))) + "\n")
        print(
            "| service | orders/s | p50 ms | p99 ms | longest ms | accepted | unanswered ", end=""
        )
        print("| refused | broken |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|")
        for options in ways * given.runs:
            url = server.create_database(template="migrated")
            measure(url, options, given.seconds)
            server.drop_database(url)
            tell(f"measured serve {' '.join(options)}")


if __name__ == "__main__":
    os.environ.pop("LEDGER_DATABASE_URL", None)
    main()
