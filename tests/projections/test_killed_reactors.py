"""Two reactors that are killed again and again: no level is left out, none is fired twice."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from itertools import count
from random import Random
from uuid import UUID

from ledger.domain.marks import PriceMarked
from ledger.domain.orders import Action, OrderFilled, OrderPlaced
from ledger.domain.positions import ProtectionSet
from ledger.domain.users import UserRegistered
from ledger.event import Amount, NewEvent, VenueAmount
from ledger.journal import Journal
from ledger.settings import Settings
from projections.database import Database
from projections.groups import GROUPS, TRADING
from projections.positions import Position
from projections.projector import Projector
from projections.replaying import fold_prefix
from projections.verification import verify
from tests.projections import reactors
from tests.projections.support import an_id

KILLS = int(os.environ.get("LEDGER_TEST_REACTOR_KILLS", "100"))
TOKENS = [f"T{number}" for number in range(8)]
USER = an_id("trader")


def fill(token: str, action: Action, price: str, number: int, order_id: UUID) -> NewEvent:
    """Return a fill of one token."""
    return NewEvent(
        OrderFilled(
            order_id=order_id,
            user_id=USER,
            fill_id=f"{token} {number}",
            token=token,
            action=action,
            price=VenueAmount(price),
            quantity=VenueAmount("1"),
        )
    )


async def open_protected(journal: Journal, token: str, numbers: Iterator[int]) -> UUID:
    """Open a position of one token with a stop loss; return its id."""
    number = next(numbers)
    opening = fill(token, Action.BUY, "100", number, an_id(f"{token} {number}"))
    size = (await journal.append(opening)).size
    state = await fold_prefix(journal, TRADING, size)
    row = state.rows(Position).find("book", f"book:{USER}:{token}")
    assert row is not None
    levels = ProtectionSet(
        position_id=row.position_id, stop_loss=Amount("90"), book=f"book:{USER}:{token}"
    )
    await journal.append(NewEvent(levels))
    return row.position_id


async def mark(journal: Journal, token: str, price: str) -> None:
    """Mark a token."""
    await journal.append(NewEvent(PriceMarked(token=token, price=VenueAmount(price))))


async def closing_orders(journal: Journal, size: int | None = None) -> list[OrderPlaced]:
    """Return all closing orders, up to a size."""
    events = [each.event async for each in journal.read(stop=size)]
    return [each for each in events if isinstance(each, OrderPlaced) and each.closes_position_id]


async def trade(
    journal: Journal, random: Random, killed: asyncio.Event, traded: asyncio.Event
) -> list[UUID]:
    """Open positions, cross their levels twice each, execute the closing orders; return the ids."""
    numbers, crossed = count(), list[UUID]()
    while not killed.is_set():
        ids = {token: await open_protected(journal, token, numbers) for token in TOKENS}
        crossed += ids.values()
        for token in random.sample(TOKENS * 2, 2 * len(TOKENS)):
            await mark(journal, token, random.choice(("80", "85", "90")))
        orders = await fired(journal, set(ids.values()))
        await journal.append(
            [
                fill(order.token, Action.SELL, "88", next(numbers), order.order_id)
                for order in orders
            ]
        )
        for token in TOKENS:
            await mark(journal, token, "100")
    traded.set()
    return crossed


async def fired(journal: Journal, position_ids: set[UUID]) -> list[OrderPlaced]:
    """Wait until each of the positions has a closing order; return the orders."""
    async with asyncio.timeout(60):
        while True:
            size = await journal.size()
            found = [
                order
                for order in await closing_orders(journal, size)
                if order.closes_position_id in position_ids
            ]
            if {order.closes_position_id for order in found} == position_ids:
                return found
            await journal.wait(size + 1)


async def kill_again_and_again(
    url: str, random: Random, killed: asyncio.Event, traded: asyncio.Event
) -> None:
    """Keep two reactors running, kill one of them again and again, then let them finish."""
    running = [reactors.start(url), reactors.start(url)]
    try:
        for _ in range(KILLS):
            await asyncio.sleep(random.uniform(0, 0.15))  # how long a reactor lives is chance
            victim = running.pop(random.randrange(2))
            victim.kill()
            await asyncio.to_thread(victim.join)
            running.append(reactors.start(url))
        killed.set()
        await traded.wait()
    finally:
        for process in running:
            process.kill()


async def test_each_crossed_level_has_one_closing_order(
    journal: Journal, database: Database, settings: Settings
) -> None:
    """All positions whose stop was crossed have exactly one closing order; the tables are right."""
    random = Random(1)
    await journal.append(NewEvent(UserRegistered(user_id=USER, username="trader")))
    killed, traded = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kill_again_and_again(settings.database_url, random, killed, traded))
        trading = tasks.create_task(trade(journal, random, killed, traded))
    crossed = trading.result()
    placed = Counter(order.closes_position_id for order in await closing_orders(journal))
    assert placed == Counter(crossed)
    for group in GROUPS.values():
        await Projector(database, journal, group).catch_up()
    assert (await verify(database, journal, GROUPS.values())).differences == 0
