"""Which orders and positions have facts that did not fit."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from projections.model import Flags, ReadModel
from projections.orders import Order
from projections.positions import Position


class Flagged(msgspec.Struct, frozen=True):
    """A row with flags: how often each kind of misfit was recorded, and when the row changed."""

    table: str
    key: UUID
    status: str
    flags: Flags
    changed_size: int


async def flagged(
    connection: AsyncConnection, journal_id: int, flag: str | None = None
) -> list[Flagged]:
    """Return the flagged orders, then the flagged positions of a journal, latest change first.

    With `flag` only those that have this one; `unknown_order:` stands for all that begin so.
    """
    found: list[Flagged] = []
    for model, key in ((Order, "order_id"), (Position, "position_id")):
        rows = await connection.execute(_query(model, key, journal_id))
        found += (Flagged(model.__tablename__, *row) for row in rows)
    return [each for each in found if flag is None or any(_is(name, flag) for name in each.flags)]


def _query(model: type[ReadModel], key: str, journal_id: int) -> sa.Select[Any]:
    columns = model.__table__.c
    chosen = (columns[name] for name in (key, "status", "flags", "changed_size"))
    return (
        sa.select(*chosen)
        .where(columns.journal_id == journal_id, sa.cast(columns.flags, sa.String) != "{}")
        .order_by(columns.changed_size.desc(), columns[key])
    )


def _is(name: str, flag: str) -> bool:
    return name == flag or (flag.endswith(":") and name.startswith(flag))
