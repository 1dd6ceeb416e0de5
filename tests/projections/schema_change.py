"""What a change of a read model needs: a changed copy of the program, writers, and readers."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import asyncpg

from ledger.domain.api_keys import ApiKeyIssued, ApiKeyUsed
from ledger.domain.orders import Action, OrderFilled, OrderPlaced, OrderType
from ledger.domain.users import LoginSucceeded, UserRegistered
from ledger.event import Amount, Event, NewEvent, VenueAmount
from ledger.journal import open_journal
from ledger.settings import Settings
from projections.database import Database, lock_statement, read_tables
from tests.ledger.support import ROOT, environment
from tests.projections.support import an_id

PARTS = ("ledger", "projections", "migrations", "replay.py", "alembic.ini", "pyproject.toml")
CALLERS = 50
USERS = 50
PAUSE_SECONDS = 0.02
SNAPSHOT_QUERIES = 5
QUERY_PAUSE_SECONDS = 0.005
SNAPSHOT_PAUSE_SECONDS = 0.1
"""Where two readers leave no moment without a snapshot, a swap tries for a minute."""

LOOK = """
SELECT (SELECT size FROM checkpoints WHERE group_name = 'trading' AND journal_id = 1) AS size,
    (SELECT count(*) FROM {positions}) AS positions,
    (SELECT count(*) FROM orders) AS orders,
    (SELECT max(changed_size) FROM orders) AS orders_changed,
    (SELECT max(changed_size) FROM {positions}) AS positions_changed,
    (SELECT count(*) FROM orders o WHERE position_id IS NOT NULL AND NOT EXISTS (
        SELECT FROM {positions} p
        WHERE p.journal_id = o.journal_id AND p.position_id = o.position_id)) AS dangling,
    (SELECT count(*) FROM {positions} p
        WHERE owner_id IS NOT NULL AND coalesce(to_jsonb(p) ->> 'fills_count', '0') = '0') AS old,
    (SELECT count(*) FROM {positions} p
        WHERE coalesce(to_jsonb(p) ->> 'fills_count', '0') <> '0') AS new
"""
VIEW = "CREATE VIEW seen_positions AS SELECT * FROM positions"


def changed_copy(folder: Path) -> Path:
    """Copy the program, and change it: positions count their fills."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / part, ignore=ignored)
        else:
            shutil.copy(source, folder / part)
    positions = folder / "projections" / "positions.py"
    change(
        positions,
        r"( +)exact_fees: Mapped.*\n",
        r"\g<0>\1fills_count: Mapped[int] = mapped_column(default=0)\n",
    )
    change(positions, r"( +)row\.exact_fees \+= effect\.fee\n", r"\g<0>\1row.fills_count += 1\n")
    change(folder / "projections" / "groups.py", r'fold_version="\d+"', 'fold_version="next"')
    return folder


def change(file: Path, pattern: str, replacement: str) -> None:
    """Change the one place that a pattern finds."""
    text, count = re.subn(pattern, replacement, file.read_text())
    assert count == 1, f"{pattern} is found {count} times in {file}"
    file.write_text(text)


def run(tree: Path, url: str, *command: str) -> str:
    """Run a program of a tree to its good end, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tree,
        env={**environment(url), "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def worker(tree: Path, url: str) -> Any:
    """Keep a projector worker of a tree running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "projections", "run"],
        cwd=tree,
        env={**environment(url), "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
        assert process.poll() is None, "the worker has ended"
    finally:
        process.kill()
        process.wait()


def append_steadily(url: str, rate: float, told: Path) -> None:
    """Append so many times a second, one event each, until killed; tell the offsets reached."""
    asyncio.run(_append_steadily(url, rate, told))


async def _append_steadily(url: str, rate: float, told: Path) -> None:
    seed, appended, started = 100, 0, time.monotonic()
    async with open_journal(Settings(database_url=url)) as journal:
        while True:
            seed += 1
            events = desk_events(Random(seed), 5000)
            for start in range(0, len(events), CALLERS):
                calls = (journal.append(NewEvent(each)) for each in events[start : start + CALLERS])
                await asyncio.gather(*calls)
                appended += CALLERS
                tell(told, f"{appended} {time.monotonic() - started}")
                await asyncio.sleep(max(0, started + appended / rate - time.monotonic()))


def tell(file: Path, text: str) -> None:
    """Write what others are to know."""
    file.write_text(text)


def desk(users: int = USERS) -> list[Event]:
    """Return users with a key each, and orders that are filled in part."""
    found: list[Event] = []
    for number in range(users):
        user_id, key_id = an_id(f"user {number}"), an_id(f"key {number}")
        found.append(UserRegistered(user_id=user_id, username=f"user {number}"))
        found.append(ApiKeyIssued(key_id=key_id, user_id=user_id, name="desk"))
        order_id = an_id(f"order {number}")
        found.append(
            OrderPlaced(
                order_id=order_id,
                user_id=user_id,
                token="SOL",
                action=Action.BUY,
                order_type=OrderType.MARKET,
                quantity=Amount(10**6),
            )
        )
        found.append(fill(number, 0))
    return found


def fill(number: int, count: int) -> Event:
    """Return a fill of a user's order."""
    return OrderFilled(
        order_id=an_id(f"order {number}"),
        fill_id=str(count),
        user_id=an_id(f"user {number}"),
        token="SOL",
        action=Action.BUY,
        quantity=VenueAmount("0.5"),
        price=VenueAmount(100 + count % 7),
    )


def desk_events(random: Random, count: int) -> list[Event]:
    """Return what comes all day: uses of keys, logins, fills."""
    found: list[Event] = []
    for _ in range(count):
        number = random.randrange(USERS)
        kind = random.random()
        if kind < 0.6:
            found.append(ApiKeyUsed(key_id=an_id(f"key {number}"), action="GET"))
        elif kind < 0.65:
            found.append(LoginSucceeded(user_id=an_id(f"user {number}")))
        else:
            found.append(fill(number, random.getrandbits(60)))
    return found


class Reader:
    """Looks every few milliseconds, and holds what is true of every look."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.looks = 0
        self.shapes: list[str] = []
        self._size = 0

    def see(self, row: Any) -> None:
        """Hold that nothing is empty, mixed, dangling, or goes back."""
        self.looks += 1
        where = f"{self.kind}: {dict(row)}"
        assert row["positions"] > 0, where
        assert row["orders"] > 0, where
        assert row["dangling"] == 0, where
        assert not (row["old"] and row["new"]), where
        assert max(row["orders_changed"], row["positions_changed"]) <= row["size"], where
        assert row["size"] >= self._size, where
        self._size = row["size"]
        shape = "new" if row["new"] else "old"
        if shape not in self.shapes[-1:]:
            self.shapes.append(shape)


def look(positions: str = "positions") -> str:
    """Return the one statement that all readers look with."""
    return LOOK.format(positions=positions)


async def read_by_itself(url: str, reader: Reader, going: Callable[[], bool]) -> None:
    """Each statement is a transaction."""
    async with connected(url) as connection:
        while going():
            reader.see(await connection.fetchrow(look()))
            await asyncio.sleep(PAUSE_SECONDS)


async def read_prepared(url: str, reader: Reader, going: Callable[[], bool]) -> None:
    """One statement, prepared once."""
    async with connected(url) as connection:
        statement = await connection.prepare(look())
        while going():
            reader.see(await statement.fetchrow())
            await asyncio.sleep(PAUSE_SECONDS)


async def read_through_view(url: str, reader: Reader, going: Callable[[], bool]) -> None:
    """Through a view of somebody's own, which does not know the new column."""
    query = look("seen_positions")
    async with connected(url) as connection:
        while going():
            reader.see(await connection.fetchrow(query))
            await asyncio.sleep(PAUSE_SECONDS)


async def read_long(url: str, reader: Reader, going: Callable[[], bool]) -> None:
    """REPEATABLE READ by hand, with the documented statement first."""
    lock = lock_statement(read_tables())
    async with connected(url) as connection:
        while going():
            async with connection.transaction(isolation="repeatable_read"):
                await connection.execute(lock)
                rows = []
                for _ in range(SNAPSHOT_QUERIES):
                    rows.append(await connection.fetchrow(look()))
                    await asyncio.sleep(QUERY_PAUSE_SECONDS)
            assert len(set(map(tuple, rows))) == 1
            reader.see(rows[0])
            await asyncio.sleep(SNAPSHOT_PAUSE_SECONDS)


async def read_snapshots(url: str, reader: Reader, going: Callable[[], bool]) -> None:
    """The same by the library."""
    async with Database(Settings(database_url=url)) as database:
        while going():
            rows = []
            async with database.snapshot() as connection:
                for _ in range(SNAPSHOT_QUERIES):
                    rows.append((await connection.exec_driver_sql(look())).mappings().one())
                    await asyncio.sleep(QUERY_PAUSE_SECONDS)
            assert len({tuple(row.values()) for row in rows}) == 1
            reader.see(rows[0])
            await asyncio.sleep(SNAPSHOT_PAUSE_SECONDS)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """Connect, with every kind of cache as the driver has it."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        connection.terminate()
