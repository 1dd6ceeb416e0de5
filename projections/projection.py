"""What a read model is: a table, and the pure fold that fills it.

A projection names its table and says, for each event type, how the rows change. It sees rows in
memory only; where they came from and where they go is the business of whoever folds. The projector
loads and writes them batch by batch, a replay begins with none and keeps them all.
"""

from __future__ import annotations

import copy
from collections.abc import (
    Callable,
    Collection,
    Container,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from decimal import Decimal
from operator import attrgetter
from typing import Any, Generic, Self, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy import JSON, MetaData, Row

from ledger.event import Event, RecordedEvent
from ledger.sqltypes import ExactNumeric
from projections.lanes import Parking
from projections.model import Flags, Model, ReadModel, row_type
from projections.numbers import fit_of

AMOUNT_TOO_LARGE = "amount_too_large:"
"""Leads the flag of a column that is NULL because the exact amount does not fit it."""

Name = tuple[str, Hashable]
"""A column and a value in it, by which rows are found."""

Handler = Callable[["State", RecordedEvent, Any], None]
AnyHandler = TypeVar("AnyHandler", bound=Handler)


class Alias(msgspec.Struct, frozen=True):
    """Another way to find a row: by `column`, among the rows with these values in `where`.

    `wanted` names the values which the fold of an event may look up: none for events that are not
    of these `types`.
    """

    column: str
    wanted: Callable[[Event], Iterable[Hashable]]
    where: Mapping[str, str] = {}
    types: tuple[type[Event], ...] = (Event,)

    def is_meant(self, row: ReadModel) -> bool:
        """Whether a row is one of those that can be found so."""
        return all(getattr(row, column) == value for column, value in self.where.items())


class Projection(Generic[Model]):
    """One read table and its fold.

    `looks_up` names the other tables of the group whose rows the fold looks at. `derived` returns
    the exact values of the columns that people read; they are quantised when a row leaves the fold,
    so they are never state. Rows of an `append_only` table never change.
    A fold that `reads_envelope` looks at an event's stream, metadata or body. A row that `rests`
    will hardly change again, and no fold finds it otherwise than by its key.

    `gives` names, as column and value, whatever rows may be found by from an event of a journal on,
    beside what is `wanted` for that event.
    """

    def __init__(
        self,
        model: type[Model],
        *,
        looks_up: Sequence[str] = (),
        aliases: Sequence[Alias] = (),
        derived: Callable[[Model], dict[str, Decimal | None]] | None = None,
        append_only: bool = False,
        reads_envelope: bool = False,
        rests: Callable[[Model], bool] | None = None,
        gives: Callable[[str, RecordedEvent], Iterable[Name]] = lambda _journal, _event: (),
    ) -> None:
        self.model = model
        self.table = model.__table__
        self.name = self.table.name
        self.columns = tuple(self.table.columns.keys())
        self.key = next(c.name for c in self.table.primary_key if c.name != "journal_id")
        self.row = row_type(model)
        self.looks_up = tuple(looks_up)
        self.aliases = tuple(aliases)
        self._alias_of = {alias.column: alias for alias in aliases}
        self.append_only = append_only
        self.reads_envelope = reads_envelope
        self.rests = rests
        self.handlers: dict[type[Event], Handler] = {}
        self._looked_up: dict[type[Event], tuple[str, ...]] = {}
        self.name_columns = tuple(dict.fromkeys([self.key, *(each.column for each in aliases)]))
        self.containers = tuple(c.name for c in self.table.columns if isinstance(c.type, JSON))
        self._derived = derived
        self._gives = gives
        self._fits = {
            column.name: fit_of(column.type.precision, column.type.scale)
            for column in self.table.columns
            if isinstance(column.type, ExactNumeric) and column.type.precision and column.type.scale
        }

    def on(
        self, *event_types: type[Event], looks_up: Sequence[str] | None = None
    ) -> Callable[[AnyHandler], AnyHandler]:
        """Register the function that folds events of these types into the table.

        For them it looks at no other tables than those in `looks_up`, if that is given.
        """

        def register(handler: AnyHandler) -> AnyHandler:
            self.handlers.update(dict.fromkeys(event_types, handler))
            looked_up = self.looks_up if looks_up is None else tuple(looks_up)
            self._looked_up.update(dict.fromkeys(event_types, looked_up))
            return handler

        return register

    def shares(self) -> dict[tuple[str, ...], list[str]]:
        """Return the names of the event types that it folds, by the tables that it looks up then.

        Rows of an append-only table can be made share by share, in any order.
        """
        found: dict[tuple[str, ...], list[str]] = {}
        for event_type, looked_up in self._looked_up.items():
            found.setdefault(looked_up, []).append(event_type.__name__)
        return found

    def share(self, names: Collection[str]) -> Self:
        """Return the same projection, which folds only events of the types with these names."""
        other = copy.copy(self)
        other.handlers = {each: h for each, h in self.handlers.items() if each.__name__ in names}
        looked_up = (table for each in other.handlers for table in self._looked_up[each])
        other.looks_up = tuple(dict.fromkeys(looked_up))
        return other

    def at(self, name: str) -> Self:
        """Return the same projection, which keeps its rows in the table called `name`."""
        other = copy.copy(self)
        other.table = self.table.to_metadata(MetaData(), name=name)
        return other

    def wanted(self, event: Event) -> Hashable:
        """Return the key of the row which folds of `event` may look up, None if there is none."""
        return getattr(event, self.key, None)

    def names(self, journal: str, recorded: RecordedEvent) -> Iterator[tuple[str, str]]:
        """Yield column and text of all names by which the fold of an event finds or makes rows."""
        if (key := self.wanted(recorded.event)) is not None:
            yield self.key, str(key)
        for alias in self.aliases:
            for value in alias.wanted(recorded.event):
                yield alias.column, str(value)
        for column, value in self._gives(journal, recorded):
            yield column, str(value)

    def names_of(self, row: ReadModel | Row[Any]) -> Iterator[tuple[str, str]]:
        """Yield column and text of all names by which a row can be found."""
        for column in self.name_columns:
            if (value := getattr(row, column)) is not None:
                yield column, str(value)

    def is_meant(self, column: str, row: ReadModel) -> bool:
        """Whether a row is one of those that can be found by an alias column."""
        alias = self._alias_of.get(column)
        return alias is not None and alias.is_meant(row)

    def finish(self, row: Model) -> Model:
        """Set the derived columns of a row that leaves the fold, and return the row."""
        if self._derived is not None:
            self._set(row, self._derived(row))
        return row

    def _set(self, row: Any, values: Mapping[str, Decimal | None]) -> None:
        """Set columns to what fits them; what is too large for one leaves it NULL and a flag."""
        fits = self._fits
        flags = row.flags
        if flags and AMOUNT_TOO_LARGE in " ".join(flags):
            flags = {name: n for name, n in flags.items() if AMOUNT_TOO_LARGE not in name}
        for name, value in values.items():
            fitting = value
            if value is not None and name in fits:
                fitting = fits[name](value)
                if fitting is None:
                    flags = {**flags, AMOUNT_TOO_LARGE + name: 1}
            setattr(row, name, fitting)
        row.flags = flags


def itself(made: UUID) -> UUID:
    """Return an id as it was made."""
    return made


class Rows(Generic[Model]):
    """The rows of one table that are in memory, and which of them have changed."""

    def __init__(self, projection: Projection[Model], journal_id: int) -> None:
        self.projection = projection
        self.journal_id = journal_id
        self.changed: dict[Hashable, Model] = {}
        self._key = projection.key
        self._key_of = attrgetter(projection.key)
        self._by_key: dict[Hashable, Model] = {}
        self._by_alias: dict[str, dict[Hashable, Model]] = {
            alias.column: {} for alias in projection.aliases
        }
        self._is_timed = "updated_at" in projection.columns

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
        row: Any = self._by_key.get(key)
        if row is not None:  # the same as `touch`, written out: nearly all events come by here
            row.changed_size = recorded.offset + 1
            if self._is_timed:
                row.updated_at = recorded.occurred_at
            self.changed[key] = row
        return row  # type: ignore[no-any-return]

    def touch(self, row: Any, recorded: RecordedEvent) -> Model:
        """Note that `row` changes because of `recorded`, and return it."""
        row.changed_size = recorded.offset + 1
        if self._is_timed:
            row.updated_at = recorded.occurred_at
        self.changed[self._key_of(row)] = row
        return row  # type: ignore[no-any-return]

    def add(self, key: Hashable, recorded: RecordedEvent, **values: Any) -> Model:
        """Make a row because of `recorded`, and return it."""
        values["journal_id"], values[self._key] = self.journal_id, key
        if self._is_timed:
            values["created_at"] = recorded.occurred_at
        row = self.projection.row(**values)
        self.put(row)
        return self.touch(row, recorded)

    def keep_only(self, keys: Container[Hashable]) -> None:
        """Forget all rows of a table without aliases but those with these keys."""
        self._by_key = {key: row for key, row in self._by_key.items() if key in keys}
        self.changed = {key: row for key, row in self.changed.items() if key in keys}

    def put(self, row: Model) -> None:
        """Take in a row as it is; one that is here already stays.

        Where another row has the same value in an alias column, the one that is meant is found.
        """
        row = self._by_key.setdefault(self._key_of(row), row)
        for column, rows in self._by_alias.items():
            value = getattr(row, column)
            if value is not None and (value not in rows or self.projection.is_meant(column, row)):
                rows[value] = row

    def forget(self, rows: Iterable[Model]) -> None:
        """Let go of rows, which from now on only their keys can bring back."""
        for row in rows:
            del self._by_key[getattr(row, self._key)]
            for column, by_value in self._by_alias.items():
                value = getattr(row, column)
                if by_value.get(value) is row:
                    del by_value[value]

    def has(self, alias: Alias, value: Hashable) -> bool:
        """Whether the row is here that an alias means by a value."""
        row = self._by_alias[alias.column].get(value)
        return row is not None and alias.is_meant(row)

    def settle(self) -> None:
        """Take what has changed as written; of that, only rows that may change again are kept."""
        rests = self.projection.rests
        if self.projection.append_only:
            self.forget(list(self.changed.values()))
        elif rests is not None:
            self.forget([row for row in self.changed.values() if rests(row)])
        self.changed.clear()

    def resting(self) -> list[Model]:
        """Return the rows that will hardly change again."""
        rests = self.projection.rests
        if self.projection.append_only:
            return list(self)
        return [] if rests is None else [row for row in self if rests(row)]

    def oldest(self, count: int) -> list[Model]:
        """Return the `count` rows that changed longest ago, of those that may leave.

        Rows that can be found by an alias must stay, unless they rest.
        """
        if any(column != self._key for column in self._by_alias):
            return self.resting()
        return sorted(self, key=attrgetter("changed_size"))[:count]


class State:
    """What a group has in memory of one journal.

    `as_id` brings an id that a fold makes into the form that ids have here: `UUID`, or text where
    the events come through a lens. `parking` has the lanes that are parked.
    """

    def __init__(
        self,
        journal_id: int,
        journal_name: str,
        projections: Iterable[Projection[Any]],
        as_id: Callable[[UUID], Any] = itself,
    ) -> None:
        self.journal_id = journal_id
        self.journal_name = journal_name
        self.as_id = as_id
        self.parking = Parking()
        self.tables = {each.name: Rows(each, journal_id) for each in projections}
        self._by_model = {rows.projection.model: rows for rows in self.tables.values()}

    @contextmanager
    def seen_through(self, view: Callable[[Rows[Any]], Rows[Any]]) -> Iterator[None]:
        """Let folds see the rows of all tables through something else."""
        plain, plain_by_model = self.tables, self._by_model
        self.tables = {name: view(rows) for name, rows in plain.items()}
        self._by_model = {rows.projection.model: rows for rows in self.tables.values()}
        try:
            yield
        finally:
            self.tables, self._by_model = plain, plain_by_model

    def rows(self, model: type[Model]) -> Rows[Model]:
        """Return the rows of a projection's own table."""
        return self._by_model[model]

    def look_up(self, table: str, key: Hashable) -> Any:
        """Return a row of another table of the group, to look at; None if there is none."""
        return self.tables[table].get(key)

    def reference(self, table: str, key: UUID | None) -> UUID | None:
        """Return `key` if it is that of a row, else None: what a foreign key can hold."""
        return None if key is None or self.tables[table].get(key) is None else key


def flag(row: Any, name: str) -> None:
    """Count on the row, which has `flags`, something that did not fit."""
    flags: Flags = row.flags
    flags[name] = flags.get(name, 0) + 1
