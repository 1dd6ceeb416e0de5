"""Column types that keep amounts exact and times in UTC on PostgreSQL and SQLite alike.

SQLAlchemy's own `Numeric` goes through float on SQLite, and its `DateTime` drops the zone there.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, Numeric, String
from sqlalchemy.types import TypeDecorator, TypeEngine

OFFSET = BigInteger().with_variant(Integer(), "sqlite")
"""Offsets, sizes and journal ids; INTEGER on SQLite, where only that can be a row id."""


def name_type(length: int) -> String:
    """Return text that is compared byte by byte, which is also the fastest to index."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


class ExactNumeric(TypeDecorator[Decimal]):
    """NUMERIC(precision, scale), unconstrained without arguments; exact decimal text on SQLite."""

    impl = Numeric
    cache_ok = True

    def __init__(self, precision: int | None = None, scale: int | None = None) -> None:
        """Take the bounds that PostgreSQL is to enforce."""
        super().__init__(precision, scale)
        self.precision = precision
        self.scale = scale

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Store text on SQLite."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String())
        return dialect.type_descriptor(Numeric(self.precision, self.scale))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        """Write plain notation on SQLite."""
        if value is None or dialect.name != "sqlite":
            return value
        return format(value, "f")

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """Read back the very same number."""
        return value if value is None or isinstance(value, Decimal) else Decimal(value)


class UtcTimestamp(TypeDecorator[datetime]):
    """TIMESTAMP WITH TIME ZONE; on SQLite ISO 8601 text of one width, so that it sorts by time."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Store text on SQLite."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String())
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Write UTC; a time without a zone is refused."""
        if value is None or dialect.name != "sqlite":
            return value
        return time_to_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Read an aware time in UTC."""
        if value is None or isinstance(value, datetime):
            return value
        return text_to_time(value)


def time_to_text(moment: datetime) -> str:
    """Return `moment` as `2026-11-23T14:38:00.000000Z`."""
    if moment.utcoffset() is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    text = moment.astimezone(UTC).isoformat(timespec="microseconds")
    return text.removesuffix("+00:00") + "Z"


def text_to_time(text: str) -> datetime:
    """Return the time that `time_to_text` wrote."""
    return datetime.fromisoformat(text)
