"""How read tables are declared."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, TypeVar, cast

import msgspec
from sqlalchemy import JSON, CheckConstraint, Column, ForeignKeyConstraint, String, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

from ledger.schema import metadata
from ledger.sqltypes import OFFSET, ExactNumeric, UtcTimestamp
from projections.numbers import TEXT_CHARS_MAX, ZERO

Flags = dict[str, int]
"""What did not fit, and how often: `{"overfill": 1}`."""

AMOUNT = ExactNumeric(20, 8)
"""An amount that people read."""

PRODUCT = ExactNumeric(38, 16)
"""A price times a size that people read."""

_JSON = JSON(none_as_null=True)


class Base(DeclarativeBase):
    """The root of all read models; they share the journal's MetaData."""

    metadata = metadata
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: String(TEXT_CHARS_MAX),
        datetime: UtcTimestamp(),
        dict[str, int]: _JSON,
        dict[str, Any]: _JSON,
        dict[str, str]: _JSON,
        list[str]: _JSON,
    }


class ReadModel(Base):
    """The columns of every read table: whose row it is, and the size at which it last changed."""

    __abstract__ = True
    __table__: ClassVar[Table]

    @declared_attr
    def journal_id(cls) -> Mapped[int]:  # noqa: N805 - SQLAlchemy calls it with the class
        """Lead every key."""
        return mapped_column(OFFSET, primary_key=True, autoincrement=False, sort_order=-1)

    changed_size: Mapped[int] = mapped_column(OFFSET, sort_order=100)


class TimedModel(ReadModel):
    """A read table whose rows say when they were made and last changed in the business."""

    __abstract__ = True

    created_at: Mapped[datetime] = mapped_column(sort_order=98)
    updated_at: Mapped[datetime] = mapped_column(sort_order=99)


Model = TypeVar("Model", bound=ReadModel)


def exact(default: Decimal | None = ZERO) -> Mapped[Any]:
    """Declare an exact part of a fold's state, from which the columns that people read follow."""
    return mapped_column(ExactNumeric(), default=default)


def one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    """Return the check that a column holds one of `values`."""
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def refers_to(column: str, target: str) -> ForeignKeyConstraint:
    """Return the foreign key from `column` to `target` (`users.user_id`) in the same journal."""
    table = target.partition(".")[0]
    return ForeignKeyConstraint(
        ["journal_id", column],
        [f"{table}.journal_id", target],
        deferrable=True,
        initially="DEFERRED",
    )


def row_type(model: type[Model]) -> type[Model]:
    """Return a plain mutable class with exactly the columns of `model` and their defaults.

    Folds work on its objects: they are several times faster than mapped ones and belong to no
    session. To a type checker they are the model itself, so that `row.size` has the type which
    `Mapped[…]` declares; but only columns exist, no relationships and no computed attributes.
    """
    fields = [(column.name, Any, _default(column)) for column in model.__table__.columns]
    return cast("type[Model]", msgspec.defstruct(f"{model.__name__}Row", fields, gc=False))


def _default(column: Column[Any]) -> Any:
    """Return the column's default in the words of a row class."""
    default: Any = column.default
    if default is None:
        return None
    if default.is_callable:
        return msgspec.field(default_factory=type(default.arg(None)))  # dict or list
    return default.arg


def values_of(row: ReadModel) -> dict[str, Any]:
    """Return the columns of a row that came out of a fold."""
    return msgspec.structs.asdict(cast("Any", row))
