"""The command `ledger`, run as a program."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from ledger import console
from ledger.cli import main
from ledger.domain.marks import PriceMarked
from ledger.engine import postgres_dsn
from ledger.errors import AppendOutcomeUnknown, LedgerError, StoreUnavailable
from ledger.event import Metadata, NewEvent, VenueAmount
from ledger.ndjson import ImportStopped
from ledger.settings import Settings, SettingsInvalid, async_url
from ledger.stores import Appended
from ledger.stores.opening import open_store
from tests.ledger import support
from tests.ledger.support import ROOT, START, an_id, environment, opened

Done = subprocess.CompletedProcess[bytes]
Ledger = Callable[..., Done]


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Ledger:
    """Run the program in this process, which saves starting another."""

    def run(url: str, *arguments: str, stdin: bytes = b"", **variables: str) -> Done:
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("LEDGER_")]:
                patch.delenv(name)
            for name, value in ({"LEDGER_DATABASE_URL": url} | variables).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["ledger", *arguments])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            with pytest.raises(SystemExit) as ended:
                main()
        output = capsysbinary.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Done(arguments, code, output.out, output.err)

    return run


def mark(number: int) -> NewEvent:
    """Return an event that the program knows."""
    event = PriceMarked(token=f"T{number % 2}", price=VenueAmount(number))
    return NewEvent(event, event_id=an_id(number), occurred_at=START)


def append_marks(url: str, count: int, first: int = 0) -> None:
    """Append events to the default journal."""

    async def run() -> None:
        async with opened(url) as journal:
            for number in range(first, first + count):
                assert await journal.append(mark(number)) == Appended((number,))

    asyncio.run(run())


def printed(done: Done) -> list[dict[str, Any]]:
    """Return the lines of JSON that a successful program printed."""
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_one_line(done: Done, code: int, text: str) -> None:
    """Hold that a program failed with one line of explanation."""
    assert (done.returncode, done.stdout) == (code, b""), done.stderr.decode()
    assert text in done.stderr.decode()
    assert done.stderr.startswith(b"ledger: ")
    assert done.stderr.count(b"\n") == 1


@contextmanager
def following(url: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `ledger tail --follow` and end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ledger", "tail", "--follow", *options],
        env=environment(url), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines_of(stream: IO[bytes] | None, count: int) -> list[int]:
    """Wait for so many lines and return the offsets in them."""
    assert stream is not None
    return [json.loads(stream.readline())["offset"] for _ in range(count)]


def test_from_an_empty_database_to_a_tail(tmp_path: Path) -> None:
    """migrate, append, size, tail as real programs: what an operator does first."""
    ledger = support.ledger
    url = f"sqlite:///{tmp_path}/new.db"
    assert_one_line(ledger(url, "size"), 3, "run `ledger migrate`")
    assert ledger(url, "migrate").stdout == b"the database is migrated\n"
    line = {"stream": "market-T", "type": "PriceMarked", "data": {"token": "T", "price": "1.50"}}
    done = ledger(url, "append", "-", "--source", "s", stdin=json.dumps(line).encode())
    assert (done.returncode, done.stdout) == (0, b"1 events stored, 0 were stored before\n")
    assert ledger(url, "size").stdout == b"1\n"
    [event] = printed(ledger(url, "tail"))
    assert event["data"] == line["data"]
    assert (event["offset"], event["stream"], event["version"]) == (0, "market-T", 1)


def test_several_journals(ledger: Ledger, database_url: str) -> None:
    """A journal is made, listed and used by its name or by LEDGER_JOURNAL."""
    assert ledger(database_url, "journals", "new", "desk 1").stdout == b"made journal desk 1\n"
    assert_one_line(ledger(database_url, "journals", "new", "desk 1"), 2, "exists already")
    append_marks(database_url, 1)
    assert ledger(database_url, "size", "--journal", "desk 1").stdout == b"0\n"
    assert ledger(database_url, "size", LEDGER_JOURNAL="desk 1").stdout == b"0\n"
    listed = [
        line.split("\t")[:2]
        for line in ledger(database_url, "journals").stdout.decode().splitlines()
    ]
    assert listed == [["main", "1"], ["desk 1", "0"]]
    found = json.loads(ledger(database_url, "journals", "--json").stdout)
    assert [journal["name"] for journal in found] == ["main", "desk 1"]
    assert_one_line(ledger(database_url, "size", "-j", "nowhere"), 2, "journals new nowhere")


@pytest.mark.parametrize("name", ["", " x", "a\nb", "x" * 101])
def test_names_that_no_journal_can_have(ledger: Ledger, sqlite_url: str, name: str) -> None:
    """The error names the field."""
    assert_one_line(ledger(sqlite_url, "journals", "new", name), 2, "journal name: ")


def test_tail_prints_the_whole_envelope(ledger: Ledger, sqlite_url: str) -> None:
    """Each line is an event with its envelope; data without its type, metadata if there are any."""
    metadata = Metadata(actor="me", correlation_id=an_id("c"))

    async def run() -> None:
        event = NewEvent(mark(1).event, "market-T1", an_id(1), START, metadata)
        async with opened(sqlite_url) as journal:
            await journal.append([event, mark(2)])

    asyncio.run(run())
    first, second = printed(ledger(sqlite_url, "tail"))
    recorded = first.pop("recorded_at")
    assert first == {
        "offset": 0, "stream": "market-T1", "version": 1, "type": "PriceMarked",
        "event_id": str(an_id(1)), "occurred_at": START.isoformat(), "schema_version": 1,
        "data": {"token": "T1", "price": "1"},
        "metadata": {"actor": "me", "correlation_id": str(an_id("c"))},
    }  # fmt: skip
    assert recorded == second["recorded_at"]
    assert "metadata" not in second


def test_tail_chooses_what_to_print(ledger: Ledger, sqlite_url: str) -> None:
    """The last ten by default, all from an offset, or one stream."""
    append_marks(sqlite_url, 15)

    def offsets(*options: str) -> list[int]:
        return [event["offset"] for event in printed(ledger(sqlite_url, "tail", *options))]

    assert offsets() == list(range(5, 15))
    assert offsets("--from", "12") == [12, 13, 14]
    assert offsets("--from", "0", "--stream", "market-T1") == list(range(1, 15, 2))
    assert offsets("--from", "99") == []


def test_what_tail_prints_can_be_appended(ledger: Ledger, sqlite_url: str, tmp_path: Path) -> None:
    """The fields that `append` reads are enough to copy a journal into another database."""
    append_marks(sqlite_url, 3)
    kept = {"stream", "type", "data", "event_id", "occurred_at", "metadata"}
    lines = [
        json.dumps({key: value for key, value in event.items() if key in kept})
        for event in printed(ledger(sqlite_url, "tail"))
    ]
    copy = f"sqlite:///{tmp_path}/copy.db"
    ledger(copy, "migrate")
    done = ledger(copy, "append", "-", stdin="\n".join(lines).encode())
    assert (done.stdout, done.stderr) == (b"3 events stored, 0 were stored before\n", b"")


def test_tail_follows(database_url: str) -> None:
    """--follow prints what comes, from where it was told to begin, and ends with Ctrl-C."""
    append_marks(database_url, 3)
    with following(database_url, "--from", "1") as process:
        assert lines_of(process.stdout, 2) == [1, 2]
        append_marks(database_url, 2, first=3)
        assert lines_of(process.stdout, 2) == [3, 4]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert b"Traceback" not in errors
    assert process.returncode in (1, 130)


def test_a_reader_that_has_seen_enough(sqlite_url: str) -> None:
    """`ledger tail | head -1` is no error and prints no complaint."""
    append_marks(sqlite_url, 2)
    with following(sqlite_url) as process:
        assert lines_of(process.stdout, 1) == [0]
        assert process.stdout is not None
        process.stdout.close()
        append_marks(sqlite_url, 200, first=2)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    "arguments", [(), ("--help",), ("append", "--help"), ("journals", "--help")]
)
def test_help(ledger: Ledger, arguments: tuple[str, ...]) -> None:
    """Help needs no database, and names the exit codes."""
    done = ledger("sqlite:////nowhere/x.db", *arguments)
    assert b"Usage: ledger" in done.stdout + done.stderr
    assert done.returncode == (0 if arguments else 2)
    assert b"Exit codes" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("append",), ("tail", "--from", "x"), ("tail", "--from", "-1")]
)
def test_wrong_usage(ledger: Ledger, sqlite_url: str, arguments: tuple[str, ...]) -> None:
    """Exit code 2 and an explanation, no traceback."""
    done = ledger(sqlite_url, *arguments)
    assert done.returncode == 2
    assert b"Usage" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("size",), ("tail",), ("append", os.devnull), ("journals",)])
def test_a_database_that_is_away(ledger: Ledger, command: tuple[str, ...]) -> None:
    """Exit code 3 and one line, in which the password does not stand."""
    done = ledger("postgresql://me:secret@127.0.0.1:1/x", *command)
    assert_one_line(done, 3, "cannot reach postgresql+asyncpg://me:***@127.0.0.1:1/x")


@pytest.mark.parametrize("url", ["postgresql://me:secret@127.0.0.1:1/x", "sqlite:////nowhere/x.db"])
def test_migrating_a_database_that_is_away(ledger: Ledger, url: str) -> None:
    """The same for migrate."""
    done = ledger(url, "migrate")
    assert_one_line(done, 3, "cannot migrate")
    assert b"secret" not in done.stderr


def test_an_unknown_revision(ledger: Ledger, sqlite_url: str) -> None:
    """A revision that does not exist is bad input."""
    assert_one_line(ledger(sqlite_url, "migrate", "nonsense"), 2, "nonsense")


def test_migrating_as_the_owner(ledger: Ledger, tmp_path: Path) -> None:
    """LEDGER_OWNER_DATABASE_URL is used by migrate, and by nothing else."""
    owner = f"sqlite:///{tmp_path}/owned.db"
    away = "postgresql://127.0.0.1:1/x"
    assert ledger(away, "migrate", LEDGER_OWNER_DATABASE_URL=owner).returncode == 0
    assert ledger(owner, "size").stdout == b"0\n"
    assert ledger(away, "size", LEDGER_OWNER_DATABASE_URL=owner).returncode == 3


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"LEDGER_POOL_SIZE": "none"}, "LEDGER_POOL_SIZE: Input should be a valid integer"),
        ({"LEDGER_POOL_SIZE": "0"}, "LEDGER_POOL_SIZE: Input should be greater"),
        ({"LEDGER_APPEND_TIMEOUT_SECONDS": "-1"}, "LEDGER_APPEND_TIMEOUT_SECONDS: "),
        ({"LEDGER_DATABASE_URL": "mysql://me:secret@x/y"}, "'mysql' is not supported"),
        ({"LEDGER_DATABASE_URL": "secret"}, "database URL: "),
        ({"LEDGER_DATABASE_URL": "postgresql://me:secret@x:port/y"}, "database URL: "),
        ({"LEDGER_DATABASE_URL": "sqlite://"}, "a journal needs a file"),
    ],
)
def test_settings_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: str
) -> None:
    """The variable is named, in one line, and no secret is repeated."""
    for name, value in ({"LEDGER_DATABASE_URL": "sqlite:///x.db"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid) as caught:
        open_store(console.load_settings())
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("plain", "driver"),
    [
        ("postgresql://u@h/d", "postgresql+asyncpg"),
        ("postgres://u@h/d", "postgresql+asyncpg"),
        ("postgresql+psycopg://u@h/d", "postgresql+asyncpg"),
        ("sqlite:///x.db", "sqlite+aiosqlite"),
        ("sqlite+pysqlite:///x.db", "sqlite+aiosqlite"),
    ],
)
def test_plain_addresses(plain: str, driver: str) -> None:
    """An address needs no driver; one that is named is replaced."""
    assert async_url(plain).drivername == driver


def test_options_of_an_address_reach_the_driver() -> None:
    """`sslmode` and others are the driver's own to read, also behind an engine."""
    dsn = postgres_dsn(async_url("postgres://u:p@h/d?sslmode=verify-full"))
    assert dsn == "postgresql://u:p@h/d?sslmode=verify-full"


def test_the_default_settings_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any variable it is a SQLite file in the working directory."""
    for name in [name for name in os.environ if name.startswith("LEDGER_")]:
        monkeypatch.delenv(name)
    settings = Settings()
    assert settings.database_url == settings.migration_url == "sqlite:///./ledger.db"
    assert settings.journal == "main"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LedgerError("x"), 2),
        (StoreUnavailable("x"), 3),
        (AppendOutcomeUnknown("x"), 3),
        (SettingsInvalid("x"), 2),
        (ImportStopped("f", 1, StoreUnavailable("x"), 0), 3),
        (ImportStopped("f", 1, LedgerError("x"), 0), 2),
    ],
)
def test_exit_codes(error: LedgerError, code: int) -> None:
    """Bad input is 2, an environment that fails is 3, also in the middle of an import."""
    assert error.exit_code == code
