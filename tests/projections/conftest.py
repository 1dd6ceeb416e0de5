"""Fixtures of the read side: an open journal with its read models."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from projections.database import Database


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
