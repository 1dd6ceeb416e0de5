"""Users and logins on real stores: unique names, lock-outs, and strangers who look like users."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import statistics
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr, ValidationError

from ledger.conditions import Condition
from ledger.deciding import Deciding, Origin
from ledger.domain.users import (
    AccountLocked,
    LoginAttempted,
    LoginFailed,
    LoginReason,
    PasswordChanged,
    RolesChanged,
    UserRegistered,
    name_digest,
    user_stream,
)
from ledger.errors import CommandRefused, InvalidCommand, Overloaded, TagTaken
from ledger.event import Event, Metadata, NewEvent
from ledger.journal import Journal
from ledger.security.api_keys import digest_of
from ledger.security.passwords import PasswordHasher, Passwords
from ledger.services import Ledger, open_ledger
from ledger.services.users import Login, Users
from ledger.settings import Settings
from ledger.stores import Appended, JournalInfo
from projections.database import Database
from projections.groups import TRADING
from projections.projector import Projector
from projections.security_audit_logs import SecurityAuditLog
from tests.ledger.services.support import CHEAP, a_ledger, kinds, stored
from tests.ledger.services.workers import log_in_wrongly
from tests.ledger.support import START, Clock, read_all, settings_for
from tests.ledger.workers import ended, start
from tests.projections.support import live_tables

TICK = timedelta(microseconds=1)
PROCESSES, GUESSES = 4, 200


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
async def ledger(database_url: str, clock: Clock) -> AsyncIterator[Ledger]:
    """The facade, by that clock."""
    async with a_ledger(database_url, clock) as opened:
        yield opened


async def wrong(ledger: Ledger, username: str = "ann") -> Login:
    """Log in with a wrong password."""
    return await ledger.users.login(username=username, password="wrong")


async def right(ledger: Ledger, username: str = "ann") -> Login:
    """Log in with the right password."""
    return await ledger.users.login(username=username, password="secret")


async def test_a_users_life(ledger: Ledger) -> None:
    """Every command says what it stored; what is refused leaves no event."""
    users = ledger.users
    made = await users.register(username="Ann", password="secret", email="ann@example.org")
    assert made.appended
    assert made.appended.size == 1
    ann = made.user_id
    for name in ("Ann", " ann ", "ANN@example.org"):
        login = await right(ledger, name)
        assert (login.succeeded, login.user_id, login.reason) == (True, ann, None)
    assert (await users.change_email(user_id=ann, email="ann@example.com")).appended
    assert (await users.change_email(user_id=ann, email="ann@example.com")).appended is None
    assert not (await right(ledger, "ann@example.org")).succeeded
    await users.change_permissions(user_id=ann, permissions=["trade"])
    await users.change_roles(user_id=ann, roles=["admin"])
    await users.change_password(user_id=ann, password="other")
    assert (await right(ledger)).reason == LoginReason.WRONG_PASSWORD
    await users.deactivate(user_id=ann, reason="left")
    login = await users.login(username="ann", password="other")
    assert (login.succeeded, login.user_id, login.reason) == (False, None, LoginReason.INACTIVE)
    size = await ledger.journal.size()
    with pytest.raises(CommandRefused, match="Deactivate is refused in state deactivated"):
        await users.deactivate(user_id=ann)
    with pytest.raises(CommandRefused, match="in state unknown: there is no such user"):
        await users.change_roles(user_id=uuid4(), roles=[])
    assert await ledger.journal.size() == size
    await users.reactivate(user_id=ann)
    assert (await users.login(username="ann", password="other")).succeeded


async def test_names_are_taken_once(ledger: Ledger) -> None:
    """A username or e-mail that another user has is refused, and free again when given up."""
    ann = (await ledger.users.register(username="ann", email="a@example.org")).user_id
    for name, email in (("ANN", None), ("bob", "A@example.org")):
        with pytest.raises(TagTaken):
            await ledger.users.register(username=name, email=email)
    await ledger.users.change_email(user_id=ann, email=None)
    bob = (await ledger.users.register(username="bob", email="a@example.org")).user_id
    with pytest.raises(TagTaken):
        await ledger.users.change_email(user_id=ann, email="a@example.org")
    with pytest.raises(CommandRefused, match="a user with this id exists"):
        await ledger.users.register(username="carl", user_id=bob)
    assert not (await wrong(ledger, "bob")).succeeded  # there is no password


async def test_500_parallel_registrations_of_50_names(database_url: str) -> None:
    """Two services register each name ten times at once: there are exactly 50 users."""
    async with a_ledger(database_url) as one, a_ledger(database_url) as two:
        found = await asyncio.gather(
            *((one, two)[n % 2].users.register(username=f"user {n // 10}") for n in range(500)),
            return_exceptions=True,
        )
        names = {e.username for e in await stored(one.journal) if isinstance(e, UserRegistered)}
    assert names == {f"user {n}" for n in range(50)}
    assert Counter(type(outcome).__name__ for outcome in found) == {
        "Registered": 50,
        "TagTaken": 450,
    }


async def test_a_repeated_registration_is_one(ledger: Ledger) -> None:
    """The same command id gives the same user and events, whoever has the name by now."""
    origin = Origin(command_id=uuid4(), metadata=Metadata(actor="test"))
    first = await ledger.users.register(username="ann", password="secret", origin=origin)
    again = await ledger.users.register(username="ann", password="secret", origin=origin)
    assert (first.user_id, await ledger.journal.size()) == (again.user_id, 1)
    assert first.appended
    assert again.appended
    assert again.appended.offsets == first.appended.offsets


async def test_what_cannot_be_a_login_leaves_no_event(ledger: Ledger) -> None:
    """Names and passwords that nobody can have are errors, the same for users and strangers."""
    await ledger.users.register(username="ann", password="secret")
    bad = (("ann", ""), ("x", "y" * 1025), ("", "x"), ("a" * 256, "x"), ("\ud800", "x"))
    for username, password in bad:
        with pytest.raises(InvalidCommand):
            await ledger.users.login(username=username, password=password)
    with pytest.raises(InvalidCommand, match=r"RegisterUser\.password: must have 1 to 1024"):
        await ledger.users.register(username="bob", password="")
    with pytest.raises(InvalidCommand, match=r"ChangePassword\.password"):
        await ledger.users.change_password(user_id=uuid4(), password="")
    assert await ledger.journal.size() == 1


async def test_an_old_hash_is_upgraded(ledger: Ledger, clock: Clock) -> None:
    """The original format logs in and is replaced in the same append; wrong ones do not."""
    digest = hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", 100_000).hex()
    ann = uuid4()
    registered = UserRegistered(user_id=ann, username="ann", password_hash=f"{digest}:salt")
    await ledger.journal.append(NewEvent(registered))
    assert not (await wrong(ledger)).succeeded
    login = await right(ledger)
    assert login.succeeded
    assert login.appended
    assert len(login.appended.offsets) == 2
    [changed] = [e for e in await stored(ledger.journal) if isinstance(e, PasswordChanged)]
    assert changed.upgraded
    assert (changed.password_hash or "").startswith("$argon2id$")
    assert (await right(ledger)).succeeded
    assert (await kinds(ledger.journal))["PasswordChanged"] == 1


@pytest.mark.parametrize("name", ["ann", "nobody"])
async def test_a_lock_is_right_to_the_microsecond(ledger: Ledger, clock: Clock, name: str) -> None:
    """The fifth failure locks, also a name that nobody has; at its end the count is a new one."""
    ann = (await ledger.users.register(username="ann", password="secret")).user_id
    until = START + timedelta(seconds=900)
    for number in range(5):
        login = await wrong(ledger, name)
        assert login.reason == LoginReason.WRONG_PASSWORD
        assert login.locked_until == (until if number == 4 else None)
    clock.now = until - TICK
    login = await right(ledger, name)
    assert (login.succeeded, login.reason, login.locked_until) == (False, LoginReason.LOCKED, until)
    clock.now = until
    for _ in range(4):
        assert (await wrong(ledger, name)).locked_until is None
    assert (await right(ledger, name)).succeeded == (name == "ann")
    locks = [e for e in await stored(ledger.journal) if isinstance(e, AccountLocked)]
    digest = name_digest("nobody", await ledger.journal.privacy.name_key())
    assert locks[0] == AccountLocked(
        user_id=ann if name == "ann" else None,
        locked_until=until,
        reason="5 failed logins",
        username=None if name == "ann" else "no…",
        name_digest=None if name == "ann" else digest,
    )


async def test_locking_and_unlocking_by_hand(ledger: Ledger, clock: Clock) -> None:
    """A lock holds until its time or until it is lifted, which also forgets failures."""
    ann = (await ledger.users.register(username="ann", password="secret")).user_id
    until = START + timedelta(hours=1)
    await ledger.users.lock(user_id=ann, locked_until=until, reason="fraud")
    assert (await right(ledger)).locked_until == until
    await ledger.users.unlock(user_id=ann)
    with pytest.raises(CommandRefused):
        await ledger.users.unlock(user_id=ann)
    for _ in range(5):
        await wrong(ledger)
    assert (await right(ledger)).reason == LoginReason.LOCKED
    await ledger.users.unlock(user_id=ann)
    for _ in range(4):
        assert (await wrong(ledger)).locked_until is None
    assert (await right(ledger)).succeeded


async def test_a_stranger_cannot_be_told_from_a_user(database_url: str) -> None:
    """The same kinds of events in the same number, and the same time within a factor of two.

    That holds for a user who is deactivated, too.
    """
    hasher = PasswordHasher()
    async with a_ledger(database_url, hasher=hasher, login_failures_max=100) as ledger:
        ann = (await ledger.users.register(username="ann", password="secret")).user_id
        bob = (await ledger.users.register(username="bob", password="secret")).user_id
        await ledger.users.deactivate(user_id=bob)
        begin = await ledger.journal.size()
        seconds: dict[str, list[float]] = {"ann": [], "bob": [], "nobody": []}
        for _ in range(9):
            for name, times in seconds.items():
                begun = time.perf_counter()
                login = await wrong(ledger, name)
                times.append(time.perf_counter() - begun)
                assert (login.user_id, login.reason) == (None, LoginReason.WRONG_PASSWORD)
        streams: dict[str, list[str]] = {}
        for recorded in await read_all(ledger.journal, begin):
            streams.setdefault(recorded.stream, []).append(recorded.type)
        name_key = await ledger.journal.privacy.name_key()
    stranger = f"login-{name_digest('nobody', name_key)}"
    assert set(streams) == {user_stream(ann), user_stream(bob), stranger}
    assert list(streams.values()) == [["LoginAttempted", "LoginFailed"] * 9] * 3
    for name in ("ann", "bob"):
        ratio = statistics.median(seconds[name]) / statistics.median(seconds["nobody"])
        assert 0.5 < ratio < 2


async def test_strangers_are_counted_under_one_key(database_url: str, clock: Clock) -> None:
    """Processes with the same LEDGER_NAME_KEY meet in one stream, which the key alone can name."""
    key = "a key that is long enough"
    settings = settings_for(database_url).model_copy(update={"name_key": SecretStr(key)})
    passwords = Passwords(PasswordHasher(**CHEAP))
    async with (
        open_ledger(settings, clock=clock, passwords=passwords) as one,
        open_ledger(settings, clock=clock, passwords=passwords) as two,
    ):
        for service in (one, two, one, two, one):
            assert (await wrong(service, "Nobody")).reason == LoginReason.WRONG_PASSWORD
        assert (await wrong(two, "nobody ")).reason == LoginReason.LOCKED
        assert (await two.api_keys.use(presented="x", action="GET")).reason == "malformed"
        events = await read_all(one.journal)
    assert events[-1].event.presented == digest_of("x", key.encode())  # type: ignore[attr-defined]
    digest = name_digest("nobody", key.encode())
    assert {each.stream for each in events[:-1]} == {f"login-{digest}", f"login-refused-{digest}"}
    assert not [each for each in events if b"obody" in each.body]
    with pytest.raises(ValidationError):
        Settings.model_validate({"name_key": "too short"})


async def test_the_bound_on_failures_leaves_room_for_their_burial(
    database_url: str, clock: Clock
) -> None:
    """Whatever number of attempts died, the account is only locked, and can be unlocked."""
    with pytest.raises(ValidationError):
        settings_for(database_url, login_failures_max=101)
    async with a_ledger(database_url, clock, login_failures_max=100) as ledger:
        ann = (await ledger.users.register(username="ann", password="secret")).user_id
        ends = clock.now + timedelta(seconds=30)
        died = [
            NewEvent(LoginAttempted(user_id=ann, attempt_id=uuid4(), expires_at=ends))
            for _ in range(1000)
        ]
        await ledger.journal.append(died)
        clock.move(30)
        assert (await right(ledger)).reason == LoginReason.LOCKED
        await ledger.users.unlock(user_id=ann)
        assert (await right(ledger)).succeeded


class Late(Journal):
    """A journal in which somebody else changes the user first, and time passes, before a lock."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        super().__init__(journal.store, JournalInfo(journal.journal_id, journal.name, 0, START))
        self.clock = clock
        self.is_late = False

    async def append(
        self, events: NewEvent | Sequence[NewEvent], *conditions: Condition
    ) -> Appended:
        """Let that happen once, then append."""
        listed = (events,) if isinstance(events, NewEvent) else tuple(events)
        locks = [each.event for each in listed if isinstance(each.event, AccountLocked)]
        if locks and locks[0].user_id and not self.is_late:
            self.is_late = True
            self.clock.move(25)
            await super().append(NewEvent(RolesChanged(user_id=locks[0].user_id, roles=("r",))))
        return await super().append(events, *conditions)


async def test_a_lock_begins_when_it_is_stored(ledger: Ledger, clock: Clock) -> None:
    """A login that has to be decided anew is so at the time it is by then."""
    await ledger.users.register(username="ann", password="secret")
    passwords = Passwords(PasswordHasher(**CHEAP))
    users = Users(Deciding(Late(ledger.journal, clock)), passwords)
    logins = [await users.login(username="ann", password="wrong") for _ in range(5)]
    assert clock.now == START + timedelta(seconds=25)
    assert logins[-1].locked_until == clock.now + timedelta(seconds=900)
    passwords.close()


class Held(PasswordHasher):
    """A hasher that checks nothing until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        super().__init__(**CHEAP)

    def verify(self, password: str, stored: str | None) -> bool:
        """Wait, then check."""
        self.begun.release()
        self.go.wait()
        return super().verify(password, stored)


async def test_an_attempt_whose_process_died_counts(database_url: str, clock: Clock) -> None:
    """Five attempts that nobody finishes: until they expire no more are let in, then it locks."""
    hasher = Held()
    passwords = Passwords(hasher, threads=5)
    async with a_ledger(database_url, clock) as ledger:
        await ledger.users.register(username="ann", password="secret")
        dying = Users(ledger._deciding, passwords)
        logins = [dying.login(username="ann", password="secret") for _ in range(5)]
        tasks = [asyncio.create_task(login) for login in logins]
        for _ in tasks:
            await asyncio.to_thread(hasher.begun.acquire)
        assert (await right(ledger)).reason == LoginReason.TOO_MANY
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        clock.move(30)
        login = await right(ledger)
        assert login.reason == LoginReason.LOCKED
        assert login.locked_until == clock.now + timedelta(seconds=900)
        reasons = [e.reason for e in await stored(ledger.journal) if isinstance(e, LoginFailed)]
        assert reasons == ["too_many_attempts", *["abandoned"] * 5, "locked"]
        hasher.go.set()
        passwords.close()


async def test_a_lock_meanwhile_refuses_the_right_password(database_url: str, clock: Clock) -> None:
    """A login that is being checked when the account is locked by hand fails."""
    hasher = Held()
    async with a_ledger(database_url, clock, hasher) as ledger:
        ann = (await ledger.users.register(username="ann", password="secret")).user_id
        login = asyncio.create_task(right(ledger))
        await asyncio.to_thread(hasher.begun.acquire)
        until = START + timedelta(hours=1)
        await ledger.users.lock(user_id=ann, locked_until=until)
        hasher.go.set()
        assert ((await login).reason, (await login).locked_until) == (LoginReason.LOCKED, until)


async def test_too_many_logins_are_refused_before_they_are_claimed(database_url: str) -> None:
    """Where no place is left for a check, the caller is told, and no attempt is stored."""
    hasher = Held()
    passwords = Passwords(hasher, threads=1, queue_max=0)
    async with a_ledger(database_url) as ledger:
        users = Users(ledger._deciding, passwords)
        login = asyncio.create_task(users.login(username="ann", password="secret"))
        await asyncio.to_thread(hasher.begun.acquire)
        with pytest.raises(Overloaded):
            await users.login(username="ann", password="secret")
        assert await kinds(ledger.journal) == {"LoginAttempted": 1}
        hasher.go.set()
        await login
    passwords.close()


async def test_services_that_claim_at_the_same_moment(ledger: Ledger, clock: Clock) -> None:
    """Eight services that saw the same state let five attempts in between them."""
    ann = (await ledger.users.register(username="ann", password="secret")).user_id
    passwords = Passwords(PasswordHasher(**CHEAP))
    services = [Users(Deciding(ledger.journal), passwords) for _ in range(8)]
    logins = (each.login(username="ann", password="wrong") for each in services * 2)
    reasons = Counter(login.reason for login in await asyncio.gather(*logins))
    assert reasons[LoginReason.WRONG_PASSWORD] == 5
    assert _tally(_of(ann, await stored(ledger.journal))) == (5, 5, 16, 1)
    passwords.close()


async def test_200_parallel_guesses_from_4_processes(database_url: str, tmp_path: Path) -> None:
    """Five passwords are checked, then it is locked; every attempt is in the audit log."""
    async with a_ledger(database_url) as ledger:
        made = await ledger.users.register(username="ann", password="secret")
        checks = tmp_path / "checks"
        count = GUESSES // PROCESSES
        barrier = multiprocessing.get_context("forkserver").Barrier(PROCESSES)
        work = (log_in_wrongly, database_url, "ann", count, checks, barrier)
        processes = [start(*work) for _ in range(PROCESSES)]
        with ended(processes):
            for process in processes:
                process.join(60)
            assert [process.exitcode for process in processes] == [0] * PROCESSES
        logins = await asyncio.gather(*(right(ledger) for _ in range(10)))
        assert {login.reason for login in logins} == {LoginReason.LOCKED}
        events = await stored(ledger.journal)
        others = PROCESSES  # each process first warmed up with a name that nobody has
        assert checks.read_text().count("checked") == 5 + others
        assert _tally(_of(made.user_id, events)) == (5, 5, GUESSES + 10, 1)
        await _assert_audited(ledger, database_url, GUESSES + 10 + others)


def _of(user_id: UUID, events: list[Event]) -> list[Event]:
    """Return the events about a user, whatever their stream."""
    return [each for each in events if getattr(each, "user_id", None) == user_id]


def _tally(events: list[Event]) -> tuple[int, int, int, int]:
    """Count claims, failures of a check, all failures, and locks."""
    failures = [event for event in events if isinstance(event, LoginFailed)]
    return (
        sum(isinstance(event, LoginAttempted) for event in events),
        sum(event.counts for event in failures),
        len(failures),
        sum(isinstance(event, AccountLocked) for event in events),
    )


async def _assert_audited(ledger: Ledger, url: str, attempts: int) -> None:
    async with Database(settings_for(url)) as database:
        await Projector(database, ledger.journal, TRADING).catch_up()
        rows = (await live_tables(database, TRADING))[SecurityAuditLog.__tablename__].values()
    outcomes = [row for row in rows if row["event_type"] == "LoginFailed"]
    assert (len(outcomes), any(row["success"] for row in outcomes)) == (attempts, False)
    assert Counter(row["event_type"] for row in rows) == await kinds(ledger.journal)


async def test_a_repeated_lock_may_be_over(ledger: Ledger, clock: Clock) -> None:
    """It was set in time: the repetition finds it."""
    user_id = (await ledger.users.register(username="ada")).user_id
    origin, until = Origin(command_id=uuid4()), clock.now + timedelta(seconds=1)
    first = await ledger.users.lock(user_id=user_id, locked_until=until, origin=origin)
    clock.move(2)
    again = await ledger.users.lock(user_id=user_id, locked_until=until, origin=origin)
    assert first.appended
    assert again.appended == Appended(first.appended.offsets, duplicate=True)
    with pytest.raises(InvalidCommand, match="is past"):
        await ledger.users.lock(user_id=user_id, locked_until=until)
