"""Between a group's state and its tables: load the rows that events need, write what changed."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.event import RecordedEvent
from projections.dialects import insert, is_among
from projections.fold import Group
from projections.model import ReadModel, values_of
from projections.projection import Projection, Rows, State
from projections.rendering import encodable

_encode = msgspec.json.Encoder(enc_hook=encodable).encode


async def load(connection: AsyncConnection, state: State, events: Sequence[RecordedEvent]) -> None:
    """Bring into memory all rows that the fold of `events` may look up, if they are not there."""
    for rows in state.tables.values():
        projection = rows.projection
        if projection.append_only:
            continue
        # Ids are slow to hash: each is looked up once, and only those that are missing go on.
        wanted = (projection.wanted(each.event) for each in events)
        keys = {key for key in wanted if key is not None and rows.get(key) is None}
        await _load(connection, rows, projection.table.c[projection.key], keys)
        for alias in projection.aliases:
            named = (name for each in events for name in alias.wanted(each.event))
            names = {name for name in named if not rows.has(alias, name)}
            await _load(connection, rows, projection.table.c[alias.column], names, alias.where)


async def _load(
    connection: AsyncConnection,
    rows: Rows[Any],
    column: sa.ColumnElement[Any],
    values: Collection[Hashable],
    where: Mapping[str, str] | None = None,
) -> None:
    """Load the rows whose `column` has one of `values`."""
    if not values:
        return
    table, dialect = rows.projection.table, connection.dialect
    query = sa.select(*table.columns).where(
        table.c.journal_id == rows.journal_id, is_among(column, values, dialect)
    )
    also = (table.c[name] == wanted for name, wanted in (where or {}).items())
    for record in await connection.execute(query.where(*also)):
        rows.put(rows.projection.row(*record))


async def write(
    connection: AsyncConnection, group: Group, state: State, only: Collection[str] | None = None
) -> None:
    """Write the changed rows (of the tables `only`, if given), referenced tables first."""
    for projection in group.projections:
        if only is not None and projection.name not in only:
            continue
        changed = group.changed(state, projection.name)
        if changed:
            await _write(connection, projection, changed)


async def _write(
    connection: AsyncConnection, projection: Projection[Any], rows: Sequence[ReadModel]
) -> None:
    if connection.dialect.name == "sqlite":
        await connection.execute(
            _upsert(projection, connection.dialect), list(map(values_of, rows))
        )
        return
    # One parameter for all: binding each value of each row takes several times as long.
    encoded = _encode(rows).decode()
    await connection.execute(_upsert_all(projection, connection.dialect), {"rows": encoded})


@cache
def _upsert_all(projection: Projection[Any], dialect: Dialect) -> sa.Insert:
    """Return the statement that writes the rows in a JSON array, new or not."""
    columns = [sa.column(each.name, each.type) for each in projection.table.columns]
    array = sa.cast(sa.bindparam("rows", type_=sa.Text), sa.JSON)
    rows = sa.func.json_to_recordset(array).table_valued(*columns).render_derived(with_types=True)
    statement = insert(projection.table, dialect)
    return _replacing(projection, statement.from_select(projection.columns, sa.select(rows)))


@cache
def _upsert(projection: Projection[Any], dialect: Dialect) -> sa.Insert:
    """Return the statement that writes a changed row, new or not."""
    return _replacing(projection, insert(projection.table, dialect))


def _replacing(projection: Projection[Any], statement: Any) -> sa.Insert:
    """Let a statement replace rows of which the keys are there; append-only ones have new keys."""
    if projection.append_only:
        return cast("sa.Insert", statement)
    key = ("journal_id", projection.key)
    replaced = {name: statement.excluded[name] for name in projection.columns if name not in key}
    return cast("sa.Insert", statement.on_conflict_do_update(index_elements=key, set_=replaced))
