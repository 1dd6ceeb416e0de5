"""Reactors as processes of their own, which can be killed at any moment and started again at once.

They are forked from a server that has imported everything, so that one lives within milliseconds.
"""

from __future__ import annotations

import asyncio
from multiprocessing.process import BaseProcess

from ledger.journal import open_journal
from ledger.settings import Settings
from projections.database import Database
from projections.reactor import Reactor
from tests.support.forks import FORKS


def start(url: str) -> BaseProcess:
    """Start a reactor on a test database."""
    process = FORKS.Process(target=_react, args=(url,), daemon=True)
    process.start()
    return process


def _react(url: str) -> None:
    asyncio.run(_run(Settings(database_url=url)))


async def _run(settings: Settings) -> None:
    async with open_journal(settings) as journal, Database(settings) as database:
        await Reactor(database, journal, mark_age_seconds=600).run(asyncio.Event())
