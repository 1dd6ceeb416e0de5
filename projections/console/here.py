"""Where a visitor is: the page with its parameters, and the moment that every link keeps."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

import msgspec
from starlette.requests import Request

from ledger.sqltypes import time_to_text

CARRIED = ("at", "a", "b")
"""The moment that is shown and the two pins: links from page to page keep them."""

DIGITS_MAX = 18

Parameters = tuple[tuple[str, str], ...]


class Here(msgspec.Struct, frozen=True):
    """A page as it was asked for: its path, and its parameters in their order."""

    path: str
    parameters: Parameters = ()

    @classmethod
    def of(cls, request: Request) -> Here:
        """Take what a request says; parameters without a value count as not given."""
        given = request.query_params.multi_items()
        return cls(request.url.path, tuple((name, text) for name, text in given if text))

    def get(self, name: str) -> str | None:
        """Return the first value of a parameter, None where it is not given."""
        return next((text for each, text in self.parameters if each == name), None)

    def number(self, name: str) -> int | None:
        """Return a parameter that is a whole number, None where it is none, or not given."""
        text = self.get(name) or ""
        is_one = text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX
        return int(text) if is_one else None

    @property
    def at(self) -> str | None:
        """The moment that is asked for, None for now."""
        text = self.get("at")
        return None if text is None else moment_of(text)

    def all_but(self, *names: str) -> Parameters:
        """Return the parameters with other names."""
        return tuple(each for each in self.parameters if each[0] not in names)

    def url(self, **changes: object) -> str:
        """Return this page with other parameters; None leaves one out."""
        return _url(self.path, (*self.all_but(*changes), *_texts(changes)))

    def without(self, name: str, text: str) -> str:
        """Return this page, from its first rows, without one parameter."""
        kept = (each for each in self.all_but("cursor") if each != (name, text))
        return _url(self.path, tuple(kept))

    def to(self, *path: object, **parameters: object) -> str:
        """Return another page of the console at the same moment; the path comes in parts."""
        carried = (each for each in self.parameters if each[0] in CARRIED)
        named = tuple(_texts(parameters))
        kept = tuple(each for each in carried if each[0] not in parameters)
        return _url(_joined(path), named + kept)

    def export(self, form: str, *path: object) -> str:
        """Return the address of a file with all that this page shows a part of."""
        kept = self.all_but("format", "cursor", "limit", "columns", "a", "b")
        return _url(_joined(path), (("format", form), *kept))


def moment_of(text: str) -> str:
    """Return a size or a time as people write it in the form that replays take.

    Sizes may have separators (`1,234`), times without a zone are in UTC.
    """
    bare = text.strip().replace(",", "").replace(" ", "").replace("\N{NARROW NO-BREAK SPACE}", "")
    if bare.isascii() and bare.isdigit():
        return bare
    stripped = text.strip().removesuffix("UTC").rstrip()
    try:
        moment = datetime.fromisoformat(stripped)
        return time_to_text(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return stripped


def _joined(path: tuple[object, ...]) -> str:
    return "/".join(["/console", *(quote(str(each), "") for each in path)])


def _texts(parameters: dict[str, object]) -> Iterator[tuple[str, str]]:
    return ((name, str(value)) for name, value in parameters.items() if value is not None)


def _url(path: str, parameters: Parameters) -> str:
    return f"{path}?{urlencode(parameters)}" if parameters else path
