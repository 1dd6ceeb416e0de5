"""`projections check`: a line for each step, where all is well and where it is not."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys

from projections.checking import STEPS
from tests.ledger.support import ROOT, environment


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this project to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(url),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )


def test_every_step_passes_and_the_tables_are_right_afterwards(database_url: str) -> None:
    """Each of the 14 steps prints its line, run after run, and verify finds no difference."""
    for _ in range(2):
        done = run(database_url, "-m", "projections", "check")
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(re.findall(r"^ ?\d+ ok ", done.stdout, re.MULTILINE)) == len(STEPS) == 14
    done = run(database_url, "replay.py", "verify", "--journal", "check")
    assert done.stdout.startswith("verified"), done.stdout + done.stderr


def test_a_step_that_fails_is_named_and_the_others_are_tried(sqlite_url: str) -> None:
    """Where a table loses what was realised, the P&L fails, with what was seen; exit code 1."""
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
        connection.execute(
            "CREATE TRIGGER spoiled AFTER UPDATE ON positions WHEN NEW.realized_pnl <> '0' "
            "BEGIN UPDATE positions SET realized_pnl = '0' "
            "WHERE position_id = NEW.position_id; END"
        )
    connection.close()
    done = run(sqlite_url, "-m", "projections", "check")
    assert done.returncode == 1
    failed = re.findall(r"FAILED (.*)", done.stdout)
    assert failed == ["P&L: realized_pnl is Decimal('0'), not Decimal('10')"]
    assert done.stdout.endswith(f"1 of {len(STEPS)} steps failed\n")
