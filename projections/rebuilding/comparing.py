"""Comparing new tables with the live ones, at the same size and without keeping anybody waiting.

The checkpoints are locked only until the new tables are at exactly their size and a snapshot has
been taken, in which both are compared at leisure. Where the new tables are further than the live
ones, which nobody keeps up, rows that changed since are left out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from projections.database import explained
from projections.people import PERSONAL_COLUMNS, WITHHELD, erased_in, is_withheld
from projections.projection import Projection
from projections.rebuilding.following import Follower
from projections.rebuilding.plan import Plan
from projections.rebuilding.shape import Shape
from projections.rebuilding.work import Work

JOIN_MEMORY = "256MB"


class ColumnDifference(msgspec.Struct, frozen=True):
    """How many rows differ in a column, and the first of them by key.

    Of the rows some may be those of erased people, whose values the journal no longer has: so many
    are `erased`.
    """

    column: str
    rows: int
    key: str
    old: str | None
    new: str | None
    erased: int = 0


class Comparison(msgspec.Struct, frozen=True):
    """How a new table differs from the live one.

    `columns` are in both tables; what is in one only is named, and is no difference. Of rows that
    are in one table only there are the number and the first key. `is_asked` is False for a table
    that is not to be swapped, and was made only because the folds of others look at it.
    """

    table: str
    is_asked: bool
    old_rows: int
    new_rows: int
    only_old: tuple[int, str | None]
    only_new: tuple[int, str | None]
    differing: tuple[ColumnDifference, ...]
    columns_only_old: tuple[str, ...]
    columns_only_new: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether there is no difference."""
        return not (self.differing or self.only_old[0] or self.only_new[0])

    def __str__(self) -> str:
        lines = [f"{self.table}: {self.old_rows:,} rows before, {self.new_rows:,} now"]
        if not self.is_asked:
            lines[0] += " (not asked for, but its fold gives other rows: rebuild it as well)"
        for where, (count, key) in (("before", self.only_old), ("now", self.only_new)):
            if count:
                lines.append(f"  rows only {where}: {count:,}, the first: {key}")
        lines += [
            f"  {each.column} differs in {each.rows:,} rows, the first: {each.key}: "
            f"{_shown(each.old)} -> {_shown(each.new)}"
            for each in self.differing
        ]
        for when, names in (("before", self.columns_only_old), ("now", self.columns_only_new)):
            if names:
                lines.append(f"  columns only {when}: {', '.join(names)}")
        return "\n".join(lines)


def _shown(value: str | None) -> str:
    return "-" if value is None else value


async def compare(work: Work, plan: Plan, follower: Follower, shape: Shape) -> list[Comparison]:
    """Compare all tables of the plan with the live ones."""
    async with _snapshot(work, plan, follower, shape) as (connection, live):
        found = []
        for projection in plan.closure.projections:
            if projection.name in plan.names and any(live.values()):
                columns = [
                    await shape.columns(connection, name)
                    for name in (projection.name, plan.names[projection.name])
                ]
                comparer = _Comparer(connection, projection, plan, columns[0], columns[1], live)
                found.append(await comparer.compare())
        return found


@asynccontextmanager
async def _snapshot(
    work: Work, plan: Plan, follower: Follower, shape: Shape
) -> AsyncIterator[tuple[AsyncConnection, dict[int, int]]]:
    """Yield a connection that sees both tables at the live sizes, and these sizes."""
    with explained():
        async with _reader(work) as connection:
            live = await follower.meet(shape, connection)
            if not work.is_sqlite:
                await connection.exec_driver_sql(f"SET LOCAL work_mem = '{JOIN_MEMORY}'")
            yield connection, live


@asynccontextmanager
async def _reader(work: Work) -> AsyncIterator[AsyncConnection]:
    async with work.database.engine.connect() as connection:
        if not work.is_sqlite:
            await connection.execution_options(isolation_level="REPEATABLE READ")
        async with connection.begin():
            yield connection


class _Comparer:
    """Compares one table, in SQL."""

    def __init__(
        self,
        connection: AsyncConnection,
        projection: Projection[Any],
        plan: Plan,
        old_columns: Mapping[str, str],
        new_columns: Mapping[str, str],
        live: Mapping[int, int],
    ) -> None:
        self._connection = connection
        self._dialect: Dialect = connection.dialect
        self._table = projection.name
        self._key = projection.key
        self._is_asked = projection.name in plan.asked
        self._columns = {
            name: (old_columns[name], kind)
            for name, kind in new_columns.items()
            if name in old_columns and name not in ("journal_id", projection.key)
        }
        self._only_old = tuple(name for name in old_columns if name not in new_columns)
        self._only_new = tuple(name for name in new_columns if name not in old_columns)
        quote = self._dialect.identifier_preparer.quote
        self._old, self._new = quote(projection.name), quote(plan.names[projection.name])
        self._quote = quote
        self._live = live

    @property
    def _in_time(self) -> str:
        """The condition that a row of the new table is no newer than the live ones can be."""
        cases = " ".join(f"WHEN {journal} THEN {size}" for journal, size in self._live.items())
        return f"n.changed_size <= CASE n.journal_id {cases} ELSE 0 END"

    @property
    def _joined(self) -> str:
        key = self._quote(self._key)
        return (
            f"{self._old} o JOIN {self._new} n "
            f"ON n.journal_id = o.journal_id AND n.{key} = o.{key} AND {self._in_time}"
        )

    async def compare(self) -> Comparison:
        """Return all differences, of each kind the number and the first one."""
        old_rows = await self._scalar(f"SELECT count(*) FROM {self._old}")
        new_rows = await self._scalar(f"SELECT count(*) FROM {self._new} n WHERE {self._in_time}")
        both, differing = await self._compare_columns()
        only_old = old_rows - both - await self._moved_on()
        return Comparison(
            self._table,
            self._is_asked,
            old_rows,
            new_rows,
            (only_old, await self._first_missing(self._old, self._new, "true", only_old)),
            (
                new_rows - both,
                await self._first_missing(self._new, self._old, self._in_time, new_rows - both),
            ),
            tuple([each async for each in self._described(differing)]),
            self._only_old,
            self._only_new,
        )

    async def _moved_on(self) -> int:
        """Return how many old rows the new table has in a later state."""
        key = self._quote(self._key)
        return await self._scalar(
            f"SELECT count(*) FROM {self._new} n JOIN {self._old} o "
            f"ON o.journal_id = n.journal_id AND o.{key} = n.{key} WHERE NOT ({self._in_time})"
        )

    async def _compare_columns(self) -> tuple[int, dict[str, tuple[int, str]]]:
        """Return the number of rows in both, and for each column how many differ, and the first."""
        differs = {name: self._differs(name) for name in self._columns}
        counts = [f"count(CASE WHEN {condition} THEN 1 END)" for condition in differs.values()]
        query = f"SELECT {', '.join(['count(*)', *counts])} FROM {self._joined}"
        both, *counted = tuple[int, ...]((await self._connection.exec_driver_sql(query)).one())
        differing = {name: n for name, n in zip(differs, counted, strict=True) if n}
        first = await self._first_differing([differs[name] for name in differing])
        return both, {
            name: (count, str(key))
            for (name, count), key in zip(differing.items(), first, strict=True)
        }

    async def _first_differing(self, conditions: Sequence[str]) -> Sequence[object]:
        if not conditions:
            return []
        key = self._text(f"o.{self._quote(self._key)}")
        parts = (f"min(CASE WHEN {condition} THEN {key} END)" for condition in conditions)
        query = f"SELECT {', '.join(parts)} FROM {self._joined}"
        return (await self._connection.exec_driver_sql(query)).one()

    def _differs(self, name: str) -> str:
        old, new = f"o.{self._quote(name)}", f"n.{self._quote(name)}"
        kinds = self._columns[name]
        if self._dialect.name == "sqlite":
            # JSON is text there; both texts are valid, but may be spaced differently.
            is_json = kinds == ("JSON", "JSON")
            return f"json({old}) IS NOT json({new})" if is_json else f"{old} IS NOT {new}"
        if kinds == ("json", "json"):
            texts = f"{old}::text IS DISTINCT FROM {new}::text"
            return f"({texts} AND {old}::jsonb IS DISTINCT FROM {new}::jsonb)"
        if kinds[0] != kinds[1]:
            return f"{old}::text IS DISTINCT FROM {new}::text"
        return f"{old} IS DISTINCT FROM {new}"

    def _text(self, expression: str) -> str:
        return f"CAST({expression} AS text)"

    async def _first_missing(self, inside: str, outside: str, where: str, count: int) -> str | None:
        """Return the first key that one table has and the other lacks."""
        if not count:
            return None
        key = self._quote(self._key)
        return await self._connection_scalar(
            f"SELECT min({self._text(f'n.{key}')}) FROM {inside} n WHERE {where} AND NOT EXISTS ("
            f"SELECT 1 FROM {outside} x WHERE x.journal_id = n.journal_id AND x.{key} = n.{key})"
        )

    async def _described(
        self, differing: Mapping[str, tuple[int, str]]
    ) -> AsyncIterator[ColumnDifference]:
        for name, (count, first) in differing.items():
            column, key = self._quote(name), self._quote(self._key)
            query = sa.text(
                f"SELECT {self._text(f'o.{column}')}, {self._text(f'n.{column}')} "
                f"FROM {self._joined} WHERE {self._differs(name)} "
                f"AND {self._text(f'o.{key}')} = :first"
            )
            old, new = (await self._connection.execute(query, {"first": first})).first() or ("", "")
            is_gone = is_withheld(self._table, name, new)
            shown, erased = WITHHELD if is_gone else old, await self._erased(name)
            yield ColumnDifference(name, count, first, shown, new, erased)

    async def _erased(self, name: str) -> int:
        """Return how many rows differ in a column because its value was erased."""
        if name not in PERSONAL_COLUMNS.get(self._table, ()):
            return 0
        is_erased = erased_in(self._table, name, self._dialect.name)
        where = f"{self._differs(name)} AND {is_erased}"
        return await self._scalar(f"SELECT count(*) FROM {self._joined} WHERE {where}")

    async def _scalar(self, query: str) -> int:
        return int((await self._connection.exec_driver_sql(query)).scalar_one())

    async def _connection_scalar(self, query: str) -> str | None:
        found = (await self._connection.exec_driver_sql(query)).scalar_one()
        return None if found is None else str(found)


def differences(compared: Iterable[Comparison]) -> Sequence[Comparison]:
    """Return the tables that are not the same as before."""
    return [each for each in compared if not each.is_same]
