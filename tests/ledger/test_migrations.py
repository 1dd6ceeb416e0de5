"""Migrations lead to exactly the tables that the code declares, and back."""

from __future__ import annotations

import asyncio
import io
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, pool
from sqlalchemy.ext.asyncio import create_async_engine

from ledger.domain.users import UserRegistered
from ledger.errors import InvalidEvent, SchemaMissing, StoreUnavailable
from ledger.event import NewEvent
from ledger.migrate import migrate
from ledger.schema import metadata
from ledger.settings import async_url
from ledger.stores import Appended
from tests.ledger.support import an_id, known_note, opened, settings_for, store_of
from tests.postgres import PostgresServer

T = TypeVar("T")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[str]:
    """The address of a database without any tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


def config_for(url: str) -> Config:
    """Return Alembic's configuration for a database."""
    config = Config(output_buffer=io.StringIO())
    config.set_main_option("script_location", str(files("migrations")))
    config.attributes["url"] = url
    return config


def revisions() -> list[str]:
    """Return all revisions, the oldest first."""
    script = ScriptDirectory.from_config(config_for("sqlite://"))
    return [revision.revision for revision in script.walk_revisions()][::-1]


def look(url: str, see: Callable[[Connection], T]) -> T:
    """Return what `see` sees over a connection."""

    async def run() -> T:
        engine = create_async_engine(async_url(url), poolclass=pool.NullPool)
        async with engine.begin() as connection:
            seen = await connection.run_sync(see)
        await engine.dispose()
        return seen

    return asyncio.run(run())


def plain(value: Any) -> Any:
    """Return what was reflected as text in a fixed order, conditions of indexes included."""
    if isinstance(value, dict):
        return sorted((key, plain(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return sorted(map(plain, value), key=str)
    return str(value)


def shape(connection: Connection) -> dict[str, Any]:
    """Return everything that can be told about the tables."""
    inspector = inspect(connection)
    return {
        table: {
            "columns": [
                (c["name"], str(c["type"]), c["nullable"], c["default"], c.get("identity"))
                for c in inspector.get_columns(table)
            ],
            "key": plain(inspector.get_pk_constraint(table)),
            "indexes": plain(inspector.get_indexes(table)),
            "unique": plain(inspector.get_unique_constraints(table)),
            "checks": plain(inspector.get_check_constraints(table)),
            "foreign keys": plain(inspector.get_foreign_keys(table)),
            "options": plain(inspector.get_table_options(table)),
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def assert_works(url: str) -> None:
    """Append and read an event."""

    async def run() -> None:
        async with opened(url) as journal:
            assert await journal.append(known_note(1)) == Appended((0,))
            assert await journal.append(known_note(1)) == Appended((0,), duplicate=True)

    asyncio.run(run())


def test_up_down_and_up_again(empty_url: str) -> None:
    """Nothing is left of the tables after the way down, and the way up is open again."""
    migrate(settings_for(empty_url))
    before = look(empty_url, shape)
    assert_works(empty_url)
    command.downgrade(config_for(empty_url), "base")
    assert look(empty_url, shape) == {}
    migrate(settings_for(empty_url))
    assert look(empty_url, shape) == before
    assert_works(empty_url)


def test_nothing_else_is_left_on_postgresql(postgres_server: PostgresServer) -> None:
    """Functions go with the tables."""
    url = postgres_server.create_database()
    migrate(settings_for(url))
    command.downgrade(config_for(url), "base")
    left = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    assert postgres_server.psql(left, url.rpartition("/")[2]) == ""
    postgres_server.drop_database(url)


def test_every_step_can_be_taken_back(empty_url: str) -> None:
    """Each migration goes up, down and up again by itself."""
    for revision in revisions():
        migrate(settings_for(empty_url), revision)
        after = look(empty_url, shape)
        command.downgrade(config_for(empty_url), "-1")
        migrate(settings_for(empty_url), revision)
        assert look(empty_url, shape) == after


def test_data_keys_are_not_taken_back(database_url: str) -> None:
    """Without them nobody could read what was encrypted."""
    asyncio.run(_encrypt(database_url))
    with pytest.raises(RuntimeError, match="holds data keys"):
        command.downgrade(config_for(database_url), "0005")
    assert asyncio.run(_names(database_url)) == ["ann"]


async def _encrypt(url: str) -> None:
    async with opened(url) as journal:
        await journal.append(NewEvent(UserRegistered(user_id=an_id(1), username="ann")))


async def _names(url: str) -> list[Any]:
    async with opened(url) as journal:
        return [each.event.username async for each in journal.read()]  # type: ignore[attr-defined]


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    """A migrated database is left as it is."""
    before = look(database_url, shape)
    migrate(settings_for(database_url))
    assert look(database_url, shape) == before


def test_alembic_finds_no_difference(database_url: str) -> None:
    """`alembic check` and a comparison that includes types are clean."""
    command.check(config_for(database_url))

    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    assert look(database_url, differences) == []


def test_the_migrated_tables_are_the_declared_ones(empty_url: str) -> None:
    """Columns, keys, indexes, constraints and options equal those that the models create."""
    look(empty_url, metadata.create_all)
    declared = look(empty_url, shape)
    look(empty_url, metadata.drop_all)
    migrate(settings_for(empty_url))
    assert look(empty_url, shape) == declared


def script_for(url: str) -> str:
    """Return what `alembic upgrade head --sql` prints."""
    config = config_for(url)
    command.upgrade(config, "head", sql=True)
    assert isinstance(config.output_buffer, io.StringIO)
    return config.output_buffer.getvalue()


def test_the_script_for_postgresql_applies(postgres_server: PostgresServer) -> None:
    """Offline mode needs no database, and psql can run what it prints."""
    script = script_for("postgresql://nobody@127.0.0.1:1/nowhere")
    url = postgres_server.create_database()
    postgres_server.psql(script, url.rpartition("/")[2])
    other = postgres_server.create_database()
    migrate(settings_for(other))
    assert look(url, shape) == look(other, shape)
    assert_works(url)
    migrate(settings_for(url))
    postgres_server.drop_database(url)
    postgres_server.drop_database(other)


def test_the_script_for_sqlite_applies(sqlite_url: str, tmp_path: Path) -> None:
    """The same for SQLite."""
    script = script_for("sqlite:////nowhere/x.db")
    file = tmp_path / "scripted.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(script)
    url = f"sqlite:///{file}"
    assert look(url, shape) == look(sqlite_url, shape)
    assert_works(url)


def test_tables_in_a_schema_of_their_own(postgres_server: PostgresServer) -> None:
    """The functions find the tables where they were made, whatever the caller's search path."""
    url = postgres_server.create_database()
    name = url.rpartition("/")[2]
    postgres_server.psql("CREATE SCHEMA books", name)
    postgres_server.psql(f'ALTER DATABASE "{name}" SET search_path TO books', name)
    migrate(settings_for(url))
    assert_works(url)
    paths = "SELECT DISTINCT proconfig::text FROM pg_proc WHERE proname ~ '^ledger_(append|settle)'"
    assert postgres_server.psql(paths, name) == '{"search_path=books, pg_temp"}'
    postgres_server.drop_database(url)


def test_an_unknown_revision(empty_url: str) -> None:
    """The error is one line about the revision."""
    with pytest.raises(InvalidEvent, match=r"^revision: .*nonsense") as caught:
        migrate(settings_for(empty_url), "nonsense")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////nowhere/x.db",
        "postgresql://me:secret@127.0.0.1:1/x",
        "postgresql://me:secret@nowhere.invalid/x",
    ],
)
def test_a_database_that_cannot_be_reached(url: str) -> None:
    """The error is one line without the password."""
    with pytest.raises(StoreUnavailable, match="cannot migrate") as caught:
        migrate(settings_for(url))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_database_that_does_not_exist(postgres_server: PostgresServer) -> None:
    """The same where the server answers, but has no such database or role."""
    for url in (postgres_server.url("missing"), postgres_server.url(user="missing")):
        with pytest.raises(StoreUnavailable, match=r"cannot migrate.*does not exist"):
            migrate(settings_for(url))


def test_a_role_that_may_not_make_tables(postgres_server: PostgresServer, tmp_path: Path) -> None:
    """What the database refuses is one line as well, without the statement."""
    url = postgres_server.create_database()
    name = url.rpartition("/")[2]
    postgres_server.psql("CREATE ROLE powerless LOGIN", name)
    with pytest.raises(StoreUnavailable, match="permission denied") as caught:
        migrate(settings_for(postgres_server.url(name, "powerless")))
    assert "\n" not in str(caught.value)
    postgres_server.drop_database(url)
    postgres_server.psql("DROP ROLE powerless")


def test_a_database_that_is_not_migrated(empty_url: str) -> None:
    """Every use says what to run."""
    if empty_url.startswith("sqlite"):
        sqlite3.connect(empty_url.removeprefix("sqlite:///")).close()

    async def use() -> None:
        store = store_of(empty_url)
        try:
            await store.size(1)
        finally:
            await store.close()

    with pytest.raises(SchemaMissing, match="run `ledger migrate`"):
        asyncio.run(use())
