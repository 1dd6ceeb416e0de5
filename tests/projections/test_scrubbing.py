"""Scrubbing: what must be so before, what is refused, and that it can be broken off at any time."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from ledger.domain.api_keys import ApiKeyIssued
from ledger.domain.orders import Action, OrderPlaced, OrderType
from ledger.domain.users import RolesChanged, UserErased, UserRegistered
from ledger.errors import JournalNotFound
from ledger.event import Amount, Metadata, NewEvent
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections import rewriting, scrubbing, snapshots
from projections.api_keys import ApiKey
from projections.bookkeeping import parked_keys, skipped_events
from projections.database import Database
from projections.groups import GROUPS, MARKS, POSTINGS, TRADING
from projections.model import ReadModel
from projections.people import PERSONAL_COLUMNS, keys_forgotten, sees_people
from projections.projector import Projector
from projections.rebuilding import RebuildRunning, Watch
from projections.rebuilding.locks import alone
from projections.rewriting import MayNotRewrite, StillVisible
from projections.scrubbing import (
    ERROR_WITHHELD,
    ErasureNotFolded,
    KeyNotDestroyed,
    Scrubbed,
    TablesDiffer,
    scrub,
)
from projections.security_audit_logs import SecurityAuditLog
from projections.users import User
from projections.verification import verify
from tests.postgres import PostgresServer
from tests.projections.erasing import found_in
from tests.projections.support import Run, an_id, live_tables

NAMES = ("zanzibar", "wombat")
VICTIM = an_id("zanzibar")
SECONDS = 60


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings with which no process goes on with a key that is destroyed."""
    return Settings.model_validate({"database_url": database_url, "key_cache_seconds": 0.0})


async def live(journal: Journal, names: tuple[str, ...] = NAMES) -> None:
    """Append a little about some people, with addresses."""
    for name in names:
        events = (
            UserRegistered(user_id=an_id(name), username=name, email=f"{name}@host"),
            RolesChanged(user_id=an_id(name), roles=("trader",)),
            an_order(name),
        )
        metadata = Metadata(ip_address="203.0.113.77")
        await journal.append([NewEvent(each, metadata=metadata) for each in events])


def an_order(name: str) -> OrderPlaced:
    """Return an order of somebody."""
    return OrderPlaced(
        order_id=an_id(f"order of {name}"),
        user_id=an_id(name),
        token="SOL",
        action=Action.BUY,
        order_type=OrderType.MARKET,
        quantity=Amount(1),
    )


async def erase(journal: Journal, name: str = "zanzibar") -> None:
    """Erase somebody, as the service does it."""
    event = UserErased(user_id=an_id(name), reason="case 7")
    await journal.append(NewEvent(event))
    await journal.privacy.destroy(f"user-{event.user_id}")


async def change(database: Database, statement: sa.Executable) -> None:
    """Change what is stored behind everybody's back."""
    async with database.transaction() as connection:
        await connection.execute(statement)


async def project(database: Database, journal: Journal) -> None:
    """Bring all tables up to date."""
    for group in GROUPS.values():
        await Projector(database, journal, group).catch_up()


@pytest.fixture
async def lived(journal: Journal, database: Database) -> Journal:
    """A journal in which people have lived, and one was erased after that was folded."""
    await live(journal)
    await project(database, journal)
    await erase(journal)
    await project(database, journal)
    return journal


async def scrubbed(settings: Settings, **options: Any) -> Scrubbed:
    """Scrub with parts folded by threads, which need no time to start."""
    with ThreadPoolExecutor(2) as executor:
        return await scrub(settings, executor=executor, **{"wait_seconds": 5.0, **options})


async def assert_scrubbed(database: Database, journal: Journal) -> None:
    """Hold that the tables are what the journal says, without anything of who was erased."""
    verified = await verify(database, journal, GROUPS.values())
    assert verified.is_verified, verified.first
    tables = await live_tables(database, TRADING)
    assert NAMES[0] not in str(tables)
    assert {row["username"] for row in tables["users"].values()} == {None, NAMES[1]}
    logged = tables["security_audit_logs"].values()
    addresses = {(row["user_id"], row["ip_address"]) for row in logged}
    assert addresses == {(VICTIM, None), (an_id(NAMES[1]), "203.0.113.77")}


async def test_the_tables_are_what_the_journal_says_now(
    settings: Settings, database: Database, lived: Journal
) -> None:
    """Until then verify sees what is left over, and shows nothing of it; a second scrub is fine."""
    before = await verify(database, lived, [TRADING])
    assert {each.table for each in before.first} == {"security_audit_logs"}
    assert before.first
    assert not [each for each in before.first if "zanzibar" in str(each) or "203.0" in str(each)]
    for _ in range(2):
        done = await scrubbed(settings)
        assert (done.erased, set(done.tables)) == (1, set(PERSONAL_COLUMNS))
        await assert_scrubbed(database, lived)


async def test_nobody_is_erased(settings: Settings, database: Database, journal: Journal) -> None:
    """Then there is nothing to do, and snapshots stay."""
    await live(journal)
    await project(database, journal)
    await snapshots.take(database, journal, TRADING)
    assert await scrubbed(settings) == Scrubbed(0)
    assert [each.stale for each in await snapshots.listed(database, journal)] == [None]


async def test_a_key_that_is_still_there(
    settings: Settings, database: Database, journal: Journal
) -> None:
    """An erasure that was broken off must be finished first; the message says whose and how."""
    await live(journal)
    await journal.append(NewEvent(UserErased(user_id=VICTIM, reason="case 7")))
    await project(database, journal)
    with pytest.raises(KeyNotDestroyed, match=f"ledger erase-user {VICTIM}") as caught:
        await scrubbed(settings)
    assert (caught.value.user_id, caught.value.exit_code) == (VICTIM, 2)


async def test_no_projector_runs(settings: Settings, database: Database, journal: Journal) -> None:
    """The erasure must be folded first, which is waited for; only groups that see people count."""
    await live(journal)
    await erase(journal)
    with pytest.raises(ErasureNotFolded, match="checkpoint 0, and the last erasure is at offset 6"):
        await scrubbed(settings, wait_seconds=0.0)
    waiting = asyncio.create_task(scrubbed(settings, wait_seconds=float(SECONDS)))
    await Projector(database, journal, TRADING).catch_up()
    assert (await waiting).erased == 1
    assert await Projector(database, journal, POSTINGS).checkpoint() == 0
    await project(database, journal)
    await assert_scrubbed(database, journal)


async def test_only_what_an_erasure_changes_is_accepted(
    settings: Settings, database: Database, lived: Journal
) -> None:
    """Any other difference is evidence: it is named without values, and everything stays."""
    own = User.user_id == an_id(NAMES[1])
    await change(database, sa.update(User).where(own).values(roles=["tampered"]))
    before = await live_tables(database, TRADING)
    with pytest.raises(TablesDiffer, match=r"users\.roles: 1 rows, the first"):
        await scrubbed(settings)
    assert TablesDiffer.exit_code == 1
    assert await live_tables(database, TRADING) == before
    log = SecurityAuditLog
    await change(database, sa.delete(log).where(log.event_type == "OrderPlaced"))
    with pytest.raises(TablesDiffer, match="logs: 2 rows only in the new") as caught:
        await scrubbed(settings)
    assert not [word for word in ("tampered", *NAMES) if word in str(caught.value)]


@pytest.mark.parametrize(
    ("model", "column", "value"),
    [
        (User, "password_hash", "planted"),
        (User, "email", "planted@example.org"),
        (ApiKey, "key_hash", "planted"),
        (SecurityAuditLog, "ip_address", "198.51.100.1"),
        (SecurityAuditLog, "details", {"planted": True}),
    ],
)
async def test_what_was_planted_is_not_washed_away(
    settings: Settings,
    database: Database,
    lived: Journal,
    model: type[ReadModel],
    column: str,
    value: object,
) -> None:
    """A personal column of somebody who was not erased must be as the journal says."""
    issued = ApiKeyIssued(key_id=an_id("key"), user_id=an_id(NAMES[1]), name="k", key_hash="h")
    await lived.append(NewEvent(issued))
    await project(database, lived)
    own = model.__table__.c.user_id == an_id(NAMES[1])
    await change(database, sa.update(model).where(own).values({column: value}))
    with pytest.raises(TablesDiffer, match=rf"{model.__tablename__}\.{column}: \d+ rows"):
        await scrubbed(settings)


async def test_a_rebuild_is_under_way(
    settings: Settings, database: Database, lived: Journal
) -> None:
    """Only one of them may swap tables at a time."""
    async with alone(database):
        with pytest.raises(RebuildRunning):
            await scrubbed(settings)
    assert (await scrubbed(settings)).erased == 1


async def test_journals_by_name(settings: Settings, database: Database, lived: Journal) -> None:
    """Erasures of other journals need not be complete; the rows of all are folded afresh."""
    await lived.store.create_journal("other")
    async with open_journal(settings, "other") as other:
        await live(other)
        await other.append(NewEvent(UserErased(user_id=VICTIM, reason="case 7")))
        with pytest.raises(KeyNotDestroyed, match="'other'"):
            await scrubbed(settings)
        with pytest.raises(JournalNotFound, match="none"):
            await scrubbed(settings, journals=["none"])
        assert (await scrubbed(settings, journals=["main"])).erased == 1
        await project(database, other)
        verified = await verify(database, lived, GROUPS.values())
        assert verified.is_verified, verified.first


async def test_errors_of_folds(settings: Settings, database: Database, lived: Journal) -> None:
    """What folds have said is taken away, of events about others too: rows may be quoted in it."""
    async with lived.store.write_turn(), database.transaction() as connection:
        for table, values in noted(lived.journal_id):
            await connection.execute(sa.insert(table), values)
    await scrubbed(settings)
    async with database.snapshot() as connection:
        for table, _ in noted(lived.journal_id):
            said = await connection.scalars(sa.select(table.c.error).order_by(table.c.offset))
            assert list(said) == [ERROR_WITHHELD] * 2


def noted(journal_id: int) -> list[tuple[sa.Table, list[dict[str, Any]]]]:
    """Return errors at the first event of each person, as they are kept."""
    found: list[tuple[sa.Table, list[dict[str, Any]]]] = []
    for table, also in (
        (parked_keys, {"column_name": "c", "waiting": 1, "parked_at": datetime.now(UTC)}),
        (skipped_events, {"reason": "r", "skipped_at": datetime.now(UTC)}),
    ):
        rows: list[dict[str, Any]] = []
        for offset, name in ((0, NAMES[0]), (3, NAMES[1])):
            own = {"value": str(offset)} if table is parked_keys else {}
            rows.append(
                {
                    "journal_id": journal_id,
                    "group_name": "marks",
                    "table_name": "marks",
                    "offset": offset,
                    "event_id": an_id(name),
                    "event_type": "UserRegistered",
                    "error": f"ValueError: {name}",
                    **own,
                    **also,
                }
            )
        found.append((table, rows))
    return found


class Broken(Exception):
    """Stands for whatever ends a scrub."""


class Breaking(Watch):
    """Ends a scrub at its n-th stage, and counts them."""

    def __init__(self, stage: int) -> None:
        self._left = stage

    def stage(self, text: str) -> None:
        """Count, and end it."""
        self._left -= 1
        if self._left == 0:
            raise Broken(text)


async def test_broken_off_at_any_stage(
    settings: Settings, database: Database, lived: Journal
) -> None:
    """What is left can be read, and another run finishes it."""
    for stage in range(1, 100, 2):
        try:
            await scrubbed(settings, watch=Breaking(stage))
        except Broken:
            assert len((await live_tables(database, TRADING))["users"]) == 2
            continue
        break
    assert stage > 8
    await assert_scrubbed(database, lived)


@pytest.mark.parametrize("stage", ["catching up", "dropping snapshots", "rewriting"])
async def test_killed(settings: Settings, database: Database, lived: Journal, stage: str) -> None:
    """A process that is killed leaves nothing that keeps the next one from finishing."""
    await asyncio.to_thread(scrub_until, settings, stage)
    assert (await scrubbed(settings)).erased == 1
    await assert_scrubbed(database, lived)


def scrub_until(settings: Settings, stage: str) -> None:
    """Run the program, and kill it at this stage."""
    url = settings.database_url
    environment = {**os.environ, "LEDGER_DATABASE_URL": url, "LEDGER_KEY_CACHE_SECONDS": "0"}
    command = [sys.executable, "-m", "projections", "scrub", "--yes", "--workers", "1"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr
        lines = iter(program.stderr.readline, "")
        assert next((line for line in lines if line.startswith(stage)), None), "it never got there"
        program.send_signal(signal.SIGKILL)
        assert program.wait(SECONDS) == -signal.SIGKILL


async def test_somebody_still_looks_at_old_rows(
    settings: Settings, database: Database, lived: Journal
) -> None:
    """They are waited for, and then named: what they may see cannot be removed."""
    async with an_old_look(database):
        with pytest.raises(StillVisible, match="end that, then run it again") as caught:
            await rewriting.rewrite(settings, settings.database_url, 0.1, lambda _: None)
        assert caught.value.exit_code == 3
    await rewriting.rewrite(settings, settings.database_url, 5.0, lambda _: None)


@asynccontextmanager
async def an_old_look(database: Database) -> AsyncIterator[None]:
    """Hold a transaction open that sees the database as it was before some rows went."""
    async with database.engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execution_options(isolation_level="REPEATABLE READ")
        async with connection.begin():
            await connection.exec_driver_sql("SELECT count(*) FROM users")
            await change(database, sa.insert(parked_keys).values(noted(1)[0][1]))
            await change(database, sa.delete(parked_keys))
            yield


async def test_a_role_without_rights(postgres_server: PostgresServer, postgres_url: str) -> None:
    """Who may not rewrite the tables is told whose role it takes."""
    postgres_server.psql("DROP ROLE IF EXISTS nobody_special; CREATE ROLE nobody_special LOGIN")
    url = postgres_server.url(postgres_url.rpartition("/")[2], "nobody_special")
    with pytest.raises(MayNotRewrite, match="LEDGER_OWNER_DATABASE_URL"):
        await rewriting.rewrite(Settings(database_url=url), url, 1.0, lambda _: None)


async def test_statistics_of_empty_tables(postgres_url: str) -> None:
    """Gathering them anew would leave the old ones, since there is nothing to gather."""
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(
            "INSERT INTO snapshot_chunks VALUES (1, 'trading', 1, 'users', 0, 'zanzibar'),"
            " (1, 'trading', 1, 'users', 1, 'zanzibar'); ANALYZE snapshot_chunks;"
            "DELETE FROM snapshot_chunks"
        )
        query = "SELECT count(*) FROM pg_stats WHERE attname = 'body' AND tablename LIKE 'snap%'"
        assert await connection.fetchval(query) == 1
        settings = Settings(database_url=postgres_url)
        await rewriting.rewrite(settings, postgres_url, 5.0, lambda _: None)
        assert await connection.fetchval(query) == 0
    finally:
        await connection.close()


async def test_data_keys_that_lie_elsewhere(
    settings: Settings, database: Database, migrated_sqlite: Path, tmp_path: Path
) -> None:
    """That database is rewritten too: nothing is left of the data key."""
    file = Path(shutil.copy(migrated_sqlite, tmp_path / "keys.db"))
    settings.keys_database_url = f"sqlite:///{file}"
    async with open_journal(settings) as journal:
        await live(journal)
        await project(database, journal)
        [key, *_] = await journal.privacy.keys.table.of_subjects([f"user-{VICTIM}"])
        await erase(journal)
        await project(database, journal)
        assert (await scrubbed(settings)).erased == 1
        await assert_scrubbed(database, journal)
    assert key.wrapped
    assert found_in([file], ["subject_keys", key.wrapped]) == {("subject_keys", file.name)}


async def test_nobody_goes_on_with_a_key(settings: Settings, journal: Journal) -> None:
    """A process may remember a key for a while after it was destroyed; that is waited for."""
    await live(journal)
    started = datetime.now(UTC)
    await erase(journal)
    await keys_forgotten(journal, 0.5)
    assert datetime.now(UTC) - started >= timedelta(seconds=0.5)


async def test_keys_are_forgotten_before_tables_are_made(
    settings: Settings, database: Database, lived: Journal
) -> None:
    """Nobody can fold again what was erased once the new tables are there."""
    [destroyed] = await lived.privacy.destroyed()
    settings.key_cache_seconds = 2.0
    stages: list[tuple[str, datetime]] = []

    class Noting(Watch):
        def stage(self, text: str) -> None:
            stages.append((text, datetime.now(UTC)))

    await scrubbed(settings, watch=Noting())
    begun = next(moment for text, moment in stages if text == "folding")
    assert begun - destroyed.destroyed_at >= timedelta(seconds=2)


def test_which_groups_see_people() -> None:
    """Marks and postings hold nothing of anybody, so nothing of them is dropped or waited for."""
    assert [sees_people(each) for each in (TRADING, MARKS, POSTINGS)] == [True, False, False]
    columns = {each.name: set(each.columns) for each in TRADING.projections}
    assert all(columns[table] >= set(names) for table, names in PERSONAL_COLUMNS.items())


def test_the_command_asks_first(run: Run) -> None:
    """Without a terminal it takes --yes; where nobody is erased it says so."""
    code, _, errors = run("projections", "scrub")
    assert (code, "say so with --yes" in errors) == (2, True)
    code, output, _ = run("projections", "scrub", "--yes")
    assert (code, output) == (0, "nobody is erased: nothing to scrub\n")
    assert scrubbing.WAIT_SECONDS > 10
