"""Appends that share a commit share nothing else."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from ledger.codec import BODY_BYTES_MAX
from ledger.conditions import AtMost, Condition, ExpectedVersion, NoEvent
from ledger.errors import (
    AppendOutcomeUnknown,
    EventIdConflict,
    InvalidEvent,
    LedgerError,
    Overloaded,
    StoreUnavailable,
    TagTaken,
    VersionConflict,
)
from ledger.event import Metadata, NewEvent
from ledger.journal import Journal
from ledger.stores import Appended, Outcome, PreparedAppend
from tests.ledger.support import (
    Noted,
    Remarked,
    an_id,
    assert_sound,
    known_note,
    note,
    opened,
    read_all,
)
from tests.postgres import PostgresServer

Results = list[Appended | BaseException]


async def at_once(journal: Journal, *appends: tuple[Any, ...]) -> Results:
    """Append everything in one batch; return answers and errors in order."""
    calls = (journal.append(*append) for append in appends)
    return await asyncio.gather(*calls, return_exceptions=True)


class Gate:
    """Holds a store's appends back until it is opened."""

    def __init__(self, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()
        self.reached = asyncio.Event()
        self._append = journal.store.append
        monkeypatch.setattr(journal.store, "append", self._wait_and_append)

    async def _wait_and_append(
        self, journal_id: int, batch: Sequence[PreparedAppend]
    ) -> list[Outcome]:
        self.reached.set()
        await self.open.wait()
        return await self._append(journal_id, batch)


async def test_two_that_expect_the_same_version(database_url: str) -> None:
    """Exactly the first of them wins; the others learn the version that they met."""
    async with opened(database_url) as journal:
        expected = ExpectedVersion("s", 0)
        results = await at_once(journal, *[(note("s"), expected) for _ in range(5)])
        assert results[0] == Appended((0,))
        assert [str(result) for result in results[1:]] == [str(VersionConflict("s", 0, 1))] * 4
        assert await journal.size() == 1


async def test_a_chain_of_expected_versions(database_url: str) -> None:
    """0, 1, 2, … in one batch all succeed, in the order of the calls."""
    async with opened(database_url) as journal:
        chain = [(note("s"), ExpectedVersion("s", version)) for version in range(20)]
        assert await at_once(journal, *chain) == [Appended((n,)) for n in range(20)]
        assert_sound(await read_all(journal))


async def test_two_that_claim_the_same_tag(database_url: str) -> None:
    """Exactly the first of them wins."""
    async with opened(database_url) as journal:
        results = await at_once(
            journal, *[(note(f"s{number}", claimed=("name",)),) for number in range(5)]
        )
        assert results[0] == Appended((0,))
        assert all(isinstance(result, TagTaken) for result in results[1:])
        assert await journal.size() == 1


async def test_the_same_event_twice(database_url: str) -> None:
    """Of the same id at once, one is stored, the others are duplicates or conflicts."""
    async with opened(database_url) as journal:
        results = await at_once(
            journal, (known_note(1),), (known_note(1),), (known_note(1, text="other"),)
        )
        assert results[:2] == [Appended((0,)), Appended((0,), duplicate=True)]
        assert isinstance(results[2], EventIdConflict)


async def test_a_refused_append_makes_room_for_the_next(database_url: str) -> None:
    """What a refused append would have written hinders nobody in its batch."""
    async with opened(database_url) as journal:
        results = await at_once(
            journal,
            (note("a", claimed=("name",)), ExpectedVersion("a", 7)),
            (note("a"), ExpectedVersion("a", 0)),
            (note("b", claimed=("name",)), NoEvent(tag="name")),
        )
        assert isinstance(results[0], VersionConflict)
        assert results[1:] == [Appended((0,)), Appended((1,))]


async def test_cancelling_one_caller(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch of a caller that goes away is stored all the same, for the others and for it."""
    async with opened(database_url) as journal:
        gate = Gate(journal, monkeypatch)
        tasks = [asyncio.create_task(journal.append(note(text=str(n)))) for n in range(10)]
        await gate.reached.wait()
        tasks[0].cancel()
        tasks[7].cancel()
        gate.open.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = [n for n, result in enumerate(results) if not isinstance(result, Appended)]
        assert cancelled == [0, 7]
        assert await journal.size() == 10


async def test_cancelling_the_first_caller_while_others_queue(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writing of the queue does not end with the caller that began it."""
    async with opened(database_url) as journal:
        gate = Gate(journal, monkeypatch)
        first = asyncio.create_task(journal.append(note()))
        await gate.reached.wait()
        later = [asyncio.create_task(journal.append(note())) for _ in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        gate.open.set()
        assert [await task for task in later] == [Appended((n,)) for n in range(1, 6)]


async def test_the_queue_is_bounded(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More events than the queue holds are refused at once, and accepted when it has drained."""
    async with opened(database_url, queue_events_max=10) as journal:
        gate = Gate(journal, monkeypatch)
        tasks = [asyncio.create_task(journal.append(note()))]
        await gate.reached.wait()
        tasks.append(asyncio.create_task(journal.append([note() for _ in range(10)])))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="10 events wait"):
            await journal.append(note())
        gate.open.set()
        await asyncio.gather(*tasks)
        await journal.append(note())
        assert await journal.size() == 12


async def test_batches_are_bounded(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long queue is stored in several commits, in the order of the calls."""
    async with opened(database_url) as journal:
        results = await at_once(journal, *[(note(text=str(n)),) for n in range(1500)])
        large = await at_once(journal, *[(note(text="x" * 30_000),) for _ in range(200)])
        assert results + large == [Appended((n,)) for n in range(1700)]
        assert_sound(await read_all(journal))


def refuse_remarks(url: str, postgres_server: PostgresServer) -> None:
    """Make the database refuse one type of event, and SQLite end the transaction by itself."""
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            connection.execute(
                "CREATE TRIGGER no_remarks BEFORE INSERT ON events WHEN NEW.type = 'Remarked' "
                "BEGIN SELECT RAISE(ROLLBACK, 'no remarks'); END"
            )
        connection.close()
    else:
        postgres_server.psql(
            "ALTER TABLE events ADD CONSTRAINT no_remarks CHECK (type <> 'Remarked')",
            url.rpartition("/")[2],
        )


async def test_what_the_database_refuses_fails_alone(
    database_url: str, postgres_server: PostgresServer
) -> None:
    """A statement that fails is tried append by append, and only the one at fault fails."""
    refuse_remarks(database_url, postgres_server)
    async with opened(database_url) as journal:
        good = [(note(f"s{n % 3}"),) for n in range(40)]
        bad = (NewEvent(Remarked(), "s0"),)
        results = await at_once(journal, *good[:20], bad, *good[20:], (note("x"), note("y")))
        assert isinstance(results.pop(20), StoreUnavailable)
        assert isinstance(results.pop(), TypeError | AttributeError)
        assert results == [Appended((n,)) for n in range(40)]
        assert_sound(await read_all(journal))


async def test_a_bug_in_the_store_leaves_nobody_waiting(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a store raises, every caller gets an answer, and the journal goes on."""

    async def broken(_journal_id: int, _batch: Sequence[PreparedAppend]) -> list[Outcome]:
        raise ZeroDivisionError("a bug")

    async with opened(database_url) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(journal.store, "append", broken)
            results = await at_once(journal, (note(),), (note(),))
        assert all(isinstance(result, AppendOutcomeUnknown) for result in results)
        assert await journal.append(note()) == Appended((0,))


BAD: dict[str, Callable[[], tuple[Any, ...]]] = {
    "no events": lambda: ([],),
    "too many events": lambda: ([note() for _ in range(1001)],),
    "too large": lambda: (note(text="x" * BODY_BYTES_MAX),),
    "NUL": lambda: (note(text="a\0b"),),
    "NUL in a stream": lambda: (note("a\0b"),),
    "NUL in a tag": lambda: (note(tagged=("a\0b",)),),
    "NUL in a condition": lambda: (note(), NoEvent(tag="a\0b")),
    "lone surrogate": lambda: (note(text="\ud800"),),
    "lone surrogate in a stream": lambda: (note("\ud800"),),
    "lone surrogate in metadata": lambda: (
        NewEvent(Noted(), "s", metadata=Metadata(actor="\ud800")),
    ),
    "lone surrogate in a condition": lambda: (note(), ExpectedVersion("\ud800", 0)),
    "huge version": lambda: (note(), ExpectedVersion("s", 2**63)),
    "huge offset": lambda: (note(), NoEvent(tag="t", after=2**63)),
    "huge count": lambda: (note(), AtMost("s", 2**63, timedelta(1))),
    "no stream": lambda: (note(""),),
    "long stream": lambda: (note("s" * 256),),
    "long tag": lambda: (note(claimed=("t" * 256,)),),
    "id of a wrong type": lambda: (NewEvent(Noted(), "s", "x"),),  # type: ignore[arg-type]
    "same id twice": lambda: ([known_note(1), known_note(1)],),
    "naive time": lambda: (NewEvent(Noted(), "s", occurred_at=datetime(2026, 1, 1)),),  # noqa: DTZ001
    "time out of range": lambda: (
        NewEvent(Noted(), "s", occurred_at=datetime.max.replace(tzinfo=UTC)),
    ),
    "bad address": lambda: (NewEvent(Noted(), "s", metadata=Metadata(ip_address="1.2.3")),),
    "large metadata": lambda: (NewEvent(Noted(), "s", metadata=Metadata(actor="x" * 5000)),),
    "text of a wrong type": lambda: (note(text=5),),  # type: ignore[arg-type]
    "metadata of a wrong type": lambda: (
        NewEvent(Noted(), "s", metadata=Metadata(request_id=5)),  # type: ignore[arg-type]
    ),
    "unencodable": lambda: (note(text=object()),),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", BAD)
async def test_bad_input_fails_its_caller_only(database_url: str, kind: str) -> None:
    """A hundred good appends beside a bad one are all stored, and the bad one is not."""
    async with opened(database_url) as journal:
        good = [(known_note(("good", n), f"s{n % 5}"),) for n in range(100)]
        results = await at_once(journal, *good[:50], BAD[kind](), *good[50:])
        error = results.pop(50)
        assert isinstance(error, InvalidEvent)
        assert results == [Appended((n,)) for n in range(100)]
        assert [event.event_id for event in await read_all(journal)] == [
            an_id(("good", n)) for n in range(100)
        ]


async def test_refusals_fail_their_callers_only(database_url: str) -> None:
    """The same for what only the journal can refuse."""
    refused: list[tuple[NewEvent, *tuple[Condition, ...]]] = [
        (note("s0"), ExpectedVersion("s0", 1)),
        (note("s0"), NoEvent(stream="s0")),
        (note("s0"), AtMost("s0", 1, timedelta(hours=1))),
        (note("other", claimed=("name",)),),
        (known_note("first", text="other"),),
    ]
    async with opened(database_url) as journal:
        await journal.append([known_note("first"), note("s0", claimed=("name",)), note("s0")])
        good = [(note(f"s{n % 5}"),) for n in range(100)]
        results = await at_once(journal, *good[:50], *refused, *good[50:])
        assert all(isinstance(result, LedgerError) for result in results[50:55])
        assert results[:50] + results[55:] == [Appended((n,)) for n in range(3, 103)]


async def test_leaving_the_journal_stores_what_is_queued(database_url: str) -> None:
    """Closing waits for appends under way; none is lost."""
    async with opened(database_url) as journal:
        tasks = [asyncio.create_task(journal.append(note())) for _ in range(600)]
        await asyncio.sleep(0)
    assert len({(await task).offsets for task in tasks}) == 600
    async with opened(database_url) as journal:
        assert await journal.size() == 600


def test_ids_that_are_made_grow_with_time() -> None:
    """An event id that is left out is a UUIDv7, so that new ids sort after old ones."""
    ids: list[UUID] = [note().event_id for _ in range(100)]
    assert {event_id.version for event_id in ids} == {7}
    assert ids == sorted(ids)
