"""The command lines `replay.py` and `projections`, as their users see them."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest

from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections.database import Database
from projections.groups import GROUPS, TABLES, TRADING
from projections.projector import Projector
from tests.ledger.support import Clock, environment
from tests.projections.random_events import random_events
from tests.projections.support import Run, append, assert_live_is_replay, fill, tables_as_of
from tests.support import programs

POINTS = 50
MICROSECOND = timedelta(microseconds=1)


def test_as_of_prints_the_fold_of_a_prefix(run: Run, sqlite_url: str) -> None:
    """JSON holds every table's rows as of the size, amounts and times as text."""
    fill(sqlite_url, random_events(Random(1), 80))
    code, output, _ = run("replay", "as-of", "--size", "50", "--format", "json")
    answer = json.loads(output)
    assert code == 0
    assert (answer["journal"], answer["size"]) == ("main", 50)
    assert answer["tables"].keys() == TABLES.keys()

    async def expected() -> dict[str, Any]:
        async with open_journal(Settings(database_url=sqlite_url)) as journal:
            return await tables_as_of(journal, TRADING, 50)

    for name, rows in asyncio.run(expected()).items():
        keys = {str(key) for key in rows}
        assert {row[TABLES_KEYS[name]] for row in answer["tables"][name]} == keys


TABLES_KEYS = {each.name: each.key for group in TABLES.values() for each in group.projections}


def test_as_of_a_time_counts_the_events_until_then(run: Run, sqlite_url: str) -> None:
    """A past time is resolved to the size at that time; one in the future is provisional."""
    fill(sqlite_url, random_events(Random(1), 10))
    past = run("replay", "as-of", "--recorded", "2020-01-01T00:00:00Z")
    assert "size 0, recorded at or before 2020-01-01T00:00:00.000000Z\n" in past[1]
    future = run("replay", "as-of", "--recorded", "2100-01-01T00:00:00+02:00", "--format", "json")
    assert json.loads(future[1])["provisional"]
    assert json.loads(future[1])["size"] == 10


async def append_in_time(journal: Journal, clock: Clock, random: Random) -> list[datetime]:
    """Append a history, some events at the same time; return the times of recording."""
    events = random_events(random, 300)
    while events:
        count = random.randrange(1, 6)
        await append(journal, events[:count])
        events = events[count:]
        clock.move(random.choice((0, 0.000001, 0.5, 60)))
    return [event.recorded_at async for event in journal.read()]


def picked_times(random: Random, recorded: list[datetime]) -> list[datetime]:
    """Return times in order: before the first, between events, and exactly at some of them."""
    exact = random.sample(recorded, 15)
    seconds = (recorded[-1] - recorded[0]).total_seconds()
    between = [
        recorded[0] + timedelta(seconds=random.uniform(0, seconds))
        for _ in range(POINTS - 1 - 3 * len(exact))
    ]
    near = [moment + step for moment in exact for step in (-MICROSECOND, MICROSECOND)]
    return sorted([recorded[0] - timedelta(seconds=1), *exact, *near, *between])


async def test_any_time_is_the_size_at_that_time(settings: Settings) -> None:
    """As of a time are the events recorded until then, and a projector stopped there agrees."""
    random, clock = Random(8), Clock()
    async with (
        open_journal(settings, clock=clock) as journal,
        Database(settings) as database,
    ):
        recorded = await append_in_time(journal, clock, random)
        assert 50 < len(set(recorded)) < len(recorded)
        times = picked_times(random, recorded)
        assert len(times) == POINTS
        for moment in times:
            size = (await journal.size_at(moment)).size
            assert size == sum(each <= moment for each in recorded)
            for group in GROUPS.values():
                await Projector(database, journal, group).catch_up(size)
                assert await assert_live_is_replay(journal, database, group) == size


def test_the_program_finds_the_size_at_a_time(database_url: str) -> None:
    """`replay.py as-of --recorded` at an event's very time holds it and those of the same time."""

    async def work() -> tuple[datetime, int, dict[str, Any]]:
        settings, clock = Settings(database_url=database_url), Clock()
        async with open_journal(settings, clock=clock) as journal:
            recorded = await append_in_time(journal, clock, Random(9))
            moment = recorded[150]
            size = sum(each <= moment for each in recorded)
            return moment, size, await tables_as_of(journal, TRADING, size)

    moment, size, expected = asyncio.run(work())
    asked = ("as-of", "--recorded", moment.isoformat(), "--format=json")
    done = programs.run("replay.py", *asked, environment=environment(database_url))
    assert (done.returncode, done.stderr) == (0, b"")
    answer = json.loads(done.stdout)
    assert (answer["size"], answer["provisional"]) == (size, False)
    assert datetime.fromisoformat(answer["recorded_at"]) == moment
    for name, rows in expected.items():
        found = {row[TABLES_KEYS[name]]: row for row in answer["tables"][name]}
        assert found.keys() == {str(key) for key in rows}
        changed = {key: row["changed_size"] for key, row in found.items()}
        assert changed == {str(key): row["changed_size"] for key, row in rows.items()}


def test_rows_are_chosen_by_their_columns(run: Run, sqlite_url: str) -> None:
    """--where keeps rows with equal values, amounts compared as numbers."""
    fill(sqlite_url, random_events(Random(1), 80))
    options = ("as-of", "--size", "80", "--table", "orders", "--format", "json")
    everything = json.loads(run("replay", *options)[1])["tables"]["orders"]
    chosen = json.loads(run("replay", *options, "--where", "status=executed")[1])["tables"]
    assert chosen["orders"] == [row for row in everything if row["status"] == "executed"]
    none_filled = run("replay", *options, "--where", "filled_quantity=0.00")[1]
    wanted = [row for row in everything if row["filled_quantity"] == "0"]
    assert json.loads(none_filled)["tables"]["orders"] == wanted


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["as-of"], "either --size or --recorded"),
        (["as-of", "--size", "6"], "holds only 5 events"),
        (["as-of", "--recorded", "2026-01-01T00:00:00"], "no time zone"),
        (["as-of", "--recorded", "yesterday"], "not an ISO 8601 time"),
        (["as-of", "--size", "1", "--table", "nothing"], "users, api_keys, positions"),
        (["as-of", "--size", "1", "--table", "marks", "--where", "size=1"], "token, price"),
        (["as-of", "--size", "1", "--journal", "other"], "no journal is named 'other'"),
    ],
)
def test_bad_requests_are_refused(
    run: Run, sqlite_url: str, arguments: list[str], reason: str
) -> None:
    """What cannot be answered ends with code 2 and one line that says why."""
    fill(sqlite_url, random_events(Random(1), 5))
    code, output, errors = run("replay", *arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert reason in errors


def test_verify_says_so_and_names_differences(run: Run, sqlite_url: str) -> None:
    """Right tables end with code 0 and `verified`, changed ones with code 1 and the changes."""
    fill(sqlite_url, random_events(Random(1), 60))
    code, output, _ = run("projections", "run", "--once")
    assert code == 0
    assert "trading: 60 events" in output
    code, output, _ = run("replay", "verify")
    assert (code, output.startswith("verified: 60 events")) == (0, True)
    change(sqlite_url, "UPDATE orders SET status = 'failed', failed_reason = 'nobody knows'")
    code, output, _ = run("replay", "verify")
    assert code == 1
    assert "failed_reason: journal: -; table: nobody knows" in output


def change(url: str, statement: str) -> None:
    """Change the tables behind the projector's back."""

    async def work() -> None:
        async with (
            Database(Settings(database_url=url)) as database,
            database.transaction() as connection,
        ):
            await connection.exec_driver_sql(statement)

    asyncio.run(work())


def test_status_shows_how_far_behind_a_group_is(run: Run, sqlite_url: str) -> None:
    """The lag is counted in events, and in seconds since the first one that is missing."""
    fill(sqlite_url, random_events(Random(1), 20))
    run("projections", "run", "--once", "--group", "marks")
    code, output, _ = run("projections", "status", "--json")
    trading, marks, postings = json.loads(output)
    assert code == 0
    assert (trading["group"], trading["checkpoint"], trading["lag_events"]) == ("trading", 0, 20)
    assert 0 < trading["lag_seconds"] < timedelta(hours=1).total_seconds()
    assert (marks["checkpoint"], marks["lag_events"], marks["lag_seconds"]) == (20, 0, 0)
    assert (postings["group"], postings["lag_events"]) == ("postings", 20)
    assert "trading" in run("projections", "status")[1]


def test_a_database_that_is_away_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a database the exit code is 3, with one line that says so."""
    monkeypatch.setenv("LEDGER_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    for command in (("replay", "verify"), ("projections", "status")):
        code, output, errors = run(*command)
        assert (code, output, errors.count("\n")) == (3, "", 1)
