"""Filters on the columns of a read table, with one meaning in two places.

A filter is a condition of SQL on a table, and a predicate on rows that came out of a fold. Amounts
compare as numbers, texts by code points, and NULL as nothing: it matches no filter but `null`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from operator import eq, ge, gt, le, lt, ne
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from ledger.event import utc
from ledger.sqltypes import ExactNumeric, UtcTimestamp
from projections.model import ReadModel
from projections.points import InvalidRequest
from projections.projection import Projection

SECRETS = ("password_hash", "key_hash")
FILTER_CHARS_MAX = 1000

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": eq,
    "ne": ne,
    "lt": lt,
    "le": le,
    "gt": gt,
    "ge": ge,
}
OPERATORS = (*COMPARISONS, "in", "contains", "null")

_FLAG = "(true|false)"
_DATE = (
    "([12][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))"
    "|([12][0-9](0[48]|[2468][048]|[13579][26])|(12|16|20|24|28)00)-02-29)"
)
TIME = (
    rf"{_DATE}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{{1,6}})?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
"""The pattern of a time as RFC 3339 writes it, in the years 1000 to 2999."""

SIZE = "[0-9]{1,18}"
_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_AMOUNT = r"-?[0-9]{1,40}(\.[0-9]{1,40})?"
_INTEGER = "-?[0-9]{1,18}"
_TEXT = r"[^\x00]*"

_parsed = re.compile(rf"({'|'.join(OPERATORS)}):(.*)", re.DOTALL).fullmatch
_FLAGS = {"true": True, "false": False}


def is_visible(column: str) -> bool:
    """Whether a column is shown, and can be filtered and sorted by.

    Who could filter by a secret could find it out piece by piece.
    """
    return column != "journal_id" and column not in SECRETS and not column.startswith("exact_")


@lru_cache(maxsize=64)
def visible_columns(projection: Projection[Any]) -> tuple[sa.Column[Any], ...]:
    """Return the columns of a table that are shown."""
    return tuple(each for each in projection.table.columns if is_visible(each.name))


class Filter(msgspec.Struct, frozen=True):
    """What a column must be: `operator` is one of `OPERATORS`, `text` what it is held against.

    `in` takes values between commas, `null` takes `true` or `false`; `contains` looks for a part of
    a text, an element of a list, or a key of an object.
    """

    column: str
    operator: str
    text: str

    @classmethod
    def parsed(cls, column: str, text: str) -> Filter:
        """Return what `OPERATOR:VALUE` says; a text without operator is a value to be equal to."""
        match = _parsed(text)
        if match is None or (match[1] == "null" and match[2] not in _FLAGS):
            return cls(column, "eq", text)
        return cls(column, match[1], match[2])

    def on(self, projection: Projection[Any]) -> Condition:
        """Return the condition for the rows of a table; raises InvalidRequest."""
        column = visible_column(projection, self.column)
        if self.operator not in operators_of(column):
            raise InvalidRequest(
                f"{self.column}: {self.operator!r} is not one of its operators, which are "
                + ", ".join(operators_of(column))
            )
        return Condition(column, self.operator, self._values(column))

    def _values(self, column: sa.Column[Any]) -> tuple[Any, ...]:
        if len(self.text) > FILTER_CHARS_MAX:
            raise InvalidRequest(f"{self.column}: a filter has at most {FILTER_CHARS_MAX} chars")
        if self.operator == "null":
            return (_FLAGS[_matching(self.column, self.text, _FLAG)],)
        if self.operator == "contains":
            return (_text(self.column, self.text),)
        texts = dict.fromkeys(self.text.split(",")) if self.operator == "in" else [self.text]
        return tuple(parsed_value(column, each) for each in texts)


def visible_column(projection: Projection[Any], name: str) -> sa.Column[Any]:
    """Return a column that is shown, by its name; raises InvalidRequest."""
    for column in visible_columns(projection):
        if column.name == name:
            return column
    known = ", ".join(each.name for each in visible_columns(projection))
    raise InvalidRequest(f"{projection.name} has no column {name[:100]!r}; it has {known}")


def operators_of(column: sa.Column[Any]) -> tuple[str, ...]:
    """Name the operators that make sense for the values of a column."""
    if isinstance(column.type, sa.JSON):
        return ("contains", "null")
    if isinstance(column.type, sa.Uuid | sa.Boolean):
        return ("eq", "ne", "in", "null")
    if isinstance(column.type, sa.String):
        return OPERATORS
    return (*COMPARISONS, "in", "null")


def _value_pattern(column: sa.Column[Any]) -> str:
    """Return the pattern of the values of a column as text."""
    kind = column.type
    if isinstance(kind, ExactNumeric):
        return _AMOUNT
    if isinstance(kind, UtcTimestamp):
        return TIME
    if isinstance(kind, sa.Boolean):
        return _FLAG
    if isinstance(kind, sa.Integer):
        return _INTEGER
    return _UUID if isinstance(kind, sa.Uuid) else _TEXT


def filter_pattern(column: sa.Column[Any]) -> str:
    """Return the pattern of all filters on a column, as `Filter.parsed` takes them."""
    return f"^{_filter_pattern(column)}$"


def _filter_pattern(column: sa.Column[Any]) -> str:
    null, value = f"null:{_FLAG}", _value_pattern(column)
    if isinstance(column.type, sa.JSON):
        return f"(contains:{_TEXT}|{null})"
    if value == _TEXT:
        return _TEXT
    operators = "|".join(each for each in operators_of(column) if each in COMPARISONS)
    return f"((({operators}):)?{value}|in:{value}(,{value})*|{null})"


def named_filter_pattern(projection: Projection[Any]) -> str:
    """Return the pattern of all filters on a table's columns, each with its column before it."""
    columns: dict[str, list[str]] = {}
    for each in visible_columns(projection):
        columns.setdefault(_filter_pattern(each), []).append(each.name)
    named = (f"({'|'.join(names)}):{pattern}" for pattern, names in columns.items())
    return f"^({'|'.join(named)})$"


def parsed_value(column: sa.Column[Any], text: str) -> Any:
    """Return the value of a column that a text stands for; raises InvalidRequest."""
    name, kind = column.name, column.type
    pattern = _value_pattern(column)
    if pattern == _TEXT:
        return _text(name, text)
    _matching(name, text, pattern)
    if isinstance(kind, ExactNumeric):
        return Decimal(text)
    if isinstance(kind, UtcTimestamp):
        return utc(datetime.fromisoformat(text))
    if isinstance(kind, sa.Boolean):
        return _FLAGS[text]
    return int(text) if isinstance(kind, sa.Integer) else UUID(text)


_SAID = {
    _AMOUNT: "an amount in plain notation",
    TIME: "a time such as 2026-01-31T12:00:00Z",
    _FLAG: "true or false",
    _INTEGER: "a whole number",
    _UUID: "a UUID",
}


def _matching(name: str, text: str, pattern: str) -> str:
    if not re.fullmatch(pattern, text):
        raise InvalidRequest(f"{name}: {text[:100]!r} is not {_SAID[pattern]}")
    return text


def parsed_moment(name: str, text: str) -> datetime:
    """Return the time that a text names, in UTC; raises InvalidRequest."""
    return utc(datetime.fromisoformat(_matching(name, text, TIME)))


def _text(name: str, text: str) -> str:
    """Refuse what PostgreSQL takes for no text."""
    if "\0" in text or any("\ud800" <= each <= "\udfff" for each in text):
        raise InvalidRequest(f"{name}: {text[:100]!r} has characters that no text has")
    return text


class Sortable(FunctionElement[Any]):
    """A value, as it compares and sorts the same on both databases."""

    inherit_cache = True
    name = "sortable"

    def __init__(self, value: sa.ColumnElement[Any]) -> None:
        super().__init__(value)
        self.type = value.type


@compiles(Sortable, "postgresql")
def _on_postgresql(element: Sortable, compiler: Any, **options: Any) -> str:
    inner = compiler.process(element.clauses, **options)
    is_text = isinstance(element.type, sa.String)
    return f'({inner}) COLLATE "C"' if is_text else f"({inner})"


@compiles(Sortable, "sqlite")
def _on_sqlite(element: Sortable, compiler: Any, **options: Any) -> str:
    inner = compiler.process(element.clauses, **options)
    return f"amount_key({inner})" if isinstance(element.type, ExactNumeric) else f"({inner})"


class Holding(FunctionElement[bool]):
    """Whether a text has a part, a list an element, or an object a key."""

    inherit_cache = True
    name = "holding"
    type = sa.Boolean()

    def __init__(self, column: sa.ColumnElement[Any], text: str) -> None:
        super().__init__(column, sa.bindparam(None, text, type_=sa.String()))
        self.of_json = isinstance(column.type, sa.JSON)


@compiles(Holding, "postgresql")
def _held_on_postgresql(element: Holding, compiler: Any, **options: Any) -> str:
    column, text = (compiler.process(each, **options) for each in element.clauses)
    if isinstance(next(iter(element.clauses)).type, sa.JSON):
        return f"jsonb_exists(CAST({column} AS jsonb), {text})"
    return f"strpos({column}, {text}) > 0"


@compiles(Holding, "sqlite")
def _held_on_sqlite(element: Holding, compiler: Any, **options: Any) -> str:
    column, text = (compiler.process(each, **options) for each in element.clauses)
    if isinstance(next(iter(element.clauses)).type, sa.JSON):
        held = f"CASE json_type({column}) WHEN 'object' THEN held.key ELSE held.value END"
        return f"EXISTS (SELECT 1 FROM json_each({column}) AS held WHERE {held} = {text})"  # noqa: S608 - parts of SQL
    return f"instr({column}, {text}) > 0"


def bound_value(column: sa.Column[Any], value: Any) -> sa.BindParameter[Any]:
    """Return a value of a column as a parameter; integers in their widest form."""
    kind = sa.BigInteger() if isinstance(column.type, sa.Integer) else column.type
    return sa.bindparam(None, value, type_=kind)


def comparable(value: Any) -> Any:
    """Return a value of a row as it compares: ids, which folds have as text too, are text."""
    return str(value) if isinstance(value, UUID) else value


class Condition:
    """A filter on a column that exists, with values of its type."""

    def __init__(self, column: sa.Column[Any], operator: str, values: tuple[Any, ...]) -> None:
        self._column = column
        self._operator = operator
        self._values = values
        self._compared = tuple(map(comparable, values))

    def clause(self) -> sa.ColumnElement[bool]:
        """Return it as a condition of SQL."""
        column, first = self._column, self._values[0]
        if self._operator == "null":
            return column.is_(None) if first else column.is_not(None)
        if self._operator == "contains":
            return Holding(column, first)
        if self._operator in COMPARISONS:
            return self._compares(first)
        return sa.or_(*map(self._is, self._values))

    def _compares(self, value: Any) -> sa.ColumnElement[bool]:
        if self._operator == "eq":
            return self._is(value)
        sides = Sortable(self._column), Sortable(bound_value(self._column, value))
        found: sa.ColumnElement[bool] = COMPARISONS[self._operator](*sides)
        return found

    def _is(self, value: Any) -> sa.ColumnElement[bool]:
        column, bound = self._column, bound_value(self._column, value)
        if isinstance(column.type, ExactNumeric):
            return sa.and_(Sortable(column) == Sortable(bound))
        return sa.and_(column == bound)  # as indexes have it

    def holds(self, row: ReadModel) -> bool:
        """Whether a row that came out of a fold matches."""
        return self.holds_for(getattr(row, self._column.name))

    def holds_for(self, value: Any) -> bool:
        """Whether a value of the column matches."""
        if self._operator == "null":
            return (value is None) is self._values[0]
        if value is None:
            return False
        if self._operator == "contains":
            return self._values[0] in value
        if self._operator == "in":
            return comparable(value) in self._compared
        return bool(COMPARISONS[self._operator](comparable(value), self._compared[0]))
