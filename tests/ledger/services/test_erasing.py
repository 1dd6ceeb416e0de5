"""Erasing users on real stores: what is gone, what is free again, and what happens meanwhile."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any
from unittest import mock
from uuid import UUID, uuid4

import pytest

from ledger.conditions import Condition
from ledger.deciding import Deciding, Origin
from ledger.domain.api_keys import ApiKeyRefused, KeyReason
from ledger.domain.users import (
    EmailChanged,
    LegalHoldPlaced,
    LoginFailed,
    LoginReason,
    UserErased,
    UserRegistered,
    name_digest,
    user_stream,
    username_tag,
)
from ledger.errors import CommandRefused, InvalidCommand, StoreUnavailable, TagTaken
from ledger.event import Event, Metadata, NewEvent, RecordedEvent
from ledger.journal import Journal
from ledger.security.passwords import PasswordHasher, Passwords
from ledger.services import Ledger
from ledger.services.users import Erased, ErasureUnfinished, Users
from ledger.stores import Appended, JournalInfo
from tests.ledger.services.support import CHEAP, a_ledger, kinds
from tests.ledger.services.workers import die_while_erasing
from tests.ledger.support import START, append_unasked, read_all
from tests.ledger.workers import ended, start
from tests.postgres import PostgresServer

NAME, EMAIL, IP = "annabelle", "annabelle@example.org", "203.0.113.77"
ORIGIN = Origin(metadata=Metadata(ip_address=IP, actor="gateway"))
ROUNDS = 10


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    """The facade."""
    async with a_ledger(database_url) as opened:
        yield opened


@pytest.fixture
async def ann(ledger: Ledger) -> UUID:
    """A user with a name, an address and a password."""
    made = await ledger.users.register(username=NAME, email=EMAIL, password="secret", origin=ORIGIN)
    return made.user_id


async def erase(ledger: Ledger, user_id: UUID, origin: Origin = ORIGIN) -> Erased:
    """Erase a user."""
    return await ledger.users.erase(user_id=user_id, reason="request 7", origin=origin)


async def of_stream(ledger: Ledger, user_id: UUID) -> list[RecordedEvent]:
    """Return the events of a user's stream."""
    return await ledger.journal.read_stream(user_stream(user_id))


async def test_the_data_is_gone_and_the_names_are_free(ledger: Ledger, ann: UUID) -> None:
    """Nothing personal is read any more; another user can have the same name and address."""
    await ledger.users.login(username=NAME, password="secret", source="desk 7", origin=ORIGIN)
    done = await erase(ledger, ann)
    assert done == Erased(ann, Appended((3,)), key_destroyed=True, plain_events=0)
    events = await of_stream(ledger, ann)
    assert events[0].erased == ("username", "email", "password_hash", "ip_address")
    assert not any(each.metadata.ip_address for each in events)
    assert {each.metadata.actor for each in events} == {"gateway"}
    assert not [each for each in events if b"annabelle" in each.body.lower()]
    assert await ledger.journal.privacy.is_destroyed(user_stream(ann))
    again = await ledger.users.register(username=NAME, email=EMAIL, password="other")
    assert again.user_id != ann
    login = await ledger.users.login(username=EMAIL, password="other")
    assert (login.succeeded, login.user_id) == (True, again.user_id)


async def test_the_old_name_is_one_that_nobody_has(ledger: Ledger, ann: UUID) -> None:
    """A login under it goes to the stream of a stranger, also with what was the password."""
    await erase(ledger, ann)
    size = await ledger.journal.size()
    for name in (NAME, EMAIL):
        login = await ledger.users.login(username=name, password="secret")
        assert (login.succeeded, login.reason) == (False, LoginReason.WRONG_PASSWORD)
    names = (NAME, EMAIL)
    digests = {name_digest(each, await ledger.journal.privacy.name_key()) for each in names}
    streams = {each.stream for each in await read_all(ledger.journal, size)}
    assert streams == {f"login-{digest}" for digest in digests}


async def test_erasing_again_finds_all_done(ledger: Ledger, ann: UUID) -> None:
    """The same command, with or without its id, adds nothing and says what there is."""
    origin = Origin(command_id=uuid4())
    first = await erase(ledger, ann, origin)
    assert (first.appended, first.key_destroyed) == (Appended((1,)), True)
    size = await ledger.journal.size()
    again = await erase(ledger, ann, origin)
    assert (again.appended, again.key_destroyed) == (Appended((1,), duplicate=True), False)
    other = await erase(ledger, ann)
    assert (other.appended, other.key_destroyed, other.plain_events) == (None, False, 0)
    assert await ledger.journal.size() == size


async def test_nobody_else_is_touched(ledger: Ledger, ann: UUID) -> None:
    """The data of other users, and of names that nobody has, can be read as before."""
    bob = (await ledger.users.register(username="bob", email="bob@x", origin=ORIGIN)).user_id
    await ledger.users.login(username="stranger", password="x", source="far", origin=ORIGIN)
    await ledger.users.change_roles(user_id=bob, roles=["r"], origin=ORIGIN)
    before = [each for each in await read_all(ledger.journal) if each.stream != user_stream(ann)]
    await erase(ledger, ann)
    after = [each for each in await read_all(ledger.journal) if each.stream != user_stream(ann)]
    assert after == before
    assert {each.metadata.ip_address for each in after} == {IP}


async def test_commands_of_before_can_be_repeated(ledger: Ledger) -> None:
    """A registration is answered as before; what would change an erased user is refused."""
    origin = Origin(command_id=uuid4())
    made = await ledger.users.register(username=NAME, email=EMAIL, origin=origin)
    changed = await ledger.users.change_email(user_id=made.user_id, email="b@x", origin=origin)
    await erase(ledger, made.user_id)
    await ledger.users.register(username=NAME, email=EMAIL)
    again = await ledger.users.register(username=NAME, email=EMAIL, origin=origin)
    assert made.appended
    assert again.appended
    assert (again.user_id, again.appended.offsets) == (made.user_id, made.appended.offsets)
    email = await ledger.users.change_email(user_id=made.user_id, email="b@x", origin=origin)
    assert changed.appended
    assert email.appended
    assert email.appended.offsets == changed.appended.offsets
    with pytest.raises(CommandRefused, match="in state erased: there is no such user"):
        await ledger.users.change_email(user_id=made.user_id, email="c@x")
    with pytest.raises(CommandRefused, match="in state erased: a user with this id exists"):
        await ledger.users.register(username="new", user_id=made.user_id)


async def test_the_keys_of_an_erased_user_are_refused(
    ledger: Ledger, ann: UUID, database_url: str
) -> None:
    """Whoever knew the key before, and whoever did not; the refusals are stored, without a source.

    The key's own hash is gone, so who looks it up now cannot tell it from one that is made up; but
    whose it was is known, so nothing personal is stored.
    """
    issued = await ledger.api_keys.issue(user_id=ann, name="laptop", origin=ORIGIN)
    assert issued.key
    key = issued.key.reveal()
    use: dict[str, Any] = {"presented": key, "action": "GET", "source": "desk 7"}
    assert (await ledger.api_keys.use(**use)).accepted
    await erase(ledger, ann)
    assert (await ledger.api_keys.use(**use)).reason == KeyReason.USER_INACTIVE
    async with a_ledger(database_url) as other:
        assert (await other.api_keys.use(**use)).reason == KeyReason.UNKNOWN
    refused = [e for e in await read_all(ledger.journal) if isinstance(e.event, ApiKeyRefused)]
    assert [each.event.key_id for each in refused] == [issued.key_id] * 2  # type: ignore[attr-defined]
    assert [each.erased for each in refused] == [("source",)] * 2
    with pytest.raises(CommandRefused, match="in state erased: the user must be active"):
        await ledger.api_keys.issue(user_id=ann, name="other")
    assert (await ledger.api_keys.revoke(key_id=issued.key_id)).appended
    [first] = await ledger.journal.read_stream(f"apikey-{issued.key_id}", limit=1)
    assert first.erased == ("name", "key_hash", "ip_address")


class Meeting(Journal):
    """A journal in which something else happens first, once, when an event is appended."""

    def __init__(self, journal: Journal, kind: type[Event], *first: NewEvent) -> None:
        info = JournalInfo(journal.journal_id, journal.name, 0, START)
        super().__init__(journal.store, info, keys=journal.privacy.keys)
        self._kind, self._first = kind, first

    async def append(
        self, events: NewEvent | Sequence[NewEvent], *conditions: Condition
    ) -> Appended:
        """Let it happen, then append."""
        listed = (events,) if isinstance(events, NewEvent) else tuple(events)
        if any(isinstance(each.event, self._kind) for each in listed):
            first, self._first = self._first, ()
            await append_unasked(self, *first)
        return await super().append(events, *conditions)


def users_of(journal: Journal) -> Users:
    """Return the commands for users on a journal."""
    return Users(Deciding(journal), Passwords(PasswordHasher(**CHEAP)))


async def test_a_hold_forbids_erasing(ledger: Ledger, ann: UUID) -> None:
    """Nothing is stored and no key destroyed, until the hold is lifted."""
    await ledger.users.hold(user_id=ann, reason="case 1")
    size = await ledger.journal.size()
    with pytest.raises(CommandRefused, match="EraseUser is refused in state held: the user is un"):
        await erase(ledger, ann)
    with pytest.raises(CommandRefused, match="HoldUser is refused in state held"):
        await ledger.users.hold(user_id=ann, reason="case 2")
    with pytest.raises(InvalidCommand, match=r"HoldUser\.reason: must not be empty"):
        await ledger.users.hold(user_id=ann, reason="")
    assert await ledger.journal.size() == size
    assert not await ledger.journal.privacy.is_destroyed(user_stream(ann))
    assert (await ledger.users.login(username=NAME, password="secret")).succeeded
    await ledger.users.release(user_id=ann, reason="closed")
    with pytest.raises(CommandRefused, match="ReleaseUser is refused in state active"):
        await ledger.users.release(user_id=ann, reason="closed")
    assert (await erase(ledger, ann)).key_destroyed


async def test_a_hold_in_the_last_moment_forbids_erasing(ledger: Ledger, ann: UUID) -> None:
    """It was not there when the erasure was decided, but when it was to be stored."""
    placed = NewEvent(LegalHoldPlaced(user_id=ann, reason="case 1"))
    users = users_of(Meeting(ledger.journal, UserErased, placed))
    with pytest.raises(CommandRefused, match="in state held"):
        await users.erase(user_id=ann, reason="request")
    assert (await kinds(ledger.journal))["UserErased"] == 0
    assert not await ledger.journal.privacy.is_destroyed(user_stream(ann))


async def test_a_hold_and_an_erasure_at_once(ledger: Ledger, database_url: str) -> None:
    """One of them is refused: a user is held and whole, or erased."""
    async with a_ledger(database_url) as other:
        for number in range(ROUNDS):
            user_id = (await ledger.users.register(username=f"user {number}")).user_id
            found = await asyncio.gather(
                erase(ledger, user_id),
                other.users.hold(user_id=user_id, reason="case 1"),
                return_exceptions=True,
            )
            was_erased, was_held = [not isinstance(each, CommandRefused) for each in found]
            assert was_erased != was_held
            destroyed = await ledger.journal.privacy.is_destroyed(user_stream(user_id))
            assert destroyed == was_erased


async def test_an_unknown_user_is_not_erased(ledger: Ledger) -> None:
    """A wrong id is told, and destroys nothing."""
    user_id = uuid4()
    with pytest.raises(CommandRefused, match="in state unknown: there is no such user"):
        await erase(ledger, user_id)
    assert await ledger.journal.privacy.erasures() == 0


async def test_an_erasure_that_could_not_be_finished_is(ledger: Ledger, ann: UUID) -> None:
    """Where the keys' database is away, the error says what to do; doing it finishes the work."""
    away = mock.AsyncMock(side_effect=StoreUnavailable("away"))
    message = f"user {ann} counts as erased, .* could not be finished: away; erase the user again"
    with (
        mock.patch.object(ledger.journal.privacy, "destroy", away),
        pytest.raises(ErasureUnfinished, match=message) as unfinished,
    ):
        await erase(ledger, ann)
    assert (unfinished.value.exit_code, unfinished.value.user_id) == (3, ann)
    done = await erase(ledger, ann)
    assert (done.appended, done.key_destroyed) == (None, True)


async def test_a_mere_service_cannot_finish_an_erasure(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    """Destroying keys takes a role of its own; whoever has it finishes what the service began."""
    database = postgres_url.rpartition("/")[2]
    name = f"service_{database}"
    postgres_server.psql(f"CREATE ROLE {name} LOGIN; GRANT ledger_service TO {name}")
    try:
        async with a_ledger(postgres_server.url(database, name)) as service:
            ann = (await service.users.register(username=NAME)).user_id
            with pytest.raises(ErasureUnfinished, match="permission denied for table subject_keys"):
                await erase(service, ann)
        postgres_server.psql(f"GRANT ledger_eraser TO {name}")
        async with a_ledger(postgres_server.url(database, name)) as eraser:
            done = await erase(eraser, ann)
            assert (done.appended, done.key_destroyed) == (None, True)
    finally:
        postgres_server.psql(f"DROP OWNED BY {name}", database)
        postgres_server.psql(f"DROP ROLE {name}")


async def test_an_erasure_of_a_killed_process_is_finished(
    ledger: Ledger, ann: UUID, database_url: str
) -> None:
    """The event comes first, so that what was begun is known, and the next call ends it."""
    process = start(die_while_erasing, database_url, ann)
    with ended([process]):
        await asyncio.to_thread(process.join, 60)
        assert process.exitcode == -signal.SIGKILL
    assert not await ledger.journal.privacy.is_destroyed(user_stream(ann))
    done = await erase(ledger, ann)
    assert (done.appended, done.key_destroyed) == (None, True)
    assert (await kinds(ledger.journal))["UserErased"] == 1
    assert await ledger.journal.privacy.is_destroyed(user_stream(ann))


async def test_a_login_under_way_ends_without_a_trace_of_the_name(
    ledger: Ledger, ann: UUID
) -> None:
    """Its user is erased while the password is checked: it fails, and only that is stored."""
    erased = asyncio.Event()
    verify = PasswordHasher.verify
    loop = asyncio.get_running_loop()

    def slowly(self: PasswordHasher, password: str, hashed: str | None) -> bool:
        asyncio.run_coroutine_threadsafe(erase(ledger, ann), loop).result(60)
        loop.call_soon_threadsafe(erased.set)
        return verify(self, password, hashed)

    with mock.patch.object(PasswordHasher, "verify", slowly):
        login = await ledger.users.login(username=NAME, password="secret", source="desk 7")
    assert erased.is_set()
    assert (login.succeeded, login.reason) == (False, LoginReason.INACTIVE)
    last = (await of_stream(ledger, ann))[-1]
    assert isinstance(last.event, LoginFailed)
    assert last.erased == ("username", "source")
    assert b"annabelle" not in last.body


async def an_older_user(ledger: Ledger, name: str = NAME, email: str | None = EMAIL) -> UUID:
    """Store a registration as a release did that neither encrypted nor had a key for digests."""
    registered = UserRegistered(user_id=uuid4(), username=name, email=email, password_hash="hash")
    await append_unasked(ledger.journal, NewEvent(registered, metadata=Metadata(ip_address=IP)))
    return registered.user_id


async def test_the_names_of_older_users_are_theirs(ledger: Ledger) -> None:
    """They log in, and nobody else gets their names; the error holds no digest without a key."""
    old = await an_older_user(ledger)
    await ledger.users.change_password(user_id=old, password="secret")
    for name in (NAME, EMAIL.upper()):
        assert (await ledger.users.login(username=name, password="secret")).user_id == old
    bob = (await ledger.users.register(username="bob")).user_id
    key = await ledger.journal.privacy.name_key()
    with pytest.raises(TagTaken) as taken:
        await ledger.users.register(username="Annabelle")
    assert (taken.value.tag, taken.value.offset) == (username_tag(NAME, key), 0)
    for attempt in (
        ledger.users.register(username="carl", email=EMAIL),
        ledger.users.change_email(user_id=bob, email=EMAIL),
    ):
        with pytest.raises(TagTaken, match="since offset 0") as taken:
            await attempt
        assert taken.value.tag == f"email:{name_digest(EMAIL, key)}"
    same = await ledger.users.change_email(user_id=old, email="Annabelle@example.org")
    assert same.appended
    assert (await ledger.users.login(username=EMAIL, password="secret")).user_id == old
    with pytest.raises(TagTaken):
        await ledger.users.register(username="carl", email=EMAIL)
    await ledger.users.change_email(user_id=old, email=None)
    assert (await ledger.users.register(username="carl", email=EMAIL)).appended


async def test_a_name_that_an_older_release_takes_meanwhile_is_taken(ledger: Ledger) -> None:
    """Both releases may run for a while; the name is claimed once."""
    old = NewEvent(UserRegistered(user_id=uuid4(), username=NAME))
    users = users_of(Meeting(ledger.journal, UserRegistered, old))
    with pytest.raises(TagTaken):
        await users.register(username=NAME)
    assert (await kinds(ledger.journal))["UserRegistered"] == 1
    changed = NewEvent(EmailChanged(user_id=old.event.user_id, email=EMAIL))  # type: ignore[attr-defined]
    bob = (await ledger.users.register(username="bob")).user_id
    users = users_of(Meeting(ledger.journal, EmailChanged, changed))
    with pytest.raises(TagTaken):
        await users.change_email(user_id=bob, email=EMAIL)


async def test_a_repeated_command_is_answered_whoever_has_the_name_by_now(ledger: Ledger) -> None:
    """Also where it was given to a user of an older release meanwhile."""
    bob = (await ledger.users.register(username="bob")).user_id
    origin = Origin(command_id=uuid4())
    first = await ledger.users.change_email(user_id=bob, email=EMAIL, origin=origin)
    await ledger.users.change_email(user_id=bob, email=None)
    await an_older_user(ledger)
    again = await ledger.users.change_email(user_id=bob, email=EMAIL, origin=origin)
    assert first.appended
    assert again.appended == Appended(first.appended.offsets, duplicate=True)


async def test_what_stands_in_plain_is_counted(ledger: Ledger) -> None:
    """An older release's events cannot be erased; the names they claimed are free all the same."""
    old = await an_older_user(ledger)
    await append_unasked(ledger.journal, NewEvent(LoginFailed(username=NAME, user_id=old)))
    await ledger.users.change_password(user_id=old, password="secret")
    await ledger.users.login(username=NAME, password="secret", source="desk 7", origin=ORIGIN)
    done = await erase(ledger, old)
    assert (done.key_destroyed, done.plain_events) == (True, 2)
    assert (await erase(ledger, old)).plain_events == 2
    readable = [each for each in await of_stream(ledger, old) if each.metadata.ip_address]
    assert [each.version for each in readable] == [1]
    login = await ledger.users.login(username=EMAIL, password="secret")
    assert login.reason == LoginReason.WRONG_PASSWORD
    again = (await ledger.users.register(username=NAME, email=EMAIL, password="other")).user_id
    assert (await ledger.users.login(username=NAME, password="other")).user_id == again


async def test_an_address_that_only_the_metadata_has_is_counted(ledger: Ledger) -> None:
    """It is about the user as well, whatever the event says."""
    old = await an_older_user(ledger, "bob", None)
    hold = LegalHoldPlaced(user_id=old, reason="case 1")
    await append_unasked(ledger.journal, NewEvent(hold, metadata=Metadata(ip_address=IP)))
    await ledger.users.release(user_id=old, reason="closed", origin=ORIGIN)
    assert (await erase(ledger, old)).plain_events == 2


async def test_messages_show_no_personal_value(ledger: Ledger, ann: UUID) -> None:
    """Whoever reads a program's log learns no name and no address."""
    wrong = [
        ledger.users.register(username=f" {NAME}"),
        ledger.users.register(username=f"{NAME}\0"),
        ledger.users.register(username=EMAIL),
        ledger.users.register(username="bob", email=f"{NAME}@"),
        ledger.users.register(username=NAME),
        ledger.users.register(username="bob", email=EMAIL),
        ledger.users.register(username=NAME, user_id=ann),
        ledger.users.change_email(user_id=ann, email=f"{EMAIL} x"),
        ledger.users.login(username=f"{NAME}\0", password="x"),
        ledger.api_keys.issue(user_id=ann, name=f" {NAME}"),
        ledger.users.change_email(user_id=uuid4(), email=EMAIL),
    ]
    errors = await asyncio.gather(*wrong, return_exceptions=True)
    assert {type(each) for each in errors} == {InvalidCommand, TagTaken, CommandRefused}
    assert not [each for each in errors if NAME in f"{each} {each!r}".lower()]
    assert not [each for each in errors if name_digest(NAME) in str(each)]
