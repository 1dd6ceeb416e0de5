"""The PostgreSQL store: a batch of appends is one call of the function `ledger_append`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import msgspec
from sqlalchemy import URL

from ledger.codec import check_journal_name
from ledger.engine import postgres_dsn
from ledger.errors import (
    AppendOutcomeUnknown,
    JournalExists,
    LedgerError,
    SchemaMissing,
    StoreUnavailable,
)
from ledger.settings import Settings
from ledger.sqltypes import time_to_text
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
from ledger.stores.postgres_batch import Batch
from ledger.stores.postgres_wakeups import Listener, Notifier
from ledger.stores.queries import Statement
from ledger.stores.rounds import rounds
from ledger.stores.sealing import StoredLog
from ledger.stores.search import last_recorded
from ledger.stores.subject_keys import StoredKeys
from ledger.stores.wakeups import Hub, Wakeups

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

_APPEND = (
    "SELECT * FROM ledger_append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,"
    " $16, $17, $18, $19, $20, $21, $22, $23)"
)
_COLUMNS = (
    '"offset", event_id, stream, version, schema_version, occurred_at, recorded_at, metadata, body,'
    " type"
)
_READ = f"""SELECT {_COLUMNS} FROM events
    WHERE journal_id = $1 AND "offset" >= $2 AND "offset" < $3 ORDER BY "offset" """  # noqa: S608
_READ_BUT = _READ.replace(
    "ORDER BY", """AND (type <> ALL ('{%s}') OR "offset" = $3 - 1) ORDER BY"""
)
# One row: what a driver does for each row and value costs more than all else.
_PACKED = """string_agg(int8send("offset"), '') AS offsets,
        string_agg(body, ',') AS bodies,
        string_agg(event_id::text, ',') AS event_ids,
        string_agg(timestamptz_send(occurred_at), '') AS occurred_at,
        string_agg(timestamptz_send(recorded_at), '') AS recorded_at,
        string_agg(int2send(schema_version), '') AS schema_versions"""
_READ_PACKED = f"""SELECT {_PACKED},
        CASE WHEN $4 OR cardinality($5::text[]) > 0 THEN
            array_agg(CASE WHEN $4 OR type = ANY ($5) THEN stream::text ELSE '' END) END AS streams,
        CASE WHEN $4 THEN string_agg(coalesce(metadata, '{{}}'), ',') END AS metadata,
        (SELECT count(*) FROM events
            WHERE journal_id = $1 AND "offset" >= $2 AND "offset" < $3) AS count
    FROM (
        SELECT * FROM events
        WHERE journal_id = $1 AND "offset" >= $2 AND "offset" < $3 AND type <> ALL ('{{%s}}')
        ORDER BY "offset" OFFSET 0
    ) AS e"""  # noqa: S608
_READ_RAW = """SELECT string_agg(int8send("offset"), '') AS offsets,
        array_agg(stream::text) AS streams,
        string_agg(int8send(version), '') AS versions,
        string_agg(event_id::text, ',') AS event_ids,
        array_agg(type::text) AS types,
        string_agg(int8send(schema_version), '') AS schema_versions,
        string_agg(timestamptz_send(recorded_at), '') AS recorded_at,
        string_agg(timestamptz_send(occurred_at), '') AS occurred_at,
        array_agg(metadata) AS metadata,
        array_agg(body) AS bodies
    FROM (
        SELECT * FROM events
        WHERE journal_id = $1 AND "offset" >= $2 AND "offset" < $3 ORDER BY "offset" OFFSET 0
    ) AS e"""
_READ_STREAM = f"""SELECT {_COLUMNS} FROM events
    WHERE journal_id = $1 AND stream = $2 AND version > $3 ORDER BY version LIMIT $4"""  # noqa: S608
_READ_TAGGED = f"""SELECT {_COLUMNS} FROM (
        SELECT DISTINCT "offset" AS tagged FROM event_tags
        WHERE journal_id = $1 AND tag = $2 AND "offset" > $3 ORDER BY "offset" LIMIT $4
    ) t CROSS JOIN LATERAL (
        SELECT * FROM events e WHERE e.journal_id = $1 AND e."offset" = t.tagged
    ) e ORDER BY tagged"""  # noqa: S608
# The limit comes first: else all of a long stream would be looked at for what lies below an offset.
_READ_PACKED_STREAM = f"""SELECT {_PACKED},
        CASE WHEN $6 THEN string_agg(coalesce(metadata, '{{}}'), ',') END AS metadata,
        count(*) AS count, max(version) AS last
    FROM (
        SELECT * FROM (
            SELECT * FROM events
            WHERE journal_id = $1 AND stream = $2 AND version > $3 ORDER BY version LIMIT $4
        ) AS s WHERE "offset" < $5 OFFSET 0
    ) AS e"""  # noqa: S608
_READ_PACKED_TAGGED = f"""SELECT {_PACKED}, array_agg(stream::text) AS streams,
        CASE WHEN $6 THEN string_agg(coalesce(metadata, '{{}}'), ',') END AS metadata,
        count(*) AS count, max("offset") AS last
    FROM (
        SELECT e.* FROM (
            SELECT DISTINCT "offset" AS tagged FROM event_tags
            WHERE journal_id = $1 AND tag = $2 AND "offset" > $3 AND "offset" < $5
            ORDER BY "offset" LIMIT $4
        ) t CROSS JOIN LATERAL (
            SELECT * FROM events e WHERE e.journal_id = $1 AND e."offset" = t.tagged
        ) e ORDER BY tagged OFFSET 0
    ) AS e"""  # noqa: S608
_JOURNAL = "SELECT journal_id, name, size, created_at FROM journals"
_IDLE = "SET LOCAL idle_in_transaction_session_timeout = '%dms'"
_BACKEND = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_TERMINATE = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid = $1 AND backend_start = $2"""

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_EPOCH_SECONDS = int(_EPOCH.timestamp())
_EXACT_MICROSECONDS_MAX = 10**15
"""As seconds in a float, times within 31 years of 2000 are off by less than half a microsecond."""


_LOST = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""Errors after which nobody knows what became of a statement that was sent."""
_SHUTDOWN_STATES = ("57P01", "57P02", "57P03", "57P05")
_DATA_STATES = ("22", "23", "54")
"""Classes of errors that one append of a batch can have brought on all others."""


class PostgresStore:
    """Journals in a PostgreSQL database (15 to 18)."""

    def __init__(self, url: URL, settings: Settings, clock: Clock | None = None) -> None:
        """Take the address; connections are made when they are needed."""
        self._dsn = postgres_dsn(url)
        self._shown = url.render_as_string(hide_password=True)
        self._settings = settings
        self._clock = clock
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._pool_lock = asyncio.Lock()
        self._writers = [_Writer(self) for _ in range(settings.pool_size)]
        # The one used last is taken first, so that no more connect than are needed at once.
        self._idle_writers: asyncio.LifoQueue[_Writer] = asyncio.LifoQueue()
        for writer in self._writers:
            self._idle_writers.put_nowait(writer)
        self._hub = Hub()
        self._notifier = Notifier(self._connect_aside, settings.connect_timeout_seconds)
        self._listener = Listener(self._connect_aside, self._hub)

    async def append(self, journal_id: int, batch: Sequence[PreparedAppend]) -> list[Outcome]:
        """Store a batch in one statement; where that fails, each append on its own."""
        try:
            return await self._append_all(journal_id, batch)
        except asyncpg.PostgresError as error:
            if len(batch) == 1 or (error.sqlstate or "")[:2] not in _DATA_STATES:
                return [self._refusal(error) for _ in batch]
        return await each_alone(lambda one: self.append(journal_id, [one]), batch)

    async def _append_all(self, journal_id: int, batch: Sequence[PreparedAppend]) -> list[Outcome]:
        columns = Batch(batch, sizes := rounds(batch))
        writer = await self._idle_writers.get()
        try:
            now = self._clock() if self._clock else None
            answer = await writer.run(_APPEND, journal_id, now, sizes, *columns.arguments())
        finally:
            self._idle_writers.put_nowait(writer)
        outcomes = columns.outcomes(answer)
        if any(isinstance(each, Appended) and not each.duplicate for each in outcomes):
            self._hub.wake(journal_id)
            self._notifier.notify(journal_id)
        return outcomes

    async def read(
        self, journal_id: int, start: int, stop: int, ignored: Sequence[str] = ()
    ) -> list[StoredEvent]:
        """Return the events with start <= offset < stop but those of ignored types, in order."""
        query = _READ_BUT % _listed(ignored) if ignored else _READ
        return [StoredEvent(*row) for row in await self._fetch(query, journal_id, start, stop)]

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
        query = _READ_PACKED % _listed(ignored)
        [row] = await self._fetch(query, journal_id, start, stop, envelope, streams_of)
        return _packed(row, row["streams"])

    async def read_raw(self, journal_id: int, start: int, stop: int) -> RawEvents:
        """Return the events between two offsets, in order, as they are sealed."""
        [row] = await self._fetch(_READ_RAW, journal_id, start, stop)
        return _raw(row)

    def sealed(self, journal_id: int) -> StoredLog:
        """Return the sealed log of a journal."""
        return StoredLog(self, journal_id)

    @property
    def losses(self) -> int:
        """How often a connection was lost while it appended."""
        return sum(each.losses for each in self._writers)

    def subject_keys(self, journal: str) -> StoredKeys:
        """Return the data keys of a journal, which may be another database's."""
        return StoredKeys(self, journal)

    async def query(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        """Return the rows of a query, whose arguments are $1, $2, …."""
        return [tuple(row) for row in await self._fetch(sql, *arguments)]

    async def transact(self, statements: Sequence[Statement]) -> bool:
        """Run statements in one transaction, unless the first one changes no row."""
        try:
            with self._away():
                pool = await self._reading_pool()
                async with (
                    pool.acquire(timeout=self._read_timeout_seconds) as connection,
                    _warned(connection),
                    connection.transaction(),
                ):
                    # A program that is frozen on the way must not keep the row for ever.
                    milliseconds = max(1, self._settings.connect_timeout_seconds * 1000)
                    await connection.execute(_IDLE % milliseconds)
                    return await _run(connection, statements)
        except asyncpg.UniqueViolationError as error:
            raise self._refusal(error) from error

    async def read_stream(
        self, journal_id: int, stream: str, after_version: int, limit: int
    ) -> list[StoredEvent]:
        """Return up to `limit` events of one stream above a version, in order."""
        rows = await self._fetch(_READ_STREAM, journal_id, stream, after_version, limit)
        return [StoredEvent(*row) for row in rows]

    async def read_tagged(
        self, journal_id: int, tag: str, after_offset: int, limit: int
    ) -> list[StoredEvent]:
        """Return up to `limit` events that carry a tag above an offset, in order."""
        rows = await self._fetch(_READ_TAGGED, journal_id, tag, after_offset, limit)
        return [StoredEvent(*row) for row in rows]

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
        asked = (journal_id, stream, after_version, limit, stop, envelope)
        [row] = await self._fetch(_READ_PACKED_STREAM, *asked)
        return _packed(row, [stream] * row["count"], row["last"] or 0)

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
        asked = (journal_id, tag, after_offset, limit, stop, envelope)
        [row] = await self._fetch(_READ_PACKED_TAGGED, *asked)
        return _packed(row, row["streams"], row["last"] or 0)

    async def size(self, journal_id: int) -> int:
        """Return the number of events in the journal."""
        [row] = await self._fetch("SELECT size FROM journals WHERE journal_id = $1", journal_id)
        return int(row[0])

    async def size_at(self, journal_id: int, moment: datetime) -> SizeAt:
        """Return the number of events recorded at or before `moment`."""
        now = self._clock() if self._clock else None
        [settled] = await self._fetch("SELECT * FROM ledger_settle($1, $2)", journal_id, now)

        async def recorded_at(offset: int) -> datetime:
            [row] = await self._fetch(_READ, journal_id, offset, offset + 1)
            return StoredEvent(*row).recorded_at

        size = await last_recorded(recorded_at, settled["size"], moment)
        return SizeAt(size, provisional=moment >= settled["now"])

    async def journals(self) -> list[JournalInfo]:
        """Return all journals, in the order they were made."""
        return [JournalInfo(*row) for row in await self._fetch(f"{_JOURNAL} ORDER BY journal_id")]

    async def create_journal(self, name: str) -> JournalInfo:
        """Make a journal; JournalExists if there is one of that name."""
        check_journal_name(name)
        insert = "INSERT INTO journals (name, created_at) VALUES ($1, $2)"
        try:
            await self._fetch(insert, name, datetime.now(UTC))
        except asyncpg.UniqueViolationError as error:
            raise JournalExists(name) from error
        [row] = await self._fetch(f"{_JOURNAL} WHERE name = $1", name)
        return JournalInfo(*row)

    def now(self) -> datetime:
        """Return the time by the clock that the store was given, else by this machine's."""
        return self._clock() if self._clock else datetime.now(UTC)

    def write_turn(self) -> AbstractAsyncContextManager[None]:
        """Do nothing: PostgreSQL's lock queue is fair."""
        return contextlib.nullcontext()

    @contextlib.asynccontextmanager
    async def wakeups(self, journal_id: int) -> AsyncIterator[Wakeups]:
        """Give what wakes up when the journal may have grown, also by other processes."""
        self._listener.start()
        with self._hub.watching(journal_id) as wakeups:
            yield wakeups

    async def close(self) -> None:
        """Close all connections."""
        await self._listener.close()
        await self._notifier.close()
        for writer in self._writers:
            await writer.close()
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), self._settings.connect_timeout_seconds)
            except TimeoutError:
                pool.terminate()

    def connections(self) -> Connections:
        """Return the state of the connections, those for appending and for reading together."""
        pool, writers = self._pool, self._writers
        reading = (0, 0) if pool is None else (pool.get_size(), pool.get_idle_size())
        is_idle = self._idle_writers.qsize()
        return Connections(
            open=reading[0] + sum(each.is_open for each in writers),
            in_use=reading[0] - reading[1] + len(writers) - is_idle,
            most=2 * self._settings.pool_size + self._settings.pool_overflow,
        )

    async def connect(self) -> tuple[Connection, Backend]:
        """Return a new connection for appending; StoreUnavailable where there is none."""
        with self._away():
            timeout_seconds = self._settings.connect_timeout_seconds
            # The server gives up first: its answer says for certain that nothing was stored.
            connection = await asyncpg.connect(
                self._dsn,
                timeout=timeout_seconds,
                server_settings=self._session(0.8 * self.append_timeout_seconds),
            )
            try:
                [backend] = await connection.fetch(_BACKEND, timeout=timeout_seconds)
            except BaseException:
                connection.terminate()
                raise
            return connection, Backend(*backend)

    async def _connect_aside(self) -> Connection:
        """Return a connection for wake-ups, for which no commit has to wait for the disk."""
        timeout_seconds = self._settings.connect_timeout_seconds
        return await asyncpg.connect(
            self._dsn,
            timeout=timeout_seconds,
            command_timeout=timeout_seconds,
            server_settings=self._session(timeout_seconds) | {"synchronous_commit": "off"},
        )

    @property
    def append_timeout_seconds(self) -> float:
        """How long an append may take before its outcome counts as unknown."""
        return self._settings.append_timeout_seconds

    async def _fetch(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        with self._away():
            pool = await self._reading_pool()
            async with pool.acquire(timeout=self._read_timeout_seconds) as connection:
                return await connection.fetch(sql, *arguments)

    @property
    def _read_timeout_seconds(self) -> float:
        """How long to wait for a server that does not even end a statement that takes too long."""
        return self._settings.statement_timeout_seconds + self._settings.connect_timeout_seconds

    async def _reading_pool(self) -> asyncpg.Pool[asyncpg.Record]:
        async with self._pool_lock:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._dsn,
                    min_size=0,
                    max_size=self._settings.pool_size + self._settings.pool_overflow,
                    timeout=self._settings.connect_timeout_seconds,
                    command_timeout=self._read_timeout_seconds,
                    server_settings=self._session(self._settings.statement_timeout_seconds),
                    reset=_leave,
                )
            return self._pool

    def _session(self, timeout_seconds: float) -> dict[str, str]:
        # READ COMMITTED whatever the server's default: after waiting for the journal's row, the
        # append must see what was committed meanwhile. UTC: elsewhere a day may have 23 hours.
        # Every query here follows an index in its order. Without sorting there is no other plan,
        # also for plans that are made while the tables are empty and kept when they have grown.
        return {
            "application_name": "ledger",
            "default_transaction_isolation": "read committed",
            "enable_seqscan": "off",
            "enable_bitmapscan": "off",
            "enable_sort": "off",
            "jit": "off",
            "statement_timeout": str(max(1, int(timeout_seconds * 1000))),
            "timezone": "UTC",
        }

    @contextlib.contextmanager
    def _away(self) -> Iterator[None]:
        """Turn the many ways in which a database can be away into one error."""
        try:
            yield
        except asyncpg.UniqueViolationError:
            raise
        except asyncpg.PostgresError as error:
            raise self._refusal(error) from error
        except _LOST as error:
            raise StoreUnavailable(
                f"cannot reach {self._shown}: {str(error) or type(error).__name__}; "
                "check LEDGER_DATABASE_URL and that the server runs"
            ) from error

    def _refusal(self, error: asyncpg.PostgresError) -> LedgerError:
        if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedFunctionError):
            return SchemaMissing(f"{self._shown} is not migrated ({error}); run `ledger migrate`")
        return StoreUnavailable(f"{self._shown} refused: {error} (SQLSTATE {error.sqlstate})")


async def _leave(_connection: Connection) -> None:
    """Do nothing with a connection that was read from: that has left nothing behind."""


def _listed(types: Sequence[str]) -> str:
    """Return names of types for a constant in a query: only then the server hashes them."""
    return ",".join(name for name in types if name.isidentifier())


def _packed(row: asyncpg.Record, streams: Sequence[str] | None, last: int = 0) -> PackedEvents:
    """Unpack what the driver was spared."""
    if row["offsets"] is None:
        return PackedEvents((), b"[]", (), (), (), count=row["count"])
    metadata, times = row["metadata"], _times(row["occurred_at"])
    return PackedEvents(
        _integers(row["offsets"]),
        b"[" + row["bodies"] + b"]",
        row["event_ids"].split(","),
        times,
        times if row["occurred_at"] == row["recorded_at"] else _times(row["recorded_at"]),
        streams,
        None if metadata is None else b"[" + metadata + b"]",
        row["count"],
        _integers(row["schema_versions"], "h"),
        last,
    )


@contextlib.asynccontextmanager
async def _warned(connection: Any) -> AsyncIterator[None]:
    """Take a warning for an unknown outcome: that is all a cancelled wait for a standby gives."""
    warnings: list[str] = []

    def note(_connection: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.severity_en == "WARNING":
            warnings.append(str(message))

    connection.add_log_listener(note)
    try:
        yield
    finally:
        connection.remove_log_listener(note)
    if warnings:
        raise AppendOutcomeUnknown(f"stored on this server, but {warnings[0]}")


async def _run(connection: Any, statements: Sequence[Statement]) -> bool:
    """Run statements unless the first one changes no row; return whether they were run."""
    first, *others = statements
    [arguments] = first.arguments
    status: str = await connection.execute(first.sql, *arguments)
    if status.endswith(" 0"):
        return False
    for each in others:
        await connection.executemany(each.sql, each.arguments)
    return True


def _raw(row: asyncpg.Record) -> RawEvents:
    """Unpack events as they are sealed."""
    if row["offsets"] is None:
        return RawEvents((), (), (), (), (), (), (), (), (), ())
    recorded_at = _texts(row["recorded_at"])
    is_same = row["occurred_at"] == row["recorded_at"]
    return RawEvents(
        _integers(row["offsets"]),
        row["streams"],
        _integers(row["versions"]),
        row["event_ids"].split(","),
        row["types"],
        _integers(row["schema_versions"]),
        recorded_at,
        recorded_at if is_same else _texts(row["occurred_at"]),
        row["metadata"],
        row["bodies"],
    )


def _texts(sent: bytes) -> list[str]:
    """Return times as text; many events have the same, as those of one batch."""
    known: dict[datetime, str] = {}
    texts = []
    for moment in _times(sent):
        text = known.get(moment)
        if text is None:
            text = known[moment] = time_to_text(moment)
        texts.append(text)
    return texts


def _integers(sent: bytes, kind: str = "q") -> array[int]:
    """Return integers from the form in which PostgreSQL sends them, big-endian.

    `kind` tells their size: "q" is eight bytes, "h" two.
    """
    found = array(kind, sent)
    if sys.byteorder == "little":
        found.byteswap()
    return found


def _times(sent: bytes) -> list[datetime]:
    """Return times from microseconds since 2000."""
    found = _integers(sent)
    if max(map(abs, found)) < _EXACT_MICROSECONDS_MAX:
        seconds = [microseconds / 1e6 + _EPOCH_SECONDS for microseconds in found]
        return msgspec.convert(seconds, list[datetime], strict=False)
    return [_EPOCH + timedelta(0, 0, microseconds) for microseconds in found]


class Backend(NamedTuple):
    """What tells a server process from any later one that gets its number."""

    pid: int
    started_at: datetime


class _Writer:
    """A connection over which batches are appended, one statement at a time."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._connection: Connection | None = None
        self._backend: Backend | None = None
        self._warnings: list[str] = []
        self.losses = 0

    @property
    def is_open(self) -> bool:
        """Whether it is connected, as far as it knows."""
        return self._connection is not None

    async def run(self, sql: str, *arguments: Any) -> asyncpg.Record:
        """Run an append; while its outcome is unknown, run it again.

        Running it again is safe, since known event ids are found first, and right, since the
        server process of the first try is ended before: it cannot commit any more.
        """
        connection = await self._connected()
        deadline = asyncio.get_running_loop().time() + self._store.append_timeout_seconds
        cause: BaseException | None = None
        while True:
            try:
                return await self._once(connection, deadline, sql, arguments)
            except _LOST as error:
                cause = error
                connection = await self._recover(deadline, cause)
            except asyncpg.PostgresError as error:
                if cause is None:
                    raise
                raise _unknown(cause, error) from error

    async def _once(
        self, connection: Connection, deadline: float, sql: str, arguments: tuple[Any, ...]
    ) -> asyncpg.Record:
        self._warnings.clear()
        seconds = max(0.001, deadline - asyncio.get_running_loop().time())
        try:
            row = await connection.fetchrow(sql, *arguments, timeout=seconds)
        except asyncpg.PostgresError as error:
            if error.sqlstate in _SHUTDOWN_STATES or (error.sqlstate or "").startswith("08"):
                raise ConnectionError(str(error)) from error
            raise
        if self._warnings:
            # A cancelled wait for a synchronous standby commits here with no more than a warning.
            raise AppendOutcomeUnknown(
                f"stored on this server, but {self._warnings[0]}; append again with the same ids"
            )
        if row is None:
            raise AppendOutcomeUnknown("the append function returned nothing")
        return row

    async def _recover(self, deadline: float, cause: BaseException) -> Connection:
        """Return a new connection once the old one's server process is surely gone."""
        delay_seconds = 0.05
        self.losses += 1
        lost, self._backend = self._backend, None
        await self.close()
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    connection = await self._connected()
                    await self._end(connection, lost)
            except (LedgerError, asyncpg.PostgresError, *_LOST) as error:
                await self.close()
                if asyncio.get_running_loop().time() + delay_seconds > deadline:
                    raise _unknown(cause, error) from cause
                await asyncio.sleep(delay_seconds)
                delay_seconds = min(2 * delay_seconds, 1.0)
            else:
                return connection

    async def _end(self, connection: Connection, lost: Backend | None) -> None:
        """Terminate the server process of a lost connection and wait until it is gone."""
        if lost is None:
            return
        end = (_TERMINATE, lost.pid, lost.started_at)
        while await connection.fetchrow(*end) is not None:  # noqa: ASYNC110 - the server's process
            await asyncio.sleep(0.02)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection, self._backend = await self._store.connect()
            self._connection.add_log_listener(self._note_warning)
        return self._connection

    def _note_warning(self, _connection: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.severity_en == "WARNING":
            self._warnings.append(str(message))

    async def close(self) -> None:
        """Drop the connection without waiting for the server."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _unknown(cause: BaseException, error: BaseException) -> AppendOutcomeUnknown:
    return AppendOutcomeUnknown(
        f"lost the database while it was committing ({cause!r}) and could not ask it again "
        f"({error!r}); append again with the same event ids"
    )
