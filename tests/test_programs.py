"""The programs among others: pipes that end, disks that are full, feeds that wait, addresses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest
from sqlalchemy import make_url

from ledger import console
from tests.ledger.support import ROOT, an_id, environment, ledger, opened

MODULE, REPLAY = (sys.executable, "-m"), (sys.executable, str(ROOT / "replay.py"))
PRINTING = {
    "projections status": (*MODULE, "projections", "status"),
    "replay.py verify": (*REPLAY, "verify"),
    "ledger journals": (*MODULE, "ledger", "journals"),
    "replay.py as-of": (*REPLAY, "as-of", "--size", "0", "--format", "json"),
}
FULL = Path("/dev/full")
SECONDS_MAX = 30

printing = pytest.mark.parametrize("command", PRINTING.values(), ids=PRINTING)


def run(
    url: str, command: tuple[str, ...], stdout: int | IO[bytes] = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end."""
    return subprocess.run(
        command,
        env=environment(url),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        check=False,
        timeout=60,
    )


@printing
def test_a_reader_that_is_gone(sqlite_url: str, command: tuple[str, ...]) -> None:
    """Whoever closed the pipe wants no more: that is no error, and nothing is said about it."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run(sqlite_url, command, writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@printing
@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_output_that_cannot_be_written(sqlite_url: str, command: tuple[str, ...]) -> None:
    """A full disk is a failure of the environment, said in one line."""
    with FULL.open("wb") as full:
        done = run(sqlite_url, command, full)
    assert done.returncode == 3, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == 1


@contextmanager
def importing(url: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Run `ledger append -` with a feed that stays open; end it."""
    process = subprocess.Popen(
        [*MODULE, "ledger", "append", "-"], env=environment(url), cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    try:
        yield process, process.stdin
    finally:
        process.kill()
        process.communicate()


def feed(lines: IO[bytes], number: int, price: str = "1.5") -> None:
    """Write a line of the feed."""
    line = {
        "stream": "market-T",
        "type": "PriceMarked",
        "data": {"token": "T", "price": price},
        "event_id": str(an_id(number)),
    }
    lines.write(json.dumps(line).encode() + b"\n")
    lines.flush()


def wait_stored(url: str, size: int) -> None:
    """Wait until the journal holds so many events."""

    async def work() -> None:
        async with opened(url) as journal:
            assert await journal.wait(size, SECONDS_MAX) == size

    asyncio.run(work())


def test_a_live_feed_is_stored_as_it_comes(database_url: str) -> None:
    """A line is stored when it is there, not when there are many."""
    with importing(database_url) as (process, lines):
        for number in range(3):
            feed(lines, number)
            wait_stored(database_url, number + 1)
        for number in range(3, 1500):
            feed(lines, number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert output == b"1500 events stored, 0 were stored before\n"


def test_a_bad_line_of_a_live_feed_ends_it_at_once(sqlite_url: str) -> None:
    """What came before a bad line is stored; the program does not wait for the feed's end."""
    with importing(sqlite_url) as (process, lines):
        feed(lines, 1)
        feed(lines, 2, "nonsense")
        assert process.wait(SECONDS_MAX) == 2
        assert process.stderr is not None
        errors = process.stderr.read()
    assert b"line 2: data" in errors
    assert b"1 lines are stored" in errors
    wait_stored(sqlite_url, 1)


def test_an_idle_import_ends_at_one_interrupt(database_url: str) -> None:
    """Ctrl-C ends an import that waits for its feed, the first time, and keeps what came."""
    with importing(database_url) as (process, lines):
        feed(lines, 1)
        wait_stored(database_url, 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    wait_stored(database_url, 1)


@pytest.mark.parametrize(
    "command",
    [
        (*MODULE, "ledger", "size"),
        (*MODULE, "ledger", "migrate"),
        (*MODULE, "projections", "status"),
        (*REPLAY, "verify"),
    ],
    ids=["ledger size", "ledger migrate", "projections status", "replay.py verify"],
)
def test_an_address_may_name_the_application(postgres_url: str, command: tuple[str, ...]) -> None:
    """What libpq takes in an address goes to the server, by every program alike."""
    url = make_url(postgres_url).update_query_dict({"application_name": "x"})
    done = run(url.render_as_string(hide_password=False), command)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_migrating_nothing_is_refused(url: str, tmp_path: Path) -> None:
    """A database in memory would be gone at once; nothing is made, nothing is claimed."""
    done = ledger(url, "migrate", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr
    assert b"a journal needs a file" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_gets_lost_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that swallows the first cancellation, as drivers may, is cancelled again."""
    monkeypatch.setattr(console, "INSIST_SECONDS", 0.01)

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        console.run(work())
