"""The declared shape of read tables, as DDL for tables that have other names for the time being."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy import Dialect
from sqlalchemy.schema import CreateColumn, CreateIndex
from sqlalchemy.sql.elements import quoted_name

from projections.projection import Projection
from projections.rebuilding.side import beside


class ForeignKey(msgspec.Struct, frozen=True):
    """A declared foreign key: its name, the table it points at, and the rest of its definition."""

    name: str
    target: str
    columns: str
    target_columns: str

    def added(self, table: str, target: str) -> str:
        """Return the statement that adds it to `table`, pointing at `target`."""
        return (
            f"ALTER TABLE {table} ADD CONSTRAINT {self.name} FOREIGN KEY ({self.columns}) "
            f"REFERENCES {target} ({self.target_columns}) DEFERRABLE INITIALLY DEFERRED"
        )


class Declared:
    """How one read table is declared, in the words of a database."""

    def __init__(self, projection: Projection[Any], dialect: Dialect) -> None:
        self.projection = projection
        self.table = projection.table
        self.dialect = dialect
        self._prepare = dialect.identifier_preparer

    def quoted(self, name: str) -> str:
        """Return a name as it is written in statements."""
        return self._prepare.quote(name)

    @property
    def columns(self) -> str:
        """The names of all columns."""
        return ", ".join(self.quoted(column.name) for column in self.table.columns)

    @property
    def key_columns(self) -> str:
        """The names of the columns of the primary key."""
        return ", ".join(self.quoted(column.name) for column in self.table.primary_key)

    @property
    def key_name(self) -> str:
        """The name of the primary key."""
        return str(self.table.primary_key.name)

    @property
    def index_names(self) -> list[str]:
        """The names of all indexes, with that of the primary key."""
        return [self.key_name, *(str(index.name) for index in self._indexes)]

    @property
    def _indexes(self) -> list[sa.Index]:
        return sorted(self.table.indexes, key=lambda index: str(index.name))

    def created_bare(self, name: str) -> str:
        """Return the statement that makes the table without keys, constraints and indexes."""
        columns = (
            str(CreateColumn(column).compile(dialect=self.dialect)) for column in self.table.columns
        )
        return f"CREATE TABLE {self.quoted(name)} ({', '.join(columns)})"

    def created_whole(self, name: str) -> str:
        """Return the statement that makes it with its keys and constraints.

        Names of constraints belong to their table on SQLite, so they are the declared ones.
        """
        columns = (
            str(CreateColumn(column).compile(dialect=self.dialect)) for column in self.table.columns
        )
        key = f"CONSTRAINT {self.quoted(self.key_name)} PRIMARY KEY ({self.key_columns})"
        keys = (
            f"CONSTRAINT {each.name} FOREIGN KEY ({each.columns}) "
            f"REFERENCES {self.quoted(each.target)} ({each.target_columns}) "
            "DEFERRABLE INITIALLY DEFERRED"
            for each in self.foreign_keys
        )
        parts = ", ".join((*columns, key, *self.checks, *keys))
        return f"CREATE TABLE {self.quoted(name)} ({parts})"

    @property
    def checks(self) -> list[str]:
        """The definitions of all checks, by name so that the order is always the same."""
        checks = [each for each in self.table.constraints if isinstance(each, sa.CheckConstraint)]
        return [
            f"CONSTRAINT {self.quoted(str(each.name))} CHECK ({each.sqltext})"
            for each in sorted(checks, key=lambda each: str(each.name))
        ]

    @property
    def foreign_keys(self) -> list[ForeignKey]:
        """The declared foreign keys, by name."""
        found = sorted(self.table.foreign_key_constraints, key=lambda key: str(key.name))
        return [self._foreign_key(key) for key in found]

    def _foreign_key(self, key: sa.ForeignKeyConstraint) -> ForeignKey:
        targets = [element.target_fullname.rpartition(".") for element in key.elements]
        return ForeignKey(
            self.quoted(str(key.name)),
            targets[0][0],
            ", ".join(self.quoted(name) for name in key.column_keys),
            ", ".join(self.quoted(column) for _, _, column in targets),
        )

    def created_key(self, name: str, suffix: str) -> str:
        """Return the statement that makes the unique index from which the primary key is made."""
        index = self.quoted(beside(self.key_name, suffix))
        return f"CREATE UNIQUE INDEX {index} ON {self.quoted(name)} ({self.key_columns})"

    def created_indexes(self, name: str, suffix: str, *, only_aliases: bool) -> Iterator[str]:
        """Return the statements that make the indexes, or only those by which a fold looks up."""
        aliases = {alias.column for alias in self.projection.aliases}
        copied = self.table.to_metadata(sa.MetaData(), name=name)
        for index in sorted(copied.indexes, key=lambda index: str(index.name)):
            leading = [column.name for column in index.columns][:2]
            if not only_aliases or aliases.intersection(leading):
                index.name = quoted_name(beside(str(index.name), suffix), quote=None)
                yield str(CreateIndex(index).compile(dialect=self.dialect)).strip()


def server_default(column: sa.Column[Any]) -> sa.DefaultClause | None:
    """Return the default of a read model's column as one of the database, None without one."""
    default = cast("Any", column.default)
    if default is None or default.is_sequence or default.is_clause_element:
        return None
    value = default.arg(None) if default.is_callable else default.arg
    if isinstance(value, bool):
        return sa.DefaultClause(sa.text(str(value).lower()))
    return sa.DefaultClause(json.dumps(value) if isinstance(value, list | dict) else str(value))
