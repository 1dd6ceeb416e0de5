"""Users and their logins: stream `user-<id>`, and `login-<hash>` for names that do not exist.

A login takes two commands. `ClaimLogin` claims an attempt before the password is checked, so that
guesses which are checked at the same time count; `FinishLogin` stores what the check gave. A name
that nobody has goes the very same way in a stream of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Self
from uuid import UUID

import msgspec

from ledger.decider import Command, Decider
from ledger.event import Event, Instant, Personal, RecordedEvent

TEXT_CHARS_MAX = 255
"""The longest text that a column of the read models holds."""

LABELS_MAX = 100
"""So many permissions, and so many roles, at most."""

BURIED_MAX = 200
"""So many attempts that nobody finished are stored as failures by one command, at most."""

MASKED_CHARS, MASKABLE_CHARS_MIN = 2, 5
"""A name that nobody has is stored as so many characters, and none if it is shorter than that."""

NO_TIME = datetime.min.replace(tzinfo=UTC)
"""Stands for when an event happened where that is not known."""


def user_stream(user_id: UUID) -> str:
    """Return the stream of a user."""
    return f"user-{user_id}"


def maybe_user(user_id: UUID | None) -> str | None:
    """Return the stream of a user who may not be known; it names whose personal data it is."""
    return None if user_id is None else user_stream(user_id)


def name_digest(name: str, key: bytes | None = None) -> str:
    """Return a digest of a username or e-mail that is the same for every way to write it.

    With a key, only who has it can tell whether a guess at the name is right.
    """
    folded = unicodedata.normalize("NFKC", name.strip()).casefold()
    written = unicodedata.normalize("NFKC", folded).encode("utf-8", "surrogatepass")
    made = hashlib.sha256(written) if key is None else hmac.new(key, written, hashlib.sha256)
    return made.hexdigest()[:32]


def masked(name: str) -> str:
    """Return what is stored of a name that nobody has: it may be a password or an API key."""
    return ("" if len(name) < MASKABLE_CHARS_MIN else name[:MASKED_CHARS]) + "…"


def username_tag(username: str, key: bytes | None = None) -> str:
    """Return the tag under which a username is claimed; older releases made it without a key."""
    return f"username:{name_digest(username, key)}"


def email_tag(email: str, key: bytes | None = None) -> str:
    """Return the tag under which an e-mail is claimed; older releases made it without a key."""
    return f"email:{name_digest(email, key)}"


def _stored_digest(digest: str | None, name: str | None) -> str | None:
    """Return the digest of a name that an event holds; older ones hold none, and the plain name."""
    return name_digest(name) if digest is None and name is not None else digest


def _new_digest(name: str | None, digest: Callable[[str], str]) -> str | None:
    return None if name is None else digest(name)


def _tags(kind: str, digest: str | None) -> Iterable[str]:
    return () if digest is None else (f"{kind}:{digest}",)


def login_stream(user_id: UUID | None, username: str | None, digest: str | None = None) -> str:
    """Return the stream of a user's logins, or of those under a name that does not exist.

    Where no digest of that name is given, it is made of the name.
    """
    if user_id is not None:
        return user_stream(user_id)
    return f"login-{name_digest(username or '') if digest is None else digest}"


class LoginReason(StrEnum):
    """Why a login failed, in the words of this project; other journals have words of their own."""

    WRONG_PASSWORD = "wrong_password"  # noqa: S105 - a reason
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - a reason
    ABANDONED = "abandoned"
    LOCKED = "locked"
    INACTIVE = "inactive"
    TOO_MANY = "too_many_attempts"
    EXPIRED = "expired"


UNCHECKED = frozenset({LoginReason.LOCKED, LoginReason.TOO_MANY})
"""Failures of logins that were refused before any check."""

UNCOUNTED = frozenset(
    {LoginReason.LOCKED, LoginReason.INACTIVE, LoginReason.TOO_MANY, LoginReason.EXPIRED}
)
"""Failures that are no guesses: no check was made, its result not looked at, or it was right."""


class UserEvent(Event):
    """What all events of one user's stream have."""

    user_id: UUID

    def stream(self) -> str:
        """Name the user's stream."""
        return user_stream(self.user_id)

    def subject(self) -> str:
        """Name the user."""
        return user_stream(self.user_id)


class UserRegistered(UserEvent):
    """A user exists from now on; the username and e-mail are theirs alone.

    The digests are what these are claimed by.
    """

    username: Personal | None
    email: Personal | None = None
    password_hash: Personal | None = None
    permissions: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    username_digest: str | None = None
    email_digest: str | None = None

    def with_digests(self, digest: Callable[[str], str]) -> Self:
        """Digest the username and the e-mail."""
        return msgspec.structs.replace(
            self,
            username_digest=_new_digest(self.username, digest),
            email_digest=_new_digest(self.email, digest),
        )

    def claims(self) -> Iterable[str]:
        """Take the username and the e-mail."""
        yield from _tags("username", _stored_digest(self.username_digest, self.username))
        yield from _tags("email", _stored_digest(self.email_digest, self.email))


class PasswordChanged(UserEvent):
    """The user's password has a new hash.

    Where it was `upgraded`, the password is the same, only its hash was made in an outdated way.
    """

    password_hash: Personal | None
    upgraded: bool = False


class EmailChanged(UserEvent):
    """The user's e-mail is another; `previous_email` is free again.

    The digests are what these are claimed by; that of the previous one may have been made without
    a key.
    """

    email: Personal | None = None
    previous_email: Personal | None = None
    email_digest: str | None = None
    previous_email_digest: str | None = None

    def with_digests(self, digest: Callable[[str], str]) -> Self:
        """Digest the e-mails; the old one may have been claimed without a key, which is kept."""
        previous, old = self.previous_email_digest, self.previous_email
        if old is not None and previous != name_digest(old):
            previous = digest(old)
        return msgspec.structs.replace(
            self,
            email_digest=_new_digest(self.email, digest),
            previous_email_digest=previous,
        )

    def claims(self) -> Iterable[str]:
        """Take the new e-mail."""
        return _tags("email", _stored_digest(self.email_digest, self.email))

    def releases(self) -> Iterable[str]:
        """Give the old one back."""
        digest = _stored_digest(self.previous_email_digest, self.previous_email)
        return _tags("email", digest)


class PermissionsChanged(UserEvent):
    """The user has exactly these permissions."""

    permissions: tuple[str, ...]


class RolesChanged(UserEvent):
    """The user has exactly these roles."""

    roles: tuple[str, ...]


class LoginAttempted(Event):
    """A login is about to be checked; stored before the slow hash, so parallel guesses count.

    An attempt whose outcome is not stored by `expires_at` counts as a failed one. Where no user of
    that name exists, `user_id` is None, `username` holds the beginning of the name at most, and
    `name_digest` names the stream.
    """

    user_id: UUID | None = None
    attempt_id: UUID | None = None
    expires_at: Instant | None = None
    username: Personal | None = None
    source: Personal | None = None
    name_digest: str | None = None

    def stream(self) -> str:
        """Name the user's stream, or that of the name that does not exist."""
        return login_stream(self.user_id, self.username, self.name_digest)

    def subject(self) -> str | None:
        """Name the user, if there is one."""
        return maybe_user(self.user_id)


class LoginSucceeded(UserEvent):
    """The user logged in."""

    source: Personal | None = None
    attempt_id: UUID | None = None


class LoginFailed(Event):
    """A login failed; `user_id` is None where no user of that name exists.

    Then `username` holds the beginning of the name at most, and `name_digest` names the stream.
    `source` says where the attempt came from when that is not an ip address. The failure of an
    abandoned attempt is stored by a later command, whose metadata it carries.
    """

    username: Personal | None
    user_id: UUID | None = None
    reason: str | None = None
    source: Personal | None = None
    attempt_id: UUID | None = None
    name_digest: str | None = None

    @property
    def counts(self) -> bool:
        """Whether this failure brings the account nearer to being locked."""
        return self.reason not in UNCOUNTED

    def stream(self) -> str:
        """Name the user's stream, or that of the name that does not exist.

        What was refused without a check has a stream beside it: nobody decides by it, and a flood
        of refusals must not keep the logins that are being checked from being stored.
        """
        own = login_stream(self.user_id, self.username, self.name_digest)
        if self.reason not in UNCHECKED:
            return own
        return f"login-refused-{own.removeprefix('user-').removeprefix('login-')}"

    def subject(self) -> str | None:
        """Name the user, if there is one."""
        return maybe_user(self.user_id)


class AccountLocked(Event, kw_only=True):
    """Nobody can log in before `locked_until`; `username` is given where no such user exists.

    Then it holds the beginning of the name at most, and `name_digest` names the stream.
    """

    user_id: UUID | None = None
    locked_until: Instant
    reason: str | None = None
    username: Personal | None = None
    name_digest: str | None = None

    def stream(self) -> str:
        """Name the user's stream, or that of the name that does not exist."""
        return login_stream(self.user_id, self.username, self.name_digest)

    def subject(self) -> str | None:
        """Name the user, if there is one."""
        return maybe_user(self.user_id)


class AccountUnlocked(UserEvent):
    """The lock was lifted by hand."""

    reason: str | None = None


class UserDeactivated(UserEvent):
    """The user is kept, but can do nothing."""

    reason: str | None = None


class UserReactivated(UserEvent):
    """The user can act again."""

    reason: str | None = None


class SessionsEnded(UserEvent):
    """All sessions of the user that were started before are over; the user can log in again."""

    reason: str | None = None


class UserErased(UserEvent):
    """The user's personal data is destroyed; `reason` names the request, not the person.

    The digests are those under which the username and the e-mail were claimed; both are free again.
    """

    erases: ClassVar[bool] = True

    reason: str
    username_digest: str | None = None
    email_digest: str | None = None

    def releases(self) -> Iterable[str]:
        """Give the username and the e-mail back."""
        yield from _tags("username", self.username_digest)
        yield from _tags("email", self.email_digest)


class LegalHoldPlaced(UserEvent):
    """The user's personal data must not be erased until the hold is lifted."""

    reason: str


class LegalHoldLifted(UserEvent):
    """The user's personal data may be erased again."""

    reason: str


ENDS_SESSIONS: tuple[type[Event], ...] = (
    PasswordChanged,
    UserDeactivated,
    SessionsEnded,
    UserErased,
)
"""After these no session that was started before is good, but for a new hash of one password."""


class Guesses(msgspec.Struct, frozen=True, gc=False):
    """Counted failures since the last success or unlock, and until when an account is locked.

    While it is locked, and until something happens after the lock, `failures` is the number that
    led to it.
    """

    failures: int = 0
    locked_until: datetime | None = None

    def is_locked(self, now: datetime) -> bool:
        """Whether logins are refused at `now`; at `locked_until` they no longer are."""
        return self.locked_until is not None and now < self.locked_until

    def counted(self, now: datetime) -> int:
        """Return how many failures count at `now`: none from before a lock that is over."""
        is_over = self.locked_until is not None and now >= self.locked_until
        return 0 if is_over else self.failures

    def after(self, event: Event, at: datetime) -> Guesses:
        """Return what an event of the account makes of it that happened `at` this time."""
        match event:
            case LoginSucceeded():
                is_over = self._is_over(event.attempt_id, at)
                return Guesses(0, None if is_over else self.locked_until)
            case LoginFailed() if event.counts:
                return self._after_failure(event, at)
            case AccountLocked():
                return Guesses(self.failures, event.locked_until)
            case AccountUnlocked():
                return Guesses()
            case _:
                return self

    def _after_failure(self, event: LoginFailed, at: datetime) -> Guesses:
        """A failure during the lock can only be another system's; the lock stands."""
        if self.locked_until is None:
            return Guesses(self.failures + 1)
        return Guesses(1) if self._is_over(event.attempt_id, at) else self

    def _is_over(self, attempt_id: UUID | None, at: datetime) -> bool:
        """An attempt with an id is only ever claimed where no lock is in force."""
        is_past = self.locked_until is None or at >= self.locked_until
        return is_past or attempt_id is not None


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """A login that is being checked, and when it counts as failed if nobody finishes it."""

    attempt_id: UUID
    expires_at: datetime


class User(msgspec.Struct, frozen=True):
    """What the events of a user's stream, or of a name that nobody has, have led to.

    The digests are those under which the names are claimed: of older events, made without a key.
    `password_changes` counts new passwords, not new hashes of the same one. Sessions that were
    started up to the offset `sessions_void_offset` are over.
    """

    is_known: bool = False
    is_active: bool = False
    is_erased: bool = False
    is_held: bool = False
    username_digest: str | None = None
    email_digest: str | None = None
    email: str | None = None
    password_hash: str | None = None
    password_changes: int = 0
    permissions: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    guesses: Guesses = Guesses()
    attempts: tuple[Attempt, ...] = ()
    sessions_void_offset: int = -1

    @property
    def standing(self) -> str:
        """The state in one word, for errors."""
        if not self.is_known:
            return "unknown"
        if self.is_erased:
            return "erased"
        return "active" if self.is_active else "deactivated"


class LoginRules(msgspec.Struct, frozen=True, gc=False):
    """When an account is locked, for how long, and how long a check may take."""

    failures_max: int = 5
    lockout: timedelta = timedelta(minutes=15)
    attempt: timedelta = timedelta(seconds=30)


def check_text(command: Command, field: str, value: str) -> None:
    """Raise InvalidCommand unless `value` is one that a column can hold and a person can read.

    The error does not show the value, which may be about a person.
    """
    if not value:
        raise command.invalid(field, "must not be empty")
    if len(value) > TEXT_CHARS_MAX:
        raise command.invalid(field, f"has {len(value)} characters; at most {TEXT_CHARS_MAX} fit")
    if value != value.strip():
        raise command.invalid(field, "begins or ends with space")
    if not value.isprintable():
        raise command.invalid(field, "has characters that cannot be printed")


def check_labels(command: Command, field: str, values: tuple[str, ...]) -> None:
    """Raise InvalidCommand unless these are the names of permissions or roles, each once."""
    if len(values) > LABELS_MAX:
        raise command.invalid(field, f"has {len(values)} names; at most {LABELS_MAX} are allowed")
    if len(set(values)) < len(values):
        raise command.invalid(field, f"{values!r} names something twice")
    for value in values:
        check_text(command, field, value)


def _check_email(command: Command, email: str | None) -> None:
    if email is None:
        return
    check_text(command, "email", email)
    name, _, host = email.partition("@")
    if not name or not host or "@" in host or len(email.split()) > 1:
        raise command.invalid("email", "is not of the form name@host")


class UserCommand(Command):
    """What all commands for a user have."""

    user_id: UUID

    @property
    def stream(self) -> str:
        """The stream that the command is for."""
        return user_stream(self.user_id)


class RegisterUser(UserCommand):
    """Make a user. Whoever logs in may give the username or the e-mail address.

    So a username has no @: it could be another user's address.
    """

    username: str
    email: str | None = None
    password_hash: str | None = None
    permissions: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse names that cannot be used."""
        super().__post_init__()
        check_text(self, "username", self.username)
        if "@" in self.username:
            raise self.invalid("username", "has an @; give that as e-mail")
        _check_email(self, self.email)
        check_labels(self, "permissions", self.permissions)
        check_labels(self, "roles", self.roles)


class ChangePassword(UserCommand):
    """Give the user another password, of which only the hash is known here."""

    password_hash: str


class ChangeEmail(UserCommand):
    """Give the user another e-mail address, or none."""

    email: str | None

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        super().__post_init__()
        _check_email(self, self.email)


class ChangePermissions(UserCommand):
    """Give the user exactly these permissions."""

    permissions: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse names that cannot be used."""
        super().__post_init__()
        check_labels(self, "permissions", self.permissions)


class ChangeRoles(UserCommand):
    """Give the user exactly these roles."""

    roles: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse names that cannot be used."""
        super().__post_init__()
        check_labels(self, "roles", self.roles)


class Deactivate(UserCommand):
    """Keep the user, but let nobody act as them."""

    reason: str | None = None


class Reactivate(UserCommand):
    """Let the user act again."""

    reason: str | None = None


class Lock(UserCommand):
    """Let nobody log in as the user before `locked_until`; a lock can only be made longer."""

    now: Instant
    locked_until: Instant
    reason: str | None = None


class Unlock(UserCommand):
    """Lift the lock, and forget the failures that led to it."""

    now: Instant
    reason: str | None = None


class EndSessions(UserCommand):
    """End all sessions of the user, wherever they are logged in."""

    reason: str | None = None


class Reasoned(UserCommand):
    """What the commands around an erasure have: who asked for it, in the words of a case file.

    The reason is kept for ever, so it must not name the person.
    """

    reason: str

    def __post_init__(self) -> None:
        """Refuse a reason that nobody could read later."""
        super().__post_init__()
        check_text(self, "reason", self.reason)


class EraseUser(Reasoned):
    """Destroy the personal data of the user, who cannot act any more."""


class HoldUser(Reasoned):
    """Let nobody erase the user's personal data: it is needed as evidence."""


class ReleaseUser(Reasoned):
    """Let the user's personal data be erased again."""


class LoginCommand(Command, kw_only=True):
    """What both commands of a login have; `user_id` is None where nobody has the name.

    Of such a name the events hold the beginning and a digest: `name_digest`, if one is given.
    """

    username: str
    user_id: UUID | None = None
    name_digest: str | None = None
    attempt_id: UUID
    now: Instant
    rules: LoginRules = LoginRules()
    source: str | None = None

    def __post_init__(self) -> None:
        """Refuse a name that nobody can have."""
        super().__post_init__()
        check_text(self, "username", self.username)

    @property
    def stream(self) -> str:
        """The stream that the command is for."""
        return login_stream(self.user_id, self.username, self.name_digest)

    @property
    def masked_name(self) -> str | None:
        """What events hold of a name that nobody has; None for a user's."""
        return masked(self.username) if self.user_id is None else None

    @property
    def masked_digest(self) -> str | None:
        """The digest of a name that nobody has; None for a user's."""
        if self.user_id is not None:
            return None
        return name_digest(self.username) if self.name_digest is None else self.name_digest

    def failed(self, reason: LoginReason, attempt_id: UUID | None = None) -> LoginFailed:
        """Return the failure of this login, or that of the named attempt."""
        return LoginFailed(
            username=self.masked_name or self.username,
            user_id=self.user_id,
            reason=reason.value,
            source=None if attempt_id else self.source,
            attempt_id=attempt_id or self.attempt_id,
            name_digest=self.masked_digest,
        )

    def lock(self) -> AccountLocked:
        """Return the lock that too many failures lead to."""
        return AccountLocked(
            user_id=self.user_id,
            locked_until=self.now + self.rules.lockout,
            reason=f"{self.rules.failures_max} failed logins",
            username=self.masked_name,
            name_digest=self.masked_digest,
        )


class ClaimLogin(LoginCommand, kw_only=True):
    """Claim an attempt whose password is checked next."""


class FinishLogin(LoginCommand, kw_only=True):
    """Store what checking the password gave.

    `password_changes` is that of the state whose hash was checked. `new_hash` is one to take the
    place of a hash made in an outdated way.
    """

    matches: bool
    password_changes: int
    new_hash: str | None = None


Change = (
    ChangePassword
    | ChangeEmail
    | ChangePermissions
    | ChangeRoles
    | Deactivate
    | Reactivate
    | Lock
    | Unlock
    | EndSessions
    | HoldUser
    | ReleaseUser
)
AnyCommand = RegisterUser | Change | EraseUser | ClaimLogin | FinishLogin


def decide(
    command: RegisterUser | Change | EraseUser | ClaimLogin | FinishLogin, user: User
) -> Sequence[Event]:
    """Return the events that a command leads to; a change to what is so already has none."""
    match command:
        case RegisterUser():
            return (_register(command, user),)
        case ClaimLogin():
            return _claim(command, user)
        case FinishLogin():
            return _finish(command, user)
        case EraseUser():
            return _erase(command, user)
        case _:
            if not user.is_known or user.is_erased:
                raise command.refused(command.stream, user.standing, "there is no such user")
            return _change(command, user)


def _register(command: RegisterUser, user: User) -> UserRegistered:
    if user.is_known:
        raise command.refused(command.stream, user.standing, "a user with this id exists")
    return UserRegistered(
        user_id=command.user_id,
        username=command.username,
        email=command.email,
        password_hash=command.password_hash,
        permissions=command.permissions,
        roles=command.roles,
    )


def _change(command: Change, user: User) -> Sequence[Event]:
    match command:
        case ChangePassword():
            return (PasswordChanged(user_id=command.user_id, password_hash=command.password_hash),)
        case ChangeEmail():
            return _email(command, user)
        case ChangePermissions():
            event = PermissionsChanged(user_id=command.user_id, permissions=command.permissions)
            return () if user.permissions == command.permissions else (event,)
        case ChangeRoles():
            changed = RolesChanged(user_id=command.user_id, roles=command.roles)
            return () if user.roles == command.roles else (changed,)
        case Deactivate() | Reactivate():
            return (_activity(command, user),)
        case Lock() | Unlock():
            return (_lock(command, user.guesses),)
        case _:
            return (_others(command, user),)


def _others(command: EndSessions | HoldUser | ReleaseUser, user: User) -> Event:
    if isinstance(command, EndSessions):
        return SessionsEnded(user_id=command.user_id, reason=command.reason)
    return _hold(command, user)


def _email(command: ChangeEmail, user: User) -> Sequence[EmailChanged]:
    """An address that is only written in another way is not given back: it stays claimed.

    Unless the claim was made without a key: then the new one, which has one, takes its place.
    """
    old, new = user.email, command.email
    if old == new:
        return ()
    if old is None or (new is not None and _stays_claimed(user, old, new)):
        return (EmailChanged(user_id=command.user_id, email=new),)
    return (
        EmailChanged(
            user_id=command.user_id,
            email=new,
            previous_email=old,
            previous_email_digest=user.email_digest,
        ),
    )


def _stays_claimed(user: User, old: str, new: str) -> bool:
    return name_digest(old) == name_digest(new) != user.email_digest


def _hold(command: HoldUser | ReleaseUser, user: User) -> Event:
    is_wanted = isinstance(command, HoldUser)
    if user.is_held == is_wanted:
        state, has = ("held", "is") if user.is_held else (user.standing, "is not")
        raise command.refused(command.stream, state, f"the user {has} under a legal hold")
    made = LegalHoldPlaced if is_wanted else LegalHoldLifted
    return made(user_id=command.user_id, reason=command.reason)


def _erase(command: EraseUser, user: User) -> Sequence[UserErased]:
    if not user.is_known:
        raise command.refused(command.stream, user.standing, "there is no such user")
    if user.is_erased:
        return ()
    if user.is_held:
        reason = "the user is under a legal hold; it must be lifted first"
        raise command.refused(command.stream, "held", reason)
    return (
        UserErased(
            user_id=command.user_id,
            reason=command.reason,
            username_digest=user.username_digest,
            email_digest=user.email_digest,
        ),
    )


def _activity(command: Deactivate | Reactivate, user: User) -> Event:
    is_wanted = isinstance(command, Reactivate)
    if user.is_active == is_wanted:
        raise command.refused(command.stream, user.standing, f"the user is {user.standing} already")
    made = UserReactivated if is_wanted else UserDeactivated
    return made(user_id=command.user_id, reason=command.reason)


def _lock(command: Lock | Unlock, guesses: Guesses) -> Event:
    until = guesses.locked_until if guesses.is_locked(command.now) else None
    if isinstance(command, Unlock):
        if until is None:
            raise command.refused(command.stream, "open", "the account is not locked")
        return AccountUnlocked(user_id=command.user_id, reason=command.reason)
    if command.locked_until <= command.now:
        raise command.invalid("locked_until", f"{command.locked_until} is past")
    if until is not None and command.locked_until <= until:
        raise command.refused(command.stream, "locked", f"it is locked until {until} already")
    return AccountLocked(
        user_id=command.user_id, locked_until=command.locked_until, reason=command.reason
    )


def _claim(command: ClaimLogin, user: User) -> Sequence[Event]:
    """Claim an attempt, or say why no password will be looked at."""
    now, allowed = command.now, command.rules.failures_max
    ended, guesses = _bury(command, user)
    failures, running = guesses.counted(now), len(user.attempts) - len(ended)
    if guesses.is_locked(now):
        return (*ended, command.failed(LoginReason.LOCKED))
    if failures >= allowed:
        return (*ended, command.lock(), command.failed(LoginReason.LOCKED))
    if failures + running >= allowed:
        return (*ended, command.failed(LoginReason.TOO_MANY))
    return (*ended, _attempt(command))


def _attempt(command: ClaimLogin) -> LoginAttempted:
    return LoginAttempted(
        user_id=command.user_id,
        attempt_id=command.attempt_id,
        expires_at=command.now + command.rules.attempt,
        username=command.masked_name,
        source=command.source,
        name_digest=command.masked_digest,
    )


def _bury(command: LoginCommand, user: User) -> tuple[list[Event], Guesses]:
    """Return the failures of attempts that nobody finished in time, and what they lead to.

    Where there are very many, the next commands bury the others: an append must not be too large.
    """
    dead = [each for each in user.attempts if each.expires_at <= command.now][:BURIED_MAX]
    ended: list[Event] = [command.failed(LoginReason.ABANDONED, each.attempt_id) for each in dead]
    guesses = user.guesses
    for event in ended:
        guesses = guesses.after(event, command.now)
    return ended, guesses


def _finish(command: FinishLogin, user: User) -> Sequence[Event]:
    """Store the outcome; an attempt that is no longer under way fails whatever the check gave."""
    now, running = command.now, {each.attempt_id: each for each in user.attempts}
    if command.attempt_id not in running:
        is_locked = user.guesses.is_locked(now)
        return (command.failed(LoginReason.LOCKED if is_locked else LoginReason.EXPIRED),)
    events, guesses = _bury(command, user)
    if now < running[command.attempt_id].expires_at:
        events += _outcome(command, user)
        guesses = guesses.after(events[-1], now)
    if guesses.counted(now) >= command.rules.failures_max:
        events.append(command.lock())
    return events


def _outcome(command: FinishLogin, user: User) -> list[Event]:
    """Only who knows the password learns that the user is deactivated, and so exists."""
    if command.user_id is None or not command.matches:
        return [command.failed(LoginReason.WRONG_PASSWORD)]
    if command.password_changes != user.password_changes:
        return [command.failed(LoginReason.PASSWORD_CHANGED)]
    if not user.is_active:
        return [command.failed(LoginReason.INACTIVE)]
    upgraded: list[Event] = []
    if command.new_hash is not None:
        upgraded.append(
            PasswordChanged(user_id=command.user_id, password_hash=command.new_hash, upgraded=True)
        )
    return [
        *upgraded,
        LoginSucceeded(
            user_id=command.user_id, source=command.source, attempt_id=command.attempt_id
        ),
    ]


def evolve(user: User, event: Event, at: datetime = NO_TIME) -> User:
    """Return the user after an event of the stream that happened `at` this time.

    Where no time is given, what another system recorded leaves a lock in force.
    """
    user = msgspec.structs.replace(user, guesses=user.guesses.after(event, at))
    match event:
        case UserRegistered() if not user.is_known:
            return _registered(event)
        case LoginAttempted() | LoginSucceeded() | LoginFailed() | AccountLocked():
            return msgspec.structs.replace(user, attempts=_running(user.attempts, event))
        case UserDeactivated() | UserReactivated():
            may_act = user.is_known and not user.is_erased
            is_active = isinstance(event, UserReactivated) and may_act
            return msgspec.structs.replace(user, is_active=is_active)
        case UserErased():
            return _erased(user)
        case _:
            return user if user.is_erased else _changed(user, event)


def _erased(user: User) -> User:
    return msgspec.structs.replace(
        user,
        is_erased=True,
        is_active=False,
        username_digest=None,
        email_digest=None,
        email=None,
        password_hash=None,
    )


def _registered(event: UserRegistered) -> User:
    return User(
        is_known=True,
        is_active=True,
        username_digest=_stored_digest(event.username_digest, event.username),
        email_digest=_stored_digest(event.email_digest, event.email),
        email=event.email,
        password_hash=event.password_hash,
        permissions=event.permissions,
        roles=event.roles,
    )


def _running(
    attempts: tuple[Attempt, ...],
    event: LoginAttempted | LoginSucceeded | LoginFailed | AccountLocked,
) -> tuple[Attempt, ...]:
    """Return the attempts under way after an event; a lock ends them all."""
    if isinstance(event, AccountLocked):
        return ()
    if not isinstance(event, LoginAttempted):
        return tuple(each for each in attempts if each.attempt_id != event.attempt_id)
    if event.attempt_id is None or event.expires_at is None:
        return attempts
    return (*attempts, Attempt(event.attempt_id, event.expires_at))


def _changed(user: User, event: Event) -> User:
    match event:
        case PasswordChanged():
            return msgspec.structs.replace(
                user,
                password_hash=event.password_hash,
                password_changes=user.password_changes + (not event.upgraded),
            )
        case EmailChanged():
            digest = _stored_digest(event.email_digest, event.email)
            return msgspec.structs.replace(user, email=event.email, email_digest=digest)
        case PermissionsChanged():
            return msgspec.structs.replace(user, permissions=event.permissions)
        case RolesChanged():
            return msgspec.structs.replace(user, roles=event.roles)
        case LegalHoldPlaced() | LegalHoldLifted():
            return msgspec.structs.replace(user, is_held=isinstance(event, LegalHoldPlaced))
        case _:
            return user


class UserDecider(Decider[AnyCommand, User]):
    """Decides for one user; failures that others recorded are weighed by when they happened."""

    def take(self, state: User, recorded: RecordedEvent) -> User:
        """Return what a recorded event leads to; none happened after it was recorded."""
        event = recorded.event
        user = evolve(state, event, min(recorded.occurred_at, recorded.recorded_at))
        if not _ends_sessions(event):
            return user
        return msgspec.structs.replace(user, sessions_void_offset=recorded.offset)


def _ends_sessions(event: Event) -> bool:
    is_same_password = isinstance(event, PasswordChanged) and event.upgraded
    return isinstance(event, ENDS_SESSIONS) and not is_same_password


USER = UserDecider(User(), decide, evolve)
"""Decides for the users' streams and for those of names that nobody has."""
