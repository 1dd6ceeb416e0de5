"""API keys: streams `apikey-<id>`, `apikey-use-<id>` and `apikey-refused-<id or hash>`."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import assert_never
from uuid import UUID

import msgspec

from ledger.decider import Command, Decider
from ledger.domain.users import check_labels, check_text, user_stream
from ledger.event import Event, Instant, Personal, utc

RATE_LIMIT_MAX = 1_000_000
RATE_WINDOW = timedelta(minutes=1)


def api_key_stream(key_id: UUID) -> str:
    """Return the stream of a key's own life."""
    return f"apikey-{key_id}"


def api_key_use_stream(key_id: UUID) -> str:
    """Return the stream of a key's accepted uses; a rate limit counts them."""
    return f"apikey-use-{key_id}"


class ApiKeyEvent(Event):
    """What all events of one key's stream have."""

    key_id: UUID

    def stream(self) -> str:
        """Name the key's stream."""
        return api_key_stream(self.key_id)

    def owner_stream(self) -> str | None:
        """Name the key's stream, which begins with whose it is."""
        return api_key_stream(self.key_id)


class ApiKeyIssued(ApiKeyEvent):
    """A key exists from now on; only its hash is kept.

    `rate_limit` is in requests a minute, None means no limit.
    """

    user_id: UUID
    name: Personal | None
    key_hash: Personal | None = None
    permissions: tuple[str, ...] = ()
    rate_limit: int | None = None
    expires_at: Instant | None = None

    def subject(self) -> str:
        """Name the user whose key it is."""
        return user_stream(self.user_id)


class ApiKeyRotated(ApiKeyEvent):
    """Another key takes this one's place; this one lives on until `expires_at`."""

    successor_key_id: UUID
    expires_at: Instant


class ApiKeyRevoked(ApiKeyEvent):
    """The key is dead from this moment."""

    reason: str | None = None


class ApiKeyUsed(Event):
    """An accepted use of a key, stored before the action it allows.

    `source` says where it came from when that is not an ip address.
    """

    key_id: UUID
    action: str
    resource: str | None = None
    source: Personal | None = None

    def stream(self) -> str:
        """Name the stream of the key's uses."""
        return api_key_use_stream(self.key_id)

    def owner_stream(self) -> str | None:
        """Name the key's own stream, which begins with whose it is."""
        return api_key_stream(self.key_id)


class ApiKeyRefused(Event):
    """A refused use; `key_id` is None where the key is unknown or malformed.

    `presented` tells such keys apart without holding them (a digest or a public part); `count` is
    above 1 where several refusals were summed up. `source` says where it came from when that is
    not an ip address.
    """

    reason: str
    key_id: UUID | None = None
    presented: str | None = None
    action: str | None = None
    resource: str | None = None
    source: Personal | None = None
    count: int = 1

    def stream(self) -> str:
        """Name the stream of the key's refusals, else one by what was presented or from where."""
        if self.key_id is not None:
            return f"apikey-refused-{self.key_id}"
        named = self.presented or self.source or ""
        digest = hashlib.sha256(named.encode()).hexdigest()[:32]
        return f"apikey-refused-{digest}"

    def owner_stream(self) -> str | None:
        """Name the key's own stream, which begins with whose it is; None if no key is known."""
        return None if self.key_id is None else api_key_stream(self.key_id)


class KeyReason(StrEnum):
    """Why a use was refused, in the words of this project."""

    UNKNOWN = "unknown"
    MALFORMED = "malformed"
    EXPIRED = "expired"
    REVOKED = "revoked"
    RATE_LIMITED = "rate_limited"
    NOT_PERMITTED = "not_permitted"
    USER_INACTIVE = "user_inactive"


class Key(msgspec.Struct, frozen=True, gc=False):
    """What the events of a key's stream have led to; `issued` is None where there is no such key.

    `expires_at` is the earlier of what it was issued with and the end of a rotation's overlap.
    """

    issued: ApiKeyIssued | None = None
    expires_at: datetime | None = None
    is_rotated: bool = False
    is_revoked: bool = False

    def standing(self, now: datetime) -> str:
        """The state in one word, for errors."""
        if self.issued is None:
            return "unknown"
        if self.is_revoked:
            return "revoked"
        if self.expires_at is not None and now >= self.expires_at:
            return "expired"
        return "rotated" if self.is_rotated else "active"

    def refusal(self, key_hash: str, permission: str | None, now: datetime) -> KeyReason | None:
        """Return why a use by somebody who presents this hash is refused, None if it is not.

        Whoever does not know the secret learns nothing about the key.
        """
        stored = None if self.issued is None else self.issued.key_hash
        if self.issued is None or stored is None or not _is_same(stored, key_hash):
            return KeyReason.UNKNOWN
        if (standing := self.standing(now)) in (KeyReason.REVOKED, KeyReason.EXPIRED):
            return KeyReason(standing)
        if permission is not None and permission not in self.issued.permissions:
            return KeyReason.NOT_PERMITTED
        return None


def _is_same(stored: str, presented: str) -> bool:
    """Compare as bytes, since a stored hash can be any text; takes the same time for all."""
    return hmac.compare_digest(stored.encode(), presented.encode())


class KeyCommand(Command):
    """What all commands for a key have."""

    key_id: UUID
    now: Instant

    @property
    def stream(self) -> str:
        """The stream that the command is for."""
        return api_key_stream(self.key_id)

    def check_time(self) -> None:
        """Raise InvalidCommand for a value that is wrong at the time of the command.

        That is for deciding: what was right when it was stored may come again later.
        """


class IssueKey(KeyCommand):
    """Make a key for a user; `rate_limit` is in requests a minute, None means no limit."""

    user_id: UUID
    name: str
    key_hash: str
    permissions: tuple[str, ...] = ()
    rate_limit: int | None = None
    expires_at: Instant | None = None

    def __post_init__(self) -> None:
        """Refuse what no key can have."""
        super().__post_init__()
        check_text(self, "name", self.name)
        check_labels(self, "permissions", self.permissions)
        if self.rate_limit is not None and not 1 <= self.rate_limit <= RATE_LIMIT_MAX:
            reason = f"must be 1 to {RATE_LIMIT_MAX:,} a minute, not {self.rate_limit}"
            raise self.invalid("rate_limit", reason)

    def check_time(self) -> None:
        """Refuse a key that would have expired at the time of the command."""
        if self.expires_at is not None and self.expires_at <= self.now:
            raise self.invalid("expires_at", f"{self.expires_at} is past")


class RotateKey(KeyCommand):
    """Let another key with the same rights take this one's place, which lives on for `overlap`.

    `successor_expires_at` is when the other one expires; None means when this one would have.
    """

    successor_key_id: UUID
    key_hash: str
    overlap: timedelta = timedelta(0)
    successor_expires_at: Instant | None = None

    def __post_init__(self) -> None:
        """Refuse an overlap that makes no sense, and a key that takes its own place."""
        super().__post_init__()
        if self.overlap < timedelta(0):
            raise self.invalid("overlap", f"must not be negative, as {self.overlap} is")
        if self.successor_key_id == self.key_id:
            raise self.invalid("successor_key_id", "must be that of another key")

    def check_time(self) -> None:
        """Refuse times that make no sense at the time of the command."""
        try:
            utc(self.now + self.overlap)
        except (OverflowError, ValueError) as error:
            reason = f"{self.overlap} from now is beyond the calendar"
            raise self.invalid("overlap", reason) from error
        if self.successor_expires_at is not None and self.successor_expires_at <= self.now:
            raise self.invalid("successor_expires_at", f"{self.successor_expires_at} is past")


class RevokeKey(KeyCommand):
    """End a key at once, also one that has expired: other machines' clocks may be behind."""

    reason: str | None = None


_OPEN_TO: dict[type[KeyCommand], tuple[str, ...]] = {
    RotateKey: ("active", "rotated"),
    RevokeKey: ("active", "rotated", "expired"),
}
"""The standings of keys that a command fits."""


def decide(command: IssueKey | RotateKey | RevokeKey, key: Key) -> Sequence[Event]:
    """Return the events that a command leads to; a rotation's second is another key's first."""
    command.check_time()
    if isinstance(command, IssueKey):
        return (_issue(command, key),)
    standing = key.standing(command.now)
    if standing not in _OPEN_TO[type(command)]:
        raise command.refused(command.stream, standing, "there is no such key any more, or yet")
    match command:
        case RotateKey():
            return _rotate(command, key)
        case RevokeKey():
            return (ApiKeyRevoked(key_id=command.key_id, reason=command.reason),)
        case _:
            assert_never(command)


def _issue(command: IssueKey, key: Key) -> ApiKeyIssued:
    if key.issued is not None:
        standing = key.standing(command.now)
        raise command.refused(command.stream, standing, "a key with this id exists")
    return ApiKeyIssued(
        key_id=command.key_id,
        user_id=command.user_id,
        name=command.name,
        key_hash=command.key_hash,
        permissions=command.permissions,
        rate_limit=command.rate_limit,
        expires_at=command.expires_at,
    )


def _rotate(command: RotateKey, key: Key) -> Sequence[Event]:
    if key.issued is None or key.is_rotated:
        raise command.refused(command.stream, "rotated", "another key has taken its place already")
    if key.issued.name is None:
        raise command.refused(command.stream, "erased", "the data of its owner was erased")
    ends = command.now + command.overlap
    rotated = ApiKeyRotated(
        key_id=command.key_id,
        successor_key_id=command.successor_key_id,
        expires_at=_earlier(ends, key.expires_at),
    )
    successor = msgspec.structs.replace(
        key.issued,
        key_id=command.successor_key_id,
        key_hash=command.key_hash,
        expires_at=command.successor_expires_at or key.issued.expires_at,
    )
    return (rotated, successor)


def _earlier(ends: datetime, expires_at: datetime | None) -> datetime:
    return ends if expires_at is None else min(ends, expires_at)


def evolve(key: Key, event: Event) -> Key:
    """Return the key after an event of its stream; only the first issue of an id counts."""
    match event:
        case ApiKeyIssued() if key.issued is None:
            return Key(event, event.expires_at)
        case ApiKeyRotated() if key.issued is not None:
            ends = _earlier(event.expires_at, key.expires_at)
            return msgspec.structs.replace(key, expires_at=ends, is_rotated=True)
        case ApiKeyRevoked() if key.issued is not None:
            return msgspec.structs.replace(key, is_revoked=True)
        case _:
            return key


KEY: Decider[IssueKey | RotateKey | RevokeKey, Key] = Decider(Key(), decide, evolve)
"""Decides for the keys' streams."""
