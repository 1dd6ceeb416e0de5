"""Every event survives being stored; what is stored is one line of JSON."""

from __future__ import annotations

import json
import types
import typing
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ledger.domain
from ledger.amounts import PlainDecimal
from ledger.codec import (
    BODY_BYTES_MAX,
    decode_bodies,
    decode_event,
    decode_metadata,
    encode_event,
    encode_metadata,
)
from ledger.domain.orders import OrderFailed, OrderPlaced
from ledger.errors import InvalidEvent, StoredEventInvalid
from ledger.event import Amount, Event, Metadata, VenueAmount, event_types, personal_fields
from tests.ledger.support import START, Noted, an_id
from tests.ledger.test_amounts import plain_text

DOMAIN = sorted(
    (
        found
        for found in event_types().values()
        if found.__module__.startswith(ledger.domain.__name__)
    ),
    key=lambda found: found.__name__,
)

EAST = timezone(timedelta(hours=5, minutes=45))

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
times = st.datetimes(
    datetime(1, 1, 2), datetime(9999, 12, 30),  # noqa: DTZ001 - zones are added
    timezones=st.sampled_from([UTC, EAST]),
)  # fmt: skip


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Return values of a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*map(values, arguments))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    if issubclass(hint, PlainDecimal):
        return plain_text(hint).map(hint)
    plain: dict[type, st.SearchStrategy[Any]] = {
        str: texts,
        int: st.integers(-(2**53), 2**53),
        bool: st.booleans(),
        UUID: st.uuids(),
        datetime: times,
        types.NoneType: st.none(),
    }
    return plain[hint]


def events_of(event_type: type[Event]) -> st.SearchStrategy[Event]:
    """Return events of one type with anything in their fields."""
    hints = typing.get_type_hints(event_type)
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for field in msgspec.structs.fields(event_type):
        kind = required if field.required else optional
        is_given = field.required and field.name in personal_fields(event_type)
        kind[field.name] = texts if is_given else values(hints[field.name])
    return st.fixed_dictionaries(required, optional=optional).map(lambda given: event_type(**given))


REQUIRED = [
    (each, field.name)
    for each in DOMAIN
    for field in msgspec.structs.fields(each)
    if field.required and field.name in personal_fields(each)
]


@pytest.mark.parametrize(("event_type", "name"), REQUIRED)
@settings(max_examples=3)
@given(data=st.data())
def test_a_required_personal_field_is_only_missing_once_erased(
    event_type: type[Event], name: str, data: st.DataObject
) -> None:
    """None can be read there, but not stored."""
    event = msgspec.structs.replace(data.draw(events_of(event_type)), **{name: None})
    with pytest.raises(InvalidEvent, match=f"data.{name}: is missing"):
        encode_event(event)


def stored_exactly(event: Event) -> tuple[object, ...]:
    """Return the fields in a form that tells 1.5 from 1.50."""
    return tuple(str(getattr(event, name)) for name in event.__struct_fields__)


@pytest.mark.parametrize("event_type", DOMAIN)
@settings(max_examples=30)
@given(data=st.data())
def test_every_event_survives(event_type: type[Event], data: st.DataObject) -> None:
    """Encoding and decoding gives the same event, to the last digit; encoding again, same bytes."""
    event = data.draw(events_of(event_type))
    body = encode_event(event)
    [decoded] = decode_bodies([body], [0])
    assert decoded == event
    assert type(decoded) is event_type
    assert stored_exactly(decoded) == stored_exactly(event)
    assert encode_event(decoded) == body


@pytest.mark.parametrize("event_type", DOMAIN)
@settings(max_examples=30)
@given(data=st.data())
def test_the_body_is_one_line_of_json(event_type: type[Event], data: st.DataObject) -> None:
    """Valid UTF-8, no newline, one object that begins with its type and holds no floats."""
    event = data.draw(events_of(event_type))
    body = encode_event(event)
    assert b"\n" not in body
    assert b"\r" not in body
    parsed = json.loads(body.decode(), parse_float=no_number, parse_constant=no_number)
    assert next(iter(parsed.items())) == ("type", event_type.__name__)
    fields = {name: value for name, value in parsed.items() if name != "type"}
    assert decode_event(event_type.__name__, json.dumps(fields).encode()) == event


def no_number(text: str) -> None:
    """Refuse what JSON would hold as a float."""
    raise AssertionError(f"{text} stands as a number")


def test_the_stored_form_is_compact_and_omits_defaults() -> None:
    """The bytes of one event, for ever."""
    event = OrderFailed(order_id=UUID(int=1), reason="no")
    assert encode_event(event) == (
        b'{"type":"OrderFailed","order_id":"00000000-0000-0000-0000-000000000001","reason":"no"}'
    )


def test_equal_times_are_equal_bytes() -> None:
    """A time is stored in UTC with its microseconds, whatever zone it was given in."""
    orders = [
        ledger.domain.users.AccountLocked(user_id=an_id(1), locked_until=moment)
        for moment in (START, START.astimezone(EAST))
    ]
    assert encode_event(orders[0]) == encode_event(orders[1])


@pytest.mark.parametrize("moment", [datetime(2026, 1, 1), datetime.min.replace(tzinfo=EAST)])  # noqa: DTZ001
def test_times_that_cannot_be_stored(moment: datetime) -> None:
    """A time without a zone, or outside the calendar in UTC, cannot get into any event."""
    with pytest.raises(ValueError, match=r"has no time zone|outside 0001-01-02"):
        ledger.domain.users.AccountLocked(user_id=an_id(1), locked_until=moment)
    with pytest.raises(ValueError, match=r"has no time zone|outside 0001-01-02"):
        ledger.domain.api_keys.ApiKeyIssued(
            key_id=an_id(1), user_id=an_id(2), name="n", expires_at=moment
        )


def test_amounts_given_as_numbers_are_stored_as_text() -> None:
    """Ints and decimals become plain text on the way in."""
    order = OrderPlaced(
        order_id=an_id(1), user_id=an_id(2), token="T",
        action=ledger.domain.orders.Action.BUY, order_type=ledger.domain.orders.OrderType.LIMIT,
        quantity=3, price=Decimal("1E-8"),  # type: ignore[arg-type]
    )  # fmt: skip
    assert type(order.price) is Amount
    assert b'"quantity":"3","price":"0.00000001"' in encode_event(order)


@given(st.lists(st.builds(Noted, text=texts), max_size=5), st.data())
def test_a_bad_body_is_named_by_its_offset(events: list[Noted], data: st.DataObject) -> None:
    """Of many bodies decoded at once, the first bad one is found."""
    bodies = [encode_event(event) for event in events]
    bad = data.draw(
        st.sampled_from(
            [b"", b"{", b"5", b"{}", b'{"type":"Nothing"}', b'{"type":"Noted","text":5}',
             b'{"type":"Noted","more":1}', b'{"type":"Noted"},{"type":"Noted"}', b"\xff",
             b'{"type":"Noted","text":"\xff"}', b'{"type":"Noted"}]', b"null", b"[" * 2000]
        )
    )  # fmt: skip
    place = data.draw(st.integers(0, len(bodies)))
    bodies.insert(place, bad)
    offsets = range(100, 100 + len(bodies))
    with pytest.raises(StoredEventInvalid, match=rf"^event at offset {100 + place} ") as caught:
        decode_bodies(bodies, offsets)
    assert caught.value.offset == 100 + place


def test_no_bodies() -> None:
    """Nothing decodes to nothing."""
    assert decode_bodies([], []) == []


@pytest.mark.parametrize("text", ["\0", "a\0b", "\\\0", "\\\\\0"])
def test_nul_is_refused(text: str) -> None:
    """PostgreSQL's text cannot hold it, so no read table could."""
    with pytest.raises(InvalidEvent, match="NUL"):
        encode_event(Noted(text=text))


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "u0000", "\x01\x7f\u2028\\"])
def test_what_only_looks_like_nul_is_kept(text: str) -> None:
    """A backslash and the letters u0000 are ordinary text."""
    assert decode_bodies([encode_event(Noted(text=text))], [0]) == [Noted(text=text)]


def test_the_size_limit_is_exact() -> None:
    """A body of 32,768 bytes is stored, one byte more is not; bytes count, not characters."""
    room = BODY_BYTES_MAX - len(encode_event(Noted(text="x"))) + 1
    assert len(encode_event(Noted(text="x" * room))) == BODY_BYTES_MAX
    for text in ("x" * (room + 1), "é" * (room // 2 + 1)):
        with pytest.raises(InvalidEvent, match="at most 32,768"):
            encode_event(Noted(text=text))


metadata = st.builds(
    Metadata,
    correlation_id=st.none() | st.uuids(),
    causation_id=st.none() | st.uuids(),
    request_id=st.none() | texts,
    actor=st.none() | texts,
    ip_address=st.none() | st.ip_addresses().map(str),
)


@given(metadata)
def test_metadata_survive(given_: Metadata) -> None:
    """Metadata come back as they were; nothing is stored where there are none."""
    stored = encode_metadata(given_)
    assert decode_metadata(stored) == given_
    assert (stored is None) == (given_ == Metadata())


def test_both_kinds_of_amount_are_in_use() -> None:
    """The round trips above cover both kinds of amount."""
    used = {
        option
        for event_type in DOMAIN
        for hint in typing.get_type_hints(event_type).values()
        for option in (typing.get_args(hint) or (hint,))
    }
    assert {Amount, VenueAmount} <= used
