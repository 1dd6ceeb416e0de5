"""Requests over HTTP that no other event speaks of: stream `requests-<user id>`."""

from __future__ import annotations

from uuid import UUID

from ledger.domain.users import user_stream
from ledger.event import Event

FAILED_STATUS = 400
"""From this status on a request has failed."""


def requests_stream(user_id: UUID) -> str:
    """Return the stream of a user's requests."""
    return f"requests-{user_id}"


class RequestHandled(Event):
    """A request of a user was answered with `status`; `action` is its method and route.

    `resource` is the path that was asked for, without any query. `key_id` or `session_id` says by
    which credentials the user was known.
    """

    user_id: UUID
    action: str
    status: int
    resource: str | None = None
    key_id: UUID | None = None
    session_id: UUID | None = None

    def stream(self) -> str:
        """Name the stream of the user's requests."""
        return requests_stream(self.user_id)

    def subject(self) -> str:
        """Name the user whose request it is."""
        return user_stream(self.user_id)

    @property
    def has_failed(self) -> bool:
        """Whether what was asked for was refused or went wrong."""
        return self.status >= FAILED_STATUS
