"""A lens sees what is stored, only faster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.codec import decode_bodies, encode_event
from ledger.domain.marks import PriceMarked
from ledger.domain.orders import Action, OrderAccepted, OrderFilled, position_tag
from ledger.domain.users import UserRegistered
from ledger.errors import StoredEventInvalid, StoreUnavailable
from ledger.event import Event, Metadata, NewEvent, RecordedEvent, VenueAmount, event_types
from ledger.journal import open_journal
from ledger.lens import Lens, lens_class
from ledger.settings import Settings
from ledger.stores import PackedEvents
from tests.ledger.support import append_unasked, opened
from tests.projections.random_events import random_events

AT = datetime(2026, 3, 2, 12, 0, 0, 123456, UTC)


def seen(events: list[Event]) -> list[Event]:
    """Return what a lens for all types makes of the bodies of some events."""
    bodies = b"[" + b",".join(map(encode_event, events)) + b"]"
    times, ids = [AT] * len(events), ["id"] * len(events)
    lens = Lens(event_types().values())
    packed = PackedEvents(range(len(events)), bodies, ids, times, times)
    return [each.event for each in lens.decode(packed)]


def fields(event: Event) -> dict[str, Any]:
    """Return an event's fields, with ids as text: an amount equals a Decimal of its value."""
    values = msgspec.structs.asdict(event)
    return {n: str(v) if isinstance(v, UUID) else v for n, v in values.items()}


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_a_lens_sees_the_same_fields(seed: int) -> None:
    """Type and fields are those of the event itself; only ids are text."""
    events = random_events(Random(seed), 50)
    for event, through in zip(events, seen(events), strict=True):
        assert isinstance(through, type(event))
        assert through.kind is event.kind is type(event)
        assert fields(through) == fields(event)


def test_a_lens_adds_no_event_type() -> None:
    """The classes of lenses are none that could be stored or read otherwise."""
    before = event_types()
    for known in before.values():
        assert lens_class(known).__name__ == known.__name__
    assert event_types() == before
    [event] = decode_bodies([b'{"type":"PriceMarked","token":"A","price":"1.50"}'], [0])
    assert type(event) is PriceMarked


async def stored(settings: Settings, lens: Lens) -> tuple[list[RecordedEvent], list[RecordedEvent]]:
    """Return all events of the journal, and what the lens sees of it in two pieces."""
    async with open_journal(settings) as journal:
        size = await journal.size()
        every = [each async for each in journal.read()]
        first = await journal.read_lens(lens, 0, size // 2)
        return every, first + await journal.read_lens(lens, size // 2, size)


async def test_what_is_read_from_a_store(database_url: str) -> None:
    """Offset, id, times, stream, metadata and body are those of the ordinary read."""
    early = AT - timedelta(days=700_000)
    async with opened(database_url) as journal:
        for number, event in enumerate(random_events(Random(7), 60)):
            occurred_at = (None, AT, early, AT + timedelta(days=365_000))[number % 4]
            metadata = Metadata(ip_address="192.0.2.1", actor="ä") if number % 3 else None
            stream = "" if event.stream() else "any"
            new = NewEvent(event, stream, occurred_at=occurred_at, metadata=metadata)
            await append_unasked(journal, new)
    lens = Lens(event_types().values(), envelope=True)
    every, through = await stored(Settings(database_url=database_url), lens)
    for recorded, other in zip(every, through, strict=True):
        for name in ("offset", "stream", "recorded_at", "occurred_at", "metadata", "type"):
            assert getattr(other, name) == getattr(recorded, name)
        assert other.event_id == str(recorded.event_id)
        assert bytes(other.body) == recorded.body
        assert fields(other.event) == fields(recorded.event)


async def test_what_is_not_wanted_is_not_read(database_url: str) -> None:
    """Events of other types are left out, and so is the envelope where nobody asks for it."""
    async with opened(database_url) as journal:
        for event in random_events(Random(8), 60):
            await journal.append(NewEvent(event, "" if event.stream() else "any"))
    settings = Settings(database_url=database_url)
    every, through = await stored(settings, Lens([OrderAccepted]))
    wanted = [each for each in every if isinstance(each.event, OrderAccepted)]
    assert [each.offset for each in through] == [each.offset for each in wanted] != []
    assert {(each.stream, bytes(each.body), each.metadata) for each in through} == {
        ("", b"", Metadata())
    }


async def test_what_is_read_of_a_stream_or_a_tag(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All streams and tags are what the ordinary read makes of them, in chunks of any size."""
    everything = event_types().values()
    async with opened(database_url) as journal:
        for event in random_events(Random(11), 120):
            metadata = Metadata(ip_address="192.0.2.1", actor="ä")
            await journal.append(
                NewEvent(event, "" if event.stream() else "any", metadata=metadata)
            )
        every = [each async for each in journal.read()]
        tags = {tag for each in every for tag in (*each.event.tags(), *each.event.claims())}
        for chunk_size, envelope in ((2000, True), (7, False), (1, True)):
            monkeypatch.setattr("ledger.journal.PACKED_CHUNK_SIZE", chunk_size)
            lens = Lens(everything, envelope=envelope)
            for stream in {each.stream for each in every}:
                wanted = await journal.read_stream(stream, stop=100)
                through = await journal.read_stream_lens(lens, stream, stop=100)
                assert_same(through, wanted, envelope=envelope)
            for tag in tags:
                wanted = await journal.read_tagged(tag, 20)
                through = await journal.read_tagged_lens(lens, tag, 20)
                assert_same(through, wanted, envelope=envelope)


def assert_same(
    through: list[RecordedEvent], wanted: list[RecordedEvent], *, envelope: bool
) -> None:
    """Hold that a lens has seen the same events, with the envelope only where it was asked for."""
    for other, recorded in zip(through, wanted, strict=True):
        for name in ("offset", "stream", "recorded_at", "occurred_at", "type"):
            assert getattr(other, name) == getattr(recorded, name)
        assert other.event_id == str(recorded.event_id)
        hidden = () if envelope else ("ip_address",)
        assert other.erased == tuple(each for each in recorded.erased if each not in hidden)
        assert other.metadata == (recorded.metadata if envelope else Metadata())
        assert bytes(other.body) == (recorded.body if envelope else b"")
        assert fields(other.event) == fields(recorded.event)


async def test_personal_fields_of_a_stream_are_opened_or_erased(database_url: str) -> None:
    """They are plain through a lens, and None and named once the data key is destroyed."""
    event = UserRegistered(user_id=UUID(int=1), username="ann", password_hash="x")
    subject, lens = f"user-{UUID(int=1)}", Lens(event_types().values())
    async with opened(database_url) as journal:
        await journal.append(NewEvent(event))
        [[tag]] = [each.event.claims() async for each in journal.read()]
        for erased in (set(), {"username", "password_hash"}):
            by_stream = await journal.read_stream_lens(lens, subject)
            by_tag = await journal.read_tagged_lens(lens, tag)
            for [found] in (by_stream, by_tag):
                assert isinstance(found.event, UserRegistered)
                assert set(found.erased) == erased
                assert found.event.username == (None if erased else "ann")
            await journal.privacy.destroy(subject)


async def test_an_undecodable_event_of_a_stream_is_named(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it lies, and not only that a lens could not see it; so of a tag."""
    book = position_tag(UUID(int=2), "A", None)
    fill = OrderFilled(
        order_id=UUID(int=1),
        user_id=UUID(int=2),
        fill_id="f",
        token="A",
        action=Action.BUY,
        price=VenueAmount("1"),
        quantity=VenueAmount("1"),
    )
    async with opened(database_url) as journal:
        await journal.append(NewEvent(PriceMarked(token="A", price=VenueAmount("1"))))
        await journal.append(NewEvent(fill))
        without = {n: each for n, each in event_types().items() if n != "OrderFilled"}
        for module in ("ledger.lens", "ledger.codec"):
            monkeypatch.setattr(f"{module}.event_types", lambda: without)
        lens = Lens(without.values())
        for read in (
            journal.read_stream_lens(lens, f"order-{UUID(int=1)}"),
            journal.read_tagged_lens(lens, book),
        ):
            with pytest.raises(StoredEventInvalid, match="offset 1"):
                await read


async def test_an_unknown_type_is_noticed(database_url: str, monkeypatch: Any) -> None:
    """A type of which this program knows nothing might be wanted: it must not be passed over."""
    async with opened(database_url) as journal:
        await journal.append(NewEvent(PriceMarked(token="A", price="1")))  # type: ignore[arg-type]
        await journal.append(NewEvent(PriceMarked(token="B", price="2")))  # type: ignore[arg-type]
    without = {name: each for name, each in event_types().items() if name != "PriceMarked"}
    for module in ("ledger.lens", "ledger.codec"):
        monkeypatch.setattr(f"{module}.event_types", lambda: without)
    with pytest.raises(StoredEventInvalid, match="offset 0"):
        await stored(Settings(database_url=database_url), Lens([OrderAccepted]))


class BehindStore:
    """A server that lags: it answers as if the journal's last events were not there yet."""

    def __init__(self, store: Any, missing: int) -> None:
        self._store = store
        self._missing = missing

    async def read(self, journal_id: int, start: int, stop: int, ignored: Any = ()) -> Any:
        """Read less than there is."""
        return await self._store.read(journal_id, start, stop - self._missing, ignored)

    async def read_packed(self, journal_id: int, start: int, stop: int, *a: Any, **kw: Any) -> Any:
        """Read less than there is."""
        return await self._store.read_packed(journal_id, start, stop - self._missing, *a, **kw)


@pytest.mark.parametrize("missing", [1, 3])
async def test_events_that_a_server_does_not_hold_are_missed(
    database_url: str, missing: int
) -> None:
    """Who asks one server for the size and another for the events passes over nothing."""
    async with opened(database_url) as journal:
        for event in random_events(Random(9), 5):
            await journal.append(NewEvent(event, "" if event.stream() else "any"))
        store = journal.store
        assert len(await journal.read_but(("PriceMarked",), 0, 5)) >= 1
        journal.store = BehindStore(store, missing)  # type: ignore[assignment]
        try:
            for read in (
                journal.read_but(("PriceMarked",), 0, 5),
                journal.read_lens(Lens([OrderAccepted]), 0, 5),
            ):
                with pytest.raises(StoreUnavailable, match="does not hold all events"):
                    await read
        finally:
            journal.store = store
