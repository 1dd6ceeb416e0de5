"""The commands `replay.py report …`: points, files, exit codes, and what they say of themselves."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest

import replay
from ledger import console
from ledger.journal import open_journal
from ledger.settings import Settings
from projections.reports import writing
from projections.reports.ocsf import KINDS
from projections.reports.span import find_span
from tests.ledger.support import Clock
from tests.projections.random_events import random_events
from tests.projections.support import append

Run = Callable[..., tuple[int, str, str]]
SIZE = 300


@pytest.fixture
def run(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `replay.py report` on a journal of 300 events; return exit code, output and errors."""
    monkeypatch.setenv("LEDGER_DATABASE_URL", sqlite_url)

    async def work() -> None:
        async with open_journal(Settings(database_url=sqlite_url)) as journal:
            assert await append(journal, random_events(Random(5), SIZE)[:SIZE]) == SIZE

    asyncio.run(work())

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["replay.py", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            console.main(replay.app, "replay.py")
        output, errors = capfd.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


def test_reports_go_to_standard_output(run: Run) -> None:
    """Lines there; journal, sizes and root on standard error."""
    code, output, errors = run("security")
    assert code == 0
    lines = [json.loads(line) for line in output.splitlines()]
    assert len(lines) > 10
    assert errors == (
        f"report security: {len(lines)} lines, journal main from size 0 to size {SIZE}, "
        "root: not sealed\n"
    )
    code, output, errors = run("orders", "--from", 100, "--to", 200, "--format", "ndjson")
    lines = [json.loads(line) for line in output.splitlines()]
    assert code == 0
    assert {100 <= line["offset"] < 200 for line in lines} == {True}
    assert "from size 100 to size 200" in errors


def test_files_come_with_what_they_were_made_of(run: Run, tmp_path: Path) -> None:
    """The digest is that of the file's bytes, also in a format that is no text."""
    for output in ("csv", "ndjson", "parquet"):
        if output == "parquet":
            pytest.importorskip("pyarrow", reason="pyarrow is an extra")
        file = tmp_path / f"orders.{output}"
        assert run("orders", "-o", file, "--format", output)[:2] == (0, "")
        about = json.loads((tmp_path / f"orders.{output}.about.json").read_text())
        assert about.pop("lines") > 10
        found = file.read_bytes()
        assert about == {
            "report": "orders",
            "format": output,
            "journal": "main",
            "first_offset": 0,
            "size": SIZE,
            "bytes": len(found),
            "sha256": hashlib.sha256(found).hexdigest(),
        }


def test_no_file_is_replaced_and_none_is_left_half(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a report nor what stands beside it."""
    file, about = tmp_path / "r.ndjson", tmp_path / "r.ndjson.about.json"
    for there in (file, about):
        there.write_text("mine")
        code, _, errors = run("security", "-o", file)
        assert (code, there.name in errors, there.read_text()) == (2, True, "mine")
        there.unlink()
    monkeypatch.setattr(writing, "encode_ndjson", fail)
    assert run("security", "-o", file)[0] == 3
    assert list(tmp_path.glob("r.*")) == []


def fail(_rows: object) -> bytes:
    """Run out of room."""
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--to", SIZE + 1), f"--to: journal 'main' holds only {SIZE} events"),
        (("--from", 5, "--to", 4), "--from 5 (size 5) lies behind the end at size 4"),
        (("--from", "yesterday"), "--from: 'yesterday' is not an ISO 8601 time"),
        (("--to", "2026-01-01T00:00:00"), "has no time zone"),
        (("--journal", "other"), "no journal is named 'other'"),
    ],
)
def test_bad_requests_are_refused(run: Run, arguments: tuple[object, ...], reason: str) -> None:
    """With one line and exit code 2; nothing is written."""
    code, output, errors = run("orders", *arguments)
    assert (code, output) == (2, "")
    assert reason in errors


def test_parquet_without_its_library_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra: the error says how to get it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, errors = run("orders", "--format", "parquet")
    assert code == 3
    assert "needs pyarrow" in errors


async def test_a_time_is_the_size_then(database_url: str) -> None:
    """The report of one month begins where that of the month before ends."""
    clock = Clock()
    async with open_journal(Settings(database_url=database_url), clock=clock) as journal:
        for event in random_events(Random(6), 10)[:10]:
            await append(journal, [event])
            clock.move(60)
        first, last = (clock.now - timedelta(seconds=n) for n in (6 * 60, 3 * 60))
        span = await find_span(journal, first.isoformat(), last.isoformat())
        assert (span.start, span.stop, span.provisional) == (5, 8, False)
        following = await find_span(journal, last.isoformat(), None)
        assert (following.start, following.stop) == (8, 10)
        future = await find_span(journal, None, (clock.now + timedelta(days=1)).isoformat())
        assert (future.stop, future.provisional) == (10, True)


def test_the_security_report_is_ocsf_alone(run: Run) -> None:
    """Other events are none of its business."""
    _, output, _ = run("security")
    names = {known.__name__ for known in KINDS}
    codes = [json.loads(line)["metadata"]["event_code"] for line in output.splitlines()]
    assert set(codes) <= names
    assert run("security", "--format", "csv")[0] == 2


def test_reports_name_the_root_of_a_sealed_journal(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line, what stands beside the file, and standard error say the same."""

    async def root_at(_journal: object, size: int) -> bytes:
        assert size == 200
        return bytes(range(32))

    monkeypatch.setattr("projections.reports.span.root_at", root_at)
    root = base64.b64encode(bytes(range(32))).decode()
    file = tmp_path / "orders"
    _, _, errors = run("orders", "--to", 200, "--format", "ndjson", "-o", file)
    assert errors.endswith(f", root: {root}\n")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(line["journal_size"], line["journal_root"]) for line in lines} == {(200, root)}
    assert json.loads((tmp_path / "orders.about.json").read_text())["root"] == root
    _, output, _ = run("security", "--to", 200)
    unmapped = [json.loads(line)["unmapped"] for line in output.splitlines()]
    assert {(each["journal_size"], each["journal_root"]) for each in unmapped} == {(200, root)}
