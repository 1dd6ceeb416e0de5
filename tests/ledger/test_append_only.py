"""What is recorded cannot be changed, not even by those who own the tables; and who may do what."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from ledger.errors import StoreUnavailable
from ledger.stores import Appended
from tests.ledger.support import START, Clock, known_note, note, opened, read_all, store_of
from tests.postgres import PostgresServer

DAMAGE = [
    "UPDATE events SET body = ''",
    "UPDATE events SET recorded_at = recorded_at",
    'UPDATE events SET "offset" = 7 WHERE "offset" = 0',
    "DELETE FROM events",
    "UPDATE event_tags SET tag = 'x'",
    "DELETE FROM event_tags",
    "DELETE FROM journals",
    "UPDATE journals SET size = size - 1",
    "UPDATE journals SET name = 'x'",
]
TRUNCATING = ["TRUNCATE events", "TRUNCATE event_tags", "TRUNCATE journals"]
GROUPS = ("ledger_service", "ledger_projector", "ledger_reader")
INSERT = """INSERT INTO events SELECT journal_id, "offset" + 1, gen_random_uuid(), stream,
    version + 1, type, schema_version, occurred_at, recorded_at, metadata, body FROM events"""

UNDOING = [
    "ALTER TABLE events DISABLE TRIGGER ALL",
    "DROP TRIGGER append_only ON events",
    "DROP TABLE event_tags",
    "SET session_replication_role = replica",
    "CREATE OR REPLACE FUNCTION ledger_deny() RETURNS trigger LANGUAGE sql AS ''",
    "CREATE TABLE public.mine (i int)",
]


@pytest.fixture
def filled_url(database_url: str) -> str:
    """A database whose journal holds an event with a claimed tag."""
    asyncio.run(_fill(database_url))
    return database_url


async def _fill(url: str) -> None:
    async with opened(url) as journal:
        await journal.append([note(claimed=("name",), text="as it was"), note()])


def is_as_it_was(url: str) -> bool:
    """Tell whether the journal still holds what was put into it."""
    return asyncio.run(_holds(url))


async def _holds(url: str) -> bool:
    async with opened(url) as journal:
        events = await read_all(journal)
    return [(event.offset, event.event) for event in events] == [
        (0, note(claimed=("name",), text="as it was").event),
        (1, note().event),
    ]


def run(url: str, *statements: str) -> None:
    """Run statements as whoever the address names, in one session."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            for statement in statements:
                connection.execute(statement)
    else:
        asyncio.run(_run(url, statements))


async def _run(url: str, statements: tuple[str, ...]) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize("statement", DAMAGE)
def test_nobody_changes_what_is_recorded(filled_url: str, statement: str) -> None:
    """UPDATE and DELETE fail for the owner too; a journal neither shrinks nor goes away."""
    with pytest.raises(
        (sqlite3.IntegrityError, asyncpg.InsufficientPrivilegeError), match=r"append-only|only grow"
    ):
        run(filled_url, statement)
    assert is_as_it_was(filled_url)


@pytest.mark.parametrize("statement", TRUNCATING)
@pytest.mark.parametrize("cascade", ["", " CASCADE"])
def test_nobody_truncates(postgres_url: str, statement: str, cascade: str) -> None:
    """TRUNCATE fails for the owner too."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        run(postgres_url, statement + cascade)


def test_posing_as_a_replica_does_not_help(postgres_url: str) -> None:
    """The triggers also fire where session_replication_role says that triggers do not."""
    asyncio.run(_fill(postgres_url))
    for statement in DAMAGE + TRUNCATING:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match=r"append-only|only grow"):
            run(postgres_url, "SET session_replication_role = replica", statement)
    assert is_as_it_was(postgres_url)


@pytest.mark.parametrize("verb", ["INSERT OR REPLACE", "INSERT OR IGNORE", "REPLACE", "INSERT"])
@pytest.mark.parametrize(
    "columns",
    [
        "journal_id, 0, lower(hex(randomblob(16))), 'other', 1",
        "journal_id, 2, event_id, 'other', 1",
        "journal_id, 2, lower(hex(randomblob(16))), stream, version",
        "journal_id, 5, lower(hex(randomblob(16))), 'other', 1",
    ],
    ids=["offset", "event id", "version", "gap"],
)
def test_sqlite_replaces_no_event(sqlite_url: str, verb: str, columns: str) -> None:
    """REPLACE, which gets past delete triggers, is denied by each key; so are gaps."""
    asyncio.run(_fill(sqlite_url))
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        run(
            sqlite_url,
            f"""{verb} INTO events SELECT {columns}, type, schema_version, occurred_at,
                recorded_at, metadata, x'00' FROM events WHERE "offset" = 0""",
        )
    assert is_as_it_was(sqlite_url)


@pytest.mark.parametrize("table", ["events", "event_tags"])
def test_sqlite_has_no_hidden_row_numbers(sqlite_url: str, table: str) -> None:
    """There is no row id by which a row could be replaced past its declared keys."""
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        run(sqlite_url, f"SELECT rowid FROM {table}")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE OR REPLACE events SET version = 2 WHERE version = 1",
        'UPDATE OR IGNORE events SET "offset" = 9',
        "INSERT OR REPLACE INTO event_tags SELECT * FROM event_tags",
        "UPDATE OR REPLACE event_tags SET kind = 2",
        "INSERT OR REPLACE INTO journals (journal_id, name, created_at) VALUES (1, 'new', 'x')",
        "INSERT OR REPLACE INTO journals (name, created_at) VALUES ('main', 'x')",
        """INSERT INTO events SELECT * FROM events WHERE true
            ON CONFLICT DO UPDATE SET body = x'00'""",
    ],
)
def test_sqlite_has_no_other_way(sqlite_url: str, statement: str) -> None:
    """UPDATE OR REPLACE, upserts and replacing tags or journals are denied too."""
    asyncio.run(_fill(sqlite_url))
    with pytest.raises(sqlite3.IntegrityError, match=r"append-only|only grow"):
        run(sqlite_url, statement)
    assert is_as_it_was(sqlite_url)


@pytest.fixture
def logins(postgres_url: str, postgres_server: PostgresServer) -> Iterator[dict[str, str]]:
    """Addresses of login roles, each a member of one group role."""
    database = postgres_url.rpartition("/")[2]
    names = {group: f"{group}_{database}" for group in GROUPS}
    for group, name in names.items():
        postgres_server.psql(f"CREATE ROLE {name} LOGIN; GRANT {group} TO {name}")
    yield {group: postgres_server.url(database, name) for group, name in names.items()}
    for name in names.values():
        postgres_server.psql(f"DROP OWNED BY {name}", database)
        postgres_server.psql(f"DROP ROLE {name}")


@pytest.mark.parametrize("group", GROUPS)
def test_roles_lack_the_privilege(logins: dict[str, str], postgres_url: str, group: str) -> None:
    """No service role may write to the tables at all, so that no trigger is even asked."""
    asyncio.run(_fill(postgres_url))
    for statement in (*DAMAGE, *TRUNCATING, INSERT):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
            run(logins[group], statement)
    assert is_as_it_was(postgres_url)


@pytest.mark.parametrize("group", GROUPS)
def test_roles_cannot_undo_the_protection(logins: dict[str, str], group: str) -> None:
    """What the owner could do, the service roles cannot."""
    for statement in UNDOING:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            run(logins[group], statement)


async def test_the_service_appends_reads_and_makes_journals(logins: dict[str, str]) -> None:
    """A login role with ledger_service alone can do all that the journal offers."""
    url = logins["ledger_service"]
    store = store_of(url)
    await store.create_journal("desk")
    await store.close()
    async with opened(url, "desk") as journal:
        assert await journal.append(known_note(1)) == Appended((0,))
        assert (await journal.append(known_note(1))).duplicate
        [event] = await read_all(journal)
        assert (await journal.size_at(event.recorded_at)).size == 1


async def test_a_service_cannot_set_the_clock(logins: dict[str, str]) -> None:
    """What a service says about the time is refused; the owner's tests may say it."""
    async with opened(logins["ledger_service"], clock=Clock()) as journal:
        with pytest.raises(StoreUnavailable, match="only the owner"):
            await journal.append(note())
        with pytest.raises(StoreUnavailable, match="only the owner"):
            await journal.size_at(START)
        assert await journal.size() == 0


async def test_the_service_recovers_from_a_lost_connection(
    logins: dict[str, str], postgres_url: str
) -> None:
    """Ending its own lost server process needs no privilege beyond the service's."""
    owner = await asyncpg.connect(postgres_url)
    async with opened(logins["ledger_service"]) as journal:
        await journal.append(note())
        async with owner.transaction():
            await owner.execute("SELECT * FROM journals FOR UPDATE")
            task = asyncio.create_task(journal.append(known_note(1)))
            waiting = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE wait_event_type = 'Lock' AND datname = current_database()"""
            while not await owner.fetch(waiting):  # noqa: ASYNC110 - it waits in the server
                await asyncio.sleep(0.01)
        assert await task == Appended((1,))
    await owner.close()


@pytest.mark.parametrize("group", ["ledger_reader", "ledger_projector"])
async def test_readers_read_and_append_nothing(
    logins: dict[str, str], postgres_url: str, group: str
) -> None:
    """Both other roles see everything, and are refused when they append or make a journal."""
    await _fill(postgres_url)
    async with opened(logins[group]) as journal:
        events = await read_all(journal)
        assert len(events) == 2
        assert (await journal.size_at(events[1].recorded_at)).size == 2
        with pytest.raises(StoreUnavailable, match="permission denied"):
            await journal.append(note())
        with pytest.raises(StoreUnavailable, match="permission denied"):
            await journal.store.create_journal("mine")
        assert await journal.size() == 2


async def test_temporary_tables_do_not_deceive_the_append_function(
    logins: dict[str, str], postgres_url: str
) -> None:
    """The function runs with the owner's rights, so a caller's own `journals` must not be used.

    A trigger on such a table would otherwise run as the owner and could do anything.
    """
    connection = await asyncpg.connect(logins["ledger_service"])
    for table in ("journals", "events", "event_tags"):
        await connection.execute(f"CREATE TEMP TABLE {table} (LIKE public.{table})")
        await connection.execute(f"GRANT ALL ON {table} TO PUBLIC")
    await connection.execute("INSERT INTO pg_temp.journals VALUES (1, 'main', 41, NULL, now())")
    settled = await connection.fetchval("SELECT size FROM ledger_settle(1, NULL)")
    await connection.execute(
        """SELECT public.ledger_append(1, NULL, '{1}', '{1}', '{1}', '{-1}',
            ARRAY[gen_random_uuid()], '{s}', '{Noted}', '{1}', ARRAY[NULL]::timestamptz[],
            ARRAY[NULL]::bytea[], ARRAY['{"type":"Noted"}'::bytea],
            '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')"""
    )
    assert await connection.fetchval("SELECT count(*) FROM pg_temp.events") == 0
    await connection.close()
    assert settled == 0
    async with opened(postgres_url) as journal:
        assert [event.offset for event in await read_all(journal)] == [0]


def test_the_sqlite_file_stays_sound(sqlite_url: str) -> None:
    """After all the refusals SQLite's own check finds nothing wrong."""
    asyncio.run(_fill(sqlite_url))
    with pytest.raises(sqlite3.IntegrityError):
        run(sqlite_url, "DELETE FROM events")
    with closing(sqlite3.connect(Path(sqlite_url.removeprefix("sqlite:///")))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
