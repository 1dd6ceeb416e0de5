"""Deciding for sessions: started once, refreshed by the latest token only, over for good."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from ledger.codec import NO_METADATA
from ledger.domain.sessions import (
    SESSION,
    EndReason,
    EndSession,
    RefreshSession,
    Session,
    SessionEnded,
    SessionRefreshed,
    SessionStarted,
    StartSession,
    decide,
    evolve,
    session_stream,
)
from ledger.domain.users import (
    ENDS_SESSIONS,
    USER,
    EndSessions,
    PasswordChanged,
    RolesChanged,
    SessionsEnded,
    User,
    UserDeactivated,
    UserErased,
    UserReactivated,
    UserRegistered,
    user_stream,
)
from ledger.domain.users import decide as decide_user
from ledger.errors import CommandRefused, InvalidCommand
from ledger.event import Event, RecordedEvent

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)
ENDS = NOW + timedelta(hours=1)
ID, ANN = UUID(int=1), UUID(int=2)
STARTED = SessionStarted(
    session_id=ID, user_id=ANN, expires_at=ENDS, refresh_digest="first", family_digest="family"
)
REFRESHED = SessionRefreshed(session_id=ID, user_id=ANN, refresh_digest="second")
ENDED = SessionEnded(session_id=ID, user_id=ANN, reason="logged_out")
REGISTERED = UserRegistered(user_id=ANN, username="ann")


def after(*events: Event) -> Session:
    """Return the session after these events."""
    session = SESSION.initial
    for event in events:
        session = evolve(session, event)
    return session


def refresh(
    presented_digest: str = "first", family_digest: str = "family", now: datetime = NOW
) -> RefreshSession:
    """Return a refresh by the first token."""
    return RefreshSession(
        session_id=ID,
        now=now,
        presented_digest=presented_digest,
        family_digest=family_digest,
        refresh_digest="next",
    )


def end(now: datetime = NOW) -> EndSession:
    """Return the command that ends the session."""
    return EndSession(session_id=ID, now=now, reason="logged_out")


def recorded(event: Event, offset: int) -> RecordedEvent:
    """Return an event as the journal holds it at an offset."""
    stream = event.stream() or ""
    event_id = UUID(int=offset)
    return RecordedEvent(offset, stream, offset + 1, event_id, 1, NOW, NOW, NO_METADATA, b"", event)


def user_after(*events: Event) -> User:
    """Return the user after events that are recorded at offsets 0, 1, 2 and so on."""
    user = USER.initial
    for offset, event in enumerate(events):
        user = USER.take(user, recorded(event, offset))
    return user


def test_a_session_is_started_once() -> None:
    """It begins with what the command says; another start under the same id is refused."""
    command = StartSession(
        session_id=ID,
        now=NOW,
        user_id=ANN,
        expires_at=ENDS,
        refresh_digest="first",
        family_digest="family",
    )
    assert list(decide(command, SESSION.initial)) == [STARTED]
    with pytest.raises(CommandRefused, match="in state open: a session with this id exists"):
        decide(command, after(STARTED))
    assert after(STARTED, SessionStarted(**fields(STARTED, user_id=ID))) == after(STARTED)


def fields(event: Event, **others: Any) -> dict[str, Any]:
    """Return the fields of an event, some of them others."""
    return {name: getattr(event, name) for name in event.__struct_fields__} | others


def test_the_latest_token_is_good_once() -> None:
    """It gives way to the next one, which is good then."""
    assert list(decide(refresh(), after(STARTED))) == [
        SessionRefreshed(session_id=ID, user_id=ANN, refresh_digest="next")
    ]
    [refreshed] = decide(refresh(presented_digest="second"), after(STARTED, REFRESHED))
    assert isinstance(refreshed, SessionRefreshed)


def test_a_token_that_was_used_ends_the_session() -> None:
    """Whoever has the family, but not the latest secret, holds what somebody else has used."""
    session = after(STARTED, REFRESHED)
    [ended] = decide(refresh(), session)
    assert ended == SessionEnded(session_id=ID, user_id=ANN, reason="reused")
    with pytest.raises(CommandRefused, match="in state ended: it must be open"):
        decide(refresh(presented_digest="second"), evolve(session, ended))


@pytest.mark.parametrize("digest", ["first", "second", "made up"])
def test_a_strangers_token_does_nothing(digest: str) -> None:
    """Who knows a session's id alone can neither refresh nor end it."""
    with pytest.raises(CommandRefused, match="in state open: the token is none of this session"):
        decide(refresh(family_digest="ä", presented_digest=digest), after(STARTED))


def test_a_session_expires_at_its_time() -> None:
    """It is open until then, and no longer at that moment."""
    session = after(STARTED)
    assert session.is_open(ENDS - TICK)
    assert not session.is_open(ENDS)
    assert session.standing(ENDS) == "expired"
    with pytest.raises(CommandRefused, match="in state expired: it must be open"):
        decide(refresh(now=ENDS), session)
    assert list(decide(end(ENDS), session)) == []


def test_ending_a_session() -> None:
    """It is over for good; ending it again does nothing, and one that never was cannot be ended."""
    assert list(decide(end(), after(STARTED))) == [ENDED]
    over = after(STARTED, ENDED)
    assert (over.is_open(NOW), over.standing(NOW)) == (False, "ended")
    assert after(STARTED, ENDED, REFRESHED).standing(NOW) == "ended"
    assert list(decide(end(), over)) == []
    with pytest.raises(CommandRefused, match="in state unknown: there is no such session"):
        decide(end(), SESSION.initial)
    with pytest.raises(InvalidCommand, match="reason: must not be empty"):
        EndSession(session_id=ID, now=NOW, reason="")


def test_without_a_start_there_is_no_session() -> None:
    """Events of a session that never began lead to nothing."""
    assert after(REFRESHED, ENDED) == SESSION.initial
    assert SESSION.initial.standing(NOW) == "unknown"
    with pytest.raises(CommandRefused, match="in state unknown: it must be open; log in again"):
        decide(refresh(), SESSION.initial)


def test_a_session_knows_where_it_was_started() -> None:
    """The offset is that of the first start, whatever comes later."""
    session = SESSION.initial
    for offset, event in ((4, REFRESHED), (7, STARTED), (8, REFRESHED), (9, STARTED)):
        session = SESSION.take(session, recorded(event, offset))
    assert session.started_offset == 7
    assert session.refresh_digest == "second"


def test_whose_data_the_events_hold() -> None:
    """All are about the user who is logged in, and in the session's own stream."""
    for event in (STARTED, REFRESHED, ENDED):
        assert event.subject() == user_stream(ANN) == f"user-{ANN}"
        assert event.stream() == session_stream(ID) == f"session-{ID}"
    ended = SessionsEnded(user_id=ANN)
    assert (ended.subject(), ended.stream()) == (user_stream(ANN), user_stream(ANN))
    assert [each.value for each in EndReason] == ["logged_out", "reused"]


ENDING = [
    PasswordChanged(user_id=ANN, password_hash="hash"),
    UserDeactivated(user_id=ANN),
    SessionsEnded(user_id=ANN),
    UserErased(user_id=ANN, reason="request"),
]


@pytest.mark.parametrize("event", ENDING, ids=lambda event: type(event).__name__)
def test_what_ends_all_sessions_of_a_user(event: Event) -> None:
    """What was started up to the offset of such an event is void, also when the user acts again."""
    assert isinstance(event, ENDS_SESSIONS)
    assert user_after(REGISTERED).sessions_void_offset == -1
    assert user_after(REGISTERED, event).sessions_void_offset == 1
    later = (UserReactivated(user_id=ANN), RolesChanged(user_id=ANN, roles=()))
    assert user_after(REGISTERED, event, *later).sessions_void_offset == 1
    assert user_after(REGISTERED, *later, event).sessions_void_offset == 3


def test_a_new_hash_of_the_same_password_ends_nothing() -> None:
    """Nor do other roles: each request is met with those of its own time."""
    upgraded = PasswordChanged(user_id=ANN, password_hash="hash", upgraded=True)
    changed = RolesChanged(user_id=ANN, roles=("admin",))
    assert user_after(REGISTERED, upgraded, changed).sessions_void_offset == -1


def test_ending_all_sessions() -> None:
    """It can be done at any time to a user there is, active or not, with a reason or without."""
    command = EndSessions(user_id=ANN, reason="lost laptop")
    for user in (user_after(REGISTERED), user_after(REGISTERED, UserDeactivated(user_id=ANN))):
        assert list(decide_user(command, user)) == [
            SessionsEnded(user_id=ANN, reason="lost laptop")
        ]
    for user in (USER.initial, user_after(REGISTERED, UserErased(user_id=ANN, reason="r"))):
        with pytest.raises(CommandRefused, match="there is no such user"):
            decide_user(command, user)
