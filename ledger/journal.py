"""What a service holds: append with group commit, read, wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import msgspec

import ledger.domain  # noqa: F401 - registers the event types, which reading needs
from ledger.codec import decode_bodies, decode_metadata
from ledger.conditions import Condition, ExpectedVersion
from ledger.errors import (
    AppendOutcomeUnknown,
    ConditionFailed,
    InvalidEvent,
    JournalNotFound,
    LedgerError,
    Overloaded,
    StoreUnavailable,
)
from ledger.event import NewEvent, RecordedEvent
from ledger.keyring import Keyring
from ledger.lens import Lens
from ledger.prepare import check_past, prepare
from ledger.privacy import Plain, Privacy, is_personal
from ledger.security.data_keys import DataKeys
from ledger.security.master_keys import MasterKey
from ledger.settings import Settings
from ledger.stores import (
    Appended,
    Clock,
    JournalInfo,
    Outcome,
    PackedEvents,
    PreparedAppend,
    SizeAt,
    Store,
    StoredEvent,
)
from ledger.stores.opening import open_store
from ledger.stores.wakeups import Wakeups

BATCH_EVENTS_MAX = 512
BATCH_BYTES_MAX = 4 * 1024 * 1024
RESOLVED_AT_ONCE = 50
CHUNK_SIZE = 1000
PACKED_CHUNK_SIZE = 2000
"""So many events of a stream or tag are read through a lens at once; the next are on their way."""
OWNED_WITHIN = 10
"""One of so many first events of a stream names whose it is, or none does: a venue may be first."""
VERSION_MAX = 2**62
"""No stream gets there, and no offset."""

_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError)
"""What a lens raises where a body is not an event."""

_Waiting = tuple[Plain, "asyncio.Future[Appended]", float]
"""An append, who waits for it, and since when by the clock of `perf_counter`."""


class Observer(Protocol):
    """Looks on as a journal appends, for measurements and traces; it must be quick, and not raise.

    `around` is entered before an append is queued and left when its outcome is known. `stored` is
    told of each batch: the outcome of every append, and for how many seconds it has waited.
    `refused` is told of appends that never got into a batch.
    """

    def around(self, events: Sequence[NewEvent]) -> AbstractContextManager[object]:
        """Return what an append runs in."""
        ...

    def stored(self, outcomes: Sequence[Outcome], seconds: Sequence[float]) -> None:
        """Take note of a batch."""
        ...

    def refused(self, error: LedgerError) -> None:
        """Take note of an append that was refused before it was queued."""
        ...


class Journal:
    """One journal of a store.

    Appends that are under way at the same time are stored together, in one commit; each of them
    succeeds or fails on its own, as if they had been run in the order of the calls.
    """

    def __init__(
        self,
        store: Store,
        info: JournalInfo,
        *,
        queue_events_max: int = 100_000,
        keys: DataKeys | None = None,
        name_key: bytes | None = None,
    ) -> None:
        """Take the store and which of its journals this is; data keys are the store's by default.

        `name_key` is the key for digests of names, if not the journal's own.
        """
        self.store = store
        self.journal_id = info.journal_id
        self.name = info.name
        keys = keys or DataKeys(store.subject_keys(info.name), info.name)
        self.privacy = Privacy(keys, info.name, self._first_of, name_key)
        self._queue: deque[_Waiting] = deque()
        self._queued_events = 0
        self._queue_events_max = queue_events_max
        self._writing: asyncio.Task[None] | None = None
        self._losses = 0
        self.observer: Observer | None = None

    async def append(
        self, events: NewEvent | Sequence[NewEvent], *conditions: Condition
    ) -> Appended:
        """Store the events, all or none, if all conditions hold; return their offsets.

        Events whose ids are stored already with the same content are a success, with the original
        offsets. Raises InvalidEvent, VersionConflict and the other ConditionFailed,
        EventIdConflict, Overloaded and StoreUnavailable, all of which mean that nothing was
        stored, and AppendOutcomeUnknown. Cancelling the call leaves open whether the events are
        stored.
        """
        new = (events,) if isinstance(events, NewEvent) else events
        if self.observer is None:
            return await self._append(new, conditions)
        with self.observer.around(new):
            return await self._append(new, conditions)

    async def _append(self, new: Sequence[NewEvent], conditions: Sequence[Condition]) -> Appended:
        try:
            prepared = prepare(new, conditions)
        except LedgerError as error:
            self._tell_refused(error)
            raise
        plain = Plain(new, prepared, any(map(is_personal, new)))
        try:
            check_past(plain.prepared, self.now)
        except InvalidEvent as error:
            return await self._known(plain, error)
        return await self._enqueue(plain)

    async def _known(self, plain: Plain, error: InvalidEvent) -> Appended:
        """Return the offsets of events that are stored already; raise the error if they are not.

        Known ids are found before conditions are looked at, and this one never holds.
        """
        never = ExpectedVersion(plain.prepared.events[0].stream, VERSION_MAX)
        asked = msgspec.structs.replace(plain.prepared, conditions=(never,))
        try:
            return await self._enqueue(msgspec.structs.replace(plain, prepared=asked))
        except ConditionFailed:
            raise error from None

    async def _enqueue(self, plain: Plain) -> Appended:
        """Let an append wait its turn."""
        if self._queue and self._queued_events + len(plain.events) > self._queue_events_max:
            error = Overloaded(
                f"{self._queued_events:,} events wait to be stored already; slow down, try again"
            )
            self._tell_refused(error)
            raise error
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._queue.append((plain, future, perf_counter()))
        self._queued_events += len(plain.events)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_queue())
        return await future

    def _tell_refused(self, error: LedgerError) -> None:
        if self.observer is not None:
            self.observer.refused(error)

    async def _write_queue(self) -> None:
        """Store what is queued, batch after batch, until the queue is empty."""
        loop = asyncio.get_running_loop()
        try:
            while self._queue:
                batch = self._next_batch()
                outcomes = await self._store_batch([plain for plain, _, _ in batch])
                self._note(batch, outcomes)
                # Not at once: the next batch is sent first, so that the callers make their next
                # events while the database is at work.
                loop.call_soon(_resolve, loop, deque(zip(batch, outcomes, strict=True)))
        finally:
            self._writing = None

    def _note(self, batch: Sequence[_Waiting], outcomes: Sequence[Outcome]) -> None:
        if self.observer is not None:
            now = perf_counter()
            self.observer.stored(outcomes, [now - since for _, _, since in batch])

    @property
    def queued_events(self) -> int:
        """How many events wait to be stored."""
        return self._queued_events

    def _next_batch(self) -> list[_Waiting]:
        batch = [self._queue.popleft()]
        events, size = _weight(batch[0][0])
        while self._queue:
            more_events, more_bytes = _weight(self._queue[0][0])
            events, size = events + more_events, size + more_bytes
            if events > BATCH_EVENTS_MAX or size > BATCH_BYTES_MAX:
                break
            batch.append(self._queue.popleft())
        self._queued_events -= sum(len(plain.events) for plain, _, _ in batch)
        return batch

    async def _store_batch(self, batch: list[Plain]) -> list[Outcome]:
        """Encrypt what is personal, and store what can be; return an outcome for each append.

        It is done here and not before, so that appends are stored in the order of the calls.
        """
        ready = await self._protected(batch)
        able = [each for each in ready if isinstance(each, PreparedAppend)]
        stored = iter(await self._store(able) if able else ())
        outcomes = [each if isinstance(each, LedgerError) else next(stored) for each in ready]
        if self.store.losses != self._losses:
            # A server that took over may lack keys that this process has: they are stored again.
            self._losses = self.store.losses
            self.privacy.keys.doubt()
            await self._protected(batch)
        return outcomes

    async def _protected(self, batch: list[Plain]) -> list[PreparedAppend | LedgerError]:
        try:
            return await self.privacy.protected(batch)
        except Exception as error:  # noqa: BLE001 - a bug must not leave callers waiting for ever
            reason = f"nothing was stored: encrypting it failed in an unforeseen way: {error!r}"
            return [
                StoreUnavailable(reason) if each.is_personal else each.prepared for each in batch
            ]

    async def _store(self, batch: list[PreparedAppend]) -> list[Outcome]:
        try:
            return await self.store.append(self.journal_id, batch)
        except (StoreUnavailable, AppendOutcomeUnknown) as error:
            return [type(error)(str(error)) for _ in batch]
        except Exception as error:  # noqa: BLE001 - a bug must not leave callers waiting for ever
            return [_unforeseen(error) for _ in batch]

    async def read(
        self, start: int = 0, stop: int | None = None, *, stream: str | None = None
    ) -> AsyncIterator[RecordedEvent]:
        """Yield the events with start <= offset < stop, up to the journal's present end."""
        async for chunk in self.read_chunks(start, stop, stream=stream):
            for event in chunk:
                yield event

    async def read_chunks(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        stream: str | None = None,
        chunk_size: int = CHUNK_SIZE,
    ) -> AsyncIterator[list[RecordedEvent]]:
        """Yield the same as `read`, in lists of at most `chunk_size`.

        Raises StoredEventInvalid at an event that this program cannot decode.
        """
        if start < 0 or chunk_size < 1:
            raise InvalidEvent(f"cannot read from offset {start} in chunks of {chunk_size}")
        end = await self.size() if stop is None else stop
        chunks = (
            self._all_chunks(start, end, chunk_size)
            if stream is None
            else self._stream_chunks(stream, start, end, chunk_size)
        )
        async for chunk in chunks:
            yield await self._opened(chunk)

    async def read_but(self, ignored: Sequence[str], start: int, stop: int) -> list[RecordedEvent]:
        """Return the events with start <= offset < stop but those of ignored types, in order.

        The journal must hold them all: StoreUnavailable where the server that answers does not yet.
        Raises StoredEventInvalid at an event that this program cannot decode.
        """
        found = await self.store.read(self.journal_id, start, stop, ignored)
        # The last one is never ignored; if it is there, all before it are.
        if start < stop and (not found or found[-1].offset != stop - 1):
            raise self._behind(start, stop)
        return await self._opened(found)

    def _behind(self, start: int, stop: int) -> StoreUnavailable:
        return StoreUnavailable(
            f"the server does not hold all events from offset {start} to {stop - 1} of journal "
            f"{self.name!r}: it is behind another one that was asked before, or the journal was "
            "damaged"
        )

    async def read_lens(self, lens: Lens, start: int, stop: int) -> list[RecordedEvent]:
        """Return what a lens sees of the events with start <= offset < stop.

        The journal must hold them all: StoreUnavailable where the server that answers does not yet.
        Raises StoredEventInvalid at an event that this program cannot decode.
        """
        packed = await self.store.read_packed(
            self.journal_id,
            start,
            stop,
            lens.ignored,
            envelope=lens.envelope,
            streams_of=lens.streams_of,
        )
        if packed.count < stop - start:
            raise self._behind(start, stop)
        try:
            found = lens.decode(packed)
        except _UNDECODABLE:
            async for _ in self.read_chunks(start, stop):
                pass  # raises where the bad one lies
            raise
        await self.privacy.open(found)
        return found

    async def read_stream_lens(
        self, lens: Lens, stream: str, *, stop: int | None = None, limit: int | None = None
    ) -> list[RecordedEvent]:
        """Return what a lens for all event types sees of one stream's events, in order.

        With `stop` only those below that offset, with `limit` at most so many. Raises
        StoredEventInvalid at an event that this program cannot decode.
        """
        read = partial(self.store.read_packed_stream, self.journal_id, stream)
        try:
            return await self._through(lens, read, 0, stop, limit)
        except _UNDECODABLE:
            await self.read_stream(stream, stop=stop)  # raises where the bad one lies
            raise

    async def read_tagged_lens(
        self, lens: Lens, tag: str, after: int = -1, *, stop: int | None = None
    ) -> list[RecordedEvent]:
        """Return what a lens for all event types sees of the events with a tag, as `read_tagged`.

        Raises StoredEventInvalid at an event that this program cannot decode.
        """
        read = partial(self.store.read_packed_tagged, self.journal_id, tag)
        try:
            return await self._through(lens, read, after, stop)
        except _UNDECODABLE:
            await self.read_tagged(tag, after, stop=stop)  # raises where the bad one lies
            raise

    async def _through(
        self,
        lens: Lens,
        read: Callable[..., Coroutine[Any, Any, PackedEvents]],
        after: int,
        stop: int | None,
        limit: int | None = None,
    ) -> list[RecordedEvent]:
        """Decode all that a method of the store reads."""
        end = VERSION_MAX if stop is None else stop
        read = partial(read, stop=end, envelope=lens.envelope)
        found: list[RecordedEvent] = []
        async with contextlib.aclosing(_chunks_ahead(read, after, limit)) as chunks:
            async for packed in chunks:
                events = lens.decode(packed)
                await self.privacy.open(events)
                found += events
        return found

    async def _opened(self, chunk: Sequence[StoredEvent]) -> list[RecordedEvent]:
        """Decode events, and open their personal fields."""
        events = _decoded(chunk)
        await self.privacy.open(events)
        return events

    async def _first_of(self, stream: str) -> list[StoredEvent]:
        return await self.store.read_stream(self.journal_id, stream, 0, OWNED_WITHIN)

    async def _all_chunks(
        self, start: int, stop: int, chunk_size: int
    ) -> AsyncIterator[list[StoredEvent]]:
        while start < stop:
            chunk = await self.store.read(self.journal_id, start, min(stop, start + chunk_size))
            if not chunk:
                return
            yield chunk
            start = chunk[-1].offset + 1

    async def _stream_chunks(
        self, stream: str, start: int, stop: int, chunk_size: int
    ) -> AsyncIterator[list[StoredEvent]]:
        version = 0
        while True:
            chunk = await self.store.read_stream(self.journal_id, stream, version, chunk_size)
            if not chunk:
                return
            version = chunk[-1].version
            if wanted := [event for event in chunk if start <= event.offset < stop]:
                yield wanted

    async def read_stream(
        self,
        stream: str,
        after_version: int = 0,
        *,
        stop: int | None = None,
        limit: int | None = None,
    ) -> list[RecordedEvent]:
        """Return the events of one stream above a version, all of them, in order.

        With `stop` only those below that offset, with `limit` at most so many.
        """
        found: list[RecordedEvent] = []
        while True:
            last = found[-1].version if found else after_version
            count = CHUNK_SIZE if limit is None else min(CHUNK_SIZE, limit - len(found))
            chunk = await self.store.read_stream(self.journal_id, stream, last, count)
            found += await self._opened(_below(chunk, stop))
            if len(chunk) < CHUNK_SIZE or _is_past(chunk, stop):
                return found

    async def read_tagged(
        self, tag: str, after: int = -1, *, stop: int | None = None, limit: int | None = None
    ) -> list[RecordedEvent]:
        """Return the events that carry a tag, claimed and released ones too, above an offset.

        With `stop` only those below that offset, with `limit` at most so many.
        """
        found: list[RecordedEvent] = []
        while True:
            last = found[-1].offset if found else after
            count = CHUNK_SIZE if limit is None else min(CHUNK_SIZE, limit - len(found))
            chunk = await self.store.read_tagged(self.journal_id, tag, last, count)
            found += await self._opened(_below(chunk, stop))
            if len(chunk) < CHUNK_SIZE or _is_past(chunk, stop):
                return found

    async def holder(self, tag: str) -> str | None:
        """Return the stream that holds a claimed tag (a username), None where it is free."""
        held: str | None = None
        for recorded in await self.read_tagged(tag):
            if tag in recorded.event.claims():
                held = recorded.stream
            elif recorded.stream == held and tag in recorded.event.releases():
                held = None
        return held

    def now(self) -> datetime:
        """Return the time by the clock that the journal was opened with, else by this machine's."""
        return self.store.now()

    async def size(self) -> int:
        """Return the number of events in the journal."""
        return await self.store.size(self.journal_id)

    async def size_at(self, moment: datetime) -> SizeAt:
        """Return how many events were recorded at or before `moment`."""
        return await self.store.size_at(self.journal_id, moment)

    async def wait(self, size: int, timeout_seconds: float | None = None) -> int:
        """Wait until the journal holds `size` events; return the size seen.

        Raises TimeoutError after `timeout_seconds`.
        """
        async with asyncio.timeout(timeout_seconds), self.wakeups() as wakeups:
            while (seen := await self.size()) < size:
                await wakeups.wait()
        return seen

    def wakeups(self) -> AbstractAsyncContextManager[Wakeups]:
        """Give what wakes up when the journal may have grown; look at it after each wait."""
        return self.store.wakeups(self.journal_id)

    async def flush(self) -> None:
        """Wait until everything queued so far is stored or refused."""
        while self._writing is not None:
            await asyncio.wait([self._writing])


async def _chunks_ahead(
    read: Callable[[int, int], Coroutine[Any, Any, PackedEvents]], after: int, limit: int | None
) -> AsyncGenerator[PackedEvents]:
    """Yield chunk after chunk, or one of `limit`; meanwhile the database makes the next one."""
    count = PACKED_CHUNK_SIZE if limit is None else limit
    coming = asyncio.create_task(read(after, count))
    try:
        while (packed := await coming).count == count and limit is None:
            coming = asyncio.create_task(read(packed.last, count))
            await asyncio.sleep(0)  # or it would not be asked for until this one is decoded
            yield packed
        yield packed
    finally:
        coming.cancel()


@contextlib.asynccontextmanager
async def open_journal(
    settings: Settings | None = None,
    name: str | None = None,
    *,
    clock: Clock | None = None,
    master_key: MasterKey | None = None,
) -> AsyncIterator[Journal]:
    """Open a journal by name, `settings.journal` by default; JournalNotFound where there is none.

    `clock` replaces the database's clock, for simulations and tests; `master_key`, a key service,
    the master key of the settings.
    """
    settings = settings or Settings()
    wanted = name or settings.journal
    async with contextlib.AsyncExitStack() as stack:
        store = open_store(settings, clock)
        stack.push_async_callback(store.close)
        found = [info for info in await store.journals() if info.name == wanted]
        if not found:
            raise JournalNotFound(wanted)
        keyring = Keyring(settings, store, master_key)
        stack.push_async_callback(keyring.close)
        journal = Journal(
            store,
            found[0],
            queue_events_max=settings.queue_events_max,
            keys=keyring.keys_of(wanted),
            name_key=settings.name_key_bytes,
        )
        stack.push_async_callback(journal.flush)
        yield journal


def _unforeseen(error: Exception) -> AppendOutcomeUnknown:
    return AppendOutcomeUnknown(f"the store failed in an unforeseen way: {error!r}")


def _weight(plain: Plain) -> tuple[int, int]:
    events = plain.prepared.events
    return len(events), sum(len(event.body) for event in events)


def _resolve(loop: asyncio.AbstractEventLoop, outcomes: deque[tuple[_Waiting, Outcome]]) -> None:
    """Tell the callers, some at a time.

    A large batch takes several writes to the socket. If all callers ran before the next of them,
    the database would wait for the rest of its batch meanwhile.
    """
    for _ in range(min(RESOLVED_AT_ONCE, len(outcomes))):
        (_, future, _), outcome = outcomes.popleft()
        _tell(future, outcome)
    if outcomes:
        loop.call_soon(_resolve, loop, outcomes)


def _tell(future: asyncio.Future[Appended], outcome: Outcome) -> None:
    """Give a caller its outcome; one that was cancelled meanwhile is gone."""
    if future.done():
        return
    if isinstance(outcome, Appended):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)


def _is_past(chunk: Sequence[StoredEvent], stop: int | None) -> bool:
    """Whether what comes after a chunk lies at or above `stop`."""
    return stop is not None and bool(chunk) and chunk[-1].offset >= stop - 1


def _below(chunk: Sequence[StoredEvent], stop: int | None) -> Sequence[StoredEvent]:
    return chunk if stop is None else [each for each in chunk if each.offset < stop]


def _decoded(chunk: Sequence[StoredEvent]) -> list[RecordedEvent]:
    events = decode_bodies(
        [stored.body for stored in chunk],
        [stored.offset for stored in chunk],
        [stored.schema_version for stored in chunk],
    )
    return [
        RecordedEvent(
            stored.offset,
            stored.stream,
            stored.version,
            stored.event_id,
            stored.schema_version,
            stored.recorded_at,
            stored.occurred_at,
            decode_metadata(stored.metadata),
            stored.body,
            event,
        )
        for stored, event in zip(chunk, events, strict=True)
    ]
