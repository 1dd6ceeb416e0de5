"""The PostgreSQL server that the tests start themselves."""

import os
from collections.abc import Iterator

import asyncpg
import psutil
import pytest

from tests.postgres import PostgresError, PostgresServer, is_alive


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A durable server that a test may crash."""
    with PostgresServer.start() as server:
        yield server


async def fetch(url: str, sql: str) -> object:
    """Return the single value that a statement yields."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_a_new_database_answers(postgres_server: PostgresServer) -> None:
    """A created database is reached by the address that its creation returned."""
    url = postgres_server.create_database()
    assert await fetch(url, "SELECT current_database()") == url.rpartition("/")[2]


async def test_a_database_is_copied_from_a_template(postgres_server: PostgresServer) -> None:
    """A database made from a template begins with the template's tables and rows."""
    postgres_server.create_database("model")
    postgres_server.psql("CREATE TABLE kept AS SELECT 42 AS answer", "model")
    url = postgres_server.create_database(template="model")
    assert await fetch(url, "SELECT answer FROM kept") == 42


async def test_a_database_is_dropped_while_in_use(postgres_server: PostgresServer) -> None:
    """Dropping a database disconnects whoever uses it."""
    url = postgres_server.create_database()
    connection = await asyncpg.connect(url)
    postgres_server.drop_database(url)
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError)):
        await connection.fetchval("SELECT 1")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(url)


async def test_committed_rows_survive_a_kill(own_server: PostgresServer) -> None:
    """What was committed before all processes were killed is there after the next start."""
    url = own_server.create_database()
    await fetch(url, "CREATE TABLE kept (answer int)")
    await fetch(url, "INSERT INTO kept VALUES (42)")
    killed = own_server.pids
    own_server.kill()
    assert len(killed) > 1
    assert not any(is_alive(pid) for pid in killed)
    own_server.restart()
    assert await fetch(url, "SELECT answer FROM kept") == 42


async def test_settings_change_with_a_restart(own_server: PostgresServer) -> None:
    """A restart adds settings and keeps the address."""
    url = own_server.url()
    own_server.restart({"work_mem": "1MB"})
    assert own_server.url() == url
    assert await fetch(url, "SHOW work_mem") == "1MB"


def test_closing_leaves_nothing_behind() -> None:
    """A closed server has no processes and no folder."""
    with PostgresServer.start() as server:
        pids = server.pids
    assert not server.folder.exists()
    assert not any(is_alive(pid) for pid in pids)


def test_a_refused_setting_is_explained() -> None:
    """A server that cannot start says why, in PostgreSQL's words."""
    with pytest.raises(PostgresError, match="no_such_setting"):
        PostgresServer.start({"no_such_setting": "1"})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
def test_root_starts_it_as_somebody_else(postgres_server: PostgresServer) -> None:
    """PostgreSQL refuses root, so under root its processes belong to another account."""
    owners = {psutil.Process(pid).uids().effective for pid in postgres_server.pids}
    assert 0 not in owners
