"""Who may read which rows: all of them, or those of their own user."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import Depends, Request

from ledger.http.auth import Principal, require
from ledger.http.errors import Forbidden
from ledger.http.permissions import OWN_READ, TABLES_READ
from projections.http.opening import get_reading
from projections.points import Point, untold
from projections.reading import Reading
from projections.reading.paging import Filter

OWNED = ("users", "api_keys", "orders", "positions", "security_audit_logs")
"""Tables whose rows have a `user_id`, whose they are."""

OPEN = ("marks",)
"""Tables that belong to nobody."""


class Reader(msgspec.Struct, frozen=True):
    """Somebody who may read tables, and what they read."""

    who: Principal
    reading: Reading

    @property
    def reads_all(self) -> bool:
        """Whether all rows of all tables are theirs to read."""
        return self.who.may(TABLES_READ)

    def require_all(self) -> None:
        """Raise Forbidden for who may read only their own rows."""
        if not self.reads_all:
            raise Forbidden(TABLES_READ)

    def filters(self, table: str) -> tuple[Filter, ...]:
        """Return what rows of a table must be to be theirs to read; raises Forbidden."""
        if self.reads_all or table in OPEN:
            return ()
        if table not in OWNED:
            raise Forbidden(TABLES_READ)
        return (Filter("user_id", "eq", str(self.who.user_id)),)

    def told(self, point: Point) -> Point:
        """Return a point with what may be said of it: keys and errors may be of others."""
        return point if self.reads_all else untold(point)

    def may_see(self, table: str, row: dict[str, Any]) -> bool:
        """Whether a row of a table is theirs to read; raises Forbidden as `filters` does."""
        return not self.filters(table) or row["user_id"] == str(self.who.user_id)


async def reader(request: Request, who: Annotated[Principal, Depends(require())]) -> Reader:
    """Return who reads; a dependency. Raises Forbidden for who may read no table."""
    if not (who.may(TABLES_READ) or who.may(OWN_READ)):
        raise Forbidden(TABLES_READ)
    return Reader(who, get_reading(request))
