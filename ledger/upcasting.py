"""Reading events of older schema versions: stored fields become those of today's version.

Upcasters stand beside their event type (`@OrderPlaced.upcaster(1)`). What is stored never changes:
they work on what was read of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ledger.errors import StoredEventInvalid
from ledger.event import Event, upcaster_of

Fields = dict[str, Any]
"""An event's fields as JSON has them, without its type."""


class _Typed(msgspec.Struct):
    """All that has to be known of a body before it can be decoded."""

    type: str = ""


_decode_types = msgspec.json.Decoder(list[_Typed]).decode


def types_of(bodies: bytes) -> list[str]:
    """Return the names of the types of a JSON array of bodies.

    Raises msgspec.DecodeError or UnicodeDecodeError where it is none.
    """
    return [each.type for each in _decode_types(bodies)]


def common_version(types: Iterable[type[Event]]) -> int:
    """Return the schema version that all these types have today, 0 if they differ."""
    versions = {each.schema_version for each in types}
    return versions.pop() if len(versions) == 1 else 0


def are_todays(events: Sequence[Event], versions: Sequence[int]) -> bool:
    """Whether what these events were decoded from was written in today's versions of their types.

    If not, they mean nothing: a body of another version may decode by chance.
    """
    return [each.schema_version for each in events] == list(versions)


def upcast(kind: type[Event], version: int, fields: Fields, offset: int) -> Fields:
    """Return fields that were stored in `version` of a type as today's version has them.

    Raises StoredEventInvalid, with the offset, where this program cannot: the version is newer than
    what it knows, an upcaster is missing, or one cannot make anything of these fields.
    """
    name, today = kind.__name__, kind.schema_version
    if version > today:
        raise StoredEventInvalid(
            offset,
            f"version {version} of {name} was written by a newer release, this one knows "
            f"version {today}; upgrade this program",
        )
    for step in range(version, today):
        fields = _stepped(kind, step, fields, offset)
    return fields


def _stepped(kind: type[Event], version: int, fields: Fields, offset: int) -> Fields:
    step = f"the step of {kind.__name__} from version {version} to {version + 1}"
    upcaster = upcaster_of(kind, version)
    if upcaster is None:
        raise StoredEventInvalid(offset, f"{step} has no upcaster; see docs/evolve-events.md")
    try:
        made = upcaster(fields)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise StoredEventInvalid(offset, f"{step} failed: {error!r}") from error
    if not isinstance(made, dict):
        raise StoredEventInvalid(offset, f"{step} returned no fields but {made!r:.80}")
    return made
