"""Asking witnesses (C2SP tlog-witness) over HTTP for cosignatures of a checkpoint."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from ledger.proof.notes import (
    COSIGNATURE_V1,
    CheckpointBody,
    Note,
    NoteInvalid,
    Signature,
    VerifierKey,
    open_note,
    parse_number,
)
from ledger.proof.requests import AddCheckpoint
from ledger.settings import Settings, SettingsInvalid

RESPONSE_BYTES_MAX = 64 * 1024
TRIES = 30
"""Others may have shown the witness a larger checkpoint each time between two questions."""

Prove = Callable[[int, int], Awaitable[Sequence[bytes]]]
"""`await prove(old, new)` returns a consistency proof."""


class WitnessFailed(Exception):
    """A witness could not be asked, or gave no answer that says anything of the log."""


class WitnessSawMore(Exception):
    """A witness has cosigned a checkpoint of `size`, which is larger than the one it was shown."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class WitnessSawOther(Exception):
    """A witness has cosigned a checkpoint of `size` that the one it was shown does not continue."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


@dataclass(frozen=True)
class Reply:
    """An HTTP status, and the first bytes of the text."""

    status: int
    data: bytes


@dataclass(frozen=True)
class Witness:
    """A witness: where it is asked (the submission prefix), and the key that it cosigns with."""

    url: str
    key: VerifierKey

    @property
    def name(self) -> str:
        """The name that it signs with."""
        return self.key.name

    async def cosign(self, note: bytes, prove: Prove, timeout_seconds: float) -> Signature:
        """Return the witness's cosignature of a signed checkpoint.

        Raises WitnessFailed, WitnessSawMore and WitnessSawOther.
        """
        body = CheckpointBody.parse(Note.parse(note).text)
        old = body.size
        for _ in range(TRIES):
            proof = await prove(old, body.size) if 0 < old < body.size else ()
            request = AddCheckpoint(old, tuple(proof), note)
            reply = await self._post(request.render(), timeout_seconds)
            if reply.status == http.client.OK:
                return self._cosignature(note, reply.data)
            if reply.status == http.client.UNPROCESSABLE_ENTITY:
                raise WitnessSawOther(old)
            if reply.status != http.client.CONFLICT:
                raise WitnessFailed(f"it answered {reply.status}: {_shown(reply.data)}")
            old = self._seen(reply.data, old, body)
        raise WitnessFailed(f"it was shown something else between {TRIES} questions")

    def _seen(self, data: bytes, old: int, body: CheckpointBody) -> int:
        """Return the size that the witness has seen, below that of the checkpoint."""
        try:
            size = parse_number(data.decode("ascii").removesuffix("\n"))
        except (UnicodeDecodeError, NoteInvalid) as error:
            raise WitnessFailed(f"it answered 409 without a size: {_shown(data)}") from error
        if size > body.size:
            raise WitnessSawMore(size)
        if size == old == body.size:
            raise WitnessSawOther(size)
        return size

    def _cosignature(self, note: bytes, lines: bytes) -> Signature:
        """Return the cosignature among the lines; those of other keys are ignored.

        What the note bears already does not count: it says nothing of who has answered now.
        """
        text = Note.parse(note).text
        try:
            signed = open_note(text.encode() + b"\n" + lines, (self.key,))
        except NoteInvalid as error:
            raise WitnessFailed(f"it answered without its cosignature: {error}") from error
        return next(each for each in signed.signatures if self.key.signed(each))

    async def _post(self, data: bytes, timeout_seconds: float) -> Reply:
        """Send a request; nothing that the other side does takes longer than the timeout."""
        exchange = _Exchange(urlsplit(self.url), data, timeout_seconds)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.to_thread(exchange.run)
        except TimeoutError as error:
            raise WitnessFailed(f"no answer within {timeout_seconds:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise WitnessFailed(f"{type(error).__name__}: {error}") from error
        finally:
            exchange.end()


class _Exchange:
    """One request and its answer, in a thread; another one may end it."""

    def __init__(self, url: SplitResult, data: bytes, timeout_seconds: float) -> None:
        self._data = data
        self._path = url.path.rstrip("/") + "/add-checkpoint"
        self._connection = _connection(url, timeout_seconds)
        self._socket: socket.socket | None = None

    def run(self) -> Reply:
        """Send and receive."""
        try:
            self._connection.connect()
            self._socket = self._connection.sock
            headers = {"Content-Type": "text/plain; charset=utf-8", "Connection": "close"}
            self._connection.request("POST", self._path, self._data, headers)
            response = self._connection.getresponse()
            return Reply(response.status, response.read(RESPONSE_BYTES_MAX))
        finally:
            self._connection.close()

    def end(self) -> None:
        """Have `run` fail soon, if it is still at work."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _connection(url: SplitResult, timeout_seconds: float) -> http.client.HTTPConnection:
    host = url.hostname or ""
    if url.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, url.port, timeout=timeout_seconds, context=context)
    return http.client.HTTPConnection(host, url.port, timeout=timeout_seconds)


def _shown(data: bytes) -> str:
    return ascii(data[:200].decode(errors="replace").strip())


def witnesses_of(settings: Settings) -> list[Witness]:
    """Return the witnesses that are set, none by default; SettingsInvalid says what is wrong."""
    words = settings.witnesses.split()
    if len(words) % 2:
        raise SettingsInvalid("LEDGER_WITNESSES: give each witness as its URL and its key in turn")
    return [_witness(*pair) for pair in zip(words[::2], words[1::2], strict=True)]


def _witness(url: str, vkey: str) -> Witness:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        key = VerifierKey.parse(vkey)
    except ValueError as error:
        raise SettingsInvalid(f"LEDGER_WITNESSES: {error}") from error
    if not is_usable:
        raise SettingsInvalid(f"LEDGER_WITNESSES: {url!r} is no http:// or https:// URL")
    if key.kind != COSIGNATURE_V1:
        raise SettingsInvalid(
            f"LEDGER_WITNESSES: the key of {key.name} signs notes; the one for cosignatures is "
            "needed, as `ledger witness key` prints it"
        )
    return Witness(url, key)
