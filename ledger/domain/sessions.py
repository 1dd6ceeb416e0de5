"""Sessions, each from a login to its end: stream `session-<id>`.

What ends all sessions of a user at once (a new password, a deactivation) is an event of the user.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import assert_never
from uuid import UUID

import msgspec

from ledger.decider import Command, Decider
from ledger.domain.users import check_text, user_stream
from ledger.event import Event, Instant, RecordedEvent


def session_stream(session_id: UUID) -> str:
    """Return the stream of a session."""
    return f"session-{session_id}"


class EndReason(StrEnum):
    """Why a session ended, in the words of this project."""

    LOGGED_OUT = "logged_out"
    REUSED = "reused"


class SessionEvent(Event):
    """What all events of one session's stream have."""

    session_id: UUID
    user_id: UUID

    def stream(self) -> str:
        """Name the session's stream."""
        return session_stream(self.session_id)

    def subject(self) -> str:
        """Name the user who is logged in."""
        return user_stream(self.user_id)


class SessionStarted(SessionEvent):
    """The user is logged in until `expires_at`; of the refresh token only digests are kept.

    `family_digest` is that of the part which all refresh tokens of the session share.
    """

    expires_at: Instant
    refresh_digest: str
    family_digest: str


class SessionRefreshed(SessionEvent):
    """Another refresh token takes the place of the one before, which is used up."""

    refresh_digest: str


class SessionEnded(SessionEvent):
    """Nobody can act in the session any more; `reused`: a used refresh token came again."""

    reason: str | None = None


class Session(msgspec.Struct, frozen=True, gc=False):
    """What the events of a session's stream have led to; `started` is None where there is none."""

    started: SessionStarted | None = None
    started_offset: int = -1
    refresh_digest: str = ""
    is_ended: bool = False

    def standing(self, now: datetime) -> str:
        """The state in one word, for errors."""
        if self.started is None:
            return "unknown"
        if self.is_ended:
            return "ended"
        return "expired" if now >= self.started.expires_at else "open"

    def is_open(self, now: datetime) -> bool:
        """Whether somebody can act in the session at `now`."""
        return self.standing(now) == "open"


class SessionCommand(Command):
    """What all commands for a session have."""

    session_id: UUID
    now: Instant

    @property
    def stream(self) -> str:
        """The stream that the command is for."""
        return session_stream(self.session_id)


class StartSession(SessionCommand):
    """Log a user in, whose password was checked."""

    user_id: UUID
    expires_at: Instant
    refresh_digest: str
    family_digest: str


class RefreshSession(SessionCommand):
    """Let another refresh token take the place of the presented one, if that is the latest.

    Whoever presents an earlier one, or from whom it was taken, has lost the session.
    """

    presented_digest: str
    family_digest: str
    refresh_digest: str


class EndSession(SessionCommand):
    """Log the user out of this session."""

    reason: str

    def __post_init__(self) -> None:
        """Refuse a reason that nobody could read later."""
        super().__post_init__()
        check_text(self, "reason", self.reason)


AnyCommand = StartSession | RefreshSession | EndSession


def decide(command: AnyCommand, session: Session) -> Sequence[Event]:
    """Return the events that a command leads to; ending what is over has none."""
    match command:
        case StartSession():
            return (_start(command, session),)
        case RefreshSession():
            return (_refresh(command, session),)
        case EndSession():
            return _end(command, session)
        case _:
            assert_never(command)


def _start(command: StartSession, session: Session) -> SessionStarted:
    if session.started is not None:
        standing = session.standing(command.now)
        raise command.refused(command.stream, standing, "a session with this id exists")
    return SessionStarted(
        session_id=command.session_id,
        user_id=command.user_id,
        expires_at=command.expires_at,
        refresh_digest=command.refresh_digest,
        family_digest=command.family_digest,
    )


def _refresh(command: RefreshSession, session: Session) -> SessionRefreshed | SessionEnded:
    started, standing = session.started, session.standing(command.now)
    if started is None or standing != "open":
        raise command.refused(command.stream, standing, "it must be open; log in again")
    if not _is_same(started.family_digest, command.family_digest):
        raise command.refused(command.stream, standing, "the token is none of this session")
    if not _is_same(session.refresh_digest, command.presented_digest):
        return _ended(started, EndReason.REUSED)
    return SessionRefreshed(
        session_id=started.session_id,
        user_id=started.user_id,
        refresh_digest=command.refresh_digest,
    )


def _is_same(stored: str, presented: str) -> bool:
    """Compare as bytes, since a stored digest can be any text; takes the same time for all."""
    return hmac.compare_digest(stored.encode(), presented.encode())


def _end(command: EndSession, session: Session) -> Sequence[SessionEnded]:
    if session.started is None:
        raise command.refused(command.stream, "unknown", "there is no such session")
    is_open = session.is_open(command.now)
    return (_ended(session.started, command.reason),) if is_open else ()


def _ended(started: SessionStarted, reason: str) -> SessionEnded:
    return SessionEnded(session_id=started.session_id, user_id=started.user_id, reason=str(reason))


def evolve(session: Session, event: Event) -> Session:
    """Return the session after an event of its stream; only the first start of an id counts."""
    match event:
        case SessionStarted() if session.started is None:
            return Session(event, refresh_digest=event.refresh_digest)
        case SessionRefreshed() if session.started is not None:
            return msgspec.structs.replace(session, refresh_digest=event.refresh_digest)
        case SessionEnded() if session.started is not None:
            return msgspec.structs.replace(session, is_ended=True)
        case _:
            return session


class SessionDecider(Decider[AnyCommand, Session]):
    """Decides for one session, which knows where it was started."""

    def take(self, state: Session, recorded: RecordedEvent) -> Session:
        """Return what a recorded event leads to."""
        session = self.evolve(state, recorded.event)
        if state.started is None and session.started is not None:
            return msgspec.structs.replace(session, started_offset=recorded.offset)
        return session


SESSION = SessionDecider(Session(), decide, evolve)
"""Decides for the sessions' streams."""
