"""Fixtures of the read side: an open journal with its read models."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import pytest

import replay
from ledger import console
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections import cli
from projections.database import Database
from tests.projections.support import Run


@pytest.fixture
def run(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `replay` or `projections`; return exit code, output and errors."""
    monkeypatch.setenv("LEDGER_DATABASE_URL", sqlite_url)
    apps = {"replay": replay.app, "projections": cli.app}

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as ended:
            console.main(apps[name], name)
        output, errors = capfd.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings that lead to a fresh, migrated database."""
    return Settings(database_url=database_url)


@pytest.fixture
async def journal(settings: Settings) -> AsyncIterator[Journal]:
    """The open default journal."""
    async with open_journal(settings) as opened:
        yield opened


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """The read side's database."""
    async with Database(settings) as opened:
        yield opened
