"""Processes that take a snapshot and are killed on the way."""

from __future__ import annotations

import asyncio
import os
import signal
from multiprocessing.process import BaseProcess

from ledger.journal import open_journal
from ledger.settings import Settings
from projections import snapshot_format
from projections.database import Database
from projections.groups import TRADING
from projections.snapshots import take
from tests.support.forks import FORKS

CHUNK_ROWS = 3


def start(url: str, size: int, chunks: int) -> BaseProcess:
    """Start to take a snapshot of the trading group; it dies once so many chunks are stored."""
    process = FORKS.Process(target=_take, args=(url, size, chunks), daemon=True)
    process.start()
    return process


def _take(url: str, size: int, chunks: int) -> None:
    snapshot_format.CHUNK_ROWS = CHUNK_ROWS
    asyncio.run(_run(Settings(database_url=url), size, chunks))


async def _run(settings: Settings, size: int, chunks: int) -> None:
    left = chunks

    def written(count: int) -> None:
        nonlocal left
        left -= count
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    async with open_journal(settings) as journal, Database(settings) as database:
        await take(database, journal, TRADING, size, written=written)
