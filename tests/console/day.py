"""A small trading day, sealed and projected, with people who look at it."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from examples import trading_day
from examples.trading_day import DAY, Step, TradingDay
from ledger.deciding import Origin
from ledger.domain.orders import Action, OrderType
from ledger.event import Metadata
from ledger.journal import Journal, open_journal
from ledger.proof.keys import write_key
from ledger.proof.notes import SigningKey
from ledger.proof.sealer import Sealer
from ledger.security.passwords import PasswordHasher, Passwords
from ledger.services import Ledger
from ledger.settings import Settings
from projections.database import Database
from projections.groups import GROUPS
from projections.projector import Projector

STEPS = 72
STEP = timedelta(days=1) / STEPS
SEED, USERS = 7, 40
PASSWORD = "correct horse battery staple"
KEY = SigningKey("ledger/main", bytes(range(32)))
PEOPLE = ("auditor", "operator", "trader")
NOON = "2026-03-02T12:00:00Z"
NOON_STEP = STEPS // 2

TRADES = {8: "2", 20: "1.5", 60: "-0.5"}
"""What Ada buys and sells of BTC, by step; before noon she also sets her levels."""

ADA = Origin(
    metadata=Metadata(actor="user:ada", request_id="req-ada-1", ip_address="198.51.100.23")
)


class Day(msgspec.Struct, frozen=True):
    """What tests know of the day: where it is, its sizes, and Ada's position."""

    settings: Settings
    size: int
    noon_size: int
    position_id: str
    user_id: str


class Clock:
    """The journal's clock during the day."""

    def __init__(self) -> None:
        self.now = DAY

    def __call__(self) -> datetime:
        """Return the simulated time."""
        return self.now


def settings_of(folder: Path) -> Settings:
    """Return settings for a migrated database in a folder, with the log's key beside it."""
    key = folder / "log-key"
    write_key(key, KEY)
    return Settings(database_url=f"sqlite:///{folder / 'ledger.db'}", log_key_file=key)


async def make(settings: Settings) -> Day:
    """Append the day, register the people, seal, and project."""
    clock = Clock()
    passwords = Passwords(PasswordHasher(memory_kib=8, iterations=1))
    async with open_journal(settings, clock=clock) as journal, Database(settings) as database:
        ledger = Ledger(journal, settings, passwords=passwords)
        for name in PEOPLE:
            await ledger.users.register(username=name, password=PASSWORD, roles=[name])
        ada = (await ledger.users.register(username="ada", origin=ADA)).user_id
        position_id = await _live(ledger, clock, ada)
        await ledger.close()
        await Sealer(journal, KEY).catch_up()
        for group in GROUPS.values():
            await Projector(database, journal, group).catch_up()
        noon = await journal.size_at(datetime.fromisoformat(NOON))
        size = await journal.size()
        return Day(settings, size, noon.size, str(position_id), str(ada))


async def _live(ledger: Ledger, clock: Clock, ada: UUID) -> UUID:
    """Append a day of few, long minutes; return Ada's position."""
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setattr(trading_day, "USERS", USERS)
        minutes = islice(TradingDay(SEED).minutes(), STEPS)
        for number, steps in enumerate(minutes):
            clock.now = DAY + STEP * number
            await _append(ledger.journal, steps, clock.now)
            if number in TRADES:
                await _trade(ledger, ada, number)
    protected = await ledger.positions.protect(
        user_id=ada, token="BTC", stop_loss="61500", take_profit="67500", origin=ADA
    )
    return protected.position_id


async def _append(journal: Journal, steps: list[Step], now: datetime) -> None:
    new = [msgspec.structs.replace(step.event, occurred_at=now) for step in steps]
    works = zip(new, steps, strict=True)
    await asyncio.gather(*(journal.append(each, *step.conditions) for each, step in works))


async def _trade(ledger: Ledger, ada: UUID, step: int) -> None:
    """Let Ada place an order that is filled at once."""
    quantity = Decimal(TRADES[step])
    placed = await ledger.orders.place(
        user_id=ada,
        token="BTC",
        action=Action.BUY if quantity > 0 else Action.SELL,
        order_type=OrderType.MARKET,
        quantity=abs(quantity),
        origin=ADA,
    )
    await ledger.orders.fill(
        order_id=placed.order_id,
        fill_id=f"ada-{step}",
        quantity=abs(quantity),
        price=64_250 + 10 * step,
        fee="12.5",
        origin=ADA,
    )
    if step == min(TRADES):
        await ledger.positions.protect(
            user_id=ada, token="BTC", stop_loss="60000", take_profit="68000", origin=ADA
        )
