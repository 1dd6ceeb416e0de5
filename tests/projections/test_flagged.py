"""Facts that did not fit are found by a query, and by a command."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from ledger.domain.orders import OrderCancelled, OrderFilled
from ledger.domain.users import UserRegistered
from ledger.event import NewEvent
from ledger.journal import Journal
from projections.database import Database
from projections.flagged import Flagged, flagged
from projections.groups import TRADING
from projections.projector import Projector
from tests.ledger.support import environment
from tests.projections.support import an_id, append
from tests.support import programs
from tests.support.orders import ORDER, USER, fill, placed

UNKNOWN = an_id("unknown")


async def prepare(journal: Journal, database: Database) -> None:
    """Project an overfilled order, a fine one and one that nobody placed."""
    fine = placed(order_id=an_id("fine"))
    stray = OrderCancelled(order_id=UNKNOWN)
    strange = msgspec.structs.replace(fill(1, token="ETH"), order_id=UNKNOWN, user_id=USER)
    registered = UserRegistered(user_id=USER, username="user")
    await append(journal, [registered, placed(), fine, fill(11), stray, strange])
    await Projector(database, journal, TRADING).catch_up()


async def test_flagged_orders_are_listed(journal: Journal, database: Database) -> None:
    """All that have a flag, the latest first, or those with one flag or one kind of flag."""
    await prepare(journal, database)
    async with database.snapshot() as connection:
        found = await flagged(connection, journal.journal_id)
        orders = [each for each in found if each.table == "orders"]
        assert [each.key for each in orders] == [UNKNOWN, ORDER]
        assert orders[1] == Flagged("orders", ORDER, "executed", {"overfill": 1}, 4)
        for flag, keys in (
            ("overfill", [ORDER]),
            ("unknown_order:OrderFilled", [UNKNOWN]),
            ("unknown_order:", [UNKNOWN]),
            ("unknown_order", []),
            ("over", []),
        ):
            named = await flagged(connection, journal.journal_id, flag)
            assert [each.key for each in named] == keys
        assert await flagged(connection, journal.journal_id + 1) == []


async def test_flagged_positions_are_listed(journal: Journal, database: Database) -> None:
    """A position of a user who is not registered is among them."""
    event = fill(1)
    await journal.append(NewEvent(event))
    await Projector(database, journal, TRADING).catch_up()
    async with database.snapshot() as connection:
        found = await flagged(connection, journal.journal_id, "unknown_user")
    assert [(each.table, each.status) for each in found] == [("positions", "open")]
    assert isinstance(event, OrderFilled)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_command_prints_them(journal: Journal, database: Database) -> None:
    """A line for each row, or JSON with the same."""
    await prepare(journal, database)
    url = database.settings.database_url
    lines = run(url, "--flag", "overfill").splitlines()
    assert lines == [f"orders {ORDER} executed: overfill 1"]
    rows = msgspec.json.decode(run(url, "--json"), type=list[Flagged])
    assert {each.key for each in rows} >= {ORDER, UNKNOWN}
    assert all(isinstance(each.key, UUID) for each in rows)


def run(url: str, *options: str) -> str:
    """Run the command to its end and return what it printed."""
    done = programs.run("projections", "flagged", *options, environment=environment(url))
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()
