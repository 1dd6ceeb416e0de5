"""API keys on real stores: each use is decided at the moment at which it is stored."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from ledger.conditions import Condition, NoEvent
from ledger.deciding import ORIGIN, Deciding, Origin
from ledger.domain.api_keys import ApiKeyRefused, ApiKeyUsed, KeyReason
from ledger.errors import CommandRefused, InvalidCommand, InvalidEvent, StoreUnavailable
from ledger.event import Metadata, NewEvent, RecordedEvent
from ledger.journal import Journal
from ledger.security.api_keys import format_key, generate
from ledger.services import Ledger
from ledger.services.api_keys import ApiKeys, KeyIssued, KeyUse
from ledger.services.refusals import KINDS_MAX, Refusals
from ledger.stores import Appended, JournalInfo
from tests.ledger.services.support import a_ledger, kinds, stored
from tests.ledger.services.workers import use_at
from tests.ledger.support import START, Clock, read_all
from tests.ledger.workers import ended, start

TICK = timedelta(microseconds=1)
WINDOW = timedelta(seconds=60)


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
async def ledger(database_url: str, clock: Clock) -> AsyncIterator[Ledger]:
    """The facade, by that clock."""
    async with a_ledger(database_url, clock) as opened:
        yield opened


async def owner(ledger: Ledger) -> UUID:
    """Register a user."""
    return (await ledger.users.register(username=f"user {uuid4()}")).user_id


async def issue(
    ledger: Ledger, rate_limit: int | None = None, expires_at: datetime | None = None
) -> KeyIssued:
    """Issue a key that may trade, to a new user."""
    return await ledger.api_keys.issue(
        user_id=await owner(ledger),
        name="bot",
        permissions=("trade",),
        rate_limit=rate_limit,
        expires_at=expires_at,
    )


def text_of(issued: KeyIssued) -> str:
    """Return the key that was shown."""
    assert issued.key
    return issued.key.reveal()


async def use(
    ledger: Ledger, key: str, permission: str | None = None, ip_address: str | None = None
) -> KeyUse:
    """Use a key."""
    metadata = Metadata(ip_address=ip_address)
    origin = Origin(metadata=metadata) if ip_address else ORIGIN
    return await ledger.api_keys.use(
        presented=key, action="GET", permission=permission, resource="/orders", origin=origin
    )


async def refusals(ledger: Ledger) -> list[ApiKeyRefused]:
    """Return the recorded refusals."""
    return [event for event in await stored(ledger.journal) if isinstance(event, ApiKeyRefused)]


async def test_a_use_is_stored_before_it_is_allowed(ledger: Ledger) -> None:
    """The answer says where; the event says what for."""
    issued = await issue(ledger)
    used = await use(ledger, text_of(issued), "trade")
    assert (used.accepted, used.key_id, used.reason) == (True, issued.key_id, None)
    assert used.appended
    recorded = (await read_all(ledger.journal))[used.appended.size - 1]
    expected = ApiKeyUsed(key_id=issued.key_id, action="GET", resource="/orders")
    assert recorded.event == expected
    refused = await use(ledger, text_of(issued), "withdraw")
    assert (refused.accepted, refused.reason) == (False, KeyReason.NOT_PERMITTED)
    assert await refusals(ledger) == [
        ApiKeyRefused(
            reason="not_permitted", key_id=issued.key_id, action="GET", resource="/orders"
        )
    ]


async def test_keys_that_are_none(ledger: Ledger) -> None:
    """Typos, keys never issued and wrong secrets are recorded without what was presented."""
    issued = await issue(ledger)
    guessed = generate(issued.key_id)[0].reveal()
    made_up = format_key(uuid4(), bytes(32))
    texts = (text_of(issued)[:-1] + "!", guessed, made_up, "")
    found = [await use(ledger, text) for text in texts]
    assert [each.reason for each in found] == ["malformed", "unknown", "unknown", "malformed"]
    assert {each.key_id for each in found} == {None}
    recorded = await refusals(ledger)
    assert [each.presented for each in recorded][1:3] == [guessed[:26], made_up[:26]]
    assert all(each.key_id is None and len(each.presented or "") <= 26 for each in recorded)


async def test_expiry_and_rotation_are_right_to_the_microsecond(
    ledger: Ledger, clock: Clock
) -> None:
    """Old and new both live for the overlap; the new one has the same rights and its own end."""
    end = START + timedelta(hours=1)
    old = await issue(ledger, rate_limit=1000, expires_at=end)
    new = await ledger.api_keys.rotate(key_id=old.key_id, overlap=timedelta(minutes=5))
    assert (await use(ledger, text_of(old), "trade")).accepted
    assert (await use(ledger, text_of(new), "trade")).accepted
    clock.now = START + timedelta(minutes=5) - TICK
    assert (await use(ledger, text_of(old))).accepted
    clock.now = START + timedelta(minutes=5)
    assert (await use(ledger, text_of(old))).reason == KeyReason.EXPIRED
    with pytest.raises(CommandRefused, match="RotateKey is refused in state expired"):
        await ledger.api_keys.rotate(key_id=old.key_id, overlap=timedelta(0))
    clock.now = end - TICK
    assert (await use(ledger, text_of(new))).accepted
    clock.now = end
    assert (await use(ledger, text_of(new))).reason == KeyReason.EXPIRED


async def test_commands_that_are_refused(ledger: Ledger) -> None:
    """Keys need an active owner and an id of their own; dead keys stay as they are."""
    issued = await issue(ledger)
    size = await ledger.journal.size()
    keys = ledger.api_keys
    with pytest.raises(CommandRefused, match="in state unknown: the user must be active"):
        await keys.issue(user_id=uuid4(), name="bot")
    successor_key_id = await taken(ledger)
    for origin in (Origin(), Origin(command_id=uuid4())):
        with pytest.raises(CommandRefused, match="a key with this id exists"):
            await keys.rotate(
                key_id=issued.key_id,
                overlap=WINDOW,
                successor_key_id=successor_key_id,
                origin=origin,
            )
    with pytest.raises(CommandRefused, match="RevokeKey is refused in state unknown"):
        await keys.revoke(key_id=uuid4())
    with pytest.raises(CommandRefused, match="RotateKey is refused in state unknown"):
        await keys.rotate(key_id=uuid4(), overlap=WINDOW)
    assert await ledger.journal.size() == size + 2
    await keys.revoke(key_id=issued.key_id, reason="lost")
    with pytest.raises(CommandRefused, match="RevokeKey is refused in state revoked"):
        await keys.revoke(key_id=issued.key_id)


async def taken(ledger: Ledger) -> UUID:
    """Return the id of a key that exists."""
    return (await issue(ledger)).key_id


async def test_a_revocation_holds_everywhere_at_once(ledger: Ledger, database_url: str) -> None:
    """Another process, which knows the key as it was, refuses it from that moment."""
    issued, other_key = await issue(ledger), await issue(ledger)
    async with a_ledger(database_url, Clock()) as other:
        for key in (issued, other_key):
            assert (await use(other, text_of(key))).accepted
        await ledger.api_keys.revoke(key_id=issued.key_id)
        assert (await use(other, text_of(issued))).reason == KeyReason.REVOKED
        new = await ledger.api_keys.rotate(key_id=other_key.key_id, overlap=timedelta(0))
        assert (await use(other, text_of(other_key))).reason == KeyReason.EXPIRED
        assert (await use(other, text_of(new))).accepted


async def test_a_rotation_holds_in_a_process_that_missed_it(
    ledger: Ledger, database_url: str, clock: Clock
) -> None:
    """Also where the process was told of a use that another one stored after the rotation."""
    issued, once = await issue(ledger), Origin(command_id=uuid4())
    key = text_of(issued)
    async with a_ledger(database_url, clock) as other:
        assert (await use(ledger, key)).accepted
        await other.api_keys.rotate(key_id=issued.key_id, overlap=timedelta(minutes=10))
        for service in (other, ledger):
            used = await service.api_keys.use(presented=key, action="POST", origin=once)
            assert used.accepted
        clock.move(9 * 60)
        assert (await use(ledger, key)).accepted
        clock.move(60)
        for service in (ledger, other):
            assert (await use(service, key)).reason == KeyReason.EXPIRED


class Slow(Journal):
    """A journal whose first answer about a key is held back."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal.store, JournalInfo(journal.journal_id, journal.name, 0, START))
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def read_stream(
        self,
        stream: str,
        after_version: int = 0,
        *,
        stop: int | None = None,
        limit: int | None = None,
    ) -> list[RecordedEvent]:
        """Read, and wait the first time."""
        found = await super().read_stream(stream, after_version, stop=stop, limit=limit)
        if stream.startswith("apikey-") and not self.begun.is_set():
            self.begun.set()
            await self.go.wait()
        return found


async def test_a_use_by_old_knowledge_does_not_profit_from_newer(
    ledger: Ledger, clock: Clock
) -> None:
    """That another use was accepted after a rotation says nothing for one that has not seen it."""
    issued = await issue(ledger)
    journal = Slow(ledger.journal)
    keys = ApiKeys(Deciding(journal))
    slow = asyncio.create_task(keys.use(presented=text_of(issued), action="GET"))
    await journal.begun.wait()
    await ledger.api_keys.rotate(key_id=issued.key_id, overlap=timedelta(minutes=10))
    assert (await keys.use(presented=text_of(issued), action="GET")).accepted
    clock.move(600)
    journal.go.set()
    assert (await slow).reason == KeyReason.EXPIRED


async def test_a_repeated_use_is_decided_by_what_holds_now(
    ledger: Ledger, database_url: str
) -> None:
    """A command id opens nothing that is shut by now, and an old use is told from a new one."""
    user_id, once = await owner(ledger), Origin(command_id=uuid4())
    issued = await ledger.api_keys.issue(user_id=user_id, name="bot", rate_limit=1)
    key = text_of(issued)
    async with a_ledger(database_url, Clock()) as other:

        async def repeat(service: Ledger) -> KeyUse:
            return await service.api_keys.use(presented=key, action="GET", origin=once)

        first, again = await repeat(other), await repeat(other)
        assert (first.accepted, first.is_new, again.accepted, again.is_new) == (1, 1, 1, 0)
        await ledger.users.deactivate(user_id=user_id)
        assert (await repeat(other)).reason == KeyReason.USER_INACTIVE
        await ledger.users.reactivate(user_id=user_id)
        assert (await repeat(other)).accepted
        await ledger.api_keys.revoke(key_id=issued.key_id)
        for service in (other, ledger):
            assert (await repeat(service)).reason == KeyReason.REVOKED


class Repeating(Journal):
    """A journal that repeats each append, as a store does whose commit had no answer."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal.store, JournalInfo(journal.journal_id, journal.name, 0, START))

    async def append(
        self, events: NewEvent | Sequence[NewEvent], *conditions: Condition
    ) -> Appended:
        """Append twice."""
        await super().append(events, *conditions)
        return await super().append(events, *conditions)


async def test_a_key_is_shown_where_the_store_repeated_itself(ledger: Ledger) -> None:
    """It is the key that is stored, and nobody else has been shown it."""
    user_id = await owner(ledger)
    keys = ApiKeys(Deciding(Repeating(ledger.journal)))
    issued = await keys.issue(user_id=user_id, name="bot")
    rotated = await keys.rotate(key_id=issued.key_id, overlap=WINDOW)
    for each in (issued, rotated):
        used = await keys.use(presented=text_of(each), action="GET")
        assert (used.accepted, used.is_new) == (True, True)


class Noting(Journal):
    """A journal that notes the conditions of each append."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal.store, JournalInfo(journal.journal_id, journal.name, 0, START))
        self.conditions: list[tuple[Condition, ...]] = []

    async def append(
        self, events: NewEvent | Sequence[NewEvent], *conditions: Condition
    ) -> Appended:
        """Note and append."""
        self.conditions.append(conditions)
        return await super().append(events, *conditions)


async def test_each_use_looks_only_at_what_came_after_the_last(ledger: Ledger) -> None:
    """The conditions of a use begin at the one before, so that they never look back far."""
    issued = await issue(ledger)
    journal = Noting(ledger.journal)
    keys = ApiKeys(Deciding(journal))
    uses = [await keys.use(presented=text_of(issued), action="GET") for _ in range(3)]
    offsets = [each.appended.offsets[0] for each in uses if each.appended]
    after = [
        {each.after for each in found if isinstance(each, NoEvent)} for found in journal.conditions
    ]
    assert after == [{0, 1}, {offsets[0]}, {offsets[1]}]


async def test_the_owner_must_be_active(ledger: Ledger, database_url: str) -> None:
    """A deactivation holds everywhere at once, and so does its end."""
    user_id = await owner(ledger)
    key = text_of(await ledger.api_keys.issue(user_id=user_id, name="bot"))
    async with a_ledger(database_url, Clock()) as other:
        for _ in range(2):
            assert (await use(other, key)).accepted
            await ledger.users.deactivate(user_id=user_id)
            assert (await use(other, key)).reason == KeyReason.USER_INACTIVE
            with pytest.raises(CommandRefused, match="deactivated: the user must be active"):
                await other.api_keys.issue(user_id=user_id, name="other")
            await ledger.users.reactivate(user_id=user_id)
        assert (await use(other, key)).accepted


async def test_uses_and_a_revocation_at_once(ledger: Ledger, database_url: str) -> None:
    """No use lies after the revocation in the journal, whatever runs in parallel."""
    issued = await issue(ledger)
    key = text_of(issued)
    async with a_ledger(database_url, Clock()) as other:
        revoke = ledger.api_keys.revoke(key_id=issued.key_id)
        services = (ledger, other)
        found = await asyncio.gather(
            *(use(services[n % 2], key) for n in range(20)),
            revoke,
            *(use(services[n % 2], key) for n in range(20)),
        )
    types = [recorded.type for recorded in await read_all(ledger.journal)]
    assert "ApiKeyUsed" not in types[types.index("ApiKeyRevoked") :]
    accepted = sum(isinstance(each, KeyUse) and each.accepted for each in found)
    assert accepted == types.count("ApiKeyUsed")


async def test_a_repeated_command_is_stored_once(ledger: Ledger) -> None:
    """The same command id stores nothing again, and the secret is not shown a second time."""
    user_id, origin = await owner(ledger), Origin(command_id=uuid4())
    first = await ledger.api_keys.issue(user_id=user_id, name="bot", origin=origin)
    again = await ledger.api_keys.issue(user_id=user_id, name="bot", origin=origin)
    assert (again.key_id, again.key) == (first.key_id, None)
    rotation = Origin(command_id=uuid4())
    new = await ledger.api_keys.rotate(key_id=first.key_id, overlap=WINDOW, origin=rotation)
    again = await ledger.api_keys.rotate(key_id=first.key_id, overlap=WINDOW, origin=rotation)
    assert (again.key_id, again.key) == (new.key_id, None)
    assert new.appended
    assert again.appended
    assert again.appended.size == new.appended.size
    once = Origin(command_id=uuid4())
    for _ in range(2):
        used = await ledger.api_keys.use(presented=text_of(new), action="GET", origin=once)
        assert used.accepted
    assert await kinds(ledger.journal) == {
        "UserRegistered": 1,
        "ApiKeyIssued": 2,
        "ApiKeyRotated": 1,
        "ApiKeyUsed": 1,
    }


@pytest.mark.parametrize(
    ("field", "text"),
    [("action", ""), ("action", "x" * 256), ("resource", "x" * 2049), ("source", "a\0")],
)
async def test_texts_that_cannot_be_stored(ledger: Ledger, field: str, text: str) -> None:
    """They are errors before anything is looked at, and leave no event."""
    fields = {"presented": "x", "action": "GET"} | {field: text}
    with pytest.raises(InvalidCommand, match=rf"UseKey\.{field}"):
        await ledger.api_keys.use(**fields)  # type: ignore[arg-type] # texts, all of them
    with pytest.raises(InvalidEvent):
        await use(ledger, "x", ip_address="nowhere")
    await ledger.api_keys.flush()
    assert await ledger.journal.size() == 0


async def test_a_rate_limit_slides(ledger: Ledger, clock: Clock) -> None:
    """An accepted use counts for exactly 60 seconds, a refused one not at all."""
    key = text_of(await issue(ledger, rate_limit=2))
    accepted = {}
    for seconds in (0, 30, 31, 59.999999, 60, 60.000001, 89.999999, 90, 119, 120):
        clock.now = START + timedelta(seconds=seconds)
        accepted[seconds] = (await use(ledger, key)).accepted
    assert [seconds for seconds, was in accepted.items() if was] == [0, 30, 60, 90, 120]
    assert {each.reason for each in await refusals(ledger)} == {"rate_limited"}


async def test_a_rate_limit_holds_across_8_processes(database_url: str, clock: Clock) -> None:
    """100 a minute, 8 processes at 20 uses each at each time: never more, and never fewer."""
    async with a_ledger(database_url, clock) as ledger:
        key = text_of(await issue(ledger, rate_limit=100))
        moments = (0, 0.5, 20, 59.999999, 60, 60.499999, 60.5, 100, 121, 180.999999, 181)
        barrier = multiprocessing.get_context("forkserver").Barrier(8)
        work = (use_at, database_url, key, moments, 20, barrier)
        processes = [start(*work) for _ in range(8)]
        with ended(processes):
            for process in processes:
                process.join(60)
            assert [process.exitcode for process in processes] == [0] * 8
        events = await read_all(ledger.journal)
    times = [each.recorded_at for each in events if isinstance(each.event, ApiKeyUsed)]
    assert Counter(times) == _allowed(moments, 100, 160)
    assert max(_in_window(times, end) for end in times) == 100
    refused = sum(each.event.count for each in events if isinstance(each.event, ApiKeyRefused))
    assert len(times) + refused == 8 * 20 * len(moments)


def _allowed(moments: tuple[float, ...], limit: int, asked: int) -> dict[datetime, int]:
    """Return how many uses the limit allows at each time, by counting."""
    found: dict[datetime, int] = {}
    for moment in moments:
        now = START + timedelta(seconds=moment)
        recent = sum(count for at, count in found.items() if at > now - WINDOW)
        if allowed := min(asked, limit - recent):
            found[now] = allowed
    return found


def _in_window(times: list[datetime], end: datetime) -> int:
    return sum(end - WINDOW < at <= end for at in times)


async def test_a_flood_of_refusals_is_summed_up(ledger: Ledger, clock: Clock) -> None:
    """Three of a kind are stored at once, the others as one when the minute is over."""
    for number in range(100):
        refused = await use(ledger, f"guess {number}", ip_address="192.0.2.1")
        assert (refused.appended is not None) == (number < 3)
    for number in range(5):
        await use(ledger, f"guess {number}", ip_address="2001:db8::1")
    assert [each.count for each in await refusals(ledger)] == [1] * 6
    clock.move(60)
    await ledger.journal.wait(8, 10)
    first, second = await _sums(ledger)
    assert [each.event.count for each in (first, second)] == [97, 2]  # type: ignore[attr-defined]
    addresses = [each.metadata.ip_address for each in (first, second)]
    assert addresses == ["192.0.2.1", "2001:db8::1"]
    assert first.occurred_at == START
    assert (await use(ledger, "guess", ip_address="192.0.2.1")).appended


async def _sums(ledger: Ledger) -> list[RecordedEvent]:
    return [
        recorded
        for recorded in await read_all(ledger.journal)
        if isinstance(recorded.event, ApiKeyRefused) and recorded.event.count > 1
    ]


async def test_a_known_key_is_summed_up_by_itself(ledger: Ledger) -> None:
    """Different keys and reasons of one source have their own three, and their own sum."""
    one, two = await issue(ledger), await issue(ledger)
    for _ in range(5):
        for key in (one, two):
            await use(ledger, text_of(key), "withdraw")
        await use(ledger, "nonsense")
    await ledger.api_keys.flush()
    sums = [each for each in await refusals(ledger) if each.count > 1]
    expected = {("not_permitted", one.key_id), ("not_permitted", two.key_id), ("malformed", None)}
    assert {(each.reason, each.key_id) for each in sums} == expected
    assert [each.count for each in sums] == [2, 2, 2]
    await ledger.api_keys.flush()
    assert sum(each.count for each in await refusals(ledger)) == 15


async def test_many_sources_store_a_bounded_number_of_events(ledger: Ledger) -> None:
    """Beyond a number of kinds in a minute they share one count; none is lost."""
    refusals_of = Refusals(ledger.journal, kinds_max=4)
    for number in range(40):
        refused = ApiKeyRefused(reason="unknown", source=f"source {number}")
        await refusals_of.record(refused, None)
    assert len(refusals_of._tallies) == 5
    await refusals_of.close()
    found = await refusals(ledger)
    assert [each.count for each in found] == [1] * 7 + [33]
    assert found[-1].source is None
    assert 3 * KINDS_MAX <= 1000


async def test_a_known_key_keeps_its_name_in_a_flood(ledger: Ledger) -> None:
    """Beyond the number of kinds its refusals are still its own, up to a number of keys."""
    refusals_of = Refusals(ledger.journal, singly_max=0, kinds_max=4, keys_max=2)
    keys = [UUID(int=number) for number in range(3)]
    for number in range(4):
        await refusals_of.record(ApiKeyRefused(reason="unknown", source=f"{number}"), None)
    for key_id in keys * 5:
        refused = ApiKeyRefused(reason="revoked", key_id=key_id, source="another")
        await refusals_of.record(refused, None)
    await refusals_of.close()
    found = [(each.key_id, each.count) for each in (await refusals(ledger))[4:]]
    assert found == [(keys[0], 5), (keys[1], 5), (None, 5)]


async def test_an_ipv6_network_is_one_source(ledger: Ledger) -> None:
    """Whoever has 64 bits of addresses is counted once; IPv4 ones are told apart in any form."""
    refusals_of = Refusals(ledger.journal, singly_max=0)
    v6 = ("2001:db8::1", "2001:DB8::ffff:2", "2001:db8:0:1::1")
    v4 = ("::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.2")
    for ip_address in (*v6, *v4):
        metadata = Metadata(ip_address=ip_address)
        await refusals_of.record(ApiKeyRefused(reason="unknown"), metadata)
    await refusals_of.close()
    counts = [each.count for each in await refusals(ledger)]
    addresses = [each.metadata.ip_address for each in await read_all(ledger.journal)]
    found = list(zip(addresses, counts, strict=True))
    assert found == [(v6[1], 2), (v6[2], 1), (v4[1], 2), (v4[2], 1)]


class Away(Journal):
    """A journal whose database can be away."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal.store, JournalInfo(journal.journal_id, journal.name, 0, START))
        self.is_away = False

    async def append(
        self, events: NewEvent | Sequence[NewEvent], *conditions: Condition
    ) -> Appended:
        """Append, if the database is there."""
        if self.is_away:
            raise StoreUnavailable("away")
        return await super().append(events, *conditions)


async def test_refusals_while_the_database_is_away_are_counted(
    ledger: Ledger, clock: Clock
) -> None:
    """Whoever is refused is told of the error; each refusal is stored once, by itself later."""
    journal = Away(ledger.journal)
    refusals_of = Refusals(journal)
    guess = ApiKeyRefused(reason="unknown")
    journal.is_away = True
    found = [await outcome(refusals_of.record(guess, None)) for _ in range(10)]
    assert found == ["away"] * 3 + ["None"] * 7
    clock.move(60)
    assert await outcome(refusals_of.record(guess, None)) == "away"
    journal.is_away = False
    assert (await refusals_of.record(guess, None)) == Appended((1,))
    clock.move(60)
    await ledger.journal.wait(3, 10)
    assert [each.count for each in await refusals(ledger)] == [10, 1, 1]
    await refusals_of.close()


async def outcome(recording: Awaitable[Appended | None]) -> str:
    """Return what came of recording a refusal, or the error in words."""
    try:
        return str(await recording)
    except StoreUnavailable as error:
        return str(error)


async def test_closing_stores_what_was_counted(database_url: str) -> None:
    """Leaving the facade loses nothing."""
    async with a_ledger(database_url) as ledger:
        await asyncio.gather(*(use(ledger, f"guess {n}") for n in range(50)))
    async with a_ledger(database_url) as ledger:
        assert sum(each.count for each in await refusals(ledger)) == 50
        assert len(await refusals(ledger)) <= 8


async def test_repeated_commands_may_come_after_their_times(ledger: Ledger, clock: Clock) -> None:
    """A key that has expired was issued all the same, or has taken another's place."""
    origin, ends = Origin(command_id=uuid4()), clock.now + timedelta(seconds=1)
    user_id, old = await owner(ledger), await issue(ledger)
    size = await ledger.journal.size() + 3

    async def both(repeated: Origin) -> list[KeyIssued]:
        return [
            await ledger.api_keys.issue(
                user_id=user_id, name="bot", expires_at=ends, origin=repeated
            ),
            await ledger.api_keys.rotate(
                key_id=old.key_id, overlap=timedelta(hours=1), expires_at=ends, origin=repeated
            ),
        ]

    first = await both(origin)
    clock.move(2)
    again = await both(origin)
    assert [each.key for each in again] == [None, None]
    assert [each.appended and each.appended.duplicate for each in again] == [True, True]
    assert [each.key_id for each in again] == [each.key_id for each in first]
    with pytest.raises(InvalidCommand, match="is past"):
        await both(Origin(command_id=uuid4()))
    assert await ledger.journal.size() == size
