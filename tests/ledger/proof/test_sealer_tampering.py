"""Tampering with the database itself, past its triggers: `verify` says where, and nothing else."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

import asyncpg
import pytest

from ledger.proof.log import Sealed, log_of, verify_sealed
from ledger.proof.notes import CheckpointBody, Note, SigningKey
from tests.ledger.proof.sealers import KEY, append, root_of_events, seal, tamper
from tests.ledger.support import Clock, environment, ledger, opened
from tests.ledger.test_append_only import GROUPS, run
from tests.postgres import PostgresServer
from tests.support import programs

EVENTS = 3_000
EACH_KIND = 4

Tampering = tuple[list[str], int]
"""Statements, and the offset of the first bad event."""


def _column(name: str, value: str) -> Callable[[Random], Tampering]:
    def change(random: Random) -> Tampering:
        offset = random.randrange(EVENTS)
        return [f'UPDATE events SET {name} = {value} WHERE "offset" = {offset}'], offset

    return change


def a_body(random: Random) -> Tampering:
    """Change one byte of a body."""
    offset = random.randrange(EVENTS)
    sqlite = "CAST(replace(CAST(body AS TEXT), 'Noted', 'Noteb') AS BLOB)"
    return [f'UPDATE events SET body = {sqlite} WHERE "offset" = {offset}'], offset


def an_order(random: Random) -> Tampering:
    """Exchange two events, with all that belongs to them but their offsets."""
    first, second = sorted(random.sample(range(EVENTS), 2))
    moves = ((first, EVENTS + 9), (second, first), (EVENTS + 9, second))
    return [f'UPDATE events SET "offset" = {to} WHERE "offset" = {old}' for old, to in moves], first


def a_deletion(random: Random) -> Tampering:
    """Take one event out and leave a gap."""
    offset = random.randrange(EVENTS)
    return [f'DELETE FROM events WHERE "offset" = {offset}'], offset


def a_deletion_closed_up(random: Random) -> Tampering:
    """Take one event out and move the others up."""
    offset = random.randrange(EVENTS - 1)
    big = 10**6
    return [
        f'DELETE FROM events WHERE "offset" = {offset}',
        f'UPDATE events SET "offset" = "offset" + {big} WHERE "offset" > {offset}',
        f'UPDATE events SET "offset" = "offset" - {big + 1} WHERE "offset" > {big}',
        "UPDATE journals SET size = size - 1",
    ], offset


def an_insertion(random: Random) -> Tampering:
    """Put a forged event in and move the others down."""
    offset, big = random.randrange(EVENTS), 10**6
    forged = f"""INSERT INTO events SELECT journal_id, {offset}, {{id}}, 'forged', 1, type,
        schema_version, occurred_at, recorded_at, metadata, body FROM events
        WHERE "offset" = {offset + 1}"""
    return [
        f'UPDATE events SET "offset" = "offset" + {big} WHERE "offset" >= {offset}',
        f'UPDATE events SET "offset" = "offset" - {big - 1} WHERE "offset" >= {big}',
        forged,
        "UPDATE journals SET size = size + 1",
    ], offset


def a_truncation(random: Random) -> Tampering:
    """Cut the end off, as a backup of the journal alone would."""
    offset = random.randrange(EVENTS)
    return [
        f'DELETE FROM events WHERE "offset" >= {offset}',
        f"UPDATE journals SET size = {offset}",
    ], offset


def a_size(random: Random) -> Tampering:
    """Make the journal shorter without taking anything out."""
    offset = random.randrange(EVENTS)
    return [f"UPDATE journals SET size = {offset}"], offset


def swapped_tiles(random: Random) -> Tampering:
    """Exchange two tiles of hashes."""
    first, second = sorted(random.sample(range(EVENTS // 256), 2))
    moves = ((first, 900), (second, first), (900, second))
    where = "level = 0 AND tile_index"
    return [
        f"UPDATE hash_tiles SET tile_index = {to} WHERE {where} = {old}" for old, to in moves
    ], first * 256


def a_missing_tile(random: Random) -> Tampering:
    """Take a tile of hashes out."""
    index = random.randrange(EVENTS // 256)
    return [f"DELETE FROM hash_tiles WHERE level = 0 AND tile_index = {index}"], index * 256


KINDS = {
    "body": a_body,
    "stream": _column("stream", "'other'"),
    "version": _column("version", "version + 100000"),
    "event id": _column("event_id", "{id}"),
    "type": _column("type", "'Remarked'"),
    "schema version": _column("schema_version", "schema_version + 1"),
    "occurred": _column("occurred_at", "'2020-01-01T00:00:00.000000Z'"),
    "recorded": _column("recorded_at", "'2020-01-01T00:00:00.000000Z'"),
    "metadata": _column("metadata", "CAST('{{}}' AS BLOB)"),
    "order": an_order,
    "deletion": a_deletion,
    "deletion, closed up": a_deletion_closed_up,
    "insertion": an_insertion,
    "truncation": a_truncation,
    "size": a_size,
    "swapped tiles": swapped_tiles,
    "missing tile": a_missing_tile,
}
_IN_POSTGRES = (
    ("CAST(replace(CAST(body AS TEXT), 'Noted', 'Noteb') AS BLOB)",
     "set_byte(body, 5, get_byte(body, 5) # 1)"),
    ("AS BLOB", "AS bytea"),
    ("{id}", "gen_random_uuid()"),
)  # fmt: skip
_IN_SQLITE = (("{id}", "lower(hex(randomblob(16)))"),)


def statements_for(url: str, statements: list[str]) -> list[str]:
    """Return the statements as the database knows them."""
    for old, new in _IN_SQLITE if url.startswith("sqlite") else _IN_POSTGRES:
        statements = [each.replace(old, new) for each in statements]
    return [each.replace("{{}}", "{}") for each in statements]


class Sealings:
    """Fresh copies of a sealed journal."""

    def __init__(self, url: str, server: PostgresServer | None, folder: Path) -> None:
        self.url = url
        self._server = server
        self._folder = folder

    def copy(self) -> str:
        """Return the address of a copy."""
        if self._server is not None:
            return self._server.create_database(template=self.url.rpartition("/")[2])
        file = self._folder / "copy.db"
        return f"sqlite:///{shutil.copy(self.url.removeprefix('sqlite:///'), file)}"

    def drop(self, url: str) -> None:
        """Remove a copy."""
        if self._server is not None:
            self._server.drop_database(url)


@pytest.fixture
def sealings(database_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Sealings:
    """A sealed journal to copy."""
    asyncio.run(_fill(database_url))
    is_sqlite = database_url.startswith("sqlite")
    server = None if is_sqlite else request.getfixturevalue("postgres_server")
    return Sealings(database_url, server, tmp_path)


async def _fill(url: str) -> None:
    clock = Clock()
    async with opened(url, clock=clock) as journal:
        for size in (1000, 1000, 1000):
            await append(journal, size)
            await seal(journal)
            clock.move(100)


async def check(url: str) -> Sealed:
    """Compare a journal with what was sealed."""
    async with opened(url) as journal:
        found = await verify_sealed(journal, KEY.verifier)
        assert found is not None
        return found


def test_each_tampering_is_found_where_it_is(sealings: Sealings) -> None:
    """Whatever is changed, the first bad offset is named; an untouched copy is verified."""
    for number, (name, kind) in enumerate(KINDS.items()):
        for again in range(EACH_KIND):
            statements, offset = kind(Random(100 * number + again))
            url = sealings.copy()
            asyncio.run(tamper(url, *statements_for(url, statements)))
            found = asyncio.run(check(url))
            sealings.drop(url)
            assert not found.is_verified, (name, statements)
            assert found.offset == offset, (name, statements, found)
        url = sealings.copy()
        assert asyncio.run(check(url)).is_verified
        sealings.drop(url)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET body = 'text' WHERE \"offset\" = 70",
        "UPDATE events SET stream = CAST(x'ff' AS TEXT) WHERE \"offset\" = 70",
        "UPDATE events SET stream = x'ff' WHERE \"offset\" = 70",
        'UPDATE events SET metadata = 7 WHERE "offset" = 70',
        "UPDATE events SET event_id = 'none' WHERE \"offset\" = 70",
        'UPDATE events SET body = zeroblob(70000) WHERE "offset" = 70',
    ],
)
async def test_values_that_sqlite_should_not_hold(sqlite_url: str, statement: str) -> None:
    """What is not even of the column's type is a bad event like any other."""
    async with opened(sqlite_url) as journal:
        await append(journal, 100)
        await seal(journal)
    await tamper(sqlite_url, statement)
    assert (await check(sqlite_url)).offset == 70


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "0044-03-15 12:00 BC"])
async def test_times_that_postgresql_alone_knows(postgres_url: str, moment: str) -> None:
    """Times that no event can have are found too."""
    async with opened(postgres_url) as journal:
        await append(journal, 100)
        await seal(journal)
    await tamper(postgres_url, f"UPDATE events SET occurred_at = '{moment}' WHERE \"offset\" = 70")
    assert (await check(postgres_url)).offset == 70


async def test_everything_made_anew_but_the_signature(database_url: str) -> None:
    """Who changes an event, and tiles and seals it again with another key, is found too.

    The kept checkpoints say up to where the events are as they were.
    """
    await _fill(database_url)
    async with opened(database_url) as journal:
        changed = """UPDATE events SET version = 9999 WHERE "offset" = 1500"""
        await tamper(database_url, changed)
        root = await root_of_events(journal, EVENTS)
        body = CheckpointBody("ledger/main", EVENTS, root)
        key = SigningKey.generate("ledger/main")
        note = Note(body.text, (key.sign(body.text),)).render().decode()
        await tamper(
            database_url,
            f"UPDATE signed_checkpoints SET note = '{note}' WHERE size = {EVENTS}",
        )
        unsigned = await verify_sealed(journal)
        signed = await verify_sealed(journal, KEY.verifier)
    assert unsigned is not None
    assert signed is not None
    assert (unsigned.is_verified, unsigned.offset, unsigned.agreed) == (False, None, 1000)
    assert "size 2000 has another root: an event at offset 1000 or later" in (unsigned.fault or "")
    assert "not by ledger/main" in (signed.fault or "")


def test_damage_to_the_log_itself(sealings: Sealings) -> None:
    """A seal, a checkpoint or an upper tile that does not fit is told apart from bad events."""
    blob = "x'" if sealings.url.startswith("sqlite") else "'\\x"
    for statement, fault in (
        (f"UPDATE seals SET root = {blob}{'00' * 32}'", "the sealed root is not that of its"),
        (f"UPDATE hash_tiles SET hashes = {blob}{'00' * 32}' WHERE level = 1", "tile/1/000"),
        ("UPDATE signed_checkpoints SET note = 'x' WHERE size = 1000", "size 1000"),
        ("DELETE FROM signed_checkpoints WHERE size = 3000", "no checkpoint of the sealed size"),
    ):
        url = sealings.copy()
        asyncio.run(tamper(url, statement))
        found = asyncio.run(check(url))
        sealings.drop(url)
        assert fault in (found.fault or ""), found
        assert found.offset is None


DAMAGE = [
    "UPDATE hash_tiles SET hashes = {zero} WHERE level = 0",
    "UPDATE hash_tiles SET tile_index = 7 WHERE tile_index = 0",
    "DELETE FROM hash_tiles",
    "UPDATE seals SET size = size - 1",
    "UPDATE seals SET root = {zero}",
    "DELETE FROM seals",
    "UPDATE signed_checkpoints SET note = 'x'",
    "UPDATE signed_checkpoints SET size = size + 1",
    "DELETE FROM signed_checkpoints WHERE size = 3000",
    "DELETE FROM signed_checkpoints WHERE size = 1000",
]
TRUNCATING = ["TRUNCATE hash_tiles", "TRUNCATE seals", "TRUNCATE signed_checkpoints"]
REPLACING = [
    "REPLACE INTO hash_tiles SELECT journal_id, level, tile_index, {zero} FROM hash_tiles",
    "INSERT OR REPLACE INTO seals SELECT journal_id, origin, 0, {zero}, sealed_at FROM seals",
    "REPLACE INTO signed_checkpoints SELECT journal_id, origin, size, 'x', made_at"
    " FROM signed_checkpoints",
]


def test_nobody_changes_what_is_sealed(database_url: str) -> None:
    """Tiles and seals only grow, notes only get signatures, kept checkpoints stay; for all."""
    asyncio.run(_fill(database_url))
    is_sqlite = database_url.startswith("sqlite")
    zero = f"x'{'00' * 32}'" if is_sqlite else f"'\\x{'00' * 32}'"
    for statement in (*DAMAGE, *(REPLACING if is_sqlite else TRUNCATING)):
        with pytest.raises(
            (sqlite3.IntegrityError, asyncpg.InsufficientPrivilegeError),
            match=r"append-only|only grow",
        ):
            run(database_url, statement.replace("{zero}", zero))
    assert asyncio.run(check(database_url)).is_verified


def test_only_sealers_may_seal(postgres_url: str, postgres_server: PostgresServer) -> None:
    """A role with ledger_sealer alone seals; services, projectors and readers only look."""
    asyncio.run(_fill(postgres_url))
    name = postgres_url.rpartition("/")[2]
    for group in (*GROUPS, "ledger_sealer"):
        role = f"{group}_{name}"
        postgres_server.psql(f"CREATE ROLE {role} LOGIN; GRANT {group} TO {role}")
        url = postgres_server.url(name, role)
        if group == "ledger_sealer":
            asyncio.run(_append_and_seal(postgres_url, url))
        else:
            assert asyncio.run(check(url)).is_verified
            for statement in ("UPDATE seals SET size = size + 1", "DELETE FROM hash_tiles"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
                    run(url, statement)
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
            run(url, "DELETE FROM events")
        postgres_server.psql(f"DROP OWNED BY {role}", name)
        postgres_server.psql(f"DROP ROLE {role}")


async def _append_and_seal(owner: str, sealer: str) -> None:
    async with opened(owner) as journal:
        size = await append(journal, 10)
    async with opened(sealer) as journal:
        assert (await seal(journal)).size == size
        assert (await log_of(journal).seal()) is not None


def replay(url: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run replay.py to its end."""
    return programs.run("replay.py", *arguments, environment=environment(url))


def test_replay_verify_says_what_was_sealed(sqlite_url: str, tmp_path: Path) -> None:
    """`replay.py verify` names size and root, ends with 1 at a bad event, and checks folders."""
    asyncio.run(_fill(sqlite_url))
    said = replay(sqlite_url, "verify")
    assert said.stdout.startswith(b"sealed up to size 3000, root "), said.stderr
    assert said.returncode == 0
    folder = str(tmp_path / "log")
    assert ledger(sqlite_url, "publish", folder).returncode == 0
    checked = replay(sqlite_url, "verify", "--log", folder, "--key", KEY.vkey)
    assert (checked.returncode, checked.stdout[:8]) == (0, b"verified")
    asyncio.run(tamper(sqlite_url, """DELETE FROM events WHERE "offset" = 1234"""))
    said = replay(sqlite_url, "verify")
    assert b"the first bad event is at offset 1234" in said.stdout
    assert said.returncode == 1
