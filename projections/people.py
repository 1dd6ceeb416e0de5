"""What read models know of people: which groups see personal data, and who goes on with keys."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from ledger.event import personal_fields
from ledger.journal import Journal
from projections.fold import Group


@lru_cache(maxsize=32)
def sees_people(group: Group) -> bool:
    """Whether a group's folds see personal fields, be it only the ip address of the envelope."""
    return any(each.reads_envelope for each in group.projections) or any(
        personal_fields(each) for each in group.event_types
    )


async def keys_forgotten(journal: Journal, key_cache_seconds: float) -> None:
    """Wait until no process can read any more what was erased by now.

    That is when the last destroyed data key can be in nobody's memory: after `key_cache_seconds`,
    at most.
    """
    destroyed = await journal.privacy.destroyed()
    if not destroyed:
        return
    kept = timedelta(seconds=key_cache_seconds)
    until = max(each.destroyed_at for each in destroyed) + kept
    # Clocks may differ: what seems to lie in the future is waited for no longer than a key is kept.
    await asyncio.sleep(max(0.0, min(until - datetime.now(UTC), kept).total_seconds()))


PERSONAL_COLUMNS = {
    "users": ("username", "email", "password_hash", "is_erased"),
    "api_keys": ("key_hash", "name"),
    "security_audit_logs": ("ip_address", "details"),
}
"""The columns of read tables that an erasure changes."""

WITHHELD = "withheld: it may be of a person who was erased; then run `projections scrub`"


def is_withheld(table: str, column: str | None, expected: object) -> bool:
    """Whether a table's value is not to be shown where the journal says `expected` instead.

    Until the tables are scrubbed, they may hold what was erased.
    """
    if column not in PERSONAL_COLUMNS.get(table, ()):
        return False
    return expected is None or "erased" in str(expected)


def erased_in(table: str, column: str, dialect: str) -> str:
    """Return the SQL condition that a row `n`, as the journal makes it, has lost a column's value.

    Only that explains why a table holds another value than its fold gives.
    """
    if table == "users":
        return "n.is_erased"
    if table == "api_keys":
        return "n.name IS NULL"  # no key is issued without one
    is_sqlite = dialect == "sqlite"
    listed = "json_extract(n.details, '$.erased')" if is_sqlite else "n.details::jsonb -> 'erased'"
    if column == "details":
        return f"{listed} IS NOT NULL"
    return f"""coalesce(CAST({listed} AS text), '') LIKE '%"{column}"%'"""
