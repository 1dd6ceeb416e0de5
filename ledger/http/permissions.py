"""What may be done over HTTP, and by whom: permissions, and the roles that stand for several.

A user has the permissions that were given to them and those of their roles. An API key has only
the ones that it was issued with, by their names: a role is none, nor is `*`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TABLES_READ = "tables:read"
OWN_READ = "own:read"
EVENTS_READ = "events:read"
EVENTS_WRITE = "events:write"
ORDERS_WRITE = "orders:write"
VENUE_WRITE = "venue:write"
MARKS_WRITE = "marks:write"
POSITIONS_WRITE = "positions:write"
USERS_WRITE = "users:write"
API_KEYS_WRITE = "api_keys:write"
ACT_ANY = "act:any"
OPERATIONS_READ = "operations:read"
OPERATIONS_WRITE = "operations:write"

PERMISSIONS: Mapping[str, str] = {
    TABLES_READ: "read all rows of all tables, at any point in time",
    OWN_READ: "read the rows of one's own user",
    EVENTS_READ: "read all events",
    EVENTS_WRITE: "append events of one's own, in place of commands only with their permissions",
    ORDERS_WRITE: "place, replace, cancel and fail orders",
    VENUE_WRITE: "report what happened at the venue: fills, busts, acceptances, rejections, …",
    MARKS_WRITE: "report mark prices",
    POSITIONS_WRITE: "set stop loss and take profit of positions",
    USERS_WRITE: "register users, change, lock, deactivate and erase them, end their sessions",
    API_KEYS_WRITE: "issue, rotate and revoke API keys",
    ACT_ANY: "act for other users than one's own",
    OPERATIONS_READ: "see workers, parked keys, rebuilds and sizes",
    OPERATIONS_WRITE: "retry and skip parked keys, start rebuilds",
}
"""What each permission allows."""

_AUDITOR = frozenset({TABLES_READ, EVENTS_READ, OPERATIONS_READ})

ROLES: Mapping[str, frozenset[str]] = {
    "auditor": _AUDITOR,
    "operator": _AUDITOR | {OPERATIONS_WRITE},
    "trader": frozenset({OWN_READ, ORDERS_WRITE, POSITIONS_WRITE}),
    "admin": frozenset(PERMISSIONS),
}
"""The permissions that a role stands for; a role of any other name stands for none."""


def permissions_of(permissions: Iterable[str], roles: Iterable[str]) -> frozenset[str]:
    """Return all that somebody with these permissions and roles may do."""
    return frozenset(permissions).union(*(ROLES.get(role, frozenset()) for role in roles))
