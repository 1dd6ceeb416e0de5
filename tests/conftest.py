"""Fixtures that any test may ask for; each is made only when a test does."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from ledger.migrate import migrate
from ledger.settings import Settings
from tests.postgres import PostgresServer
from tests.support import data
from tests.support.secrets import SecretsHandler

# How long an example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

POSTGRES_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
}


@pytest.fixture(scope="session", autouse=True)
def _no_secret_is_logged() -> Iterator[None]:
    """Nothing that is logged in a whole run of the tests holds a password, a key or a token."""
    handler = SecretsHandler()
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)
    assert not handler.found


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests that do not crash it."""
    with PostgresServer.start(POSTGRES_SETTINGS, in_memory=True) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file, to be copied."""
    file = tmp_path_factory.mktemp("template") / "template.db"
    migrate(Settings(database_url=f"sqlite:///{file}"))
    return file


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresServer) -> str:
    """The name of a migrated, empty PostgreSQL database, to be used as template."""
    url = postgres_server.create_database("migrated")
    migrate(Settings(database_url=url))
    return "migrated"


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """The address of a fresh, migrated SQLite file."""
    return f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'ledger.db')}"


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, migrated_postgres: str) -> Iterator[str]:
    """The address of a fresh, migrated PostgreSQL database."""
    url = postgres_server.create_database(template=migrated_postgres)
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The address of a fresh, migrated database; a test that asks for it runs on both kinds."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(name)
    return url


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
