"""The demo, as somebody who has just cloned the project runs it."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import httpx

from examples.demo import SEED
from examples.trading_day import MINUTES, TradingDay

ROOT = Path(__file__).parents[2]
EVENTS_MIN = 50_000
EVERY = 12
"""One minute of so many is traded, so that a test runs through the whole day soon."""

SECONDS = 60.0


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Run the demo until it serves; give what it has printed by then. In the end it ends well."""
    printed, errors = folder / "printed", folder / "errors"
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--serve", "--every", str(EVERY)]
    with printed.open("wb") as output, errors.open("wb") as error_output:
        process = subprocess.Popen(
            [*command, "--database", str(folder / "demo.db")],
            cwd=ROOT,
            env=os.environ | {"LEDGER_HTTP_PORT": "0"},
            stdout=output,
            stderr=error_output,
        )
        try:
            until(lambda: "admin " in printed.read_text() or process.poll() is not None)
            yield printed.read_text()
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
    assert code == 0, printed.read_text() + errors.read_text()
    assert "Traceback" not in errors.read_text()


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_day_of_the_demo_is_a_full_one() -> None:
    """All of it is as many events as the demo is to show, going by its first part."""
    minutes = MINUTES // EVERY
    events = sum(map(len, islice(TradingDay(SEED).minutes(), minutes)))
    assert events >= EVENTS_MIN / EVERY


def test_the_demo_runs_through_and_serves(tmp_path: Path) -> None:
    """It appends a day, replays noon, verifies all tables, and lets people log in to look at it."""
    with served(tmp_path) as printed:
        [address] = re.findall(r"http://[\d.:]+\d", printed)
        logins = re.findall(r"^ +(auditor|operator|admin) +(\S+)$", printed, re.MULTILINE)
        for username, password in logins:
            login = {"username": username, "password": password}
            assert httpx.post(f"{address}/sessions", json=login).status_code == 201
        checkpoint = httpx.get(f"{address}/log/checkpoint").text
    assert [username for username, _ in logins] == ["auditor", "operator", "admin"]
    match = re.search(r"holds ([\d,]+) events", printed)
    assert match is not None
    events = int(match[1].replace(",", ""))
    assert events >= EVENTS_MIN / EVERY
    assert int(checkpoint.splitlines()[1]) > events
    assert re.search(r"^ *verified", printed, re.MULTILINE)
    assert ", 0 differences" in printed
    assert "at noon" in printed
    assert str(tmp_path / "demo.db") in printed.replace("\n", "")
    with closing(sqlite3.connect(tmp_path / "demo.db")) as connection:
        assert connection.execute("SELECT count(*) > ? FROM events", (events,)).fetchone() == (1,)
