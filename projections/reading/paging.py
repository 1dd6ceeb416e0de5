"""Pages of a read table: an order, and a cursor that goes on behind the last row.

In an ascending order NULL stands behind all values, and the key comes last.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa

from ledger.event import utc
from ledger.sqltypes import ExactNumeric, UtcTimestamp, text_to_time
from projections.model import ReadModel
from projections.numbers import INTEGER_MAX
from projections.points import InvalidRequest, Point
from projections.projection import Projection
from projections.reading.filtering import (
    Filter,
    Sortable,
    bound_value,
    comparable,
    parsed_value,
    visible_column,
)
from projections.rendering import plain

__all__ = ["CursorUnknown", "Filter", "Page", "Query", "Selection", "parsed_sort"]

FILTERS_MAX = 50
_long_amount = re.compile(r"-?[0-9]{1,2000}(\.[0-9]{1,2000})?").fullmatch


class CursorUnknown(InvalidRequest):
    """A cursor goes with another question, or with none: there is no such page."""


class Query(msgspec.Struct, frozen=True):
    """Which rows of a table are asked for: those that all filters match, in an order.

    `sort` names columns, each with whether it is descending; the key comes last in any case.
    """

    table: str
    filters: tuple[Filter, ...] = ()
    sort: tuple[tuple[str, bool], ...] = ()
    cursor: str | None = None
    limit: int = 50


class Page(msgspec.Struct, frozen=True):
    """Some rows as JSON has them, and the cursor of what comes behind them, None for nothing.

    `columns` names those of the table; rows may have computed attributes beside them.
    """

    point: Point
    rows: list[dict[str, Any]]
    next_cursor: str | None
    columns: tuple[str, ...]


def parsed_sort(text: str) -> tuple[tuple[str, bool], ...]:
    """Return the order that a text such as `-created_at,token` names."""
    names = [each for each in text.split(",") if each]
    return tuple((each.removeprefix("-"), each.startswith("-")) for each in names)


class Order(msgspec.Struct, frozen=True):
    """One column of an order."""

    column: sa.Column[Any]
    descending: bool

    @property
    def text(self) -> str:
        """The order as it is asked for."""
        return f"{'-' if self.descending else ''}{self.column.name}"

    def clause(self, dialect: str) -> sa.ColumnElement[Any]:
        """Return it for SQL: NULL counts as the largest, which PostgreSQL does by itself."""
        value = Sortable(self.column)
        found = value.desc() if self.descending else value.asc()
        if dialect == "postgresql" or not self.column.nullable:
            return found
        return found.nulls_first() if self.descending else found.nulls_last()

    def key(self, row: ReadModel) -> tuple[Any, ...]:
        """Return by what rows that came out of a fold are sorted, ascending."""
        return self.key_of(getattr(row, self.column.name))

    def key_of(self, value: Any) -> tuple[Any, ...]:
        """Return the same of a value."""
        return (1,) if value is None else (0, comparable(value))

    def behind(self, value: Any) -> sa.ColumnElement[bool]:
        """Return the condition that rows stand behind those with a value."""
        if value is None:
            return self.column.is_not(None) if self.descending else sa.false()
        sides = Sortable(self.column), Sortable(bound_value(self.column, value))
        if self.descending:
            return sides[0] < sides[1]
        later = sides[0] > sides[1]
        return sa.or_(later, self.column.is_(None)) if self.column.nullable else later

    def beside(self, value: Any) -> sa.ColumnElement[bool]:
        """Return the condition that rows have this value."""
        if value is None:
            return self.column.is_(None)
        return Sortable(self.column) == Sortable(bound_value(self.column, value))


class _Cursor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Where a page ended: in which table, order and point, and behind which values."""

    table: str
    sort: str
    at: str | None
    size: int
    values: list[str | None]


_decode_cursor = msgspec.json.Decoder(_Cursor).decode


class Selection:
    """A query whose names and values have been found good, for rows of SQL or of a fold."""

    def __init__(self, query: Query, projection: Projection[Any], at: str | None = None) -> None:
        """Check the query for a table at a point as it is asked for; raises InvalidRequest."""
        if len(query.filters) > FILTERS_MAX or len(query.sort) > FILTERS_MAX:
            raise InvalidRequest(f"at most {FILTERS_MAX} filters, and as many columns to sort by")
        self.projection = projection
        self.conditions = [each.on(projection) for each in query.filters]
        self.orders = _orders(projection, query.sort)
        self.limit = query.limit
        self._at = at
        self._after: list[Any] | None = None
        self.size: int | None = None
        """The size that the cursor goes on at, where a point was asked for."""
        if query.cursor is not None:
            self._go_on(query.cursor)

    @property
    def _sort(self) -> str:
        return ",".join(each.text for each in self.orders)

    def _go_on(self, text: str) -> None:
        cursor = _decoded(text)
        place = (cursor.table, cursor.sort, cursor.at, len(cursor.values))
        if place != (self.projection.name, self._sort, self._at, len(self.orders)):
            raise CursorUnknown(
                "cursor: it belongs to another table, order or point; begin without one"
            )
        self._after = [
            None if value is None else _cursor_value(order.column, value)
            for order, value in zip(self.orders, cursor.values, strict=True)
        ]
        if self._at is not None:
            self.size = cursor.size

    def clauses(self) -> list[sa.ColumnElement[bool]]:
        """Return the conditions that rows of all pages match."""
        return [each.clause() for each in self.conditions]

    def statement(
        self, journal_id: int, dialect: str, *also: sa.ColumnElement[bool]
    ) -> sa.Select[Any]:
        """Return the query for a page and one row more, all columns in their order."""
        found = self.whole(journal_id, dialect, *also)
        if self._after is not None:
            found = found.where(_behind(self.orders, self._after))
        return found.limit(self.limit + 1)

    def whole(self, journal_id: int, dialect: str, *also: sa.ColumnElement[bool]) -> sa.Select[Any]:
        """Return the query for the rows of all pages."""
        table = self.projection.table
        found = sa.select(*table.columns).where(
            table.c.journal_id == journal_id, *also, *self.clauses()
        )
        return found.order_by(*(each.clause(dialect) for each in self.orders))

    def pick(self, rows: Iterable[ReadModel]) -> list[ReadModel]:
        """Return the same of rows that came out of a fold."""
        found = self.matching(rows)
        if self._after is not None:
            found = [each for each in found if self._is_behind(each)]
        return self.sorted(found)[: self.limit + 1]

    def matching(self, rows: Iterable[ReadModel]) -> list[ReadModel]:
        """Return the rows that all filters match."""
        return [row for row in rows if all(each.holds(row) for each in self.conditions)]

    def sorted(self, rows: list[ReadModel]) -> list[ReadModel]:
        """Return rows in the order that was asked for."""
        for order in reversed(self.orders):
            rows = sorted(rows, key=order.key, reverse=order.descending)
        return rows

    def _is_behind(self, row: ReadModel) -> bool:
        for order, value in zip(self.orders, self._after or (), strict=True):
            own, other = order.key(row), order.key_of(value)
            if own != other:
                return own < other if order.descending else own > other
        return False

    def cut(self, rows: Sequence[ReadModel], size: int) -> tuple[Sequence[ReadModel], str | None]:
        """Return a page's rows of those found, and the cursor that goes on, if anything does."""
        if len(rows) <= self.limit:
            return rows, None
        page = rows[: self.limit]
        values = [_cursor_text(getattr(page[-1], each.column.name)) for each in self.orders]
        cursor = _Cursor(str(self.projection.name), self._sort, self._at, size, values)
        return page, _encoded(cursor)


def _orders(projection: Projection[Any], sort: Sequence[tuple[str, bool]]) -> list[Order]:
    orders = [Order(visible_column(projection, name), descending) for name, descending in sort]
    for each in orders:
        if isinstance(each.column.type, sa.JSON):
            raise InvalidRequest(f"sort: {each.column.name} holds objects, which have no order")
    if projection.key not in (each.column.name for each in orders):
        orders.append(Order(projection.table.c[projection.key], descending=False))
    return orders


def _behind(orders: Sequence[Order], values: Sequence[Any]) -> sa.ColumnElement[bool]:
    """Return the condition that rows stand behind one with these values."""
    (order, *others), (value, *rest) = orders, values
    if not others:
        return order.behind(value)
    return sa.or_(order.behind(value), sa.and_(order.beside(value), _behind(others, rest)))


def _cursor_text(value: Any) -> str | None:
    if value is None:
        return None
    shown = plain(value)
    return str(shown).lower() if isinstance(shown, bool) else str(shown)


def _cursor_value(column: sa.Column[Any], text: str) -> Any:
    """Return a value that a row had, which may be one that no filter takes."""
    kind = column.type
    try:
        if isinstance(kind, ExactNumeric):
            return Decimal(_long_amount(text)[0])  # type: ignore[index]
        if isinstance(kind, UtcTimestamp):
            return utc(text_to_time(text))
        if isinstance(kind, sa.Integer):
            return max(-INTEGER_MAX, min(INTEGER_MAX, int(text[:20])))
        return parsed_value(column, text)
    except (ValueError, TypeError, InvalidRequest) as error:
        raise CursorUnknown(f"cursor: {column.name} cannot be {text[:100]!r}") from error


def _encoded(cursor: _Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def _decoded(text: str) -> _Cursor:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return _decode_cursor(data)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise CursorUnknown("cursor: it is none that this service gave out") from error
