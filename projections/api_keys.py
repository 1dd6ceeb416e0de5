"""API keys: whose they are, what they allow, how often they were used."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import BigInteger, Index
from sqlalchemy.orm import Mapped, mapped_column

from ledger.domain.api_keys import ApiKeyIssued, ApiKeyRevoked, ApiKeyRotated, ApiKeyUsed
from ledger.event import RecordedEvent
from projections.model import TimedModel, refers_to
from projections.numbers import bounded, short
from projections.projection import Projection, State


class ApiKey(TimedModel):
    """An API key; `rate_limit` is in requests a minute, None means no limit."""

    __tablename__ = "api_keys"

    key_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID | None]
    key_hash: Mapped[str | None]
    name: Mapped[str | None]
    permissions: Mapped[list[str]] = mapped_column(default=list)
    rate_limit: Mapped[int | None] = mapped_column(BigInteger)
    requests_count: Mapped[int] = mapped_column(BigInteger, default=0)
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    is_active: Mapped[bool] = mapped_column(default=True)

    __table_args__ = (
        refers_to("user_id", "users.user_id"),
        Index(None, "journal_id", "user_id", "is_active"),
        Index(None, "journal_id", "key_hash"),
        Index(None, "journal_id", "expires_at"),
        Index(None, "journal_id", "last_used_at"),
    )

    @property
    def is_expired(self) -> bool:
        """Whether the key's time is over at this moment."""
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)

    @property
    def is_valid(self) -> bool:
        """Whether the key has neither been revoked nor expired at this moment.

        That the owner is active it does not say: `User.is_active` does, and `use` looks at both.
        """
        return self.is_active and not self.is_expired

    def has_permission(self, permission: str) -> bool:
        """Whether the key is valid and allows this."""
        return self.is_valid and permission in self.permissions


api_keys = Projection(ApiKey, looks_up=["users"])


@api_keys.on(ApiKeyIssued)
def _issued(state: State, recorded: RecordedEvent, event: ApiKeyIssued) -> None:
    """Only the first issue of an id counts."""
    rows = state.rows(ApiKey)
    if rows.get(event.key_id) is None:
        rows.add(
            event.key_id,
            recorded,
            user_id=state.reference("users", event.user_id),
            key_hash=short(event.key_hash),
            name=short(event.name),
            permissions=list(event.permissions),
            rate_limit=bounded(event.rate_limit),
            expires_at=event.expires_at,
        )


@api_keys.on(ApiKeyRotated)
def _rotated(state: State, recorded: RecordedEvent, event: ApiKeyRotated) -> None:
    """A rotation never lets a key live longer."""
    row = state.rows(ApiKey).edit(event.key_id, recorded)
    if row is not None:
        row.expires_at = min(event.expires_at, row.expires_at or event.expires_at)


@api_keys.on(ApiKeyRevoked)
def _revoked(state: State, recorded: RecordedEvent, event: ApiKeyRevoked) -> None:
    row = state.rows(ApiKey).edit(event.key_id, recorded)
    if row is not None:
        row.is_active = False


@api_keys.on(ApiKeyUsed)
def _used(state: State, recorded: RecordedEvent, event: ApiKeyUsed) -> None:
    row = state.rows(ApiKey).edit(event.key_id, recorded)
    if row is not None:
        row.requests_count += 1
        row.last_used_at = recorded.occurred_at
