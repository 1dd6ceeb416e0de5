"""Fixtures that any test may ask for; each is made only when a test does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgresServer
from tests.support import data

POSTGRES_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
}


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests that do not crash it."""
    with PostgresServer.start(POSTGRES_SETTINGS, in_memory=True) as server:
        yield server


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the reference data; without it the test is skipped, or fails in CI."""
    return data.require(data.folder())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """End the summary with what was left out for lack of data."""
    yield
    if count := data.count_skipped(terminalreporter):
        terminalreporter.write_line(f"Skipped for lack of reference data: {count}; {data.ADVICE}")
