"""One row from its own streams is the row of the fold of all events, at every size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.domain.api_keys import ApiKeyIssued, ApiKeyUsed
from ledger.domain.marks import PriceMarked
from ledger.domain.orders import Action, OrderFilled, OrderPlaced, OrderType, position_tag
from ledger.domain.users import LoginFailed, LoginReason, PasswordChanged, UserRegistered
from ledger.event import Amount, Metadata, NewEvent, RecordedEvent, VenueAmount
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections.database import Database
from projections.groups import GROUPS, TABLES, TRADING
from projections.history import copied, history_of
from projections.keyed import NotFromStreams, fold_events, gather, key_of, row_of
from projections.model import values_of
from projections.points import InvalidRequest
from projections.positions import Position
from projections.projection import State
from projections.projector import Projector
from projections.replaying import Refold
from tests.projections.poison import at, poisoned
from tests.projections.random_events import random_events
from tests.projections.support import an_id, append

FROM_STREAMS = ("users", "api_keys", "orders", "positions", "marks", "book_balances")

States = dict[Any, list[tuple[int, dict[str, Any]]]]
"""By key each state that a row went through, with the offset of the event that led to it."""


async def all_states(journal: Journal, table: str, size: int) -> States:
    """Return the states of all rows of a table, from the fold of all events."""
    states: States = {}

    def look(state: State, recorded: RecordedEvent) -> None:
        rows = state.tables[table]
        for key in rows.changed:
            values = copied(values_of(row_of(state, table, key)))
            states.setdefault(key, []).append((recorded.offset, values))
        rows.changed.clear()

    await Refold(journal, TABLES[table].only([table]), watch=look).advance(size)
    return states


async def own_row(journal: Journal, database: Database, table: str, key: Any, size: int) -> Any:
    """Return the columns of a row from its own streams, None where there is none."""
    events = await gather(journal, database, table, key, size)
    row = row_of(fold_events(TABLES[table].only([table]), journal, events), table, key)
    return None if row is None else values_of(row)


async def assert_same(journal: Journal, database: Database, size: int, random: Random) -> None:
    """Hold that each row has the same states from its own streams, and is right at any size."""
    for table in FROM_STREAMS:
        for key, expected in (await all_states(journal, table, size)).items():
            found = await history_of(journal, database, table, key, size)
            assert found.note is None
            assert [(each.offset, each.columns) for each in found.changes] == expected
            for end in random.sample(range(size + 1), 3):
                before = [values for offset, values in expected if offset < end]
                row = await own_row(journal, database, table, key, end)
                assert row == (before[-1] if before else None), (table, key, end)


@asynccontextmanager
async def new_journal(url: str) -> AsyncIterator[tuple[Journal, Database]]:
    """Open a journal of its own in a database."""
    config, name = Settings(database_url=url), f"j{uuid4().hex}"
    async with open_journal(config) as first:
        await first.store.create_journal(name)
    async with open_journal(config, name) as journal, Database(config) as database:
        yield journal, database


async def project(journal: Journal, database: Database) -> None:
    """Bring the live tables up to date."""
    for group in GROUPS.values():
        await Projector(database, journal, group).catch_up()


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32), st.integers(20, 150), st.sampled_from((0.03, 0.2)))
def test_each_row_is_that_of_the_full_fold(
    sqlite_url: str, seed: int, count: int, odd_chance: float
) -> None:
    """Of random histories, every key, every state, and as of several sizes."""

    async def work() -> None:
        async with new_journal(sqlite_url) as (journal, database):
            await append(journal, random_events(Random(seed), count, odd_chance))
            await project(journal, database)
            await assert_same(journal, database, count, Random(seed))

    asyncio.run(work())


async def test_both_databases_find_the_same_rows(journal: Journal, database: Database) -> None:
    """A longer history, in which positions are armed, closed by orders and armed again."""
    await append(journal, random_events(Random(3), 300))
    await project(journal, database)
    closing = [
        row
        for _, states in (await all_states(journal, "positions", 300)).items()
        for _, row in states
        if row["closing_order_id"] is not None
    ]
    assert closing
    await assert_same(journal, database, 300, Random(3))


def placed(number: int, **fields: Any) -> OrderPlaced:
    """Return an order of user 0."""
    return OrderPlaced(
        order_id=an_id(f"order {number}"),
        user_id=an_id("user 0"),
        token="SOL",
        action=Action.BUY,
        order_type=OrderType.MARKET,
        quantity=Amount("10"),
        **fields,
    )


def filled(number: int, user: str = "user 0", **fields: Any) -> OrderFilled:
    """Return a fill."""
    return OrderFilled(
        order_id=an_id(f"order {number}"),
        user_id=an_id(user),
        fill_id=f"{number}",
        token="SOL",
        action=Action.BUY,
        price=VenueAmount("2"),
        quantity=VenueAmount("10"),
        **fields,
    )


async def test_a_row_needs_few_events(journal: Journal, database: Database) -> None:
    """What belongs to others is not read, nor what happened to its user but the registration."""
    user_id = an_id("user 0")
    others = [filled(number, f"user {number}") for number in range(1, 50)]
    changes = [PasswordChanged(user_id=user_id, password_hash="x") for _ in range(50)]
    register = UserRegistered(user_id=user_id, username="u", password_hash="x")
    await append(journal, [register, *changes, *others, placed(0), *others, filled(0), *others])
    size = await journal.size()
    events = await gather(journal, database, "orders", an_id("order 0"), size)
    names = [type(each.event).__name__ for each in events]
    assert names == ["UserRegistered", "OrderPlaced", "OrderFilled"]


async def test_refused_logins_of_a_user_are_found(journal: Journal, database: Database) -> None:
    """They lie in a stream of their own, beside the user's."""
    user_id = an_id("user 0")
    register = UserRegistered(user_id=user_id, username="u", password_hash="x")
    refused = LoginFailed(user_id=user_id, username="u", reason=LoginReason.LOCKED)
    wrong = LoginFailed(user_id=user_id, username="u", reason=LoginReason.WRONG_PASSWORD)
    await append(journal, [register, refused, wrong, refused])
    states = (await all_states(journal, "users", 4))[user_id]
    assert [offset for offset, _ in states] == [0, 1, 2, 3]
    assert await own_row(journal, database, "users", user_id, 4) == states[-1][1]


async def test_a_user_who_is_registered_late_is_found(journal: Journal, database: Database) -> None:
    """The registration need not be the first event of the stream, nor lie below the size."""
    user_id = an_id("user 0")
    early = PasswordChanged(user_id=user_id, password_hash="x")
    register = UserRegistered(user_id=user_id, username="u", password_hash="x")
    await append(journal, [early, placed(0), register, placed(1)])
    for size in range(5):
        for number in (0, 1):
            key = an_id(f"order {number}")
            states = (await all_states(journal, "orders", size)).get(key)
            row = await own_row(journal, database, "orders", key, size)
            assert row == (states[-1][1] if states else None)


async def test_a_position_that_no_live_table_knows(journal: Journal, database: Database) -> None:
    """Its book cannot be guessed from a derived id: it is answered by a fold of all events."""
    await append(journal, [placed(0), filled(0)])
    [key] = await all_states(journal, "positions", 2)
    with pytest.raises(NotFromStreams, match="live table does not tell the book"):
        await gather(journal, database, "positions", key, 2)
    found = await history_of(journal, database, "positions", key, 2)
    assert found.note is not None
    assert found.note.startswith("answered by a fold of all events, since the live table")
    assert [each.offset for each in found.changes] == [1]


async def test_a_live_table_that_lies_is_not_believed(journal: Journal, database: Database) -> None:
    """A book that somebody put into the live table is only taken if it opens the position."""
    await append(journal, [placed(0), filled(0)])
    await project(journal, database)
    [key] = await all_states(journal, "positions", 2)
    assert await own_row(journal, database, "positions", key, 2) is not None
    wrong = position_tag(an_id("user 1"), "SOL", None)
    async with database.transaction() as connection:
        await connection.execute(sa.update(Position).values(book=wrong))
    with pytest.raises(NotFromStreams):
        await gather(journal, database, "positions", key, 2)


@pytest.mark.parametrize("table", ["postings", "security_audit_logs"])
async def test_keys_that_lead_nowhere(journal: Journal, database: Database, table: str) -> None:
    """Tables whose keys name no stream are folded, and their one state is found."""
    register = UserRegistered(user_id=an_id("user 0"), username="u", password_hash="x")
    await append(journal, [register, filled(0)])
    for key, states in (await all_states(journal, table, 2)).items():
        found = await history_of(journal, database, table, key, 2)
        assert found.note is not None
        assert [(each.offset, each.columns) for each in found.changes] == states


async def test_poison_is_left_to_the_full_fold(
    journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What raises, or is parked, is answered by the fold of all events: it knows whom it parks."""
    await append(journal, [placed(0), filled(0), placed(1)])
    trading = poisoned(TRADING, at(("orders", 1)))
    monkeypatch.setitem(TABLES, "orders", trading)
    with pytest.raises(NotFromStreams, match="offset 1 cannot be folded"):
        await own_row(journal, database, "orders", an_id("order 0"), 3)
    found = await history_of(journal, database, "orders", an_id("order 0"), 3)
    assert found.note is not None
    assert [each.offset for each in found.changes] == [0]
    await Projector(database, journal, trading).catch_up()
    with pytest.raises(NotFromStreams, match="skipped or parked"):
        await gather(journal, database, "orders", an_id("order 1"), 3)


def test_keys_are_checked() -> None:
    """Text that is no UUID is refused where keys are; others are taken as they are."""
    assert key_of("marks", "SOL") == "SOL"
    assert key_of("users", str(an_id("user 0"))) == an_id("user 0")
    with pytest.raises(InvalidRequest, match="not a user_id"):
        key_of("users", "u")


@pytest.mark.parametrize("chunk_size", [1, 3, 10])
async def test_a_key_with_uses_for_many_chunks(
    journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch, chunk_size: int
) -> None:
    """All of them count, at every size, wherever chunks end."""
    monkeypatch.setattr("ledger.journal.PACKED_CHUNK_SIZE", chunk_size)
    key_id, user_id = an_id("key"), an_id("user 0")
    register = UserRegistered(user_id=user_id, username="u", password_hash="x")
    issue = ApiKeyIssued(key_id=key_id, user_id=user_id, name="laptop")
    uses = [ApiKeyUsed(key_id=key_id, action="read", source="desk-7") for _ in range(20)]
    await append(journal, [register, issue, *uses])
    for size in range(2, 23):
        row = await own_row(journal, database, "api_keys", key_id, size)
        assert (row["key_id"], row["user_id"]) == (key_id, user_id)
        assert (row["requests_count"], row["changed_size"]) == (size - 2, size)


@pytest.mark.parametrize("table", ["users", "api_keys"])
async def test_an_erased_user_is_so_in_each_row(
    journal: Journal, database: Database, table: str
) -> None:
    """Whatever the size: what was encrypted for them is None, as in the fold of all events."""
    key_id, user_id = an_id("key"), an_id("user 0")
    register = UserRegistered(user_id=user_id, username="u", password_hash="x")
    issue = ApiKeyIssued(key_id=key_id, user_id=user_id, name="laptop", key_hash="0f")
    await append(journal, [register, issue])
    key = {"users": user_id, "api_keys": key_id}[table]
    before = await own_row(journal, database, table, key, 2)
    await journal.privacy.destroy(f"user-{user_id}")
    after = await own_row(journal, database, table, key, 2)
    assert (await all_states(journal, table, 2))[key][-1][1] == after
    gone = {name for name in before if before[name] != after[name]}
    expected = {
        "users": {"username", "password_hash", "is_erased"},
        "api_keys": {"name", "key_hash"},
    }
    assert gone == expected[table]


async def test_a_history_names_who_did_it(journal: Journal, database: Database) -> None:
    """Its events come with stream, ids and actor, which the fold itself does not look at."""
    user_id, request = an_id("user 0"), an_id("request")
    metadata = Metadata(
        actor="ann", request_id="r1", correlation_id=request, ip_address="192.0.2.1"
    )
    event = UserRegistered(user_id=user_id, username="u", password_hash="x")
    await journal.append(NewEvent(event, event_id=an_id("event"), metadata=metadata))
    found = await history_of(journal, database, "users", user_id, 1)
    assert found.note is None
    [change] = found.changes
    assert (change.event_id, change.stream) == (str(an_id("event")), f"user-{user_id}")
    assert (change.actor, change.request_id, change.correlation_id) == ("ann", "r1", str(request))
    assert change.columns["user_id"] == user_id


async def test_the_uses_of_a_key_are_its_own(journal: Journal, database: Database) -> None:
    """They lie in another stream than the key's life."""
    events = random_events(Random(5), 200)
    keys: list[UUID] = [each.key_id for each in events if isinstance(each, ApiKeyUsed)]
    await append(journal, events)
    states = await all_states(journal, "api_keys", 200)
    used = [key for key in keys if key in states]
    assert used
    for key in used:
        row = await own_row(journal, database, "api_keys", key, 200)
        assert row["requests_count"] == states[key][-1][1]["requests_count"]


async def test_streams_that_are_too_long_are_not_gathered(
    journal: Journal, database: Database
) -> None:
    """With a limit on what is held in memory, longer streams are left to a fold of all events."""
    marks = [PriceMarked(token=each, price=VenueAmount(1)) for each in ("BTC", "ETH", "BTC")]
    size = await append(journal, marks)
    assert len(await gather(journal, database, "marks", "BTC", size, most=2)) == 2
    with pytest.raises(NotFromStreams, match="more than 1 events"):
        await gather(journal, database, "marks", "BTC", size, most=1)
