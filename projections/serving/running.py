"""What runs in the service's process beside the requests: projectors, the sealer, the reactor.

Each outlasts outages of the database. One that ends for good takes the service with it: half a
service that looks whole helps nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from ledger.errors import LedgerError
from ledger.event import NewEvent
from ledger.journal import Journal, Observer, open_journal
from ledger.proof.keys import KeyUnusable, read_key, write_key
from ledger.proof.log import default_origin, log_of
from ledger.proof.notes import NoteInvalid, SigningKey
from ledger.proof.sealer import Sealer
from ledger.proof.witnessing import (
    Cosigner,
    all_or_first_error,
    check_sealable,
    check_witnessed,
)
from ledger.services.sessions import is_token_key_stored
from ledger.settings import Settings
from ledger.stores import Outcome
from projections.asides import Aside
from projections.database import Database
from projections.reactor import Reaction, Reactor
from projections.reporting import Reporter
from projections.waiting import outlast_outages
from projections.worker import Worker

STOP_SECONDS = 30.0
KEY_SUFFIX = ".log-key"
DEFAULT_JOURNAL: str = Settings.model_fields["journal"].default
_log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[Any, Any, object]]
Failed = Callable[[Exception], None]


class Parts(msgspec.Struct, frozen=True):
    """What one process does beside answering requests."""

    project: bool = False
    seal: bool = False
    react: bool = False
    console: bool = True


EVERYTHING = Parts(project=True, seal=True, react=True)


class Services:
    """The background services of one process, in a thread with an event loop of their own.

    Folds and hashes hold the processor for up to a tenth of a second at a time, for which no
    request must wait. So they have a journal and a database of their own as well.
    """

    def __init__(
        self, settings: Settings, parts: Parts, failed: Failed, observer: Observer | None = None
    ) -> None:
        """Take what to run; `failed` is told of the error with which one has ended for good.

        Both, and `observer` of the appends, are called where the services are begun.
        """
        self._settings = settings
        self._parts = parts
        self._failed = failed
        self._observer = observer
        self._stopping = asyncio.Event()
        self._reporter = Reporter(_log.warning)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run them until the end of the block; then let each finish what it is at."""
        works = self._works()
        if not works:
            yield
            return
        self._loop = asyncio.get_running_loop()
        aside = Aside("services", partial(self._run_all, works))
        try:
            yield
        finally:
            aside.call(self._stopping.set)
            await _ended(aside)

    def _works(self) -> dict[str, Work]:
        known = (
            ("projecting", self._parts.project, self._project),
            ("sealing", self._parts.seal, self._seal),
            ("reacting", self._parts.react, self._react),
        )
        return {name: work for name, is_wanted, work in known if is_wanted}

    async def _run_all(self, works: Mapping[str, Work]) -> None:
        await asyncio.gather(*(self._run(name, work) for name, work in works.items()))

    async def _run(self, name: str, work: Work) -> None:
        _log.info("%s", name)
        try:
            await outlast_outages(
                work, self._stopping, lambda error: self._reporter.tell(name, error)
            )
        except Exception as error:  # noqa: BLE001 - whatever it is ends the service
            is_told = isinstance(error, LedgerError)
            _log.error("%s has ended: %s", name, error, exc_info=None if is_told else error)
            self._loop.call_soon_threadsafe(self._failed, error)

    async def _project(self) -> None:
        await Worker(self._settings, write=_log.warning).run(self._stopping)

    async def _seal(self) -> None:
        settings = self._settings
        if settings.log_key_file is None:
            raise KeyUnusable("set LEDGER_LOG_KEY_FILE to the log's key, or do not seal here")
        key = read_key(settings.log_key_file)
        async with open_journal(settings) as journal:
            await check_sealable(journal, settings, key)
            sealer = Sealer(journal, key, settings.log_origin)
            sealing = sealer.follow(self._stopping, lambda e: self._reporter.tell("sealing", e))
            cosigning = Cosigner(journal, settings).follow(self._stopping, _log.warning)
            await all_or_first_error(sealing, cosigning)

    async def _react(self) -> None:
        async with open_journal(self._settings) as journal, Database(self._settings) as database:
            if self._observer is not None:
                journal.observer = _Elsewhere(self._loop, self._observer)
            await check_witnessed(journal, self._settings)
            reactor = Reactor(database, journal, reacted=_tell_reaction)
            await reactor.run(self._stopping)


class _Elsewhere(msgspec.Struct, frozen=True):
    """Tells an observer, on its own event loop, of what is stored on another one."""

    loop: asyncio.AbstractEventLoop
    observer: Observer

    def around(self, events: Sequence[NewEvent]) -> AbstractContextManager[object]:
        """Return what an append runs in: none of these belongs to a request."""
        return nullcontext()

    def refused(self, error: LedgerError) -> None:
        """Pass it on that an append was refused."""
        self.loop.call_soon_threadsafe(self.observer.refused, error)

    def stored(self, outcomes: Sequence[Outcome], seconds: Sequence[float]) -> None:
        """Pass a batch on."""
        self.loop.call_soon_threadsafe(self.observer.stored, outcomes, seconds)


async def _ended(aside: Aside[None]) -> None:
    """Wait for services that were asked to stop; cancel what does not."""
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await aside.wait()
    except TimeoutError:
        _log.warning("the background services do not end, and are cancelled")
        await aside.cancel()


def _tell_reaction(reaction: Reaction) -> None:
    _log.info("%s", reaction)


def warn_of_token_key(settings: Settings) -> None:
    """Say so where whoever can read the database could make access tokens.

    On SQLite nobody can: there each process has a key of its own.
    """
    if settings.address().get_backend_name() != "sqlite" and is_token_key_stored(settings):
        _log.warning(
            "whoever can read the database can make access tokens: set LEDGER_TOKEN_KEY (or "
            "LEDGER_MASTER_KEY), the same in all processes"
        )


async def with_log_key(settings: Settings, journal: Journal) -> Settings:
    """Return settings that have a key to seal a journal with.

    On SQLite it lies beside the database where none is set. It is made if the journal was never
    sealed; only its owner can read it. Raises KeyUnusable where there is none to be had.
    """
    if settings.log_key_file is not None:
        return settings
    if settings.address().get_backend_name() != "sqlite":
        raise KeyUnusable("set LEDGER_LOG_KEY_FILE to the log's key, or do not seal here")
    file = _key_beside(settings, journal.name)
    if not file.exists():
        await _make_key(file, settings, journal)
    return settings.model_copy(update={"log_key_file": file})


def _key_beside(settings: Settings, journal: str) -> Path:
    database = Path(settings.address().database or "").absolute()
    own = "" if journal == DEFAULT_JOURNAL else f".{quote(journal, safe='')}"
    return database.with_name(f"{database.name}{own}{KEY_SUFFIX}")


async def _make_key(file: Path, settings: Settings, journal: Journal) -> None:
    if await log_of(journal).seal() is not None:
        raise KeyUnusable(
            f"journal {journal.name!r} is sealed with a key that is not at {file}: set "
            "LEDGER_LOG_KEY_FILE to it, or do not seal here"
        )
    try:
        key = SigningKey.generate(settings.log_origin or default_origin(journal.name))
    except NoteInvalid as error:
        raise KeyUnusable(f"cannot make a key to seal with: {error}") from error
    write_key(file, key)
    _log.warning("made a key to seal with: keep %s safe, and give out %s", file, key.vkey)
