"""Personal fields on their way into a journal, encrypted, and out of it, opened or erased.

read_model(N) = fold(redact(events[0:N], E)), E being all subjects that are erased by now: what was
encrypted under a destroyed data key is None when it is read, at whatever point in time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from copy import copy
from datetime import datetime
from functools import partial

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ledger.codec import decode_bodies, encode_event, encode_stored_metadata
from ledger.domain.users import name_digest
from ledger.errors import InvalidEvent, LedgerError, StoredEventInvalid
from ledger.event import Event, Metadata, NewEvent, RecordedEvent, personal_fields
from ledger.prepare import prepare
from ledger.security.data_keys import NAMES, DataKey, DataKeys
from ledger.security.fields import (
    PREFIX_BYTES,
    FieldUndecryptable,
    Place,
    decrypt,
    encrypt,
    key_id_of,
)
from ledger.stores import PreparedAppend, PreparedEvent, StoredEvent

NOBODY = "nobody"
"""The subject of events about nobody who is known."""

OWNERS_KEPT_MAX = 100_000
METADATA_FIELDS = personal_fields(Metadata)

FirstOf = Callable[[str], Awaitable[Sequence[StoredEvent]]]
"""Returns the first few events of a stream."""


class Plain(msgspec.Struct, frozen=True, gc=False):
    """An append as it was handed over, and prepared so far; whether it `is_personal`."""

    events: Sequence[NewEvent]
    prepared: PreparedAppend
    is_personal: bool


class Destroyed(msgspec.Struct, frozen=True):
    """A subject whose data key is destroyed, and since when."""

    subject: str
    destroyed_at: datetime


class Privacy:
    """Encrypts and opens the personal fields of one journal's events."""

    def __init__(
        self, keys: DataKeys, journal: str, first_of: FirstOf, name_key: bytes | None = None
    ) -> None:
        """Take the data keys, and what finds the first events of a stream."""
        self.keys = keys
        self._journal = journal
        self._first_of = first_of
        self._name_key = name_key
        self._owners: OrderedDict[str, str] = OrderedDict()
        self._derived: dict[bytes, bytes] = {}

    async def derived_key(self, purpose: bytes) -> bytes:
        """Return a key of 32 bytes for a purpose, which follows from that for digests of names."""
        if purpose not in self._derived:
            derivation = HKDF(SHA256(), 32, salt=None, info=purpose)
            self._derived[purpose] = derivation.derive(await self.name_key())
        return self._derived[purpose]

    async def name_key(self) -> bytes:
        """Return the key for digests of names: that of the settings, else one of the journal's."""
        key = (await self.keys.of_subjects([NAMES]))[NAMES]
        if isinstance(key, LedgerError):
            raise key
        found = key.secret if self._name_key is None else self._name_key
        await self.keys.check_name_key(found)
        return found

    async def protected(self, appends: Sequence[Plain]) -> list[PreparedAppend | LedgerError]:
        """Return appends of one batch as they are to be stored, or for each why it cannot be.

        Names get their digests, personal fields are encrypted; others are as they were.
        """
        if not any(each.is_personal for each in appends):
            return [each.prepared for each in appends]
        try:
            digest = partial(name_digest, key=await self.name_key())
            subjects = await self._subjects(appends)
            named = {one for each in subjects for one in each.values() if isinstance(one, str)}
            keys = await self.keys.of_subjects(named)
        except LedgerError as error:
            return [copy(error) if each.is_personal else each.prepared for each in appends]
        return [
            self._protected(each, digest, own, keys) if each.is_personal else each.prepared
            for each, own in zip(appends, subjects, strict=True)
        ]

    def _protected(
        self,
        append: Plain,
        digest: Callable[[str], str],
        subjects: Mapping[int, str | LedgerError],
        keys: Mapping[str, DataKey | LedgerError],
    ) -> PreparedAppend | LedgerError:
        try:
            events, prepared = append.events, append.prepared
            if any(map(_has_names, events)):
                events = [_with_digests(each, digest) for each in events]
                prepared = prepare(events, prepared.conditions)
            stored = list(prepared.events)
            for number, subject in subjects.items():
                key = subject if isinstance(subject, LedgerError) else keys[subject]
                if isinstance(key, LedgerError):
                    return copy(key)
                stored[number] = self._encrypted(events[number], stored[number], key)
            return msgspec.structs.replace(prepared, events=tuple(stored))
        except LedgerError as error:
            return error

    async def _subjects(self, appends: Sequence[Plain]) -> list[dict[int, str | LedgerError]]:
        """Return for each append whose data its events with personal fields hold.

        Who owns what an event is about stands in a stream's first event that has a subject: one
        that is stored, or else in the same batch. Where that cannot be read, the error is returned.
        """
        named = [
            {
                number: (new.event.subject(), new.event.owner_stream())
                for number, new in enumerate(each.events)
                if is_personal(new)
            }
            for each in appends
        ]
        streams = {
            stream
            for each in named
            for subject, stream in each.values()
            if subject is None and stream is not None
        }
        owners = await self._owners_of(streams)
        for each in appends if len(owners) < len(streams) else ():
            for new, prepared in zip(each.events, each.prepared.events, strict=True):
                if prepared.stream in streams and (own := new.event.subject()) is not None:
                    owners.setdefault(prepared.stream, own)
        return [
            {
                number: subject or owners.get(stream or "", NOBODY)
                for number, (subject, stream) in each.items()
            }
            for each in named
        ]

    async def _owners_of(self, streams: Collection[str]) -> dict[str, str | LedgerError]:
        """Return the subjects of streams, of those that have one, or why that cannot be told."""
        found: dict[str, str | LedgerError] = {
            each: self._owners[each] for each in streams if each in self._owners
        }
        unknown = [each for each in streams if each not in found]
        answers = await asyncio.gather(*map(self._owner, unknown))
        found |= {stream: owner for stream, owner in zip(unknown, answers, strict=True) if owner}
        while len(self._owners) > OWNERS_KEPT_MAX:
            self._owners.popitem(last=False)
        return found

    async def _owner(self, stream: str) -> str | LedgerError | None:
        try:
            for stored in await self._first_of(stream):
                [event] = decode_bodies([stored.body], [stored.offset], [stored.schema_version])
                if (subject := event.subject()) is not None:
                    self._owners[stream] = subject
                    return subject
        except LedgerError as error:
            return error
        return None

    def _encrypted(self, new: NewEvent, prepared: PreparedEvent, key: DataKey) -> PreparedEvent:
        place = Place(self._journal, prepared.stream, prepared.event_id)
        body, metadata = prepared.body, prepared.metadata
        if values := _encrypted(new.event, place, key):
            body = encode_event(msgspec.structs.replace(new.event, **values))
        if new.metadata is not None and (values := _encrypted(new.metadata, place, key)):
            metadata = encode_stored_metadata(msgspec.structs.replace(new.metadata, **values))
        return msgspec.structs.replace(prepared, body=body, metadata=metadata)

    async def open(self, events: Sequence[RecordedEvent]) -> None:
        """Put the values in place of what is stored in events that were just decoded.

        Erased ones become None and are named in `erased`. Raises StoredEventInvalid where a value
        is not what was encrypted for its event, or its data key is missing.
        """
        for each in events:
            if each.event.erases and (subject := each.event.subject()) is not None:
                self.keys.forget(subject)
        stored = list(_stored_values(events))
        if not stored:
            return
        keys = await self.keys.by_ids({value.key_id for value in stored})
        for value in stored:
            self._open(value, keys.get(value.key_id))

    def _open(self, value: _StoredValue, key: DataKey | None) -> None:
        recorded, field = value.recorded, value.field
        if key is None:
            reason = f"data key {value.key_id} of its {field} is missing in table subject_keys"
            raise StoredEventInvalid(recorded.offset, reason)
        opened = None
        if key.cipher is not None:
            place = Place(self._journal, recorded.stream, recorded.event_id)
            try:
                opened = decrypt(value.text, place, field, key.cipher)
            except FieldUndecryptable as error:
                raise StoredEventInvalid(recorded.offset, str(error)) from error
        msgspec.structs.force_setattr(value.holder, field, opened)
        if opened is None:
            msgspec.structs.force_setattr(recorded, "erased", (*recorded.erased, field))

    async def destroy(self, subject: str) -> bool:
        """Destroy a subject's data key for good; return whether it was there until now."""
        if subject == NAMES:
            raise InvalidEvent("is the key for names, and nobody's data", field="subject")
        return await self.keys.destroy(subject)

    async def is_destroyed(self, subject: str) -> bool:
        """Whether a subject's data key is destroyed."""
        return any(each.wrapped is None for each in await self.keys.table.of_subjects([subject]))

    async def erasures(self) -> int:
        """Return how many subjects are erased; the number only grows."""
        return await self.keys.table.erasures()

    async def destroyed(self) -> list[Destroyed]:
        """Return the subjects that are erased, the earliest first."""
        return [
            Destroyed(each.subject, each.destroyed_at)
            for each in await self.keys.table.erased()
            if each.destroyed_at is not None
        ]


def opened_body(recorded: RecordedEvent) -> bytes:
    """Return the stored body of an event with its personal fields as they were read.

    Without any that is the very same bytes; it is read again only in the stored schema version.
    """
    if PREFIX_BYTES not in recorded.body:
        return recorded.body
    fields = msgspec.json.decode(recorded.body)
    for name in personal_fields(recorded.event.kind):
        if name in fields:
            fields[name] = getattr(recorded.event, name)
    return msgspec.json.encode(fields)


class _StoredValue(msgspec.Struct, frozen=True, gc=False):
    """A personal field as it is stored, and what it is a field of."""

    recorded: RecordedEvent
    holder: Event | Metadata
    field: str
    text: str
    key_id: str


class _PersonalFields(dict[type[Event], tuple[str, ...]]):
    """The personal fields of event classes, those of lenses too; a dict, since each event asks."""

    def __missing__(self, event_class: type[Event]) -> tuple[str, ...]:
        found = self[event_class] = personal_fields(event_class.kind)
        return found


_fields_of = _PersonalFields()


def _stored_values(events: Iterable[RecordedEvent]) -> Iterator[_StoredValue]:
    for each in events:
        event, metadata = each.event, each.metadata
        for field in _fields_of[type(event)]:
            yield from _stored_value(each, event, field)
        if metadata.ip_address is not None:
            for field in METADATA_FIELDS:
                yield from _stored_value(each, metadata, field)


def _stored_value(
    recorded: RecordedEvent, holder: Event | Metadata, field: str
) -> Iterator[_StoredValue]:
    text = getattr(holder, field)
    if text is not None and (key_id := key_id_of(text)) is not None:
        yield _StoredValue(recorded, holder, field, text, key_id)


def _encrypted(holder: Event | Metadata, place: Place, key: DataKey) -> dict[str, str]:
    """Return what is stored of the personal fields that have a value."""
    return {
        field: encrypt(value, place, field, key.key_id, key.cipher)
        for field in personal_fields(type(holder))
        if (value := getattr(holder, field)) is not None
    }


def is_personal(new: NewEvent) -> bool:
    """Whether an event has anything to encrypt."""
    event, metadata = new.event, new.metadata
    if metadata is not None and metadata.ip_address is not None:
        return True
    return any(getattr(event, field) is not None for field in personal_fields(type(event)))


def _has_names(new: NewEvent) -> bool:
    return type(new.event).with_digests is not Event.with_digests


def _with_digests(new: NewEvent, digest: Callable[[str], str]) -> NewEvent:
    if not _has_names(new):
        return new
    return msgspec.structs.replace(new, event=new.event.with_digests(digest))
