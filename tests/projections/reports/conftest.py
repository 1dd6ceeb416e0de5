"""Fixtures of the reports' tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ledger.journal import Journal, open_journal
from ledger.settings import Settings


@pytest.fixture
async def sqlite_journal(sqlite_url: str) -> AsyncIterator[Journal]:
    """The open default journal of a SQLite file, for what no database makes different."""
    async with open_journal(Settings(database_url=sqlite_url)) as opened:
        yield opened
