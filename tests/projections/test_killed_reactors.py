"""Two reactors that are killed again and again: no level is left out, none is fired twice."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from decimal import Decimal
from itertools import count
from random import Random
from uuid import UUID, uuid4

from ledger.domain.marks import PriceMarked
from ledger.domain.orders import Action, OrderFilled, OrderPlaced, position_tag
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
HEDGES = {token: an_id(token) for token in TOKENS[::2]}
"""Every other token is traded under an explicit id, which its later positions cannot have."""

NUMBERS = count()


def fill(token: str, action: Action, quantity: Decimal | str, order_id: UUID) -> NewEvent:
    """Return a fill of one token."""
    return NewEvent(
        OrderFilled(
            order_id=order_id,
            user_id=USER,
            position_id=HEDGES.get(token),
            fill_id=f"{token} {next(NUMBERS)}",
            token=token,
            action=action,
            price=VenueAmount("100"),
            quantity=VenueAmount(quantity),
        )
    )


async def open_positions(journal: Journal) -> dict[str, Position]:
    """Return the open positions by token."""
    state = await fold_prefix(journal, TRADING, await journal.size())
    return {str(row.token): row for row in state.rows(Position) if row.status == "open"}


async def open_protected(journal: Journal) -> dict[str, UUID]:
    """Open a position of each token with a stop loss; return their ids."""
    await journal.append([fill(token, Action.BUY, "1", uuid4()) for token in TOKENS])
    positions = await open_positions(journal)
    for token, row in positions.items():
        book = position_tag(USER, token, HEDGES.get(token))
        levels = ProtectionSet(position_id=row.position_id, stop_loss=Amount("90"), book=book)
        await journal.append(NewEvent(levels))
    return {token: row.position_id for token, row in positions.items()}


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
    """Open positions, cross their levels twice each, execute the closing orders; return the ids.

    Meanwhile some are sold in part; the venue fills what is left, in two parts.
    """
    crossed = list[UUID]()
    while not killed.is_set():
        ids = await open_protected(journal)
        crossed += ids.values()
        for token in random.sample(TOKENS * 2, 2 * len(TOKENS)):
            await mark(journal, token, random.choice(("80", "85", "90")))
            if random.random() < 0.1:
                await journal.append(fill(token, Action.SELL, "0.25", uuid4()))
        orders = await fired(journal, set(ids.values()))
        positions = await open_positions(journal)
        for order in orders * 2:
            part = positions[order.token].exact_size / 2
            await journal.append(fill(order.token, Action.SELL, part, order.order_id))
        assert await open_positions(journal) == {}
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
