"""The event types, with the fields of their data."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from types import UnionType
from typing import Any
from uuid import UUID

import msgspec

import ledger.domain  # noqa: F401 - registers the event types
from ledger.amounts import Amount, VenueAmount
from ledger.event import Event, event_types, personal_fields
from reference.markdown import code, table
from reference.markdown import page as as_page

INTRODUCTION = (
    "Made from the types themselves. [Events](../events.md) says what streams they are in, what "
    "values look like, and how they are appended."
)
KINDS = {
    UUID: "id",
    datetime: "time",
    Amount: "amount",
    VenueAmount: "venue amount",
    str: "text",
    int: "integer",
    bool: "true or false",
}


def page() -> str:
    """Return the page, with a section for each module of the domain."""
    lines: list[str] = [INTRODUCTION, ""]
    module = ""
    for name, kind in _own_types():
        part = kind.__module__.rpartition(".")[2]
        if part != module:
            module = part
            title = part.replace("_", " ").capitalize().replace("Api ", "API ")
            lines += [f"## {title}", ""]
        lines += _section(name, kind)
    return as_page("Event types", *lines)


def _own_types() -> list[tuple[str, type[Event]]]:
    found = ((n, kind) for n, kind in event_types().items() if "ledger.domain." in kind.__module__)
    return sorted(found, key=lambda pair: pair[1].__module__)


def _section(name: str, kind: type[Event]) -> Iterator[str]:
    yield from (f"### {code(name)}", "", (kind.__doc__ or "").partition("\n\n")[0], "")
    personal = set(personal_fields(kind))
    fields = msgspec.structs.fields(kind)
    rows = (
        (
            code(each.name),
            _word(each.type),
            "yes" if each.required else "",
            "yes" if each.name in personal else "",
        )
        for each in fields
    )
    yield from table(["field", "value", "required", "personal"], rows)
    if kind.schema_version > 1 or kind.retired:
        state = ", retired" if kind.retired else ""
        yield from (f"Schema version {kind.schema_version}{state}.", "")


def _word(kind: Any) -> str:
    """Return a type as docs/events.md speaks of it."""
    if kind in KINDS:
        return KINDS[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _word(arguments[0])
    if origin in (typing.Union, UnionType):
        return " or ".join(_word(each) for each in arguments if each is not type(None))
    if origin in (tuple, list):
        return f"list of {_word(arguments[0])}"
    if origin is dict:
        return f"object of {_word(arguments[1])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(code(each.value) for each in kind)
    return str(getattr(kind, "__name__", kind))
