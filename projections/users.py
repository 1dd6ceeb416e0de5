"""Users: who they are, what they may do, and whether they can log in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Index, false
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ledger.domain.users import (
    AccountLocked,
    AccountUnlocked,
    EmailChanged,
    Guesses,
    LoginFailed,
    LoginSucceeded,
    PasswordChanged,
    PermissionsChanged,
    RolesChanged,
    UserDeactivated,
    UserErased,
    UserEvent,
    UserReactivated,
    UserRegistered,
)
from ledger.event import RecordedEvent
from projections.model import TimedModel
from projections.numbers import short
from projections.projection import Projection, State

ADMIN = "admin"


class User(TimedModel):
    """A user. Personal columns are NULL after an erasure, and where a text is too long for them.

    Once the data are gone, `is_erased` is true at whatever point in time one asks, from the
    registration on; `is_active` is what it was then.

    `failed_login_attempts` counts as the decider does: failures of checked passwords since the last
    success, unlock or lock that is over. During a lock it is the number that led to it.
    """

    __tablename__ = "users"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    username: Mapped[str | None]
    email: Mapped[str | None]
    password_hash: Mapped[str | None]
    permissions: Mapped[list[str]] = mapped_column(default=list)
    roles: Mapped[list[str]] = mapped_column(default=list)
    failed_login_attempts: Mapped[int] = mapped_column(default=0)
    locked_until: Mapped[datetime | None]
    last_login: Mapped[datetime | None]
    is_active: Mapped[bool] = mapped_column(default=True)
    is_erased: Mapped[bool] = mapped_column(default=False, server_default=false(), sort_order=101)

    api_keys: Mapped[list[Any]] = relationship("ApiKey", viewonly=True, lazy="raise")
    positions: Mapped[list[Any]] = relationship("Position", viewonly=True, lazy="raise")
    orders: Mapped[list[Any]] = relationship("Order", viewonly=True, lazy="raise")
    audit_logs: Mapped[list[Any]] = relationship("SecurityAuditLog", viewonly=True, lazy="raise")

    # The journal sees to it that nobody else holds a user's e-mail address. A unique index would
    # only fire in the middle of a batch in which one user gives an address up and another takes it.
    __table_args__ = (
        Index("uq_users_username", "journal_id", "username", unique=True),
        Index(None, "journal_id", "email"),
        Index(None, "journal_id", "locked_until"),
        Index(None, "journal_id", "created_at"),
    )

    @property
    def is_locked(self) -> bool:
        """Whether logins are refused at this moment."""
        return self.locked_until is not None and self.locked_until > datetime.now(UTC)

    def has_permission(self, permission: str) -> bool:
        """Whether the user is active, not erased, and has the permission."""
        return self._may_act and permission in self.permissions

    def has_role(self, role: str) -> bool:
        """Whether the user is active, not erased, and has the role."""
        return self._may_act and role in self.roles

    @property
    def has_admin_role(self) -> bool:
        """Whether the user is active and an administrator."""
        return self.has_role(ADMIN)

    @property
    def _may_act(self) -> bool:
        return self.is_active and not self.is_erased


users = Projection(User)

AnyUserEvent = UserEvent | LoginFailed | AccountLocked


@users.on(UserRegistered)
def _registered(state: State, recorded: RecordedEvent, event: UserRegistered) -> None:
    """Only the first registration of an id counts."""
    rows = state.rows(User)
    if rows.get(event.user_id) is None:
        rows.add(
            event.user_id,
            recorded,
            username=short(event.username),
            email=short(event.email),
            password_hash=short(event.password_hash),
            permissions=list(event.permissions),
            roles=list(event.roles),
            is_erased="username" in recorded.erased,
        )


@users.on(
    PasswordChanged,
    EmailChanged,
    PermissionsChanged,
    RolesChanged,
    AccountLocked,
    AccountUnlocked,
    LoginSucceeded,
    LoginFailed,
    UserDeactivated,
    UserReactivated,
    UserErased,
)
def _changed(state: State, recorded: RecordedEvent, event: AnyUserEvent) -> None:
    """Events about users that were never registered change nothing."""
    row = state.rows(User).edit(event.user_id, recorded)
    if row is not None:
        guesses = Guesses(row.failed_login_attempts, row.locked_until)
        guesses = guesses.after(event, min(recorded.occurred_at, recorded.recorded_at))
        row.failed_login_attempts, row.locked_until = guesses.failures, guesses.locked_until
        _change(row, recorded.occurred_at, event)


def _change(row: User, occurred_at: datetime, event: AnyUserEvent) -> None:
    match event:
        case PasswordChanged():
            row.password_hash = None if row.is_erased else short(event.password_hash)
        case EmailChanged():
            row.email = None if row.is_erased else short(event.email)
        case PermissionsChanged():
            row.permissions = list(event.permissions)
        case RolesChanged():
            row.roles = list(event.roles)
        case _:
            _change_access(row, occurred_at, event)


def _change_access(row: User, occurred_at: datetime, event: AnyUserEvent) -> None:
    match event:
        case LoginSucceeded():
            row.last_login = occurred_at
        case UserDeactivated() | UserReactivated():
            row.is_active = isinstance(event, UserReactivated)
        case UserErased():
            row.username = row.email = row.password_hash = None
            row.is_active, row.is_erased = False, True
