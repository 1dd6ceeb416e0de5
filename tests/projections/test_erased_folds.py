"""read_model(N) = fold(redact(events[0:N])): whoever is erased, whenever, and whatever they did."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.domain.api_keys import ApiKeyIssued, ApiKeyRefused, ApiKeyUsed
from ledger.domain.orders import Action, OrderAccepted, OrderPlaced, OrderType
from ledger.domain.users import (
    EmailChanged,
    LoginAttempted,
    LoginFailed,
    LoginSucceeded,
    PasswordChanged,
    UserDeactivated,
    UserErased,
    UserReactivated,
    UserRegistered,
)
from ledger.event import Amount, Event, Metadata, NewEvent, event_types, personal_fields
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections.database import Database
from projections.groups import GROUPS, TRADING
from projections.projector import Projector
from projections.rebuilding import Options
from projections.scrubbing import scrub
from tests.projections.support import live_tables, tables_as_of

USERS = 3
CANARY = "canary"
Tables = dict[str, dict[Any, dict[str, Any]]]


class Lives:
    """Appends, at random, what several users do, with values that name whose they are."""

    def __init__(self, journal: Journal, random: Random) -> None:
        self.journal = journal
        self.erased: set[int] = set()
        self._random = random
        self._ids = {number: uuid4() for number in range(USERS)}
        self._count = 0

    def user_id(self, number: int) -> UUID:
        """Return a user's id."""
        return self._ids[number]

    def value(self, number: int) -> str:
        """Return a text that is found nowhere else, and says whose it is."""
        self._count += 1
        return f"{CANARY}-{number}-{self._count}"

    async def register(self) -> None:
        """Register all users, each with a key and an order."""
        for number, user_id in self._ids.items():
            await self.append(
                number,
                UserRegistered(
                    user_id=user_id, username=self.value(number), email=self.value(number)
                ),
                ApiKeyIssued(
                    key_id=user_id,
                    user_id=user_id,
                    name=self.value(number),
                    key_hash=self.value(number),
                ),
                OrderPlaced(
                    order_id=user_id,
                    user_id=user_id,
                    token="SOL",
                    action=Action.BUY,
                    order_type=OrderType.LIMIT,
                    quantity=Amount(1),
                    price=Amount(1),
                ),
            )

    async def append(self, number: int, *events: Event) -> None:
        """Append events of a user, from an address that is the user's own."""
        address = f"203.0.113.{number}"
        metadata = Metadata(ip_address=address) if self._random.random() < 0.7 else None
        await self.journal.append([NewEvent(each, metadata=metadata) for each in events])

    async def step(self) -> None:
        """Let something happen to somebody who is still there."""
        number = self._random.choice([n for n in self._ids if n not in self.erased])
        user_id, value = self._ids[number], self.value(number)
        event = self._random.choice(
            [
                PasswordChanged(user_id=user_id, password_hash=value),
                EmailChanged(user_id=user_id, email=value),
                LoginAttempted(user_id=user_id, username=value, source=value),
                LoginFailed(user_id=user_id, username=value, source=value),
                LoginSucceeded(user_id=user_id, source=value),
                ApiKeyUsed(key_id=user_id, action="GET", source=value),
                ApiKeyRefused(reason="too_many", key_id=user_id, source=value),
                OrderAccepted(order_id=user_id),
                UserDeactivated(user_id=user_id),
                UserReactivated(user_id=user_id),
            ]
        )
        await self.append(number, event)

    async def erase(self) -> None:
        """Erase somebody; what the others' rows were as of any size, they still are."""
        number = self._random.choice([n for n in self._ids if n not in self.erased])
        sizes = [self._random.randrange(1, await self.journal.size() + 1) for _ in range(2)]
        before = [await tables_as_of(self.journal, TRADING, size) for size in sizes]
        await self.append(number, UserErased(user_id=self._ids[number], reason="case 7"))
        assert await self.journal.privacy.destroy(f"user-{self._ids[number]}")
        self.erased.add(number)
        for size, tables in zip(sizes, before, strict=True):
            after = await tables_as_of(self.journal, TRADING, size)
            assert self.others(after, number) == self.others(tables, number)
            self.assert_nothing_shown(after)

    def others(self, tables: Tables, number: int) -> Tables:
        """Return the rows that are not of a user."""
        user_id = self._ids[number]
        return {
            table: {key: row for key, row in rows.items() if row.get("user_id") != user_id}
            for table, rows in tables.items()
        }

    def assert_nothing_shown(self, tables: Tables) -> None:
        """Hold that no value of an erased user is in the tables, nor any encrypted one."""
        shown = json.dumps([list(rows.values()) for rows in tables.values()], default=str)
        words = [f"{CANARY}-{number}-" for number in self.erased]
        words += [f'"203.0.113.{number}"' for number in self.erased]
        assert [word for word in ("enc1:", *words) if word in shown] == []


async def live_and_compare(journal: Journal, database: Database, seed: int) -> None:
    """Live at random with erasures between, fold now and then, scrub, and compare."""
    random = Random(seed)
    lives, projector = Lives(journal, random), Projector(database, journal, TRADING, batch_size=7)
    await lives.register()
    for _ in range(random.randrange(10, 40)):
        await lives.step()
        if random.random() < 0.2:
            await projector.catch_up()
        if random.random() < 0.1 and len(lives.erased) < USERS - 1:
            await lives.erase()
    await lives.erase()
    for group in GROUPS.values():
        await Projector(database, journal, group).catch_up()
    with ThreadPoolExecutor(2) as executor:
        options = Options(workers=2)
        await scrub(database.settings, [journal.name], options=options, executor=executor)
    end = await journal.size()
    live = await live_rows(database, journal)
    assert live == await tables_as_of(journal, TRADING, end)
    lives.assert_nothing_shown(live)
    assert {row["user_id"] for row in live["users"].values() if row["is_erased"]} == {
        lives.user_id(number) for number in lives.erased
    }


async def live_rows(database: Database, journal: Journal) -> Tables:
    """Return the live rows of one journal."""
    return {
        table: {k: row for k, row in rows.items() if row["journal_id"] == journal.journal_id}
        for table, rows in (await live_tables(database, TRADING)).items()
    }


@pytest.fixture
def chosen(database_url: str) -> Settings:
    """Settings with which no process goes on with a key that is destroyed."""
    return Settings.model_validate({"database_url": database_url, "key_cache_seconds": 0.0})


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_live_is_the_fold_of_what_is_left(chosen: Settings, seed: int) -> None:
    """At any size, before and after; other users' rows are untouched, at any time."""

    async def work() -> None:
        name = f"lives-{uuid4().hex[:8]}"
        async with open_journal(chosen) as main, Database(chosen) as database:
            await main.store.create_journal(name)
            async with open_journal(chosen, name) as journal:
                await live_and_compare(journal, database, seed)

    asyncio.run(work())


def test_the_lives_leave_every_kind_of_personal_data() -> None:
    """So that none is forgotten: but for names of locks, which are those of nobody who exists."""
    kinds = {
        *(UserRegistered, PasswordChanged, EmailChanged, LoginAttempted, LoginFailed),
        *(LoginSucceeded, ApiKeyIssued, ApiKeyUsed, ApiKeyRefused),
    }
    personal = {each for each in event_types().values() if personal_fields(each)}
    assert {each.__name__ for each in personal - kinds} == {"AccountLocked"}
