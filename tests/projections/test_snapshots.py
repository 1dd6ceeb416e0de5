"""Snapshots: they give what a fold from the first event gives, or are not used."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from random import Random
from time import monotonic
from typing import Any
from uuid import UUID

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import replay
from ledger import console
from ledger.errors import StoreUnavailable
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections import fold_hash, parking, snapshot_format
from projections import snapshots as snapshotting
from projections.bookkeeping import parked_keys, skipped_events, snapshot_chunks, snapshots
from projections.database import Database
from projections.fold import Group
from projections.groups import GROUPS, MARKS, POSTINGS, TRADING
from projections.lanes import Lane, Parked, Parking
from projections.model import values_of
from projections.projection import Rows, State, itself
from projections.replaying import fold_prefix
from projections.snapshot_format import Damaged, Inexact, pack, unpack
from projections.snapshots import (
    Beginning,
    Snapshot,
    SnapshotRefused,
    Taking,
    drop,
    kept_part,
    listed,
    load,
    put_meant_last,
    take,
    take_in,
)
from projections.users import users
from tests.ledger.support import ROOT
from tests.postgres import PostgresServer
from tests.projections import snapshot_takers
from tests.projections.random_events import random_events
from tests.projections.support import JOURNAL, JOURNAL_ID, an_id, append, record

Run = Callable[..., tuple[int, str, str]]

SEEDS, COUNTS = st.integers(0, 2**32), st.integers(1, 60)
NAME = "a snapshot"
KEPT = kept_part(TRADING)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep few rows in a chunk, so that every table of a test has many."""
    monkeypatch.setattr(snapshot_format, "CHUNK_ROWS", 3)


def exact(value: Any) -> Any:
    """Return what tells apart what `==` does not: digits and exponents, zones, bool and int."""
    if isinstance(value, Decimal):
        return value.as_tuple()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        return str(value)
    return type(value), value


def inside(state: State) -> dict[str, Any]:
    """Return all that a state holds, in its order, and which row each alias finds.

    Not by those that mean some rows only: a fold does not rely on what else they find.
    """
    found: dict[str, Any] = {}
    for name, rows in state.tables.items():
        key = rows.projection.key
        found[name] = [{n: exact(v) for n, v in values_of(row).items()} for row in rows]
        found[f"{name} changed"] = [getattr(row, key) for row in rows.changed.values()]
        for alias in rows.projection.aliases:
            values = {getattr(row, alias.column) for row in rows} | {None}
            latest = {value: rows.find(alias.column, value) for value in values}
            if not alias.where:
                found[f"{name} by {alias.column}"] = {
                    value: row and getattr(row, key) for value, row in latest.items()
                }
    return found


def assert_meant_are_found(rows: Rows[Any]) -> None:
    """Check that what an alias means is found by it, whatever other rows have the value."""
    for alias in rows.projection.aliases:
        for row in rows:
            value = getattr(row, alias.column)
            if value is not None and alias.is_meant(row):
                assert rows.find(alias.column, value) is row


def kept_and_restored(state: State, part: Group, as_id: Callable[..., Any] = itself) -> State:
    """Return what comes back of a state from the chunks of a snapshot."""
    again = part.state(JOURNAL_ID, JOURNAL, as_id)
    for name, rows in state.tables.items():
        last: list[bool] = []
        for number, body in enumerate(pack(rows.projection, rows, NAME)):
            chunk, is_last = unpack(rows.projection, body, NAME, number, as_id)
            take_in(again.tables[name], chunk)
            last.append(is_last)
        put_meant_last(again.tables[name])
        assert_meant_are_found(again.tables[name])
        assert [*last[:-1], not last[-1]] == [False] * len(last)
    return again


@hypothesis_settings(max_examples=25, deadline=None)
@given(SEEDS, COUNTS)
@example(10990559, 48)  # an open cycle, after which another row of its book was made
def test_a_tail_on_a_restored_state_is_a_fold_from_the_start(seed: int, count: int) -> None:
    """Whatever the history and wherever it is cut, not even the digits of a zero differ."""
    recorded = record(random_events(Random(seed), count))
    for part in (KEPT, MARKS):
        whole = part.state(JOURNAL_ID, JOURNAL)
        part.fold(whole, recorded)
        begun = part.state(JOURNAL_ID, JOURNAL)
        for cut, event in enumerate(recorded, 1):
            part.fold(begun, [event])
            again = kept_and_restored(begun, part)
            assert inside(again) == inside(begun)
            part.fold(again, recorded[cut:])
            assert inside(again) == inside(whole)


def test_finished_rows_come_from_a_restored_state_too() -> None:
    """Derived columns and their flags are set on the rows of a snapshot as on all others."""
    recorded = record(random_events(Random(5), 300, odd_chance=0.3))
    state = KEPT.state(JOURNAL_ID, JOURNAL)
    KEPT.fold(state, recorded)
    again = kept_and_restored(state, KEPT)
    for table in state.tables:
        expected = [values_of(row) for row in KEPT.finished(state, table)]
        assert [values_of(row) for row in KEPT.changed(again, table)] == expected
    assert any("amount_too_large" in str(row["flags"]) for row in inside(state)["orders"])


def test_ids_are_text_where_a_fold_has_them_so() -> None:
    """For a state whose ids are text, a snapshot gives every id as text, and all else the same."""
    state = KEPT.state(JOURNAL_ID, JOURNAL)
    KEPT.fold(state, record(random_events(Random(5), 100)))
    again = kept_and_restored(state, KEPT, as_id=str)
    for table, rows in state.tables.items():
        expected = [
            {name: str(v) if isinstance(v, UUID) else v for name, v in values_of(row).items()}
            for row in rows
        ]
        assert [values_of(row) for row in again.tables[table]] == expected


@pytest.mark.parametrize(
    "value",
    ["1E+3", "-0.00", "0E-20", "12.500", "9" * 50 + "." + "1" * 29, "1E-60"],
)
def test_amounts_keep_their_digits(value: str) -> None:
    """Exponents, trailing zeros and the sign of zero are there again."""
    row = MARKS.projections[0].row(journal_id=1, token="SOL", exact_price=Decimal(value))
    [body] = pack(MARKS.projections[0], [row], NAME)
    [again], _ = unpack(MARKS.projections[0], body, NAME, 0)
    assert exact(again.exact_price) == exact(Decimal(value))


def test_times_and_json_come_back_as_they_were() -> None:
    """Aware times keep microseconds and zone; JSON keeps large numbers, order and nothing else."""
    values = {"user_id": an_id("user"), "created_at": datetime(1, 1, 2, 3, 4, 5, 678901, UTC)}
    flags = {"z": 10**30, "a": {"b": [1, 1.5, None, True, "é\u2028"]}}
    row = users.row(journal_id=1, permissions=flags, **values)
    [body] = pack(users, [row], NAME)
    [again], _ = unpack(users, body, NAME, 0)
    assert (again, again.created_at.tzinfo) == (row, UTC)
    assert list(again.permissions) == ["z", "a"]


@pytest.mark.parametrize("value", [("a", "b"), Decimal(1), {1: "one"}, an_id("user")])
def test_what_would_not_come_back_is_refused(value: object) -> None:
    """A value that JSON has no form for is an error when it is kept, not a surprise later."""
    row = users.row(journal_id=1, user_id=an_id("user"), permissions=value)
    with pytest.raises(Inexact, match="users"):
        list(pack(users, [row], NAME))


def chunk() -> bytes:
    """Return a chunk of one row."""
    [body] = pack(users, [users.row(journal_id=1, user_id=an_id("user"))], NAME)
    return body


@given(st.integers(0, len(chunk()) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(place: int, change: int) -> None:
    """No byte of a chunk can be another without being told."""
    body = bytearray(chunk())
    body[place] ^= change
    with pytest.raises(Damaged, match="chunk 0 of users"):
        unpack(users, bytes(body), NAME, 0)


def test_chunks_cannot_stand_in_for_each_other() -> None:
    """One of another snapshot, of another number, cut off, or none at all, is told as damaged."""
    for body, name, number in (
        (chunk(), "another", 0),
        (chunk(), NAME, 1),
        (chunk()[:-1], NAME, 0),
        (chunk()[:5], NAME, 0),
        (b"", NAME, 0),
        (None, NAME, 0),
    ):
        with pytest.raises(Damaged, match=f"chunk {number} of users"):
            unpack(users, body, name, number)


async def filled(journal: Journal, count: int = 120, seed: int = 1) -> int:
    """Append a random history; return the journal's size."""
    return await append(journal, random_events(Random(seed), count))


async def assert_same(journal: Journal, database: Database, size: int, begun_at: int) -> None:
    """Fold with snapshots and without; they agree, and the first began at `begun_at` (0: none)."""
    begin = Beginning(database)
    async with database.snapshot() as connection:
        rulings = await parking.rulings(connection, journal.journal_id, KEPT)
    found = await fold_prefix(journal, KEPT, size, begin=begin, rulings=rulings)
    assert inside(found) == inside(await fold_prefix(journal, KEPT, size, rulings=rulings))
    assert begin.sizes.get("trading", 0) == begun_at


async def test_the_latest_snapshot_up_to_a_size_is_used(
    journal: Journal, database: Database
) -> None:
    """Of several the latest that is not beyond the point is taken; without them all is the same."""
    end = await filled(journal)
    for size in (70, 30):
        kept = await take(database, journal, TRADING, size)
        assert (kept.group, kept.size, kept.stale) == ("trading", size, None)
        assert kept.rows == sum(map(len, (await fold_prefix(journal, KEPT, size)).tables.values()))
    for size, begun_at in ((end, 70), (70, 70), (69, 30), (30, 30), (29, 0), (0, 0)):
        await assert_same(journal, database, size, begun_at)
    await drop(database, journal, await listed(database, journal))
    assert await rows_of(database, snapshots) == await rows_of(database, snapshot_chunks) == 0
    await assert_same(journal, database, end, 0)


async def rows_of(database: Database, table: sa.Table) -> int:
    """Return how many rows a table has."""
    async with database.snapshot() as connection:
        query = sa.select(sa.func.count()).select_from(table)
        return int((await connection.execute(query)).scalar_one())


async def test_a_part_needs_its_own_tables_only(journal: Journal, database: Database) -> None:
    """Users come from a snapshot of the whole group; what has the audit log in it does not."""
    size = await filled(journal)
    await take(database, journal, TRADING, 80)
    for names, begun_at in (
        (["users"], 80),
        (["api_keys"], 80),
        (["orders"], 80),
        (["security_audit_logs"], None),
        (["users", "security_audit_logs"], None),
    ):
        part = TRADING.only(names)
        found = await load(database, journal, part, size)
        assert (found and found[1]) == begun_at
        if found is not None:
            assert inside(found[0]) == inside(await fold_prefix(journal, part, 80))


async def test_progress_counts_what_a_snapshot_spares(journal: Journal, database: Database) -> None:
    """As many events are told of as the fold is for, and chunks as they are written."""
    end = await filled(journal)
    await take(database, journal, TRADING, 50)
    events: list[int] = []
    chunks: list[int] = []
    await take(database, journal, TRADING, end, events.append, chunks.append)
    assert (events[0], sum(events)) == (50, end)
    assert sum(chunks) == await rows_of(database, snapshot_chunks) - await chunks_at(database, 50)


async def chunks_at(database: Database, size: int) -> int:
    """Return how many chunks the snapshot at a size has."""
    async with database.snapshot() as connection:
        query = sa.select(sa.func.count()).where(snapshot_chunks.c.size == size)
        return int((await connection.execute(query)).scalar_one())


async def test_a_snapshot_that_is_there_is_left_alone(journal: Journal, database: Database) -> None:
    """Taking one again writes nothing; taking one that is stale or damaged replaces it."""
    await filled(journal)
    kept = await take(database, journal, TRADING, 60)
    assert await take(database, journal, TRADING, 60) == kept
    await change(database, snapshot_chunks.update().values(body=b"damaged"))
    again = await take(database, journal, TRADING, 60)
    assert (again.rows, again.bytes) == (kept.rows, kept.bytes)
    assert again.made_at > kept.made_at
    await assert_same(journal, database, 100, 60)


async def test_a_snapshot_from_before_an_erasure_is_not_used(
    journal: Journal, database: Database
) -> None:
    """It holds what was erased; one of a group that knows nothing of people stays good."""
    await filled(journal)
    database.settings.key_cache_seconds = 0.2
    for group in (TRADING, MARKS):
        await take(database, journal, group)
    started = monotonic()
    await journal.privacy.destroy(f"user-{an_id('user')}")
    stale = {each.group: each.stale for each in await listed(database, journal)}
    assert stale == {"trading": "it is from before an erasure", "marks": None}
    assert await load(database, journal, KEPT, await journal.size()) is None
    await drop(database, journal, await listed(database, journal, ["trading"]))
    assert (await take(database, journal, TRADING)).stale is None
    assert monotonic() - started >= 0.2  # so long somebody's key may be remembered


async def test_an_erasure_while_it_is_taken_is_noticed(
    journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was folded before has values that are to be gone."""
    await filled(journal)

    async def fold_and_erase(*arguments: Any) -> State:
        state = await fold_prefix(*arguments)
        await journal.privacy.destroy(f"user-{an_id('user')}")
        return state

    monkeypatch.setattr("projections.snapshots.fold_prefix", fold_and_erase)
    with pytest.raises(SnapshotRefused, match="or people erased"):
        await take(database, journal, TRADING)


async def change(database: Database, statement: sa.Executable) -> None:
    """Change what is stored behind everybody's back."""
    async with database.transaction() as connection:
        await connection.execute(statement)


def other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the group declare another version of its fold."""
    monkeypatch.setitem(GROUPS, "trading", Group("trading", *TRADING.projections, fold_version="x"))


def other_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a table have a column of another type."""
    changed = TRADING.projections[0].at("users")
    changed.table.c.username.type = sa.Text()
    projections = (changed, *TRADING.projections[1:])
    group = Group("trading", *projections, fold_version=TRADING.fold_version)
    monkeypatch.setitem(GROUPS, "trading", group)


def other_source(monkeypatch: pytest.MonkeyPatch, name: str = "ledger.domain.order_stages") -> None:
    """Let a module that the fold needs have another source."""
    before = fold_hash.source
    monkeypatch.setattr(fold_hash, "source", lambda module: before(module) + "#" * (module == name))
    fold_hash.fold_hash.cache_clear()


@pytest.fixture
def fresh_hashes() -> Iterator[None]:
    """Forget the hashes of what a test has changed."""
    yield
    fold_hash.fold_hash.cache_clear()


@pytest.mark.usefixtures("fresh_hashes")
@pytest.mark.parametrize("change_fold", [other_version, other_column, other_source])
async def test_another_fold_trusts_nothing(
    journal: Journal,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    change_fold: Callable[[pytest.MonkeyPatch], None],
) -> None:
    """With another version, column or source, snapshots are ignored and listed as stale."""
    size = await filled(journal)
    kept = await take(database, journal, TRADING, 60)
    change_fold(monkeypatch)
    part = kept_part(GROUPS["trading"])
    assert await load(database, journal, part, size) is None
    [stale] = await listed(database, journal)
    assert stale == msgspec.structs.replace(kept, stale="the fold has changed")


async def test_a_group_of_another_version_gets_none(journal: Journal, database: Database) -> None:
    """Who folds by another version than this program's groups gets no snapshot of theirs."""
    await filled(journal)
    await take(database, journal, TRADING, 60)
    other = Group("trading", *KEPT.projections, fold_version="other")
    unknown = Group("unknown", *KEPT.projections)
    assert await load(database, journal, other, 60) is None
    assert await load(database, journal, unknown, 60) is None


@pytest.mark.usefixtures("fresh_hashes")
@pytest.mark.parametrize(
    "module",
    [
        "projections.orders",
        "projections.fold",
        "projections.guarding",
        "projections.projection",
        "projections.model",
        "projections.numbers",
        "projections.rendering",
        "ledger.event",
        "ledger.amounts",
        "ledger.codec",
        "ledger.domain.positions",
        "ledger.domain.users",
    ],
)
def test_the_hash_covers_every_module_of_the_fold(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed source of any module that the fold goes through gives another hash."""
    before = fold_hash.fold_hash(KEPT)
    other_source(monkeypatch, module)
    assert fold_hash.fold_hash(KEPT) != before


@pytest.mark.usefixtures("fresh_hashes")
@pytest.mark.parametrize("module", ["projections.security_audit_logs", "projections.cli"])
def test_the_hash_covers_no_other_module(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kept tables do not depend on may change without making snapshots stale."""
    before = fold_hash.fold_hash(KEPT)
    other_source(monkeypatch, module)
    assert fold_hash.fold_hash(KEPT) == before


def test_the_hash_is_the_same_in_every_process() -> None:
    """No order of sets and no address gets into it."""
    code = (
        "from projections.fold_hash import fold_hash; from projections.groups import GROUPS; "
        "print(*map(fold_hash, GROUPS.values()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60
    )
    assert done.stdout.decode().split() == list(map(fold_hash.fold_hash, GROUPS.values()))


async def test_skips_are_a_part_of_the_fold(journal: Journal, database: Database) -> None:
    """A skip before its size makes a snapshot stale; one after it, or of a table not kept, no."""
    end = await filled(journal)
    await take(database, journal, TRADING, 60)
    await change(database, skip("security_audit_logs", 10))
    await change(database, skip("orders", 60))
    assert await load(database, journal, KEPT, end) is not None
    await change(database, skip("orders", 59))
    assert await load(database, journal, KEPT, end) is None
    [stale] = await listed(database, journal)
    assert stale.stale == "other events are skipped or parked now"
    await assert_same(journal, database, end, 0)
    again = await take(database, journal, TRADING, 60)
    assert again.stale is None
    await assert_same(journal, database, end, 60)


def skip(table: str, offset: int) -> sa.Insert:
    """Return the statement that records a skip."""
    return skipped_events.insert().values(
        journal_id=JOURNAL_ID,
        group_name="trading",
        table_name=table,
        offset=offset,
        event_id=an_id(f"{table} {offset}"),
        event_type="OrderFilled",
        reason="test",
        skipped_at=datetime.now(UTC),
    )


async def test_what_a_live_projector_has_parked_is_not_in_a_snapshot(
    journal: Journal, database: Database
) -> None:
    """An event below its size that counts as poisoned by now makes a snapshot stale."""
    end = await filled(journal)
    await take(database, journal, TRADING, 60)
    values = {"journal_id": JOURNAL_ID, "group_name": "trading", "table_name": "orders"}
    values |= {"column_name": "order_id", "value": "x", "event_type": "OrderFilled", "waiting": 1}
    values |= {"event_id": an_id("x"), "parked_at": datetime.now(UTC)}
    await change(database, parked_keys.insert().values(**values, offset=59, error="Error: refused"))
    assert await load(database, journal, KEPT, end) is None
    await change(database, parked_keys.update().values(offset=60))
    assert await load(database, journal, KEPT, end) is not None


async def test_a_state_with_parked_keys_is_not_kept(
    journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an event is missing from is no state to go on from."""
    end = await filled(journal)
    state = await fold_prefix(journal, KEPT, end)
    state.parking = Parking({Lane("orders", "order_id", "7"): Parked(3, an_id("x"), "OrderFilled")})
    monkeypatch.setattr("projections.snapshots.fold_prefix", partial(_given, state))
    with pytest.raises(SnapshotRefused, match="orders order_id=7 is parked"):
        await take(database, journal, TRADING)
    assert await listed(database, journal) == []


async def _given(state: State, *_: object, **__: object) -> State:
    return state


async def test_a_damaged_snapshot_is_told_and_passed_over(
    journal: Journal, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what is wrong; the next older one is used, and the rows are the same."""
    end = await filled(journal)
    for size in (30, 70):
        await take(database, journal, TRADING, size)
    of_70 = sa.and_(snapshot_chunks.c.size == 70, snapshot_chunks.c.table_name == "orders")
    await change(database, snapshot_chunks.update().where(of_70).values(body=b"\0" * 40))
    await assert_same(journal, database, end, 30)
    assert capsys.readouterr().err == (
        "ignored the snapshot of trading at size 70: chunk 0 of orders is not what was stored\n"
    )
    await change(database, snapshot_chunks.delete().where(snapshot_chunks.c.number == 1))
    await assert_same(journal, database, end, 0)
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "size 30: chunk 1 of" in errors[1]
    assert errors[1].endswith("is missing")


async def test_a_chunk_of_another_snapshot_is_damage(journal: Journal, database: Database) -> None:
    """A chunk that was right in an older snapshot of the table is not taken for one of this."""
    end = await filled(journal)
    for size in (30, 70):
        await take(database, journal, TRADING, size)
    chunk = snapshot_chunks.c
    older = snapshot_chunks.alias()
    same = (older.c.table_name == chunk.table_name, older.c.number == chunk.number)
    body = sa.select(older.c.body).where(older.c.size == 30, *same).scalar_subquery()
    changed = snapshot_chunks.update().where(chunk.size == 70, chunk.number == 0)
    await change(database, changed.values(body=body))
    await assert_same(journal, database, end, 30)


async def test_a_journal_with_another_past_trusts_nothing(
    journal: Journal, database: Database, settings: Settings
) -> None:
    """A snapshot of a journal that was cut back and went on otherwise, or is shorter, is stale."""
    end = await filled(journal)
    await take(database, journal, TRADING, 60)
    other = (await journal.store.create_journal("other")).journal_id
    for table in (snapshots, snapshot_chunks):
        await change(database, table.update().values(journal_id=other))
    async with open_journal(settings, "other") as reopened:
        assert [each.stale for each in await listed(database, reopened)] == [
            "the journal is shorter"
        ]
        await append(reopened, random_events(Random(2), 80))
        assert [each.stale for each in await listed(database, reopened)] == [
            "its last event is another now"
        ]
        assert await load(database, reopened, KEPT, end) is None


@pytest.mark.parametrize(
    ("group", "size", "reason"),
    [
        (POSTINGS, 10, "no table of group 'postings' can be kept.*trading, marks"),
        (TRADING, 121, "journal 'main' holds 120 events"),
        (TRADING, 0, "journal 'main' holds 120 events"),
    ],
)
async def test_what_cannot_be_kept_is_refused(
    journal: Journal, database: Database, group: Group, size: int, reason: str
) -> None:
    """Neither a group of append-only tables nor a size that is not there."""
    await filled(journal)
    with pytest.raises(SnapshotRefused, match=reason):
        await take(database, journal, group, size)
    assert await listed(database, journal) == []


async def test_nothing_is_kept_of_an_empty_journal(journal: Journal, database: Database) -> None:
    """Before the first event there is nothing to spare."""
    with pytest.raises(SnapshotRefused, match="holds 0 events"):
        await take(database, journal, TRADING)


async def test_too_many_rows_are_passed_over(journal: Journal, database: Database) -> None:
    """Who has no memory for all rows of the latest snapshot gets an older one, or none."""
    end = await filled(journal)
    small, large = [await take(database, journal, TRADING, size) for size in (10, 100)]
    assert small.rows < large.rows
    for rows_max, size in ((large.rows, 100), (large.rows - 1, 10), (small.rows - 1, None)):
        found = await load(database, journal, KEPT, end, rows_max=rows_max)
        assert (found and found[1]) == size


@pytest.mark.parametrize("chunks", [1, 5])
async def test_a_killed_taking_leaves_nothing_that_is_used(
    database_url: str, journal: Journal, database: Database, chunks: int
) -> None:
    """What was stored of it is shown as unfinished, not used, and replaced by the next taking."""
    end = await filled(journal)
    await take(database, journal, TRADING, 30)
    process = snapshot_takers.start(database_url, 80, chunks)
    await asyncio.to_thread(process.join, 60)
    assert process.exitcode == -signal.SIGKILL
    reasons = [(each.size, each.stale) for each in await listed(database, journal)]
    assert reasons == [(30, None), (80, "unfinished: it is being taken, or that was broken off")]
    assert await chunks_at(database, 80) == chunks
    await assert_same(journal, database, end, 30)
    await take(database, journal, TRADING, 80)
    await assert_same(journal, database, end, 80)


async def test_a_taking_whose_snapshot_is_dropped_stops(
    journal: Journal, database: Database
) -> None:
    """It is told so, and leaves nothing behind."""
    await filled(journal)
    taking = Taking(database, journal, KEPT, 60)
    async with database.snapshot() as connection:
        binding = str(await snapshotting.binding_of(connection, journal, KEPT, 60))
    await taking.begin(binding)
    await taking.put("users", 0, b"")
    await drop(database, journal, await listed(database, journal))
    with pytest.raises(SnapshotRefused, match="was dropped"):
        await taking.put("users", 1, b"")
    with pytest.raises(SnapshotRefused, match="was dropped"):
        await taking.finish("", 0)
    assert await rows_of(database, snapshots) == await rows_of(database, snapshot_chunks) == 0


@pytest.mark.parametrize("begun", [False, True])
async def test_a_taking_across_an_erasure_leaves_nothing(
    journal: Journal, database: Database, begun: bool
) -> None:
    """What was folded before it is not written after it; what was written is taken away."""
    await filled(journal)
    taking = Taking(database, journal, KEPT, 60)
    async with database.snapshot() as connection:
        binding = str(await snapshotting.binding_of(connection, journal, KEPT, 60))
    if begun:
        await taking.begin(binding)
        await taking.put("users", 0, b"")
    await journal.privacy.destroy(f"user-{an_id('somebody')}")
    with pytest.raises(SnapshotRefused, match="people erased"):
        await (taking.finish(binding, 0) if begun else taking.begin(binding))
    assert await rows_of(database, snapshots) == await rows_of(database, snapshot_chunks) == 0


async def test_takings_at_the_same_time_leave_one_snapshot(
    journal: Journal, database: Database
) -> None:
    """The last to begin takes over; others stop, or were done before. What is there is whole."""
    end = await filled(journal)
    takings = [take(database, journal, TRADING, 60) for _ in range(3)]
    done = await asyncio.gather(*takings, return_exceptions=True)
    assert any(isinstance(each, Snapshot) for each in done)
    assert all(isinstance(each, Snapshot | SnapshotRefused) for each in done)
    await assert_same(journal, database, end, 60)


async def test_a_skip_while_it_is_taken_is_noticed(
    journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that lacks a skip of meanwhile never becomes a snapshot."""
    end = await filled(journal)

    async def fold_and_skip(*arguments: Any) -> State:
        state = await fold_prefix(*arguments)
        await change(database, skip("orders", 5))
        return state

    monkeypatch.setattr("projections.snapshots.fold_prefix", fold_and_skip)
    with pytest.raises(SnapshotRefused, match="skipped or parked while"):
        await take(database, journal, TRADING, 60)
    assert await load(database, journal, KEPT, end) is None


@pytest.fixture
def run(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `replay.py`; return exit code, output and errors."""
    monkeypatch.setenv("LEDGER_DATABASE_URL", sqlite_url)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["replay", *arguments])
        with pytest.raises(SystemExit) as ended:
            console.main(replay.app, "replay")
        output, errors = capfd.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


@pytest.fixture
def filled_sqlite(sqlite_url: str) -> None:
    """Let the journal of the program hold a history."""

    async def work() -> None:
        async with open_journal(Settings(database_url=sqlite_url)) as journal:
            await filled(journal)

    asyncio.run(work())


@pytest.mark.usefixtures("filled_sqlite")
def test_the_program_takes_lists_and_drops(run: Run) -> None:
    """`take` keeps all groups that can be kept; `list` shows them; `drop` takes them away."""
    code, output, errors = run("snapshot", "take")
    assert (code, errors) == (0, "")
    assert [line.partition(":")[0] for line in output.splitlines()] == [
        "trading at size 120",
        "marks at size 120",
    ]
    assert run("snapshot", "take", "--group", "trading", "--size", "50")[0] == 0
    found = json.loads(run("snapshot", "list", "--json")[1])
    assert [(each["group"], each["size"], each["stale"]) for each in found] == [
        ("marks", 120, None),
        ("trading", 50, None),
        ("trading", 120, None),
    ]
    assert all(each["rows"] > 0 < each["bytes"] for each in found)
    shown = run("snapshot", "list")[1]
    assert shown.count("yes") == 3
    assert run("snapshot", "drop", "--stale") == (0, "", "")
    assert run("snapshot", "drop", "--size", "120", "--group", "marks")[1] == (
        "dropped marks at size 120\n"
    )
    assert run("snapshot", "drop", "--all")[1].count("dropped trading") == 2
    assert json.loads(run("snapshot", "list", "--json")[1]) == []


@pytest.mark.usefixtures("filled_sqlite", "fresh_hashes")
def test_stale_ones_are_shown_and_dropped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`list` says why one is stale; `drop --stale` drops it and no other."""
    assert run("snapshot", "take", "--size", "50")[0] == 0
    other_version(monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")
    assert "no: the fold has changed" in run("snapshot", "list")[1]
    assert run("snapshot", "drop", "--stale")[1] == "dropped trading at size 50\n"
    assert [each["group"] for each in json.loads(run("snapshot", "list", "--json")[1])] == ["marks"]


@pytest.mark.usefixtures("filled_sqlite")
def test_as_of_says_that_it_began_at_a_snapshot(run: Run) -> None:
    """The answer is the same with and without, but for the size at which the fold began."""
    assert run("snapshot", "take", "--size", "50")[0] == 0
    tables = ("--table", "positions", "--table", "orders", "--table", "marks")
    plain = ("as-of", "--size", "100", *tables, "--no-snapshots")
    begun = ("as-of", "--size", "100", *tables)
    one, other = (json.loads(run(*each, "--format", "json")[1]) for each in (plain, begun))
    assert one | {"snapshots": {"trading": 50, "marks": 50}} == other
    assert one["tables"]["positions"]
    one_shown, other_shown = (run(*each)[1].splitlines() for each in (plain, begun))
    assert one_shown[0] == "journal main as of size 100"
    begun_at = "; trading from its snapshot at 50; marks from its snapshot at 50"
    assert other_shown[0] == one_shown[0] + begun_at
    assert one_shown[1:] == other_shown[1:]


@pytest.mark.usefixtures("filled_sqlite")
def test_as_of_of_the_audit_log_folds_from_the_start(run: Run) -> None:
    """What goes with an append-only table is in no snapshot, and nothing says so."""
    assert run("snapshot", "take", "--size", "50")[0] == 0
    logs = ("as-of", "--size", "100", "--table", "security_audit_logs", "--format", "json")
    assert run(*logs) == run(*logs, "--no-snapshots")


@pytest.mark.usefixtures("filled_sqlite")
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("take", "--size", "121"), "holds 120 events"),
        (("take", "--group", "none"), "'none' is not one of trading, marks, postings"),
        (("take", "--group", "postings"), "snapshots can be taken of trading, marks"),
        (("drop",), "one of --size, --stale and --all"),
        (("drop", "--all", "--stale"), "one of --size, --stale and --all"),
        (("drop", "--size", "7"), "no snapshot is at 7"),
        (("list", "--journal", "other"), "no journal is named 'other'"),
    ],
)
def test_bad_requests_are_refused(run: Run, arguments: tuple[str, ...], reason: str) -> None:
    """What cannot be done ends with code 2 and one line that says why."""
    code, output, errors = run("snapshot", *arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert reason in errors


@pytest.fixture
def logins(postgres_url: str, postgres_server: PostgresServer) -> Iterator[dict[str, Settings]]:
    """Settings of login roles, each a member of one group role."""
    database = postgres_url.rpartition("/")[2]
    names = {role: f"{role}_{database}" for role in ("ledger_projector", "ledger_reader")}
    for role, name in names.items():
        postgres_server.psql(f"CREATE ROLE {name} LOGIN; GRANT {role} TO {name}")
    yield {
        role: Settings(database_url=postgres_server.url(database, name))
        for role, name in names.items()
    }
    for name in names.values():
        postgres_server.psql(f"DROP OWNED BY {name}", database)
        postgres_server.psql(f"DROP ROLE {name}")


async def test_projectors_take_and_readers_use_them(
    postgres_url: str, logins: dict[str, Settings]
) -> None:
    """No role needs more than it has: an auditor's can use snapshots, but not write them."""
    async with open_journal(Settings(database_url=postgres_url)) as journal:
        end = await filled(journal)
    for role, size in (("ledger_projector", 60), ("ledger_reader", 80)):
        async with open_journal(logins[role]) as journal, Database(logins[role]) as database:
            taking = take(database, journal, TRADING, size)
            if role == "ledger_projector":
                await taking
            else:
                with pytest.raises(StoreUnavailable, match="permission denied"):
                    await taking
            await assert_same(journal, database, end, 60)
