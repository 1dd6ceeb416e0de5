"""What tests of services run in processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from unittest import mock
from uuid import UUID

from tests.ledger.services.support import Watched, a_ledger
from tests.ledger.support import START, Clock

BARRIER_SECONDS = 60


def log_in_wrongly(url: str, username: str, count: int, checks: Path, barrier: Barrier) -> None:
    """Try so many wrong passwords at once, at the same time as the other processes."""
    asyncio.run(_log_in_wrongly(url, username, count, checks, barrier))


async def _log_in_wrongly(
    url: str, username: str, count: int, checks: Path, barrier: Barrier
) -> None:
    async with a_ledger(url, hasher=Watched(checks)) as ledger:
        await ledger.users.login(username="somebody else", password="x")  # gets a connection
        await asyncio.to_thread(barrier.wait, BARRIER_SECONDS)
        found = await asyncio.gather(
            *(ledger.users.login(username=username, password=f"guess {n}") for n in range(count))
        )
        assert not any(login.succeeded for login in found)


def use_at(url: str, key: str, seconds: Sequence[float], count: int, barrier: Barrier) -> None:
    """Use a key so often at each of these times, at the same time as the other processes."""
    asyncio.run(_use_at(url, key, seconds, count, barrier))


async def _use_at(
    url: str, key: str, seconds: Sequence[float], count: int, barrier: Barrier
) -> None:
    clock = Clock()
    async with a_ledger(url, clock) as ledger:
        for moment in seconds:
            await asyncio.to_thread(barrier.wait, BARRIER_SECONDS)
            clock.now = START + timedelta(seconds=moment)
            uses = (ledger.api_keys.use(presented=key, action="GET") for _ in range(count))
            await asyncio.gather(*uses)


def die_while_erasing(url: str, user_id: UUID) -> None:
    """Erase a user, and be killed when the event is stored and the data key is not destroyed."""
    asyncio.run(_die_while_erasing(url, user_id))


async def _die_while_erasing(url: str, user_id: UUID) -> None:
    async def killed(_: str) -> bool:
        os.kill(os.getpid(), signal.SIGKILL)
        return False

    async with a_ledger(url) as ledger:
        with mock.patch.object(ledger.journal.privacy, "destroy", killed):
            await ledger.users.erase(user_id=user_id, reason="request")
