"""What runs in processes of its own, to be killed: writers, projectors and rebuilds.

A process ends with 0 when it has done its work and with the exit code of a LedgerError when it was
refused; with anything else something is wrong.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ledger.errors import AppendOutcomeUnknown, LedgerError, StoreUnavailable
from ledger.event import NewEvent
from ledger.journal import Journal, open_journal
from ledger.settings import Settings
from ledger.stores import Appended
from projections.database import Database
from projections.groups import GROUPS
from projections.projector import Projector
from projections.rebuilding import Comparison, Options, Watch, rebuild, rollback
from projections.worker import Worker
from tests.faults.account import Account, history
from tests.faults.statements import Fuse
from tests.support.forks import FORKS

BATCH_EVENTS = 20
RETRY_SECONDS = 0.05
END_SECONDS = 60
REFUSED = LedgerError.exit_code, StoreUnavailable.exit_code


def settings_for(url: str) -> Settings:
    """Return settings with times so short that a fault outlasts some of them."""
    return Settings(
        database_url=url,
        lease_seconds=1,
        append_timeout_seconds=4,
        connect_timeout_seconds=2,
        statement_timeout_seconds=10,
    )


class Process:
    """A process that does `work`, and what can befall it."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        """Start it."""
        self._process = FORKS.Process(target=work, args=arguments, daemon=True)
        self._process.start()
        self.is_killed = False

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.is_alive()

    def kill(self) -> None:
        """End it at once."""
        self.is_killed = True
        self._process.kill()
        self._process.join()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait until it ends and return its exit code; TimeoutError where it does not in time."""
        self._process.join(END_SECONDS)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} is not at its end after {END_SECONDS} s")
        return self._process.exitcode


def run(work: Coroutine[Any, Any, None]) -> None:
    """Do the work of a process; a refusal becomes its exit code."""
    try:
        asyncio.run(work)
    except LedgerError as error:
        sys.exit(error.exit_code)


async def settled(journal: Journal, account: Account, events: Sequence[NewEvent]) -> Appended:
    """Append until the answer is certain; note the try, each refusal and the acknowledgement."""
    account.note_try(events)
    while True:
        try:
            appended = await journal.append(events)
        except (AppendOutcomeUnknown, StoreUnavailable) as error:
            account.note_refusal(error)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            account.acknowledged.note(events, appended.offsets)
            return appended


def append_steadily(url: str, folder: Path, writer: str, pause_seconds: float) -> None:
    """Append a writer's history from the first append on that was not acknowledged."""
    asyncio.run(_append(url, folder, writer, pause_seconds, sys.maxsize))


def append_once(url: str, folder: Path, writer: str, fatal_statement: int | None) -> None:
    """Append the next of a writer's history, or die at that statement."""
    light(fatal_statement)
    asyncio.run(_append(url, folder, writer, 0, 1))


async def _append(url: str, folder: Path, writer: str, pause_seconds: float, appends: int) -> None:
    account = Account(folder)
    left = appends
    while left:
        try:
            async with open_journal(settings_for(url)) as journal:
                known = account.acknowledged.read()
                for events in history(writer):
                    if events[0].event_id in known:
                        continue
                    while account.is_held:  # noqa: ASYNC110 - another process says so
                        await asyncio.sleep(RETRY_SECONDS)
                    await settled(journal, account, events)
                    left -= 1
                    if not left:
                        break
                    await asyncio.sleep(pause_seconds)
        except StoreUnavailable:  # there was nobody to open
            await asyncio.sleep(RETRY_SECONDS)


def work_steadily(url: str, name: str) -> None:
    """Project with leases until killed."""
    asyncio.run(_work(settings_for(url), name))


async def _work(settings: Settings, name: str) -> None:
    """Run a worker, again and again as whoever starts services would: at its start it only tries.

    Later it waits by itself.
    """
    while True:
        worker = Worker(settings, worker_id=name, batch_size=BATCH_EVENTS, write=_silent)
        try:
            await worker.run(asyncio.Event())
        except StoreUnavailable:
            await asyncio.sleep(RETRY_SECONDS)


def _silent(_line: str) -> None:
    """Say nothing: errors are what is asked for here."""


def project_once(url: str, fatal_statement: int | None) -> None:
    """Project all groups up to the journal's end, or die at that statement."""
    light(fatal_statement)
    run(_project(settings_for(url)))


async def _project(settings: Settings) -> None:
    async with open_journal(settings) as journal, Database(settings) as database:
        await catch_up(journal, database)


async def catch_up(journal: Journal, database: Database) -> None:
    """Project all groups up to the journal's end."""
    for group in GROUPS.values():
        await Projector(database, journal, group, batch_size=BATCH_EVENTS).catch_up()


class Gate(Watch):
    """Accepts all differences, and tells when the swap begins."""

    def __init__(self, swaps: Callable[[], None] = lambda: None) -> None:
        self._swaps = swaps

    def stage(self, text: str) -> None:
        """Tell of the first swap."""
        if "swapping" in text:
            self._swaps()
            self._swaps = lambda: None

    def accepts(self, compared: Sequence[Comparison]) -> bool:
        """Accept."""
        return True


def swap_once(
    url: str,
    tables: Sequence[str],
    fatal_statement: int | None,
    gate: Connection | None,
) -> None:
    """Rebuild the tables, or die at that statement of the swap.

    Where there is a gate, its other end is told that the swap begins, and waited for.
    """

    def swaps() -> None:
        fuse.light()
        if gate is not None:
            gate.send(None)
            gate.recv()

    fuse = Fuse(sys.maxsize if fatal_statement is None else fatal_statement)
    fuse.install()
    run(rebuild_all(settings_for(url), tables, Gate(swaps)))


async def rebuild_all(settings: Settings, tables: Sequence[str], watch: Watch) -> None:
    """Rebuild in threads, which need no time to start."""
    options = Options(workers=2, replace_old=True, swap_seconds=30)
    with ThreadPoolExecutor(2) as executor:
        await rebuild(settings, tables, options=options, executor=executor, watch=watch)


def rebuild_steadily(url: str, tables: Sequence[str]) -> None:
    """Rebuild and roll back in turn until killed; what others do meanwhile may hinder it."""
    asyncio.run(_rebuild_steadily(settings_for(url), tables))


async def _rebuild_steadily(settings: Settings, tables: Sequence[str]) -> None:
    while True:
        try:
            await rebuild_all(settings, tables, Gate())
            with ThreadPoolExecutor(2) as executor:
                options = Options(workers=2, swap_seconds=30)
                await rollback(settings, tables, options=options, executor=executor, watch=Gate())
        except LedgerError:
            await asyncio.sleep(RETRY_SECONDS)


def light(fatal_statement: int | None) -> None:
    """Let this process die at a statement, counted from now on."""
    if fatal_statement is not None:
        fuse = Fuse(fatal_statement)
        fuse.install()
        fuse.light()
