"""Verifying names whatever somebody changed in the live tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import zip_longest
from random import Random
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.errors import LedgerError
from ledger.journal import Journal
from ledger.sqltypes import ExactNumeric, UtcTimestamp
from projections.bookkeeping import checkpoints
from projections.database import Database
from projections.groups import GROUPS, MARKS, TABLES
from projections.projection import Projection
from projections.projector import Projector
from projections.verification import SHOWN_MAX, Verified, verify
from tests.projections.random_events import random_events
from tests.projections.support import an_id, append

CHECKED = {
    "positions.status": ("liquidated", "closed"),
    "orders.status": ("expired", "failed"),
    "orders.action": ("buy", "sell"),
    "orders.order_type": ("market", "limit"),
    "orders.time_in_force": ("ioc", "gtd"),
    "postings.account": ("holding", "venue"),
}
"""Two values of each column that cannot hold just any text."""


@pytest.fixture
async def projected(journal: Journal, database: Database) -> int:
    """A journal whose events are all in the live tables; returns its size."""
    await append(journal, random_events(Random(11), 250))
    for group in GROUPS.values():
        await Projector(database, journal, group).catch_up()
    return await journal.size()


async def verified(database: Database, journal: Journal) -> Verified:
    """Verify all groups."""
    return await verify(database, journal, GROUPS.values())


async def tamper(database: Database, *statements: sa.Executable) -> None:
    """Do what only an owner of the database can, foreign keys switched off."""
    async with database.engine.connect() as connection:
        await switch_foreign_keys(connection, on=False)
        for statement in statements:
            await connection.execute(statement)
        await connection.commit()
        await switch_foreign_keys(connection, on=True)


async def switch_foreign_keys(connection: AsyncConnection, *, on: bool) -> None:
    """Switch the check of foreign keys on this connection."""
    if connection.dialect.name == "sqlite":
        # The pragma does nothing inside a transaction, which SQLAlchemy has begun.
        await connection.exec_driver_sql("COMMIT")
        await connection.exec_driver_sql(f"PRAGMA foreign_keys = {'ON' if on else 'OFF'}")
        await connection.exec_driver_sql("BEGIN")
    else:
        role = "origin" if on else "replica"
        await connection.exec_driver_sql(f"SET session_replication_role = {role}")


def all_projections() -> list[Projection[Any]]:
    """Return those of all groups."""
    return [each for group in GROUPS.values() for each in group.projections]


def columns_of(projection: Projection[Any]) -> list[tuple[Projection[Any], str]]:
    """Return a table with every column that is not part of its key."""
    key = {"journal_id", projection.key}
    return [(projection, column) for column in projection.columns if column not in key]


def change_of(projection: Projection[Any], key: Any, column: str, value: Any) -> sa.Update:
    """Return what changes one column of a row."""
    table = projection.table
    return table.update().where(table.c[projection.key] == key).values({column: value})


def another(column: str, value: Any) -> Any:
    """Return a value that the column could have, but has not."""
    if column in CHECKED:
        return next(each for each in CHECKED[column] if each != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | Decimal):
        return value - 1
    if isinstance(value, datetime):
        return value + timedelta(microseconds=1)
    if isinstance(value, UUID):
        return an_id("nobody")
    return another_text_or_json(value)


def another_text_or_json(value: Any) -> Any:
    """Return another text, list or object."""
    if isinstance(value, str):
        return f"{value}!"
    return [*value, "other"] if isinstance(value, list) else {**value, "other": 1}


@pytest.mark.usefixtures("projected")
async def test_a_fresh_projection_is_verified(journal: Journal, database: Database) -> None:
    """Tables that nobody touched have no difference, at any checkpoint."""
    result = await verified(database, journal)
    assert (result.differences, result.tables, result.events) == (0, len(TABLES), 250)
    await append(journal, random_events(Random(12), 50))
    assert (await verified(database, journal)).differences == 0


@pytest.mark.usefixtures("projected")
async def test_every_changed_column_is_named(journal: Journal, database: Database) -> None:
    """A change of any column of any table is named with table, key, column and both values.

    A column of each table is changed at a time, then the next ones.
    """
    for columns in zip_longest(*map(columns_of, all_projections())):
        changed = [each for each in columns if each is not None]
        changes = [(*each, *await pick(database, *each)) for each in changed]
        for projection, column, key, _, new in changes:
            await tamper(database, change_of(projection, key, column, new))
        result = await verified(database, journal)
        assert result.differences == len(changes) <= SHOWN_MAX
        named = {(each.table, each.key, each.column) for each in result.first}
        assert named == {(each[0].name, str(each[2]), each[1]) for each in changes}
        assert all(each.journal != each.live for each in result.first)
        for projection, column, key, old, _ in changes:
            await tamper(database, change_of(projection, key, column, old))
    assert (await verified(database, journal)).differences == 0


async def pick(database: Database, projection: Projection[Any], column: str) -> tuple[Any, ...]:
    """Return the key of a row, what its column holds, and another value for it."""
    table = projection.table
    query = sa.select(table.c[projection.key], table.c[column])
    async with database.snapshot() as connection:
        filled = await connection.execute(query.where(table.c[column].is_not(None)).limit(1))
        found = filled.first() or (await connection.execute(query.limit(1))).one()
    if found[1] is not None:
        return found[0], found[1], another(f"{projection.name}.{column}", found[1])
    return found[0], None, example_of(table.c[column])


def example_of(column: sa.Column[Any]) -> Any:
    """Return any value for a column that is NULL in all rows."""
    examples: dict[Any, Any] = {
        UtcTimestamp: datetime(2026, 1, 1, tzinfo=UTC),
        ExactNumeric: Decimal(1),
        sa.BigInteger: 1,
        sa.Uuid: an_id("nobody"),
        sa.JSON: {"other": 1},
    }
    return examples.get(type(column.type), "text")


@pytest.mark.usefixtures("projected")
@pytest.mark.parametrize("table", sorted(TABLES))
async def test_deleted_and_added_rows_are_named(
    table: str, journal: Journal, database: Database
) -> None:
    """A row under another key is one that is missing, and one that should not be there."""
    projection = next(each for each in TABLES[table].projections if each.name == table)
    column = projection.table.c[projection.key]
    key, _, _ = await pick(database, projection, "changed_size")
    other = an_id("nobody") if isinstance(key, UUID) else "nothing"
    change = projection.table.update().where(column == key).values({projection.key: other})
    await tamper(database, change)
    result = await verified(database, journal)
    found = {(each.key, each.column, each.live) for each in result.first}
    assert found == {(str(key), None, "lacks it"), (str(other), None, "has it")}
    assert {each.table for each in result.first} == {table}


@pytest.mark.usefixtures("projected")
async def test_only_the_first_differences_are_listed(journal: Journal, database: Database) -> None:
    """All differences are counted, the first ones are named."""
    table = TABLES["orders"].projections[-1].table
    await tamper(database, table.delete())
    result = await verified(database, journal)
    assert result.differences > SHOWN_MAX
    assert len(result.first) == SHOWN_MAX


async def test_what_is_no_value_at_all_is_named(
    journal: Journal, database: Database, projected: int
) -> None:
    """SQLite takes any text anywhere, and verify names it; PostgreSQL refuses it itself."""
    if database.engine.dialect.name != "sqlite":
        with pytest.raises(DBAPIError, match="numeric"):
            await tamper(database, sa.text("UPDATE orders SET exact_fees = 'nonsense'"))
        return
    for column in ("exact_fees", "created_at", "flags", "reduce_only", "user_id"):
        await tamper(database, sa.text(f"UPDATE orders SET {column} = 'nonsense'"))
    result = await verified(database, journal)
    assert result.differences >= 5
    assert "nonsense" in str(result.first[0])


@pytest.mark.parametrize("group", sorted(GROUPS))
async def test_a_checkpoint_beyond_the_journal_is_named(
    group: str, journal: Journal, database: Database, projected: int
) -> None:
    """A checkpoint that counts events which do not exist is a difference, and no start."""
    change = checkpoints.update().where(checkpoints.c.group_name == group)
    await tamper(database, change.values(size=projected + 5))
    result = await verified(database, journal)
    named = [(each.table, each.key, each.column) for each in result.first]
    assert named == [("checkpoints", group, "size")]
    assert str(projected + 5) in result.first[0].live
    projector = Projector(database, journal, GROUPS[group])
    with pytest.raises(LedgerError) as caught:
        await projector.catch_up()
    assert caught.value.exit_code == 3
    # Events that come later must not be taken for those that the checkpoint counts.
    await append(journal, random_events(Random(13), 3))
    with pytest.raises(LedgerError):
        await projector.catch_up()


@pytest.mark.usefixtures("projected")
async def test_rows_of_no_journal_are_named(journal: Journal, database: Database) -> None:
    """A row whose journal does not exist belongs to no fold, and is named in each table."""
    added: dict[str, str] = {}
    for name, group in TABLES.items():
        projection = next(each for each in group.projections if each.name == name)
        table = projection.table
        key, _, _ = await pick(database, projection, "changed_size")
        values = [sa.literal(99), *(c for c in table.columns if c.name != "journal_id")]
        columns = ["journal_id", *(c.name for c in table.columns if c.name != "journal_id")]
        copied = sa.select(*values).where(table.c[projection.key] == key)
        await tamper(database, table.insert().from_select(columns, copied))
        added[name] = str(key)
    result = await verified(database, journal)
    assert result.differences == len(TABLES)
    assert {each.table for each in result.first} == set(TABLES)
    for each in result.first:
        assert added[each.table] in each.key or "99" in each.key


@pytest.mark.usefixtures("projected")
async def test_what_is_verified_are_the_events_that_all_groups_have(
    journal: Journal, database: Database
) -> None:
    """A group that is ahead does not make more events count as verified."""
    await append(journal, random_events(Random(12), 50))
    await Projector(database, journal, MARKS).catch_up()
    result = await verified(database, journal)
    assert (result.differences, result.events) == (0, 250)
