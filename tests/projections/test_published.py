"""Replaying from a published log: as from the database, or an error that names the place."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks.history import Plan, load
from ledger.event import NewEvent, RecordedEvent, event_types
from ledger.journal import Journal
from ledger.lens import Lens
from ledger.proof.folders import Folder, FolderUnavailable
from ledger.proof.log import prove, root_at, verify_sealed
from ledger.proof.merkle import leaf_hash
from ledger.proof.notes import SigningKey
from ledger.proof.publish import publish
from ledger.security.data_keys import DataKeys
from ledger.stores.subject_keys import NoKeys
from projections.database import Database
from projections.groups import GROUPS
from projections.model import values_of
from projections.projector import Projector
from projections.published import (
    PublishedJournal,
    PublishedLogInvalid,
    ReadOnlyJournal,
    open_published,
)
from projections.replaying import Readable, fold_prefix
from projections.splicing import Spliced
from projections.verification import verify
from tests.ledger.proof.logs import flipped
from tests.ledger.proof.sealers import KEY, append, seal
from tests.ledger.support import ROOT, Noted, environment, opened, settings_for, store_of
from tests.projections import support
from tests.projections.random_events import random_events

EVENTS = 1_500
PLAN = Plan(EVENTS)


async def _publish(url: str, folder: Path | str) -> None:
    async with opened(url) as journal:
        await seal(journal, 700)
        await publish(journal, Folder(folder))


@pytest.fixture
def folder(database_url: str, tmp_path: Path) -> Path:
    """A published log of a realistic history."""
    load(database_url, PLAN)
    asyncio.run(_publish(database_url, tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture(scope="module")
def small(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published log that is never changed, to be copied."""
    kept = tmp_path_factory.mktemp("small")
    url = f"sqlite:///{shutil.copy(migrated_sqlite, kept / 'ledger.db')}"
    load(url, PLAN)
    asyncio.run(_publish(url, kept / "log"))
    return kept / "log"


async def tables(journal: Journal | PublishedJournal, size: int) -> dict[str, list[object]]:
    """Return all rows of all tables after the first events."""
    found: dict[str, list[object]] = {}
    for group in GROUPS.values():
        state = await fold_prefix(journal, group, size)
        for each in group.projections:
            found[each.name] = [values_of(row) for row in group.finished(state, each.name)]
    return found


async def events_of(journal: Readable, *between: int) -> list[RecordedEvent]:
    """Return the events between two offsets, read a few hundred at a time."""
    chunks = journal.read_chunks(*between, chunk_size=300)
    return [event async for chunk in chunks for event in chunk]


async def test_replay_is_the_same_as_from_the_database(database_url: str, folder: Path) -> None:
    """Events, sizes at times, roots and all rows of all tables are equal, at several sizes."""
    async with (
        opened(database_url) as journal,
        open_published(folder, KEY.vkey, keys=journal.privacy.keys) as published,
    ):
        assert (published.name, published.journal_id) == (journal.name, journal.journal_id)
        assert await published.size() == await journal.size() == EVENTS
        events = await events_of(journal)
        assert await events_of(published) == events
        assert await events_of(published, 250, 270) == events[250:270]
        lens = Lens([type(events[900].event)], envelope=True)
        for start, stop in ((0, 256), (100, 1200)):
            of_both = [await each.read_lens(lens, start, stop) for each in (journal, published)]
            assert of_both[0] == of_both[1]
            ignored = lens.ignored
            of_both = [await each.read_but(ignored, start, stop) for each in (journal, published)]
            assert of_both[0] == of_both[1]
        for offset in (0, 700):
            moment = events[offset].recorded_at
            assert await published.size_at(moment) == await journal.size_at(moment)
        for size in (0, 257, 1024, EVENTS):
            assert await tables(published, size) == await tables(journal, size)
            assert await root_at(published, size) == await root_at(journal, size)


async def test_without_data_keys_everybody_looks_erased(database_url: str, folder: Path) -> None:
    """All but personal fields is there; with a database of keys in the settings, these too."""
    apart = settings_for(database_url).model_copy(update={"keys_database_url": database_url})
    async with (
        opened(database_url) as journal,
        open_published(folder) as blind,
        open_published(folder, settings=apart) as seeing,
    ):
        [info] = await journal.store.journals()
        redacted = Journal(journal.store, info, keys=DataKeys(NoKeys(), info.name))
        assert await tables(blind, EVENTS) == await tables(redacted, EVENTS)
        assert await tables(seeing, EVENTS) == await tables(journal, EVENTS)
        assert await tables(blind, EVENTS) != await tables(journal, EVENTS)


async def test_tables_are_compared_with_what_was_published(database_url: str, folder: Path) -> None:
    """What the log holds and what came after it make the tables; what they hold beside is named."""
    settings = settings_for(database_url)
    async with (
        opened(database_url) as journal,
        Database(settings) as database,
        open_published(folder, KEY.vkey, keys=journal.privacy.keys) as published,
    ):
        await support.append(journal, random_events(Random(3), 100))
        for group in GROUPS.values():
            await Projector(database, journal, group).catch_up()
        source = Spliced(published, journal, await published.size())
        offsets = [each.offset for each in await events_of(source)]
        assert offsets == list(range(EVENTS + 100))
        found = await verify(database, journal, GROUPS.values(), source=source)
        assert found.is_verified
        assert found.events == EVENTS + 100
        shorter = Spliced(published, journal, 900)
        assert [e.offset for e in await events_of(shorter, 700, 1000)] == list(range(700, 1000))
        async with database.engine.begin() as connection:
            await connection.execute(sa.text("UPDATE marks SET price = 1"))
        found = await verify(database, journal, GROUPS.values(), source=source)
        assert found.differences > 0
        assert {each.table for each in found.first} == {"marks"}


async def test_a_log_of_another_journal_is_refused(database_url: str, small: Path) -> None:
    """Tables are not compared with somebody else's events."""
    store = store_of(database_url)
    await store.create_journal("desk")
    await store.close()
    async with opened(database_url, "desk") as journal, open_published(small) as published:
        with pytest.raises(PublishedLogInvalid, match="holds journal 'main', not 'desk'"):
            Spliced(published, journal, EVENTS)


@pytest.mark.parametrize(
    ("options", "code"),
    [(["--tables"], 2), (["--log", "x", "--tables"], 2), (["--log", "LOG", "--tables"], 0)],
)
def test_the_command(database_url: str, folder: Path, options: list[str], code: int) -> None:
    """`replay.py verify --log DIR --key VKEY --tables` checks the log, then the tables."""
    options = [str(folder) if each == "LOG" else each for each in options]
    options += ["--key", KEY.vkey] if code == 0 else []
    done = subprocess.run(
        [sys.executable, "replay.py", "verify", *options],
        env=environment(database_url),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if code == 0:
        assert done.stdout.count("verified") == 2


async def test_times_after_the_last_event(small: Path) -> None:
    """They lead to the end, provisionally: more may have been recorded since."""
    async with open_published(small) as published:
        [last] = await events_of(published, EVENTS - 1)
        found = await published.size_at(last.recorded_at + timedelta(seconds=1))
        assert (found.size, found.provisional) == (EVENTS, True)


async def test_proofs_come_from_a_published_log_too(small: Path) -> None:
    """The log proves its events and compares itself, as the database does."""
    async with open_published(small, KEY.verifier) as published:
        proof = await prove(published, 1234)
        assert proof.extra is not None
        assert proof.verify(leaf_hash(proof.extra), KEY.verifier).size == EVENTS
        found = await verify_sealed(published, KEY.verifier)
        assert found is not None
        assert found.is_verified


async def test_streams_and_tags_are_searched(database_url: str, folder: Path) -> None:
    """Without an index they are found all the same."""
    async with opened(database_url) as journal, open_published(folder) as published:
        store, lens = published.store, Lens(event_types().values(), envelope=True)
        asked: dict[str, Any] = {"stop": 4, "envelope": True}
        for stream in {event.stream for event in await events_of(journal, 0, 5)}:
            wanted = await journal.store.read_stream(1, stream, 0, 3)
            assert await store.read_stream(1, stream, 0, 3) == wanted
            wanted_packed = await journal.store.read_packed_stream(1, stream, 0, 3, **asked)
            packed = await store.read_packed_stream(1, stream, 0, 3, **asked)
            assert lens.decode(packed) == lens.decode(wanted_packed)
            assert (packed.count, packed.last) == (wanted_packed.count, wanted_packed.last)
        for event in await events_of(journal, 0, 5):
            for tag in (*event.event.tags(), *event.event.claims()):
                wanted = await journal.store.read_tagged(1, tag, -1, 3)
                assert await store.read_tagged(1, tag, -1, 3) == wanted
                wanted_packed = await journal.store.read_packed_tagged(1, tag, -1, 3, **asked)
                packed = await store.read_packed_tagged(1, tag, -1, 3, **asked)
                assert lens.decode(packed) == lens.decode(wanted_packed)
                assert (packed.count, packed.last) == (wanted_packed.count, wanted_packed.last)


async def test_nothing_can_be_appended(small: Path) -> None:
    """A published log is there to be read."""
    async with open_published(small) as published:
        journal = Journal(published.store, (await published.store.journals())[0])
        with pytest.raises(ReadOnlyJournal, match="published log"):
            await journal.append(NewEvent(Noted(), "s"))
        with pytest.raises(ReadOnlyJournal):
            await published.store.create_journal("x")


@pytest.mark.parametrize("size", [0, 1, 256])
async def test_small_logs(sqlite_url: str, tmp_path: Path, size: int) -> None:
    """A log without events, with one, and with exactly a bundle of them."""
    async with opened(sqlite_url) as journal:
        await append(journal, size)
        await seal(journal)
        await publish(journal, Folder(tmp_path / "log"))
        async with open_published(tmp_path / "log", KEY.vkey) as published:
            assert await published.size() == size
            assert await events_of(published) == await events_of(journal)


async def test_an_object_store(sqlite_url: str) -> None:
    """A URL will do as well as a folder."""
    async with opened(sqlite_url) as journal:
        await append(journal, 600)
        await seal(journal)
        await publish(journal, Folder("memory://published"))
        async with open_published("memory://published", KEY.vkey) as published:
            assert await events_of(published) == await events_of(journal)


async def test_a_log_that_grows_meanwhile(sqlite_url: str, tmp_path: Path) -> None:
    """Who has opened a log reads it to the end that it had, though partial files are gone."""
    async with opened(sqlite_url) as journal:
        await append(journal, 300)
        await seal(journal)
        await publish(journal, Folder(tmp_path))
        async with open_published(tmp_path, KEY.vkey) as published:
            await append(journal, 700)
            await seal(journal)
            await publish(journal, Folder(tmp_path))
            assert len(await events_of(published)) == 300
            assert await root_at(published, 299) == await root_at(journal, 299)


async def test_another_key(small: Path) -> None:
    """The checkpoint must be signed by the key that is given."""
    with pytest.raises(PublishedLogInvalid, match="checkpoint: signed by ledger/main, not by"):
        async with open_published(small, SigningKey.generate("ledger/main").vkey):
            pass


async def test_no_log(tmp_path: Path) -> None:
    """An empty folder, a missing one, and a URL that nothing can read are told apart."""
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(PublishedLogInvalid, match="no log is published there"):
            async with open_published(folder):
                pass
    with pytest.raises(FolderUnavailable):
        async with open_published("nonsense://x"):
            pass


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if file.is_file())


async def test_each_tampering_is_found_when_it_is_read(small: Path, tmp_path: Path) -> None:
    """A changed byte of a bundle is told with the offset of its event, and no event before it."""
    random = Random(7)
    for number in range(40):
        copy = tmp_path / str(number)
        await asyncio.to_thread(shutil.copytree, small, copy)
        file = random.choice(_files(copy, "tile/entries/**/*"))
        await asyncio.to_thread(file.write_bytes, flipped(file.read_bytes(), random))
        with pytest.raises(PublishedLogInvalid, match=r"is not what was signed|bundle") as caught:
            async with open_published(copy, KEY.vkey) as published:
                await events_of(published)
        assert caught.value.offset is not None
        first = int(str(file.relative_to(copy / "tile/entries"))[:3]) * 256
        assert first <= caught.value.offset < first + 256


@pytest.mark.parametrize("pattern", ["tile/1/**/*", "tile/0/005.p/*", "checkpoint"])
async def test_upper_tiles_are_checked_at_once(small: Path, tmp_path: Path, pattern: str) -> None:
    """Tiles that do not lead to the signed root are refused before anything is read."""
    copy = tmp_path / "copy"
    await asyncio.to_thread(shutil.copytree, small, copy)
    [file] = _files(copy, pattern)
    await asyncio.to_thread(file.write_bytes, flipped(file.read_bytes(), Random(1)))
    with pytest.raises(PublishedLogInvalid):
        async with open_published(copy, KEY.vkey):
            pass


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
async def test_missing_and_empty_files(
    small: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """They are named."""
    copy = tmp_path / "copy"
    await asyncio.to_thread(shutil.copytree, small, copy)
    change(copy / "tile/entries/002")
    with pytest.raises(PublishedLogInvalid, match="tile/entries/002"):
        async with open_published(copy, KEY.vkey) as published:
            await events_of(published)
