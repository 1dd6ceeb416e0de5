"""Users and their logins: stream `user-<id>`, and `login-<hash>` for names that do not exist."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from uuid import UUID

from ledger.event import Event, Instant


def user_stream(user_id: UUID) -> str:
    """Return the stream of a user."""
    return f"user-{user_id}"


def name_digest(name: str) -> str:
    """Return a digest of a username or e-mail that is the same for every way to write it."""
    return hashlib.sha256(name.strip().casefold().encode()).hexdigest()[:32]


def username_tag(username: str) -> str:
    """Return the tag under which a username is claimed."""
    return f"username:{name_digest(username)}"


def email_tag(email: str) -> str:
    """Return the tag under which an e-mail address is claimed."""
    return f"email:{name_digest(email)}"


class UserEvent(Event):
    """What all events of one user's stream have."""

    user_id: UUID

    def stream(self) -> str:
        """Name the user's stream."""
        return user_stream(self.user_id)


class UserRegistered(UserEvent):
    """A user exists from now on; the username and e-mail are theirs alone."""

    username: str
    email: str | None = None
    password_hash: str | None = None
    permissions: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()

    def claims(self) -> Iterable[str]:
        """Take the username and the e-mail."""
        yield username_tag(self.username)
        if self.email is not None:
            yield email_tag(self.email)


class PasswordChanged(UserEvent):
    """The user's password has a new hash."""

    password_hash: str


class EmailChanged(UserEvent):
    """The user's e-mail is another; `previous_email` is free again."""

    email: str | None = None
    previous_email: str | None = None

    def claims(self) -> Iterable[str]:
        """Take the new e-mail."""
        return () if self.email is None else (email_tag(self.email),)

    def releases(self) -> Iterable[str]:
        """Give the old one back."""
        return () if self.previous_email is None else (email_tag(self.previous_email),)


class PermissionsChanged(UserEvent):
    """The user has exactly these permissions."""

    permissions: tuple[str, ...]


class RolesChanged(UserEvent):
    """The user has exactly these roles."""

    roles: tuple[str, ...]


class LoginAttempted(UserEvent):
    """A login is about to be checked; stored before the slow hash, so parallel guesses count."""


class LoginSucceeded(UserEvent):
    """The user logged in."""

    source: str | None = None


class LoginFailed(Event):
    """A login failed; `user_id` is None where no user of that name exists.

    `source` says where the attempt came from when that is not an ip address.
    """

    username: str
    user_id: UUID | None = None
    reason: str | None = None
    source: str | None = None

    def stream(self) -> str:
        """Name the user's stream, or that of the name that does not exist."""
        if self.user_id is not None:
            return user_stream(self.user_id)
        return f"login-{name_digest(self.username)}"


class AccountLocked(UserEvent):
    """The user cannot log in before `locked_until`."""

    locked_until: Instant
    reason: str | None = None


class AccountUnlocked(UserEvent):
    """The lock was lifted by hand."""

    reason: str | None = None


class UserDeactivated(UserEvent):
    """The user is kept, but can do nothing."""

    reason: str | None = None


class UserReactivated(UserEvent):
    """The user can act again."""

    reason: str | None = None


class UserErased(UserEvent):
    """The user's personal data is destroyed; `reason` names the request."""

    reason: str
