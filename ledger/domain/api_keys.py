"""API keys: streams `apikey-<id>`, `apikey-use-<id>` and `apikey-refused-<id or hash>`."""

from __future__ import annotations

import hashlib
from uuid import UUID

from ledger.event import Event, Instant


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


class ApiKeyIssued(ApiKeyEvent):
    """A key exists from now on; only its hash is kept.

    `rate_limit` is in requests a minute, None means no limit.
    """

    user_id: UUID
    name: str
    key_hash: str | None = None
    permissions: tuple[str, ...] = ()
    rate_limit: int | None = None
    expires_at: Instant | None = None


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
    source: str | None = None

    def stream(self) -> str:
        """Name the stream of the key's uses."""
        return api_key_use_stream(self.key_id)


class ApiKeyRefused(Event):
    """A refused use; `key_id` is None where the key is unknown or malformed.

    `presented` tells such keys apart without holding them (a digest or a public part); `count` is
    above 1 where several refusals were summed up.
    """

    reason: str
    key_id: UUID | None = None
    presented: str | None = None
    action: str | None = None
    resource: str | None = None
    source: str | None = None
    count: int = 1

    def stream(self) -> str:
        """Name the stream of the key's refusals."""
        if self.key_id is not None:
            return f"apikey-refused-{self.key_id}"
        digest = hashlib.sha256((self.presented or "").encode()).hexdigest()[:32]
        return f"apikey-refused-{digest}"
