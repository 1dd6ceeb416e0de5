"""Between events and the bytes that are stored.

A body is one compact JSON object, `{"type":"OrderPlaced",…}`, encoded once at the append and never
again: what is hashed is what is stored.
"""

from __future__ import annotations

import ipaddress
import re
import typing
from collections.abc import Sequence
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, Union
from uuid import UUID

import msgspec

from ledger.amounts import PlainDecimal
from ledger.errors import InvalidEvent, StoredEventInvalid, UnknownEventType
from ledger.event import Event, Metadata, alternatives, event_types, personal_fields
from ledger.upcasting import are_todays, types_of, upcast

BODY_BYTES_MAX = 32 * 1024
METADATA_BYTES_MAX = 4 * 1024
NAME_CHARS_MAX = 255
JOURNAL_NAME_CHARS_MAX = 100
NO_METADATA = Metadata()

_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_PATH = re.compile(r"^(?P<reason>.*?) - at `\$(?P<path>[^`]*)`$", re.DOTALL)
_NAMED = re.compile(r"(?:required|unknown) field `(?P<field>[^`]*)`$")


def _to_json(value: Any) -> Any:
    if isinstance(value, PlainDecimal):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no stored form")


def _from_json(expected: type, value: Any) -> Any:
    if issubclass(expected, PlainDecimal):
        return expected(value)
    raise NotImplementedError(f"{expected.__name__} has no stored form")


_encode = msgspec.json.Encoder(enc_hook=_to_json).encode
_decode_metadata = msgspec.json.Decoder(Metadata).decode


def encode_event(event: Event) -> bytes:
    """Return the body of `event`; InvalidEvent where it cannot or must not be stored."""
    _check_types(event)
    try:
        body = _encode(event)
    except (UnicodeEncodeError, NotImplementedError, TypeError) as error:
        raise InvalidEvent(str(error), field="data") from error
    _check(body, BODY_BYTES_MAX, "data")
    return body


def _check_types(event: Event) -> None:
    """Refuse values of types that were not declared: what is stored must decode for ever."""
    required = _required_personal(type(event))
    for name, usual, declared in _fields(type(event)):
        value = getattr(event, name)
        if value is None and name in required:
            raise InvalidEvent("is missing", field=f"data.{name}")
        if type(value) not in usual:
            try:
                msgspec.convert(value, declared, builtin_types=(UUID, datetime))
            except msgspec.ValidationError as error:
                raise located(error, f"data.{name}") from error


@cache
def _fields(event_type: type[Event]) -> tuple[tuple[str, frozenset[type], Any], ...]:
    """Return the fields of a type, each with the classes that its values usually have.

    Values of generic types are not among them and are checked each time.
    """
    hints = typing.get_type_hints(event_type)
    return tuple(
        (
            name,
            frozenset(one for one in alternatives(hints[name]) if isinstance(one, type)),
            hints[name],
        )
        for name in event_type.__struct_fields__
    )


@cache
def _required_personal(event_type: type[Event]) -> frozenset[str]:
    """Return the personal fields that are only ever None where they were erased."""
    fields = msgspec.structs.fields(event_type)
    personal = personal_fields(event_type)
    return frozenset(each.name for each in fields if each.required and each.name in personal)


def encode_metadata(metadata: Metadata | None) -> bytes | None:
    """Return the stored form of `metadata`, None where there is nothing to store."""
    if metadata is None or metadata == NO_METADATA:
        return None
    if metadata.ip_address is not None:
        check_ip_address(metadata.ip_address)
    return encode_stored_metadata(metadata)


def encode_stored_metadata(metadata: Metadata) -> bytes:
    """Return the stored form of metadata whose personal fields are encrypted already."""
    try:
        body = _encode(metadata)
        _decode_metadata(body)
    except msgspec.ValidationError as error:
        raise located(error, "metadata") from error
    except (UnicodeEncodeError, TypeError) as error:
        raise InvalidEvent(str(error), field="metadata") from error
    _check(body, METADATA_BYTES_MAX, "metadata")
    return body


def decode_metadata(stored: bytes | None) -> Metadata:
    """Return the metadata of a stored event."""
    return NO_METADATA if stored is None else _decode_metadata(stored)


def decode_event(type_name: str, data: msgspec.Raw | bytes) -> Event:
    """Return the event of type `type_name` whose fields are the JSON object `data`.

    Raises UnknownEventType, and InvalidEvent with the path of the field that does not fit.
    """
    event_type = event_types().get(type_name)
    if event_type is None:
        raise UnknownEventType(f"{type_name[:80]!r} is not a known event type", field="type")
    try:
        fields = msgspec.json.decode(data)
        if not isinstance(fields, dict):
            raise InvalidEvent("must be a JSON object", field="data")
        if "type" in fields:
            raise InvalidEvent("the type is given beside the data, not in it", field="data.type")
        return msgspec.json.decode(_tagged(type_name, data), type=event_type, dec_hook=_from_json)
    except msgspec.ValidationError as error:
        raise located(error, "data") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEvent(f"is not valid JSON: {error}", field="data") from error


def _tagged(type_name: str, data: msgspec.Raw | bytes) -> bytes:
    """Return the JSON object `data` with its type in front."""
    inner = bytes(data).strip()[1:]
    comma = b"" if inner.lstrip().startswith(b"}") else b","
    return b'{"type":"' + type_name.encode() + b'"' + comma + inner


def decode_bodies(
    bodies: Sequence[bytes], offsets: Sequence[int], versions: Sequence[int] | None = None
) -> list[Event]:
    """Decode many stored bodies, whose places are `offsets`, in one call.

    `versions` are the schema versions that they were written in, None means today's. Raises
    StoredEventInvalid with the offset of the first one that this program cannot read.
    """
    decoder = _stored_decoder(tuple(event_types().values()))
    events = _decode_at_once(bodies, decoder)
    if versions is not None and not are_todays(events, versions):
        bodies = _todays_bodies(bodies, versions, offsets)
        events = _decode_at_once(bodies, decoder)
    return events if len(events) == len(bodies) else _decode_singly(bodies, offsets, decoder)


def _decode_at_once(
    bodies: Sequence[bytes], decoder: msgspec.json.Decoder[list[Event]]
) -> list[Event]:
    """Return the events, none where any of the bodies is at fault."""
    try:
        return decoder.decode(b"[" + b",".join(bodies) + b"]")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _todays_bodies(
    bodies: Sequence[bytes], versions: Sequence[int], offsets: Sequence[int]
) -> Sequence[bytes]:
    """Return the bodies with those of other versions brought to today's."""
    known = event_types()
    todays = list(bodies)
    for index, name in enumerate(_types_of(bodies)):
        kind = known.get(name)
        if kind is not None and versions[index] != kind.schema_version:
            todays[index] = todays_body(bodies[index], kind, versions[index], offsets[index])
    return todays


def _types_of(bodies: Sequence[bytes]) -> list[str]:
    """Return the names of the types; nothing for a body that is none, which decoding will find."""
    try:
        names = types_of(b"[" + b",".join(bodies) + b"]")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        names = []
    return names if len(names) == len(bodies) else [_type_of(body) for body in bodies]


def _type_of(body: bytes) -> str:
    try:
        [name] = types_of(b"[" + body + b"]")
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""
    return name


def todays_body(body: bytes, kind: type[Event], version: int, offset: int) -> bytes:
    """Return the body of an event that was stored in `version` as it would be stored today.

    Raises StoredEventInvalid with the offset where this program cannot tell.
    """
    if version == kind.schema_version:
        return body
    try:
        fields = msgspec.json.decode(body)
        del fields["type"]
        fields = upcast(kind, version, fields, offset)
        own = {"type": kind.__name__}
        made = _encode(own | fields | own)
        return _encode(msgspec.json.decode(made, type=kind, dec_hook=_from_json))
    except (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError) as error:
        reason = f"brought from version {version} of {kind.__name__} to today's: {error}"
        raise StoredEventInvalid(offset, reason) from error


def _decode_singly(
    bodies: Sequence[bytes], offsets: Sequence[int], decoder: msgspec.json.Decoder[list[Event]]
) -> list[Event]:
    """Decode one by one, to find the body at fault."""
    events = []
    for offset, body in zip(offsets, bodies, strict=True):
        try:
            [event] = decoder.decode(b"[" + body + b"]")
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise StoredEventInvalid(offset, str(error)) from error
        events.append(event)
    return events


@lru_cache(maxsize=8)
def _stored_decoder(types: tuple[type[Event], ...]) -> msgspec.json.Decoder[list[Event]]:
    """Return the decoder for an array of events of these types."""
    union: Any = Union[types]  # noqa: UP007 - the members are known only at run time
    return msgspec.json.Decoder(list[union], dec_hook=_from_json)


def check_name(value: str, field: str) -> None:
    """Refuse a stream or tag that is empty, too long, or not plain printable text."""
    if not 0 < len(value) <= NAME_CHARS_MAX:
        raise InvalidEvent(f"must have 1 to {NAME_CHARS_MAX} characters", field=field)
    if not value.isprintable():
        raise InvalidEvent(f"{value!r} has a character that cannot be printed", field=field)


def check_journal_name(name: str) -> None:
    """Refuse a name that would be hard to type, or too long."""
    if not 0 < len(name) <= JOURNAL_NAME_CHARS_MAX or name != name.strip():
        reason = f"must have 1 to {JOURNAL_NAME_CHARS_MAX} characters, none of them space outside"
        raise InvalidEvent(reason, field="journal name")
    check_name(name, "journal name")


@lru_cache(maxsize=4096)
def check_ip_address(value: str) -> None:
    """Refuse what is neither an IPv4 nor an IPv6 address."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        # The error is not passed on: it repeats the value, which is somebody's.
        reason = "is not an IPv4 or IPv6 address (without port or mask)"
        raise InvalidEvent(reason, field="metadata.ip_address") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        reason = "has a scope id, which means nothing on another machine"
        raise InvalidEvent(reason, field="metadata.ip_address")


def _check(body: bytes, bytes_max: int, field: str) -> None:
    """Refuse what is too large, and NUL characters, which PostgreSQL's text cannot hold."""
    if len(body) > bytes_max:
        raise InvalidEvent(
            f"takes {len(body):,} bytes, at most {bytes_max:,} are allowed", field=field
        )
    if b"\\u0000" in body and _ESCAPED_NUL.search(body):
        raise InvalidEvent("holds a NUL character; take it out", field=field)


def located(error: msgspec.ValidationError, parent: str = "") -> InvalidEvent:
    """Turn msgspec's message, which may name a path and a field, into a field and a reason."""
    match = _PATH.match(str(error))
    reason, path = (match["reason"], match["path"]) if match else (str(error), "")
    if named := _NAMED.search(reason):
        path += f".{named['field']}"
    return InvalidEvent(reason, field=(parent + path).removeprefix(".") or None)
