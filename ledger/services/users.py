"""Commands for users, and logging in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid5

import msgspec
from uuid_utils.compat import uuid7

from ledger.conditions import Condition, ExpectedVersion, NoEvent
from ledger.deciding import ORIGIN, Deciding, Done, Origin
from ledger.domain.users import (
    USER,
    AccountLocked,
    Change,
    ChangeEmail,
    ChangePassword,
    ChangePermissions,
    ChangeRoles,
    ClaimLogin,
    Deactivate,
    EndSessions,
    EraseUser,
    FinishLogin,
    HoldUser,
    Lock,
    LoginAttempted,
    LoginFailed,
    LoginReason,
    LoginRules,
    LoginSucceeded,
    Reactivate,
    RegisterUser,
    ReleaseUser,
    Unlock,
    User,
    UserDeactivated,
    UserErased,
    UserRegistered,
    user_stream,
)
from ledger.errors import CommandRefused, InvalidCommand, LedgerError
from ledger.event import Event, Metadata, RecordedEvent, personal_fields
from ledger.security.passwords import PASSWORD_CHARS_MAX, Passwords, Place, is_acceptable
from ledger.services.names import Names
from ledger.settings import Settings
from ledger.stores import Appended


class Registered(msgspec.Struct, frozen=True):
    """A user was registered under this id."""

    user_id: UUID
    appended: Appended | None


class UserChanged(msgspec.Struct, frozen=True):
    """What a command did to a user; `appended` is None where all was so already."""

    user_id: UUID
    appended: Appended | None


class Erased(msgspec.Struct, frozen=True):
    """A user's personal data is destroyed.

    `appended` is None, and `key_destroyed` False, where that was so already. `plain_events` counts
    the events of the user's stream that an older release stored in plain: these cannot be erased.
    """

    user_id: UUID
    appended: Appended | None
    key_destroyed: bool
    plain_events: int


class ErasureUnfinished(LedgerError):
    """The journal says that a user is erased, but the data key may still be there: try again."""

    exit_code = 3

    def __init__(self, user_id: UUID, error: LedgerError) -> None:
        super().__init__(
            f"user {user_id} counts as erased, but that could not be finished: {error}; "
            "erase the user again"
        )
        self.user_id = user_id


class Login(msgspec.Struct, frozen=True):
    """What came of a login; `user_id` is given where it succeeded, else `reason`.

    `locked_until` is given where the account is locked now.
    """

    succeeded: bool
    user_id: UUID | None
    reason: LoginReason | None
    locked_until: datetime | None
    appended: Appended | None


def login_rules(settings: Settings) -> LoginRules:
    """Return the rules that the settings give."""
    return LoginRules(
        settings.login_failures_max,
        timedelta(seconds=settings.lockout_seconds),
        timedelta(seconds=settings.login_attempt_seconds),
    )


def active_after(offset: int, user_id: UUID) -> NoEvent:
    """Return the condition that a user has not been deactivated or erased after an offset."""
    gone = (UserDeactivated, UserErased)
    return NoEvent(types=gone, stream=user_stream(user_id), after=offset)


async def require_active(deciding: Deciding, command: str, user_id: UUID) -> NoEvent:
    """Return the condition that a user, active now, still is; else raise CommandRefused."""
    stream = user_stream(user_id)
    loaded = await deciding.load(USER, stream)
    if not loaded.state.is_active:
        raise CommandRefused(command, stream, loaded.state.standing, "the user must be active")
    return active_after(loaded.offset, user_id)


class Users:
    """All commands for users.

    Errors of all but `login`: InvalidCommand for values that nobody can have, CommandRefused for a
    user who does not exist or is not in the state for it, Contended, and what an append raises.
    """

    def __init__(
        self,
        deciding: Deciding,
        passwords: Passwords,
        rules: LoginRules | None = None,
    ) -> None:
        """Take what decides and hashes, and the rules."""
        self._deciding = deciding
        self._passwords = passwords
        self._rules = rules or LoginRules()
        self._names = Names(deciding.journal)

    async def register(
        self,
        *,
        username: str,
        password: str | None = None,
        email: str | None = None,
        permissions: Sequence[str] = (),
        roles: Sequence[str] = (),
        user_id: UUID | None = None,
        origin: Origin = ORIGIN,
    ) -> Registered:
        """Make a user; TagTaken where the username or e-mail is another user's.

        Without a password nobody can log in. The id is the caller's, or made. Raises Overloaded
        where too many passwords wait to be hashed.
        """
        command = RegisterUser(
            user_id=user_id or _made_id(origin),
            username=username,
            email=email,
            permissions=tuple(permissions),
            roles=tuple(roles),
        )
        if password is not None:
            password_hash = await self._hashed("RegisterUser", password)
            command = msgspec.structs.replace(command, password_hash=password_hash)
        return Registered(command.user_id, (await self._execute(command, origin)).appended)

    async def change_password(
        self, *, user_id: UUID, password: str, origin: Origin = ORIGIN
    ) -> UserChanged:
        """Give the user another password. Whether the caller may is the caller's to check."""
        password_hash = await self._hashed("ChangePassword", password)
        return await self._change(
            ChangePassword(user_id=user_id, password_hash=password_hash), origin
        )

    async def password_changed(self, *, user_id: UUID, origin: Origin) -> Appended | None:
        """Return where the same command has changed the user's password before, None if nowhere."""
        return await self._deciding.earlier(user_stream(user_id), ChangePassword.__name__, origin)

    async def change_email(
        self, *, user_id: UUID, email: str | None, origin: Origin = ORIGIN
    ) -> UserChanged:
        """Give the user another e-mail address, or none; TagTaken where it is another user's."""
        return await self._change(ChangeEmail(user_id=user_id, email=email), origin)

    async def change_permissions(
        self, *, user_id: UUID, permissions: Sequence[str], origin: Origin = ORIGIN
    ) -> UserChanged:
        """Give the user exactly these permissions."""
        command = ChangePermissions(user_id=user_id, permissions=tuple(permissions))
        return await self._change(command, origin)

    async def change_roles(
        self, *, user_id: UUID, roles: Sequence[str], origin: Origin = ORIGIN
    ) -> UserChanged:
        """Give the user exactly these roles."""
        return await self._change(ChangeRoles(user_id=user_id, roles=tuple(roles)), origin)

    async def deactivate(
        self, *, user_id: UUID, reason: str | None = None, origin: Origin = ORIGIN
    ) -> UserChanged:
        """Keep the user, but let nobody log in as them or use their keys from now on."""
        return await self._change(Deactivate(user_id=user_id, reason=reason), origin)

    async def reactivate(
        self, *, user_id: UUID, reason: str | None = None, origin: Origin = ORIGIN
    ) -> UserChanged:
        """Let the user act again."""
        return await self._change(Reactivate(user_id=user_id, reason=reason), origin)

    async def lock(
        self,
        *,
        user_id: UUID,
        locked_until: datetime,
        reason: str | None = None,
        origin: Origin = ORIGIN,
    ) -> UserChanged:
        """Let nobody log in as the user before `locked_until`."""
        command = Lock(user_id=user_id, now=self._now(), locked_until=locked_until, reason=reason)
        return await self._change(command, origin)

    async def unlock(
        self, *, user_id: UUID, reason: str | None = None, origin: Origin = ORIGIN
    ) -> UserChanged:
        """Lift the lock of an account."""
        return await self._change(Unlock(user_id=user_id, now=self._now(), reason=reason), origin)

    async def end_sessions(
        self, *, user_id: UUID, reason: str | None = None, origin: Origin = ORIGIN
    ) -> UserChanged:
        """Log the user out everywhere: no session that was started before is good any more."""
        return await self._change(EndSessions(user_id=user_id, reason=reason), origin)

    async def hold(self, *, user_id: UUID, reason: str, origin: Origin = ORIGIN) -> UserChanged:
        """Let nobody erase the user until the hold is lifted."""
        return await self._change(HoldUser(user_id=user_id, reason=reason), origin)

    async def release(self, *, user_id: UUID, reason: str, origin: Origin = ORIGIN) -> UserChanged:
        """Let the user be erased again."""
        return await self._change(ReleaseUser(user_id=user_id, reason=reason), origin)

    async def erase(self, *, user_id: UUID, reason: str, origin: Origin = ORIGIN) -> Erased:
        """Destroy the user's personal data for good; the user can do nothing from now on.

        First the event is stored, then the data key destroyed. After an error call it again: it
        finishes what was begun, and changes nothing once all is done. CommandRefused under a legal
        hold, ErasureUnfinished where the event is stored, and anything went wrong after that.
        """
        command = EraseUser(user_id=user_id, reason=reason)
        done = await self._execute(command, origin)
        try:
            destroyed = await self._deciding.journal.privacy.destroy(command.stream)
            plain_events = await self._readable(command.stream)
        except LedgerError as error:
            raise ErasureUnfinished(user_id, error) from error
        return Erased(user_id, done.appended, destroyed, plain_events)

    async def state(self, user_id: UUID) -> User:
        """Return a user as the events have them now; not `is_known` if there are none."""
        return (await self._deciding.load(USER, user_stream(user_id))).state

    async def username(self, user_id: UUID) -> str | None:
        """Return the name under which a user was registered, None if there is none, or no more."""
        first = await self._deciding.journal.read_stream(user_stream(user_id), limit=1)
        named = [each.event for each in first if isinstance(each.event, UserRegistered)]
        return named[0].username if named else None

    async def _readable(self, stream: str) -> int:
        """Count the events of a stream in which a personal field can be read."""
        chunks = self._deciding.journal.read_chunks(stream=stream)
        return sum([sum(map(_shows_something, chunk)) async for chunk in chunks])

    async def login(
        self, *, username: str, password: str, source: str | None = None, origin: Origin = ORIGIN
    ) -> Login:
        """Check a password given with a username or e-mail address.

        A refusal is an answer, not an error, and stored like a success. `source` says where the
        attempt came from when that is not an ip address. Each call is an attempt of its own, also
        with the command id of an earlier one. Raises InvalidCommand for names and passwords that
        nobody can have, Overloaded where too many wait for a check; neither leaves an event. After
        any other error the attempt counts as failed, unless it is stored otherwise.
        """
        if not is_acceptable(password):
            raise _invalid_password("Login")
        with self._passwords.place() as place:
            command = await self._named(username.strip(), source)
            own = msgspec.structs.replace(origin, command_id=None)
            claim = await self._decide(command, own)
            if not isinstance(claim.events[-1], LoginAttempted):
                return _login(claim)
            return _login(await self._finish(command, claim.before, place, password, own))

    async def _named(self, name: str, source: str | None) -> ClaimLogin:
        """Return the claim of a login under a name, which is checked before it is looked up."""
        command = ClaimLogin(
            username=name,
            attempt_id=uuid7(),
            now=self._now(),
            rules=self._rules,
            source=source,
        )
        digest = await self._names.digest(name)
        user_id = await self._names.user_id(name)
        return msgspec.structs.replace(command, user_id=user_id, name_digest=digest)

    async def _decide(self, command: ClaimLogin | FinishLogin, origin: Origin) -> Done[User]:
        """Store what a login leads to at the time of each try, under the version seen.

        A refused claim is stored under any version: it changes nothing that others decide by, so
        under a flood of them no login that is being checked has to be decided anew more often.
        """
        deciding, stream = self._deciding, command.stream

        async def attempt() -> Done[User]:
            loaded = await deciding.load(USER, stream)
            now = msgspec.structs.replace(command, now=self._now())
            events = tuple(USER.decide(now, loaded.state))
            is_refusal = isinstance(command, ClaimLogin) and not any(map(_matters, events))
            expected = () if is_refusal else (ExpectedVersion(stream, loaded.version),)
            appended = await deciding.journal.append(origin.of("Login", events), *expected)
            return Done(events, loaded.state, appended)

        async with deciding.turn(stream):
            return await deciding.until_stored(attempt, type(command).__name__, stream)

    async def _finish(
        self, claim: ClaimLogin, user: User, place: Place, password: str, origin: Origin
    ) -> Done[User]:
        matches = await place.verify(password, user.password_hash)
        new_hash = await place.upgrade(password, user.password_hash) if matches else None
        command = FinishLogin(
            username=claim.username,
            user_id=claim.user_id,
            name_digest=claim.name_digest,
            attempt_id=claim.attempt_id,
            now=self._now(),
            rules=claim.rules,
            source=claim.source,
            matches=matches,
            password_changes=user.password_changes,
            new_hash=new_hash,
        )
        return await self._decide(command, origin)

    async def _change(self, command: Change, origin: Origin) -> UserChanged:
        return UserChanged(command.user_id, (await self._execute(command, origin)).appended)

    async def _execute(
        self, command: RegisterUser | Change | EraseUser, origin: Origin
    ) -> Done[User]:
        async def guard() -> Sequence[Condition]:
            return await self._unclaimed(command)

        return await self._deciding.execute(
            USER, command.stream, command, guard=guard, origin=origin
        )

    async def _unclaimed(self, command: RegisterUser | Change | EraseUser) -> Sequence[Condition]:
        match command:
            case RegisterUser():
                return await self._names.unclaimed(command.stream, command.username, command.email)
            case ChangeEmail():
                return await self._names.unclaimed(command.stream, None, command.email)
            case _:
                return ()

    async def _hashed(self, command: str, password: str) -> str:
        if not is_acceptable(password):
            raise _invalid_password(command)
        with self._passwords.place() as place:
            return await place.hash(password)

    def _now(self) -> datetime:
        return self._deciding.journal.now()

    def close(self) -> None:
        """Let go of the threads that hash passwords."""
        self._passwords.close()


def _made_id(origin: Origin) -> UUID:
    """A repeated command has to mean the same user."""
    return uuid7() if origin.command_id is None else uuid5(origin.command_id, "user")


def _shows_something(recorded: RecordedEvent) -> bool:
    holders: tuple[Event | Metadata, ...] = (recorded.event, recorded.metadata)
    return any(
        getattr(holder, field) is not None
        for holder in holders
        for field in personal_fields(type(holder))
    )


def _matters(event: Event) -> bool:
    """Whether others decide by an event of a login."""
    return not isinstance(event, LoginFailed) or event.counts


def _invalid_password(command: str) -> InvalidCommand:
    return InvalidCommand(
        command, "password", f"must have 1 to {PASSWORD_CHARS_MAX} characters that can be encoded"
    )


def _login(done: Done[User]) -> Login:
    """Return the outcome among the events that ended a login."""
    [*_, outcome] = [e for e in done.events if isinstance(e, LoginSucceeded | LoginFailed)]
    succeeded = isinstance(outcome, LoginSucceeded)
    return Login(
        succeeded=succeeded,
        user_id=outcome.user_id if succeeded else None,
        reason=None if isinstance(outcome, LoginSucceeded) else LoginReason(str(outcome.reason)),
        locked_until=_locked_until(done.events, outcome, done.before),
        appended=done.appended,
    )


def _locked_until(events: Sequence[Event], outcome: Event, user: User) -> datetime | None:
    locked = [event.locked_until for event in events if isinstance(event, AccountLocked)]
    if locked:
        return locked[-1]
    is_locked = isinstance(outcome, LoginFailed) and outcome.reason == LoginReason.LOCKED
    return user.guesses.locked_until if is_locked else None
