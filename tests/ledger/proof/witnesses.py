"""Witnesses in tests: served in threads, and by processes that are killed."""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from ledger.proof.merkle import consistency_proof, leaf_hash, root_of
from ledger.proof.notes import CheckpointBody, Note, SigningKey, VerifierKey
from ledger.proof.requests import AddCheckpoint
from ledger.proof.witness import Answer, Witness, WitnessServer
from tests.ledger.proof.sealers import KEY
from tests.support.forks import FORKS

WITNESS_KEY = SigningKey("witness.example/w1", bytes(range(1, 33)))
OTHER_WITNESS_KEY = SigningKey("witness.example/w2", bytes(range(2, 34)))
FORK_KEY = SigningKey("ledger/main.2", bytes(range(3, 35)))
LOGS = (KEY.verifier, FORK_KEY.verifier)


@dataclass
class Tree:
    """A log of made-up leaves; two with different marks differ from their first leaf on."""

    mark: str = "a"
    key: SigningKey = KEY

    def leaves(self, size: int) -> list[bytes]:
        """Return the leaf hashes."""
        return [leaf_hash(f"{self.mark}{number}".encode()) for number in range(size)]

    def checkpoint(self, size: int) -> bytes:
        """Return the signed checkpoint of a size."""
        text = CheckpointBody(self.key.name, size, root_of(self.leaves(size))).text
        return Note(text, (self.key.sign(text),)).render()

    def request(self, old: int, new: int) -> bytes:
        """Return the body of a request to go from one size to another."""
        proof = consistency_proof(old, new, self._read) if 0 < old <= new else []
        return AddCheckpoint(old, tuple(proof), self.checkpoint(new)).render()

    def _read(self, level: int, index: int) -> bytes:
        return root_of(self.leaves((index + 1) << level)[index << level :])


@dataclass
class Served:
    """A witness that is served by a thread of this process."""

    server: WitnessServer
    witness: Hooked

    @property
    def url(self) -> str:
        """Where to ask it."""
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def setting(self) -> str:
        """Its part of LEDGER_WITNESSES."""
        return f"{self.url} {self.witness.vkey}"

    def post(self, data: bytes, path: str = "/add-checkpoint") -> tuple[int, str, str | None]:
        """Return status, text and content type of the answer to a request."""
        return post(self.server.port, data, path)


def post(port: int, data: bytes, path: str = "/add-checkpoint") -> tuple[int, str, str | None]:
    """Ask a witness at a port; return status, text and content type."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, data)
        response = connection.getresponse()
        return response.status, response.read().decode(), response.getheader("Content-Type")
    finally:
        connection.close()


class Hooked(Witness):
    """A witness that does something before it answers."""

    before: Callable[[], object] = bool

    def add_checkpoint(self, data: bytes) -> Answer:
        """Answer, after that."""
        self.before()
        return super().add_checkpoint(data)


@contextmanager
def served(
    folder: Path, key: SigningKey = WITNESS_KEY, logs: Sequence[VerifierKey] = LOGS
) -> Iterator[Served]:
    """Serve a witness that keeps its state in a folder."""
    witness = Hooked(key, logs, folder)
    with WitnessServer(("127.0.0.1", 0), witness) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Served(server, witness)
        finally:
            server.shutdown()
            thread.join()


class _Dying(Witness):
    """A witness whose process is killed when it has seen to a request, or before it does."""

    after_writing = True

    def add_checkpoint(self, data: bytes) -> Answer:
        """Say only what is not cosigned."""
        if self.after_writing and (answer := super().add_checkpoint(data)).status != http.client.OK:
            return answer
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def serve_until_killed(folder: Path, death: str, tell: Connection) -> None:
    """Be a process that serves a witness; `death` says when it dies: "before", "after", "never"."""
    kind = Witness if death == "never" else _Dying
    witness = kind(WITNESS_KEY, LOGS, folder)
    if isinstance(witness, _Dying):
        witness.after_writing = death == "after"
    with WitnessServer(("127.0.0.1", 0), witness) as server:
        tell.send(server.port)
        server.serve_forever()


@contextmanager
def process(folder: Path, death: str = "never") -> Iterator[tuple[BaseProcess, int]]:
    """Serve a witness in a process; give that and the port."""
    receive, send = FORKS.Pipe(duplex=False)
    started = FORKS.Process(target=serve_until_killed, args=(folder, death, send), daemon=True)
    started.start()
    try:
        assert receive.poll(30)
        yield started, receive.recv()
    finally:
        started.kill()
        started.join()
