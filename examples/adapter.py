"""What the adapters share: reading a CSV file row by row and writing events as NDJSON.

An adapter turns rows into `NewEvent`s. Events that stand in no row but are needed by one (its user,
its key, its order's placement) are made up and carry the actor `adapter:<name>`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import ipaddress
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, TextIO, TypeVar
from uuid import UUID, uuid5

import msgspec

from ledger.codec import encode_event
from ledger.domain.users import UserRegistered, name_digest
from ledger.event import Event, Metadata, NewEvent, VenueAmount, utc

NAMESPACE = UUID("7c1e1d0a-54a2-5f0b-9a55-3f3f4e1c6a10")
TEXT_CHARS_MAX = 200
NAMES_SHOWN_MAX = 20
EXIT_BAD_INPUT = 2

T = TypeVar("T")


class BadRow(Exception):
    """A row that cannot be read; the message names file, line and field."""

    def __init__(self, path: Path, line: int, field: str, reason: str) -> None:
        super().__init__(f"{path}, line {line}, field {field}: {reason}")


class Row:
    """One row of a file; reading a field checks it."""

    __slots__ = ("_line", "_path", "_values")

    def __init__(self, path: Path, line: int, values: dict[str, str]) -> None:
        self._path = path
        self._line = line
        self._values = values

    def text(self, field: str, chars_max: int = TEXT_CHARS_MAX) -> str:
        """Return a field that may be empty."""
        value = self._values[field]
        if len(value) > chars_max:
            raise self.bad(field, f"has {len(value)} characters, at most {chars_max} can be read")
        if not value.isprintable():
            raise self.bad(field, f"{value!r} is not printable UTF-8 text")
        return value

    def name(self, field: str) -> str:
        """Return a field that must not be empty."""
        value = self.text(field)
        if not value:
            raise self.bad(field, "is empty")
        return value

    def read(self, field: str, convert: Callable[[str], T]) -> T:
        """Return what `convert` makes of a field."""
        try:
            return convert(self.text(field))
        except (ValueError, ArithmeticError) as error:
            raise self.bad(field, str(error)) from error

    def one_of(self, field: str, choices: dict[str, T]) -> T:
        """Return what a field with few possible values stands for."""
        value = self.text(field)
        if value not in choices:
            raise self.bad(field, f"{value!r} is not one of {', '.join(choices)}")
        return choices[value]

    def bad(self, field: str, reason: str) -> BadRow:
        """Return the error that says what is wrong with a field."""
        return BadRow(self._path, self._line, field, reason)


class Adapter:
    """Base of the adapters: one run over one file."""

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.skipped: Counter[str] = Counter()
        self.made_up: dict[str, list[str]] = {}
        self._users: set[UUID] = set()

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options that only this adapter has."""

    def events(self, rows: Iterator[Row]) -> Iterator[NewEvent]:
        """Turn rows into events, in the order of the file."""
        raise NotImplementedError

    def id(self, *parts: object) -> UUID:
        """Return the id that belongs to these ids of the source, the same in every run."""
        return _named_id(self.name, *map(str, parts))

    def user_id(self, username: str) -> UUID:
        """Return the id of a user, the same for every way to write the name."""
        return self.id("user", name_digest(username))

    def new_user(self, username: str) -> UserRegistered | None:
        """Return the registration of a user who has had none in this run."""
        user_id = self.user_id(username)
        if user_id in self._users:
            return None
        self._users.add(user_id)
        return UserRegistered(user_id=user_id, username=username)

    def made_up_user(self, username: str, when: datetime) -> Iterator[NewEvent]:
        """Make up the registration of a user whom the source only mentions."""
        event = self.new_user(username)
        if event is not None:
            yield self.make_up(event, event.user_id, when, username)

    def make_up(self, event: Event, thing: UUID, when: datetime, label: str) -> NewEvent:
        """Mark an event that stands in no row and brings `thing` into being."""
        kind = type(event).__name__
        self.made_up.setdefault(kind, []).append(label)
        return NewEvent(
            event,
            event_id=self.id("made up", kind, thing),
            occurred_at=when,
            metadata=Metadata(actor=f"adapter:{self.name}"),
        )


def run(
    adapter_type: type[Adapter], description: str, arguments: Sequence[str] | None = None
) -> int:
    """Convert the file named on the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the CSV file to read, plain or gzip")
    adapter_type.add_options(parser)
    options = parser.parse_args(arguments)
    try:
        print(_convert(adapter_type(options), options.file), file=sys.stderr)
    except BrokenPipeError:
        # The reader has seen enough; keep the interpreter from writing once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (BadRow, OSError) as error:
        print(f"{adapter_type.name}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def instant(text: str) -> datetime:
    """Read an ISO time that names its zone."""
    return utc(datetime.fromisoformat(text))


def positive(text: str) -> VenueAmount:
    """Read an amount above zero."""
    amount = VenueAmount(text)
    if amount <= 0:
        raise ValueError(f"{text} is not above zero")
    return amount


def place(text: str) -> tuple[str | None, str | None]:
    """Return where something came from, as (ip address, other source)."""
    try:
        return str(ipaddress.ip_address(text)), None
    except ValueError:
        return None, text or None


@lru_cache(maxsize=4096)
def _named_id(*parts: str) -> UUID:
    """Return the UUID of a list of texts, whatever characters they hold."""
    return uuid5(NAMESPACE, msgspec.json.encode(parts).decode())


class _Line(msgspec.Struct, omit_defaults=True):
    """One line as `ledger append` reads it."""

    stream: str
    type: str
    data: msgspec.Raw
    event_id: UUID
    occurred_at: datetime | None
    metadata: Metadata | None = None


_encode_line = msgspec.json.Encoder().encode


def _convert(adapter: Adapter, path: Path) -> str:
    """Write all events to standard output and return the summary."""
    rows = _Rows(path, adapter.columns)
    written: Counter[str] = Counter()
    with closing(rows):
        for new in adapter.events(iter(rows)):
            written[type(new.event).__name__] += 1
            sys.stdout.buffer.write(_line(new))
    sys.stdout.buffer.flush()
    return "\n".join(_summary(adapter, rows.count, written))


def _line(new: NewEvent) -> bytes:
    """Encode one event; its fields are those that the journal will store."""
    kind = type(new.event).__name__
    fields = encode_event(new.event).removeprefix(b'{"type":"' + kind.encode() + b'"')
    line = _Line(
        stream=new.stream or new.event.stream() or "",
        type=kind,
        data=msgspec.Raw(b"{" + fields.removeprefix(b",")),
        event_id=new.event_id,
        occurred_at=new.occurred_at,
        metadata=new.metadata,
    )
    return _encode_line(line) + b"\n"


def _summary(adapter: Adapter, rows: int, written: Counter[str]) -> Iterator[str]:
    yield f"{adapter.name}: {rows:,} rows read, {written.total():,} events written"
    yield from (f"  {count:,} {kind}" for kind, count in sorted(written.items()))
    for kind, names in adapter.made_up.items():
        yield f"  made up: {len(names):,} {kind}: {_some(names)}"
    yield from (f"  skipped: {count:,} {what}" for what, count in sorted(adapter.skipped.items()))


def _some(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN_MAX
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    return f"{shown} and {more:,} more" if more > 0 else shown


class _Rows:
    """The rows of a CSV file, plain or gzip, whatever its name says."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.count = 0
        self._path = path
        self._columns = columns
        self._file = _open_text(path)
        self._reader = csv.DictReader(self._file, strict=True)

    def __iter__(self) -> Iterator[Row]:
        try:
            self._check_header()
            for values in self._reader:
                self.count += 1
                yield self._row(values)
        except (csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
            line = self._reader.line_num
            raise BadRow(self._path, line, "(whole row)", str(error)) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _check_header(self) -> None:
        present = self._reader.fieldnames or ()
        for column in self._columns:
            if column not in present:
                raise BadRow(self._path, 1, column, "the header has no such column")

    def _row(self, values: dict[str | None, str | None]) -> Row:
        """Refuse a row with more or fewer fields than the header."""
        line = self._reader.line_num
        for column in self._columns:
            if values[column] is None:
                raise BadRow(self._path, line, column, "the row ends before it")
        if None in values:
            raise BadRow(self._path, line, "(after the last)", "the row has more than the header")
        return Row(self._path, line, values)  # type: ignore[arg-type]


def _open_text(path: Path) -> TextIO:
    """Open a file for reading; bytes that are not UTF-8 are found when their field is read."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if packed:
        return gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape", newline="")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
