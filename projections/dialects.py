"""The two statements that PostgreSQL and SQLite spell differently."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Dialect
from sqlalchemy.dialects import postgresql, sqlite


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
