"""Whatever is appended at the same time comes out as if it had been appended one after another."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.conditions import AtMost, Condition, ExpectedVersion, NoEvent
from ledger.errors import InvalidEvent, TooManyEvents
from ledger.event import NewEvent
from ledger.journal import Journal
from ledger.prepare import prepare
from ledger.stores import Outcome, PreparedAppend, Store
from ledger.stores.opening import open_store
from tests.ledger.model import Append, ModelJournal, Row, outcome
from tests.ledger.support import (
    START,
    AnyEvent,
    Clock,
    Noted,
    Remarked,
    an_id,
    note,
    opened,
    read_all,
    settings_for,
)

EXAMPLES = int(os.environ.get("LEDGER_TEST_EXAMPLES", "150"))
TYPES = (Noted, Remarked)

streams = st.sampled_from(["s0", "s1", "s2"])
tags = st.sampled_from(["t0", "t1", "t2"])
some_tags = st.one_of(st.just(()), st.just(()), st.lists(tags, max_size=2, unique=True).map(tuple))
offsets = st.integers(-1, 8)
types = st.sampled_from([(), (Noted,), (Remarked,), TYPES])
seconds = st.sampled_from([1, 2, 3]).map(lambda n: timedelta(seconds=n))


@st.composite
def new_events(draw: st.DrawFn) -> NewEvent:
    """Return an event; its id often comes again, and then mostly with the same content."""
    number = draw(st.integers(0, 24))
    kind = TYPES[number % 2]
    if draw(st.integers(0, 3)):
        claimed = (f"t{number % 3}",) if number % 5 == 0 else ()
        tagged = (f"t{number % 2}",) if number % 3 == 0 else ()
        return NewEvent(kind(tagged=tagged, claimed=claimed), f"s{number % 3}", an_id(number))
    event = kind(
        text=draw(st.sampled_from(["", "other"])),
        tagged=draw(some_tags),
        claimed=draw(some_tags),
        released=draw(some_tags),
    )
    return NewEvent(event, draw(streams), an_id(number))


conditions: st.SearchStrategy[Condition] = st.one_of(
    st.builds(ExpectedVersion, streams, st.integers(0, 5)),
    st.builds(NoEvent, tag=tags, types=types, after=offsets),
    st.builds(NoEvent, stream=streams, types=types, after=offsets),
    st.builds(AtMost, streams, st.integers(1, 4), seconds),
)


def is_accepted(append: Append) -> bool:
    """Tell whether an append is queued at all."""
    with suppress(InvalidEvent, TooManyEvents):
        prepare(append.events, append.conditions)
        return True
    return False


appends = st.builds(
    Append,
    st.lists(new_events(), min_size=1, max_size=3).map(tuple),
    st.one_of(st.just(()), st.lists(conditions, max_size=3).map(tuple)),
).filter(is_accepted)

moves = st.sampled_from([-1, 0, 1, 2])
batches = st.lists(st.tuples(moves, st.lists(appends, min_size=1, max_size=12)), max_size=4)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(batches)
def hold(
    runner: asyncio.Runner, store: Store, clock: Clock, work: list[tuple[int, list[Append]]]
) -> None:
    """Hold one example; see the test."""
    runner.run(compare(store, clock, work))


async def compare(store: Store, clock: Clock, work: list[tuple[int, list[Append]]]) -> None:
    """Append every batch at once to a new journal, and one by one to the model."""
    journal = Journal(store, await store.create_journal(uuid.uuid4().hex))
    clock.now = START
    model = ModelJournal()
    for seconds_later, batch in work:
        clock.move(seconds_later)
        results = await asyncio.gather(
            *(journal.append(append.events, *append.conditions) for append in batch),
            return_exceptions=True,
        )
        assert [outcome(result) for result in results] == model.run(batch, clock.now)
    assert await rows_of(journal) == model.rows


async def rows_of(journal: Journal) -> list[Row]:
    """Return the journal as the model would hold it."""
    found = []
    for offset, event in enumerate(await read_all(journal)):
        assert event.offset == offset
        assert isinstance(event.event, AnyEvent)
        row = Row(event.event_id, event.stream, event.version, event.event, event.recorded_at)
        found.append(row)
    return found


def test_a_batch_equals_its_appends_one_by_one(database_url: str) -> None:
    """Outcomes, offsets, versions and times of appends sent at once equal a serial model's."""
    clock = Clock()
    with asyncio.Runner() as runner:
        store = open_store(settings_for(database_url), clock)
        try:
            hold(runner, store, clock)
        finally:
            runner.run(store.close())


async def test_appends_made_at_once_are_one_batch(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above means something: what is gathered reaches the store as one batch."""
    batches: list[int] = []
    async with opened(database_url) as journal:
        append = journal.store.append

        async def counted(journal_id: int, batch: Sequence[PreparedAppend]) -> list[Outcome]:
            batches.append(len(batch))
            return await append(journal_id, batch)

        monkeypatch.setattr(journal.store, "append", counted)
        await asyncio.gather(*(journal.append(note()) for _ in range(50)))
    assert batches == [50]
