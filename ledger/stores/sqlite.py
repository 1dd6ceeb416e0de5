"""The SQLite store, the embedded default: one file, appends one after the other in one commit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import URL

from ledger.codec import check_journal_name
from ledger.errors import (
    AppendOutcomeUnknown,
    JournalExists,
    LedgerError,
    SchemaMissing,
    StoreUnavailable,
)
from ledger.settings import Settings
from ledger.sqltypes import text_to_time, time_to_text
from ledger.stores import (
    Appended,
    Clock,
    Connections,
    JournalInfo,
    Outcome,
    PackedEvents,
    PreparedAppend,
    RawEvents,
    SizeAt,
    StoredEvent,
)
from ledger.stores.outcomes import each_alone
from ledger.stores.queries import Statement
from ledger.stores.sealing import StoredLog
from ledger.stores.search import last_recorded
from ledger.stores.sqlite_batch import Batch
from ledger.stores.subject_keys import StoredKeys
from ledger.stores.turns import turn
from ledger.stores.wakeups import Hub, Wakeups

R = TypeVar("R")

READERS = 4
CACHE_KIB = 64 * 1024
_COMMIT_TRIES = 3
WAL_PAUSE_SECONDS = 0.01
_COLUMNS = (
    '"offset", event_id, stream, version, schema_version, occurred_at, recorded_at, metadata, body,'
    " type"
)
_READ = f"""SELECT {_COLUMNS} FROM events
    WHERE journal_id = ? AND "offset" >= ? AND "offset" < ?
    AND (type NOT IN (SELECT value FROM json_each(?)) OR "offset" = ?3 - 1)
    ORDER BY "offset" """  # noqa: S608
_COUNT = """SELECT count(*) FROM events
    WHERE journal_id = ? AND "offset" >= ? AND "offset" < ?"""
_PACKED = (
    '"offset", body, event_id, occurred_at, recorded_at, stream, metadata, schema_version, version'
)
_READ_PACKED = f"""SELECT {_PACKED}
    FROM events WHERE journal_id = ? AND "offset" >= ? AND "offset" < ?
    AND type NOT IN (SELECT value FROM json_each(?)) ORDER BY "offset" """  # noqa: S608
_READ_RAW = """SELECT "offset", stream, version, event_id, type, schema_version, recorded_at,
        occurred_at, metadata, body
    FROM events WHERE journal_id = ? AND "offset" >= ? AND "offset" < ? ORDER BY "offset" """
_READ_STREAM = f"""SELECT {_COLUMNS} FROM events
    WHERE journal_id = ? AND stream = ? AND version > ? ORDER BY version LIMIT ?"""  # noqa: S608
_READ_TAGGED = f"""SELECT {_COLUMNS} FROM (
        SELECT DISTINCT "offset" AS tagged FROM event_tags
        WHERE journal_id = ?1 AND tag = ?2 AND "offset" > ?3 ORDER BY "offset" LIMIT ?4
    ) JOIN events ON journal_id = ?1 AND "offset" = tagged ORDER BY tagged"""  # noqa: S608
# The limit comes first: else all of a long stream would be looked at for what lies below an offset.
_READ_PACKED_STREAM = f"""SELECT * FROM (
        SELECT {_PACKED} FROM events
        WHERE journal_id = ? AND stream = ? AND version > ? ORDER BY version LIMIT ?
    ) WHERE "offset" < ? ORDER BY version"""  # noqa: S608
_READ_PACKED_TAGGED = f"""SELECT {_PACKED} FROM (
        SELECT DISTINCT "offset" AS tagged FROM event_tags
        WHERE journal_id = ?1 AND tag = ?2 AND "offset" > ?3 AND "offset" < ?5
        ORDER BY "offset" LIMIT ?4
    ) JOIN events ON journal_id = ?1 AND "offset" = tagged ORDER BY tagged"""  # noqa: S608
_JOURNAL = "SELECT journal_id, name, size, created_at FROM journals"


class CommitUnclear(Exception):
    """COMMIT failed; the database may or may not hold the batch."""


class SqliteStore:
    """Journals in a SQLite file (WAL, synchronous FULL)."""

    def __init__(self, url: URL, settings: Settings, clock: Clock | None = None) -> None:
        """Take the file's address; it is opened when it is needed."""
        self._path = Path(url.database or "").absolute()
        self._settings = settings
        self._clock = clock
        self._writing = _Connections(self._open, 1)
        self._reading = _Connections(self._open, READERS)
        self._hub = Hub()

    async def append(self, journal_id: int, batch: Sequence[PreparedAppend]) -> list[Outcome]:
        """Store a batch in one transaction; where that fails, each append on its own."""
        try:
            outcomes = await self._writing.run(self._append_all, journal_id, batch)
        except (sqlite3.DataError, sqlite3.IntegrityError, OverflowError) as error:
            if len(batch) == 1:
                return [StoreUnavailable(f"{self._path} refused: {error}")]
        except sqlite3.Error as error:
            raise self._refusal(error) from error
        else:
            if any(isinstance(each, Appended) and not each.duplicate for each in outcomes):
                self._hub.wake(journal_id)
            return outcomes
        return await each_alone(lambda one: self.append(journal_id, [one]), batch)

    def _append_all(
        self, connections: _Connections, journal_id: int, batch: Sequence[PreparedAppend]
    ) -> list[Outcome]:
        """Append under this process's turn; a commit that went wrong is tried again.

        Trying again is safe since known event ids are found first.
        """
        unclear: CommitUnclear | None = None
        for _ in range(_COMMIT_TRIES):
            try:
                with self._turn():
                    return self._transact(connections.current(), journal_id, batch)
            except CommitUnclear as error:
                connections.drop()
                unclear = error
            except (sqlite3.Error, LedgerError):
                if unclear is None:
                    raise
                break
        raise AppendOutcomeUnknown(
            f"{self._path}: commit failed ({unclear}); free the disk or mend it, then append again "
            "with the same event ids"
        ) from unclear

    def _transact(
        self, connection: sqlite3.Connection, journal_id: int, batch: Sequence[PreparedAppend]
    ) -> list[Outcome]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            outcomes = Batch(connection, journal_id, self.now()).run(batch)
        except BaseException:
            if connection.in_transaction:  # a full disk has ended it already
                connection.execute("ROLLBACK")
            raise
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise CommitUnclear(str(error)) from error
        return outcomes

    async def read(
        self, journal_id: int, start: int, stop: int, ignored: Sequence[str] = ()
    ) -> list[StoredEvent]:
        """Return the events with start <= offset < stop but those of ignored types, in order."""
        rows = await self._fetch(_READ, journal_id, start, stop, json.dumps(ignored))
        return [_stored_event(*row) for row in rows]

    async def read_packed(
        self,
        journal_id: int,
        start: int,
        stop: int,
        ignored: Sequence[str],
        *,
        envelope: bool,
        streams_of: Sequence[str] = (),
    ) -> PackedEvents:
        """Return the events but those of ignored types, in order, packed."""
        names = json.dumps(list(ignored))
        rows = await self._fetch(_READ_PACKED, journal_id, start, stop, names)
        [[count]] = await self._fetch(_COUNT, journal_id, start, stop)
        return _packed(rows, count, envelope=envelope, streams=envelope or bool(streams_of))

    async def read_raw(self, journal_id: int, start: int, stop: int) -> RawEvents:
        """Return the events between two offsets, in order, as they are sealed."""
        try:
            rows = await self._fetch(_READ_RAW, journal_id, start, stop)
        except StoreUnavailable as error:
            if "decode to UTF-8" in str(error):  # SQLite takes any bytes for text
                raise ValueError(str(error)) from error
            raise
        return _raw(rows)

    def sealed(self, journal_id: int) -> StoredLog:
        """Return the sealed log of a journal."""
        return StoredLog(self, journal_id)

    @property
    def losses(self) -> int:
        """How often a connection was lost while it appended: there is none."""
        return 0

    def subject_keys(self, journal: str) -> StoredKeys:
        """Return the data keys of a journal, which may be another database's."""
        return StoredKeys(self, journal)

    async def query(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        """Return the rows of a query, whose arguments are $1, $2, …."""
        return await self._fetch(_numbered(sql), *map(_adapted, arguments))

    async def transact(self, statements: Sequence[Statement]) -> bool:
        """Run statements in one transaction, unless the first one changes no row."""
        try:
            return await self._guarded(self._writing.run(self._run, statements))
        except sqlite3.IntegrityError as error:
            raise self._refusal(error) from error

    def _run(self, connections: _Connections, statements: Sequence[Statement]) -> bool:
        """Run statements unless the first one changes no row; return whether they were run."""
        with self._turn():
            connection = connections.current()
            connection.execute("BEGIN IMMEDIATE")
            try:
                changed = _run(connection, statements)
                connection.execute("COMMIT" if changed else "ROLLBACK")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        return changed

    async def read_stream(
        self, journal_id: int, stream: str, after_version: int, limit: int
    ) -> list[StoredEvent]:
        """Return up to `limit` events of one stream above a version, in order."""
        rows = await self._fetch(_READ_STREAM, journal_id, stream, after_version, limit)
        return [_stored_event(*row) for row in rows]

    async def read_tagged(
        self, journal_id: int, tag: str, after_offset: int, limit: int
    ) -> list[StoredEvent]:
        """Return up to `limit` events that carry a tag above an offset, in order."""
        rows = await self._fetch(_READ_TAGGED, journal_id, tag, after_offset, limit)
        return [_stored_event(*row) for row in rows]

    async def read_packed_stream(
        self,
        journal_id: int,
        stream: str,
        after_version: int,
        limit: int,
        *,
        stop: int,
        envelope: bool,
    ) -> PackedEvents:
        """Return up to `limit` events of one stream above a version, below `stop`, packed."""
        asked = (journal_id, stream, after_version, limit, stop)
        rows = await self._fetch(_READ_PACKED_STREAM, *asked)
        last = rows[-1][-1] if rows else 0
        return _packed(rows, len(rows), envelope=envelope, streams=True, last=last)

    async def read_packed_tagged(
        self,
        journal_id: int,
        tag: str,
        after_offset: int,
        limit: int,
        *,
        stop: int,
        envelope: bool,
    ) -> PackedEvents:
        """Return up to `limit` events that carry a tag above an offset, below `stop`, packed."""
        asked = (journal_id, tag, after_offset, limit, stop)
        rows = await self._fetch(_READ_PACKED_TAGGED, *asked)
        last = rows[-1][0] if rows else 0
        return _packed(rows, len(rows), envelope=envelope, streams=True, last=last)

    async def size(self, journal_id: int) -> int:
        """Return the number of events in the journal."""
        [row] = await self._fetch("SELECT size FROM journals WHERE journal_id = ?", journal_id)
        return int(row[0])

    async def size_at(self, journal_id: int, moment: datetime) -> SizeAt:
        """Return the number of events recorded at or before `moment`."""
        size, now = await self._guarded(self._writing.run(self._settle, journal_id))

        async def recorded_at(offset: int) -> datetime:
            [event] = await self.read(journal_id, offset, offset + 1)
            return event.recorded_at

        found = await last_recorded(recorded_at, size, moment)
        return SizeAt(found, provisional=moment >= now)

    def _settle(self, connections: _Connections, journal_id: int) -> tuple[int, datetime]:
        """Return the size while nothing is being appended, and the earliest next recorded_at."""
        with self._turn():
            connection = connections.current()
            connection.execute("BEGIN IMMEDIATE")
            try:
                batch = Batch(connection, journal_id, self.now())
            finally:
                connection.execute("ROLLBACK")
        return batch.size, batch.now

    async def journals(self) -> list[JournalInfo]:
        """Return all journals, in the order they were made."""
        rows = await self._fetch(f"{_JOURNAL} ORDER BY journal_id")
        return [
            JournalInfo(journal_id, name, size, text_to_time(created_at))
            for journal_id, name, size, created_at in rows
        ]

    async def create_journal(self, name: str) -> JournalInfo:
        """Make a journal; JournalExists if there is one of that name."""
        check_journal_name(name)
        insert = "INSERT INTO journals (name, created_at) VALUES (?, ?)"
        try:
            await self._guarded(
                self._writing.run(_execute, insert, (name, time_to_text(datetime.now(UTC))))
            )
        except sqlite3.IntegrityError as error:
            raise JournalExists(name) from error
        return next(journal for journal in await self.journals() if journal.name == name)

    def now(self) -> datetime:
        """Return the time by the clock that the store was given, else by this machine's."""
        return self._clock() if self._clock else datetime.now(UTC)

    def connections(self) -> Connections:
        """Return the state of the connections, the one for appending and those for reading."""
        both = (self._writing, self._reading)
        in_use = sum(min(each.works, each.most) for each in both)
        return Connections(sum(each.count for each in both), in_use, sum(e.most for e in both))

    @contextlib.asynccontextmanager
    async def write_turn(self) -> AsyncIterator[None]:
        """Hold this process's turn to write to the file."""
        held = self._turn()
        thread = ThreadPoolExecutor(1, "ledger-turn")
        loop = asyncio.get_running_loop()
        entering = loop.run_in_executor(thread, held.__enter__)
        try:
            await asyncio.shield(entering)
            yield
        finally:
            await entering
            held.__exit__(None, None, None)
            thread.shutdown(wait=False)

    @contextlib.asynccontextmanager
    async def wakeups(self, journal_id: int) -> AsyncIterator[Wakeups]:
        """Give what wakes up when this process appends; for all others there is the poll."""
        with self._hub.watching(journal_id) as wakeups:
            yield wakeups

    async def close(self) -> None:
        """Close the file."""
        await self._writing.close()
        await self._reading.close()

    def _turn(self) -> AbstractContextManager[None]:
        return turn(self._path, self._settings.append_timeout_seconds)

    def _open(self) -> sqlite3.Connection:
        if not self._path.exists():
            raise SchemaMissing(f"{self._path} does not exist; run `ledger migrate`")
        connection = sqlite3.connect(
            self._path,
            timeout=self._settings.append_timeout_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        self._use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Put the file into WAL mode; where others open it at this moment, SQLite does not wait."""
        deadline = time.monotonic() + self._settings.append_timeout_seconds
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    connection.close()
                    raise
                time.sleep(WAL_PAUSE_SECONDS)
            else:
                return

    async def _fetch(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return await self._guarded(self._reading.run(_execute, sql, arguments))

    async def _guarded(self, work: Awaitable[R]) -> R:
        """Turn SQLite's errors into this project's."""
        try:
            return await work
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def _refusal(self, error: sqlite3.Error) -> StoreUnavailable:
        if "no such table" in str(error):
            return SchemaMissing(f"{self._path} is not migrated ({error}); run `ledger migrate`")
        return StoreUnavailable(f"{self._path}: {error}")


class _Connections:
    """Threads with a connection each; SQLite calls block, so they stay out of the event loop."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], threads: int) -> None:
        self._connect = connect
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._threads = ThreadPoolExecutor(threads, "ledger-sqlite")
        self.most = threads
        self.works = 0
        """How many works run or wait for a thread."""

    @property
    def count(self) -> int:
        """How many connections are open."""
        return len(self._opened)

    async def run(self, work: Callable[..., R], *arguments: Any) -> R:
        """Run `work(self, *arguments)` in one of the threads, to its end even when cancelled."""
        loop = asyncio.get_running_loop()
        self.works += 1
        try:
            return await loop.run_in_executor(self._threads, work, self, *arguments)
        finally:
            self.works -= 1

    def current(self) -> sqlite3.Connection:
        """Return the calling thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            self._opened.append(connection)
        return connection

    def drop(self) -> None:
        """Close the calling thread's connection; the next call opens another."""
        connection = self.current()
        self._local.connection = None
        self._opened.remove(connection)
        connection.close()

    async def close(self) -> None:
        """Wait for the threads, then close their connections."""
        await asyncio.to_thread(self._threads.shutdown)
        for connection in self._opened:
            connection.close()
        self._opened.clear()


def _execute(
    connections: _Connections, sql: str, arguments: Sequence[Any]
) -> list[tuple[Any, ...]]:
    return connections.current().execute(sql, arguments).fetchall()


def _run(connection: sqlite3.Connection, statements: Sequence[Statement]) -> bool:
    first, *others = statements
    [arguments] = first.arguments
    done = connection.execute(_numbered(first.sql), [*map(_adapted, arguments)])
    if done.rowcount == 0:
        return False
    for each in others:
        rows = ([*map(_adapted, arguments)] for arguments in each.arguments)
        connection.executemany(_numbered(each.sql), rows)
    return True


def _numbered(sql: str) -> str:
    """Return SQLite's form of a statement whose arguments are $1, $2, …."""
    return sql.replace("$", "?")


def _adapted(argument: Any) -> Any:
    return time_to_text(argument) if isinstance(argument, datetime) else argument


def _raw(rows: Sequence[tuple[Any, ...]]) -> RawEvents:
    """Turn rows into columns; ids are stored as 32 digits, times as they are sealed."""
    if not rows:
        return RawEvents((), (), (), (), (), (), (), (), (), ())
    offsets, streams, versions, event_ids, *others = zip(*rows, strict=True)
    return RawEvents(offsets, streams, versions, list(map(_dashed, event_ids)), *others)


def _dashed(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _packed(
    rows: Sequence[tuple[Any, ...]], count: int, *, envelope: bool, streams: bool, last: int = 0
) -> PackedEvents:
    if not rows:
        return PackedEvents((), b"[]", (), (), (), count=count)
    offsets, bodies, event_ids, occurred_at, recorded_at, names, metadata, schema_versions, _ = zip(
        *rows, strict=True
    )
    return PackedEvents(
        offsets,
        b"[" + b",".join(bodies) + b"]",
        list(map(_dashed, event_ids)),
        list(map(text_to_time, occurred_at)),
        list(map(text_to_time, recorded_at)),
        names if streams else None,
        b"[" + b",".join(each or b"{}" for each in metadata) + b"]" if envelope else None,
        count,
        schema_versions,
        last,
    )


def _stored_event(
    offset: int,
    event_id: str,
    stream: str,
    version: int,
    schema_version: int,
    occurred_at: str,
    recorded_at: str,
    metadata: bytes | None,
    body: bytes,
    type_name: str,
) -> StoredEvent:
    return StoredEvent(
        offset,
        UUID(event_id),
        stream,
        version,
        schema_version,
        text_to_time(occurred_at),
        text_to_time(recorded_at),
        metadata,
        body,
        type_name,
    )
