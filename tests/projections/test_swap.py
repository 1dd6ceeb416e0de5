"""The swap: what belongs to a table beside its rows comes along, and nobody is in its way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from ledger.errors import StoreUnavailable
from ledger.event import NewEvent
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections.batches import CannotWrite
from projections.database import Database, lock_statement, read_tables
from projections.groups import GROUPS, TRADING
from projections.projection import Projection
from projections.projector import Projector
from projections.rebuilding import (
    CannotCatchUp,
    CannotSwap,
    DependsOnTable,
    drop_old,
    following,
    rollback,
)
from projections.rebuilding.following import Follower
from projections.rebuilding.shape_postgres import PostgresShape
from tests.postgres import PostgresServer
from tests.projections.random_events import random_events
from tests.projections.rebuilds import (
    ALL,
    Asked,
    assert_verified,
    execute,
    fetch,
    filled,
    project,
    rebuilt,
    rolled_back,
    until,
)
from tests.projections.support import append, spared

NOTES = """CREATE TABLE notes (
    journal_id BIGINT NOT NULL, position_id UUID NOT NULL, user_id UUID, text TEXT,
    CONSTRAINT noted FOREIGN KEY (journal_id, position_id)
        REFERENCES positions (journal_id, position_id) ON DELETE CASCADE)"""
OTHERS = (
    NOTES,
    "INSERT INTO notes SELECT journal_id, position_id, user_id, 'mine' FROM positions",
    "CREATE VIEW open_positions WITH (security_barrier = true) AS"
    " SELECT p.position_id, p.status, u.username FROM positions p LEFT JOIN users u"
    " ON u.journal_id = p.journal_id AND u.user_id = p.user_id WHERE p.status = 'open'",
    "CREATE VIEW open_names AS SELECT username, count(*) FROM open_positions GROUP BY username",
    "GRANT SELECT ON open_positions TO ledger_reader",
    "REVOKE ALL ON positions FROM ledger_service",
    "GRANT SELECT (position_id, status), UPDATE (strategy) ON positions TO ledger_service",
    "GRANT DELETE ON positions TO ledger_projector WITH GRANT OPTION",
    "ALTER TABLE positions ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY only_closed ON positions FOR SELECT TO ledger_reader USING (status = 'closed')",
    "CREATE POLICY all_for_projectors ON positions TO ledger_projector, ledger_service"
    " USING (true) WITH CHECK (size IS NOT NULL OR true)",
    "CREATE FUNCTION noticed() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "CREATE TRIGGER notice AFTER UPDATE OF status ON positions FOR EACH ROW"
    " WHEN (NEW.status <> OLD.status) EXECUTE FUNCTION noticed()",
    "CREATE TRIGGER silent BEFORE INSERT ON positions FOR EACH ROW EXECUTE FUNCTION noticed()",
    "ALTER TABLE positions DISABLE TRIGGER silent",
    "CREATE TRIGGER always BEFORE INSERT ON positions FOR EACH ROW EXECUTE FUNCTION noticed()",
    "ALTER TABLE positions ENABLE ALWAYS TRIGGER always",
    "COMMENT ON TABLE positions IS 'the trading desk''s'",
    "COMMENT ON COLUMN positions.size IS 'signed'",
    "ALTER TABLE positions SET (fillfactor = 70, toast.autovacuum_enabled = false)",
    "ALTER TABLE positions ALTER COLUMN token SET STATISTICS 500",
    "ALTER TABLE positions ALTER COLUMN token SET (n_distinct = 30)",
    "ALTER TABLE positions ALTER COLUMN extra_data SET STORAGE EXTERNAL",
    "ALTER TABLE positions REPLICA IDENTITY FULL",
    "CREATE STATISTICS of_tokens (dependencies) ON token, status FROM positions",
    "CREATE PUBLICATION desk FOR TABLE positions (journal_id, position_id, status)"
    " WHERE (status <> 'open'), TABLE users WITH (publish = 'insert')",
)
SEEN = (
    "SELECT relname, ARRAY(SELECT CAST(unnest(relacl) AS text) ORDER BY 1), relrowsecurity,"
    " relforcerowsecurity, reloptions,"
    " relreplident, obj_description(oid, 'pg_class'), pg_get_userbyid(relowner), (SELECT"
    " t.reloptions FROM pg_class t WHERE t.oid = c.reltoastrelid) FROM pg_class c"
    " WHERE relname IN ('positions', 'orders', 'open_positions', 'open_names') ORDER BY 1",
    "SELECT attname, ARRAY(SELECT CAST(unnest(attacl) AS text) ORDER BY 1), attstattarget,"
    " attoptions, attstorage,"
    " col_description(attrelid, attnum) FROM pg_attribute"
    " WHERE attrelid = CAST('positions' AS regclass) AND attnum > 0 ORDER BY 1",
    "SELECT * FROM pg_policies ORDER BY 3",
    "SELECT tgname, pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE NOT tgisinternal"
    " AND tgrelid = CAST('positions' AS regclass) ORDER BY 1",
    "SELECT conname, CAST(CAST(conrelid AS regclass) AS text), pg_get_constraintdef(oid),"
    " convalidated FROM pg_constraint WHERE contype IN ('f', 'c', 'p') ORDER BY 1, 2",
    "SELECT CAST(CAST(prrelid AS regclass) AS text), pg_get_expr(prqual, prrelid),"
    " CAST(prattrs AS text) <> '' FROM pg_publication_rel ORDER BY 1",
    "SELECT pg_get_statisticsobjdef(oid) FROM pg_statistic_ext ORDER BY 1",
    "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY 1",
    "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
)


async def seen(database: Database) -> list[list[tuple[object, ...]]]:
    """Return all that belongs to the tables beside their rows."""
    return [await fetch(database, query) for query in SEEN]


@pytest.fixture
async def on_postgres(postgres_url: str) -> AsyncIterator[tuple[Settings, Journal, Database]]:
    """Settings, journal and read side of a fresh PostgreSQL database."""
    settings = Settings(database_url=postgres_url)
    async with open_journal(settings) as journal, Database(settings) as database:
        yield settings, journal, database


@pytest.fixture
async def on_sqlite(sqlite_url: str) -> AsyncIterator[tuple[Settings, Journal, Database]]:
    """The same of a SQLite file."""
    settings = Settings(database_url=sqlite_url)
    async with open_journal(settings) as journal, Database(settings) as database:
        yield settings, journal, database


Opened = tuple[Settings, Journal, Database]


async def test_all_comes_along_on_postgresql(on_postgres: Opened) -> None:
    """Rights, policies, triggers, views, foreign keys, options … are the same, there and back."""
    settings, journal, database = on_postgres
    await filled(journal, database, seed=1)
    await execute(database, *OTHERS)
    before = await seen(database)
    outcome = await rebuilt(settings, ["positions", "users"])
    assert outcome.notes == ()
    await append(journal, random_events(Random(2), 50))
    await project(journal, database)
    await rolled_back(settings, ["positions"])
    await rolled_back(settings, ["users"])
    await assert_verified(journal, database)
    await rebuilt(settings, replace_old=True)
    await assert_verified(journal, database)
    await drop_old(settings)
    for now, then in zip(await seen(database), before, strict=True):
        assert now == then
    count = "SELECT count(*) FROM positions WHERE status = 'open'"
    through_view = "SELECT count(*) FROM open_positions"
    assert await fetch(database, through_view) == await fetch(database, count) != [(0,)]
    with pytest.raises(Exception, match="noted"):
        await execute(database, "UPDATE notes SET position_id = gen_random_uuid()")


async def test_a_kept_table_has_no_ties(on_postgres: Opened) -> None:
    """What is kept refers to nothing, is published nowhere, and nothing fires on it."""
    settings, journal, database = on_postgres
    await filled(journal, database, seed=1, count=100)
    await execute(database, *OTHERS)
    await rebuilt(settings, ["positions"])
    kept = "CAST('positions__old' AS regclass)"
    for query in (
        "SELECT conname FROM pg_constraint WHERE contype = 'f'"
        f" AND {kept} IN (conrelid, confrelid)",
        f"SELECT tgname FROM pg_trigger WHERE tgrelid = {kept}",
        f"SELECT 1 FROM pg_publication_rel WHERE prrelid = {kept}",
        f"SELECT polname FROM pg_policy WHERE polrelid = {kept}",
    ):
        assert await fetch(database, query) == []


async def test_rows_that_miss_what_they_refer_to(on_postgres: Opened) -> None:
    """A foreign key of somebody's own that does not hold afterwards is named, with what to do."""
    settings, journal, database = on_postgres
    await filled(journal, database, seed=1, count=100)
    await execute(
        database,
        "INSERT INTO marks SELECT journal_id, 'GONE', price, exact_price, source, marked_at, flags,"
        " changed_size FROM marks LIMIT 1",
        "CREATE TABLE alerts (journal_id BIGINT, token TEXT, CONSTRAINT alerted FOREIGN KEY"
        " (journal_id, token) REFERENCES marks)",
        "INSERT INTO alerts SELECT journal_id, token FROM marks",
    )
    outcome = await rebuilt(settings, ["marks"], Asked(accepts=True))
    [note] = outcome.notes
    assert "foreign key alerted of alerts does not hold" in note
    assert "ALTER TABLE alerts VALIDATE CONSTRAINT alerted" in note


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("CREATE MATERIALIZED VIEW m AS SELECT status FROM orders", "materialized view m"),
        ("CREATE RULE r AS ON UPDATE TO orders DO ALSO NOTHING", "rule r on table orders"),
        ("CREATE FUNCTION f(orders) RETURNS int LANGUAGE sql AS 'SELECT 1'", r"function f\(orders"),
        (
            "CREATE FUNCTION g() RETURNS bigint LANGUAGE sql BEGIN ATOMIC"
            " SELECT count(*) FROM orders; END",
            r"function g\(\)",
        ),
        ("CREATE TABLE child () INHERITS (orders)", "table child"),
        (
            "CREATE POLICY p ON marks USING (EXISTS (SELECT FROM orders))",
            "policy p on table marks",
        ),
    ],
    ids=["materialised view", "rule", "row type", "function", "inheritance", "policy"],
)
async def test_what_cannot_follow_is_refused(
    on_postgres: Opened, statement: str, named: str
) -> None:
    """What would keep to the replaced table is named before any work is done."""
    settings, journal, database = on_postgres
    await filled(journal, database, seed=3, count=20)
    await execute(database, statement)
    with pytest.raises(DependsOnTable, match=f"cannot replace orders.*{named}"):
        await rebuilt(settings, ["orders"])
    assert (await rebuilt(settings, ["postings"])).swapped == ("postings",)


async def test_all_comes_along_on_sqlite(on_sqlite: Opened) -> None:
    """Triggers, views and foreign keys of others hold to the live table, there and back."""
    settings, journal, database = on_sqlite
    await filled(journal, database, seed=1)
    await execute(
        database,
        NOTES,
        "INSERT INTO notes SELECT journal_id, position_id, user_id, 'mine' FROM positions",
        "CREATE TABLE log (what TEXT)",
        "CREATE VIEW v AS SELECT p.status, o.order_id FROM positions p JOIN orders o"
        " USING (journal_id, position_id)",
        "CREATE TRIGGER t AFTER UPDATE ON positions BEGIN"
        " INSERT INTO log VALUES ('positions'); END",
        "CREATE TRIGGER other AFTER UPDATE ON marks BEGIN"
        " INSERT INTO log SELECT status FROM positions; END",
    )
    shown = "SELECT type, name, tbl_name FROM sqlite_master ORDER BY 1, 2"
    before = await fetch(database, shown)
    rows = await fetch(database, "SELECT count(*) FROM v")
    for _ in range(2):
        assert (await rebuilt(settings, replace_old=True)).notes == ()
        await rolled_back(settings, ["positions", "orders"])
    await drop_old(settings)
    assert await fetch(database, shown) == before
    assert await fetch(database, "SELECT count(*) FROM v") == rows
    await execute(database, "UPDATE positions SET strategy = strategy")
    assert (await fetch(database, "SELECT count(*) FROM log"))[0][0] > 0
    with pytest.raises(Exception, match="FOREIGN KEY"):
        await execute(database, f"UPDATE notes SET position_id = '{uuid4().hex}'")
    assert await fetch(database, "PRAGMA integrity_check") == [("ok",)]


async def test_kept_tables_refer_to_nothing_on_sqlite(on_sqlite: Opened) -> None:
    """Rows of a kept table that refer to nothing any more are nobody's concern."""
    settings, journal, database = on_sqlite
    await filled(journal, database, seed=1)
    await rebuilt(settings, ["orders"])
    async with Database(settings, checks_foreign_keys=False) as unchecked:
        await execute(unchecked, f"UPDATE orders__old SET position_id = '{uuid4().hex}'")
    assert (await rebuilt(settings, ["positions"])).notes == ()


async def test_what_the_database_refuses_while_tables_meet(
    settings: Settings, journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused row is left to the catching up; if that does not help, there is an end."""
    await filled(journal, database, seed=1, count=50)
    fold_to, met = Follower.fold_to, 0

    async def refused(*arguments: Any) -> dict[int, int]:
        nonlocal met
        met += 1
        if met != 2:
            raise CannotWrite(ValueError("no luck"))
        return await fold_to(*arguments)

    monkeypatch.setattr(Follower, "fold_to", refused)
    with pytest.raises(CannotSwap, match=r"could not meet the live ones in time.*no luck"):
        await rebuilt(settings, ["marks"], swap_seconds=0)
    met = 0
    with pytest.raises(CannotSwap, match=r"marks: a row cannot be written.*no luck"):
        await rebuilt(settings, ["marks"], Asked(accepts=True), swap_seconds=0.2)
    assert met > 2
    await assert_verified(journal, database)


async def test_a_long_reader_is_not_disturbed(on_postgres: Opened) -> None:
    """A snapshot sees its tables to its end; the swap waits for it, others do not wait for that."""
    settings, journal, database = on_postgres
    await filled(journal, database, seed=5)
    count = "SELECT count(*) FROM orders"
    [(expected,)] = await fetch(database, count)
    async with database.snapshot() as reader:
        swapping = asyncio.create_task(rebuilt(settings, ["orders", "positions"]))
        await asyncio.sleep(1)
        assert not swapping.done()
        async with asyncio.timeout(1):
            assert await fetch(database, count) == [(expected,)]
        assert (await reader.exec_driver_sql(count)).scalar_one() == expected
    assert (await swapping).swapped == ("positions", "orders")
    async with database.session() as session:
        assert (await (await session.connection()).exec_driver_sql(count)).scalar_one() == expected


async def test_who_holds_the_tables_is_named(on_postgres: Opened) -> None:
    """A swap that cannot have the tables gives up after a while, and says whom to ask."""
    settings, journal, database = on_postgres
    await filled(journal, database, seed=5, count=50)
    holder = await asyncpg.connect(
        settings.database_url, server_settings={"application_name": "me"}
    )
    try:
        await holder.execute("BEGIN")
        await holder.execute(lock_statement(read_tables()))
        with pytest.raises(
            CannotSwap, match=r"used by process \d+ of postgres \(me\), idle in tra"
        ):
            await rebuilt(settings, ["orders"], swap_seconds=0.5)
    finally:
        await holder.close()
    await assert_verified(journal, database)
    assert (await rebuilt(settings, ["orders"])).swapped == ("orders",)


async def test_who_holds_what_the_tables_refer_to_is_named(on_postgres: Opened) -> None:
    """A swap needs the tables that foreign keys lead to as well, and waits no longer for them."""
    settings, journal, database = on_postgres
    await filled(journal, database, seed=5, count=50)
    async with database.transaction() as holder:
        await holder.exec_driver_sql("LOCK TABLE users IN ACCESS SHARE MODE")
        swapping = asyncio.create_task(rebuilt(settings, ["orders"], swap_seconds=2))
        while not swapping.done():
            async with asyncio.timeout(1):
                await fetch(database, "SELECT count(*) FROM users")
            await asyncio.sleep(0.02)
    with pytest.raises(CannotSwap, match=r"used by process .*LOCK TABLE users"):
        await swapping
    assert (await rebuilt(settings, ["orders"])).swapped == ("orders",)


async def test_only_rebuilds_are_ended(on_postgres: Opened) -> None:
    """What a killed rebuild left at work is ended; another program of the owner is waited for."""
    settings, journal, database = on_postgres
    await filled(journal, database, seed=5, count=50)
    await rebuilt(settings, ["marks"])
    left = await holder_of(settings, "ledger rebuild")
    dump = await holder_of(settings, "dump")
    dropping = asyncio.create_task(drop_old(settings, ["marks"]))
    try:
        await until(lambda: is_dropping(database))
        assert await dump.fetchval("SELECT 1") == 1
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await left.execute("SELECT 1")
    finally:
        await dump.close()
    assert await dropping == ["marks__old"]


async def holder_of(settings: Settings, program: str) -> asyncpg.Connection[asyncpg.Record]:
    """Let a program of that name read the kept table in a transaction."""
    connection = await asyncpg.connect(
        settings.database_url, server_settings={"application_name": program}
    )
    await connection.execute("BEGIN; LOCK TABLE marks__old IN ACCESS SHARE MODE")
    return connection


async def is_dropping(database: Database) -> bool:
    """Whether only one session uses the kept table, and another waits for it."""
    locks = "SELECT granted FROM pg_locks WHERE relation = to_regclass('marks__old') ORDER BY 1"
    return await fetch(database, locks) == [(False,), (True,)]


async def test_a_checkpoint_that_is_being_made(on_postgres: Opened) -> None:
    """A projector that begins with a new journal is waited for, and its journal is not missed."""
    settings, journal, database = on_postgres
    await filled(journal, database, seed=5, count=50)
    row = "INSERT INTO checkpoints (journal_id, group_name, size, fold_version, updated_at)"
    async with database.transaction() as connection:
        await connection.exec_driver_sql(f"{row} VALUES (99, 'marks', 0, '1', now())")
        swapping = asyncio.create_task(rebuilt(settings, ["marks"]))
        await until(lambda: is_tried(database))
        assert not swapping.done()
    assert (await swapping).swapped == ("marks",)


async def is_tried(database: Database) -> bool:
    """Whether somebody waits for the checkpoints as a whole."""
    waiting = """SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'ShareRowExclusiveLock'
        AND relation = to_regclass('checkpoints')"""
    return bool(await fetch(database, waiting))


async def test_what_cannot_be_checked_is_a_note(
    on_postgres: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the checking of foreign keys fails after the swap, the swap is told with a note."""
    settings, journal, database = on_postgres
    await filled(journal, database, seed=5, count=50)

    async def failing(*_: object) -> list[str]:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(PostgresShape, "settle", failing)
    monkeypatch.setattr(PostgresShape, "mend", no_notes)
    outcome = await rebuilt(settings, ["orders"])
    assert outcome.swapped == ("orders",)
    assert "foreign keys are still to be checked (gone)" in outcome.notes[0]
    monkeypatch.undo()
    assert (await rebuilt(settings, ["marks"])).notes == ()
    assert await fetch(database, "SELECT 1 FROM pg_constraint WHERE NOT convalidated") == []


async def no_notes(*_: object) -> list[str]:
    """Mend nothing."""
    return []


async def test_a_role_that_may_read_some_tables(
    on_postgres: Opened, postgres_server: PostgresServer
) -> None:
    """A snapshot of a role with few rights locks what that role may read, and works."""
    settings, journal, database = on_postgres
    await filled(journal, database, seed=5, count=30)
    name = f"few_{uuid4().hex[:8]}"
    await execute(
        database,
        f"CREATE ROLE {name} LOGIN",
        f"GRANT SELECT ON orders TO {name}",
        f"GRANT SELECT (token) ON marks TO {name}",
    )
    url = postgres_server.url(settings.database_url.rpartition("/")[2], name)
    async with Database(Settings(database_url=url)) as limited, limited.snapshot() as reader:
        locks = "SELECT CAST(relation AS regclass) FROM pg_locks WHERE mode = 'AccessShareLock'"
        held = {row[0] for row in await fetch(database, locks)}
        assert (await reader.exec_driver_sql("SELECT count(*) FROM orders")).scalar_one()
    assert "orders" in {str(each) for each in held} or held
    await execute(database, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


async def test_appends_go_on_meanwhile(
    settings: Settings, journal: Journal, database: Database
) -> None:
    """Under steady appends and projecting, new tables catch up and take over; nothing is lost."""
    await filled(journal, database, seed=6)
    stopping = asyncio.Event()

    async def append_steadily() -> None:
        random = Random(7)
        events = [spared(each) for each in random_events(random, 3000)]
        while not stopping.is_set() and events:
            await journal.append([NewEvent(event) for event in events[:20]])
            events = events[20:]
            await asyncio.sleep(0.01)

    works = [Projector(database, journal, group).run(stopping) for group in GROUPS.values()]
    tasks = [asyncio.create_task(work) for work in [append_steadily(), *works]]
    for tables in (["positions"], ["orders", "marks"], ALL):
        outcome = await rebuilt(settings, tables, replace_old=True)
        assert all(each.is_same for each in outcome.compared)
    stopping.set()
    await asyncio.gather(*tasks)
    await project(journal, database)
    await assert_verified(journal, database)


async def test_appends_that_are_too_fast(
    settings: Settings, journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catching up that does not get closer ends with an error that says why."""
    await filled(journal, database, seed=6, count=60)
    monkeypatch.setattr(following, "BATCH_SIZE", 0)
    monkeypatch.setattr(following, "ROUNDS_MAX", 3)
    with pytest.raises(CannotCatchUp, match="appends are faster"):
        await rebuilt(settings, ["marks"])


async def test_what_is_parked_follows_its_tables(
    settings: Settings, journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebuild with a mended fold frees what was parked; going back parks it again."""
    events = random_events(Random(8), 200)
    await append(journal, events)
    [orders] = (each for each in TRADING.projections if each.name == "orders")
    kind = next(kind for kind in orders.handlers if any(type(each) is kind for each in events))
    poison(monkeypatch, orders, kind)
    await project(journal, database)
    parked = "SELECT group_name, table_name, value FROM parked_keys ORDER BY 1, 2, 3"
    before = await fetch(database, parked)
    assert {row[0] for row in before} == {"trading"}
    monkeypatch.undo()
    await rebuilt(settings, [each.name for each in TRADING.projections], Asked(accepts=True))
    assert "trading" not in {row[0] for row in await fetch(database, parked)}
    await assert_verified(journal, database)
    await rolled_back(settings, [each.name for each in TRADING.projections])
    assert await fetch(database, parked) == before
    await rebuilt(
        settings,
        [each.name for each in TRADING.projections],
        Asked(accepts=True),
        replace_old=True,
    )
    await drop_old(settings)
    assert await fetch(database, parked) == []


async def test_a_rollback_that_ends_early_loses_no_lanes(
    settings: Settings, journal: Journal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept tables have what is parked of them as before; what is folded aside has its own lanes."""
    events = random_events(Random(8), 200)
    await append(journal, events)
    [orders] = (each for each in TRADING.projections if each.name == "orders")
    kind = next(kind for kind in orders.handlers if any(type(each) is kind for each in events))
    poison(monkeypatch, orders, kind)
    await project(journal, database)
    await rebuilt(settings, ["positions"], Asked(accepts=True))
    await rebuilt(settings, ["orders"], Asked(accepts=True))
    parked = "SELECT group_name, table_name, value FROM parked_keys ORDER BY 1, 2, 3"
    before = await fetch(database, parked)
    assert {row[0] for row in before} > {"trading", "orders__old"}
    for tables in (["orders"], ["positions"], ["orders"]):
        with monkeypatch.context() as patch:
            patch.setitem(rollback.__globals__, "swap", no_swap)
            with pytest.raises(CannotSwap, match="no luck"):
                await rolled_back(settings, tables)
        assert await fetch(database, parked) == before
    await rolled_back(settings, ["positions"])
    await rolled_back(settings, ["orders"])
    after = await fetch(database, parked)
    assert {row[1:] for row in after} == {row[1:] for row in before}
    assert not any("back" in row[0] for row in after)


async def no_swap(*_: object) -> list[str]:
    """Fail where tables would be swapped."""
    raise CannotSwap(["orders"], "no luck")


def poison(monkeypatch: pytest.MonkeyPatch, projection: Projection, kind: type) -> None:  # type: ignore[type-arg]
    """Let the fold of one type of event raise."""

    def raising(*_: object) -> None:
        raise ValueError("poisoned")

    monkeypatch.setitem(projection.handlers, kind, raising)
    for name in ("_handlers", "steps", "event_types"):
        getattr(TRADING, name)  # what it has derived is put back afterwards
        monkeypatch.delitem(TRADING.__dict__, name)
