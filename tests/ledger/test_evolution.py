"""Events that were stored in older schema versions are read as today's, and nothing gets lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import event as events_module
from ledger.codec import decode_bodies, encode_event
from ledger.decider import Decider
from ledger.deciding import Deciding
from ledger.domain.orders import Action
from ledger.domain.users import UserRegistered
from ledger.errors import InvalidEvent, StoredEventInvalid
from ledger.event import Amount, Event, Instant, NewEvent, RecordedEvent, Upcaster
from ledger.journal import Journal
from ledger.lens import Lens
from ledger.prepare import prepare
from ledger.stores import Appended, PackedEvents, PreparedAppend, PreparedEvent
from projections.groups import TRADING
from projections.security_audit_logs import SecurityAuditLog
from tests import samples
from tests.ledger.support import an_id, opened, read_all
from tests.samples import FOLDER, RECORD, IncompatibleChange, domain_types, problems, write

UPCASTERS: dict[tuple[type[Event], int], Upcaster] = events_module._upcasters
AT = datetime(2026, 3, 2, 12, 0, 0, 123456, UTC)


class ParcelMoved(Event):
    """A type in its third version, after a signed `amount` and a signed `quantity`."""

    schema_version: ClassVar[int] = 3

    parcel_id: UUID
    quantity: Amount
    action: Action
    note: str | None = None
    moved_at: Instant | None = None


@ParcelMoved.upcaster(1)
def _amount_is_a_quantity(fields: dict[str, Any]) -> dict[str, Any]:
    fields["quantity"] = fields.pop("amount")
    return fields


@ParcelMoved.upcaster(2)
def _the_sign_is_an_action(fields: dict[str, Any]) -> dict[str, Any]:
    quantity = fields["quantity"]
    action = "sell" if quantity.startswith("-") else "buy"
    return {**fields, "quantity": quantity.removeprefix("-"), "action": action}


class ParcelLost(Event):
    """A type in its second version whose author forgot the upcaster."""

    schema_version: ClassVar[int] = 2

    parcel_id: UUID


class ParcelForgotten(Event):
    """A type that is no longer appended."""

    retired: ClassVar[bool] = True

    parcel_id: UUID


PARCEL = an_id("parcel")
STORED = {
    1: b'{"type":"ParcelMoved","parcel_id":"%s","amount":"-2.5"}',
    2: b'{"type":"ParcelMoved","parcel_id":"%s","quantity":"-2.5","note":"n"}',
    3: b'{"type":"ParcelMoved","parcel_id":"%s","quantity":"2.5","action":"sell","note":"n"}',
}


def body_of(version: int) -> bytes:
    """Return what a program of that time has stored."""
    return STORED[version] % str(PARCEL).encode()


def moved(version: int) -> ParcelMoved:
    """Return what that is today."""
    note = None if version == 1 else "n"
    return ParcelMoved(parcel_id=PARCEL, quantity=Amount("2.5"), action=Action.SELL, note=note)


async def store(
    journal: Journal, bodies: Sequence[tuple[str, int, bytes]], stream: str = "parcel"
) -> None:
    """Store (type, version, body), as programs of older releases did."""
    stored = tuple(
        PreparedEvent(an_id((stream, number)), stream, name, version, AT, None, body)
        for number, (name, version, body) in enumerate(bodies)
    )
    [outcome] = await journal.store.append(journal.journal_id, [PreparedAppend(stored)])
    assert isinstance(outcome, Appended)


async def store_parcels(journal: Journal, *versions: int) -> None:
    """Store a movement in each of these versions."""
    await store(journal, [("ParcelMoved", version, body_of(version)) for version in versions])


async def test_all_ways_to_read_give_todays_events(database_url: str) -> None:
    """Through two upcasters and one; the journal, a stream and a lens say the same."""
    versions = (3, 1, 2, 3, 1)
    async with opened(database_url) as journal:
        await store_parcels(journal, *versions)
        every = await read_all(journal)
        assert [each.event for each in every] == [moved(version) for version in versions]
        assert await journal.read_stream("parcel") == every
        assert await journal.read_but((), 0, 5) == every
        seen = await journal.read_lens(Lens([ParcelMoved], envelope=True), 0, 5)
    assert [fields_of(each) for each in seen] == [fields_of(each) for each in every]


def fields_of(recorded: RecordedEvent) -> dict[str, Any]:
    """Return an event's fields, and what it was stored as."""
    values = msgspec.structs.asdict(recorded.event)
    stored = {"stored": bytes(recorded.body), "written in": recorded.schema_version}
    return {n: str(v) if isinstance(v, UUID) else v for n, v in values.items()} | stored


async def test_what_is_stored_stays_as_it_is(database_url: str) -> None:
    """Reading changes no byte and no version."""
    async with opened(database_url) as journal:
        await store_parcels(journal, 1, 2)
        before = await journal.store.read(journal.journal_id, 0, 2)
        every = await read_all(journal)
        assert await journal.store.read(journal.journal_id, 0, 2) == before
    assert [(each.schema_version, each.body) for each in every] == [
        (version, body_of(version)) for version in (1, 2)
    ]


async def test_deciders_fold_todays_events(database_url: str) -> None:
    """A state that old and new events have led to."""

    def evolve(state: tuple[Any, ...], event: Event) -> tuple[Any, ...]:
        assert isinstance(event, ParcelMoved)
        return (*state, (event.action, event.quantity))

    def decide(_command: None, _state: tuple[Any, ...]) -> Sequence[Event]:
        return ()

    async with opened(database_url) as journal:
        await store_parcels(journal, 1, 2, 3)
        decider: Decider[None, tuple[Any, ...]] = Decider((), decide, evolve)
        loaded = await Deciding(journal).load(decider, "parcel")
    assert loaded.state == ((Action.SELL, Amount("2.5")),) * 3


@given(versions=st.lists(st.sampled_from(sorted(STORED)), max_size=8))
@settings(deadline=None)
def test_any_mixture_is_read(versions: list[int]) -> None:
    """Neighbours of other versions make no difference."""
    bodies, offsets = [body_of(version) for version in versions], range(len(versions))
    expected = [moved(version) for version in versions]
    assert decode_bodies(bodies, offsets, versions) == expected
    seen = Lens([ParcelMoved]).decode(packed(bodies, versions))
    assert list(map(encode_event, decode_bodies(bodies, offsets, versions))) == [
        encode_event(each) for each in expected
    ]
    assert [each.event.quantity for each in seen] == [  # type: ignore[attr-defined]
        each.quantity for each in expected
    ]


def packed(bodies: Sequence[bytes], versions: Sequence[int]) -> PackedEvents:
    """Return bodies as a store hands them to a lens."""
    count = len(bodies)
    joined = b"[" + b",".join(bodies) + b"]"
    times = [AT] * count
    return PackedEvents(
        range(count), joined, ["id"] * count, times, times, count=count, schema_versions=versions
    )


def upcast_with(
    monkeypatch: pytest.MonkeyPatch,
    upcaster: Upcaster,
    kind: type[Event] = ParcelMoved,
    from_version: int = 2,
) -> None:
    """Let another upcaster stand in for one, or be the first."""
    monkeypatch.setitem(UPCASTERS, (kind, from_version), upcaster)


def test_what_an_upcaster_makes_gets_the_one_stored_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Amounts and times that it writes in another way are read alike by every reader."""
    upcast_with(
        monkeypatch,
        lambda fields: {**fields, "action": "sell", "moved_at": "2026-01-01T01:00:00+01:00"},
    )
    [event] = decode_bodies([body_of(2)], [0], [2])
    [seen] = Lens([ParcelMoved]).decode(packed([body_of(2)], [2]))
    assert isinstance(event, ParcelMoved)
    assert str(event.moved_at) == "2026-01-01 00:00:00+00:00"
    assert str(seen.event.moved_at) == str(event.moved_at)  # type: ignore[attr-defined]


Bad = tuple[str, int, bytes]
LOST = b'{"type":"ParcelLost","parcel_id":"%s"}' % str(PARCEL).encode()
BAD: dict[str, tuple[Bad, str]] = {
    "newer": (
        ("ParcelMoved", 4, body_of(3)),
        "version 4 of ParcelMoved was written by a newer rel",
    ),
    "no upcaster": (("ParcelLost", 1, LOST), "ParcelLost from version 1 to 2 has no upcaster"),
    "version 0": (("ParcelMoved", 0, body_of(3)), "from version 0 to 1 has no upcaster"),
    "missing field": (("ParcelMoved", 1, body_of(2)), r"version 1 to 2 failed: KeyError\('amount'"),
    "wrong kind": (
        ("ParcelMoved", 2, body_of(2).replace(b'"-2.5"', b"5")),
        "version 2 to 3 failed: AttributeError",
    ),
    "does not fit": (
        ("ParcelMoved", 2, body_of(2).replace(b"-2.5", b"x")),
        "brought from version 2 of ParcelMoved to today's: .*quantity",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_cannot_be_read_is_named(database_url: str, case: str) -> None:
    """Every reader names the offset and says why, also where the body would decode by chance."""
    (name, version, body), message = BAD[case]
    wanted = rf"(?s)^event at offset 1 cannot be decoded: .*{message}"
    async with opened(database_url) as journal:
        await store(journal, [("ParcelMoved", 3, body_of(3)), (name, version, body)])
        with pytest.raises(StoredEventInvalid, match=wanted):
            await read_all(journal)
        with pytest.raises(StoredEventInvalid, match=wanted):
            await journal.read_lens(Lens([ParcelMoved, ParcelLost]), 0, 2)


def test_an_upcaster_cannot_change_the_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conditions and lenses go by the stored type; what an upcaster says of it is passed over."""
    upcast_with(monkeypatch, lambda fields: {**fields, "action": "sell", "type": "ParcelLost"})
    [event] = decode_bodies([body_of(2)], [0], [2])
    assert isinstance(event, ParcelMoved)


def test_an_upcaster_must_return_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that forgets to is told so."""
    upcast_with(monkeypatch, lambda _: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(StoredEventInvalid, match="returned no fields but None"):
        decode_bodies([body_of(2)], [0], [2])


@pytest.mark.parametrize("version", [0, 3, 4])
def test_upcasters_are_for_older_versions(version: int) -> None:
    """There is nothing to bring from today's version to the next."""
    with pytest.raises(TypeError, match=rf"nothing to upcast from {version}"):
        ParcelMoved.upcaster(version)


def test_a_step_has_one_upcaster() -> None:
    """A second one would be forgotten."""
    with pytest.raises(TypeError, match="two upcasters from version 1"):
        ParcelMoved.upcaster(1)(dict)


def test_versions_fit_the_column() -> None:
    """Small positive numbers."""
    for number in (0, 32_768):
        with pytest.raises(TypeError, match=f"schema version {number}"):
            type("ParcelNumbered", (Event,), {"schema_version": number, "__module__": __name__})


async def test_a_retired_type_is_read_but_not_appended(database_url: str) -> None:
    """Nobody stores it any more."""
    gone = ParcelForgotten(parcel_id=PARCEL)
    with pytest.raises(InvalidEvent, match="ParcelForgotten is retired"):
        prepare([NewEvent(gone, "parcel")], ())
    async with opened(database_url) as journal:
        await store(journal, [("ParcelForgotten", 1, encode_event(gone))])
        assert [each.event for each in await read_all(journal)] == [gone]


async def test_audit_details_are_todays_without_secrets(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret that once had another name is none of them."""

    def renamed(fields: dict[str, Any]) -> dict[str, Any]:
        fields["password_hash"] = fields.pop("secret")
        return fields

    monkeypatch.setattr(UserRegistered, "schema_version", 2)
    upcast_with(monkeypatch, renamed, UserRegistered, 1)
    body = b'{"type":"UserRegistered","user_id":"%s","username":"ann","secret":"canary"}'
    stream = f"user-{PARCEL}"
    async with opened(database_url) as journal:
        stored = [("UserRegistered", 1, body % str(PARCEL).encode())]
        await store(journal, stored, stream)
        lens = Lens(TRADING.event_types, envelope=True)
        for events in (await read_all(journal), await journal.read_lens(lens, 0, 1)):
            state = TRADING.state(journal.journal_id, journal.name)
            TRADING.fold(state, events)
            [row] = state.rows(SecurityAuditLog)
            assert row.details == {"user_id": str(PARCEL), "username": "ann"}


def test_the_samples_of_the_domain_are_as_they_should_be() -> None:
    """No event type was changed in a way that stored events do not survive."""
    assert problems(domain_types(), FOLDER) == []


def test_every_field_is_in_a_sample() -> None:
    """Also the optional ones, and in a sample of their own the required ones alone."""
    for name, known in domain_types().items():
        bodies = samples.file_of(FOLDER, name, known.schema_version).read_bytes().splitlines()
        fields = [set(json.loads(body)) - {"type"} for body in bodies]
        required = {each.name for each in msgspec.structs.fields(known) if each.required}
        assert set[str]().union(*fields) == set(known.__struct_fields__)
        assert required in fields


PARCELS: dict[str, type[Event]] = {"ParcelMoved": ParcelMoved}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the samples of a type in its third version."""
    for version in (1, 2):
        samples.file_of(tmp_path, "ParcelMoved", version).write_bytes(body_of(version) + b"\n")
    assert write(PARCELS, tmp_path) == ["ParcelMoved.v3.json"]
    assert problems(PARCELS, tmp_path) == []
    return tmp_path


def change_record(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let the record say that the fields were others when they were recorded."""
    file = folder / RECORD
    record = json.loads(file.read_text())
    change(record["ParcelMoved"]["3"])
    file.write_text(json.dumps(record))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "taken away": (
        lambda fields: fields.update(weight={"type": "Amount"}),
        "field 'weight' was taken away",
    ),
    "other type": (
        lambda fields: fields["quantity"].update(type="VenueAmount"),
        "field 'quantity' was VenueAmount and is Amount",
    ),
    "other default": (
        lambda fields: fields["note"].update(default="n"),
        "field 'note' has another default",
    ),
    "required now": (
        lambda fields: fields["quantity"].update(default=None),
        "field 'quantity' has another default",
    ),
    "lost value": (
        lambda fields: fields["action"]["values"].append("short"),
        "field 'action' may no longer be 'short'",
    ),
    "no longer encrypted": (
        lambda fields: fields["note"].update(personal=True),
        "field 'note' is no longer personal: what is stored of it is encrypted",
    ),
    "new and required": (
        lambda fields: fields.pop("action"),
        "field 'action' is new and has no default",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_needs_a_new_version(folder: Path, case: str) -> None:
    """The check names the field, and writing samples is refused and changes nothing."""
    change, message = CHANGES[case]
    change_record(folder, change)
    [problem] = problems(PARCELS, folder)
    assert problem == f"ParcelMoved: {message}, without a new schema_version"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(IncompatibleChange, match=message):
        write(PARCELS, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("field", ["note", "action"])
def test_what_is_compatible_is_only_to_be_recorded(folder: Path, field: str) -> None:
    """A new optional field, or a new value of an enum: one more sample, the old ones stay."""
    file = samples.file_of(folder, "ParcelMoved", 3)
    without, *_ = before = file.read_bytes().splitlines()
    file.write_bytes(without + b"\n")

    def earlier(fields: dict[str, Any]) -> None:
        if field == "note":
            del fields["note"]
        else:
            fields["action"]["values"].pop()

    change_record(folder, earlier)
    [problem] = problems(PARCELS, folder)
    assert problem.startswith(f"ParcelMoved: field {field!r} is not recorded as it is now; run ")
    assert write(PARCELS, folder) == [file.name]
    assert file.read_bytes().splitlines() == before
    assert problems(PARCELS, folder) == []
    assert write(PARCELS, folder) == []


def test_a_field_that_may_be_none_now_is_only_to_be_recorded(folder: Path) -> None:
    """Stored events have a value there; the other way round would need a new version."""
    change_record(folder, lambda fields: fields["note"].update(type="str"))
    [problem] = problems(PARCELS, folder)
    assert problem.startswith("ParcelMoved: field 'note' is not recorded as it is now; run ")
    write(PARCELS, folder)
    assert problems(PARCELS, folder) == []


def test_a_new_field_whose_default_says_something_needs_a_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else events of before would say it too."""
    shape = samples.shape_of(ParcelMoved) | {"urgent": {"type": "bool", "default": True}}
    monkeypatch.setattr(samples, "shape_of", lambda _: shape)
    [problem] = problems(PARCELS, folder)
    assert "field 'urgent' is new and its default says something" in problem


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no sample": (
        lambda folder: (folder / "ParcelMoved.v3.json").unlink(),
        "there is no sample of version 3; run ",
    ),
    "no old sample": (
        lambda folder: (folder / "ParcelMoved.v1.json").unlink(),
        "there is no sample of version 1; run ",
    ),
    "does not decode": (
        lambda folder: (folder / "ParcelMoved.v1.json").write_bytes(body_of(1) + b"\n{}\n"),
        "ParcelMoved.v1.json: line 2 no longer decodes",
    ),
    "another type": (
        lambda folder: (folder / "ParcelMoved.v3.json").write_bytes(
            encode_event(ParcelForgotten(parcel_id=PARCEL))
        ),
        "line 1 no longer decodes",
    ),
    "empty": (
        lambda folder: (folder / "ParcelMoved.v3.json").write_bytes(b""),
        "holds something else than ParcelMoved",
    ),
    "other bytes": (
        lambda folder: (folder / "ParcelMoved.v3.json").write_bytes(
            body_of(3).replace(b'"note":"n"', b'"note":null')
        ),
        "encoding again gives other bytes",
    ),
    "no record": (lambda folder: (folder / RECORD).unlink(), "its fields are not recorded; run "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_samples_must_be_there_and_be_read(folder: Path, case: str) -> None:
    """Those of older versions too."""
    damage, message = BROKEN[case]
    damage(folder)
    [problem] = problems(PARCELS, folder)
    assert message in problem


def test_an_upcaster_must_be_there(tmp_path: Path) -> None:
    """For every older version."""
    samples.file_of(tmp_path, "ParcelLost", 1).write_bytes(LOST + b"\n")
    types: dict[str, type[Event]] = {"ParcelLost": ParcelLost}
    write(types, tmp_path)
    assert "ParcelLost: version 1 has no upcaster; see docs/evolve-events.md" in problems(
        types, tmp_path
    )


def test_a_type_stays_for_ever(folder: Path) -> None:
    """One that is no longer wanted is retired, and its version does not go back."""
    [problem] = problems({}, folder)
    assert problem.startswith("ParcelMoved: stored events of it cannot be read; keep the type")
    record = {"ParcelMoved": {"3": samples.shape_of(ParcelMoved), "4": {}}}
    (folder / RECORD).write_text(json.dumps(record))
    [problem] = problems(PARCELS, folder)
    assert "version 4 is recorded, but the type is at 3" in problem
