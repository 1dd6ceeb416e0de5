"""`projections check`: a line for each step, where all is well and where it is not."""

from __future__ import annotations

import re
import sqlite3

from projections.checking import STEPS
from tests.ledger.support import environment
from tests.support import programs


def run(url: str, *command: str) -> tuple[int, str]:
    """Run a program of this project; return its exit code and what it printed."""
    done = programs.run(*command, environment=environment(url))
    return done.returncode, done.stdout.decode() + done.stderr.decode()


def test_every_step_passes_and_the_tables_are_right_afterwards(database_url: str) -> None:
    """Each of the 14 steps prints its line, run after run, and verify finds no difference."""
    for _ in range(2):
        code, said = run(database_url, "projections", "check")
        assert code == 0, said
        assert len(re.findall(r"^ ?\d+ ok ", said, re.MULTILINE)) == len(STEPS) == 14
    _, said = run(database_url, "replay.py", "verify", "--journal", "check")
    assert said.startswith("verified"), said


def test_a_step_that_fails_is_named_and_the_others_are_tried(sqlite_url: str) -> None:
    """Where a table loses what was realised, the P&L fails, with what was seen; exit code 1."""
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
        connection.execute(
            "CREATE TRIGGER spoiled AFTER UPDATE ON positions WHEN NEW.realized_pnl <> '0' "
            "BEGIN UPDATE positions SET realized_pnl = '0' "
            "WHERE position_id = NEW.position_id; END"
        )
    connection.close()
    code, said = run(sqlite_url, "projections", "check")
    assert code == 1
    failed = re.findall(r"FAILED (.*)", said)
    assert failed == ["P&L: realized_pnl is Decimal('0'), not Decimal('10')"]
    assert said.endswith(f"1 of {len(STEPS)} steps failed\n")
