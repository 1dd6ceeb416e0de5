"""Sessions: logging in, going on with a refresh token, logging out.

Who acts in a session shows a short-lived access token, which is signed with `token_key` and names
the session; `check` says whether that is still good. The refresh token is good once, for the next
two. A session is over when it expires, is ended, or when its user gets another password, is
deactivated or erased, or logged out everywhere; each counts from the moment at which it is stored.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
from pydantic import SecretStr
from uuid_utils.compat import uuid7

from ledger.conditions import Condition, NoEvent
from ledger.deciding import ORIGIN, Deciding, Loaded, Origin
from ledger.domain.sessions import (
    SESSION,
    EndReason,
    EndSession,
    RefreshSession,
    Session,
    SessionEnded,
    StartSession,
    session_stream,
)
from ledger.domain.users import ENDS_SESSIONS, USER, User, user_stream
from ledger.errors import AppendOutcomeUnknown, CommandRefused
from ledger.security.refresh_tokens import RefreshToken, parse
from ledger.services.users import Users
from ledger.settings import Settings
from ledger.stores import Appended

TOKEN_KEY_BYTES = 32
TOKEN_KEY_INFO = b"ledger session tokens"


class RefreshOutcomeUnknown(AppendOutcomeUnknown):
    """Whether a refresh token was used up could not be found out: log in again.

    Unlike other appends it must not be repeated: what was used up ends the session the next time.
    """


class SessionRules(msgspec.Struct, frozen=True):
    """How long a session lasts, and an access token; its key, if not one of the journal's own."""

    session: timedelta = timedelta(hours=12)
    token: timedelta = timedelta(minutes=15)
    token_key: SecretStr | None = None


class Holder(msgspec.Struct, frozen=True):
    """A session that is good now, and its user with what they may do now."""

    session_id: UUID
    user_id: UUID
    expires_at: datetime
    permissions: tuple[str, ...]
    roles: tuple[str, ...]


class _Since(msgspec.Struct, frozen=True):
    """A login of a user: at which offset, and until when."""

    user_id: UUID
    offset: int
    expires_at: datetime


class SessionOpen(msgspec.Struct, frozen=True):
    """Somebody is logged in. This is the only time that the refresh token is shown."""

    holder: Holder
    refresh_token: RefreshToken
    appended: Appended


class SessionClosed(msgspec.Struct, frozen=True):
    """A session is over; `appended` is None where it was so already."""

    session_id: UUID
    appended: Appended | None


def session_rules(settings: Settings) -> SessionRules:
    """Return the rules that the settings give."""
    token_key = settings.token_key
    if token_key is None and _is_sqlite(settings) and is_token_key_stored(settings):
        token_key = SecretStr(secrets.token_urlsafe(TOKEN_KEY_BYTES))
    return SessionRules(
        timedelta(seconds=settings.session_seconds),
        timedelta(seconds=settings.token_seconds),
        token_key,
    )


def is_token_key_stored(settings: Settings) -> bool:
    """Whether all that the journal's own key of access tokens follows from is in the database.

    Then whoever can read that could sign tokens. On SQLite, where one process is the rule, each
    process takes a random key instead.
    """
    outside = (settings.token_key, settings.name_key, settings.master_key, settings.key_service)
    return all(each is None for each in outside)


def _is_sqlite(settings: Settings) -> bool:
    return settings.address().get_backend_name() == "sqlite"


class Sessions:
    """All commands for sessions.

    A refusal of `start`, `refresh` and `check` is the answer None, which does not say why: the
    journal does. Errors are those of `Users.login`, Contended, and what an append raises.
    """

    def __init__(self, deciding: Deciding, users: Users, rules: SessionRules | None = None) -> None:
        """Take what decides and who checks passwords, and the rules."""
        self._deciding = deciding
        self._users = users
        self.rules = rules or SessionRules()
        self._token_key: bytes | None = None

    async def token_key(self) -> bytes:
        """Return the key that access tokens are signed with: that of the rules, or the journal's.

        That one follows from the journal's key for digests of names.
        """
        if self._token_key is None:
            self._token_key = await self._made_token_key()
        return self._token_key

    async def _made_token_key(self) -> bytes:
        if self.rules.token_key is not None:
            return self.rules.token_key.get_secret_value().encode()
        return await self._deciding.journal.privacy.derived_key(TOKEN_KEY_INFO)

    async def start(
        self, *, username: str, password: str, source: str | None = None, origin: Origin = ORIGIN
    ) -> SessionOpen | None:
        """Log in with a username or e-mail address; None where that is refused.

        Each call is a login of its own, also with the command id of an earlier one.
        """
        login = await self._users.login(
            username=username, password=password, source=source, origin=origin
        )
        if login.user_id is None or login.appended is None:
            return None
        token, now = RefreshToken.first(uuid7()), self._now()
        command = StartSession(
            session_id=token.session_id,
            now=now,
            user_id=login.user_id,
            expires_at=now + self.rules.session,
            refresh_digest=token.digest,
            family_digest=token.family_digest,
        )
        since = _Since(login.user_id, max(login.appended.offsets), command.expires_at)
        return await self._opened(command, token, since, origin)

    async def refresh(self, *, refresh_token: str, origin: Origin = ORIGIN) -> SessionOpen | None:
        """Use a refresh token up for another one; None where that is refused.

        A token that was used up before ends the session: it was stolen, or the one that came of
        it. A call that is repeated since its answer was lost looks the same: log in again then,
        as after RefreshOutcomeUnknown. After any other error the token is as good as before.
        """
        presented = parse(refresh_token)
        if presented is None:
            return None
        session = (await self._load(presented.session_id)).state
        if session.started is None:
            return None
        token = presented.following()
        command = RefreshSession(
            session_id=token.session_id,
            now=self._now(),
            presented_digest=presented.digest,
            family_digest=token.family_digest,
            refresh_digest=token.digest,
        )
        started = session.started
        since = _Since(started.user_id, session.started_offset, started.expires_at)
        try:
            return await self._opened(command, token, since, origin)
        except AppendOutcomeUnknown as error:
            raise RefreshOutcomeUnknown(str(error)) from error

    async def _opened(
        self,
        command: StartSession | RefreshSession,
        token: RefreshToken,
        since: _Since,
        origin: Origin,
    ) -> SessionOpen | None:
        """Store what a command leads to while logins since then are good.

        All that the answer takes is at hand before: after the append nothing can fail any more.
        """
        await self.token_key()
        user = User()

        async def guard() -> Sequence[Condition]:
            nonlocal user
            loaded = await self._good(command, since)
            user = loaded.state
            stream = user_stream(since.user_id)
            return (NoEvent(types=ENDS_SESSIONS, stream=stream, after=loaded.offset),)

        own = msgspec.structs.replace(origin, command_id=None)
        try:
            done = await self._deciding.execute(
                SESSION, command.stream, command, guard=guard, origin=own
            )
        except CommandRefused:
            return None
        if done.appended is None or isinstance(done.events[-1], SessionEnded):
            return None
        return SessionOpen(_holder(command.session_id, since, user), token, done.appended)

    async def _good(self, command: StartSession | RefreshSession, since: _Since) -> Loaded[User]:
        """Return the user whose login is still good; else raise CommandRefused."""
        stream = user_stream(since.user_id)
        user = await self._deciding.load(USER, stream)
        if not _is_good(user.state, since.offset):
            raise command.refused(stream, user.state.standing, "log in again")
        return user

    async def check(self, session_id: UUID) -> Holder | None:
        """Return who acts in a session that is good now, with what they may do now; else None."""
        session = (await self._load(session_id)).state
        if session.started is None or not session.is_open(self._now()):
            return None
        started = session.started
        since = _Since(started.user_id, session.started_offset, started.expires_at)
        user = (await self._deciding.load(USER, user_stream(since.user_id))).state
        return _holder(session_id, since, user) if _is_good(user, since.offset) else None

    async def end(
        self,
        *,
        session_id: UUID,
        reason: str = EndReason.LOGGED_OUT.value,
        origin: Origin = ORIGIN,
    ) -> SessionClosed:
        """Log out: nobody can act in the session from the moment at which this is stored.

        CommandRefused where there never was such a session. `Users.end_sessions` ends all of one
        user.
        """
        command = EndSession(session_id=session_id, now=self._now(), reason=reason)
        done = await self._deciding.execute(SESSION, command.stream, command, origin=origin)
        return SessionClosed(session_id, done.appended)

    async def _load(self, session_id: UUID) -> Loaded[Session]:
        return await self._deciding.load(SESSION, session_stream(session_id))

    def _now(self) -> datetime:
        return self._deciding.journal.now()


def _holder(session_id: UUID, since: _Since, user: User) -> Holder:
    return Holder(session_id, since.user_id, since.expires_at, user.permissions, user.roles)


def _is_good(user: User, since: int) -> bool:
    """Whether what a user began at an offset may go on."""
    return user.is_active and since > user.sessions_void_offset
