"""Sealing: the same tree whatever the steps, nothing half done, and no checkpoint that contradicts.

Entries are part of it: what is sealed is all that is stored of an event.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import stat
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.errors import LedgerError, StoredEventInvalid, StoreUnavailable
from ledger.journal import Journal
from ledger.proof import log
from ledger.proof.entries import EntryInvalid, entry_of, parse_entry, parse_named
from ledger.proof.log import (
    LogDamaged,
    NotSealed,
    consistency,
    default_origin,
    log_of,
    newest_checkpoint,
    prove,
    root_at,
    verify_sealed,
)
from ledger.proof.merkle import EMPTY_ROOT, leaf_hash, verify_consistency
from ledger.proof.notes import CheckpointBody, SigningKey, TlogProof, open_checkpoint
from ledger.proof.sealer import CannotSeal, Overtaken, Sealer
from ledger.stores import RawEvents, SignedCheckpoint, StoredEvent
from ledger.stores.sealing import StoredLog
from tests.ledger.proof.sealers import (
    KEY,
    append,
    notes,
    root_of_events,
    seal,
    seal_until_killed,
    tamper,
    wait_sealed,
)
from tests.ledger.support import Clock, ledger, note, opened
from tests.ledger.workers import ended, start

_CUT_OFF = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND query LIKE '%array_agg(stream%'"""
A_TIME = datetime(2026, 3, 1, 12, 30, 15, 120, tzinfo=UTC)
AN_EVENT = StoredEvent(
    7,
    notes(1)[0].event_id,
    'order-"1"\\',
    3,
    2,
    A_TIME,
    A_TIME + timedelta(microseconds=1),
    b'{"actor":"a"}',
    b'{"type":"Noted","text":"\xc3\xa4"}',
    "Noted",
)


def test_an_entry_is_canonical() -> None:
    """The keys stand in one order without spaces; metadata and body are embedded as stored."""
    assert entry_of('ma"in', AN_EVENT).decode() == (
        '{"v":1,"journal":"ma\\"in","offset":7,"stream":"order-\\"1\\"\\\\","version":3,'
        f'"event_id":"{AN_EVENT.event_id}","type":"Noted","schema_version":2,'
        '"recorded_at":"2026-03-01T12:30:15.000121Z","occurred_at":"2026-03-01T12:30:15.000120Z",'
        '"metadata":{"actor":"a"},"body":{"type":"Noted","text":"ä"}}'
    )


def test_an_entry_can_be_read_back() -> None:
    """Parsing gives the very same event, also one without metadata."""
    for event in (AN_EVENT, msgspec.structs.replace(AN_EVENT, metadata=None)):
        assert parse_named(entry_of("desk", event)) == ("desk", event)


@pytest.mark.parametrize(
    ("found", "put"),
    [
        (b'{"v":1', b'{"v":2'),
        (b'{"v":1', b'{ "v":1'),
        (b'"version":3', b'"version":3.0'),
        (b".000120Z", b".00012Z"),
        (b"15.000120Z", b"15.000120+00:00"),
        (b'"metadata":{"actor":"a"}', b'"metadata": {"actor":"a"}'),
        (b'"body":', b'"other":1,"body":'),
        (b"}}", b"}} "),
        (b"}}", b"}"),
        (b"\xc3\xa4", b"\xc3"),
    ],
)
def test_another_form_of_an_entry_is_refused(found: bytes, put: bytes) -> None:
    """What is not byte for byte what would be sealed is no entry."""
    entry = entry_of("main", AN_EVENT)
    assert found in entry
    with pytest.raises(EntryInvalid):
        parse_entry(entry.replace(found, put))


def test_an_entry_that_is_too_large() -> None:
    """It is named by its offset; the log format could not hold it."""
    large = msgspec.structs.replace(AN_EVENT, body=b"x" * 65_000)
    with pytest.raises(StoredEventInvalid, match=r"offset 7.*65,535"):
        entry_of("main", msgspec.structs.replace(large, metadata=b"y" * 1000))


@pytest.mark.parametrize("name", ["main", "desk 7", "a+b", "börse", "Ä/ö:1"])
def test_every_journal_has_a_name_for_its_log(name: str) -> None:
    """Whatever the journal is called, a key can be made for its log."""
    assert SigningKey.generate(default_origin(name)).name.startswith("ledger/")


async def test_everything_stored_is_sealed(database_url: str) -> None:
    """The root is that of the stored events, and a checkpoint signed by the key says so."""
    async with opened(database_url) as journal:
        size = await append(journal, 700)
        sealed = await seal(journal)
        assert (sealed.size, sealed.root) == (size, await root_of_events(journal, size))
        note = (await newest_checkpoint(log_of(journal))).note
        body, _ = open_checkpoint(note.encode(), KEY.verifier)
        assert body == CheckpointBody("ledger/main", size, sealed.root)


async def test_an_empty_journal_is_sealed_too(database_url: str) -> None:
    """Its first checkpoint says that there is nothing; sealing again signs no other one."""
    async with opened(database_url) as journal:
        assert await log_of(journal).seal() is None
        assert await root_at(journal, 0) is None
        first = await seal(journal)
        assert (first.size, first.root) == (0, EMPTY_ROOT)
        assert await seal(journal) == first
        assert len(await log_of(journal).checkpoints("ledger/main")) == 1


async def test_the_steps_do_not_matter(database_url: str) -> None:
    """Sealing at whatever sizes gives the tree, tile by tile, that sealing at once gives."""
    async with opened(database_url) as journal:
        await append(journal, 1300)
        for step in (1, 255, 256, 257, 300, 5_000):
            sealed = await Sealer(journal, KEY, step_events=step).step()
            for size in {1, sealed.size // 2, sealed.size - 1, sealed.size}:
                assert await root_at(journal, size) == await root_of_events(journal, size)
        tiles = await log_of(journal).tiles(0, 0, 100)
        assert [each.width for each in tiles] == [256] * 5 + [20]
        assert [each.width for each in await log_of(journal).tiles(1, 0, 100)] == [5]
        assert await log_of(journal).tiles(2, 0, 100) == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=6), st.integers(1, 900))
def test_any_growth_and_any_step(migrated_sqlite: Path, parts: list[int], step: int) -> None:
    """However the journal grows and is sealed, by however many sealers, root and proofs fit."""
    with tempfile.TemporaryDirectory() as folder:
        file = shutil.copy(migrated_sqlite, folder)
        asyncio.run(_grow(f"sqlite:///{file}", parts, step))


async def _grow(url: str, parts: list[int], step: int) -> None:
    async with opened(url) as journal:
        known: list[tuple[int, bytes]] = []
        for part in parts:
            size = await append(journal, part)
            sealed = await seal(journal, step)
            known.append((size, sealed.root))
        size, newest = known[-1]
        assert newest == await root_of_events(journal, size)
        for old, root in known:
            proof = await consistency(journal, old, size)
            verify_consistency(old, size, proof, root, newest)


async def test_a_proof_is_accepted(database_url: str) -> None:
    """The proof of any event leads to the signed root, now and at a size signed before."""
    async with opened(database_url) as journal:
        await append(journal, 300)
        old = await seal(journal)
        await append(journal, 1000)
        new = await seal(journal)
        for offset, size in ((0, None), (299, 300), (255, 300), (1299, None), (1024, 1300)):
            proof = TlogProof.parse((await prove(journal, offset, size)).render())
            [event] = await journal.store.read(1, offset, offset + 1)
            assert proof.extra == entry_of("main", event)
            body = proof.verify(leaf_hash(proof.extra), KEY.verifier)
            assert body.root == (old.root if size == 300 else new.root)


async def test_what_cannot_be_proved(database_url: str) -> None:
    """Nothing is proved of events that are not sealed, or at sizes of which nothing was signed."""
    async with opened(database_url) as journal:
        await append(journal, 10)
        with pytest.raises(NotSealed, match="ledger seal"):
            await prove(journal, 3)
        await seal(journal)
        await append(journal, 10)
        with pytest.raises(NotSealed, match="offset 10 is sealed at size 10"):
            await prove(journal, 10)
        with pytest.raises(NotSealed, match="of size 7 is kept; the next one is of size 10"):
            await prove(journal, 3, 7)
        assert await root_at(journal, 11) is None


async def test_old_checkpoints_are_thinned_out(database_url: str) -> None:
    """The first of each minute stays, the newest stays, and one with more signatures stays."""
    clock = Clock()
    async with opened(database_url, clock=clock) as journal:
        own, sealer = log_of(journal), Sealer(journal, KEY)
        for seconds in (0, 10, 10, 50, 1, 1, 120):
            clock.move(seconds)
            await journal.append(note())
            await sealer.step()
            if seconds == 50:
                [*_, newest] = await own.checkpoints("ledger/main")
                clock.move(1)
                await journal.append(note())
                await sealer.step()
                [*_, newest] = await own.checkpoints("ledger/main")
                cosigned = newest.note + KEY.cosign(newest.note.partition("\n\n")[0] + "\n", 1).line
                assert await own.replace_note(newest, cosigned)
                assert not await own.replace_note(newest, cosigned)
        kept = await own.checkpoints("ledger/main")
        assert [each.size for each in kept] == [1, 4, 5, 8]
        found = await verify_sealed(journal, KEY.verifier)
        assert found is not None
        assert (found.is_verified, found.checkpoints) == (True, 4)


async def test_a_clock_that_goes_back(database_url: str) -> None:
    """Thinning out goes on, and nothing fails, where minutes come again."""
    clock = Clock()
    async with opened(database_url, clock=clock) as journal:
        sealer = Sealer(journal, KEY)
        for seconds in (0, 59, 2, -60, 1, 61, -3, 1):
            clock.move(seconds)
            await journal.append(note())
            await sealer.step()
        assert (await sealer.step()).size == 8


@pytest.mark.parametrize("sealed", [0, 30])
async def test_events_that_are_gone_again_are_not_signed(
    database_url: str, sealed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the database has another last event than was hashed, nothing is signed."""
    async with opened(database_url) as journal:
        sealer = Sealer(journal, KEY)
        await append(journal, sealed)
        if sealed:
            await sealer.step()
        before = await log_of(journal).seal()
        await append(journal, 20)
        with monkeypatch.context() as patched:
            read = type(journal.store).read_raw

            async def read_elsewhere(*arguments: Any) -> RawEvents:
                raw = await read(*arguments)
                return msgspec.structs.replace(raw, event_ids=[str(UUID(int=7))] * len(raw.offsets))

            patched.setattr(type(journal.store), "read_raw", read_elsewhere)
            with pytest.raises(Overtaken):
                await sealer.step()
        assert await log_of(journal).seal() == before
        assert (await sealer.step()).root == await root_of_events(journal, sealed + 20)


async def test_two_sealers_at_once(database_url: str) -> None:
    """Only one of those that step at the same time writes; the other goes on behind it."""
    async with opened(database_url) as journal, opened(database_url) as other:
        await append(journal, 500)
        sealers = [Sealer(journal, KEY, step_events=100), Sealer(other, KEY, step_events=100)]
        overtaken = 0
        while (seal_now := await log_of(journal).seal()) is None or seal_now.size < 500:
            steps = await asyncio.gather(*(each.step() for each in sealers), return_exceptions=True)
            assert not [each for each in steps if isinstance(each, Exception | BaseException)
                        and not isinstance(each, Overtaken)]  # fmt: skip
            overtaken += sum(isinstance(each, Overtaken) for each in steps)
        assert overtaken
        assert seal_now.root == await root_of_events(journal, 500)
        found = await verify_sealed(journal, KEY.verifier)
        assert found is not None
        assert found.is_verified


async def test_killed_sealers_leave_nothing_half_done(database_url: str) -> None:
    """Processes that seal side by side are killed again and again; tiles and seal always fit."""
    random.seed(5)
    async with opened(database_url) as journal:
        for round_number in range(5):
            sealers = [start(seal_until_killed, database_url, 7) for _ in range(2)]
            with ended(sealers):
                wanted = await append(journal, 300) - random.randrange(250)
                await wait_sealed(journal, wanted)
                for each in sealers:
                    os.kill(each.pid or 0, signal.SIGKILL)
                    each.join()
            found = await verify_sealed(journal, KEY.verifier)
            assert found is not None, round_number
            assert found.is_verified, found
        sealed = await seal(journal)
        assert sealed.root == await root_of_events(journal, sealed.size)


async def test_following(database_url: str) -> None:
    """What is appended is signed within a second, until the sealer is told to stop."""
    stopping = asyncio.Event()
    async with opened(database_url) as journal:
        task = asyncio.create_task(Sealer(journal, KEY).follow(stopping))
        for _ in range(3):
            size = await append(journal, 20)
            await wait_sealed(journal, size, 5)
        stopping.set()
        await asyncio.wait_for(task, 5)


async def test_a_lost_connection_is_outlasted(postgres_url: str) -> None:
    """Where the server cuts off the sealer's connections, it says so and goes on."""
    stopping = asyncio.Event()
    lost: list[LedgerError] = []
    async with opened(postgres_url) as journal, opened(postgres_url) as own:
        task = asyncio.create_task(Sealer(own, KEY).follow(stopping, lost.append))
        size = await append(journal, 20)
        owner = await asyncpg.connect(postgres_url)
        async with asyncio.timeout(30):
            while not lost:
                size = await append(journal, 20)
                await owner.execute(_CUT_OFF)
        await owner.close()
        now = await wait_sealed(journal, size)
        stopping.set()
        await task
        assert now.root == await root_of_events(own, now.size)


async def test_another_key_or_name_is_refused(database_url: str) -> None:
    """A log keeps its name and its key; whoever has others signs nothing."""
    async with opened(database_url) as journal:
        await append(journal, 5)
        with pytest.raises(CannotSeal, match=r"the log is 'ledger/main'.*ledger keys new"):
            await Sealer(journal, SigningKey.generate("other")).catch_up()
        assert await log_of(journal).seal() is None
        await seal(journal)
        await append(journal, 5)
        with pytest.raises(LogDamaged, match="signed by ledger/main, not by"):
            await Sealer(journal, SigningKey.generate("ledger/main")).catch_up()
        with pytest.raises(CannotSeal, match="is named 'ledger/main', not 'other'"):
            await Sealer(journal, SigningKey.generate("other"), "other").catch_up()
        assert (await newest_checkpoint(log_of(journal))).size == 5


async def test_a_name_of_ones_own(database_url: str) -> None:
    """The first seal names the log; later the name need not be given again."""
    key = SigningKey.generate("books.example.com/log")
    async with opened(database_url) as journal:
        await append(journal, 5)
        await Sealer(journal, key, key.name).catch_up()
        await append(journal, 5)
        assert (await Sealer(journal, key).catch_up()).origin == key.name


async def test_a_sealer_does_not_go_back(sqlite_url: str) -> None:
    """Where the database is put back under a running sealer, it signs nothing more."""
    file = sqlite_url.removeprefix("sqlite:///")
    async with opened(sqlite_url) as journal:
        await append(journal, 100)
        await seal(journal)
    await asyncio.to_thread(shutil.copy, file, f"{file}.backup")
    async with opened(sqlite_url) as journal:
        await append(journal, 50)
        sealed = await seal(journal)
    await asyncio.to_thread(shutil.copy, f"{file}.backup", file)
    async with opened(sqlite_url) as journal:
        again = Sealer(journal, KEY)
        again._seen = sealed
        await append(journal, 70)
        with pytest.raises(CannotSeal, match="put back"):
            await again.step()
        with pytest.raises(CannotSeal, match="put back"):
            await again.step()
        assert (await newest_checkpoint(log_of(journal))).size == 100
        assert (await seal(journal)).size == 170
        with pytest.raises(CannotSeal, match="put back"):
            await again.step()


async def test_a_journal_with_a_gap(database_url: str) -> None:
    """Where events are missing that the journal should hold, nothing is sealed in their place."""
    async with opened(database_url) as journal:
        await append(journal, 20)
        await seal(journal)
        await append(journal, 20)
        await tamper(database_url, """DELETE FROM events WHERE "offset" = 33""")
        with pytest.raises(StoreUnavailable, match="does not hold all events from offset 20 to 39"):
            await Sealer(journal, KEY).step()
        assert (await newest_checkpoint(log_of(journal))).size == 20


async def test_verifying_while_it_is_sealed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That tiles grow and checkpoints are dropped meanwhile is no fault."""
    hashes = log.leaf_hashes
    async with opened(database_url, clock=Clock()) as journal:
        await append(journal, 10)
        await seal(journal)
        await append(journal, 290)
        await seal(journal)

        async def sealed_on(journal: Journal, start: int, stop: int) -> list[bytes]:
            for _ in range(2):
                await append(journal, 150)
                await seal(journal)
            return await hashes(journal, start, stop)

        monkeypatch.setattr(log, "leaf_hashes", sealed_on)
        found = await verify_sealed(journal, KEY.verifier)
        assert await log_of(journal).checkpoint("ledger/main", 300) is None
    assert found is not None
    assert (found.size, found.fault, found.agreed) == (300, None, 300)


async def test_a_checkpoint_that_is_dropped_meanwhile(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for the newest then gets the one that is the newest now."""
    read = StoredLog.checkpoint
    async with opened(database_url, clock=Clock()) as journal:
        for size in (10, 20):
            await append(journal, size)
            await seal(journal)

        async def late(self: StoredLog, origin: str, size: int) -> SignedCheckpoint | None:
            if await journal.size() == 30:
                await append(journal, 5)
                monkeypatch.undo()
                await seal(journal)
            return await read(self, origin, size)

        monkeypatch.setattr(StoredLog, "checkpoint", late)
        sealer = Sealer(journal, KEY)
        assert (await newest_checkpoint(log_of(journal))).size == 35
        assert (await sealer.step()).size == 35


def test_the_commands(database_url: str, tmp_path: Path) -> None:
    """keys, seal and prove do what they say; a key file is private and never overwritten."""
    key = tmp_path / "log.key"
    made = ledger(database_url, "keys", "new", str(key))
    assert made.returncode == 0, made.stderr
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert ledger(database_url, "keys", "show", str(key)).stdout == made.stdout
    assert made.stdout.startswith(b"ledger/main+")
    again = ledger(database_url, "keys", "new", str(key))
    assert again.returncode == 2
    assert b"never overwritten" in again.stderr
    assert ledger(database_url, "seal").returncode == 2
    asyncio.run(_append(database_url, 20))
    sealed = ledger(database_url, "seal", LEDGER_LOG_KEY_FILE=str(key))
    assert sealed.stdout.startswith(b"sealed up to size 20, root "), sealed.stderr
    proof = tmp_path / "7.tlog-proof"
    assert ledger(database_url, "prove", "7", "-o", str(proof)).returncode == 0
    assert TlogProof.parse(proof.read_bytes()).index == 7
    assert ledger(database_url, "prove", "20").returncode == 2


async def _append(url: str, count: int) -> None:
    async with opened(url) as journal:
        await append(journal, count)
