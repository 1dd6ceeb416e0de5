"""A PostgreSQL server on disk with a history in it, which can be kept for later runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg

from benchmarks.history import VERSION, Plan, load
from benchmarks.measure import DURABILITY
from ledger.migrate import migrate
from ledger.settings import Settings
from tests.postgres import PostgresServer

LASTING = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
LOADING = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
SIZES = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "max_connections": "100",
}
"""What anybody sets on a server that is loaded at all; the same for all contenders."""

DATABASE = "history"
SHOWN = (*DURABILITY, "shared_buffers", "max_wal_size")


def tell(text: str) -> None:
    """Say on stderr what is being done."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def history_server(plan: Plan, kept_in: Path | None) -> Iterator[PostgresServer]:
    """Start a durable server that holds the history in the database `history`.

    With `kept_in` the server's data stays in a folder below it, and is used again by the next run.
    PostgreSQL's account must be able to reach that folder.
    """
    with PostgresServer(SIZES) as server:
        kept = None if kept_in is None else kept_in / f"history-{VERSION}-{plan.events}-{plan.seed}"
        if kept is not None and kept.exists():
            server.stop()
            server.data = kept / "data"
        else:
            _fill(server, plan, kept)
        server.restart(LASTING)
        migrate(Settings(database_url=server.url(DATABASE)))
        try:
            yield server
        finally:
            server.stop()


def _fill(server: PostgresServer, plan: Plan, kept: Path | None) -> None:
    """Make the history, without durability until it is complete."""
    began = time.monotonic()
    server.restart(LOADING)
    url = server.create_database(DATABASE)
    migrate(Settings(database_url=url))
    load(url, plan, tell)
    server.psql("CHECKPOINT")
    server.stop()
    os.sync()  # or the system would write it out while something is measured
    tell(f"{plan.events:,} events made in {time.monotonic() - began:.0f} s")
    if kept is None:
        return
    kept.mkdir(parents=True, mode=0o755)
    shutil.move(server.data, kept / "data")
    server.account.own(kept)
    server.data = kept / "data"


async def described(url: str) -> str:
    """Return the server's version and the settings that matter, in one line."""
    connection = await asyncpg.connect(url)
    settings = [f"{name}={await connection.fetchval(f'SHOW {name}')}" for name in SHOWN]
    version = await connection.fetchval("SHOW server_version")
    await connection.close()
    return f"PostgreSQL {version}: {', '.join(settings)}"
