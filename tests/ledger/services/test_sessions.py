"""Sessions on real stores: what is good in one process and over in another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from ledger.decider import Decider
from ledger.deciding import Deciding, Done, Loaded, Origin
from ledger.domain.sessions import SessionEnded, SessionRefreshed, SessionStarted, session_stream
from ledger.domain.users import User
from ledger.errors import (
    AppendOutcomeUnknown,
    CommandRefused,
    InvalidCommand,
    StoreUnavailable,
)
from ledger.event import Metadata, NewEvent
from ledger.security.passwords import PasswordHasher, Passwords
from ledger.security.refresh_tokens import RefreshToken, parse
from ledger.services import Ledger
from ledger.services.sessions import (
    RefreshOutcomeUnknown,
    SessionOpen,
    SessionRules,
    Sessions,
    session_rules,
)
from ledger.services.users import Login, Users
from tests.ledger.services.support import CHEAP, a_ledger, kinds
from tests.ledger.support import Clock, settings_for

S = TypeVar("S")
ADDRESS = "192.0.2.7"


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
async def ledger(database_url: str, clock: Clock) -> AsyncIterator[Ledger]:
    """The facade, by that clock, with the user ann."""
    async with a_ledger(database_url, clock) as opened:
        await opened.users.register(username="ann", password="secret", roles=["trader"])
        yield opened


async def logged_in(ledger: Ledger) -> SessionOpen:
    """Log ann in."""
    opened = await ledger.sessions.start(username="ann", password="secret")
    assert opened is not None
    return opened


async def refreshed(ledger: Ledger, opened: SessionOpen) -> SessionOpen | None:
    """Present the refresh token of an open session."""
    return await ledger.sessions.refresh(refresh_token=opened.refresh_token.reveal())


async def is_good(ledger: Ledger, opened: SessionOpen) -> bool:
    """Whether somebody can act in a session."""
    return await ledger.sessions.check(opened.holder.session_id) is not None


async def test_a_sessions_life(ledger: Ledger) -> None:
    """Each step says what it stored, and the user's roles are those of now."""
    opened = await logged_in(ledger)
    session_id = opened.holder.session_id
    assert opened.holder == await ledger.sessions.check(session_id)
    assert opened.holder.roles == ("trader",)
    again = await refreshed(ledger, opened)
    assert again is not None
    assert again.holder == opened.holder
    assert again.appended.offsets > opened.appended.offsets
    await ledger.users.change_roles(user_id=opened.holder.user_id, roles=["admin"])
    third = await refreshed(ledger, again)
    assert third is not None
    assert third.holder.roles == ("admin",)
    closed = await ledger.sessions.end(session_id=session_id)
    assert closed.appended is not None
    assert not await is_good(ledger, opened)
    assert await refreshed(ledger, third) is None
    assert (await ledger.sessions.end(session_id=session_id)).appended is None
    stored = await ledger.journal.read_stream(session_stream(session_id))
    assert [each.type for each in stored] == [
        "SessionStarted",
        "SessionRefreshed",
        "SessionRefreshed",
        "SessionEnded",
    ]


async def test_a_login_that_is_refused_starts_nothing(ledger: Ledger) -> None:
    """Whatever the reason: a wrong password, nobody of that name, a user who cannot act."""
    assert await ledger.sessions.start(username="ann", password="wrong") is None
    assert await ledger.sessions.start(username="nobody", password="secret") is None
    bob = (await ledger.users.register(username="bob", password="secret")).user_id
    await ledger.users.deactivate(user_id=bob)
    assert await ledger.sessions.start(username="bob", password="secret") is None
    until = ledger.journal.now() + timedelta(hours=1)
    await ledger.users.reactivate(user_id=bob)
    await ledger.users.lock(user_id=bob, locked_until=until)
    assert await ledger.sessions.start(username="bob", password="secret") is None
    assert (await kinds(ledger.journal))["SessionStarted"] == 0
    with pytest.raises(InvalidCommand, match="password"):
        await ledger.sessions.start(username="ann", password="")


async def test_a_used_refresh_token_ends_the_session(ledger: Ledger) -> None:
    """Neither the thief's token nor the owner's is good after the second of them came."""
    opened = await logged_in(ledger)
    again = await refreshed(ledger, opened)
    assert again is not None
    assert await refreshed(ledger, opened) is None
    assert await refreshed(ledger, again) is None
    assert not await is_good(ledger, opened)
    stored = await ledger.journal.read_stream(session_stream(opened.holder.session_id))
    [_, _, ended] = [each.event for each in stored]
    assert isinstance(ended, SessionEnded)
    assert ended.reason == "reused"


async def test_parallel_refreshes_with_one_token(database_url: str) -> None:
    """In two services at once: one is answered at most, and the session is over then."""
    async with a_ledger(database_url) as one, a_ledger(database_url) as two:
        await one.users.register(username="ann", password="secret")
        opened = await logged_in(one)
        answers = await asyncio.gather(
            *(refreshed((one, two)[number % 2], opened) for number in range(10))
        )
        assert sum(each is not None for each in answers) <= 1
        assert not await is_good(one, opened)
        assert not await is_good(two, opened)
        found = await kinds(one.journal)
        assert (found["SessionRefreshed"], found["SessionEnded"]) == (1, 1)


async def test_who_made_a_token_up_can_do_nothing(ledger: Ledger) -> None:
    """What is malformed, or of no session, or knows a session's id only, leaves no trace."""
    opened = await logged_in(ledger)
    size = await ledger.journal.size()
    session_id = opened.holder.session_id
    text = opened.refresh_token.reveal()
    made_up = [RefreshToken.first(each).reveal() for each in (session_id, uuid4())]
    for presented in ("", "lrt_", text[:-1], text + "A", text.upper(), "é" * 127, *made_up):
        assert await ledger.sessions.refresh(refresh_token=presented) is None
    assert await ledger.journal.size() == size
    assert await is_good(ledger, opened)
    with pytest.raises(CommandRefused, match="there is no such session"):
        await ledger.sessions.end(session_id=uuid4())
    assert await ledger.sessions.check(uuid4()) is None


async def test_a_session_of_nobody(ledger: Ledger) -> None:
    """One that was appended by hand, for a user who does not exist, lets nobody in."""
    token = RefreshToken.first(uuid4())
    started = SessionStarted(
        session_id=token.session_id,
        user_id=uuid4(),
        expires_at=ledger.journal.now() + timedelta(hours=1),
        refresh_digest=token.digest,
        family_digest=token.family_digest,
    )
    await ledger.journal.append(NewEvent(started))
    assert await ledger.sessions.check(token.session_id) is None
    assert await ledger.sessions.refresh(refresh_token=token.reveal()) is None


async def test_a_session_ends_at_its_time(ledger: Ledger, clock: Clock) -> None:
    """Refreshing does not make it longer."""
    seconds = ledger.sessions.rules.session.total_seconds()
    opened = await logged_in(ledger)
    assert opened.holder.expires_at == clock.now + ledger.sessions.rules.session
    clock.move(seconds - 1)
    again = await refreshed(ledger, opened)
    assert again is not None
    assert again.holder.expires_at == opened.holder.expires_at
    clock.move(1)
    assert not await is_good(ledger, opened)
    assert await refreshed(ledger, again) is None


async def _change_password(ledger: Ledger, ann: UUID) -> None:
    await ledger.users.change_password(user_id=ann, password="another")


async def _deactivate(ledger: Ledger, ann: UUID) -> None:
    await ledger.users.deactivate(user_id=ann)


async def _deactivate_for_a_moment(ledger: Ledger, ann: UUID) -> None:
    await ledger.users.deactivate(user_id=ann)
    await ledger.users.reactivate(user_id=ann)


async def _end_sessions(ledger: Ledger, ann: UUID) -> None:
    await ledger.users.end_sessions(user_id=ann, reason="lost laptop")


async def _erase(ledger: Ledger, ann: UUID) -> None:
    await ledger.users.erase(user_id=ann, reason="request 7")


ENDINGS = [_change_password, _deactivate, _deactivate_for_a_moment, _end_sessions, _erase]
Ending = Callable[[Ledger, UUID], Awaitable[None]]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__.strip("_"))
async def test_what_ends_all_sessions(database_url: str, ending: Ending) -> None:
    """In another process too, at once, and for good; nothing is stored for each session."""
    async with a_ledger(database_url) as one, a_ledger(database_url) as two:
        await one.users.register(username="ann", password="secret")
        opened, other = await logged_in(one), await logged_in(one)
        assert await is_good(two, opened)
        await ending(one, opened.holder.user_id)
        for each in (opened, other):
            assert not await is_good(two, each)
            assert await refreshed(two, each) is None
        assert (await kinds(one.journal))["SessionEnded"] == 0


async def test_another_session_can_be_started_then(ledger: Ledger) -> None:
    """Those who logged out everywhere can log in again."""
    opened = await logged_in(ledger)
    await _end_sessions(ledger, opened.holder.user_id)
    again = await logged_in(ledger)
    assert await is_good(ledger, again)
    assert not await is_good(ledger, opened)


class Interrupted(Users):
    """Users of whom each gets another password right after the old one was checked."""

    async def login(self, **given: Any) -> Login:
        """Log in, then give the user another password."""
        login = await super().login(**given)
        assert login.user_id is not None
        await self.change_password(user_id=login.user_id, password="another")
        return login


async def test_no_session_of_a_password_that_was_changed_meanwhile(ledger: Ledger) -> None:
    """The change falls between the login and the start of the session."""
    deciding, passwords = Deciding(ledger.journal), Passwords(PasswordHasher(**CHEAP))
    users = Interrupted(deciding, passwords)
    assert await Sessions(deciding, users).start(username="ann", password="secret") is None
    assert (await kinds(ledger.journal))["SessionStarted"] == 0
    users.close()


class Overtaken(Deciding):
    """Decides by users of whom each gets another password right after it was loaded."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger.journal)
        self._users = ledger.users

    async def load(self, decider: Decider[Any, S], stream: str) -> Loaded[S]:
        """Load a state; a user's is out of date by then."""
        loaded = await super().load(decider, stream)
        if isinstance(loaded.state, User) and loaded.state.password_changes == 0:
            user_id = UUID(stream.removeprefix("user-"))
            await self._users.change_password(user_id=user_id, password="another")
        return loaded


async def test_no_refresh_after_a_password_was_changed(ledger: Ledger) -> None:
    """The change falls between the decision and the append."""
    opened = await logged_in(ledger)
    late = Sessions(Overtaken(ledger), ledger.users)
    assert await late.refresh(refresh_token=opened.refresh_token.reveal()) is None
    assert (await kinds(ledger.journal))["SessionRefreshed"] == 0


class Leaving(Deciding):
    """Decides by a database that is away as soon as something was stored."""

    is_away = False

    async def load(self, decider: Decider[Any, S], stream: str) -> Loaded[S]:
        """Load a state, as long as the database is there."""
        if self.is_away:
            raise StoreUnavailable("it is away")
        return await super().load(decider, stream)

    async def execute(self, *given: Any, **named: Any) -> Done[Any]:
        """Store what was decided; then nothing can be read."""
        done = await super().execute(*given, **named)
        self.is_away = True
        return done


class Losing(Deciding):
    """Decides by a database whose answers to appends are lost."""

    async def execute(self, *given: Any, **named: Any) -> Done[Any]:
        """Store what was decided, and do not know of it."""
        await super().execute(*given, **named)
        raise AppendOutcomeUnknown("lost")


async def test_what_is_refreshed_is_answered(ledger: Ledger) -> None:
    """The old token is used up, so the new one is given out, whatever happens after the append."""
    opened = await logged_in(ledger)
    leaving = Sessions(Leaving(ledger.journal), ledger.users)
    again = await leaving.refresh(refresh_token=opened.refresh_token.reveal())
    assert again is not None
    assert again.holder == opened.holder
    assert await refreshed(ledger, again) is not None
    leaving = Sessions(Leaving(ledger.journal), ledger.users)
    assert await leaving.start(username="ann", password="secret") is not None


async def test_a_refresh_of_unknown_outcome_is_not_to_be_repeated(ledger: Ledger) -> None:
    """The error is one of its own, since other appends are to be repeated."""
    opened = await logged_in(ledger)
    losing = Sessions(Losing(ledger.journal), ledger.users)
    with pytest.raises(RefreshOutcomeUnknown):
        await losing.refresh(refresh_token=opened.refresh_token.reveal())
    assert await is_good(ledger, opened)
    assert await refreshed(ledger, opened) is None
    assert not await is_good(ledger, opened)


async def test_a_command_id_does_not_repeat_a_login(ledger: Ledger) -> None:
    """Nor a refresh: only digests of the first answer's tokens are there to be given again."""
    origin = Origin(command_id=uuid4())
    both = [
        await ledger.sessions.start(username="ann", password="secret", origin=origin)
        for _ in range(2)
    ]
    assert len({each and each.holder.session_id for each in both} - {None}) == 2


async def test_where_somebody_was_is_encrypted(ledger: Ledger) -> None:
    """The ip addresses of a session's events are gone once its user is erased."""
    origin = Origin(metadata=Metadata(ip_address=ADDRESS))
    opened = await ledger.sessions.start(username="ann", password="secret", origin=origin)
    assert opened is not None
    await ledger.sessions.refresh(refresh_token=opened.refresh_token.reveal(), origin=origin)
    await ledger.sessions.end(session_id=opened.holder.session_id, origin=origin)
    stream = session_stream(opened.holder.session_id)
    before = await ledger.journal.read_stream(stream)
    assert [each.metadata.ip_address for each in before] == [ADDRESS] * 3
    await _erase(ledger, opened.holder.user_id)
    after = await ledger.journal.read_stream(stream)
    assert [each.erased for each in after] == [("ip_address",)] * 3


async def test_no_secret_is_stored_or_shown(ledger: Ledger) -> None:
    """The journal has digests, and a token shows itself only when it is asked to."""
    opened = await logged_in(ledger)
    again = await refreshed(ledger, opened)
    stored = await ledger.journal.read_stream(session_stream(opened.holder.session_id))
    [started, renewed] = [each.event for each in stored]
    assert isinstance(started, SessionStarted)
    assert isinstance(renewed, SessionRefreshed)
    token = opened.refresh_token
    assert (started.refresh_digest, started.family_digest) == (token.digest, token.family_digest)
    assert again is not None
    assert renewed.refresh_digest == again.refresh_token.digest != token.digest
    parts = [token.reveal()[-86:-43], token.reveal()[-43:]]
    shown = f"{opened!r} {opened} {token!r} {SessionRules(token_key=SecretStr('k' * 32))}"
    for part in (*parts, "k" * 32):
        assert part not in shown
        assert all(part not in str(each.body) for each in stored)
    parsed = parse(token.reveal())
    assert parsed is not None
    assert parsed.reveal() == token.reveal()
    assert len(set(parts)) == 2


async def test_the_key_of_tokens(database_url: str) -> None:
    """It is the journal's own, the same in each process and of no use for names, or the setting.

    Where the database has all that it follows from, it takes a server for it to be the same: in a
    SQLite file it would be there for whoever has a copy.
    """
    async with a_ledger(database_url) as one, a_ledger(database_url) as two:
        first, second = await one.sessions.token_key(), await two.sessions.token_key()
        own = await Sessions(Deciding(one.journal), one.users).token_key()
        is_sqlite = database_url.startswith("sqlite")
        assert len({first, second, own}) == (3 if is_sqlite else 1)
        assert second == await two.sessions.token_key()
        assert min(map(len, (first, second, own))) >= 32
        assert own != await one.journal.privacy.name_key()
        for name, expected in (
            ("token_key", b"k" * 32),
            ("name_key", own),
            ("master_key", own),
        ):
            change = {name: SecretStr("k" * 32)}
            settings = settings_for(database_url).model_copy(update=change)
            sessions = Sessions(Deciding(one.journal), one.users, session_rules(settings))
            assert await sessions.token_key() == expected
