"""Between a group's state and its tables: load the rows that events need, write what changed."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.event import RecordedEvent
from projections.dialects import insert, is_among
from projections.fold import Group
from projections.model import values_of
from projections.projection import Projection, Rows, State


async def load(connection: AsyncConnection, state: State, events: Sequence[RecordedEvent]) -> None:
    """Bring into memory all rows that the fold of `events` may look up."""
    for rows in state.tables.values():
        projection = rows.projection
        if projection.append_only:
            continue
        keys = {key for each in events if (key := projection.wanted(each.event)) is not None}
        await _load(connection, rows, projection.table.c[projection.key], keys)
        for alias in projection.aliases:
            names = {name for each in events for name in alias.wanted(each.event)}
            await _load(connection, rows, projection.table.c[alias.column], names, alias.where)


async def _load(
    connection: AsyncConnection,
    rows: Rows[Any],
    column: sa.ColumnElement[Any],
    values: Collection[Hashable],
    where: sa.ColumnElement[bool] | None = None,
) -> None:
    """Load the rows whose `column` has one of `values`."""
    if not values:
        return
    table, dialect = rows.projection.table, connection.dialect
    query = sa.select(*table.columns).where(
        table.c.journal_id == rows.journal_id, is_among(column, values, dialect)
    )
    for record in await connection.execute(query if where is None else query.where(where)):
        rows.put(rows.projection.row(*record))


async def write(
    connection: AsyncConnection, group: Group, state: State, only: Collection[str] | None = None
) -> None:
    """Write the changed rows (of the tables `only`, if given), referenced tables first."""
    for projection in group.projections:
        if only is not None and projection.name not in only:
            continue
        changed = [values_of(row) for row in group.changed(state, projection.name)]
        if changed:
            await connection.execute(_upsert(projection, connection.dialect), changed)


@cache
def _upsert(projection: Projection[Any], dialect: Dialect) -> sa.Insert:
    """Return the statement that writes a changed row, new or not."""
    statement = insert(projection.table, dialect)
    if projection.append_only:
        return statement
    key = ("journal_id", projection.key)
    return statement.on_conflict_do_update(
        index_elements=key,
        set_={name: statement.excluded[name] for name in projection.columns if name not in key},
    )
