"""The forms of what is asked of tables and answered, made from the tables themselves."""

from __future__ import annotations

from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, create_model

from ledger.sqltypes import ExactNumeric, UtcTimestamp
from projections.projection import Projection
from projections.reading.attributes import ATTRIBUTES
from projections.reading.filtering import (
    FILTER_CHARS_MAX,
    SIZE,
    TIME,
    Filter,
    named_filter_pattern,
    visible_columns,
)
from projections.reading.spooling import Form

FILTERS_MAX = 20
ROWS_MAX = 10_000
CURSOR_CHARS_MAX = 20_000

Amount = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?$", examples=["12.5"])]
Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Id = Annotated[str, Field(json_schema_extra={"format": "uuid"})]
At = Annotated[
    str | None,
    Field(
        pattern=f"^({SIZE}|{TIME})$",
        description="As of this size of the journal, or this time of recording (RFC 3339); the "
        "live table without it.",
        examples=["4200", "2026-03-02T12:00:00Z"],
    ),
]

FLAGS = (
    "should_stop_loss",
    "should_take_profit",
    "is_open",
    "is_liquidated",
    "is_finished",
    "is_locked",
    "has_admin_role",
    "is_expired",
    "is_valid",
)
"""The computed attributes that are true or false; all others are amounts."""


class PointShown(BaseModel):
    """The point that an answer is at: all events below `size` are in it, and no others.

    `root` is the Merkle root of these events, null where they are not sealed so far. A time is
    `provisional` while more events may be recorded at it. `snapshots` are the sizes at which a fold
    began, by group; `notes` say what is left out, what waits, and how the answer was found.
    """

    journal: str
    size: int
    root: str | None
    recorded_at: Moment | None = None
    provisional: bool = False
    snapshots: dict[str, int] = {}
    notes: list[str] = []


AtLeast = Annotated[
    int | None,
    Field(
        ge=0,
        le=10**18,
        description="Wait until the table has come to this size, for as long as `Prefer: wait=N` "
        "says; 503 if it has not by then.",
    ),
]


class RowAsked(BaseModel):
    """What can be asked of one row."""

    model_config = ConfigDict(extra="forbid")

    at: At = None
    at_least: AtLeast = None


class HistoryAsked(BaseModel):
    """Which states of a row are asked for."""

    model_config = ConfigDict(extra="forbid")

    at: At = None
    after: Annotated[
        int, Field(ge=-1, le=10**18, description="Only states behind this offset.")
    ] = -1
    limit: Annotated[int, Field(ge=1, le=ROWS_MAX)] = 100


class Asked(RowAsked):
    """What can be asked of any table; other parameters are filters, and named by columns."""

    model_config = ConfigDict(extra="allow")

    sort: str | None = None
    limit: Annotated[
        int, Field(ge=1, le=ROWS_MAX, description="Rows of a page, if the service allows so many.")
    ] = 50
    cursor: Annotated[
        str | None,
        Field(
            max_length=CURSOR_CHARS_MAX,
            pattern="^[A-Za-z0-9_-]*$",
            description="The `next` of the page before; all else must be as it was there.",
        ),
    ] = None
    format: Annotated[
        Form | None, Field(description="All rows in one file, instead of a page of them.")
    ] = None

    filter: tuple[str, ...] = ()

    def filters(self) -> list[Filter]:
        """Return all filters, those in parameters that have a column's name too."""
        named = [each.partition(":")[::2] for each in self.filter]
        for name, given in (self.model_extra or {}).items():
            named += ((name, text) for text in ([given] if isinstance(given, str) else given))
        return [Filter.parsed(*each) for each in named]


def parameters_of(projection: Projection[Any]) -> type[Asked]:
    """Return the model of what can be asked of a table."""
    columns = visible_columns(projection)
    fields: dict[str, Any] = {}
    sortable = "|".join(each.name for each in columns if not isinstance(each.type, sa.JSON))
    fields["sort"] = (
        Annotated[
            str | None,
            Field(
                pattern=f"^-?({sortable})(,-?({sortable})){{0,9}}$",
                description="Columns to sort by, descending with `-`; the key comes last anyway.",
                examples=[f"-{projection.key}"],
            ),
        ],
        None,
    )
    text = Field(max_length=FILTER_CHARS_MAX, pattern=named_filter_pattern(projection))
    fields["filter"] = (
        tuple[Annotated[str, text], ...],
        Field(
            default=(),
            max_length=FILTERS_MAX,
            description="`COLUMN:OPERATOR:VALUE`, or `COLUMN:VALUE` for `eq`; all of them must "
            "hold. For short, each column is a parameter too: `COLUMN=OPERATOR:VALUE`.",
        ),
    )
    return create_model(f"{projection.model.__name__}Query", __base__=Asked, **fields)


def row_of(projection: Projection[Any]) -> type[BaseModel]:
    """Return the model of a row as it is shown."""
    fields: dict[str, Any] = {
        each.name: (_optional(_shape(each), each.nullable), ...)
        for each in visible_columns(projection)
    }
    for name in ATTRIBUTES.get(projection.name, ()):
        fields[name] = (bool | None if name in FLAGS else Amount | None, None)
    name = projection.model.__name__
    return create_model(f"{name}Row", __doc__=_first_paragraph(projection), **fields)


def _first_paragraph(projection: Projection[Any]) -> str:
    return (projection.model.__doc__ or "").strip().partition("\n\n")[0]


def _optional(shape: Any, nullable: bool | None) -> Any:
    return shape | None if nullable else shape


def _shape(column: sa.Column[Any]) -> Any:
    kind = column.type
    if isinstance(kind, ExactNumeric):
        return Amount
    if isinstance(kind, UtcTimestamp):
        return Moment
    if isinstance(kind, sa.Boolean):
        return bool
    if isinstance(kind, sa.Integer):
        return int
    if isinstance(kind, sa.JSON):
        return _json_shape(column)
    return Id if isinstance(kind, sa.Uuid) else str


def _json_shape(column: sa.Column[Any]) -> Any:
    default = getattr(column.default, "arg", None)
    made = default(None) if callable(default) else {}
    return list[str] if isinstance(made, list) else dict[str, Any]


def page_of(row: type[BaseModel]) -> type[BaseModel]:
    """Return the model of a page of rows."""
    return create_model(
        f"{row.__name__}s",
        __doc__="Rows of a table at a point; `next` is the cursor of the next page, null for none.",
        point=(PointShown, ...),
        rows=(list[row], ...),  # type: ignore[valid-type]
        next=(str | None, ...),
    )


def one_of(row: type[BaseModel]) -> type[BaseModel]:
    """Return the model of one row."""
    return create_model(
        f"{row.__name__}At",
        __doc__="One row at a point.",
        point=(PointShown, ...),
        row=(row, ...),
    )


class StateShown(BaseModel):
    """A state that a row went through, and the event that led to it.

    `row` has the columns as they were; `changed` names those that differ from the state before.
    """

    offset: int
    event_id: Id
    event_type: str
    stream: str
    recorded_at: Moment
    occurred_at: Moment
    actor: str | None
    request_id: str | None
    correlation_id: Id | None
    causation_id: Id | None
    changed: list[str]
    row: dict[str, Any]


class HistoryShown(BaseModel):
    """States of a row, oldest first; `next` is the `after` that goes on, null for nothing."""

    point: PointShown
    states: list[StateShown]
    next: int | None


class ChangeShown(BaseModel):
    """A row that came, changed or went: the columns that differ, each with both values."""

    table: str
    key: str
    change: str
    columns: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]]


class DifferenceShown(BaseModel):
    """What changed between two points; `next` is the `start` that goes on, null for nothing."""

    model_config = ConfigDict(serialize_by_alias=True)

    from_: Annotated[PointShown, Field(alias="from")]
    to: PointShown
    changes: list[ChangeShown]
    next: int | None
