"""Publishing: complete logs of static files, whatever happens on the way, and never another log."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from ledger.journal import Journal
from ledger.proof import publish as publishing
from ledger.proof.entries import entry_of
from ledger.proof.folders import Folder, FolderUnavailable
from ledger.proof.log import LogDamaged, NotSealed, log_of, newest_checkpoint
from ledger.proof.merkle import leaf_hash
from ledger.proof.notes import SigningKey
from ledger.proof.publish import LogConflict, publish
from ledger.proof.sealer import Sealer
from ledger.proof.verifier import verify_log
from tests.ledger.proof.logs import bundle_files, tile_files
from tests.ledger.proof.sealers import KEY, append, publish_until_killed, seal, tamper
from tests.ledger.support import Clock, ledger, opened
from tests.ledger.workers import ended, start

SIZES = (0, 1, 255, 256, 257, 512, 1300, 1301)


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder by their path, hidden ones too."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


async def expected_files(journal: Journal, size: int) -> dict[str, bytes]:
    """Return the entries and tiles of a log of this size, made without sealer and publisher."""
    events = await journal.store.read(journal.journal_id, 0, size)
    entries = [entry_of(journal.name, each) for each in events]
    return {**bundle_files(entries), **tile_files([leaf_hash(each) for each in entries])}


async def test_what_is_published_as_a_log_grows(database_url: str, tmp_path: Path) -> None:
    """At each size there is exactly what the format asks for, and the verifier accepts it."""
    clock, before = Clock(), 0
    async with opened(database_url, clock=clock) as journal:
        for number, size in enumerate(SIZES):
            clock.move(61)
            await append(journal, size - before)
            await seal(journal)
            done = await publish(journal, Folder(tmp_path))
            assert (done.size, done.origin) == (size, KEY.name)
            assert verify_log(tmp_path, KEY.verifier).problems == []
            found = files_in(tmp_path)
            assert found["checkpoint"] == (await newest_checkpoint(log_of(journal))).note.encode()
            kept = {path for path in found if path.startswith("checkpoints/")}
            assert {f"checkpoints/{each}" for each in SIZES[:number]} <= kept
            tiles = {path: data for path, data in found.items() if path.startswith("tile/")}
            wanted = await expected_files(journal, size)
            assert wanted.items() <= tiles.items()
            assert all(".p/" in path for path in tiles.keys() - wanted.keys())
            before = size


async def test_publishing_again_writes_nothing(database_url: str, tmp_path: Path) -> None:
    """Only what is new is written; with more signatures that is the checkpoint alone."""
    async with opened(database_url) as journal:
        await append(journal, 600)
        await seal(journal)
        assert (await publish(journal, Folder(tmp_path))).files == 8
        assert (await publish(journal, Folder(tmp_path))).files == 0
        newest = await newest_checkpoint(log_of(journal))
        text = newest.note.partition("\n\n")[0] + "\n"
        cosigned = newest.note + SigningKey.generate("witness").cosign(text, 1).line
        await log_of(journal).replace_note(newest, cosigned)
        assert (await publish(journal, Folder(tmp_path))).files == 1
        assert (tmp_path / "checkpoint").read_text(encoding="utf-8") == cosigned
        assert verify_log(tmp_path, KEY.verifier).verified


async def test_partial_tiles_go_once_they_are_full(database_url: str, tmp_path: Path) -> None:
    """What nobody needs any more does not pile up; what an older checkpoint needs stays."""
    async with opened(database_url) as journal:
        for count in (100, 100, 100):
            await append(journal, count)
            await seal(journal)
            await publish(journal, Folder(tmp_path))
        paths = files_in(tmp_path).keys()
        partial = sorted(path for path in paths if ".p/" in path)
        assert partial == ["tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/001.p/44"]


async def test_killed_anywhere(database_url: str, tmp_path: Path) -> None:
    """However often the publisher is killed, what lies there is a complete log that goes on."""
    random.seed(3)
    folder = tmp_path / "log"
    async with opened(database_url) as journal:
        for _ in range(6):
            await append(journal, 700)
            await seal(journal, random.randrange(100, 400))
            publisher = start(publish_until_killed, database_url, str(folder))
            with ended([publisher]):
                await asyncio.sleep(random.uniform(0.05, 0.4))
                os.kill(publisher.pid or 0, signal.SIGKILL)
                publisher.join()
            if (folder / "checkpoint").exists():
                assert verify_log(folder, KEY.verifier).problems == []
        done = await publish(journal, Folder(folder))
        assert verify_log(folder, KEY.verifier).size == done.size == 4200


class Interrupted(Exception):
    """Stands for being killed."""


class Failing(Folder):
    """A folder that breaks down while it writes for the nth time, in the middle of a file."""

    def __init__(self, url: Path, nth: int) -> None:
        super().__init__(url)
        self.left = nth

    def _write_local(self, path: str, data: bytes) -> None:
        self.left -= 1
        if self.left < 0:
            file = Path(self.url) / path
            if path.startswith("tile/"):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data[: len(data) // 2])
            raise Interrupted
        super()._write_local(path, data)


async def test_interrupted_at_each_file(sqlite_url: str, tmp_path: Path) -> None:
    """Also where a store leaves a file half written, publishing again completes the log."""
    async with opened(sqlite_url) as journal:
        await append(journal, 300)
        await seal(journal)
        await publish(journal, Folder(tmp_path))
        await append(journal, 700)
        await seal(journal)
        interrupted = 0
        while verify_log(tmp_path, KEY.verifier).size == 300:
            assert verify_log(tmp_path, KEY.verifier).problems == []
            interrupted += await _is_interrupted(journal, Failing(tmp_path, 1))
        assert interrupted > 4
        await publish(journal, Folder(tmp_path))
        assert verify_log(tmp_path, KEY.verifier).size == 1000
        assert verify_log(tmp_path, KEY.verifier).problems == []


async def _is_interrupted(journal: Journal, folder: Folder) -> bool:
    try:
        await publish(journal, folder)
    except Interrupted:
        return True
    return False


async def test_two_publishers_at_once(database_url: str, tmp_path: Path) -> None:
    """They write the same files, and the checkpoint never goes back."""
    async with opened(database_url) as journal:
        for _ in range(3):
            await append(journal, 400)
            await seal(journal)
            await asyncio.gather(*(publish(journal, Folder(tmp_path)) for _ in range(3)))
            assert verify_log(tmp_path, KEY.verifier).problems == []


async def test_the_checkpoint_does_not_go_back(sqlite_url: str, tmp_path: Path) -> None:
    """A publisher that is slow does not put its checkpoint over a newer one."""
    async with opened(sqlite_url) as journal:
        await append(journal, 100)
        await seal(journal)
        slow = await newest_checkpoint(log_of(journal))
        await append(journal, 100)
        await seal(journal)
        await publish(journal, Folder(tmp_path))
        assert await publishing._write_checkpoint(Folder(tmp_path), slow) == 0
        assert verify_log(tmp_path, KEY.verifier).size == 200


async def test_nothing_is_published_over_other_bytes(sqlite_url: str, tmp_path: Path) -> None:
    """A file that holds something else stays as it is, and so does the checkpoint."""
    async with opened(sqlite_url) as journal:
        await append(journal, 200)
        await seal(journal)
        await publish(journal, Folder(tmp_path))
        await append(journal, 200)
        await seal(journal)
        before = (tmp_path / "checkpoint").read_bytes()
        other = tmp_path / "tile/0/000"
        other.write_bytes(bytes(8192))
        with pytest.raises(LogConflict, match="tile/0/000 holds other bytes"):
            await publish(journal, Folder(tmp_path))
        assert (tmp_path / "checkpoint").read_bytes() == before
        assert other.read_bytes() == bytes(8192)


async def test_nothing_is_published_over_another_log(sqlite_url: str, tmp_path: Path) -> None:
    """A log of another name, one that is ahead, and one with another beginning are left alone."""
    other_file = await asyncio.to_thread(
        shutil.copy, sqlite_url.removeprefix("sqlite:///"), tmp_path / "other.db"
    )
    async with opened(sqlite_url) as journal, opened(f"sqlite:///{other_file}") as other:
        await append(journal, 300)
        await seal(journal)
        await publish(journal, Folder(tmp_path / "log"))
        await append(other, 100)
        key = SigningKey.generate("mine")
        await Sealer(other, key, "mine").catch_up()
        with pytest.raises(LogConflict, match="the journal's log is mine"):
            await publish(other, Folder(tmp_path / "log"))
        await publish(other, Folder(tmp_path / "mine"))
        assert verify_log(tmp_path / "mine", key.verifier).verified
        assert verify_log(tmp_path / "log", KEY.verifier).verified


async def test_a_restored_backup_is_not_published(sqlite_url: str, tmp_path: Path) -> None:
    """Neither while it is shorter than what was published, nor when it has gone another way."""
    async with opened(sqlite_url) as journal:
        await append(journal, 100)
        await seal(journal)
    backup = await asyncio.to_thread(
        shutil.copy, sqlite_url.removeprefix("sqlite:///"), tmp_path / "backup.db"
    )
    async with opened(sqlite_url) as journal:
        await append(journal, 200)
        await seal(journal)
        await publish(journal, Folder(tmp_path / "log"))
    async with opened(f"sqlite:///{backup}") as journal:
        with pytest.raises(LogConflict, match="lost its end"):
            await publish(journal, Folder(tmp_path / "log"))
        await append(journal, 300)
        await seal(journal)
        with pytest.raises(LogConflict, match="not how the journal's log begins"):
            await publish(journal, Folder(tmp_path / "log"))
    assert verify_log(tmp_path / "log", KEY.verifier).size == 300


async def test_a_changed_event_is_not_published(database_url: str, tmp_path: Path) -> None:
    """Where an event is no longer what was sealed, it is named, and no checkpoint is written."""
    async with opened(database_url) as journal:
        await append(journal, 500)
        await seal(journal)
        await tamper(database_url, """UPDATE events SET version = 77 WHERE "offset" = 300""")
        with pytest.raises(LogDamaged, match="offset 300 is not what was sealed"):
            await publish(journal, Folder(tmp_path))
    assert not (tmp_path / "checkpoint").exists()


async def test_an_unsealed_journal(database_url: str, tmp_path: Path) -> None:
    """There is nothing to publish, and the error says what to run."""
    async with opened(database_url) as journal:
        with pytest.raises(NotSealed, match="ledger seal"):
            await publish(journal, Folder(tmp_path))


async def test_an_object_store(sqlite_url: str) -> None:
    """Whatever fsspec knows will do; what it does not know is told in one line."""
    folder = Folder(f"memory://{uuid4()}")
    async with opened(sqlite_url) as journal:
        for count in (100, 300, 1000):
            await append(journal, count)
            await seal(journal)
            done = await publish(journal, folder)
            wanted = await expected_files(journal, done.size)
            assert await folder.read(list(wanted)) == wanted
        assert (await publish(journal, folder)).files == 0
        assert await folder.read(["no", "such"]) == {}
        assert await folder.names("nowhere") == []
    with pytest.raises(FolderUnavailable, match="Protocol not known"):
        Folder("nonsense://x")


async def test_a_folder_that_cannot_be_written(sqlite_url: str, tmp_path: Path) -> None:
    """A file in place of a folder is an error in one line."""
    (tmp_path / "file").write_bytes(b"")
    async with opened(sqlite_url) as journal:
        await append(journal, 3)
        await seal(journal)
        with pytest.raises(FolderUnavailable, match="file"):
            await publish(journal, Folder(tmp_path / "file"))


def test_the_command(sqlite_url: str, tmp_path: Path) -> None:
    """`ledger publish` says what it did; conflicts end with 3."""
    asyncio.run(_sealed(sqlite_url, 300))
    done = ledger(sqlite_url, "publish", str(tmp_path / "log"))
    assert done.stdout.startswith(b"published up to size 300, root "), done.stderr
    assert verify_log(tmp_path / "log", KEY.verifier).verified
    (tmp_path / "log/checkpoint").write_bytes(b"nonsense")
    refused = ledger(sqlite_url, "publish", str(tmp_path / "log"))
    assert (refused.returncode, refused.stdout) == (3, b"")
    assert b"is no checkpoint" in refused.stderr


async def _sealed(url: str, count: int) -> None:
    async with opened(url) as journal:
        await append(journal, count)
        await seal(journal)
