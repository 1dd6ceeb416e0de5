"""The reference data that some tests compare with; it is not part of the repository."""

import os
from pathlib import Path

import pytest

DEFAULT = Path(__file__).parents[3] / "shared" / "data"
MISSING = "no reference data"
ADVICE = "set LEDGER_TEST_DATA to the folder that holds it (default: ../shared/data)"


def folder() -> Path:
    """Return the folder in which the reference data should be."""
    return Path(os.environ.get("LEDGER_TEST_DATA") or DEFAULT)


def is_required() -> bool:
    """Whether missing data fails a test: where CI says so, unless it is told otherwise."""
    by_default = "1" if os.environ.get("CI") == "true" else "0"
    return os.environ.get("LEDGER_TEST_DATA_REQUIRED", by_default) == "1"


def require(path: Path) -> Path:
    """Return the path if it exists, otherwise skip the test, or fail it where data is required."""
    if path.exists():
        return path
    reason = f"{MISSING}: {path.name} is not there; {ADVICE}"
    if is_required():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def count_skipped(reporter: pytest.TerminalReporter) -> int:
    """Count the tests that were skipped because data is missing."""
    skipped = reporter.getreports("skipped")
    return sum(MISSING in str(report.longrepr) for report in skipped)
