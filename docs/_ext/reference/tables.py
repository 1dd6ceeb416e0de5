"""The tables of a database, with all their columns."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Column, Dialect, Table
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

import projections.cli  # noqa: F401 - declares all tables
from ledger.schema import metadata
from projections.groups import GROUPS, TABLES
from projections.model import ReadModel
from reference.markdown import code, table
from reference.markdown import page as as_page

INTRODUCTION = """Made from the declarations. Types are those of PostgreSQL, and after a slash those
of SQLite where they are others: amounts are text there, since it has no exact numbers.

![The read tables and how they refer to each other](tables.svg)

Every key begins with `journal_id`. Columns that begin with `exact_`, and a few more without limited
precision, carry what a fold needs from event to event; people read the rounded ones beside them."""
DIALECTS: tuple[Dialect, ...] = PGDialect(), SQLiteDialect()  # type: ignore[no-untyped-call]


def page() -> str:
    """Return the page: read tables by group, then the others."""
    lines = [INTRODUCTION, ""]
    for name, group in GROUPS.items():
        lines += [f"## Read tables: {name}", ""]
        for each in group.projections:
            lines += _section(each.table, _purpose(each.name))
    lines += ["## Journal and bookkeeping", ""]
    for found in sorted(metadata.tables.values(), key=lambda each: each.name):
        if found.name not in TABLES and "__" not in found.name:
            lines += _section(found, "")
    return as_page("Tables", *lines)


def _purpose(name: str) -> str:
    """Return what the model of a read table says about itself."""
    models = {model.__tablename__: model for model in _models(ReadModel)}
    return (models[name].__doc__ or "").partition("\n\n")[0]


def _models(root: type[ReadModel]) -> Iterator[type[ReadModel]]:
    for each in root.__subclasses__():
        if "__tablename__" in each.__dict__:
            yield each
        yield from _models(each)


def _section(found: Table, purpose: str) -> Iterator[str]:
    yield from (f"### {code(found.name)}", "", purpose, "")
    rows = (
        (code(c.name), _type(c), "" if c.nullable else "not null", _key(c)) for c in found.columns
    )
    yield from table(["column", "type", "NULL", "key"], rows)


def _type(column: Column[object]) -> str:
    texts = [column.type.compile(dialect).lower() for dialect in DIALECTS]
    return " / ".join(dict.fromkeys(texts))


def _key(column: Column[object]) -> str:
    parts = ["primary"] if column.primary_key else []
    targets = (each.target_fullname for each in column.foreign_keys)
    parts += sorted(f"→ `{name}`" for name in targets if not name.endswith(".journal_id"))
    return ", ".join(parts)
