"""How fast events are appended, beside the raw limit and a peer on the same server in one run.

The server is started for the benchmark on disk, with fsync and synchronous_commit on. All
contenders write events of the same size with UUIDv7 ids, each to a stream of its own. They take
turns in several rounds, and the medians are shown, so that a busy moment of the machine hits all.
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
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from sqlalchemy import make_url
from uuid_utils.compat import uuid7

from benchmarks.measure import DURABILITY, Figure, drive, figure, machine, median, settle, table
from ledger import console
from ledger.conditions import ExpectedVersion
from ledger.domain.api_keys import ApiKeyIssued, ApiKeyUsed
from ledger.domain.marks import PriceMarked
from ledger.event import Metadata, NewEvent, VenueAmount
from ledger.journal import Journal, open_journal
from ledger.migrate import migrate
from ledger.settings import Settings
from tests.postgres import PostgresServer

PRICE = VenueAmount("64250.12345678")
RAW_ROWS = 1000
RAW_BATCH = """INSERT INTO raw (journal_id, "offset", event_id, stream, version, type,
        schema_version, occurred_at, recorded_at, body)
    SELECT 1, $1 + n.ord, n.id, n.stream, 1, 'PriceMarked', 1, $2, $2, n.body
    FROM unnest($3::uuid[], $4::text[], $5::bytea[]) WITH ORDINALITY AS n(id, stream, body, ord)"""
RAW_SINGLE = """INSERT INTO raw (journal_id, "offset", event_id, stream, version, type,
        schema_version, occurred_at, recorded_at, body)
    VALUES (1, $1, $2, $3, 1, 'PriceMarked', 1, $4, $4, $5)"""

Contender = Callable[[], Awaitable[Figure]]


def new_event() -> NewEvent:
    """Return an event for a stream that does not exist yet."""
    token = str(uuid7())
    return NewEvent(PriceMarked(token=token, price=PRICE), f"market-{token}")


def raw_row() -> tuple[UUID, str, bytes]:
    """Return id, stream and body as large as those of `new_event`."""
    token = str(uuid7())
    body = f'{{"type":"PriceMarked","token":"{token}","price":"{PRICE}"}}'
    return uuid7(), f"market-{token}", body.encode()


async def ours(url: str, callers: int, events: int) -> Figure:
    """Append single events, made beforehand, under an expected version."""
    news = [new_event() for _ in range(events)]
    async with open_journal(Settings(database_url=url)) as journal:
        return await drive(callers, events, lambda number: append_one(journal, news[number]))


async def personal(url: str, callers: int, events: int) -> Figure:
    """Append uses of 100 people's API keys from an ip address, which is encrypted."""
    keys = [(uuid7(), uuid7()) for _ in range(100)]
    issued = [
        NewEvent(ApiKeyIssued(key_id=key, user_id=user, name="key", key_hash="0"))
        for key, user in keys
    ]
    metadata = Metadata(ip_address="203.0.113.7")
    news = [
        NewEvent(ApiKeyUsed(key_id=keys[number % 100][0], action="read"), metadata=metadata)
        for number in range(events)
    ]
    async with open_journal(Settings(database_url=url)) as journal:
        await journal.append(issued)
        return await drive(callers, events, lambda number: append_any(journal, news[number]))


async def append_any(journal: Journal, new: NewEvent) -> None:
    """Append an event to a stream that may have others."""
    await journal.append(new)


async def append_one(journal: Journal, new: NewEvent) -> None:
    """Append an event to a stream of its own."""
    await journal.append(new, ExpectedVersion(new.stream, 0))


async def raw_batches(url: str, events: int) -> Figure:
    """Insert 1,000 rows a transaction on one connection; the arrays are made beforehand."""
    connection = await asyncpg.connect(url)
    first = await connection.fetchval('SELECT coalesce(max("offset"), -1) FROM raw')
    batches = [
        [list(column) for column in zip(*(raw_row() for _ in range(RAW_ROWS)), strict=True)]
        for _ in range(events // RAW_ROWS)
    ]
    settle()
    began = time.perf_counter()
    for number, columns in enumerate(batches):
        await connection.execute(RAW_BATCH, first + number * RAW_ROWS, datetime.now(UTC), *columns)
    seconds = time.perf_counter() - began
    await connection.close()
    return figure(len(batches) * RAW_ROWS, seconds)


async def raw_singles(url: str, connections: int, events: int) -> Figure:
    """Insert one row a transaction, on as many connections as there are callers."""
    pool = await asyncpg.create_pool(url, min_size=connections, max_size=connections)
    first = 1 + await pool.fetchval('SELECT coalesce(max("offset"), -1) FROM raw')

    async def insert(number: int) -> None:
        event_id, stream, body = raw_row()
        now = datetime.now(UTC)
        await pool.execute(RAW_SINGLE, first + number, event_id, stream, now, body)

    measured = await drive(connections, events, insert)
    await pool.close()
    return measured


class Mark(Aggregate):
    """The peer's equivalent of `PriceMarked`."""

    @event("PriceMarked")
    def __init__(self, token: str, price: str) -> None:
        """Mark a price."""
        self.token = token
        self.price = price


def peer(url: str, threads: int, events: int) -> Figure:
    """Save one event at a time with eventsourcing, from several threads."""
    application = peer_application(url)
    numbers = iter(range(events))
    lock = threading.Lock()
    latencies: list[float] = []

    def save() -> None:
        while True:
            with lock:
                if next(numbers, None) is None:
                    return
            began = time.perf_counter()
            application.save(Mark(token=str(uuid7()), price=str(PRICE)))
            latencies.append(time.perf_counter() - began)

    settle()
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(save) for _ in range(threads)]:
            done.result()
    seconds = time.perf_counter() - began
    application.close()
    return figure(len(latencies), seconds, latencies)


def peer_application(url: str) -> Application[Any]:
    """Return the peer's application on the same server."""
    address = make_url(url)
    return Application(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": str(address.database),
            "POSTGRES_HOST": str(address.host),
            "POSTGRES_PORT": str(address.port),
            "POSTGRES_USER": str(address.username),
            "POSTGRES_PASSWORD": "none",
            "POSTGRES_POOL_SIZE": "8",
        }
    )


async def several_processes(url: str, processes: int, callers: int, events: int) -> Figure:
    """Append to one journal from several processes at once."""
    command = [sys.executable, __file__, "--child", url, str(callers), str(events // processes)]
    children = [
        await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(processes)
    ]
    for child in children:  # each says when it is ready, and waits for the start
        assert child.stdout is not None
        await child.stdout.readline()
    began = time.perf_counter()
    answers = await asyncio.gather(*(child.communicate(b"go\n") for child in children))
    seconds = time.perf_counter() - began
    return figure(sum(int(out) for out, _ in answers), seconds)


async def child(url: str, callers: int, events: int) -> None:
    """Be one of several processes."""
    news = [new_event() for _ in range(events)]
    async with open_journal(Settings(database_url=url)) as journal:
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        await drive(callers, events, lambda number: append_one(journal, news[number]))
    print(events)


async def prepare(url: str) -> None:
    """Make the table for the raw limit, with the journal's own columns and indexes."""
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE raw (LIKE events INCLUDING ALL)")
    settings = [f"{name}={await connection.fetchval(f'SHOW {name}')}" for name in DURABILITY]
    print(f"PostgreSQL {await connection.fetchval('SHOW server_version')}: {', '.join(settings)}")
    await connection.close()


def contenders(postgres: str, sqlite: str, scale: float) -> dict[str, Contender]:
    """Return everything that is measured, by name."""

    def n(events: int) -> int:
        return max(RAW_ROWS, int(events * scale))

    async def peer_in_thread() -> Figure:
        return await asyncio.to_thread(peer, postgres, 8, n(2_500))

    return {
        "raw limit: 1,000 rows a transaction": lambda: raw_batches(postgres, n(60_000)),
        "raw single rows, 32 connections": lambda: raw_singles(postgres, 32, n(8_000)),
        "eventsourcing, 8 threads": peer_in_thread,
        "ledger, 1 caller": lambda: ours(postgres, 1, n(1_500)),
        "ledger, 32 callers": lambda: ours(postgres, 32, n(20_000)),
        "ledger, 1,000 callers": lambda: ours(postgres, 1000, n(60_000)),
        "ledger, 1,000 callers, encrypted": lambda: personal(postgres, 1000, n(60_000)),
        "ledger, 4 processes of 250 callers": lambda: several_processes(
            postgres, 4, 250, n(60_000)
        ),
        "ledger on SQLite, 1 caller": lambda: ours(sqlite, 1, n(1_500)),
        "ledger on SQLite, 32 callers": lambda: ours(sqlite, 32, n(10_000)),
        "ledger on SQLite, 1,000 callers": lambda: ours(sqlite, 1000, n(20_000)),
        "ledger on SQLite, 1,000 callers, encrypted": lambda: personal(sqlite, 1000, n(20_000)),
    }


async def compare(postgres: str, sqlite: str, rounds: int, scale: float) -> dict[str, Figure]:
    """Measure all contenders in turn, round after round; return the medians."""
    await prepare(postgres)
    measured: dict[str, list[Figure]] = {}
    for number in range(rounds):
        for name, contender in contenders(postgres, sqlite, scale).items():
            measured.setdefault(name, []).append(await contender())
            print(f"round {number + 1}: {name}: {measured[name][-1].rate:,.0f}/s", file=sys.stderr)
    return {name: median(figures) for name, figures in measured.items()}


def ratios(found: dict[str, Figure]) -> list[str]:
    """Return the ratios that count."""
    rate = {name: measured.rate for name, measured in found.items()}
    many, few = rate["ledger, 1,000 callers"], rate["ledger, 32 callers"]
    peer_rate = rate["eventsourcing, 8 threads"]
    return [
        f"1,000 callers: {many / rate['raw limit: 1,000 rows a transaction']:.0%} of the raw limit",
        f"1,000 callers: {many / peer_rate:.1f} x eventsourcing",
        f"32 callers: {few / peer_rate:.1f} x eventsourcing",
        f"32 callers: {few / rate['raw single rows, 32 connections']:.2f} x raw single rows",
    ]


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of events")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        url, callers, events = arguments.child
        console.run(child(url, int(callers), int(events)))
        return
    print(machine())
    with PostgresServer.start() as server, tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        postgres = server.create_database("bench")
        sqlite = f"sqlite:///{folder}/ledger.db"
        for url in (postgres, sqlite):
            migrate(Settings(database_url=url))
        found = console.run(compare(postgres, sqlite, arguments.rounds, arguments.scale))
    print(f"SQLite: journal_mode=WAL, synchronous=FULL; medians of {arguments.rounds} rounds")
    print(table(list(found.items())))
    print("\n".join(f"- {line}" for line in ratios(found)))


if __name__ == "__main__":
    os.environ.pop("LEDGER_DATABASE_URL", None)
    main()
