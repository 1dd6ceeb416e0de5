"""The commands of a rebuild, as their users see them, and migrations of tables that are in use."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import pytest
import sqlalchemy as sa
from alembic import command

import replay
from ledger import console
from ledger.errors import StoreUnavailable
from ledger.journal import open_journal
from ledger.migrate import migrate
from ledger.settings import Settings
from projections.database import Database
from projections.positions import Position
from projections.rebuilding.declared import server_default
from projections.users import User
from tests.ledger.test_migrations import config_for
from tests.projections.rebuilds import execute, filled

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `replay.py` on a database that is filled; return exit code, output and errors."""
    monkeypatch.setenv("LEDGER_DATABASE_URL", sqlite_url)
    asyncio.run(fill(sqlite_url))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["replay", *arguments])
        with pytest.raises(SystemExit) as ended:
            console.main(replay.app, "replay")
        output, errors = capfd.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


async def fill(url: str) -> None:
    """Append and project a history."""
    settings = Settings(database_url=url)
    async with open_journal(settings) as journal, Database(settings) as database:
        await filled(journal, database, seed=21, count=100)


def test_a_table_is_rebuilt_and_brought_back(run: Run) -> None:
    """Each command says what it did; what it is doing stands on standard error."""
    code, output, errors = run("rebuild", "marks")
    assert (code, output.startswith("rebuilt: marks (100 events in ")) == (0, True)
    assert "differing from before: none" in output
    assert errors.splitlines()[0] == "folding"
    assert "marks__old" in run("rebuild", "--status")[1]
    code, _, errors = run("rebuild", "marks")
    assert (code, errors.count("\n"), "--replace-old" in errors) == (2, 1, True)
    code, output, _ = run("rollback", "marks")
    assert (code, output.startswith("rolled back: marks (")) == (0, True)
    code, output, _ = run("rollback", "--all")
    assert (code, output.startswith("rolled back: marks (")) == (0, True)
    assert run("drop-old", "marks")[:2] == (0, "dropped: marks__old\n")
    assert run("rollback", "--all")[:2] == (0, "rolled back: nothing, since nothing is kept\n")
    assert run("drop-old", "--all")[:2] == (0, "dropped: nothing, since nothing is kept\n")
    assert run("verify")[0] == 0


def test_differences_need_to_be_accepted(run: Run, sqlite_url: str) -> None:
    """Without a terminal and without --accept the exit code is 1 and nothing is swapped."""

    async def change() -> None:
        async with Database(Settings(database_url=sqlite_url)) as database:
            await execute(database, "UPDATE marks SET source = 'me'")

    asyncio.run(change())
    code, output, _ = run("rebuild", "marks")
    assert code == 1
    assert re.search(r"\n  source differs in \d rows, the first: \w+: me -> -\n", output)
    assert "the live tables are as they were" in output
    assert run("verify")[0] == 1
    code, output, _ = run("rebuild", "marks", "--accept")
    assert (code, "differing from before: marks" in output) == (0, True)
    assert run("verify")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["rebuild"], "no table is named; there are users"),
        (["rebuild", "nothing"], "no read table is named 'nothing'"),
        (["rebuild", "marks", "--all"], "not both"),
        (["rollback", "orders"], "no table is kept beside orders"),
        (["drop-old"], "name the tables, or give --all"),
    ],
)
def test_bad_requests(run: Run, arguments: list[str], reason: str) -> None:
    """What cannot be done ends with code 2 and one line that says why."""
    code, output, errors = run(*arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert reason in errors


@pytest.fixture
def migrated_less(postgres_url: str) -> str:
    """The address of a database that lacks a migration which needs a table in use."""
    command.downgrade(config_for(postgres_url), "0003")
    return postgres_url


async def test_a_migration_lets_others_go_first(migrated_less: str) -> None:
    """While a reader holds a table, a migration tries again and again, and nobody waits behind."""
    settings = Settings(database_url=migrated_less)
    holder, other = [await asyncpg.connect(migrated_less) for _ in range(2)]
    try:
        await holder.execute("BEGIN")
        await holder.execute("LOCK TABLE checkpoints IN ACCESS SHARE MODE")
        with ThreadPoolExecutor(1) as thread, pytest.raises(StoreUnavailable, match="lock timeout"):
            await asyncio.wrap_future(thread.submit(migrate, settings, locked_seconds=0))
        migrating = asyncio.create_task(asyncio.to_thread(migrate, settings))
        for _ in range(20):
            await asyncio.wait_for(other.fetch("SELECT count(*) FROM checkpoints"), timeout=5)
            await asyncio.sleep(0.05)
        assert not migrating.done()
        await holder.execute("COMMIT")
        await asyncio.wait_for(migrating, timeout=30)
        assert await other.fetchval("SELECT count(*) FROM side_tables") == 0
    finally:
        await holder.close()
        await other.close()


def test_defaults_of_added_columns() -> None:
    """A model's fixed default becomes one that both databases take; without one there is none."""
    positions, users = Position.__table__.c, User.__table__.c
    defaults = {
        str(default.arg)
        for column in (
            positions.exact_fees,
            positions.flags,
            positions.status,
            users.roles,
            users.is_active,
        )
        if (default := server_default(column)) is not None
    }
    assert defaults == {"0", "{}", "open", "[]", "true"}
    assert server_default(positions.opened_at) is None
    assert server_default(sa.Column("x", sa.Integer, default=sa.func.now())) is None
