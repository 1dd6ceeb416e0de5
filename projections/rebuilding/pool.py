"""Folding the parts of a rebuild in processes, or wherever an executor takes them."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from multiprocessing.connection import Connection

from ledger.errors import LedgerError
from projections.building import Built, Part, build
from projections.rebuilding import side
from projections.rebuilding.errors import BuildFailed
from projections.rebuilding.work import Work

POLL_SECONDS = 0.25
KILLED = 130


@contextlib.contextmanager
def processes(workers: int) -> Iterator[Executor]:
    """Give an executor of processes, which end at once with the block, or with this process.

    They are neither forked, since this process has threads, nor asked to end: what they do is of no
    use to anybody else.
    """
    start = "spawn" if sys.platform == "win32" else "forkserver"
    context = multiprocessing.get_context(start)
    context.set_forkserver_preload(["projections.building"])
    listening, held = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_end_with, initargs=(listening,)
    )
    try:
        yield executor
    except BaseException:
        held.close()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        held.close()
        listening.close()


def _end_with(parent: Connection) -> None:
    """Let this process end as soon as the other end of the pipe is closed, and only then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            parent.recv_bytes()
        os._exit(KILLED)

    threading.Thread(target=watch, name="parent", daemon=True).start()


async def build_all(work: Work, parts: Sequence[Part], executor: Executor) -> list[Built]:
    """Fold all parts and tell how far they are; BuildFailed for the first that fails."""
    total = sum(part.size for part in parts)
    # What is told are events of journals for each group, though several parts read them.
    events = sum({(part.group, part.journal_id): part.size for part in parts}.values())
    loop = asyncio.get_running_loop()
    futures = [loop.run_in_executor(executor, build, work.settings, part) for part in parts]
    waiting: set[asyncio.Future[Built]] = set(futures)
    names = sorted({part.name for part in parts})
    try:
        while waiting:
            done, waiting = await asyncio.wait(
                waiting, timeout=POLL_SECONDS, return_when=asyncio.FIRST_EXCEPTION
            )
            entangled: set[str] = set()
            for future in done:
                part = parts[futures.index(future)]
                _check(future, part)
                entangled |= {part.group} if future.result().is_entangled else set()
            await _stop_slices(work, [part for part in parts if part.group in entangled])
            async with work.database.transaction() as connection:
                passed = await side.read_progress(connection, names)
            work.watch.folded(passed * events // max(1, total), events)
    finally:
        for future in futures:
            future.cancel()
    return [future.result() for future in futures]


async def _stop_slices(work: Work, parts: Sequence[Part]) -> None:
    """Keep no account any more of slices whose rows are of no use: so they end."""
    names = [part.name for part in parts if part.slice is not None]
    if names:
        async with work.store.write_turn(), work.database.transaction() as connection:
            await side.forget(connection, names)


def _check(future: asyncio.Future[Built], part: Part) -> None:
    """Raise what the part failed with."""
    try:
        future.result()
    except BrokenExecutor as error:
        raise BuildFailed(
            part.name, "a process died (was it killed for want of memory?)"
        ) from error
    except LedgerError as error:
        raise BuildFailed(part.name, str(error)) from error
    except Exception as error:
        raise BuildFailed(part.name, f"{type(error).__name__}: {error}") from error
