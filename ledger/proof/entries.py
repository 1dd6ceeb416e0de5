"""Entries of the log: the canonical bytes of recorded events, one JSON object on one line each.

The keys stand in a fixed order and there are no spaces; metadata and body are the stored bytes,
byte for byte, so an entry covers all that is stored of an event.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from ledger.errors import StoredEventInvalid
from ledger.proof.tiles import ENTRY_BYTES_MAX
from ledger.sqltypes import time_to_text
from ledger.stores import RawEvents, StoredEvent

_to_json = msgspec.json.Encoder().encode


class EntryInvalid(ValueError):
    """Bytes are not the canonical entry of a recorded event."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """The keys of an entry, in their order."""

    v: int
    journal: str
    offset: int
    stream: str
    version: int
    event_id: UUID
    type: str
    schema_version: int
    recorded_at: datetime
    occurred_at: datetime
    metadata: msgspec.Raw
    body: msgspec.Raw


_decode = msgspec.json.Decoder(_Entry).decode


def entries_of(journal: str, raw: RawEvents) -> list[bytes]:
    """Return the entries of many events of the journal of that name, in order.

    Raises StoredEventInvalid at an event whose entry would be too large, and TypeError where a
    value is not of its column's type.
    """
    start = f'{{"v":1,"journal":{_to_json(journal).decode()},"offset":'
    entries = [
        b"%b%b%b%b}"
        % (
            f'{start}{offset},"stream":{stream},"version":{version},"event_id":"{event_id}",'
            f'"type":{kind},"schema_version":{schema_version},"recorded_at":"{recorded_at}",'
            f'"occurred_at":"{occurred_at}","metadata":'.encode(),
            b"null" if metadata is None else metadata,
            b',"body":',
            body,
        )
        for (
            offset,
            stream,
            version,
            event_id,
            kind,
            schema_version,
            recorded_at,
            occurred_at,
            metadata,
            body,
        ) in zip(
            raw.offsets,
            _quoted(raw.streams),
            raw.versions,
            raw.event_ids,
            _quoted(raw.types),
            raw.schema_versions,
            raw.recorded_at,
            raw.occurred_at,
            raw.metadata,
            raw.bodies,
            strict=True,
        )
    ]
    _check_lengths(entries, raw.offsets)
    return entries


def _quoted(names: Sequence[str]) -> list[str]:
    """Return names as JSON; those of events hardly ever have anything to escape."""
    joined = "".join(names)
    if joined.isprintable() and '"' not in joined and "\\" not in joined:
        return [f'"{name}"' for name in names]
    return [_to_json(name).decode() for name in names]


def _check_lengths(entries: Sequence[bytes], offsets: Sequence[int]) -> None:
    if max(map(len, entries), default=0) <= ENTRY_BYTES_MAX:
        return
    for entry, offset in zip(entries, offsets, strict=True):
        if len(entry) > ENTRY_BYTES_MAX:
            reason = f"its entry has {len(entry):,} bytes, at most {ENTRY_BYTES_MAX:,} fit a log"
            raise StoredEventInvalid(offset, reason)


def entry_of(journal: str, stored: StoredEvent) -> bytes:
    """Return the entry of one event of the journal of that name."""
    return entries_of(journal, raw_of([stored]))[0]


def raw_of(events: Iterable[StoredEvent]) -> RawEvents:
    """Return events as they are sealed."""
    rows = [
        (
            each.offset,
            each.stream,
            each.version,
            str(each.event_id),
            each.type,
            each.schema_version,
            time_to_text(each.recorded_at),
            time_to_text(each.occurred_at),
            each.metadata,
            each.body,
        )
        for each in events
    ]
    return RawEvents(*(zip(*rows, strict=True) if rows else ((),) * 10))


def parse_entry(entry: bytes) -> StoredEvent:
    """Return the event of an entry; EntryInvalid unless the entry is canonical."""
    return parse_named(entry)[1]


def parse_named(entry: bytes) -> tuple[str, StoredEvent]:
    """Return the name of the journal and the event of an entry; EntryInvalid likewise."""
    try:
        entry.decode()  # metadata and body are taken as they are
        found = _decode(entry)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EntryInvalid(f"it is not an entry: {error}") from error
    metadata = bytes(found.metadata)
    event = StoredEvent(
        found.offset,
        found.event_id,
        found.stream,
        found.version,
        found.schema_version,
        found.occurred_at,
        found.recorded_at,
        None if metadata == b"null" else metadata,
        bytes(found.body),
        found.type,
    )
    if found.v != 1 or _again(found.journal, event) != entry:
        raise EntryInvalid("it is not in the canonical form of version 1")
    return found.journal, event


def _again(journal: str, event: StoredEvent) -> bytes | None:
    """Return the entry anew, None where there is no such event."""
    try:
        return entry_of(journal, event)
    except (ValueError, StoredEventInvalid):
        return None
