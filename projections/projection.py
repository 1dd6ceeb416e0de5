"""What a read model is: a table, and the pure fold that fills it.

A projection names its table and says, for each event type, how the rows change. It sees rows in
memory only; where they came from and where they go is the business of whoever folds. The projector
loads and writes them batch by batch, a replay begins with none and keeps them all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any, Generic, Self, TypeVar, cast
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, MetaData, Table
from sqlalchemy.sql.visitors import replacement_traverse

from ledger.event import Event, RecordedEvent
from ledger.sqltypes import ExactNumeric
from projections.model import Flags, Model, ReadModel, row_type
from projections.numbers import Fit

AMOUNT_TOO_LARGE = "amount_too_large:"
"""Leads the flag of a column that is NULL because the exact amount does not fit it."""

Handler = Callable[["State", RecordedEvent, Any], None]
AnyHandler = TypeVar("AnyHandler", bound=Handler)


class Alias(msgspec.Struct, frozen=True):
    """Another way to find a row: by `column`, among the rows that meet `where` (all, if None).

    `wanted` names the values which the fold of an event may look up.
    """

    column: str
    wanted: Callable[[Event], Iterable[Hashable]]
    where: ColumnElement[bool] | None = None

    def at(self, table: Table, other: Table) -> Alias:
        """Return the same for a table of the same columns."""
        if self.where is None:
            return self

        def moved(part: Any) -> Any:
            return other.c[part.key] if getattr(part, "table", None) is table else None

        where = cast("Any", replacement_traverse)(self.where, {}, lambda part, **_: moved(part))
        return msgspec.structs.replace(self, where=where)


class Projection(Generic[Model]):
    """One read table and its fold.

    `looks_up` names the other tables of the group whose rows the fold looks at. `derived` returns
    the exact values of the columns that people read; they are quantised when a row leaves the fold,
    so they are never state. Rows of an `append_only` table never change.
    """

    def __init__(
        self,
        model: type[Model],
        *,
        looks_up: Sequence[str] = (),
        aliases: Sequence[Alias] = (),
        derived: Callable[[Model], dict[str, Decimal | None]] | None = None,
        append_only: bool = False,
    ) -> None:
        self.model = model
        self.table = model.__table__
        self.name = self.table.name
        self.columns = tuple(self.table.columns.keys())
        self.key = next(c.name for c in self.table.primary_key if c.name != "journal_id")
        self.row = row_type(model)
        self.looks_up = tuple(looks_up)
        self.aliases = tuple(aliases)
        self.append_only = append_only
        self.handlers: dict[type[Event], Handler] = {}
        self._derived = derived
        self._fits = {
            column.name: Fit(column.type.precision, column.type.scale)
            for column in self.table.columns
            if isinstance(column.type, ExactNumeric) and column.type.precision and column.type.scale
        }

    def on(self, *event_types: type[Event]) -> Callable[[AnyHandler], AnyHandler]:
        """Register the function that folds events of these types into the table."""

        def register(handler: AnyHandler) -> AnyHandler:
            self.handlers.update(dict.fromkeys(event_types, handler))
            return handler

        return register

    def at(self, name: str) -> Self:
        """Return the same projection, which keeps its rows in the table called `name`."""
        other = copy.copy(self)
        other.table = self.table.to_metadata(MetaData(), name=name)
        other.aliases = tuple(each.at(self.table, other.table) for each in self.aliases)
        return other

    def wanted(self, event: Event) -> Hashable:
        """Return the key of the row which folds of `event` may look up, None if there is none."""
        return getattr(event, self.key, None)

    def finish(self, row: Model) -> Model:
        """Set the derived columns of a row that leaves the fold, and return the row."""
        if self._derived is not None:
            kept = {name: n for name, n in _flags(row).items() if AMOUNT_TOO_LARGE not in name}
            for name, value in self._derived(row).items():
                fit = None if value is None else self._fits.get(name)
                fitting = value if value is None or fit is None else fit(value)
                setattr(row, name, fitting)
                if fitting is None and value is not None:
                    kept[AMOUNT_TOO_LARGE + name] = 1
            cast("Any", row).flags = kept
        return row


class Rows(Generic[Model]):
    """The rows of one table that are in memory, and which of them have changed."""

    def __init__(self, projection: Projection[Model], journal_id: int) -> None:
        self.projection = projection
        self.journal_id = journal_id
        self.changed: dict[Hashable, Model] = {}
        self._by_key: dict[Hashable, Model] = {}
        self._by_alias: dict[str, dict[Hashable, Model]] = {
            alias.column: {} for alias in projection.aliases
        }
        self._first = {"created_at", "updated_at"} & set(projection.columns)
        self._later = self._first - {"created_at"}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: Hashable) -> Model | None:
        """Return the row with this key, to look at."""
        return self._by_key.get(key)

    def find(self, column: str, value: Hashable) -> Model | None:
        """Return the latest row that has this value in an alias column, to look at."""
        return self._by_alias[column].get(value)

    def rename(self, row: Model, column: str, value: Hashable) -> None:
        """Give a row another value in an alias column."""
        self._by_alias[column].pop(getattr(row, column), None)
        setattr(row, column, value)
        if value is not None:
            self._by_alias[column][value] = row

    def edit(self, key: Hashable, recorded: RecordedEvent) -> Model | None:
        """Return the row with this key, to change because of `recorded`."""
        row = self._by_key.get(key)
        return None if row is None else self.touch(row, recorded)

    def touch(self, row: Model, recorded: RecordedEvent) -> Model:
        """Note that `row` changes because of `recorded`, and return it."""
        row.changed_size = recorded.offset + 1
        for column in self._later:
            setattr(row, column, recorded.occurred_at)
        self.changed[getattr(row, self.projection.key)] = row
        return row

    def add(self, key: Hashable, recorded: RecordedEvent, **values: Any) -> Model:
        """Make a row because of `recorded`, and return it."""
        times = dict.fromkeys(self._first, recorded.occurred_at)
        names = {"journal_id": self.journal_id, self.projection.key: key}
        row = self.projection.row(**names, **times, **values)
        self.put(row)
        return self.touch(row, recorded)

    def put(self, row: Model) -> None:
        """Take in a row as it is; one that is here already stays."""
        row = self._by_key.setdefault(getattr(row, self.projection.key), row)
        for column, rows in self._by_alias.items():
            if (value := getattr(row, column)) is not None:
                rows[value] = row


class State:
    """What a group has in memory of one journal."""

    def __init__(
        self, journal_id: int, journal_name: str, projections: Iterable[Projection[Any]]
    ) -> None:
        self.journal_id = journal_id
        self.journal_name = journal_name
        self.tables = {each.name: Rows(each, journal_id) for each in projections}

    def rows(self, model: type[Model]) -> Rows[Model]:
        """Return the rows of a projection's own table."""
        return cast("Rows[Model]", self.tables[model.__table__.name])

    def look_up(self, table: str, key: Hashable) -> Any:
        """Return a row of another table of the group, to look at; None if there is none."""
        return self.tables[table].get(key)

    def reference(self, table: str, key: UUID | None) -> UUID | None:
        """Return `key` if it is that of a row, else None: what a foreign key can hold."""
        return None if self.look_up(table, key) is None else key


def flag(row: ReadModel, name: str) -> None:
    """Count on the row something that did not fit."""
    flags = _flags(row)
    flags[name] = flags.get(name, 0) + 1


def _flags(row: ReadModel) -> Flags:
    return cast("Flags", cast("Any", row).flags)
