"""After an erasure and a scrub no byte of a person's data is left, and all else is as it was."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ledger.journal import Journal
from ledger.proof.folders import Folder
from ledger.proof.log import prove
from ledger.proof.merkle import leaf_hash
from ledger.proof.publish import publish
from ledger.proof.verifier import verify_log
from ledger.security.passwords import PasswordHasher, Passwords
from ledger.services import Ledger, open_ledger
from ledger.settings import Settings
from projections import snapshots
from projections.database import Database
from projections.groups import TRADING
from projections.rebuilding import side_tables
from tests.ledger.proof.sealers import KEY, seal
from tests.ledger.support import read_all
from tests.postgres import PostgresServer
from tests.projections.erasing import OTHERS, VICTIM, found_in, hashes_of, live, of_others
from tests.projections.rebuilds import rebuilt
from tests.projections.support import live_tables

MASTER_KEY = b64encode(bytes(range(32))).decode()
PROGRAM_SECONDS = 120
FREED = (
    "ANALYZE",
    "PRAGMA secure_delete = OFF",
    "CREATE TABLE freed AS SELECT users.* FROM users, events AS a, events AS b",
    "DROP TABLE freed",
)
"""Leaves values in free pages of a SQLite file, also where SQLite overwrites them by default."""

Search = Callable[[], Iterator[Path]]


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings with a master key; no process goes on with a key that is destroyed."""
    return Settings.model_validate(
        {"database_url": database_url, "master_key": MASTER_KEY, "key_cache_seconds": 0.0}
    )


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Ledger]:
    """The facade, with cheap hashes."""
    passwords = Passwords(PasswordHasher(memory_kib=8, iterations=1))
    async with open_ledger(settings, passwords=passwords) as opened:
        yield opened


@pytest.fixture
def files(database_url: str, request: pytest.FixtureRequest) -> Search:
    """What lists all files of the database, once everything is written to them."""
    if database_url.startswith("sqlite"):
        file = Path(database_url.removeprefix("sqlite:///"))
        factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
        return lambda: copies(file, factory.mktemp("copies"))
    server: PostgresServer = request.getfixturevalue("postgres_server")

    def listed() -> Iterator[Path]:
        server.psql("CHECKPOINT")
        for file in (*server.data.rglob("*"), server.log):
            if file.is_file() and "pg_wal" not in file.parts:
                yield file

    return listed


def copies(database: Path, folder: Path) -> Iterator[Path]:
    """Return copies of a SQLite file and of all beside it, made by another process.

    Closing such a file takes away all locks that this process has on it, those of SQLite too.
    """
    found = [each for each in database.parent.glob(f"{database.name}*") if each.is_file()]
    subprocess.run(["cp", *found, folder], check=True)
    return folder.iterdir()


class Programs:
    """Runs the programs as an operator would, and keeps all that they say."""

    def __init__(self, settings: Settings) -> None:
        self.said = ""
        self._environment = {
            **os.environ,
            "LEDGER_DATABASE_URL": settings.database_url,
            "LEDGER_MASTER_KEY": MASTER_KEY,
            "LEDGER_KEY_CACHE_SECONDS": "0",
        }

    def run(self, *command: str) -> str:
        """Run a program to its good end; return what it printed."""
        done = subprocess.run(
            [sys.executable, *command],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
            check=False,
        )
        self.said += done.stdout + done.stderr
        assert done.returncode == 0, done.stderr
        return done.stdout


async def test_no_byte_is_left(
    settings: Settings, service: Ledger, files: Search, tmp_path: Path
) -> None:
    """Not in tables, indexes, statistics, kept tables, snapshots, log, or in what programs say."""
    programs, published, journal = Programs(settings), tmp_path / "published", service.journal
    for person in (OTHERS[0], VICTIM, OTHERS[1]):
        await live(service, person)
    programs.run("-m", "projections", "run", "--once")
    async with Database(settings) as database:
        await leave_copies(settings, database, journal, published)
        events = await read_all(journal)
        hashes = hashes_of(events, VICTIM.user_id)
        searched = [*VICTIM.values(), *hashes, await data_key(database)]
        before = await live_tables(database, TRADING)
        proofs = [await prove(journal, offset) for offset in range(len(events))]
        # The password itself is stored nowhere, the first one's hash was replaced within a batch.
        stored = {*searched} - {VICTIM.password, hashes[0]}
        assert {value for value, _ in found_in(files(), searched)} == stored

        await service.users.erase(user_id=VICTIM.user_id, reason="case 7")
        programs.run("-m", "projections", "run", "--once")
        programs.run("-m", "projections", "scrub", "--yes", "--workers", "1")
        after = await live_tables(database, TRADING)
        assert await side_tables(database) == []
        assert await snapshots.listed(database, journal) == []
    assert "verified" in programs.run("replay.py", "verify")
    assert found_in([*files(), *tiles(published)], searched) == set()
    assert [value for value in searched if value in programs.said] == []
    assert of_others(after, VICTIM.user_id) == of_others(before, VICTIM.user_id)
    assert_redacted(after)
    for each in proofs:
        assert each.extra is not None
        each.verify(leaf_hash(each.extra), KEY.verifier)
    await seal(journal)
    await publish(journal, Folder(published))
    assert verify_log(published, KEY.verifier).verified


def tiles(published: Path) -> list[Path]:
    """Return all files of a published log."""
    return [each for each in published.rglob("*") if each.is_file()]


async def leave_copies(
    settings: Settings, database: Database, journal: Journal, published: Path
) -> None:
    """Leave values wherever a database keeps any: a kept table, a snapshot, statistics; seal."""
    await rebuilt(settings, ["users", "api_keys"])
    await snapshots.take(database, journal, TRADING)
    await seal(journal)
    await publish(journal, Folder(published))
    url = database.engine.url
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(url.database or "", isolation_level=None)) as file:
            for statement in FREED:
                file.execute(statement)
        return
    async with database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql("ANALYZE")


async def data_key(database: Database) -> str:
    """Return the wrapped data key of the victim."""
    query = sa.text("SELECT wrapped FROM subject_keys WHERE subject = :subject")
    async with database.snapshot() as connection:
        found = await connection.execute(query, {"subject": f"user-{VICTIM.user_id}"})
        return str(found.scalar_one())


def assert_redacted(tables: dict[str, dict[Any, dict[str, Any]]]) -> None:
    """Hold that the victim's rows are all there, empty where they were personal, and marked."""
    user = tables["users"][VICTIM.user_id]
    assert (user["username"], user["email"], user["password_hash"]) == (None, None, None)
    assert user["is_erased"]
    [key] = [row for row in tables["api_keys"].values() if row["user_id"] == VICTIM.user_id]
    assert (key["name"], key["key_hash"], key["requests_count"]) == (None, None, 1)
    rows = tables["security_audit_logs"].values()
    own = [row for row in rows if row["user_id"] == VICTIM.user_id]
    assert len(own) >= 10
    for row in own:
        assert row["ip_address"] is None
        assert row["event_type"] == "UserErased" or "ip_address" in row["details"]["erased"]
    registered = next(row for row in own if row["event_type"] == "UserRegistered")
    assert registered["details"]["erased"] == ["email", "ip_address", "username"]
