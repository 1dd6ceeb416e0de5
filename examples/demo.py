"""The whole system in one minute: a trading day on SQLite, projected, replayed, verified.

Run it with `make demo`. It needs no server, and keeps its database file for you to look at.
`make demo SERVE=1` goes on serving it: the HTTP API, and the auditors' console to log in to.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from examples.trading_day import DAY, MINUTES, TradingDay
from ledger import console
from ledger.errors import LedgerError
from ledger.journal import Journal, open_journal
from ledger.migrate import migrate
from ledger.proof.keys import read_key
from ledger.proof.sealer import Sealer
from ledger.services import open_ledger
from ledger.settings import Settings
from projections.database import Database
from projections.groups import GROUPS, TRADING
from projections.model import values_of
from projections.positions import Position
from projections.projector import Projector
from projections.rendering import as_text
from projections.replaying import fold_prefix
from projections.security_audit_logs import SecurityAuditLog
from projections.serving import logs, server
from projections.serving.running import EVERYTHING, KEY_SUFFIX, with_log_key
from projections.verification import verify

SEED = 20260302
ROLES = ("auditor", "operator", "admin")
MINUTE = timedelta(minutes=1)
NOON = DAY + timedelta(hours=12)
POSITION_COLUMNS = ("token", "size", "entry_price", "realized_pnl", "fees", "net_pnl", "status")
AUDIT_COLUMNS = ("timestamp", "event_type", "ip_address", "action", "success")

out = Console(highlight=False, soft_wrap=True)
if not out.is_terminal:
    out.width = 100


class SimulatedClock:
    """The store's clock, set to the simulated day."""

    def __init__(self) -> None:
        self.now = DAY

    def __call__(self) -> datetime:
        """Return the simulated time."""
        return self.now


def main() -> int:
    """Run the demo; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--database", type=Path, default=Path("demo.db"), help="[%(default)s]")
    parser.add_argument("--seed", type=int, default=SEED, help="[%(default)s]")
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        choices=range(1, 61),
        metavar="MINUTES",
        help="trade only one minute of so many, for a shorter day [%(default)s]",
    )
    parser.add_argument("--serve", action="store_true", help="go on serving it")
    arguments = parser.parse_args()
    path: Path = arguments.database.absolute()
    for suffix in ("", "-wal", "-shm", "-next", "-turn", "-rebuild", KEY_SUFFIX):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    settings = Settings(database_url=f"sqlite:///{path}", journal="main")
    migrate(settings)
    code = console.run(demo(settings, path, TradingDay(arguments.seed, arguments.every)))
    if arguments.serve and code == 0:
        return go_on_serving(settings)
    out.print("\nLook at it in a browser: [bold]make demo SERVE=1[/]")
    return code


async def demo(settings: Settings, path: Path, day: TradingDay) -> int:
    """Append, project, replay, verify; 0 if the tables are right."""
    clock = SimulatedClock()
    async with (
        open_journal(settings, clock=clock) as journal,
        Database(settings) as database,
    ):
        await append_day(journal, clock, day)
        await project(journal, database)
        await show_positions(journal, database)
        await show_audit(database)
        verified = await verify_tables(journal, database)
    out.print(f"\nThe database stays at [bold]{path}[/]. Look around with")
    for command in (
        "ledger tail",
        "projections status",
        "python replay.py as-of --recorded 2026-03-02T12:00:00Z --table positions",
    ):
        out.print(f"  LEDGER_DATABASE_URL=sqlite:///{path} .venv/bin/{command}")
    return 0 if verified else 1


def go_on_serving(settings: Settings) -> int:
    """Seal the day, register who may look at it, and serve it until stopped; return exit code."""
    passwords = {role: secrets.token_urlsafe(9) for role in ROLES}
    console.run(prepare(settings, passwords))

    def tell(address: str) -> None:
        show_logins(address, passwords)

    log = logs.configure(sys.stderr)
    try:
        console.run(server.serve(settings, EVERYTHING, log=log, listening=tell))
    except (LedgerError, OSError) as error:
        out.print(f"cannot serve: {error}", style="red")
        return console.ENVIRONMENT
    return 0


async def prepare(settings: Settings, passwords: Mapping[str, str]) -> None:
    """Register a user for each role, and seal all that there is."""
    async with open_ledger(settings) as ledger:
        for role, password in passwords.items():
            await ledger.users.register(username=role, password=password, roles=[role])
        settings = await with_log_key(settings, ledger.journal)
        if settings.log_key_file is not None:
            key = read_key(settings.log_key_file)
            await Sealer(ledger.journal, key, settings.log_origin).catch_up()


def show_logins(address: str, passwords: Mapping[str, str]) -> None:
    """Say where to look, and who may."""
    out.print(f"\n[bold]6. Serve[/]: {address}/console, until Ctrl-C. Log in as")
    for role, password in passwords.items():
        out.print(f"   {role:9} {password}", markup=False)


async def append_day(journal: Journal, clock: SimulatedClock, day: TradingDay) -> None:
    """Append the day through the journal, the orders of one minute at the same time."""
    out.print("[bold]1. Append[/]: services store events; nothing is ever changed or removed.")
    began = perf_counter()
    with console.progress_bar("minutes") as progress:
        task = progress.add_task("trading", total=MINUTES)
        for steps in day.minutes():
            clock.now = steps[0].at
            await asyncio.gather(*(journal.append(new, *must) for _, new, must in steps))
            progress.update(task, completed=(clock.now - DAY) / MINUTE)
    size, seconds = await journal.size(), perf_counter() - began
    out.print(
        f"   journal [bold]{journal.name}[/] holds {size:,} events, offsets 0 to {size - 1:,} "
        f"without a gap\n   {size / seconds:,.0f} events/s, each commit on disk before its answer"
    )


async def project(journal: Journal, database: Database) -> None:
    """Fold the journal into the tables, as `projections run --once` does."""
    out.print("\n[bold]2. Project[/]: workers fold the events into tables.")
    began, folded = perf_counter(), 0
    for group in GROUPS.values():
        folded += await Projector(database, journal, group).catch_up()
    async with database.snapshot() as connection:
        counts = {
            each.name: await connection.scalar(sa.select(sa.func.count()).select_from(each.table))
            for group in GROUPS.values()
            for each in group.projections
        }
    out.print("   " + ", ".join(f"{count:,} {table}" for table, count in counts.items()))
    out.print(f"   {folded / (perf_counter() - began):,.0f} events/s")


async def show_positions(journal: Journal, database: Database) -> None:
    """Show one user's positions now, from the table, and at noon, from a replay."""
    user_id = await busiest_user(database)
    async with database.session() as session:
        chosen = sa.select(Position.__table__).where(Position.user_id == user_id)
        found = await session.execute(chosen.order_by(Position.opened_at))
    now = [dict(row) for row in found.mappings()]
    point = await journal.size_at(NOON)
    state = await fold_prefix(journal, TRADING, point.size)
    rows: Iterable[Any] = TRADING.finished(state, "positions")
    noon = [values_of(row) for row in rows if row.user_id == user_id]
    out.print(
        "\n[bold]3. Replay[/]: the same fold over fewer events is the past. "
        f"The positions of user {user_id}:"
    )
    show("now, from the live table", POSITION_COLUMNS, now)
    show(f"at noon, replayed to size {point.size:,}", POSITION_COLUMNS, noon)


async def busiest_user(database: Database) -> UUID | None:
    """Return the user with the most open positions."""
    query = (
        sa.select(Position.user_id)
        .where(Position.status == "open")
        .group_by(Position.user_id)
        .order_by(sa.func.count().desc(), Position.user_id)
        .limit(1)
    )
    async with database.session() as session:
        return (await session.execute(query)).scalar_one()


async def show_audit(database: Database) -> None:
    """Show the last audit entries."""
    log = SecurityAuditLog.__table__
    query = sa.select(log).order_by(log.c.changed_size.desc()).limit(6)
    async with database.session() as session:
        rows = [dict(row) for row in (await session.execute(query)).mappings()]
    out.print("\n[bold]4. Audit[/]: the security audit log is one more fold of the same events.")
    show("the last entries", AUDIT_COLUMNS, rows)


async def verify_tables(journal: Journal, database: Database) -> bool:
    """Compare every row and column with a fresh fold, as `replay.py verify` does."""
    out.print("\n[bold]5. Verify[/]: every row and column against a fresh fold of the journal.")
    began = perf_counter()
    result = await verify(database, journal, GROUPS.values())
    for difference in result.first:
        out.print(f"   {difference}", style="red")
    out.print(
        f"   {result.events:,} events, {result.rows:,} rows in {result.tables} tables, "
        f"{result.differences} differences, {perf_counter() - began:.1f} s"
    )
    if result.differences == 0:
        out.print("   [bold green]verified[/]")
    return result.differences == 0


def show(title: str, columns: tuple[str, ...], rows: Iterable[dict[Any, Any]]) -> None:
    """Print a few columns of some rows, amounts to four places."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(short(row[column]) for column in columns))
    out.print(table)


def short(value: Any) -> str:
    """Return a value as the demo shows it; the tables hold it exactly."""
    if isinstance(value, Decimal):
        return f"{value:,.4f}".rstrip("0").rstrip(".")
    return f"{value:%H:%M:%S}" if isinstance(value, datetime) else as_text(value)


if __name__ == "__main__":
    sys.exit(main())
