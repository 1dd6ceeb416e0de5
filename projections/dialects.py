"""What PostgreSQL and SQLite spell differently."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Dialect
from sqlalchemy.dialects import postgresql, sqlite

from ledger.sqltypes import UtcTimestamp


def insert(table: sa.Table, dialect: Dialect) -> postgresql.Insert | sqlite.Insert:
    """Return an insert that knows what to do on a conflict."""
    return sqlite.insert(table) if dialect.name == "sqlite" else postgresql.insert(table)


def is_among(
    column: sa.ColumnElement[Any], values: Collection[Any], dialect: Dialect
) -> sa.ColumnElement[bool]:
    """Return the condition that `column` is one of `values`.

    All values are one parameter, so that the statement is the same for any number of them.
    """
    if dialect.name != "sqlite":
        return column == sa.any_(sa.bindparam(None, list(values), type_=sa.ARRAY(column.type)))
    process = column.type.dialect_impl(dialect).bind_processor(dialect)
    listed = [process(value) if process else value for value in values]
    each = sa.func.json_each(json.dumps(listed)).table_valued("value")
    return column.in_(sa.select(each.c.value))


def time_now(dialect: Dialect, after_seconds: float = 0) -> sa.ColumnElement[datetime]:
    """Return the database's own time, at the moment of the statement, or so much later.

    All processes go by the one clock of their database, so theirs need not agree.
    """
    now: sa.ColumnElement[Any]
    if dialect.name == "sqlite":
        later = f"{after_seconds:+.3f} seconds"
        now = sa.func.strftime("%Y-%m-%dT%H:%M:%f", "now", later).concat("000Z")
    else:
        later_by = sa.bindparam(None, timedelta(seconds=after_seconds), type_=sa.Interval())
        now = sa.func.clock_timestamp() + later_by
    return sa.type_coerce(now, UtcTimestamp())
