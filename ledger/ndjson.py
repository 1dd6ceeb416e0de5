"""Importing events from NDJSON: one JSON object a line, stored in the order of the lines.

A line is `{"stream", "type", "data", "event_id"?, "occurred_at"?, "expected_version"?,
"metadata"?}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Annotated, Protocol
from uuid import UUID, uuid5

import msgspec

from ledger.codec import decode_event, located
from ledger.conditions import ExpectedVersion
from ledger.errors import (
    ConditionFailed,
    EventIdConflict,
    InvalidEvent,
    LedgerError,
)
from ledger.event import Instant, Metadata, NewEvent
from ledger.journal import Journal
from ledger.prepare import prepare

CHUNK_LINES = 500
LINE_BYTES_MAX = 256 * 1024
BLOCK_BYTES = 256 * 1024
BLOCKS_AHEAD = 4
_LINE_IDS = UUID("8a5e1c0e-54a1-5a3c-9f6c-2f4b6f0f7d11")


class ImportStopped(LedgerError):
    """A line could not be stored; those before it are stored, none after it is."""

    def __init__(self, file: str, line: int, reason: LedgerError, stored: int) -> None:
        super().__init__(
            f"{file}, line {line}: {reason}; {stored} lines are stored; mend what is wrong and run "
            "the import again: it stores the rest and nothing twice"
        )
        self.exit_code = reason.exit_code
        self.line = line
        self.reason = reason
        self.stored = stored


class Readable(Protocol):
    """A file opened for reading bytes; unbuffered, what comes is there at once."""

    def read(self, size: int, /) -> bytes | None:
        """Return at most `size` bytes, none at the end."""
        ...


class Imported(msgspec.Struct, frozen=True):
    """How far an import has come: lines read, and how many of them were stored before."""

    lines: int = 0
    known: int = 0

    def plus(self, lines: int, known: int) -> Imported:
        """Return the sum."""
        return Imported(self.lines + lines, self.known + known)


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line as it stands in the file."""

    stream: str
    type: str
    data: msgspec.Raw
    event_id: UUID | None = None
    occurred_at: Instant | None = None
    expected_version: Annotated[int, msgspec.Meta(ge=0)] | None = None
    metadata: Metadata | None = None


class _Entry(msgspec.Struct, frozen=True):
    """A line that can be appended, and its number in the file."""

    number: int
    event: NewEvent
    conditions: tuple[ExpectedVersion, ...]


_decode_line = msgspec.json.Decoder(Line).decode


async def import_lines(
    journal: Journal, file: Readable, name: str, source: str | None = None
) -> AsyncIterator[Imported]:
    """Append the lines of `file` in order, as they come; yield how far the import has come.

    Lines without an event id get one made of `source`, the line's number and its content, so that
    importing a file again stores nothing twice. Raises ImportStopped at the first line that cannot
    be stored.
    """
    done = Imported()
    async for lines in _numbered_lines(file):
        for chunk, bad in _chunks(lines, source):
            if chunk:
                done = await _append_chunk(journal, chunk, name, done)
                yield done
            if bad is not None:
                number, reason = bad
                raise ImportStopped(name, number, reason, done.lines) from reason


def parse_line(raw: bytes, number: int, source: str | None) -> _Entry:
    """Return what a line asks for; InvalidEvent, with the field, where it is wrong."""
    if len(raw) > LINE_BYTES_MAX:
        raise InvalidEvent(f"the line is longer than {LINE_BYTES_MAX:,} bytes")
    line = _decoded(raw)
    event = NewEvent(
        decode_event(line.type, line.data),
        line.stream,
        line.event_id or _derived_id(raw, number, source),
        line.occurred_at,
        line.metadata,
    )
    expected = line.expected_version
    stream = line.stream or event.event.stream() or ""
    conditions = () if expected is None else (ExpectedVersion(stream, expected),)
    prepare([event], conditions)
    return _Entry(number, event, conditions)


def _decoded(raw: bytes) -> Line:
    try:
        return _decode_line(raw)
    except msgspec.ValidationError as error:
        raise located(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEvent(f"not valid JSON: {error}", field="line") from error


def _derived_id(raw: bytes, number: int, source: str | None) -> UUID:
    if source is None:
        raise InvalidEvent(
            "is missing; give the line one, or name the file's origin with --source so that one "
            "can be derived",
            field="event_id",
        )
    return uuid5(_LINE_IDS, f"{source}\n{number}\n{raw.decode('utf-8', 'surrogateescape')!r}")


async def _numbered_lines(file: Readable) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Yield lists of whole lines with their numbers; one that is too long ends the last list."""
    number, rest = 0, b""
    async for block in _read_ahead(file):
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            lines.append(rest)
        yield list(enumerate(lines, number + 1))
        number += len(lines)
    yield [(number + 1, rest)]


async def _read_ahead(file: Readable) -> AsyncIterator[bytes]:
    """Yield blocks as they come.

    They are read by a thread that nobody waits for: a read from a terminal may never end.
    """
    loop = asyncio.get_running_loop()
    blocks: asyncio.Queue[bytes | Exception] = asyncio.Queue()
    room = threading.Semaphore(BLOCKS_AHEAD)

    def read() -> None:
        block: bytes | Exception = b"."
        while block and not isinstance(block, Exception):
            room.acquire()
            try:
                block = file.read(BLOCK_BYTES) or b""
            except (OSError, ValueError) as error:
                block = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(blocks.put_nowait, block)

    threading.Thread(target=read, daemon=True).start()
    while block := await blocks.get():
        if isinstance(block, Exception):
            raise InvalidEvent(f"cannot read on: {block}", field="file") from block
        room.release()
        yield block


_Bad = tuple[int, LedgerError]


def _chunks(
    lines: Iterable[tuple[int, bytes]], source: str | None
) -> Iterator[tuple[list[_Entry], _Bad | None]]:
    """Yield runs of good lines that can go into one append; the last may end at a bad line."""
    chunk: list[_Entry] = []
    streams: set[str] = set()
    for number, raw in lines:
        if not raw.strip():
            continue
        try:
            entry = parse_line(raw.rstrip(b"\r"), number, source)
        except LedgerError as error:
            yield chunk, (number, error)
            return
        # Conditions look at the journal before the append, so a stream whose version is expected
        # must not have been written earlier in the same append.
        if len(chunk) == CHUNK_LINES or (entry.conditions and entry.event.stream in streams):
            yield chunk, None
            chunk, streams = [], set()
        chunk.append(entry)
        streams.add(entry.event.stream)
    yield chunk, None


async def _append_chunk(
    journal: Journal, chunk: list[_Entry], name: str, done: Imported
) -> Imported:
    """Append a chunk as one; where that is refused, line by line up to the one at fault."""
    conditions = [condition for entry in chunk for condition in entry.conditions]
    try:
        appended = await journal.append([entry.event for entry in chunk], *conditions)
    except (ConditionFailed, EventIdConflict, InvalidEvent):
        return await _append_singly(journal, chunk, name, done)
    except LedgerError as error:
        raise ImportStopped(name, chunk[0].number, error, done.lines) from error
    return done.plus(len(chunk), len(chunk) if appended.duplicate else 0)


async def _append_singly(
    journal: Journal, chunk: list[_Entry], name: str, done: Imported
) -> Imported:
    for entry in chunk:
        try:
            appended = await journal.append(entry.event, *entry.conditions)
        except LedgerError as error:
            raise ImportStopped(name, entry.number, error, done.lines) from error
        done = done.plus(1, int(appended.duplicate))
    return done
