"""What every store must do, tried through a journal."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest

from ledger.conditions import AtMost, Condition, ExpectedVersion, NoEvent
from ledger.errors import (
    ConditionFailed,
    EventExists,
    EventIdConflict,
    InvalidEvent,
    JournalExists,
    JournalNotFound,
    TagTaken,
    TooManyEvents,
    VersionConflict,
)
from ledger.event import Event, Metadata, NewEvent, event_types
from ledger.journal import Journal
from ledger.lens import Lens
from ledger.prepare import CLOCKS_APART_MAX
from ledger.stores import Appended
from tests.ledger.support import (
    START,
    Clock,
    Noted,
    Remarked,
    an_id,
    append_unasked,
    assert_sound,
    known_note,
    note,
    opened,
    read_all,
    store_of,
)
from tests.postgres import PostgresServer

MINUTE = timedelta(minutes=1)


def none_in(by: str, types: tuple[type[Event], ...] = (), after: int = -1) -> NoEvent:
    """Return the condition on tag `t` or on stream `t`."""
    if by == "tag":
        return NoEvent(tag="t", types=types, after=after)
    return NoEvent(stream="t", types=types, after=after)


async def test_one_event_comes_back_as_it_was_given(database_url: str) -> None:
    """Envelope and data of a stored event are what was appended."""
    metadata = Metadata(
        correlation_id=an_id("c"), causation_id=an_id("d"), request_id="r", actor="a",
        ip_address="2001:db8::1",
    )  # fmt: skip
    happened = datetime(2020, 2, 29, 23, 59, 59, 999_999, timezone(timedelta(hours=-5)))
    new = NewEvent(Noted(text="Grüße 𝄞\n"), "s", an_id("e"), happened, metadata)
    async with opened(database_url, clock=Clock()) as journal:
        assert await journal.append(new) == Appended((0,))
        [event] = await read_all(journal)
    assert (event.offset, event.stream, event.version) == (0, "s", 1)
    assert (event.event_id, event.event, event.metadata) == (new.event_id, new.event, metadata)
    assert (event.occurred_at, event.recorded_at) == (happened, START)
    assert event.occurred_at.tzinfo is UTC
    assert (event.type, event.schema_version) == ("Noted", 1)
    assert event.body == '{"type":"Noted","text":"Grüße 𝄞\\n"}'.encode()


async def test_times_at_the_ends_of_the_calendar_are_kept(database_url: str) -> None:
    """All times survive but those of the calendar's first and last day, which are refused."""
    ends = [datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]
    microsecond = timedelta(microseconds=1)
    times = [ends[0] + microsecond, ends[1] - microsecond]
    async with opened(database_url) as journal:
        for end in ends:
            with pytest.raises(InvalidEvent, match=r"^occurred_at: .* lies outside"):
                await journal.append(NewEvent(Noted(), "s", occurred_at=end))
        await append_unasked(journal, *(NewEvent(Noted(), "s", occurred_at=t) for t in times))
        assert [event.occurred_at for event in await read_all(journal)] == times


async def test_a_part_of_a_stream_or_of_what_is_tagged(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what lies below an offset, only so many; however many are read at once, and how."""
    lens = Lens(event_types().values())
    async with opened(database_url) as journal:
        streams = [("s", "t")[number % 3 == 2] for number in range(12)]
        await journal.append([note(stream, tagged=("x",)) for stream in streams])
        own = [offset for offset, stream in enumerate(streams) if stream == "s"]
        for chunk_size in (1, 2, 3, 1000):
            monkeypatch.setattr("ledger.journal.CHUNK_SIZE", chunk_size)
            monkeypatch.setattr("ledger.journal.PACKED_CHUNK_SIZE", chunk_size)
            for stop in range(13):
                found = await journal.read_stream("s", stop=stop)
                assert [each.offset for each in found] == [each for each in own if each < stop]
                tagged = await journal.read_tagged("x", 2, stop=stop)
                assert [each.offset for each in tagged] == list(range(3, stop))
                found = await journal.read_stream_lens(lens, "s", stop=stop)
                assert [each.offset for each in found] == [each for each in own if each < stop]
                tagged = await journal.read_tagged_lens(lens, "x", 2, stop=stop)
                assert [each.offset for each in tagged] == list(range(3, stop))
            for limit in range(1, 10):
                found = await journal.read_stream("s", 1, limit=limit)
                assert [each.offset for each in found] == own[1 : 1 + limit]
                found = await journal.read_stream_lens(lens, "s", limit=limit)
                assert [each.offset for each in found] == own[:limit]


async def test_what_has_not_happened_yet_is_refused(database_url: str) -> None:
    """By the journal's own clock, which may differ a little from the one that dates events."""
    clock = Clock()
    async with opened(database_url, clock=clock) as journal:
        ahead = [START + CLOCKS_APART_MAX + timedelta(microseconds=each) for each in (0, 1)]
        events = [NewEvent(Noted(), "s", occurred_at=each) for each in ahead]
        with pytest.raises(InvalidEvent, match=r"^occurred_at: .* lies in the future") as refused:
            await journal.append(events)
        assert (refused.value.field, await journal.size()) == ("occurred_at", 0)
        await journal.append(events[0])
        clock.move(0.000001)
        await journal.append(events[1])
        assert [each.occurred_at for each in await read_all(journal)] == ahead


async def test_occurred_at_is_the_time_of_recording_where_it_is_left_out(database_url: str) -> None:
    """An event without a time of its own happened when it was recorded."""
    async with opened(database_url) as journal:
        await journal.append(note())
        [event] = await read_all(journal)
    assert event.occurred_at == event.recorded_at
    assert abs(datetime.now(UTC) - event.recorded_at) < timedelta(minutes=5)


async def test_several_events_of_several_streams_are_stored_together(database_url: str) -> None:
    """An append gets offsets in the order given, and each stream its own versions."""
    async with opened(database_url) as journal:
        appended = await journal.append([note("a"), note("b"), note("a"), note("b"), note("a")])
        assert appended == Appended((0, 1, 2, 3, 4))
        assert appended.size == await journal.size() == 5
        events = await read_all(journal)
    assert_sound(events)
    assert [(event.stream, event.version) for event in events] == [
        ("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3),
    ]  # fmt: skip


async def test_an_append_of_which_one_part_is_refused_stores_nothing(database_url: str) -> None:
    """All or nothing: one failing condition or tag of one event keeps out all events."""
    async with opened(database_url) as journal:
        await journal.append([note("taken", claimed=("name",)), known_note("known", "taken")])
        with pytest.raises(VersionConflict):
            await journal.append([note("a"), note("b")], ExpectedVersion("b", 1))
        with pytest.raises(TagTaken):
            await journal.append([note("a"), note("b", claimed=("name",))])
        with pytest.raises(EventIdConflict):
            await journal.append([note("a"), known_note("known", "taken")])
        assert await journal.size() == 2
        assert await journal.append(note("a"), ExpectedVersion("a", 0)) == Appended((2,))


async def test_the_largest_append_is_stored_in_order(database_url: str) -> None:
    """A thousand events go in at once, offsets and versions without a gap."""
    async with opened(database_url) as journal:
        appended = await journal.append([note(f"s{n % 3}", str(n)) for n in range(1000)])
        assert appended.offsets == tuple(range(1000))
        events = await read_all(journal)
    assert_sound(events)
    assert [event.event for event in events] == [Noted(text=str(n)) for n in range(1000)]


@pytest.mark.parametrize(("stored", "expected"), [(0, 0), (1, 1), (3, 3)])
async def test_an_expected_version_that_holds(
    database_url: str, stored: int, expected: int
) -> None:
    """Version 0 means that the stream does not exist; n that it has n events."""
    async with opened(database_url) as journal:
        for _ in range(stored):
            await journal.append(note("s"))
        await journal.append(note("s"), ExpectedVersion("s", expected))
        assert await journal.size() == stored + 1


@pytest.mark.parametrize("expected", [0, 1, 3, 2**62])
async def test_an_expected_version_that_does_not_hold(database_url: str, expected: int) -> None:
    """The error says which stream, what was expected and what is there."""
    async with opened(database_url) as journal:
        await journal.append([note("s"), note("s")])
        with pytest.raises(VersionConflict) as caught:
            await journal.append(note("s"), ExpectedVersion("s", expected))
        assert await journal.size() == 2
    error = caught.value
    assert (error.stream, error.expected, error.actual) == ("s", expected, 2)


async def test_the_version_of_another_stream_can_be_expected(database_url: str) -> None:
    """A condition may look at a stream that the append does not write."""
    async with opened(database_url) as journal:
        await journal.append(note("other"))
        await journal.append(note("s"), ExpectedVersion("other", 1), ExpectedVersion("none", 0))
        with pytest.raises(VersionConflict) as caught:
            await journal.append(note("s"), ExpectedVersion("other", 0))
    assert (caught.value.stream, caught.value.expected, caught.value.actual) == ("other", 0, 1)


async def test_the_conflict_names_the_stream_that_is_at_fault(database_url: str) -> None:
    """Of several expected versions the one that does not hold is reported."""
    async with opened(database_url) as journal:
        await journal.append(note("b"))
        holds = [ExpectedVersion("foreign", 0), ExpectedVersion("a", 0)]
        with pytest.raises(VersionConflict) as caught:
            await journal.append([note("a"), note("b")], *holds, ExpectedVersion("b", 5))
    assert (caught.value.stream, caught.value.expected, caught.value.actual) == ("b", 5, 1)


async def test_conditions_that_contradict_each_other_are_all_checked(database_url: str) -> None:
    """Expecting two versions of one stream never succeeds."""
    async with opened(database_url) as journal:
        with pytest.raises(VersionConflict) as caught:
            await journal.append(note("s"), ExpectedVersion("s", 0), ExpectedVersion("s", 1))
    assert caught.value.expected == 1


@pytest.mark.parametrize("by", ["tag", "stream"])
async def test_no_event_at_all(database_url: str, by: str) -> None:
    """NoEvent fails with the offset of the first event found, whether by tag or by stream."""
    found = none_in(by)
    async with opened(database_url) as journal:
        await journal.append(note("before"), found)
        await journal.append([note("t", tagged=("t",)), note("t", tagged=("t",))])
        with pytest.raises(EventExists) as caught:
            await journal.append(note("after"), found)
        assert await journal.size() == 3
    assert (caught.value.offset, caught.value.where) == (1, f"{by} 't'")


@pytest.mark.parametrize("by", ["tag", "stream"])
async def test_no_event_of_some_types(database_url: str, by: str) -> None:
    """Events of other types do not count; of several types each counts."""
    async with opened(database_url) as journal:
        await journal.append(note("t", tagged=("t",)))
        await journal.append(note("x"), none_in(by, types=(Remarked,)))
        for types in [(Noted,), (Remarked, Noted)]:
            with pytest.raises(EventExists) as caught:
                await journal.append(note("x"), none_in(by, types=types))
            assert caught.value.offset == 0


@pytest.mark.parametrize("by", ["tag", "stream"])
async def test_no_event_after_an_offset(database_url: str, by: str) -> None:
    """Events up to and including `after` are known to the caller and do not count."""
    async with opened(database_url) as journal:
        for _ in range(3):
            await journal.append(note("t", tagged=("t",)))
        await journal.append(note("x"), none_in(by, after=2))
        with pytest.raises(EventExists) as caught:
            await journal.append(note("x"), none_in(by, after=1))
    assert caught.value.offset == 2


async def test_claims_and_releases_are_tags_too(database_url: str) -> None:
    """NoEvent by tag also sees the events that claimed or released the tag."""
    async with opened(database_url) as journal:
        await journal.append(note("s", claimed=("a",), released=("b",)))
        for tag in ("a", "b"):
            with pytest.raises(EventExists):
                await journal.append(note("x"), NoEvent(tag=tag))


async def test_the_window_is_exact_to_the_microsecond(database_url: str) -> None:
    """An event that is exactly as old as the window no longer counts, a younger one does."""
    clock = Clock()
    limit = AtMost("s", 2, MINUTE)
    async with opened(database_url, clock=clock) as journal:
        for _ in range(2):
            await journal.append(note("s"), limit)
        clock.now = START + MINUTE - timedelta(microseconds=1)
        with pytest.raises(TooManyEvents) as caught:
            await journal.append(note("s"), limit)
        clock.now = START + MINUTE
        await journal.append(note("s"), limit)
        await journal.append(note("s"), limit)
        with pytest.raises(TooManyEvents):
            await journal.append(note("s"), limit)
    error = caught.value
    assert (error.stream, error.count, error.window_seconds) == ("s", 2, 60)


async def test_a_window_counts_all_events_of_an_append(database_url: str) -> None:
    """An append of several events needs room for all of them."""
    async with opened(database_url, clock=Clock()) as journal:
        await journal.append(note("s"))
        with pytest.raises(TooManyEvents):
            await journal.append([note("s"), note("x"), note("s")], AtMost("s", 2, MINUTE))
        await journal.append([note("s"), note("x"), note("s")], AtMost("s", 3, MINUTE))
        with pytest.raises(TooManyEvents):
            await journal.append([note("new"), note("new")], AtMost("new", 1, MINUTE))


async def test_a_window_over_a_stream_that_is_only_looked_at(database_url: str) -> None:
    """A full window of another stream is not overfull; one event more is."""
    async with opened(database_url, clock=Clock()) as journal:
        await journal.append([note("o"), note("o")])
        await journal.append(note("x"), AtMost("o", 2, MINUTE))
        with pytest.raises(TooManyEvents):
            await journal.append(note("x"), AtMost("o", 1, MINUTE))


async def test_a_window_of_a_day_has_24_hours_wherever_the_server_stands(
    postgres_server_in_berlin: str,
) -> None:
    """On the night when the clocks change a day's window is as long as on any other."""
    clock = Clock()
    async with opened(postgres_server_in_berlin, clock=clock) as journal:
        clock.now = datetime(2026, 3, 28, 12, 30, tzinfo=UTC)
        await journal.append(note("s"))
        clock.now = datetime(2026, 3, 29, 12, 0, tzinfo=UTC)
        with pytest.raises(TooManyEvents):
            await journal.append(note("s"), AtMost("s", 1, timedelta(days=1)))


async def test_a_claimed_tag_is_kept_from_other_streams(database_url: str) -> None:
    """Who claims first has it; the other learns since when."""
    async with opened(database_url) as journal:
        await journal.append([note("x"), note("mine", claimed=("name",))])
        with pytest.raises(TagTaken) as caught:
            await journal.append(note("yours", claimed=("free", "name")))
        await journal.append(note("yours", claimed=("free",)))
    assert (caught.value.tag, caught.value.offset) == ("name", 1)


async def test_the_same_stream_may_claim_again(database_url: str) -> None:
    """Claiming what one has already changes nothing, and one release then frees it."""
    async with opened(database_url) as journal:
        await journal.append(note("mine", claimed=("name",)))
        await journal.append(note("mine", claimed=("name",)))
        await journal.append(note("mine", released=("name",)))
        await journal.append(note("yours", claimed=("name",)))


async def test_a_released_tag_is_free_until_it_is_claimed_again(database_url: str) -> None:
    """Release and claim alternate between streams for ever."""
    async with opened(database_url) as journal:
        for stream, other in [("a", "b"), ("b", "a"), ("a", "b")]:
            await journal.append(note(stream, claimed=("name",)))
            with pytest.raises(TagTaken):
                await journal.append(note(other, claimed=("name",)))
            await journal.append(note(stream, released=("name",)))


async def test_only_the_holder_can_release(database_url: str) -> None:
    """A release by another stream, or from before the claim, frees nothing."""
    async with opened(database_url) as journal:
        await journal.append(note("mine", released=("name",)))
        await journal.append(note("mine", claimed=("name",)))
        await journal.append(note("other", released=("name",)))
        with pytest.raises(TagTaken):
            await journal.append(note("yours", claimed=("name",)))


async def test_swapping_names_in_one_append(database_url: str) -> None:
    """A stream may give one name back and take another in one event, and back again."""
    async with opened(database_url) as journal:
        await journal.append(note("s", claimed=("old",)))
        await journal.append(note("s", claimed=("new",), released=("old",)))
        await journal.append(note("t", claimed=("old",)))
        with pytest.raises(TagTaken):
            await journal.append(note("s", claimed=("old",), released=("new",)))
        with pytest.raises(TagTaken):
            await journal.append(note("t", claimed=("new",)))


async def test_plain_tags_exclude_nobody(database_url: str) -> None:
    """A tag that is only attached can be claimed, and attached by anyone."""
    async with opened(database_url) as journal:
        await journal.append(note("a", tagged=("t",)))
        await journal.append(note("b", claimed=("t",)))
        await journal.append(note("c", tagged=("t",)))


async def test_the_same_append_again_is_a_success(database_url: str) -> None:
    """A retry gets the original offsets and is told so, even where its conditions fail by now."""
    events = [known_note(1, "a"), known_note(2, "b")]
    conditions = (ExpectedVersion("a", 0), NoEvent(stream="b"), AtMost("a", 1, MINUTE))
    async with opened(database_url) as journal:
        await journal.append(note("x"))
        await journal.append(events, *conditions)
        await journal.append(note("a"))
        assert await journal.append(events, *conditions) == Appended((1, 2), duplicate=True)
        reversed_ = await journal.append(events[::-1], *conditions)
        assert reversed_ == Appended((2, 1), duplicate=True)
        assert reversed_.size == 3
        assert await journal.size() == 4


async def test_a_retry_may_differ_in_its_envelope(database_url: str) -> None:
    """Content is stream, type and data: another time or request id is the same event."""
    async with opened(database_url) as journal:
        await journal.append(known_note(1))
        metadata = Metadata(request_id="second try")
        again = NewEvent(Noted(), "s", an_id(1), START, metadata)
        assert await journal.append(again) == Appended((0,), duplicate=True)


async def test_a_claim_is_no_hindrance_to_its_own_retry(database_url: str) -> None:
    """The retry of a claim is known before the tag is looked at, though another holds it now."""
    claim = NewEvent(Noted(claimed=("name",)), "a", an_id(1))
    async with opened(database_url) as journal:
        await journal.append(claim)
        await journal.append(note("a", released=("name",)))
        await journal.append(note("b", claimed=("name",)))
        assert (await journal.append(claim)).duplicate


@pytest.mark.parametrize(
    "other",
    [
        NewEvent(Noted(text="other"), "s", an_id(1)),
        NewEvent(Remarked(), "s", an_id(1)),
        NewEvent(Noted(), "other", an_id(1)),
    ],
    ids=["data", "type", "stream"],
)
async def test_a_known_id_with_other_content_is_refused(database_url: str, other: NewEvent) -> None:
    """Same id, other data, type or stream: an error that says where the id is stored."""
    async with opened(database_url) as journal:
        await journal.append([note(), known_note(1)])
        with pytest.raises(EventIdConflict) as caught:
            await journal.append(other)
        assert await journal.size() == 2
    assert (caught.value.event_id, caught.value.offset) == (an_id(1), 1)


async def test_an_append_known_in_part_is_refused(database_url: str) -> None:
    """An append of which some events are stored and others not is an error, not a success."""
    async with opened(database_url) as journal:
        await journal.append([known_note(1), known_note(2)])
        for events in [
            [known_note(1), known_note(3)],
            [known_note(3), known_note(2)],
            [known_note(1), known_note(2), known_note(3)],
        ]:
            with pytest.raises(EventIdConflict):
                await journal.append(events)
        assert await journal.size() == 2


async def test_a_schema_version_is_part_of_the_content(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes under another schema version are another event."""
    async with opened(database_url) as journal:
        await journal.append(known_note(1))
        monkeypatch.setattr(Noted, "schema_version", 2)
        with pytest.raises(EventIdConflict):
            await journal.append(known_note(1))


async def test_recorded_at_never_decreases(database_url: str) -> None:
    """When the clock runs back, time stands still in the journal; windows then do not move."""
    clock = Clock()
    async with opened(database_url, clock=clock) as journal:
        for seconds in (10, -5, 3, 7):
            clock.move(seconds)
            await journal.append(note("s"))
        times = [event.recorded_at for event in await read_all(journal)]
        clock.move(-1000)
        with pytest.raises(TooManyEvents):
            await journal.append(note("s"), AtMost("s", 4, timedelta(seconds=6)))
    assert times == [START + timedelta(seconds=seconds) for seconds in (10, 10, 10, 15)]


async def test_reading_from_and_to_an_offset(database_url: str) -> None:
    """`start` is included, `stop` is not; beyond the end there is nothing."""
    async with opened(database_url) as journal:
        await journal.append([note(text=str(n)) for n in range(10)])

        async def offsets(start: int, stop: int | None = None) -> list[int]:
            return [event.offset async for event in journal.read(start, stop)]

        assert await offsets(0) == list(range(10))
        assert await offsets(7) == [7, 8, 9]
        assert await offsets(3, 5) == [3, 4]
        assert await offsets(3, 3) == await offsets(10) == await offsets(99, 200) == []
        assert await offsets(8, 200) == [8, 9]


async def test_reading_in_chunks(database_url: str) -> None:
    """Chunks are full but for the last, and hold everything once."""
    async with opened(database_url) as journal:
        await journal.append([note() for _ in range(10)])
        chunks = [chunk async for chunk in journal.read_chunks(1, chunk_size=4)]
    assert [[event.offset for event in chunk] for chunk in chunks] == [[1, 2, 3, 4], [5, 6, 7, 8],
        [9]]  # fmt: skip


async def test_reading_one_stream(database_url: str) -> None:
    """A stream is read in its order, also within bounds and chunks; an unknown one is empty."""
    async with opened(database_url) as journal:
        await journal.append([note("ab"[n % 2]) for n in range(10)])

        async def offsets(start: int = 0, stop: int | None = None) -> list[int]:
            chunks = journal.read_chunks(start, stop, stream="a", chunk_size=2)
            return [event.offset async for chunk in chunks for event in chunk]

        assert await offsets() == [0, 2, 4, 6, 8]
        assert await offsets(3) == [4, 6, 8]
        assert await offsets(2, 6) == [2, 4]
        assert [event async for event in journal.read(stream="none")] == []


async def test_streams_are_compared_byte_by_byte(database_url: str) -> None:
    """Case, accents and trailing blanks make other streams and other tags."""
    names = ["s", "S", "s ", "ß", "ss", "é", "e\u0301"]
    async with opened(database_url) as journal:
        for name in names:
            await journal.append(note(name, claimed=(name,)), ExpectedVersion(name, 0))
        assert [event.version for event in await read_all(journal)] == [1] * len(names)


async def test_waiting_for_a_size(database_url: str) -> None:
    """`wait` returns once the journal has grown, and TimeoutError if it does not."""
    async with opened(database_url) as journal, opened(database_url) as other:
        waiting = asyncio.create_task(journal.wait(2, timeout_seconds=30))
        await other.append(note())
        with pytest.raises(TimeoutError):
            await journal.wait(2, timeout_seconds=0.2)
        assert not waiting.done()
        await other.append(note())
        assert await waiting == 2


async def test_the_size_at_a_time(database_url: str) -> None:
    """Events recorded exactly then are included; a time that has not passed is provisional."""
    clock = Clock()
    second = timedelta(seconds=1)
    async with opened(database_url, clock=clock) as journal:
        for _ in range(3):
            await journal.append([note(), note()])
            clock.move(2)
        found = [await journal.size_at(START + n * second) for n in (-1, 0, 1, 2, 5, 6, 9)]
    assert [(at.size, at.provisional) for at in found] == [
        (0, False), (2, False), (2, False), (4, False), (6, False), (6, True), (6, True),
    ]  # fmt: skip


async def test_what_is_not_provisional_stays_true_when_the_clock_runs_back(
    database_url: str,
) -> None:
    """A size given for a time is final: later events are recorded after it, whatever the clock."""
    clock = Clock()
    async with opened(database_url, clock=clock) as journal:
        clock.move(10)
        await journal.append(note())
        clock.move(-10)
        at = await journal.size_at(START + timedelta(seconds=9))
        await journal.append(note())
        assert await journal.size_at(START + timedelta(seconds=9)) == at
        assert (at.size, at.provisional) == (0, False)


async def test_journals_are_listed_in_the_order_they_were_made(database_url: str) -> None:
    """Every database has `main`; a new journal is empty and has a name of its own."""
    store = store_of(database_url)
    made = await store.create_journal("desk 1")
    listed = await store.journals()
    with pytest.raises(JournalExists, match="desk 1"):
        await store.create_journal("desk 1")
    assert listed == await store.journals()
    await store.close()
    assert [info.name for info in listed] == ["main", "desk 1"]
    assert listed[1] == made
    assert made.size == 0
    assert abs(made.created_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert abs(listed[0].created_at - datetime.now(UTC)) < timedelta(days=1)


async def test_an_unknown_journal_is_not_opened(database_url: str) -> None:
    """The error says how to make it."""
    with pytest.raises(JournalNotFound, match="ledger journals new nowhere"):
        async with opened(database_url, "nowhere"):
            pass


async def test_journals_know_nothing_of_each_other(database_url: str) -> None:
    """Offsets, versions, ids, tags and windows of one journal are free in the other."""
    store = store_of(database_url)
    await store.create_journal("second")
    await store.close()
    event = NewEvent(Noted(claimed=("name",)), "s", an_id(1))
    own = NewEvent(Noted(claimed=("name",)), "t", an_id(2))
    conditions = (ExpectedVersion("t", 0), NoEvent(stream="s"), AtMost("t", 1, MINUTE))
    async with opened(database_url) as first, opened(database_url, "second") as second:
        assert await first.append([note("t"), event]) == Appended((0, 1))
        assert await second.append(own, *conditions) == Appended((0,))
        assert await second.append(NewEvent(Noted(), "u", an_id(1))) == Appended((1,))
        assert [event.version for event in await read_all(second)] == [1, 1]
        assert (await first.size(), await second.size()) == (2, 2)


async def test_one_process_writes_to_many_journals_over_few_connections(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    """The connections that append are bounded by pool_size, however many journals there are."""
    store = store_of(postgres_url, pool_size=2, pool_overflow=0)
    infos = [await store.create_journal(f"j{n}") for n in range(12)]
    journals = [Journal(store, info) for info in infos]
    await asyncio.gather(*(journal.append(note()) for journal in journals))
    database = postgres_url.rpartition("/")[2]
    held = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'"
    assert int(postgres_server.psql(held)) <= 4
    assert [info.size for info in await store.journals()] == [0] + [1] * 12
    await store.close()


async def test_a_refusal_is_a_condition_that_failed(database_url: str) -> None:
    """All four refusals can be caught under one name."""
    async with opened(database_url) as journal:
        await journal.append(note("s", claimed=("t",)))
        refused: list[Condition] = [
            ExpectedVersion("s", 0),
            NoEvent(stream="s"),
            AtMost("s", 1, MINUTE),
        ]
        for condition in refused:
            with pytest.raises(ConditionFailed):
                await journal.append(note("s"), condition)
        with pytest.raises(ConditionFailed):
            await journal.append(note("x", claimed=("t",)))


@pytest.mark.parametrize("name", ["", " desk", "desk ", "d\x00k", "d" * 101])
async def test_journal_names_are_checked_by_every_door(database_url: str, name: str) -> None:
    """A name that could not be typed, or that one of the databases refuses, is refused by both."""
    store = store_of(database_url)
    with pytest.raises(InvalidEvent, match="journal name"):
        await store.create_journal(name)
    await store.close()


async def test_events_are_found_by_tag(database_url: str) -> None:
    """Tagged events come in order, each once, from any offset on and in any number."""
    async with opened(database_url) as journal:
        await journal.append([note(f"s{n}", tagged=("t",)) for n in range(3)])
        await journal.append(note("other", tagged=("u",)))
        await journal.append(note("s", tagged=("t", "u"), claimed=("t",), released=("t",)))
        assert [event.offset for event in await journal.read_tagged("t")] == [0, 1, 2, 4]
        assert [event.offset for event in await journal.read_tagged("t", after=1)] == [2, 4]
        assert await journal.read_tagged("never") == []
        few = await journal.store.read_tagged(journal.journal_id, "t", -1, 2)
        assert [stored.offset for stored in few] == [0, 1]
        lens = Lens(event_types().values())
        assert [each.offset for each in await journal.read_tagged_lens(lens, "t", 1)] == [2, 4]
        assert await journal.read_tagged_lens(lens, "never") == []


async def test_a_stream_is_read_from_any_version_on(database_url: str) -> None:
    """A long stream is read whole, however many pieces it takes."""
    async with opened(database_url) as journal:
        for start in range(0, 1200, 600):
            await journal.append([note("long", str(n)) for n in range(start, start + 600)])
        assert len(await journal.read_stream("long")) == 1200
        assert [event.version for event in await journal.read_stream("long", 1197)] == [
            1198,
            1199,
            1200,
        ]


async def test_the_holder_of_a_claim_is_known(database_url: str) -> None:
    """A tag is held from its claim to its release by the holder; other releases change nothing."""
    async with opened(database_url) as journal:
        assert await journal.holder("name") is None
        await journal.append(note("first", claimed=("name",)))
        await journal.append(note("other", released=("name",)))
        assert await journal.holder("name") == "first"
        await journal.append(note("first", released=("name",)))
        assert await journal.holder("name") is None
        await journal.append(note("second", claimed=("name",)))
        assert await journal.holder("name") == "second"
