"""Tables beside the live ones: how they are called, and the account that is kept of them.

`positions__old` is the table that a rebuild has replaced. `positions__new_1f0c…` is one that is
being made: each rebuild has names of its own, so that a process which a killed one has left behind
somewhere can write nothing into the tables of the next.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from secrets import token_hex
from zlib import crc32

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from projections.bookkeeping import side_checkpoints, side_tables

NEW, OLD, BACK = "new", "old", "back"
"""Ends of names: being made, kept, and on the way back from being kept."""
NAME_CHARS_MAX = 63
_SIDE_TABLE = re.compile(r".+__(old|new_[0-9a-f]{8}(_raw)?)")


class SideTable(msgspec.Struct, frozen=True):
    """A table beside the live one of `table`, and its size by journal."""

    name: str
    table: str
    group: str
    role: str
    fold_version: str
    made_at: datetime
    sizes: dict[int, int]


def new_token() -> str:
    """Return what tells the names of one rebuild from those of all others."""
    return f"new_{token_hex(4)}"


def beside(name: str, suffix: str) -> str:
    """Return the name of what lies beside a live table, index or constraint; never too long."""
    full = f"{name}__{suffix}"
    if len(full) <= NAME_CHARS_MAX:
        return full
    kept = NAME_CHARS_MAX - len(suffix) - 12
    return f"{name[:kept]}__{crc32(name.encode()):08x}__{suffix}"


def kept_name(table: str) -> str:
    """Return the name under which the table that a rebuild replaces is kept."""
    return beside(table, OLD)


def restored(name: str, suffix: str, declared: Iterable[str]) -> str:
    """Return the name that `beside` made `name` of."""
    known = {beside(each, suffix): each for each in declared}
    return known.get(name, name.removesuffix(f"__{suffix}"))


def is_side_table(name: str | None) -> bool:
    """Whether a table of this name lies beside a live one, and is no part of the schema."""
    return name is not None and _SIDE_TABLE.fullmatch(name) is not None


async def listed(connection: AsyncConnection, role: str | None = None) -> list[SideTable]:
    """Return the tables beside the live ones (of one role, if given), by name."""
    sizes: dict[str, dict[int, int]] = {}
    for each in await connection.execute(sa.select(side_checkpoints)):
        sizes.setdefault(each.name, {})[each.journal_id] = each.size
    query = sa.select(side_tables).order_by(side_tables.c.name)
    found = await connection.execute(query if role is None else query.where(_has_role(role)))
    return [
        SideTable(
            row.name,
            row.table_name,
            row.group_name,
            row.role,
            row.fold_version,
            row.made_at,
            sizes.get(row.name, {}),
        )
        for row in found
    ]


def _has_role(role: str) -> sa.ColumnElement[bool]:
    return side_tables.c.role == role


async def record(connection: AsyncConnection, tables: Mapping[str, str], **values: str) -> None:
    """Note side tables, by the live ones' names; `values` are group_name, role, fold_version."""
    made_at = datetime.now(UTC)
    rows = [
        {"name": name, "table_name": table, "made_at": made_at, **values}
        for table, name in tables.items()
    ]
    await connection.execute(sa.insert(side_tables), rows)


async def forget(connection: AsyncConnection, names: Collection[str]) -> None:
    """Keep no account any more of these tables."""
    await connection.execute(sa.delete(side_tables).where(side_tables.c.name.in_(names)))
    await connection.execute(sa.delete(side_checkpoints).where(side_checkpoints.c.name.in_(names)))


async def forget_progress(connection: AsyncConnection) -> None:
    """Forget how far parts were that belong to no side table."""
    known = sa.select(side_tables.c.name)
    await connection.execute(
        sa.delete(side_checkpoints).where(side_checkpoints.c.name.not_in(known))
    )


async def set_size(
    connection: AsyncConnection, names: Iterable[str], journal_id: int, size: int
) -> None:
    """Note that these tables hold the first `size` events of a journal."""
    names = list(names)
    own = (side_checkpoints.c.name.in_(names), side_checkpoints.c.journal_id == journal_id)
    await connection.execute(sa.delete(side_checkpoints).where(*own))
    rows = [{"name": name, "journal_id": journal_id, "size": size} for name in names]
    await connection.execute(sa.insert(side_checkpoints), rows)


async def read_sizes(connection: AsyncConnection, name: str) -> dict[int, int]:
    """Return the size of a side table by journal."""
    columns = (side_checkpoints.c.journal_id, side_checkpoints.c.size)
    found = await connection.execute(sa.select(*columns).where(side_checkpoints.c.name == name))
    return {row[0]: row[1] for row in found}


async def read_progress(connection: AsyncConnection, names: Collection[str]) -> int:
    """Return how many events the parts with these names have folded."""
    total = sa.select(sa.func.coalesce(sa.func.sum(side_checkpoints.c.size), 0))
    return int(await connection.scalar(total.where(side_checkpoints.c.name.in_(names))) or 0)
