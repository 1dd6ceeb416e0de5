"""Events and the envelope around them.

An event type is a subclass of `Event`; defining it registers it. What a service hands over is a
`NewEvent`, what the journal gives back is a `RecordedEvent`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

import msgspec
from uuid_utils.compat import uuid7

from ledger.amounts import CONTEXT, Amount, PlainDecimal, VenueAmount

__all__ = [
    "CONTEXT",
    "Amount",
    "Event",
    "Instant",
    "Metadata",
    "NewEvent",
    "Personal",
    "RecordedEvent",
    "Upcaster",
    "VenueAmount",
    "event_types",
    "personal_fields",
    "upcaster_of",
]

Instant = Annotated[datetime, msgspec.Meta(tz=True)]
"""An aware time, kept in UTC with microseconds."""

_PERSONAL = "personal"

Personal = Annotated[str, msgspec.Meta(extra={_PERSONAL: True})]
"""Text about a person, or secret: it is stored encrypted, and None once the person is erased.

A field that is marked so keeps its name for ever: what is stored is bound to it.
"""

_FIRST = datetime(1, 1, 2, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, tzinfo=UTC)

_SCHEMA_VERSION_MAX = 32_767
"""So far does the column count."""

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes the fields of one schema version those of the next."""

_registry: dict[str, type[Event]] = {}
_upcasters: dict[tuple[type[Event], int], Upcaster] = {}


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,)
)
class Event(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="type",
    tag=True,
    gc=False,
):
    """Base of all event types: past tense, immutable, its class name is its type for ever.

    A field added later has the default None or an empty value (defaults are not stored), and a
    field never changes its meaning. Any other change takes a new `schema_version` and an upcaster.
    A `retired` type is read for ever, but no longer appended.
    """

    schema_version: ClassVar[int] = 1
    retired: ClassVar[bool] = False
    erases: ClassVar[bool] = False
    """Whether the personal data of the event's subject is gone from here on."""
    kind: ClassVar[type[Any]]
    """The event type itself, also of objects of a class that a lens has made of it."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Register the type under its class name."""
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            return
        cls.kind = cls
        known = _registry.get(cls.__name__)
        if known is not None and known.__module__ != cls.__module__:
            raise TypeError(f"event type {cls.__name__} is defined twice, first in {known}")
        if not 1 <= cls.schema_version <= _SCHEMA_VERSION_MAX:
            raise TypeError(f"{cls.__name__} cannot have schema version {cls.schema_version}")
        _registry[cls.__name__] = cls

    @classmethod
    def upcaster(cls, from_version: int) -> Callable[[Upcaster], Upcaster]:
        """Register what makes fields stored in `from_version` those of the version after it.

        The function gets the fields as JSON has them, without the type: ids, amounts and times are
        text, defaults are left out. It may change them, and returns them. Raises TypeError where
        the version is none before today's, or has an upcaster already.
        """
        if not 1 <= from_version < cls.schema_version:
            raise TypeError(
                f"{cls.__name__} is at schema version {cls.schema_version}: there is nothing to "
                f"upcast from {from_version}"
            )

        def register(upcaster: Upcaster) -> Upcaster:
            if _upcasters.setdefault((cls, from_version), upcaster) is not upcaster:
                raise TypeError(f"{cls.__name__} has two upcasters from version {from_version}")
            return upcaster

        return register

    def __post_init__(self) -> None:
        """Bring amounts and times into their one stored form, so that equal means equal bytes."""
        for name, normalise in normalisers(type(self)):
            value = getattr(self, name)
            if value is not None:
                msgspec.structs.force_setattr(self, name, normalise(value))

    def stream(self) -> str | None:
        """Name the stream this event belongs to, or None where any stream will do."""
        return None

    def tags(self) -> Iterable[str]:
        """Name what else this event is about, for conditions and look-ups across streams."""
        return ()

    def claims(self) -> Iterable[str]:
        """Name the tags that this event's stream holds alone from now on (a username)."""
        return ()

    def releases(self) -> Iterable[str]:
        """Name the claimed tags that are free again from now on."""
        return ()

    def subject(self) -> str | None:
        """Name whose personal data this event holds, as far as it says so itself."""
        return None

    def owner_stream(self) -> str | None:
        """Name the stream whose first event has the subject of this one, which has none."""
        return None

    def with_digests(self, digest: Callable[[str], str]) -> Self:
        """Return the event with the digests of the names in it, by which they are looked up."""
        return self


class Metadata(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    gc=False,
):
    """Who and what an event came from; every field is optional.

    `correlation_id` ties the events of one business transaction together, `causation_id` is the
    id of the event that led to this one, `request_id` the caller's own, `actor` who did it, and
    `ip_address` (v4 or v6) from where.
    """

    correlation_id: UUID | None = None
    causation_id: UUID | None = None
    request_id: str | None = None
    actor: str | None = None
    ip_address: Personal | None = None


class NewEvent(msgspec.Struct, frozen=True, gc=False):
    """An event on its way into the journal.

    `stream` may be left out where the event type names its own; `event_id` is made (UUIDv7) where
    it is left out, `occurred_at` is then the time of recording.
    """

    event: Event
    stream: str = ""
    event_id: UUID = msgspec.field(default_factory=uuid7)
    occurred_at: datetime | None = None
    metadata: Metadata | None = None


class RecordedEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as the journal holds it.

    `offset` is its place in the journal (0, 1, 2, …), `version` its place in the stream (1, 2, …).
    `body` holds the exact stored bytes that `event` was decoded from, written in `schema_version`;
    the event is of today's version. `erased` names the personal fields, those of the metadata too,
    that are None because their subject was erased.
    """

    offset: int
    stream: str
    version: int
    event_id: UUID
    schema_version: int
    recorded_at: datetime
    occurred_at: datetime
    metadata: Metadata
    body: bytes
    event: Event
    erased: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """The event type's name."""
        return type(self.event).__name__


def upcaster_of(kind: type[Event], from_version: int) -> Upcaster | None:
    """Return what makes fields of a version of `kind` those of the next, None if nothing does."""
    return _upcasters.get((kind, from_version))


def event_types() -> dict[str, type[Event]]:
    """Return all event types that this program knows, by name.

    A type that others inherit from is abstract and not among them.
    """
    return {name: known for name, known in _registry.items() if not _is_abstract(known)}


def _is_abstract(known: type[Event]) -> bool:
    return any(below.kind is not known for below in known.__subclasses__())


def utc(moment: datetime) -> datetime:
    """Return `moment` in UTC.

    A time without a zone raises ValueError, as do the first and the last day of the calendar:
    there, other zones overflow, and PostgreSQL's driver takes the very ends for infinity.
    """
    if moment.utcoffset() is None:
        raise ValueError(f"{moment.isoformat()} has no time zone; give one, best UTC")
    if not _FIRST < moment < _LAST:
        raise ValueError(f"{moment.isoformat()} lies outside 0001-01-02 to 9999-12-30")
    return moment if moment.tzinfo is UTC else moment.astimezone(UTC)


@cache
def normalisers(struct: type[msgspec.Struct]) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Return the fields of `struct` that have a single stored form, each with its function."""
    hints = typing.get_type_hints(struct)
    found = ((name, _normaliser(hints[name])) for name in struct.__struct_fields__)
    return tuple((name, function) for name, function in found if function is not None)


def personal_fields(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the names of the fields of `struct` that are stored encrypted."""
    return _personal_fields(struct)


@cache
def _personal_fields(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    hints = typing.get_type_hints(struct, include_extras=True)
    return tuple(name for name in struct.__struct_fields__ if _is_personal(hints[name]))


def _is_personal(hint: Any) -> bool:
    marks = (mark for one in alternatives(hint) for mark in getattr(one, "__metadata__", ()))
    return any((getattr(mark, "extra", None) or {}).get(_PERSONAL) for mark in marks)


def _normaliser(hint: Any) -> Callable[[Any], Any] | None:
    """Return the function that brings a value of type `hint` into its stored form."""
    for option in alternatives(hint):
        if option is datetime:
            return utc
        if isinstance(option, type) and issubclass(option, PlainDecimal):
            return _amount_of(option)
    return None


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, however it is written, or the one type there is."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _amount_of(amount_type: type[PlainDecimal]) -> Callable[[str | int | Decimal], PlainDecimal]:
    def convert(value: str | int | Decimal) -> PlainDecimal:
        return value if type(value) is amount_type else amount_type(value)

    return convert
