"""Security events as OCSF, the Open Cybersecurity Schema Framework: one JSON object an event.

Logins are Authentication (3002). What is done to users is User Management (3007), which has taken
the place of Account Change (3001): that is deprecated since 1.9.0. What is done to API keys, and
with them, is API Activity (6003). docs/reports.md has the tables.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from ledger.domain.api_keys import (
    ApiKeyIssued,
    ApiKeyRefused,
    ApiKeyRevoked,
    ApiKeyRotated,
    ApiKeyUsed,
    api_key_stream,
)
from ledger.domain.requests import RequestHandled
from ledger.domain.sessions import (
    EndReason,
    SessionEnded,
    SessionEvent,
    SessionRefreshed,
    SessionStarted,
)
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
    user_stream,
)
from ledger.event import Event, RecordedEvent
from ledger.journal import Journal
from ledger.sqltypes import time_to_text
from projections.reports.span import Span, first_event, read_span

OCSF_VERSION = "1.9.0"
PRODUCT = "ledger"
PACKAGE = "trading-ledger"
UNKNOWN = "unknown"
NAMES_KEPT_MAX = 10_000

AUTHENTICATION, USER_MANAGEMENT, API_ACTIVITY = 3002, 3007, 6003
CLASSES = {
    AUTHENTICATION: "Authentication",
    USER_MANAGEMENT: "User Management",
    API_ACTIVITY: "API Activity",
}
CATEGORIES = {3: "Identity & Access Management", 6: "Application Activity"}
ACTIVITIES = {
    AUTHENTICATION: {
        1: "Logon",
        2: "Logoff",
        3: "Authentication Ticket",
        5: "Service Ticket Renew",
        6: "Preauth",
    },
    USER_MANAGEMENT: {
        1: "Create",
        2: "Update",
        3: "Delete",
        4: "Enable",
        5: "Disable",
        6: "Lock",
        7: "Unlock",
        8: "Password Change",
    },
    API_ACTIVITY: {1: "Create", 2: "Read", 3: "Update", 4: "Delete"},
}
OTHER = 99

INFORMATIONAL, LOW, MEDIUM = 1, 2, 3
SEVERITIES = {INFORMATIONAL: "Informational", LOW: "Low", MEDIUM: "Medium"}
STATUSES = {0: "Unknown", 1: "Success", 2: "Failure"}


class Kind(NamedTuple):
    """How events of a type are classified."""

    class_uid: int
    activity_id: int
    severity_id: int = INFORMATIONAL
    status_id: int = 1


KINDS: Mapping[type[Event], Kind] = {
    LoginAttempted: Kind(AUTHENTICATION, 6, status_id=0),
    LoginSucceeded: Kind(AUTHENTICATION, 1),
    LoginFailed: Kind(AUTHENTICATION, 1, LOW, 2),
    SessionStarted: Kind(AUTHENTICATION, 3),
    SessionRefreshed: Kind(AUTHENTICATION, 5),
    SessionEnded: Kind(AUTHENTICATION, 2),
    SessionsEnded: Kind(AUTHENTICATION, 2),
    UserRegistered: Kind(USER_MANAGEMENT, 1),
    EmailChanged: Kind(USER_MANAGEMENT, 2),
    PermissionsChanged: Kind(USER_MANAGEMENT, 2),
    RolesChanged: Kind(USER_MANAGEMENT, 2),
    LegalHoldPlaced: Kind(USER_MANAGEMENT, 2),
    LegalHoldLifted: Kind(USER_MANAGEMENT, 2),
    UserErased: Kind(USER_MANAGEMENT, 3),
    UserReactivated: Kind(USER_MANAGEMENT, 4),
    UserDeactivated: Kind(USER_MANAGEMENT, 5),
    AccountLocked: Kind(USER_MANAGEMENT, 6, MEDIUM),
    AccountUnlocked: Kind(USER_MANAGEMENT, 7),
    PasswordChanged: Kind(USER_MANAGEMENT, 8),
    ApiKeyIssued: Kind(API_ACTIVITY, 1),
    ApiKeyRotated: Kind(API_ACTIVITY, 3),
    ApiKeyRevoked: Kind(API_ACTIVITY, 4),
    ApiKeyUsed: Kind(API_ACTIVITY, OTHER),
    ApiKeyRefused: Kind(API_ACTIVITY, OTHER, LOW, 2),
    RequestHandled: Kind(API_ACTIVITY, OTHER),
}
"""The event types that are reported."""

OPERATIONS: Mapping[type[Event], str] = {
    ApiKeyIssued: "issue_key",
    ApiKeyRotated: "rotate_key",
    ApiKeyRevoked: "revoke_key",
}

VERBS = {
    1: ("post", "create", "add", "issue", "run"),
    2: ("get", "head", "list", "describe", "read", "lookup"),
    3: ("put", "patch", "update", "modify", "set"),
    4: ("delete", "remove", "terminate"),
}
"""How the names of actions begin that a key was used for, by activity."""

MAPPED = frozenset(
    (
        "user_id",
        "session_id",
        "status",
        "username",
        "email",
        "source",
        "reason",
        "count",
        "action",
        "resource",
        "key_id",
    )
)
"""Fields that have attributes of their own."""
UNMAPPED = (
    "attempt_id",
    "expires_at",
    "locked_until",
    "name",
    "name_digest",
    "permissions",
    "presented",
    "previous_email",
    "rate_limit",
    "roles",
    "successor_key_id",
    "upgraded",
)
"""Fields that are reported as they are; what is not named here or above is not reported at all."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Named(NamedTuple):
    """The user whom an event is about, as far as is known."""

    user_id: UUID | None
    username: str | None


class Names:
    """Whose a key is and what users are called: as the first events of their streams say.

    Those asked for last are kept, up to a number.
    """

    def __init__(self, journal: Journal, stop: int) -> None:
        """Take the journal, and the offset before which the streams must have begun."""
        self._journal = journal
        self._stop = stop
        self._kept: OrderedDict[str, Event | None] = OrderedDict()

    async def of(self, event: Event) -> Named:
        """Return whom an event names, or to whom the key belongs that it names."""
        user_id: UUID | None = getattr(event, "user_id", None)
        key_id: UUID | None = getattr(event, "key_id", None)
        if user_id is None and key_id is not None:
            user_id = getattr(await self._first(api_key_stream(key_id)), "user_id", None)
        username: str | None = getattr(event, "username", None)
        if username is None and user_id is not None:
            username = getattr(await self._first(user_stream(user_id)), "username", None)
        return Named(user_id, username)

    async def _first(self, stream: str) -> Event | None:
        if stream not in self._kept:
            self._kept[stream] = await first_event(self._journal, stream, self._stop)
            if len(self._kept) > NAMES_KEPT_MAX:
                self._kept.popitem(last=False)
        self._kept.move_to_end(stream)
        return self._kept[stream]


async def security_events(
    journal: Journal, span: Span
) -> AsyncIterator[tuple[list[dict[str, Any]], int]]:
    """Yield OCSF events in lists, in the order of the journal, each with the offsets read."""
    names = Names(journal, span.stop)
    async for chunk, count in read_span(journal, span, KINDS):
        yield [as_ocsf(span, each, await names.of(each.event)) for each in chunk], count


def as_ocsf(span: Span, recorded: RecordedEvent, named: Named) -> dict[str, Any]:
    """Return a recorded event of one of KINDS as an OCSF event; `named` is whom it is about."""
    event = recorded.event
    kind = _kind_of(event)
    found = _classified(kind, event)
    found["time"] = _milliseconds(recorded.occurred_at)
    found["message"] = f"{recorded.type} in {recorded.stream}"
    found["metadata"] = _metadata(span.journal, recorded)
    if kind.class_uid == API_ACTIVITY:
        found |= _api_activity(recorded, named)
    else:
        found |= _of_user(span.journal, recorded, named)
    if (reason := getattr(event, "reason", None)) is not None:
        found["status_detail"] = reason
    if (count := getattr(event, "count", 1)) != 1:
        found["count"] = count
    found["unmapped"] = _unmapped(recorded) | {"journal_size": span.size}
    if span.root is not None:
        found["unmapped"]["journal_root"] = span.root
    return found


def _kind_of(event: Event) -> Kind:
    kind = KINDS[event.kind]
    if isinstance(event, ApiKeyUsed | ApiKeyRefused):
        return kind._replace(activity_id=activity_of(event.action))
    if isinstance(event, RequestHandled):
        severity_id, status_id = (LOW, 2) if event.has_failed else (INFORMATIONAL, 1)
        return Kind(API_ACTIVITY, activity_of(event.action), severity_id, status_id)
    if isinstance(event, PasswordChanged) and event.upgraded:
        return kind._replace(activity_id=2)  # the password is the same
    if isinstance(event, SessionEnded) and event.reason == EndReason.REUSED:
        return kind._replace(severity_id=MEDIUM)
    return kind


def activity_of(action: str | None) -> int:
    """Return the API activity that an action's name begins with (`GET`, `CreateUser`, …)."""
    name = (action or "").lower()
    for activity_id, verbs in VERBS.items():
        if name.startswith(verbs):
            return activity_id
    return OTHER


def _classified(kind: Kind, event: Event) -> dict[str, Any]:
    class_name, category_uid = CLASSES[kind.class_uid], kind.class_uid // 1000
    activity = ACTIVITIES[kind.class_uid].get(kind.activity_id)
    # Of an activity that has no number the name is to be the source's own.
    name = activity or getattr(event, "action", None) or UNKNOWN
    return {
        "class_uid": kind.class_uid,
        "class_name": class_name,
        "category_uid": category_uid,
        "category_name": CATEGORIES[category_uid],
        "activity_id": kind.activity_id,
        "activity_name": name,
        "type_uid": kind.class_uid * 100 + kind.activity_id,
        "type_name": f"{class_name}: {activity or 'Other'}",
        "severity_id": kind.severity_id,
        "severity": SEVERITIES[kind.severity_id],
        "status_id": kind.status_id,
        "status": STATUSES[kind.status_id],
    }


@cache
def product() -> dict[str, str]:
    """Return what wrote the report; without a version where it runs without being installed."""
    found = {"name": PRODUCT, "vendor_name": PRODUCT}
    try:
        return found | {"version": version(PACKAGE)}
    except PackageNotFoundError:
        return found


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _metadata(journal: str, recorded: RecordedEvent) -> dict[str, Any]:
    found: dict[str, Any] = {
        "version": OCSF_VERSION,
        "product": product(),
        "uid": str(recorded.event_id),
        "event_code": recorded.type,
        "sequence": recorded.offset,
        "log_name": journal,
        "log_version": str(recorded.schema_version),
        "logged_time": _milliseconds(recorded.recorded_at),
        "original_time": time_to_text(recorded.occurred_at),
    }
    if recorded.metadata.correlation_id is not None:
        found["correlation_uid"] = str(recorded.metadata.correlation_id)
    return found


def _of_user(journal: str, recorded: RecordedEvent, named: Named) -> dict[str, Any]:
    """Return the attributes of a login, or of what was done to a user."""
    event = recorded.event
    found: dict[str, Any] = {
        "user": _user(named, getattr(event, "email", None)),
        "service": {"name": PRODUCT, "uid": journal},
    }
    if (source := _source(recorded)) is not None:
        found["src_endpoint"] = source
    if recorded.metadata.actor is not None:
        found["actor"] = {"app_name": recorded.metadata.actor}
    if isinstance(event, SessionEvent):
        found["session"] = {"uid": str(event.session_id)}
    if isinstance(event, EmailChanged):
        del found["service"]
        found["user"] = _user(named, event.previous_email)
        found["updated_user"] = _user(named, event.email)
    elif isinstance(event, PermissionsChanged):
        found["privileges"] = list(event.permissions)
    elif isinstance(event, RolesChanged):
        found["iam_roles"] = [{"name": role} for role in event.roles]
    return found


def _user(named: Named, email: str | None = None) -> dict[str, Any]:
    found = {
        "uid": None if named.user_id is None else str(named.user_id),
        "name": named.username,
        "email_addr": email,
    }
    given = {name: value for name, value in found.items() if value}
    return given or {"name": UNKNOWN}


def _source(recorded: RecordedEvent) -> dict[str, Any] | None:
    """Return from where an event came, None where that is not known."""
    source: str | None = getattr(recorded.event, "source", None)
    found = {"ip": recorded.metadata.ip_address, "name": source}
    return {name: value for name, value in found.items() if value} or None


def _api_activity(recorded: RecordedEvent, named: Named) -> dict[str, Any]:
    """Return the attributes of what was done to a key, or with it."""
    event, metadata = recorded.event, recorded.metadata
    operation = OPERATIONS.get(event.kind) or getattr(event, "action", None) or UNKNOWN
    api: dict[str, Any] = {"operation": operation}
    if metadata.request_id is not None:
        api["request"] = {"uid": metadata.request_id}
    if isinstance(event, RequestHandled):
        api["response"] = {"code": event.status}
    return {
        "actor": _key_actor(recorded, named),
        "api": api,
        "src_endpoint": _source(recorded) or {"name": UNKNOWN},
        "resources": _resources(event),
    }


def _key_actor(recorded: RecordedEvent, named: Named) -> dict[str, Any]:
    """Return who acted: who used the key, or who dealt with it, as far as that is known."""
    event, actor = recorded.event, recorded.metadata.actor
    found: dict[str, Any] = {}
    if actor is not None:
        found["app_name"] = actor
    if isinstance(event, ApiKeyUsed | ApiKeyRefused) and named.user_id is not None:
        found["user"] = {**_user(named), "credential_uid": str(event.key_id)}
    if isinstance(event, RequestHandled):
        found["user"] = _user(named)
        if event.session_id is not None:
            found["session"] = {"uid": str(event.session_id)}
    return found or {"app_name": UNKNOWN}


def _resources(event: Event) -> list[dict[str, Any]]:
    key_id: UUID | None = getattr(event, "key_id", None)
    found: list[dict[str, Any]] = []
    if key_id is not None:
        found.append({"uid": str(key_id), "type": "api_key"})
    if (resource := getattr(event, "resource", None)) is not None:
        found.append({"name": resource})
    return found


def _unmapped(recorded: RecordedEvent) -> dict[str, Any]:
    """Return what OCSF has no attribute for: the journal's own words, and what was erased."""
    event, metadata = recorded.event, recorded.metadata
    found: dict[str, Any] = {"stream": recorded.stream, "stream_version": recorded.version}
    for name in UNMAPPED:
        value = getattr(event, name, None)
        if value not in (None, (), False):
            found[name] = msgspec.to_builtins(value)
    for name in ("request_id", "causation_id"):
        if (value := getattr(metadata, name)) is not None:
            found[name] = str(value)
    if recorded.erased:
        found["erased"] = sorted(recorded.erased)
    return found
