"""Rollback defence: what starts, what is refused, and the way on."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ledger.domain.logs import LogForked
from ledger.errors import StoreUnavailable
from ledger.journal import Journal, open_journal
from ledger.proof.folders import Folder
from ledger.proof.forking import CannotFork, fork
from ledger.proof.keys import write_key
from ledger.proof.log import log_of, newest_checkpoint, verify_sealed
from ledger.proof.notes import CheckpointBody, Note, open_checkpoint
from ledger.proof.publish import publish
from ledger.proof.sealer import Sealer
from ledger.proof.witness_client import witnesses_of
from ledger.proof.witnessing import (
    Cosigner,
    JournalRolledBack,
    NotWitnessed,
    WitnessUnreachable,
    all_or_first_error,
    check_sealable,
    check_witnessed,
    cosigned_by_all,
)
from ledger.services import open_ledger
from ledger.settings import Settings, SettingsInvalid
from projections.worker import Worker
from tests.ledger import workers
from tests.ledger.proof.sealers import KEY, append, notes, seal
from tests.ledger.proof.witnesses import (
    FORK_KEY,
    OTHER_WITNESS_KEY,
    WITNESS_KEY,
    Served,
    Tree,
    post,
    process,
    served,
)
from tests.ledger.support import Clock, environment, ledger
from tests.postgres import PostgresServer

Backup = Callable[[str], str]
TAMPERED = ("events", "journals")


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Served]:
    """A witness that has seen nothing."""
    with served(tmp_path / "w1") as found:
        yield found


@pytest.fixture
def settings(database_url: str, witness: Served) -> Settings:
    """Settings with a database and that witness."""
    return with_witnesses(database_url, witness.setting)


@pytest.fixture
def backup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backup]:
    """Return a function that makes a copy of a database and returns its address."""
    made: list[str] = []

    def copy(url: str) -> str:
        if url.startswith("sqlite"):
            file = tmp_path / f"backup{len(made)}.db"
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as source:
                source.execute("VACUUM INTO ?", (str(file),))
            made.append(f"sqlite:///{file}")
        else:
            server: PostgresServer = request.getfixturevalue("postgres_server")
            made.append(server.create_database(template=url.rpartition("/")[2]))
        return made[-1]

    yield copy
    for url in made:
        if not url.startswith("sqlite"):
            request.getfixturevalue("postgres_server").drop_database(url)


@pytest.fixture
def tamper(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return a function that runs SQL in a database as one who can switch its triggers off."""

    def run(url: str, sql: str) -> None:
        if url.startswith("sqlite"):
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
                triggers = file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
                for (name,) in triggers.fetchall():
                    file.execute(f"DROP TRIGGER {name}")
                file.execute(sql)
                file.commit()
        else:
            server: PostgresServer = request.getfixturevalue("postgres_server")
            off = "; ".join(f"ALTER TABLE {each} DISABLE TRIGGER ALL" for each in TAMPERED)
            server.psql(f"{off}; {sql}", url.rpartition("/")[2])

    return run


def with_witnesses(url: str, *witnesses: str, **others: object) -> Settings:
    """Return settings with witnesses, who have a second to answer."""
    values = {"database_url": url, "witnesses": " ".join(witnesses), "witness_timeout_seconds": 5}
    return Settings.model_validate({**values, **others})


async def grow(settings: Settings, count: int) -> None:
    """Append so many events, seal them, and have that cosigned."""
    async with open_journal(settings) as journal:
        await append(journal, count)
        await check_sealable(journal, settings, KEY)
        await seal(journal)
        asked = await Cosigner(journal, settings).once()
        assert not asked.failures


async def start(settings: Settings) -> int:
    """Start a service and a worker; return the journal's size."""
    async with open_ledger(settings) as service:
        size = await service.journal.size()
    stopping = asyncio.Event()
    stopping.set()
    await Worker(settings).run(stopping)
    return size


async def assert_refused(settings: Settings, *said: str) -> JournalRolledBack:
    """Hold that service, worker and sealer do not start, and say why."""
    errors = []
    async with open_journal(settings) as journal:
        before = await log_of(journal).seal()
        for starting in (
            open_ledger(settings).__aenter__(),
            Worker(settings).run(asyncio.Event()),
            check_sealable(journal, settings, KEY),
        ):
            with pytest.raises(JournalRolledBack) as refused:
                await starting
            errors.append(refused.value)
        assert await log_of(journal).seal() == before
    for error in errors:
        assert error.exit_code == 3
        assert [each for each in said if each not in str(error)] == []
    return errors[0]


async def test_a_witnessed_journal_starts(settings: Settings) -> None:
    """It is refused until it is sealed; then it starts, also with events that are not sealed."""
    with pytest.raises(NotWitnessed, match="ledger seal"):
        await start(settings)
    await grow(settings, 300)
    assert await start(settings) == 300
    async with open_journal(settings) as journal:
        await append(journal, 5)
        newest = await newest_checkpoint(log_of(journal))
        open_checkpoint(newest.note.encode(), KEY.verifier, [WITNESS_KEY.cosigner])
    assert await start(settings) == 305
    await grow(settings, 500)
    assert await start(settings) == 805


async def test_without_witnesses_nothing_is_checked(database_url: str) -> None:
    """An unsealed journal starts as ever."""
    assert await start(Settings(database_url=database_url)) == 0


async def test_a_restored_backup_is_refused(
    settings: Settings, backup: Backup, witness: Served
) -> None:
    """Also once it holds more events than were lost, while nobody has sealed these."""
    await grow(settings, 300)
    old = settings.model_copy(update={"database_url": backup(settings.database_url)})
    await grow(settings, 20)
    error = await assert_refused(old, "size 300", "cosigned size 320", "ledger fork --reason")
    assert (error.size, error.seen_size) == (300, 320)
    async with open_journal(old) as journal:
        await append(journal, 50)
    await assert_refused(old, "holds 350 events")
    assert await start(settings) == 320


@pytest.mark.parametrize("more", [20, 30], ids=["as many", "more"])
async def test_a_backup_that_was_sealed_on_is_refused(
    settings: Settings, backup: Backup, more: int
) -> None:
    """Other events in place of the lost ones are another history, at the same size and above."""
    await grow(settings, 300)
    old = settings.model_copy(update={"database_url": backup(settings.database_url)})
    await grow(settings, 20)
    async with open_journal(old) as journal:
        await journal.append(notes(more, 5_000))
        await seal(journal)
    error = await assert_refused(old, "another history", "at size 320")
    assert (error.size, error.seen_size) == (300 + more, 320)
    async with open_journal(old) as journal:
        with pytest.raises(JournalRolledBack):
            await Cosigner(journal, old).once()


async def test_a_backup_from_before_the_first_seal_is_refused(
    settings: Settings, backup: Backup
) -> None:
    """It has no checkpoint to show; services wait for one, and none is signed."""
    old = settings.model_copy(update={"database_url": backup(settings.database_url)})
    await grow(settings, 20)
    with pytest.raises(NotWitnessed):
        await start(old)
    async with open_journal(old) as journal:
        with pytest.raises(JournalRolledBack, match="cosigned size 20"):
            await check_sealable(journal, old, KEY)


@pytest.mark.parametrize("size", [299, 257])
async def test_a_lost_tail_is_refused(
    settings: Settings, tamper: Callable[[str, str], None], size: int
) -> None:
    """Events that were deleted in the database itself; no log can be continued from that."""
    await grow(settings, 300)
    tamper(settings.database_url, f'DELETE FROM events WHERE "offset" >= {size}')
    tamper(settings.database_url, f"UPDATE journals SET size = {size}")
    await assert_refused(settings, f"holds {size} events", "up to 300", "restore one that is whole")
    async with open_journal(settings) as journal:
        with pytest.raises(JournalRolledBack):
            await fork(journal, settings, FORK_KEY, "lost", "ann")


async def test_an_altered_event_is_refused(
    settings: Settings, tamper: Callable[[str, str], None]
) -> None:
    """In the last tile at the start; before that by a full verify."""
    await grow(settings, 300)
    tamper(settings.database_url, 'UPDATE events SET schema_version = 7 WHERE "offset" = 255')
    assert await start(settings) == 300
    async with open_journal(settings) as journal:
        found = await verify_sealed(journal)
        assert found is not None
        assert found.offset == 255
    tamper(settings.database_url, 'UPDATE events SET schema_version = 7 WHERE "offset" = 256')
    error = await assert_refused(settings, "another event at offset 256")
    assert error.seen_size == 256


async def test_the_way_on(settings: Settings, backup: Backup, witness: Served) -> None:
    """A fork is recorded with reason, actor and old checkpoint; then everything starts again."""
    await grow(settings, 300)
    old = settings.model_copy(update={"database_url": backup(settings.database_url)})
    await grow(settings, 20)
    async with open_journal(old) as journal:
        await append(journal, 7)
        left = await newest_checkpoint(log_of(journal))
        done = await fork(journal, old, FORK_KEY, "the disk burned", "ann")
        assert (done.old, done.seal.size, done.witnessed_size) == (left, 308, 320)
        [event] = await journal.read_stream("log-ledger/main.2")
        assert event.event == LogForked(
            origin="ledger/main.2",
            reason="the disk burned",
            checkpoint=left.note,
            witnessed_size=320,
        )
        assert event.metadata.actor == "ann"
        said = CheckpointBody.parse(Note.parse(left.note.encode()).text)
        assert (said.origin, said.size) == ("ledger/main", 300)
        assert await log_of(journal).checkpoint("ledger/main", 300) == left
        first = await log_of(journal).checkpoint("ledger/main.2", 300)
        assert first is not None
        body, _ = open_checkpoint(first.note.encode(), FORK_KEY.verifier)
        assert body.root == said.root
        found = await verify_sealed(journal, FORK_KEY.verifier)
        assert found is not None
        assert found.is_verified
        await Cosigner(journal, old).once()
        await append(journal, 3)
        await Sealer(journal, FORK_KEY).catch_up()
    assert await start(old) == 311
    assert await start(settings) == 320


async def test_a_fork_is_finished_that_was_killed_before_it_sealed(
    settings: Settings, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the old log was left the same call goes on, and needs no other name."""
    await grow(settings, 30)
    async with open_journal(settings) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(Sealer, "catch_up", _away)
            with pytest.raises(StoreUnavailable):
                await fork(journal, settings, FORK_KEY, "first", "ann")
        done = await fork(journal, settings, FORK_KEY, "second", "bob")
        assert (done.seal.origin, done.seal.size) == (FORK_KEY.name, 31)
        assert (done.old.origin, done.old.size) == (KEY.name, 30)


async def test_an_interrupted_fork_is_finished_by_the_next(
    settings: Settings, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between recording and leaving, it records nothing twice; a done one is refused."""
    await grow(settings, 30)
    async with open_journal(settings) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(type(log_of(journal)), "extend", _away)
            with pytest.raises(StoreUnavailable):
                await fork(journal, settings, FORK_KEY, "first", "ann")
        assert (await fork(journal, settings, FORK_KEY, "second", "bob")).seal.size == 31
        [event] = await journal.read_stream("log-ledger/main.2")
        assert isinstance(event.event, LogForked)
        assert (event.event.reason, event.metadata.actor) == ("first", "ann")
        for key in (FORK_KEY, KEY):
            with pytest.raises(CannotFork, match="new name"):
                await fork(journal, settings, key, "again", "ann")
        named = settings.model_copy(update={"log_origin": "ledger/main"})
        with pytest.raises(CannotFork, match="LEDGER_LOG_ORIGIN"):
            await fork(journal, named, FORK_KEY, "again", "ann")


async def _away(*_: object) -> bool:
    raise StoreUnavailable("away")


@contextlib.contextmanager
def babbling(text: bytes) -> Iterator[str]:
    """Serve what answers 200 with the same text to all."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


async def test_a_witness_that_cannot_be_reached(
    settings: Settings, witness: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing starts, or all does with a warning, as is set; one that answers is enough."""
    await grow(settings, 30)
    witness.server.server_close()
    with pytest.raises(WitnessUnreachable, match="LEDGER_WITNESS_UNREACHABLE=warn"):
        await start(settings)
    careless = settings.model_copy(update={"witness_unreachable": "warn"})
    assert await start(careless) == 30
    assert "witness.example/w1 did not answer" in caplog.text
    with served(tmp_path / "w2", OTHER_WITNESS_KEY) as other:
        both = with_witnesses(settings.database_url, witness.setting, other.setting)
        assert await start(both) == 30


async def test_a_witness_must_sign(settings: Settings) -> None:
    """An answer without its signature is none: neither nonsense nor another's."""
    await grow(settings, 30)
    async with open_journal(settings) as journal:
        newest = await newest_checkpoint(log_of(journal))
        stranger = OTHER_WITNESS_KEY.cosign(Note.parse(newest.note.encode()).text, 1)
        wrong = WITNESS_KEY.cosign(Note.parse(newest.note.encode()).text.replace("30", "31"), 1)
        for text in (b"", b"hello\n", stranger.line.encode(), wrong.line.encode()):
            with babbling(text) as url:
                fake = with_witnesses(settings.database_url, f"{url} {WITNESS_KEY.cosigner.vkey}")
                with pytest.raises(WitnessUnreachable, match="without its cosignature"):
                    await check_witnessed(journal, fake)


async def test_a_silent_witness_takes_no_longer_than_is_set(settings: Settings) -> None:
    """One that takes the connection and says nothing is given up on."""
    await grow(settings, 30)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        mute = with_witnesses(
            settings.database_url,
            f"{url} {WITNESS_KEY.cosigner.vkey}",
            witness_timeout_seconds=0.2,
        )
        with pytest.raises(WitnessUnreachable, match=r"0\.2 s|timed out"):
            await start(mute)


async def test_services_that_start_while_it_is_sealed(database_url: str, tmp_path: Path) -> None:
    """No false alarm while a sealer in another process gets ahead and has that cosigned."""
    with process(tmp_path / "w") as (_, port):
        url = f"http://127.0.0.1:{port} {WITNESS_KEY.cosigner.vkey}"
        settings = with_witnesses(database_url, url, witness_seconds=0.01)
        await grow(settings, 10)
        sealing = workers.start(seal_until_killed, settings)
        with workers.ended([sealing]):
            async with open_journal(settings) as journal:
                stopping = asyncio.Event()
                appending = asyncio.create_task(_append_until(journal, stopping))
                try:
                    await asyncio.gather(*(start(settings) for _ in range(8)))
                    await _wait_sealed(journal, 100)
                    await asyncio.gather(*(start(settings) for _ in range(8)))
                finally:
                    stopping.set()
                    await appending
            assert sealing.is_alive()


def seal_until_killed(settings: Settings) -> None:
    """Be a process that seals and has that cosigned, as `ledger seal --follow` does."""
    asyncio.run(_seal_until_killed(settings))


async def _seal_until_killed(settings: Settings) -> None:
    async with open_journal(settings) as journal:
        forever = asyncio.Event()
        sealing = Sealer(journal, KEY, step_events=3).follow(forever)
        cosigning = Cosigner(journal, settings).follow(forever, lambda _: None)
        await all_or_first_error(sealing, cosigning)


async def _append_until(journal: Journal, stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        await append(journal, 10)


async def _wait_sealed(journal: Journal, size: int) -> None:
    async with asyncio.timeout(60), journal.wakeups() as wakeups:
        while (await newest_checkpoint(log_of(journal))).size < size:
            await wakeups.wait(0.05)


async def test_a_witness_that_is_killed_has_lost_nothing(
    sqlite_url: str, tmp_path: Path, backup: Backup
) -> None:
    """Killed before its answer, it refuses a backup from before that, and cosigns the rest."""
    with process(tmp_path / "w", "after") as (_, port):
        settings = with_witnesses(
            sqlite_url, f"http://127.0.0.1:{port} {WITNESS_KEY.cosigner.vkey}"
        )
        async with open_journal(settings) as journal:
            await append(journal, 10)
            await seal(journal)
            old = backup(sqlite_url)
            await append(journal, 10)
            await seal(journal)
            asked = await Cosigner(journal, settings).once()
            assert list(asked.failures) == [WITNESS_KEY.name]
    with process(tmp_path / "w") as (_, port):
        again = f"http://127.0.0.1:{port} {WITNESS_KEY.cosigner.vkey}"
        await assert_refused(with_witnesses(old, again), "cosigned size 20")
        async with open_journal(settings) as journal:
            asked = await Cosigner(journal, with_witnesses(sqlite_url, again)).once()
            assert (len(asked.signatures), asked.failures) == (1, {})


async def test_a_checkpoint_that_is_replaced_while_it_is_cosigned(
    settings: Settings, witness: Served
) -> None:
    """A sealer drops it for the next one meanwhile; it comes back with its cosignature."""
    await grow(settings, 10)
    clock = Clock()
    async with open_journal(settings, clock=clock) as journal:
        asked, sealed = threading.Event(), threading.Event()

        def hold() -> None:
            asked.set()
            assert sealed.wait(20)

        await append(journal, 1)
        sealer = Sealer(journal, KEY)
        await sealer.catch_up()
        await append(journal, 1)
        await sealer.catch_up()
        witness.witness.before = hold
        cosigning = asyncio.create_task(Cosigner(journal, settings).once())
        await asyncio.to_thread(asked.wait, 20)
        await append(journal, 1)
        await sealer.catch_up()
        assert await log_of(journal).checkpoint("ledger/main", 12) is None
        sealed.set()
        await cosigning
        found = await log_of(journal).checkpoint("ledger/main", 12)
        assert found is not None
        open_checkpoint(found.note.encode(), KEY.verifier, [WITNESS_KEY.cosigner])


async def test_cosigned_checkpoints_do_not_pile_up(settings: Settings) -> None:
    """Of a minute the first is kept, and the newest that is cosigned."""
    clock = Clock()
    async with open_journal(settings, clock=clock) as journal:
        sealer, cosigner = Sealer(journal, KEY), Cosigner(journal, settings)
        for _ in range(3):
            for _ in range(4):
                clock.move(5)
                await append(journal, 1)
                await sealer.catch_up()
                await cosigner.once()
            clock.move(60)
        kept = await log_of(journal).checkpoints("ledger/main")
        assert [each.size for each in kept] == [1, 5, 9, 12]
        for each in kept:
            open_checkpoint(each.note.encode(), KEY.verifier, [WITNESS_KEY.cosigner])


async def test_what_all_witnesses_signed_is_kept_while_one_is_away(
    settings: Settings, witness: Served, tmp_path: Path
) -> None:
    """Checkpoints that fewer have signed make room for each other, not the last that all signed."""
    clock, keys = Clock(), [WITNESS_KEY.cosigner, OTHER_WITNESS_KEY.cosigner]
    with served(tmp_path / "w2", OTHER_WITNESS_KEY) as other:
        both = with_witnesses(settings.database_url, witness.setting, other.setting)
        async with open_journal(both, clock=clock) as journal:
            sealer, cosigner = Sealer(journal, KEY), Cosigner(journal, both)
            for size in range(1, 6):
                if size == 3:
                    other.server.server_close()
                clock.move(5)
                await append(journal, 1)
                await sealer.catch_up()
                await cosigner.once()
            log = log_of(journal)
            assert [each.size for each in await log.checkpoints("ledger/main")] == [1, 2, 5]
            newest = await newest_checkpoint(log)
            assert (await cosigned_by_all(log, newest, keys)).size == 2


async def test_the_newest_cosigned_checkpoint_is_published(
    settings: Settings, tmp_path: Path
) -> None:
    """With its cosignature, also while a newer one is not cosigned; without any, none."""
    async with open_journal(settings) as journal:
        await append(journal, 300)
        await seal(journal)
        folder, keys = Folder(str(tmp_path / "log")), [WITNESS_KEY.cosigner]
        with pytest.raises(NotWitnessed, match="ledger witness cosign"):
            await publish(journal, folder, cosigners=keys)
        await Cosigner(journal, settings).once()
        await append(journal, 100)
        await seal(journal)
        assert (await publish(journal, folder, cosigners=keys)).size == 300
        published = (tmp_path / "log" / "checkpoint").read_bytes()
        body, _ = open_checkpoint(published, KEY.verifier, keys)
        assert body.size == 300
        assert (await publish(journal, folder)).size == 400
        assert (await publish(journal, folder, cosigners=keys)).files == 0
        await Cosigner(journal, settings).once()
        assert (await publish(journal, folder, cosigners=keys)).size == 400
        open_checkpoint((tmp_path / "log" / "checkpoint").read_bytes(), KEY.verifier, keys)


@pytest.mark.parametrize(
    ("witnesses", "said"),
    [
        ("http://localhost", "in turn"),
        (f"ftp://localhost {WITNESS_KEY.cosigner.vkey}", "no http"),
        (f"http:// {WITNESS_KEY.cosigner.vkey}", "no http"),
        (f"http://localhost:x {WITNESS_KEY.cosigner.vkey}", "LEDGER_WITNESSES"),
        (f"http://localhost {WITNESS_KEY.vkey}", "ledger witness key"),
        (f"http://localhost {WITNESS_KEY.cosigner.vkey[:-4]}", "LEDGER_WITNESSES"),
    ],
    ids=range(6),
)
def test_settings_that_are_wrong(witnesses: str, said: str) -> None:
    """Each says what is wrong with it."""
    with pytest.raises(SettingsInvalid, match=said):
        witnesses_of(Settings(witnesses=witnesses))


def test_the_commands(sqlite_url: str, tmp_path: Path, witness: Served) -> None:
    """seal, append, witness check, fork: what they print, and their exit codes."""
    for name, key in (("log.key", KEY), ("log2.key", FORK_KEY), ("w.key", WITNESS_KEY)):
        write_key(tmp_path / name, key)
    event = b'{"stream":"market-A","type":"PriceMarked","data":{"token":"A","price":"1"}}\n'
    old = tmp_path / "old.db"

    def run(*arguments: str, url: str = sqlite_url, key: str = "log.key") -> tuple[int, str, str]:
        done = ledger(
            url,
            *arguments,
            stdin=event,
            LEDGER_WITNESSES=witness.setting,
            LEDGER_LOG_KEY_FILE=str(tmp_path / key),
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    assert run("append", "-", "--source", "a")[0] == 3
    assert run("seal")[0] == 0
    shutil.copy(sqlite_url.removeprefix("sqlite:///"), old)
    assert run("append", "-", "--source", "a")[0] == 0
    assert run("seal")[0] == 0
    backup = f"sqlite:///{old}"
    for command in (("append", "-", "--source", "b"), ("seal",), ("witness", "check")):
        code, _, error = run(*command, url=backup)
        assert (code, "has cosigned size 1" in error) == (3, True)
    assert run("fork", "--reason", "restored", url=backup)[0] == 2  # the key is the old log's
    code, said, _ = run("fork", "--reason", "restored", url=backup, key="log2.key")
    assert (code, said.partition(",")[0]) == (
        0,
        "left ledger/main at size 0; ledger/main.2 is sealed up to size 1",
    )
    assert run("append", "-", "--source", "b", url=backup)[0] == 0


def test_a_witness_is_served(tmp_path: Path) -> None:
    """`ledger witness serve` says where it listens and with what key, until it is stopped."""
    write_key(tmp_path / "w.key", WITNESS_KEY)
    command = [sys.executable, "-m", "ledger", "witness", "serve", "--listen", "127.0.0.1:0"]
    options = ["--key", "w.key", "--state", "state", "--log", KEY.vkey]
    with subprocess.Popen(
        command + options, stdout=subprocess.PIPE, cwd=tmp_path, env=environment(""), text=True
    ) as program:
        assert program.stdout is not None
        words = program.stdout.readline().split()
        assert words[:3] == ["listening", "at", "port"]
        assert words[-1] == WITNESS_KEY.cosigner.vkey
        assert post(int(words[3].rstrip(",")), Tree().request(0, 3))[0] == 200
        program.terminate()
        assert program.wait(20) == 0
