"""The audit log: one row per event that matters to security. Rows are only ever added."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ledger.codec import todays_body
from ledger.domain.api_keys import (
    ApiKeyIssued,
    ApiKeyRefused,
    ApiKeyRevoked,
    ApiKeyRotated,
    ApiKeyUsed,
)
from ledger.domain.orders import (
    OrderCancelRejected,
    OrderCancelRequested,
    OrderEvent,
    OrderFailed,
    OrderPlaced,
    OrderRejected,
    OrderReplaceRejected,
    OrderReplaceRequested,
)
from ledger.domain.positions import PositionEvent, PositionLiquidated, ProtectionSet
from ledger.domain.requests import RequestHandled
from ledger.domain.sessions import SessionEnded, SessionRefreshed, SessionStarted
from ledger.domain.users import (
    AccountLocked,
    AccountUnlocked,
    EmailChanged,
    LegalHoldLifted,
    LegalHoldPlaced,
    LoginAttempted,
    LoginFailed,
    LoginSucceeded,
    PasswordChanged,
    PermissionsChanged,
    RolesChanged,
    SessionsEnded,
    UserDeactivated,
    UserErased,
    UserReactivated,
    UserRegistered,
)
from ledger.event import Event, RecordedEvent, personal_fields
from projections.model import ReadModel, refers_to
from projections.numbers import TEXT_CHARS_MAX
from projections.projection import Projection, State

ACTIONS: dict[type[Event], str] = {
    UserRegistered: "register",
    PasswordChanged: "change_password",
    EmailChanged: "change_email",
    PermissionsChanged: "change_permissions",
    RolesChanged: "change_roles",
    LoginAttempted: "attempt_login",
    LoginSucceeded: "login",
    LoginFailed: "login",
    SessionStarted: "start_session",
    SessionRefreshed: "refresh_session",
    SessionEnded: "end_session",
    SessionsEnded: "end_sessions",
    AccountLocked: "lock",
    AccountUnlocked: "unlock",
    UserDeactivated: "deactivate",
    UserReactivated: "reactivate",
    LegalHoldPlaced: "hold",
    LegalHoldLifted: "release_hold",
    UserErased: "erase",
    ApiKeyIssued: "issue_key",
    ApiKeyRotated: "rotate_key",
    ApiKeyRevoked: "revoke_key",
    ApiKeyUsed: "use_key",
    ApiKeyRefused: "use_key",
    RequestHandled: "request",
    OrderPlaced: "place_order",
    OrderRejected: "place_order",
    OrderFailed: "place_order",
    OrderCancelRequested: "cancel_order",
    OrderCancelRejected: "cancel_order",
    OrderReplaceRequested: "replace_order",
    OrderReplaceRejected: "replace_order",
    ProtectionSet: "protect_position",
    PositionLiquidated: "liquidate_position",
}
"""The events that are audited, and what was done (uses of a key and requests name their own).

A login has two rows, the attempt and its outcome, with one `attempt_id` in their details. An
attempt whose process died has no outcome until another login finds it, and must be seen all the
same. One that is refused without a look at the password is only an outcome.
"""

FAILURES = (
    LoginFailed,
    ApiKeyRefused,
    OrderRejected,
    OrderFailed,
    OrderCancelRejected,
    OrderReplaceRejected,
)
"""What was asked for and did not happen."""

OWNERS = {"key_id": "api_keys", "order_id": "orders", "position_id": "positions"}
"""Tables whose rows say which user an event without a user id is about."""

USES = (ApiKeyUsed, ApiKeyRefused, RequestHandled)

SECRETS = ("password_hash", "key_hash")

DIGESTS = (
    "username_digest",
    "email_digest",
    "previous_email_digest",
    "refresh_digest",
    "family_digest",
)

LEFT_OUT = ("type", *SECRETS, *DIGESTS)

ORIGINS = ("actor", "correlation_id", "causation_id")
"""What `details` holds of an event's metadata beside its own fields, where it is given."""


class SecurityAuditLog(ReadModel):
    """One audited event; `log_id` is its event id, `details` holds its fields without any secret.

    `details` also names actor, correlation and causation where they are known. `user_id` is NULL
    where no such user is known; `details` then tells whom the event named. Texts that are too long
    for an indexed column are cut. What was erased of a person is left out, and `details` names it
    in `erased`, the `ip_address` too.
    """

    __tablename__ = "security_audit_logs"

    log_id: Mapped[UUID] = mapped_column(primary_key=True)
    timestamp: Mapped[datetime]
    event_type: Mapped[str] = mapped_column(sa.String(100))
    user_id: Mapped[UUID | None]
    ip_address: Mapped[str | None] = mapped_column(sa.String(64))
    resource: Mapped[str | None]
    action: Mapped[str | None]
    success: Mapped[bool]
    details: Mapped[dict[str, Any]]
    request_id: Mapped[str | None]

    user: Mapped[Any] = relationship("User", viewonly=True, lazy="raise")

    __table_args__ = (
        refers_to("user_id", "users.user_id"),
        Index(None, "journal_id", "timestamp", "event_type"),
        Index(None, "journal_id", "event_type", "timestamp"),
        Index(None, "journal_id", "user_id", "timestamp"),
        Index(None, "journal_id", "success", "timestamp"),
        Index(None, "journal_id", "ip_address", "timestamp"),
        Index(None, "journal_id", "request_id"),
        Index(None, "journal_id", "resource", "timestamp"),
    )


_decode = msgspec.json.Decoder(dict[str, Any]).decode

security_audit_logs = Projection(
    SecurityAuditLog,
    looks_up=["users", *OWNERS.values()],
    append_only=True,
    reads_envelope=True,
    gives=lambda _, recorded: [("log_id", recorded.event_id)],
)


OF_ORDERS = tuple(each for each in ACTIONS if issubclass(each, OrderEvent | PositionEvent))
OF_USERS = tuple(each for each in ACTIONS if each not in OF_ORDERS)


@security_audit_logs.on(*OF_USERS, looks_up=["users", "api_keys"])
@security_audit_logs.on(*OF_ORDERS, looks_up=["users", "orders", "positions"])
def _audited(state: State, recorded: RecordedEvent, event: Event) -> None:
    resource, action = _done(recorded, event)
    metadata = recorded.metadata
    state.rows(SecurityAuditLog).add(
        recorded.event_id,
        recorded,
        timestamp=recorded.occurred_at,
        event_type=event.kind.__name__,
        user_id=_user_id(state, event),
        ip_address=metadata.ip_address,
        resource=resource[:TEXT_CHARS_MAX],
        action=action[:TEXT_CHARS_MAX],
        success=_is_success(event),
        details=_details(recorded),
        request_id=metadata.request_id and metadata.request_id[:TEXT_CHARS_MAX],
    )


def _is_success(event: Event) -> bool:
    if isinstance(event, RequestHandled):
        return not event.has_failed
    return not isinstance(event, FAILURES)


def _done(recorded: RecordedEvent, event: Event) -> tuple[str, str]:
    """Return what was used or changed, and how."""
    resource, action = recorded.stream, ACTIONS[event.kind]
    if isinstance(event, USES):
        return event.resource or resource, event.action or action
    return resource, action


def _user_id(state: State, event: Event) -> UUID | None:
    """Return the user whom the event names, or to whom the thing belongs that it names."""
    named: UUID | None = getattr(event, "user_id", None)
    if named is not None:
        return state.reference("users", named)
    for field, table in OWNERS.items():
        key = getattr(event, field, None)
        owner = None if key is None else state.look_up(table, key)
        if owner is not None:
            return owner.user_id  # type: ignore[no-any-return]
    return None


def _details(recorded: RecordedEvent) -> dict[str, Any]:
    """Return the event's fields as they would be stored today, without secrets, and who acted."""
    kind, version = recorded.event.kind, recorded.schema_version
    fields: dict[str, Any] = _decode(todays_body(recorded.body, kind, version, recorded.offset))
    for name in personal_fields(kind):
        # The body has them encrypted.
        fields[name] = getattr(recorded.event, name)
        if fields[name] is None:
            del fields[name]
    for name in LEFT_OUT:
        fields.pop(name, None)
    for name in ORIGINS:
        if (value := getattr(recorded.metadata, name)) is not None:
            fields[name] = str(value)
    if erased := sorted(set(recorded.erased).difference(SECRETS)):
        fields["erased"] = erased
    return fields
