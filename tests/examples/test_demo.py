"""The demo, as somebody who has just cloned the project runs it."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVENTS_MIN = 50_000


@pytest.mark.timeout(300)
def test_the_demo_runs_through(tmp_path: Path) -> None:
    """It appends a day, replays noon, verifies all tables, and keeps its database."""
    database = tmp_path / "demo.db"
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), "--database", str(database)],
        capture_output=True,
        check=False,
        cwd=ROOT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    match = re.search(r"holds ([\d,]+) events", done.stdout)
    assert match is not None
    events = int(match[1].replace(",", ""))
    assert events >= EVENTS_MIN
    assert re.search(r"^ *verified", done.stdout, re.MULTILINE)
    assert ", 0 differences" in done.stdout
    assert "at noon" in done.stdout
    assert str(database) in done.stdout.replace("\n", "")
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (events,)
