"""Poisoned events in the live tables: what is parked, retried, skipped, and what is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from random import Random
from threading import Thread
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from ledger.domain.api_keys import ApiKeyIssued
from ledger.domain.orders import Action, OrderCancelled, OrderFilled, OrderPlaced, OrderType
from ledger.domain.users import EmailChanged, UserRegistered
from ledger.errors import StoreUnavailable
from ledger.event import Amount, Event, NewEvent, RecordedEvent
from ledger.journal import Journal, open_journal
from projections import parking, retrying, tables
from projections.bookkeeping import parked_keys
from projections.database import Database
from projections.fold import Group
from projections.groups import POSTINGS, TRADING
from projections.lanes import Lane, Parked
from projections.parking import ParkedKey, RowParked
from projections.projection import Handler, State
from projections.projector import Projector, wait_visible
from projections.replaying import fold_prefix
from projections.retrying import FoldDiffers, NotParked, StillRefused, retry, skip
from projections.users import User
from projections.verification import verify
from tests.projections import poison
from tests.projections.random_events import random_events
from tests.projections.support import (
    START,
    an_id,
    append,
    assert_live_is_replay,
    live_tables,
    tables_as_of,
)
from tests.projections.test_guarding import closed_by_order, fill

ONE, OTHER = an_id("user 0"), an_id("user 1")


def registered(user: int, **fields: Any) -> UserRegistered:
    """Make the registration of a user."""
    name = f"user {user}"
    return UserRegistered(user_id=an_id(name), username=name, password_hash="x", **fields)


def changed(user: int, email: str) -> EmailChanged:
    """Make a change of a user's address."""
    return EmailChanged(user_id=an_id(f"user {user}"), email=email, previous_email="a@host")


def history() -> list[Event]:
    """Two users; the change of an address at offset 2 is going to be poisoned."""
    return [
        registered(0, email="a@host"),
        registered(1, email="y@host"),
        changed(0, "b@host"),
        changed(1, "z@host"),
        changed(0, "c@host"),
    ]


POISONED = poison.poisoned(TRADING, poison.at(("users", 2)))


async def parked(database: Database, journal: Journal, group: Group = TRADING) -> list[ParkedKey]:
    """Return what is parked of a group."""
    async with database.snapshot() as connection:
        return await parking.parked(connection, journal.journal_id, group)


async def lanes(database: Database, journal: Journal, group: Group) -> dict[Lane, Parked]:
    """Return the same by lane."""
    return {each.lane: each.as_parked for each in await parked(database, journal, group)}


async def emails(database: Database) -> dict[Any, Any]:
    """Return the live addresses by user."""
    async with database.session() as session:
        rows = await session.execute(sa.select(User.user_id, User.email))
        return {row.user_id: row.email for row in rows}


async def project(
    database: Database, journal: Journal, group: Group = POISONED, batch_size: int = 1000
) -> None:
    """Bring the tables of a group up to date."""
    await Projector(database, journal, group, batch_size=batch_size).catch_up()


async def test_other_keys_and_tables_go_on(journal: Journal, database: Database) -> None:
    """The poisoned user stays as they were, the other and the checkpoint go on."""
    size = await append(journal, history())
    await project(database, journal)
    assert await emails(database) == {ONE: "a@host", OTHER: "z@host"}
    assert await Projector(database, journal, TRADING).checkpoint() == size
    key = next(each for each in await parked(database, journal) if each.table == "users")
    assert (key.column, key.value, key.offset, key.waiting) == ("user_id", str(ONE), 2, 2)
    assert (key.event_type, key.error) == ("EmailChanged", "Spoilt: users at 2")


@pytest.mark.parametrize("seed", range(3))
async def test_live_tables_are_the_guarded_fold_after_each_batch(
    seed: int, journal: Journal, database: Database
) -> None:
    """Rows and parked lanes are those of a fold in memory; a retry after the mend frees all."""
    random = Random(seed)
    size = await append(journal, random_events(random, 150))
    for whole in (TRADING, POSTINGS):
        group = poison.poisoned(whole, poison.at(*poison.some(whole, seed, size, 3)))
        for stop in sorted({*random.sample(range(1, size), 4), size}):
            batch_size = random.choice((1, 7, 40, 1000))
            await Projector(database, journal, group, batch_size=batch_size).catch_up(stop)
            state = await fold_prefix(journal, group, stop)
            assert await live_tables(database, group) == poison.rows_by_key(group, state)
            assert await lanes(database, journal, group) == state.parking.lanes
        held = len(await parked(database, journal, whole))
        done = await retry(database, journal, whole)
        assert (done.freed, done.parked) == (held, [])
        await assert_live_is_replay(journal, database, whole)
    assert (await verify(database, journal, [TRADING, POSTINGS])).is_verified


@pytest.mark.parametrize("seed", range(2))
async def test_a_retry_of_one_key_leaves_the_others_parked(
    seed: int, journal: Journal, database: Database
) -> None:
    """What waited for it alone is freed: the tables are the fold in which the others raise."""
    size = await append(journal, random_events(Random(seed), 150))
    places = poison.some(TRADING, seed, size, 5)
    await project(database, journal, poison.poisoned(TRADING, poison.at(*places)), 50)
    while chosen := [each for each in await parked(database, journal) if each.error is not None]:
        await retry(database, journal, TRADING, (chosen[0].table, chosen[0].value))
        tried = (chosen[0].table, chosen[0].offset)
        others = [place for each in chosen if (place := (each.table, each.offset)) != tried]
        left = poison.poisoned(TRADING, poison.at(*others))
        state = await fold_prefix(journal, left, size)
        assert await live_tables(database, TRADING) == poison.rows_by_key(left, state)
        assert await lanes(database, journal, TRADING) == state.parking.lanes
    await assert_live_is_replay(journal, database, TRADING)


async def test_what_is_still_poisoned_stays_parked(journal: Journal, database: Database) -> None:
    """A retry without a mend changes nothing, not even since when the keys are parked."""
    await append(journal, history())
    await project(database, journal)
    before, tables = await parked(database, journal), await live_tables(database, TRADING)
    done = await retry(database, journal, POISONED)
    assert (done.freed, done.parked) == (0, before)
    assert await live_tables(database, TRADING) == tables


async def test_a_key_that_only_waits_is_not_retried(journal: Journal, database: Database) -> None:
    """The error names what it waits for; so it does for a key that is not parked at all."""
    await append(journal, history())
    await project(database, journal)
    waiting = next(each for each in await parked(database, journal) if each.waits_for)
    with pytest.raises(NotParked, match=f"waits for users user_id={ONE}"):
        await retry(database, journal, TRADING, (waiting.table, waiting.value))
    with pytest.raises(NotParked, match="is not parked"):
        await retry(database, journal, TRADING, ("users", str(OTHER)))
    assert (await retry(database, journal, POSTINGS)).freed == 0


async def test_a_skip_is_recorded_and_every_fold_leaves_the_event_out(
    journal: Journal, database: Database
) -> None:
    """Later events of the key fold on; live, as of any size and verify agree about it."""
    size = await append(journal, history())
    await project(database, journal)
    skipped, done = await skip(database, journal, POISONED, ("users", 2), "broken", "ops")
    assert (skipped.event_type, skipped.error) == ("EmailChanged", "Spoilt: users at 2")
    assert done.parked == []
    assert await emails(database) == {ONE: "c@host", OTHER: "z@host"}
    await append(journal, [changed(0, "d@host")])
    await project(database, journal)
    async with database.snapshot() as connection:
        rulings = await parking.rulings(connection, journal.journal_id, TRADING)
    for stop, email in ((3, "a@host"), (size, "c@host"), (size + 1, "d@host")):
        state = await fold_prefix(journal, POISONED, stop, rulings=rulings)
        row = state.rows(User).get(ONE)
        assert row is not None
        assert row.email == email
    result = await verify(database, journal, [POISONED])
    assert (result.is_verified, result.skipped) == (True, [skipped])


async def test_a_projector_leaves_a_skipped_event_out(journal: Journal, database: Database) -> None:
    """Also one that folds the event for the first time, as after a restored backup."""
    await append(journal, history())
    await project(database, journal)
    await skip(database, journal, POISONED, ("users", 2), "broken")
    async with database.transaction() as connection:
        for each in reversed(TRADING.projections):
            await connection.execute(each.table.delete())
        await connection.execute(sa.text("UPDATE checkpoints SET size = 0"))
    await project(database, journal)
    assert await emails(database) == {ONE: "c@host", OTHER: "z@host"}


async def test_only_a_poisoned_event_can_be_skipped(journal: Journal, database: Database) -> None:
    """Neither one that folds nor one that only waits, nor the same in another table."""
    await append(journal, history())
    await project(database, journal)
    for place in (("users", 1), ("users", 4), ("security_audit_logs", 2)):
        with pytest.raises(NotParked, match="no event at offset"):
            await skip(database, journal, TRADING, place, "why not")


async def test_an_event_is_skipped_by_one_alone(journal: Journal, database: Database) -> None:
    """Of two skips at once the second finds nothing to skip, and records nothing."""
    await append(journal, history())
    await project(database, journal)
    both = (skip(database, journal, POISONED, ("users", 2), reason) for reason in ("one", "two"))
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(isinstance(each, NotParked) for each in outcomes) == [False, True]
    async with database.snapshot() as connection:
        assert len(await parking.skipped(connection, journal.journal_id, TRADING)) == 1


async def test_what_was_freed_meanwhile_is_not_skipped(
    journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A skip that a retry has overtaken records nothing: the event is in the table."""
    size = await append(journal, history())
    await project(database, journal)
    monkeypatch.setattr(retrying, "CHUNK_SIZE", 1)
    with pytest.raises(NotParked, match="no event at offset 2"):
        await skip(
            database, journal, POISONED, ("users", 2), "broken", advanced=freeing_all(database)
        )
    async with database.snapshot() as connection:
        assert await parking.skipped(connection, journal.journal_id, TRADING) == []
    assert await live_tables(database, TRADING) == await tables_as_of(journal, TRADING, size)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (MemoryError(), MemoryError),
        (asyncpg.InternalClientError("odd"), asyncpg.InternalClientError),
        (asyncpg.InterfaceError("closed"), StoreUnavailable),
        (TypeError("once"), None),
    ],
    ids=["memory", "driver", "connection", "once"],
)
async def test_what_fails_once_parks_nobody(
    error: Exception,
    raised: type[Exception] | None,
    journal: Journal,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch of one event is tried once more before anyone is suspected."""
    await append(journal, history()[:1])
    errors, write = [error], tables.write

    async def failing(*arguments: Any) -> None:
        if errors:
            raise errors.pop()
        await write(*arguments)

    monkeypatch.setattr(tables, "write", failing)
    if raised is not None:
        with pytest.raises(raised):
            await project(database, journal, TRADING, 1)
    await project(database, journal, TRADING, 1)
    assert await parked(database, journal) == []
    assert await emails(database) == {ONE: "a@host"}


async def test_a_lane_of_a_table_that_is_gone_does_not_guard(
    journal: Journal, database: Database
) -> None:
    """What another release has parked in a table that the group has no more slows nobody down."""
    await append(journal, history())
    await project(database, journal)
    for name, is_noted in (("users", True), ("gone", False)):
        async with database.transaction() as connection:
            await connection.execute(parked_keys.update().values(table_name=name))
            noted = parking.is_noted(connection, journal.journal_id, TRADING, 0, 5, TRADING.name)
            assert await noted is is_noted


async def test_verify_tells_what_is_parked(journal: Journal, database: Database) -> None:
    """It compares all other rows, and is not satisfied as long as something is parked."""
    await append(journal, history())
    await project(database, journal)
    for group in (POISONED, TRADING):
        result = await verify(database, journal, [group])
        assert (result.differences, result.is_verified) == (0, False)
        assert str(result.parked[0]).startswith(f"users user_id={ONE} is parked at offset 2")


async def test_verify_names_parked_keys_that_should_be_or_should_not(
    journal: Journal, database: Database
) -> None:
    """Who deletes a parked key, or adds one to hide a row behind it, is found out."""
    await append(journal, history())
    await project(database, journal)
    async with database.transaction() as connection:
        one = (parked_keys.c.waits_for.is_not(None), parked_keys.c.offset == 2)
        await connection.execute(parked_keys.update().where(*one).values(value="nothing"))
    result = await verify(database, journal, [POISONED])
    found = {(each.table, each.journal, each.live) for each in result.first}
    assert found == {
        ("parked_keys", "is not parked", "is parked at offset 2"),
        ("parked_keys", "is parked at offset 2", "is not parked"),
    }


async def test_who_waits_for_a_parked_row_is_told(journal: Journal, database: Database) -> None:
    """At once, with the reason; whoever waits for another row or an earlier size is not."""
    size = await append(journal, history())
    await project(database, journal)
    with pytest.raises(RowParked, match="EmailChanged") as caught:
        await wait_visible(database, journal, size + 99, TRADING, 30, ("users", ONE))
    assert "Spoilt: users at 2" in str(caught.value)
    assert await wait_visible(database, journal, 2, TRADING, 30, ("users", ONE)) == size
    assert await wait_visible(database, journal, size, TRADING, 30, ("users", OTHER)) == size


async def test_who_waits_for_a_row_that_was_never_made_is_told(
    journal: Journal, database: Database
) -> None:
    """A registration that is poisoned leaves no row; its key is parked all the same."""
    size = await append(journal, history())
    await project(database, journal, poison.poisoned(TRADING, poison.at(("users", 0))))
    with pytest.raises(RowParked, match=r"offset 0 \(UserRegistered\): Spoilt"):
        await wait_visible(database, journal, size, TRADING, 30, ("users", ONE))


async def occupy(database: Database, journal: Journal, username: str) -> None:
    """Let a row from nowhere hold a username, so that the database refuses another."""
    values = {"journal_id": journal.journal_id, "user_id": an_id("nobody"), "username": username}
    times = {"created_at": START, "updated_at": START}
    async with database.transaction() as connection:
        insert = User.__table__.insert()
        await connection.execute(insert, {**values, **times, "changed_size": 0})


async def test_what_the_database_refuses_is_parked_alone(
    journal: Journal, database: Database
) -> None:
    """A violated constraint parks the one event at fault, in the one table, with its error."""
    await occupy(database, journal, "user 5")
    events = [registered(number, email=f"{number}@host") for number in range(10)]
    size = await append(journal, [*events, changed(5, "5@new"), changed(6, "6@new")])
    await project(database, journal, TRADING)
    assert await Projector(database, journal, TRADING).checkpoint() == size
    key = next(each for each in await parked(database, journal) if each.table == "users")
    assert (key.value, key.offset, key.waiting) == (str(an_id("user 5")), 5, 2)
    assert "cannot be written: " in str(key.error)
    assert "unique" in str(key.error).lower()
    found = await emails(database)
    assert found[an_id("user 6")] == "6@new"
    assert an_id("user 5") not in found
    with pytest.raises(StillRefused, match=r"(?i)unique"):
        await retry(database, journal, TRADING, ("users", str(an_id("user 5"))))
    assert (await retry(database, journal, TRADING)).freed == 0


async def test_what_the_database_refused_is_retried_when_it_takes_it(
    journal: Journal, database: Database
) -> None:
    """Once what stood in the way is gone, the row and all that waited are written."""
    await occupy(database, journal, "user 0")
    size = await append(journal, history())
    await project(database, journal, TRADING, 2)
    async with database.transaction() as connection:
        await connection.execute(User.__table__.delete().where(User.user_id == an_id("nobody")))
    assert (await retry(database, journal, TRADING)).parked == []
    assert await live_tables(database, TRADING) == await tables_as_of(journal, TRADING, size)


async def test_a_broken_foreign_key_is_parked(journal: Journal, database: Database) -> None:
    """It shows only at the commit; the order at fault is parked, the others are written."""
    placed = [
        OrderPlaced(
            order_id=an_id(f"order {number}"),
            user_id=an_id(f"user {number}"),
            token="SOL",
            action=Action.BUY,
            order_type=OrderType.MARKET,
            quantity=Amount("1"),
        )
        for number in range(2)
    ]
    await append(journal, [registered(0), registered(1), *placed])
    group = poison.poisoned(TRADING, lambda *_: False)
    original = group.projections[3].handlers[OrderPlaced]

    def dangling(state: Any, recorded: Any, event: Any) -> None:
        original(state, recorded, event)
        if recorded.offset == 3:
            state.tables["orders"].get(event.order_id).user_id = an_id("nobody")

    group.projections[3].handlers[OrderPlaced] = dangling
    await project(database, journal, group)
    keys = [each for each in await parked(database, journal) if each.error]
    assert [(key.table, key.offset) for key in keys] == [("orders", 3)]
    assert "foreign key" in str(keys[0].error).lower()
    assert (await retry(database, journal, TRADING)).parked == []
    await assert_live_is_replay(journal, database, TRADING)


async def test_a_row_that_no_column_can_hold_is_parked(
    journal: Journal, database: Database
) -> None:
    """A fold that makes nonsense for a column parks the event, as any other refusal."""
    await append(journal, history())
    group = poison.poisoned(TRADING, lambda *_: False)
    original = group.projections[0].handlers[EmailChanged]

    def nonsense(state: Any, recorded: Any, event: Any) -> None:
        original(state, recorded, event)
        if recorded.offset == 2:
            state.tables["users"].get(event.user_id).permissions = object()

    group.projections[0].handlers[EmailChanged] = nonsense
    await project(database, journal, group)
    [key] = [each for each in await parked(database, journal) if each.error]
    assert (key.table, key.offset) == ("users", 2)
    assert await emails(database) == {ONE: "a@host", OTHER: "z@host"}


def with_nonsense(kind: type[Event], column: str, *tables: str) -> Group:
    """Return a group whose folds of a type of event into tables make what no column can hold."""
    group = poison.poisoned(TRADING, lambda *_: False)
    for each in group.projections:
        if each.name in tables:
            each.handlers[kind] = _nonsense(each.name, each.handlers[kind], column)
    return group


def _nonsense(table: str, handler: Handler, column: str) -> Handler:
    def fold(state: State, recorded: RecordedEvent, event: Any) -> None:
        handler(state, recorded, event)
        for row in state.tables[table].changed.values():
            if row.changed_size == recorded.offset + 1:
                setattr(row, column, object())

    return fold


@pytest.mark.parametrize(
    "tables", [("security_audit_logs",), ("api_keys",), ("api_keys", "security_audit_logs")]
)
async def test_only_the_tables_at_fault_are_parked(
    tables: tuple[str, ...], journal: Journal, database: Database
) -> None:
    """A row that cannot be written parks the event in its table; in two, if two are at fault."""
    issued = ApiKeyIssued(key_id=an_id("key"), user_id=ONE, name="k", key_hash="x")
    await append(journal, [registered(0), issued])
    await project(database, journal, with_nonsense(ApiKeyIssued, "user_id", *tables))
    found = {each.table for each in await parked(database, journal) if each.error}
    assert found == set(tables)
    assert (await retry(database, journal, TRADING)).parked == []
    await assert_live_is_replay(journal, database, TRADING)


@pytest.mark.parametrize("batch_size", [1, 1000])
async def test_a_row_is_found_to_be_parked_under_another_name(
    batch_size: int, journal: Journal, database: Database
) -> None:
    """A batch that has only one name of a row still knows that the row is parked by another."""
    closing, events = closed_by_order()
    events = [*events, fill(3), OrderCancelled(order_id=closing, reason="user")]
    named = [NewEvent(each, event_id=an_id(f"event {n}")) for n, each in enumerate(events)]
    await journal.append(named)
    group = poison.poisoned(TRADING, poison.at(("positions", 3)))
    await project(database, journal, group, batch_size)
    state = await fold_prefix(journal, group, len(events))
    assert Lane("positions", "closing_order_id", str(closing)) in state.parking.lanes
    assert await lanes(database, journal, TRADING) == state.parking.lanes


async def test_a_retry_that_was_overtaken_changes_nothing(
    journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another release has freed meanwhile is not parked again."""
    size = await append(journal, history())
    await project(database, journal)
    monkeypatch.setattr(retrying, "CHUNK_SIZE", 1)
    done = await retry(database, journal, POISONED, advanced=freeing_all(database))
    assert (done.freed, done.parked) == (0, [])
    assert await parked(database, journal) == []
    assert await live_tables(database, TRADING) == await tables_as_of(journal, TRADING, size)


async def test_a_retry_begins_again_where_another_was_faster(
    journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that it meant to leave parked, and that is free by now, stays free."""
    size = await append(journal, history())
    await project(
        database, journal, poison.poisoned(TRADING, poison.at(("users", 2), ("users", 3)))
    )
    monkeypatch.setattr(retrying, "CHUNK_SIZE", 1)
    meddle = freeing_all(database, ("users", str(ONE)), at_call=2)
    done = await retry(database, journal, TRADING, ("users", str(OTHER)), advanced=meddle)
    assert done.parked == []
    assert await live_tables(database, TRADING) == await tables_as_of(journal, TRADING, size)


def freeing_all(
    database: Database, only: tuple[str, str] | None = None, at_call: int = 1
) -> Callable[[int], None]:
    """Return a callback that retries all (or `only` this) meanwhile, when it is called so often."""
    calls = count(1)

    async def free() -> None:
        settings = database.settings
        async with open_journal(settings) as journal, Database(settings) as other:
            await retry(other, journal, TRADING, only)

    def meddle(_events: int) -> None:
        if next(calls) == at_call:
            thread = Thread(target=lambda: asyncio.run(free()))
            thread.start()
            thread.join()

    return meddle


async def test_a_refused_row_does_not_park_what_it_depends_on(
    journal: Journal, database: Database
) -> None:
    """The audit row of a change cannot be written; the user is not held back for it."""
    await append(journal, history()[:3])
    await project(database, journal, with_nonsense(EmailChanged, "user_id", "security_audit_logs"))
    assert {each.table for each in await parked(database, journal)} == {"security_audit_logs"}
    assert (await emails(database))[ONE] == "b@host"


async def test_a_fold_that_raises_elsewhere_may_not_retry(
    journal: Journal, database: Database
) -> None:
    """A program that cannot fold what the live tables hold would take something back."""
    await append(journal, history())
    await project(database, journal)
    before = await live_tables(database, TRADING), await parked(database, journal)
    other = poison.poisoned(TRADING, poison.at(("users", 3)))
    with pytest.raises(FoldDiffers, match="users raises at offset 3"):
        await retry(database, journal, other)
    assert (await live_tables(database, TRADING), await parked(database, journal)) == before


async def test_retries_while_a_projector_runs(journal: Journal, database: Database) -> None:
    """They exclude each other at the checkpoint, and no event is lost or folded twice."""
    await append(journal, history())
    await project(database, journal)

    async def traffic() -> None:
        for number in range(20):
            await append(journal, [changed(0, f"{number}@one"), changed(1, f"{number}@other")])
            await project(database, journal)

    running = asyncio.create_task(traffic())
    outcomes = [await retry(database, journal, POISONED) for _ in range(5)]
    await running
    assert all(each.freed == 0 for each in outcomes)
    assert (await retry(database, journal, TRADING)).parked == []
    await project(database, journal, TRADING)
    await assert_live_is_replay(journal, database, TRADING)


async def test_two_retries_at_once_end_well(journal: Journal, database: Database) -> None:
    """Whoever comes second finds nothing parked any more, or starts over."""
    await append(journal, history())
    await project(database, journal)
    both = await asyncio.gather(
        retry(database, journal, TRADING), retry(database, journal, TRADING)
    )
    assert all(each.parked == [] for each in both)
    await assert_live_is_replay(journal, database, TRADING)


async def test_groups_do_not_park_each_others_tables(journal: Journal, database: Database) -> None:
    """What is parked in one group leaves the fast path of another alone."""
    await append(journal, random_events(Random(1), 100))
    poisoned = poison.poisoned(POSTINGS, lambda table, event: isinstance(event.event, OrderFilled))
    for group in (TRADING, poisoned):
        await project(database, journal, group)
    assert await parked(database, journal, POSTINGS)
    assert not await parked(database, journal, TRADING)
    await assert_live_is_replay(journal, database, TRADING)
