"""The short form of `make faults`: a few faults of each kind; and the check itself can fail."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults import __main__ as program
from tests.faults.account import Account, history
from tests.faults.bench import Bench, Tally
from tests.faults.checking import Broken, hold_acknowledged, hold_cleared, hold_whole
from tests.faults.proxy import Messages
from tests.faults.runner import SCENARIOS, SQLITE, Grounds, Scenario, grounds
from tests.projections.support import an_id

SEED = "1"


@pytest.fixture(scope="module")
def places() -> Iterator[Grounds]:
    """Where databases come from."""
    with grounds() as found:
        yield found


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.title)
async def test_a_few_faults(places: Grounds, scenario: Scenario) -> None:
    """After each, what was acknowledged is there once, nothing is half there, all is verified."""
    tally = await places.play(scenario, SEED, scenario.short)
    if not tally.total:
        pytest.skip("; ".join(tally.skipped.values()))
    assert tally.acknowledged[scenario.store] > 0


@pytest.fixture
async def bench(sqlite_url: str, tmp_path: Path) -> Bench:
    """A database in which something was appended, projected and checked."""
    bench = Bench(SQLITE, sqlite_url, tmp_path, SEED)
    for _ in range(4):
        await bench.settle("nothing")  # appends one mark
    return bench


def spoil(bench: Bench, script: str) -> None:
    """Change the file behind everybody's back."""
    with closing(sqlite3.connect(bench.url.removeprefix("sqlite:///"))) as connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        drops = [f"DROP TRIGGER {name};" for (name,) in triggers]
        connection.executescript("".join(drops) if "event" in script else "")
        connection.executescript(script)


SPOILT = {
    "lost at the end": (
        'DELETE FROM events WHERE "offset" = 3; UPDATE journals SET size = 3;',
        "does not begin with what it held",
    ),
    "lost in between": ('DELETE FROM events WHERE "offset" = 1;', "not sound"),
    "another": (
        """INSERT INTO events (journal_id, "offset", event_id, stream, version, type,
            schema_version, occurred_at, recorded_at, body)
        SELECT journal_id, 4, '00000000-0000-0000-0000-000000000001', 'other', 1, type,
            schema_version, occurred_at, recorded_at, body FROM events WHERE "offset" = 3;
        UPDATE journals SET size = 5;""",
        "nobody has appended",
    ),
    "a row": ("UPDATE marks SET price = '7';", "not verified: marks"),
    "a row twice": (
        "INSERT INTO marks SELECT journal_id, 'BTC', price, exact_price, source, marked_at, flags,"
        " changed_size FROM marks LIMIT 1;",
        "not verified: marks",
    ),
    "a checkpoint": ("UPDATE checkpoints SET size = 99;", "not verified: checkpoints"),
    "an index": ("DROP INDEX ix_orders_journal_id_user_id_created_at;", "tables have changed"),
    "a half swap": (
        "ALTER TABLE marks RENAME TO marks__old; CREATE TABLE marks AS SELECT * FROM marks__old;",
        "nobody would remove marks__old",
    ),
    "a reference": (
        "PRAGMA foreign_keys = OFF; INSERT INTO side_tables SELECT 'marks__old', 'marks', 'marks',"
        " 'old', '1', '2026-01-01T00:00:00.000000Z'; CREATE TABLE marks__old (x);"
        " CREATE TABLE marks__new_0123abcd (x);",
        "nobody would remove marks__new_0123abcd",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
async def test_the_check_notices(bench: Bench, what: str) -> None:
    """Whatever is lost, doubled, altered or left half done breaks the run."""
    script, message = SPOILT[what]
    spoil(bench, script)
    with pytest.raises(Broken, match=message):
        await bench.check()


async def test_what_a_rebuild_leaves_is_noticed(bench: Bench) -> None:
    """A table beside the live ones must be one that is kept on purpose."""
    async with bench.opened() as (_, database):
        await hold_cleared(database)
        spoil(bench, "CREATE TABLE marks__new_0123abcd (x);")
        with pytest.raises(Broken, match="left behind"):
            await hold_cleared(database)


async def test_a_process_that_ends_by_itself_is_noticed(bench: Bench) -> None:
    """Only who was killed is started again."""
    bench.start_worker("worker")
    try:
        bench.process("worker").send(signal.SIGTERM)
        bench.process("worker").wait()
        with pytest.raises(Broken, match="worker has ended by itself"):
            await bench.settle("nothing")
    finally:
        bench.end()


def test_what_was_acknowledged_must_be_where_it_was_said_to_be() -> None:
    """Neither elsewhere nor nowhere."""
    one = an_id("one")
    hold_acknowledged({one: 3}, {one: 3})
    for offsets in ({one: 4}, {}):
        with pytest.raises(Broken, match="was acknowledged at 3"):
            hold_acknowledged({one: 3}, offsets)


def test_appends_are_whole() -> None:
    """All events of an append, or none, next to each other and in order."""
    one, two = an_id("one"), an_id("two")
    hold_whole([[one, two]], {one: 3, two: 4})
    hold_whole([[one, two]], {})
    broken: tuple[dict[UUID, int], ...] = ({one: 3}, {two: 3}, {one: 4, two: 3}, {one: 3, two: 5})
    for offsets in broken:
        with pytest.raises(Broken, match="of an append of 2 events"):
            hold_whole([[one, two]], offsets)


def test_a_successor_appends_the_same(tmp_path: Path) -> None:
    """A writer's history is the same each time, and its account outlives it."""
    first, again = (list(islice(history("writer"), 50)) for _ in range(2))
    assert first == again
    Account(tmp_path).note_try(first[0])
    assert Account(tmp_path).tries() == [[each.event_id for each in first[0]]]


@given(st.lists(st.binary(max_size=9), min_size=1), st.integers(1, 30))
def test_messages_are_found_however_they_arrive(bodies: list[bytes], piece: int) -> None:
    """The borders of messages do not depend on those of what is received."""
    lengths = [(len(body) + 4).to_bytes(4, "big") for body in bodies]
    sent = [length + body for length, body in zip(lengths, bodies, strict=True)]
    sent = [sent[0], *(b"Q" + each for each in sent[1:])]
    stream, messages = b"".join(sent), Messages(untyped=1)
    parts = [stream[at : at + piece] for at in range(0, len(stream), piece)]
    found = [message for part in parts for message in messages.feed(part)]
    assert [message for _, message in found] == sent
    assert [kind for kind, _ in found] == [0] + [ord("Q")] * (len(sent) - 1)


def test_a_run_tells_its_seed_and_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    """Each run prints its seed, each scenario a line, and in the end there is a table."""
    assert program.main(["--seed", "7", "--short", "--only", "append-sqlite"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("seed 7\nappend-sqlite: 3 faults, ")
    assert "| appender killed at a statement of an append | 3 |  |" in told


def test_a_broken_run_fails_and_tells_its_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What does not hold ends the run with 1, and its seed is said again."""

    async def play_all(*_: object, **__: object) -> Tally:
        raise Broken("an event is lost")

    monkeypatch.setattr(program, "play_all", play_all)
    assert program.main(["--seed", "5", "--runs", "3"]) == 1
    assert "BROKEN with seed 5: an event is lost" in capsys.readouterr().err
