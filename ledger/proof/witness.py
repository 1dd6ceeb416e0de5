"""A witness of logs (C2SP tlog-witness): it remembers how far each has come, and cosigns.

It keeps no entries. Of each log it knows the largest checkpoint that it has cosigned, and cosigns
only what is proved to continue that; so a log that was put back, or rewritten, gets no cosignature.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from time import monotonic, time
from typing import Any

from ledger.errors import LedgerError
from ledger.proof.merkle import EMPTY_ROOT, ProofInvalid, verify_consistency
from ledger.proof.notes import (
    CheckpointBody,
    Note,
    NoteInvalid,
    SigningKey,
    VerifierKey,
    open_note,
)
from ledger.proof.requests import AddCheckpoint, RequestInvalid

ADD_CHECKPOINT = "/add-checkpoint"
SIZE_TYPE = "text/x.tlog.size"
REQUEST_BYTES_MAX = 64 * 1024
CONNECTIONS_MAX = 64
READ_SECONDS = 10.0
"""For so long a connection may say nothing."""
REQUEST_SECONDS = 30.0
"""So long a request may take to arrive and be answered, however steadily it trickles in."""
BUSY_SECONDS = 5.0

_STATE = """CREATE TABLE IF NOT EXISTS logs (
    origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note BLOB NOT NULL,
    seen_at TEXT NOT NULL) WITHOUT ROWID"""
_LATEST = "SELECT size, root FROM logs WHERE origin = ?"
_KEEP = """INSERT INTO logs (origin, size, root, note, seen_at) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (origin) DO UPDATE SET size = excluded.size, root = excluded.root,
        note = excluded.note, seen_at = excluded.seen_at"""


class WitnessUnusable(LedgerError):
    """The witness cannot start: its folder, address or list of logs cannot be used."""

    exit_code = 3


@dataclass(frozen=True)
class Answer:
    """What the witness says to a request: an HTTP status and a text."""

    status: int
    text: str
    content_type: str = "text/plain; charset=utf-8"


class State:
    """What the witness has seen last of each log, on disk before any answer says so.

    Threads and processes may share the folder: looking and writing is one transaction.
    """

    def __init__(self, folder: Path) -> None:
        """Take the folder; WitnessUnusable where no file can be made in it."""
        self._file = folder / "witness.db"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as connection:
                connection.execute(_STATE)
        except (OSError, sqlite3.Error) as error:
            raise WitnessUnusable(
                f"cannot keep the witness's state in {folder}: {error}"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._file, timeout=BUSY_SECONDS, isolation_level=None)
        connection.execute("PRAGMA synchronous = EXTRA")
        return connection

    @contextmanager
    def turn(self, origin: str) -> Iterator[Turn]:
        """Give what was seen of a log, for as long as nobody else may change it."""
        with closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            found = connection.execute(_LATEST, (origin,)).fetchone()
            yield Turn(connection, *(found or (0, EMPTY_ROOT)))


@dataclass
class Turn:
    """The latest size and root of one log, and the right to put others in their place."""

    _connection: sqlite3.Connection
    size: int
    root: bytes

    def keep(self, body: CheckpointBody, note: bytes) -> None:
        """Put a checkpoint in its place; it is on the disk when this returns."""
        seen_at = datetime.now(UTC).isoformat()
        row = (body.origin, body.size, body.root, note, seen_at)
        self._connection.execute(_KEEP, row)
        self._connection.execute("COMMIT")


class Witness:
    """Answers requests about the logs that it knows."""

    def __init__(
        self,
        key: SigningKey,
        logs: Sequence[VerifierKey],
        folder: Path,
        *,
        clock: Callable[[], float] = time,
    ) -> None:
        """Take the key to cosign with, the keys of the logs, and the folder of the state.

        The name of a log's key is its origin; a log may have several. Raises WitnessUnusable.
        """
        self._key = key
        self._logs: dict[str, list[VerifierKey]] = {}
        for each in logs:
            self._logs.setdefault(each.name, []).append(each)
        if not self._logs:
            raise WitnessUnusable("a witness needs the key of at least one log")
        self._state = State(folder)
        self._clock = clock

    @property
    def vkey(self) -> str:
        """The public key of the cosignatures, in writing."""
        return self._key.cosigner.vkey

    @property
    def origins(self) -> list[str]:
        """The logs that it knows."""
        return list(self._logs)

    def add_checkpoint(self, data: bytes) -> Answer:
        """Answer the body of an add-checkpoint request; what is cosigned is on disk by then."""
        try:
            request = AddCheckpoint.parse(data)
            body = CheckpointBody.parse(Note.parse(request.checkpoint).text)
        except (RequestInvalid, NoteInvalid) as error:
            return Answer(400, f"{error}\n")
        keys = self._logs.get(body.origin)
        if keys is None:
            return Answer(404, f"no log {body.origin!r} is known here\n")
        try:
            note = open_note(request.checkpoint, keys)
        except NoteInvalid as error:
            return Answer(403, f"{error}\n")
        if request.old > body.size:
            return Answer(400, f"the old size {request.old} is above the new one {body.size}\n")
        try:
            return self._cosign(request, body, note)
        except sqlite3.OperationalError as error:
            return Answer(503, f"the state cannot be written now: {error}\n")

    def _cosign(self, request: AddCheckpoint, body: CheckpointBody, note: Note) -> Answer:
        with self._state.turn(body.origin) as turn:
            is_other = request.old == body.size and turn.root != body.root
            if request.old != turn.size or is_other:
                return Answer(409, f"{turn.size}\n", SIZE_TYPE)
            try:
                _check_growth(request, turn, body)
            except ProofInvalid as error:
                return Answer(422, f"{error}\n")
            if (turn.size, turn.root) != (body.size, body.root):
                turn.keep(body, request.checkpoint)
            # Made while the turn lasts: the time in it says that nothing larger was seen by then.
            return Answer(200, self._key.cosign(note.text, int(self._clock())).line)


def _check_growth(request: AddCheckpoint, turn: Turn, body: CheckpointBody) -> None:
    """Raise ProofInvalid unless the checkpoint is proved to continue what was seen last."""
    if turn.size == 0:
        if request.proof:
            raise ProofInvalid("nothing can be proved of the empty tree: the proof must be empty")
        return
    verify_consistency(turn.size, body.size, request.proof, turn.root, body.root)


class _Handler(BaseHTTPRequestHandler):
    """One connection; its requests come one after the other."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ledger-witness", ""
    timeout = READ_SECONDS
    disable_nagle_algorithm = True
    wbufsize = -1  # the head and the text go out together
    server: WitnessServer

    def handle_one_request(self) -> None:
        """Handle a request within its time."""
        with self.server.watched(self.connection):
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True  # the client has gone, or was cut off

    def do_POST(self) -> None:
        """Answer a request."""
        if self.path.partition("?")[0] != self.server.prefix + ADD_CHECKPOINT:
            self._refuse(404, "only add-checkpoint is answered here\n")
            return
        data = self._body()
        if data is not None:
            self._answer(self.server.witness.add_checkpoint(data))

    def _body(self) -> bytes | None:
        """Return the request's body; None where it was refused."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            self._refuse(411, "a request has a Content-Length\n")
        elif len(length) > len(str(REQUEST_BYTES_MAX)) or int(length) > REQUEST_BYTES_MAX:
            self._refuse(413, f"a request has at most {REQUEST_BYTES_MAX} bytes\n")
        elif len(data := self.rfile.read(int(length))) < int(length):
            self.close_connection = True
        else:
            return data
        return None

    def _refuse(self, status: int, text: str) -> None:
        """Answer a request whose body is left unread, so that nothing more can be read."""
        self.close_connection = True
        self._answer(Answer(status, text))

    def _answer(self, answer: Answer) -> None:
        data = answer.text.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the base
        """Write a line to standard error; what strangers sent is shown as ASCII."""
        text = ascii(format % args)[1:-1]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        print(f"{now} {self.address_string()} {text}", file=sys.stderr, flush=True)


class WitnessServer(ThreadingHTTPServer):
    """Serves a witness over HTTP: a bounded number of connections, each request in its time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = CONNECTIONS_MAX

    def __init__(self, address: tuple[str, int], witness: Witness, prefix: str = "") -> None:
        """Listen at an address (a port of 0 is any free one); WitnessUnusable where that fails."""
        self.witness = witness
        self.prefix = prefix
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._until: dict[socket, float] = {}
        self._until_lock = threading.Lock()
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            raise WitnessUnusable(
                f"cannot listen at {address[0]}:{address[1]}: {error.strerror}"
            ) from error

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return int(self.server_address[1])

    @contextmanager
    def watched(self, connection: socket) -> Iterator[None]:
        """Have a connection cut off if what is done meanwhile takes too long."""
        with self._until_lock:
            self._until[connection] = monotonic() + REQUEST_SECONDS
        try:
            yield
        finally:
            with self._until_lock:
                self._until.pop(connection, None)

    def service_actions(self) -> None:
        """Cut off requests whose time is over; called about twice a second."""
        now = monotonic()
        with self._until_lock:
            for connection, until in self._until.items():
                if until < now:
                    _cut_off(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread of its own, or close it where there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection; then there is room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


def _cut_off(connection: socket) -> None:
    try:
        connection.shutdown(SHUT_RDWR)  # wakes the thread that reads from it
    except OSError:
        return  # it is closed already
