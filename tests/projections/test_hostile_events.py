"""Events that are valid, and made to do harm: the projector goes on, and live tables stay right."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest

from ledger.domain.api_keys import ApiKeyIssued
from ledger.domain.orders import Action, OrderFilled, position_tag
from ledger.domain.users import AccountLocked, EmailChanged, UserRegistered
from ledger.errors import InvalidEvent
from ledger.event import Event, Metadata, NewEvent, VenueAmount
from ledger.journal import Journal
from ledger.ndjson import parse_line
from projections.database import Database
from projections.groups import GROUPS, TRADING
from projections.positions import Position
from projections.projector import Projector
from projections.verification import verify
from tests.projections.support import (
    JOURNAL,
    JOURNAL_ID,
    START,
    an_id,
    append,
    live_tables,
    record,
)

pytestmark = pytest.mark.parametrize("batch_size", [1, 1000])

USER, OTHER = an_id("user a"), an_id("user b")
ENDS = [datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)]
LATE = datetime(9999, 12, 30, tzinfo=UTC)


async def project(journal: Journal, database: Database, batch_size: int) -> None:
    """Bring the tables of all groups up to date; every event must have been folded."""
    size = await journal.size()
    for group in GROUPS.values():
        projector = Projector(database, journal, group, batch_size=batch_size)
        await projector.catch_up()
        assert await projector.checkpoint() == size


async def assert_verified(journal: Journal, database: Database) -> None:
    """Hold that the tables are what a fresh fold gives, with all events in it."""
    result = await verify(database, journal, GROUPS.values())
    assert result.first == []
    assert (result.differences, result.events) == (0, await journal.size())


async def test_an_email_moves_to_another_user_in_one_batch(
    journal: Journal, database: Database, batch_size: int
) -> None:
    """An address that one user gives up and another takes stops no projector, in any order."""
    await append(journal, [UserRegistered(user_id=USER, username="a", email="x@host")])
    await project(journal, database, batch_size)
    await append(
        journal,
        [UserRegistered(user_id=OTHER, username="b", email="z@host")],
    )
    # Each is an append of its own: B may take the address only once A has given it up.
    await append(journal, [EmailChanged(user_id=USER, email="y@host", previous_email="x@host")])
    await append(journal, [EmailChanged(user_id=OTHER, email="x@host", previous_email="z@host")])
    await project(journal, database, batch_size)
    users = (await live_tables(database, TRADING))["users"]
    assert {key: row["email"] for key, row in users.items()} == {USER: "y@host", OTHER: "x@host"}
    await assert_verified(journal, database)


async def test_two_users_swap_their_emails(
    journal: Journal, database: Database, batch_size: int
) -> None:
    """Addresses that change hands both ways leave each user with the other's."""
    await append(
        journal,
        [
            UserRegistered(user_id=USER, username="a", email="x@host"),
            UserRegistered(user_id=OTHER, username="b", email="z@host"),
        ],
    )
    await project(journal, database, batch_size)
    for event in (
        EmailChanged(user_id=USER, email=None, previous_email="x@host"),
        EmailChanged(user_id=OTHER, email="x@host", previous_email="z@host"),
        EmailChanged(user_id=USER, email="z@host"),
    ):
        await append(journal, [event])
    await project(journal, database, batch_size)
    users = (await live_tables(database, TRADING))["users"]
    assert {key: row["email"] for key, row in users.items()} == {USER: "z@host", OTHER: "x@host"}
    await assert_verified(journal, database)


def fill(name: str, action: Action, quantity: str, position_id: UUID | None = None) -> NewEvent:
    """Return a fill whose event id, from which a cycle's id is derived, follows from its name."""
    event = OrderFilled(
        order_id=an_id("order"),
        user_id=USER,
        fill_id=name,
        token="SOL",
        action=action,
        price=VenueAmount(10),
        quantity=VenueAmount(quantity),
        position_id=position_id,
    )
    return NewEvent(event, event_id=an_id(name))


def derived_id(new: NewEvent) -> UUID:
    """Return the id of the cycle that this fill opens in a journal of the default name."""
    state = TRADING.state(JOURNAL_ID, JOURNAL)
    [recorded] = record([new.event])
    TRADING.fold(state, [msgspec.structs.replace(recorded, event_id=new.event_id)])
    [row] = state.rows(Position)
    return row.position_id


async def test_nobody_takes_the_id_that_a_cycle_will_get(
    journal: Journal, database: Database, batch_size: int
) -> None:
    """An explicit position id of the derived kind is a book's name, never a row's id."""
    opening = fill("opening", Action.BUY, "2")
    taken = derived_id(opening)
    assert taken.version == 8
    await append(journal, [UserRegistered(user_id=USER, username="a")])
    for new in (
        fill("thief", Action.BUY, "7", taken),
        opening,
        fill("more", Action.BUY, "3"),
        fill("thief again", Action.SELL, "1", taken),
        fill("flip", Action.SELL, "9"),
    ):
        await journal.append(new)
        if batch_size == 1:
            await project(journal, database, batch_size)
    await project(journal, database, batch_size)
    rows = (await live_tables(database, TRADING))["positions"]
    netting, explicit = (position_tag(USER, "SOL", key) for key in (None, taken))
    assert (rows[taken]["book"], rows[taken]["status"]) == (netting, "closed")
    assert {(row["book"], row["status"], int(row["exact_size"])) for row in rows.values()} == {
        (netting, "closed", 0),
        (netting, "open", -4),
        (explicit, "open", 6),
    }
    assert {key.version for key in rows} == {8}
    await assert_verified(journal, database)


async def test_other_explicit_ids_are_kept(
    journal: Journal, database: Database, batch_size: int
) -> None:
    """An explicit id of any other kind is the id of its first cycle; later ones are derived."""
    explicit = an_id("position")
    for name, action in (("1", Action.BUY), ("2", Action.SELL), ("3", Action.BUY)):
        await journal.append(fill(name, action, "1", explicit))
    await project(journal, database, batch_size)
    rows = (await live_tables(database, TRADING))["positions"]
    assert rows[explicit]["status"] == "closed"
    assert sorted(key.version or 0 for key in rows) == [5, 8]
    await assert_verified(journal, database)


def issued(moment: datetime) -> Event:
    """Return a key that ends at this time."""
    return ApiKeyIssued(key_id=an_id("key"), user_id=USER, name="key", expires_at=moment)


def locked(moment: datetime) -> Event:
    """Return a lock that ends at this time."""
    return AccountLocked(user_id=USER, locked_until=moment)


@pytest.mark.parametrize("make", [issued, locked])
@pytest.mark.parametrize("moment", ENDS, ids=["max", "min"])
async def test_the_ends_of_the_calendar_are_refused(
    journal: Journal, database: Database, batch_size: int, make: object, moment: datetime
) -> None:
    """A time that another zone could not show never gets into the journal."""
    assert callable(make)
    with pytest.raises((ValueError, InvalidEvent)):
        await append(journal, [make(moment)])
    assert await journal.size() == 0
    await append(journal, [UserRegistered(user_id=USER, username="a")])
    await project(journal, database, batch_size)
    await assert_verified(journal, database)


@pytest.mark.parametrize("moment", ENDS, ids=["max", "min"])
def test_the_ends_of_the_calendar_are_refused_in_lines(batch_size: int, moment: datetime) -> None:
    """A line with such a time is bad input like any other."""
    line = {
        "stream": f"user-{USER}",
        "type": "AccountLocked",
        "data": {"user_id": str(USER), "locked_until": moment.isoformat()},
        "event_id": str(an_id("event")),
    }
    with pytest.raises(InvalidEvent):
        parse_line(json.dumps(line).encode(), batch_size, source=None)


async def test_a_late_time_is_fine(journal: Journal, database: Database, batch_size: int) -> None:
    """The last day but one can be stored, projected, read and verified."""
    await append(
        journal,
        [UserRegistered(user_id=USER, username="a"), issued(LATE), locked(LATE)],
    )
    await project(journal, database, batch_size)
    tables = await live_tables(database, TRADING)
    assert tables["api_keys"][an_id("key")]["expires_at"] == LATE
    assert tables["users"][USER]["locked_until"] == LATE
    await assert_verified(journal, database)


@pytest.mark.parametrize("address", ["fe80::1%eth0", "fe80::1%1", "::1%a b"])
async def test_addresses_with_a_scope_are_refused(
    journal: Journal, database: Database, batch_size: int, address: str
) -> None:
    """A scope id, which PostgreSQL's inet cannot hold, is named; the address without it is fine."""
    event = UserRegistered(user_id=USER, username="a")
    with pytest.raises(InvalidEvent) as caught:
        await journal.append(NewEvent(event, metadata=Metadata(ip_address=address)))
    assert caught.value.field == "metadata.ip_address"
    assert await journal.size() == 0
    plain = Metadata(ip_address=address.partition("%")[0])
    await journal.append(NewEvent(event, occurred_at=START, metadata=plain))
    await project(journal, database, batch_size)
    await assert_verified(journal, database)
