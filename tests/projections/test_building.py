"""What the processes of a rebuild write is the fold, wherever rows wait meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.codec import encode_metadata
from ledger.engine import make_engine
from ledger.event import Event, Metadata, RecordedEvent
from ledger.journal import Journal, open_journal
from ledger.lens import Lens
from ledger.settings import Settings, async_url
from ledger.stores import PackedEvents
from ledger.stores.opening import open_store
from projections import building, parking, snapshots
from projections.bookkeeping import side_checkpoints
from projections.building import Part, build
from projections.database import Database
from projections.groups import GROUPS, TRADING
from projections.loading import open_loaders
from projections.model import values_of
from projections.parking import SkippedEvent
from projections.projection import State
from projections.replaying import fold_prefix
from projections.security_audit_logs import security_audit_logs
from projections.users import users
from tests.projections.poison import at, poisoned, rows_by_key, some
from tests.projections.random_events import random_events
from tests.projections.support import (
    JOURNAL,
    JOURNAL_ID,
    START,
    append,
    record,
    tables_as_of,
)

PARTS = {
    "users": ("trading", ["users", "api_keys"]),
    "orders": ("trading", ["positions", "orders"]),
    "audit": ("trading", ["security_audit_logs"]),
    "all": ("trading", ["users", "api_keys", "positions", "orders", "security_audit_logs"]),
    "marks": ("marks", ["marks"]),
    "postings": ("postings", ["book_balances", "postings"]),
}


def through_lens(events: list[Event]) -> list[RecordedEvent]:
    """Return the events as a lens gives them."""
    recorded = record(events, metadata=Metadata(ip_address="192.0.2.7"))
    lens = Lens({type(each) for each in events}, envelope=True)
    return lens.decode(packed(recorded))


def packed(recorded: list[RecordedEvent]) -> PackedEvents:
    """Pack events as a store would."""
    return PackedEvents(
        [each.offset for each in recorded],
        b"[" + b",".join(each.body for each in recorded) + b"]",
        [str(each.event_id) for each in recorded],
        [each.occurred_at for each in recorded],
        [each.recorded_at for each in recorded],
        [each.stream for each in recorded],
        b"[" + b",".join(encode_metadata(e.metadata) or b"{}" for e in recorded) + b"]",
    )


def rows_of(state: State, group: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the rows of a state by the text of their keys, with ids as text."""
    return {
        name: {
            str(getattr(row, rows.projection.key)): {
                n: str(v) if isinstance(v, UUID) else v for n, v in values_of(row).items()
            }
            for row in group.finished(state, name)
        }
        for name, rows in state.tables.items()
    }


@given(seed=st.integers(0, 2**32), count=st.integers(1, 150))
@settings(max_examples=60, deadline=None)
def test_a_fold_through_a_lens_is_the_fold(seed: int, count: int) -> None:
    """Every group gives the very same rows for events that come through a lens."""
    events = random_events(Random(seed), count)
    recorded = record(events, metadata=Metadata(ip_address="192.0.2.7"))
    through = through_lens(events)
    for group in GROUPS.values():
        plain = group.state(JOURNAL_ID, JOURNAL)
        fast = group.state(JOURNAL_ID, JOURNAL, str)
        group.fold(plain, recorded)
        group.fold(fast, through)
        assert rows_of(fast, group) == rows_of(plain, group)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 120), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_part_of_a_group_folds_to_the_same(seed: int, count: int, data: st.DataObject) -> None:
    """What a part leaves out is never looked at."""
    recorded = record(random_events(Random(seed), count))
    whole = TRADING.state(JOURNAL_ID, JOURNAL)
    TRADING.fold(whole, recorded)
    names = [each.name for each in TRADING.projections]
    part = TRADING.only(data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True)))
    state = part.state(JOURNAL_ID, JOURNAL)
    part.fold(state, recorded)
    expected = rows_of(whole, TRADING)
    assert rows_of(state, part) == {name: expected[name] for name in state.tables}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rows leave memory again and again."""
    monkeypatch.setattr(building, "CHUNK_SIZE", 7)
    monkeypatch.setattr(building, "PIECE_SIZE", 3)
    monkeypatch.setattr(building, "RESTING_ROWS", 2)


@pytest.fixture
def histories(database_url: str) -> Settings:
    """A database with a journal of some hundred random events."""
    settings = Settings(database_url=database_url)

    async def fill() -> None:
        async with open_journal(settings) as journal:
            await append(journal, random_events(Random(5), 400))

    asyncio.run(fill())
    return settings


async def make_targets(settings: Settings, part: Part) -> None:
    """Make empty tables without indexes, and the row for the progress."""
    metadata = sa.MetaData()
    for name, target in part.targets.items():
        [table] = [p.table for g in GROUPS.values() for p in g.projections if p.name == name]
        columns = [sa.Column(c.name, c.type, nullable=c.nullable) for c in table.columns]
        sa.Table(target, metadata, *columns)
    engine = make_engine(async_url(settings.database_url), {})
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        row = {"name": part.name, "journal_id": part.journal_id, "size": 0}
        await connection.execute(side_checkpoints.insert().values(row))
    await engine.dispose()


async def read_targets(settings: Settings, part: Part) -> dict[str, dict[Any, dict[str, Any]]]:
    """Return the rows of the new tables by key."""
    found: dict[str, dict[Any, dict[str, Any]]] = {}
    group = GROUPS[part.group].at(part.targets)
    async with Database(settings) as database, database.engine.connect() as connection:
        for each in group.projections:
            if each.name in part.targets:
                rows = await connection.execute(sa.select(*each.table.columns))
                by_key = [(row[each.key], dict(row)) for row in rows.mappings()]
                assert len(by_key) == len(dict(by_key)), "a row was written twice"
                found[each.name] = dict(by_key)
    return found


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("rows_max", [3, 1000])
@pytest.mark.parametrize("name", list(PARTS))
def test_what_is_built_is_the_fold(histories: Settings, name: str, rows_max: int) -> None:
    """Rows that left memory early, or because it was full, come back when they are needed."""

    async def look() -> tuple[Part, Any]:
        async with open_journal(histories) as journal:
            size = await journal.size() - 13
            group, tables = PARTS[name]
            targets = {table: f"{table}__new" for table in tables}
            part = Part(name, journal.name, journal.journal_id, group, targets, size, rows_max)
            await make_targets(histories, part)
            return part, await tables_as_of(journal, GROUPS[group], size)

    part, expected = asyncio.run(look())
    built = build(histories, part)
    found = asyncio.run(read_targets(histories, part))
    assert found == {table: expected[table] for table in part.targets}
    assert built.rows == {table: len(rows) for table, rows in found.items()}


@pytest.mark.usefixtures("tiny")
def test_rows_that_are_made_share_by_share(histories: Settings) -> None:
    """An append-only table may be filled by several parts, each with the events of its own."""
    whole, state = asyncio.run(built_and_folded(histories, "audit"))
    reach = set[type[Event]]()
    for number, (looked_up, types) in enumerate(security_audit_logs.shares().items()):
        name = f"share {number}"
        asyncio.run(make_account(histories, name))
        types_of = {"security_audit_logs": types}
        part = msgspec.structs.replace(whole, name=name, types=types_of)
        group = TRADING.only(part.targets, part.types)
        assert {each.name for each in group.projections} - {"security_audit_logs"} >= set(looked_up)
        reach |= group.event_types
        build(histories, part)
    assert reach == TRADING.event_types
    assert asyncio.run(read_targets(histories, whole)) == expected_rows(whole, state)


async def make_account(settings: Settings, name: str) -> None:
    """Make the row for a part's progress."""
    async with Database(settings) as database, database.transaction() as connection:
        row = {"name": name, "journal_id": JOURNAL_ID, "size": 0}
        await connection.execute(side_checkpoints.insert().values(row))


HOSTILE = (
    None,
    "",
    "null",
    "NULL",
    "\\N",
    "\\",
    "\\\\n",
    'a "quoted" text',
    "a,b\n[c]\n[",
    "]\r\n[",
    "tab\tbell\x07",
    "ünï \U0001f4a9",
    "'",
    "\\.",
    "\u2028",
)


async def test_any_text_is_loaded_as_it_is(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Quotes, backslashes, line ends and words that mean NULL elsewhere come back unchanged."""
    part = Part("p", "main", 1, "trading", {"users": "users__new"}, 0)
    await make_targets(settings, part)
    rows = [
        users.row(
            journal_id=1,
            user_id=str(UUID(int=number)),
            username=text,
            email=text,
            permissions=[text, 1.5, {"a": text}],
            created_at=START,
            updated_at=START,
            changed_size=1,
        )
        for number, text in enumerate(HOSTILE)
    ]
    async with AsyncExitStack() as stack:
        loaders = await open_loaders(stack, journal, database, [users], part.targets)
        for half in (rows[:1], rows[1:]):
            await loaders["users"].put(half)
        await loaders["users"].finish()
        taken = await loaders["users"].take([str(UUID(int=1)), str(UUID(int=99))])
        assert [values_of(row)["username"] for row in taken] == [HOSTILE[1]]
        await loaders["users"].put(taken)
        await loaders["users"].finish()
    found = (await read_targets(settings, part))["users"]
    assert {key.int: row["username"] for key, row in found.items()} == dict(enumerate(HOSTILE))
    for row in found.values():
        text = row["username"]
        assert (row["email"], row["permissions"]) == (text, [text, 1.5, {"a": text}])


async def built_and_folded(
    settings: Settings, name: str, journal_name: str = JOURNAL, size: int | None = None
) -> tuple[Part, State]:
    """Make empty targets of a part unless they exist, and fold what they should hold."""
    async with open_journal(settings, journal_name) as journal, Database(settings) as database:
        size = await journal.size() if size is None else size
        group_name, tables = PARTS[name]
        targets = {table: f"{table}__new" for table in tables}
        part = Part(name, journal.name, journal.journal_id, group_name, targets, size)
        await make_targets(settings, part)
        group = GROUPS[group_name].only(tables)
        async with database.snapshot() as connection:
            rulings = await parking.rulings(connection, journal.journal_id, group, poisoned=False)
        return part, await fold_prefix(journal, group, size, rulings=rulings)


def expected_rows(part: Part, state: State) -> dict[str, dict[Any, dict[str, Any]]]:
    """Return the rows of the part's own tables."""
    rows = rows_by_key(GROUPS[part.group].only(part.targets), state)
    return {table: rows[table] for table in part.targets}


def test_a_poisoned_event_parks_whom_it_concerns(
    histories: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before it raised is cleared, and the guarded fold fills the tables."""
    places = some(TRADING, 3, 400, 6) + [("orders", n) for n in range(300, 320)]
    monkeypatch.setitem(GROUPS, "trading", poisoned(TRADING, at(*places)))
    monkeypatch.setattr(building, "RESTING_ROWS", 2)
    part, state = asyncio.run(built_and_folded(histories, "orders"))
    assert {lane.table for lane in state.parking.lanes} >= {"orders", "positions"}
    build(histories, part)
    assert asyncio.run(read_targets(histories, part)) == expected_rows(part, state)

    async def noted() -> dict[Any, Any]:
        async with Database(histories) as database, database.snapshot() as connection:
            return (await parking.load(connection, part.journal_id, part.name)).lanes

    own = {lane: each for lane, each in state.parking.lanes.items() if lane.table in part.targets}
    assert asyncio.run(noted()) == own != {}


def test_skipped_events_are_left_out(histories: Settings) -> None:
    """A rebuild leaves out what somebody has skipped."""

    async def decide() -> None:
        async with Database(histories) as database, database.transaction() as connection:
            for offset in range(0, 400, 3):
                names = (
                    "trading",
                    "orders",
                    offset,
                    UUID(int=1),
                    "X",
                    None,
                    "because",
                    None,
                    START,
                )
                await parking.record_skip(connection, JOURNAL_ID, SkippedEvent(*names))

    asyncio.run(decide())
    part, state = asyncio.run(built_and_folded(histories, "orders"))
    plain = asyncio.run(tables_as_of_journal(histories))
    build(histories, part)
    found = asyncio.run(read_targets(histories, part))
    assert found == expected_rows(part, state) != {t: plain[t] for t in part.targets}


async def tables_as_of_journal(settings: Settings) -> dict[str, dict[Any, dict[str, Any]]]:
    """Return the tables of the trading group without any skips."""
    async with open_journal(settings) as journal:
        return await tables_as_of(journal, TRADING, await journal.size())


def test_a_snapshot_is_gone_on_from(histories: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tail is read where the state was kept, and the rows are the same."""

    async def keep() -> None:
        async with open_journal(histories) as journal, Database(histories) as database:
            await snapshots.take(database, journal, TRADING, 250)

    asyncio.run(keep())
    monkeypatch.setattr(building, "RESTING_ROWS", 2)
    part, state = asyncio.run(built_and_folded(histories, "orders"))
    starts: list[int] = []
    read = Journal.read_lens

    def noting(self: Journal, lens: Lens, start: int, stop: int) -> Any:
        starts.append(start)
        return read(self, lens, start, stop)

    monkeypatch.setattr(Journal, "read_lens", noting)
    build(histories, part)
    assert min(starts) == 250
    assert asyncio.run(read_targets(histories, part)) == expected_rows(part, state)


@pytest.mark.usefixtures("tiny")
def test_journals_share_a_table(histories: Settings) -> None:
    """Rows with equal keys in two journals do not meet, also where they leave and come back."""

    async def another() -> None:
        store = open_store(histories)
        await store.create_journal("other")
        await store.close()
        async with open_journal(histories, "other") as journal:
            await append(journal, random_events(Random(5), 300))

    asyncio.run(another())
    first, state = asyncio.run(built_and_folded(histories, "orders"))
    build(histories, first)
    before = asyncio.run(read_targets(histories, first))
    assert before == expected_rows(first, state)
    second = msgspec.structs.replace(first, name="second", journal="other", journal_id=2, size=300)
    build(histories, second)

    async def of_journal(journal_id: int) -> dict[str, int]:
        async with Database(histories) as database, database.snapshot() as connection:
            counts = {}
            for each in GROUPS["trading"].at(first.targets).projections:
                if each.name in first.targets:
                    own = each.table.c.journal_id == journal_id
                    count = sa.select(sa.func.count()).select_from(each.table).where(own)
                    counts[each.name] = (await connection.execute(count)).scalar_one()
            return counts

    expected = {table: len(rows) for table, rows in before.items()}
    assert asyncio.run(of_journal(1)) == expected
    assert asyncio.run(of_journal(2)) != expected
