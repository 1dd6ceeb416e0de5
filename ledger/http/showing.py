"""Recorded events as HTTP shows them: with their envelope, without what nobody must see."""

from __future__ import annotations

import msgspec

from ledger.event import Metadata, RecordedEvent
from ledger.privacy import opened_body
from ledger.sqltypes import time_to_text

HIDDEN = (
    "password_hash",
    "key_hash",
    "username_digest",
    "email_digest",
    "previous_email_digest",
    "name_digest",
    "refresh_digest",
    "family_digest",
)
"""Fields by which a secret could be guessed, or a person be found again."""

_MARKED = [f'"{name}"'.encode() for name in HIDDEN]
_NO_METADATA = Metadata()


class ShownEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event as it is shown; `data` has its fields, as JSON, without the hidden ones.

    `erased` names the personal fields that are null because their subject was erased.
    """

    offset: int
    stream: str
    version: int
    event_id: str
    type: str
    schema_version: int
    recorded_at: str
    occurred_at: str
    data: msgspec.Raw
    metadata: Metadata = _NO_METADATA
    erased: tuple[str, ...] = ()


def shown(recorded: RecordedEvent) -> ShownEvent:
    """Return an event as it is shown, to be encoded by msgspec."""
    return ShownEvent(
        recorded.offset,
        recorded.stream,
        recorded.version,
        str(recorded.event_id),
        recorded.type,
        recorded.schema_version,
        time_to_text(recorded.recorded_at),
        time_to_text(recorded.occurred_at),
        msgspec.Raw(_shown_body(recorded)),
        recorded.metadata,
        tuple(name for name in recorded.erased if name not in HIDDEN),
    )


def _shown_body(recorded: RecordedEvent) -> bytes:
    """Return the fields, as they were stored wherever nothing has to be left out."""
    body = opened_body(recorded)
    if any(name in body for name in _MARKED):
        fields = msgspec.json.decode(body)
        left = {name: value for name, value in fields.items() if name not in (*HIDDEN, "type")}
        return msgspec.json.encode(left)
    head = b'{"type":"' + recorded.type.encode() + b'"'
    return b"{" + body.removeprefix(head).removeprefix(b",")
