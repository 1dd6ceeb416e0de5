"""From real files to read models, through the programs that a user would run.

Each file goes `adapter | ledger append -`, then `projections run --once`; what the tables say is
compared with the exchange's own figures and with tallies that were made without the adapters. The
first two are started as users start them, the others as `tests.support.programs` does.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from sqlalchemy import select

from ledger.domain.orders import OrderFilled
from ledger.event import RecordedEvent
from ledger.journal import open_journal
from ledger.settings import Settings
from projections.api_keys import ApiKey
from projections.database import Database
from projections.groups import TRADING
from projections.marks import Mark
from projections.model import Model
from projections.orders import Order
from projections.projection import State
from projections.replaying import fold_prefix
from projections.security_audit_logs import SecurityAuditLog
from projections.users import User
from tests.examples.support import Conversion, command
from tests.support.programs import run as programs_run

LEDGER = (sys.executable, "-m", "ledger")

RELATIVE_ERROR_MAX = Decimal("1e-8")  # the exchange gives ten digits
PNL_ERROR_MAX = Decimal("2e-6")
SAMPLE = 10  # of each database; every answer is a process of its own

pytestmark = pytest.mark.timeout(900)

RealFile = Callable[[str], Path]
RealConversion = Callable[[str], Conversion]


class Programs(NamedTuple):
    """The programs of this project on one database, each run as a process of its own."""

    database_url: str

    def environment(self) -> dict[str, str]:
        """Return what a program finds in its environment."""
        return {**os.environ, "LEDGER_DATABASE_URL": self.database_url}

    def run(self, *arguments: str, data: bytes = b"") -> str:
        """Run a program that must succeed and return what it prints."""
        done = programs_run(*arguments, environment=self.environment(), stdin=data)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def import_file(self, name: str, file: Path) -> str:
        """Pipe an adapter into the ledger, then bring the tables up to date."""
        with subprocess.Popen(
            command(name, file), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as adapter:
            append = subprocess.run(
                [*LEDGER, "append", "-"],
                stdin=adapter.stdout,
                capture_output=True,
                check=False,
                env=self.environment(),
            )
        assert (adapter.returncode, append.returncode) == (0, 0), append.stderr.decode()
        self.run("projections", "run", "--once")
        return append.stdout.decode()

    async def rows(self, model: type[Model]) -> list[Model]:
        """Read a whole live table."""
        settings = Settings(database_url=self.database_url)
        async with Database(settings) as database, database.session() as session:
            return list(await session.scalars(select(model)))


@pytest.fixture
def programs(database_url: str) -> Programs:
    """The programs on a fresh database."""
    return Programs(database_url)


def check_import(programs: Programs, name: str, file: Path, conversion: Conversion) -> None:
    """Import a file, prove the tables right, and import the same lines in vain."""
    events = len(conversion.lines)
    assert programs.import_file(name, file).startswith(f"{events} events stored, 0 ")
    assert programs.run("replay.py", "verify").startswith(f"verified: {events:,} events, ")
    again = programs.run("ledger", "append", "-", data=conversion.output)
    assert again == f"0 events stored, {events} were stored before\n"


async def test_hyperliquid(
    programs: Programs, real_file: RealFile, real_conversion: RealConversion
) -> None:
    """Before every fill the position is the exchange's, and every fill gains what it says."""
    file = real_file("hyperliquid")
    check_import(programs, "hyperliquid", file, real_conversion("hyperliquid"))
    with file.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    fills: list[RecordedEvent] = []
    async for before, fill, after in _as_of_each_fill(programs.database_url):
        _check_fill(rows[len(fills)], before, after)
        fills.append(fill)
    assert len(fills) == len(rows) == 1963
    _check_sample(programs, rows, fills)
    users = {user.username for user in await programs.rows(User)}
    assert users == {row["account"] for row in rows}
    assert Counter(order.status for order in await programs.rows(Order)) == {"executed": 76}


class Book(NamedTuple):
    """What all cycles of one user's token come to."""

    size: Decimal = Decimal()
    realized_pnl: Decimal = Decimal()


async def _as_of_each_fill(
    database_url: str,
) -> AsyncIterator[tuple[Book, RecordedEvent, Book]]:
    """Yield each fill with its book as of the fill's offset, and as of the next."""
    async with open_journal(Settings(database_url=database_url)) as journal:
        state = await fold_prefix(journal, TRADING, 0)
        before: dict[str, Book] = {}
        async for recorded in journal.read(0, await journal.size()):
            TRADING.fold(state, [recorded])
            after = _books(state)
            if isinstance(recorded.event, OrderFilled):
                [name] = recorded.event.tags()
                yield before.get(name, Book()), recorded, after.get(name, Book())
            before = after


def _books(state: State) -> dict[str, Book]:
    """Sum up the positions by the book that they are cycles of."""
    books: dict[str, Book] = {}
    positions: Iterable[Any] = TRADING.finished(state, "positions")
    for row in positions:
        size, realized_pnl = books.get(row.book, Book())
        books[row.book] = Book(size + row.size, realized_pnl + row.realized_pnl)
    return books


def _sum(values: Iterable[Decimal | None]) -> Decimal:
    return sum((value or Decimal() for value in values), Decimal())


def _check_fill(row: dict[str, str], before: Book, after: Book) -> None:
    """Compare a fill with the exchange: its start position and, since flat, its gross P&L."""
    start = Decimal(row["start_position"])
    assert _is_near(before.size, start), row
    if row["since_flat"] == "1":
        signed = Decimal(row["size"]) * (1 if row["side"] == "BUY" else -1)
        closed = min(abs(start), abs(signed)) if start * signed < 0 else Decimal()
        error = abs(after.realized_pnl - before.realized_pnl - Decimal(row["closed_pnl"]))
        assert error <= Decimal(row["price_tick"]) * closed + PNL_ERROR_MAX, row


def _is_near(size: Decimal, expected: Decimal) -> bool:
    return abs(size - expected) <= abs(expected) * RELATIVE_ERROR_MAX


def _check_sample(
    programs: Programs, rows: list[dict[str, str]], fills: list[RecordedEvent]
) -> None:
    """Ask the auditor's own program for some of the positions."""
    picked = range(0, len(rows), len(rows) // SAMPLE)

    def position(index: int) -> Decimal:
        return _position_as_of(programs, fills[index])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, size in zip(picked, pool.map(position, picked), strict=True):
            assert _is_near(size, Decimal(rows[index]["start_position"])), rows[index]


def _position_as_of(programs: Programs, fill: RecordedEvent) -> Decimal:
    """Read the position before a fill from `replay.py as-of` at the fill's offset."""
    assert isinstance(fill.event, OrderFilled)
    arguments = (
        "replay.py",
        "as-of",
        "--size",
        str(fill.offset),
        "--table",
        "positions",
        "--format",
        "json",
    )
    answer = json.loads(programs.run(*arguments))
    assert answer["size"] == fill.offset
    return sum(
        (
            Decimal(row["size"])
            for row in answer["tables"]["positions"]
            if UUID(row["user_id"]) == fill.event.user_id and row["token"] == fill.event.token
        ),
        Decimal(),
    )


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # it is the largest file
async def test_lobster(
    programs: Programs,
    real_file: RealFile,
    real_conversion: RealConversion,
    expected_counts: dict[str, Any],
) -> None:
    """Orders end as tallied; facts about unknown orders are kept and flagged."""
    file = real_file("lobster")
    check_import(programs, "lobster", file, real_conversion("lobster"))
    expected = expected_counts["lobster_goog"]
    orders = await programs.rows(Order)
    submitted = [order for order in orders if order.order_type is not None]
    assert len(submitted) == expected["orders_submitted"]
    assert Counter(map(_end_state, submitted)) == expected["final_states"]
    filled = _sum(order.filled_quantity for order in submitted)
    assert filled == expected["filled_shares_of_submitted_orders"]
    assert _flags(submitted) == {"restated": expected["messages"]["2"] - 1}
    assert _flags(order for order in orders if order.order_type is None) == {
        "unknown_order:OrderFilled": _anomaly(expected, 4),
        "fill_without_position": _anomaly(expected, 4),
        "unknown_order:OrderCancelled": _anomaly(expected, 3),
        "unknown_order:OrderRestated": _anomaly(expected, 2),
        "restated": 1,
    }
    [mark] = await programs.rows(Mark)
    assert (mark.token, mark.price) == ("GOOG", _last_hidden_price(file))


def _end_state(order: Order) -> str:
    """Name an order's state in the words of the expected tallies."""
    match order.status:
        case "executed":
            return "filled after a size reduction" if "restated" in order.flags else "filled"
        case "cancelled":
            return "cancelled after partial fill" if order.filled_quantity else "cancelled"
        case "partially_filled":
            return "open, partially filled"
        case status:
            return {"pending": "open"}.get(status, status)


def _flags(orders: Iterable[Order]) -> Counter[str]:
    return sum((Counter(order.flags) for order in orders), Counter())


def _anomaly(expected: dict[str, Any], kind: int) -> int:
    count: int = expected["anomalies"][f"type{kind} for an order never submitted in the file"]
    return count


def _last_hidden_price(file: Path) -> Decimal:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        prices = [row["price_x10000"] for row in csv.DictReader(lines) if row["type"] == "5"]
    return Decimal(prices[-1]) / 10_000


async def test_openssh(
    programs: Programs,
    real_file: RealFile,
    real_conversion: RealConversion,
    expected_counts: dict[str, Any],
) -> None:
    """532 failed logins, those of names that do not exist without a user; root is locked out."""
    check_import(programs, "openssh", real_file("openssh"), real_conversion("openssh"))
    logs = await programs.rows(SecurityAuditLog)
    failed = [log for log in logs if log.event_type == "LoginFailed"]
    strangers = sum(
        count
        for template, count in expected_counts["openssh"].items()
        if template.startswith(("E10 ", "E8 "))
    )
    assert (len(failed), sum(log.success for log in failed)) == (532, 0)
    assert sum(log.user_id is None for log in failed) == strangers
    assert all(log.ip_address is not None for log in failed)
    users = {user.username: user for user in await programs.rows(User)}
    counted = Counter(log.user_id for log in failed)
    assert all(
        user.failed_login_attempts == counted[user.user_id]
        for name, user in users.items()
        if name != "root"
    )
    locked = {log.user_id for log in logs if log.event_type == "AccountLocked"}
    assert locked == {users["root"].user_id}
    assert [name for name, user in users.items() if user.last_login] == ["fztu"]


async def test_cloudtrail(
    programs: Programs,
    real_file: RealFile,
    real_conversion: RealConversion,
    expected_counts: dict[str, Any],
) -> None:
    """Key uses and refusals as tallied; deleted keys and users are inactive."""
    check_import(programs, "cloudtrail", real_file("cloudtrail"), real_conversion("cloudtrail"))
    expected = expected_counts["cloudtrail"]
    logs = await programs.rows(SecurityAuditLog)
    kinds = Counter((log.event_type, log.success) for log in logs)
    assert kinds["ApiKeyUsed", True] == 2515
    assert kinds["ApiKeyRefused", False] == expected["with_error_code"]
    assert all((log.ip_address is None) == ("source" in log.details) for log in _uses(logs))
    keys = await programs.rows(ApiKey)
    assert len(keys) == expected["distinct_keys_used"] + expected["CreateAccessKey"]
    assert sum(key.requests_count for key in keys) == 2515
    assert sum(not key.is_active for key in keys) == expected["DeleteAccessKey"]
    users = await programs.rows(User)
    assert sum(not user.is_active for user in users) == expected["DeleteUser"]
    assert {key.user_id for key in keys} <= {user.user_id for user in users}


def _uses(logs: list[SecurityAuditLog]) -> list[SecurityAuditLog]:
    return [log for log in logs if log.event_type in ("ApiKeyUsed", "ApiKeyRefused")]
