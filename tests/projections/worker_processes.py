"""Workers as processes of their own, which can be killed and frozen at any moment.

They are forked from a server that has imported everything, so that one lives within milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from ledger.settings import Settings
from projections.worker import Worker
from tests.support.forks import FORKS

END_SECONDS = 30


class WorkerProcess:
    """A worker that runs until it is stopped, or killed."""

    def __init__(self, url: str, worker_id: str, lease_seconds: float) -> None:
        """Start it."""
        self.worker_id = worker_id
        self._process: BaseProcess = FORKS.Process(
            target=_work, args=(url, worker_id, lease_seconds), daemon=True
        )
        self._process.start()

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.is_alive()

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.join()

    def freeze(self) -> None:
        """Let it stand still."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def stop(self) -> int | None:
        """Ask it to end, wait for that, and return its exit code."""
        self._process.terminate()
        self._process.join(END_SECONDS)
        return self._process.exitcode


@contextmanager
def ended(workers: list[WorkerProcess]) -> Iterator[None]:
    """Leave no process behind, whatever happens."""
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()


def _work(url: str, worker_id: str, lease_seconds: float) -> None:
    settings = Settings(database_url=url, lease_seconds=lease_seconds)
    asyncio.run(_run(Worker(settings, worker_id=worker_id, batch_size=50)))


async def _run(worker: Worker) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await worker.run(stopping)
