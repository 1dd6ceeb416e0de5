"""The entries of a log: whether each is a recorded event, and follows from those before it.

Like all that the verifier needs, this imports the standard library and `cryptography` alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from operator import itemgetter
from struct import Struct
from typing import Any, NamedTuple, NoReturn

from ledger.proof.merkle import leaf_hash
from ledger.proof.tiles import TILE_WIDTH, split_bundle


@dataclass(frozen=True)
class Problem:
    """What is wrong, in which file, and at which offset.

    Where `until` is given, the offset is not known exactly: it is one of `offset` to `until` - 1.
    """

    message: str
    file: str | None = None
    offset: int | None = None
    until: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        named = ("message", "file", "offset", "until")
        return {name: getattr(self, name) for name in named if getattr(self, name) is not None}


def place(problem: Problem) -> float:
    """Return what problems are sorted by: their offset, those without one last."""
    return float("inf") if problem.offset is None else problem.offset


class Run(NamedTuple):
    """The events of one stream in a bundle: versions `first` to `last`, from `offset` on."""

    stream: str
    first: int
    last: int
    offset: int


class Bundle(NamedTuple):
    """What one entry bundle holds, as far as it can be told from it alone.

    `hashes` are those of all its leaves. The rest is of the entries before the first bad one:
    `ids` has 16 bytes for each, `times` the first and last recorded_at.
    """

    hashes: list[bytes]
    whole: bool
    journal: str | None
    runs: list[Run]
    ids: bytes
    times: tuple[str, str] | None
    problem: Problem | None


class Envelope(NamedTuple):
    """What the checks need of an entry; `journal` and `stream` as they stand, in quotes."""

    journal: str
    stream: str
    version: int
    event_id: bytes
    recorded_at: str


_TEXT = r'"[^"\\\x00-\x1f]*(?:\\(?:["\\bfnrt]|u00[01][0-9a-f])[^"\\\x00-\x1f]*)*"'
_COUNT = "[1-9][0-9]{0,18}"
_TIME = (
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z"
)
_ENVELOPE = re.compile(
    rf'\{{"v":1,"journal":({_TEXT}),"offset":(0|{_COUNT}),"stream":({_TEXT}),"version":({_COUNT}),'
    r'"event_id":"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})",'
    rf'"type":{_TEXT},"schema_version":{_COUNT},'
    rf'"recorded_at":"({_TIME})","occurred_at":"{_TIME}","metadata":'
)
_BODY = ',"body":'
_NO_METADATA = "null"


class EntryInvalid(ValueError):
    """An entry does not have the form of a recorded event; the message says what is wrong."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


_read_value = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode


def _object_end(text: str, start: int, what: str) -> int:
    """Return where the JSON object that begins at `start` ends."""
    if not text.startswith("{", start):
        raise EntryInvalid(f"its {what} is not a JSON object")
    try:
        _, end = _read_value(text, start)
    except (ValueError, RecursionError) as error:
        raise EntryInvalid(f"its {what} is not valid JSON: {error}") from error
    return end


def read_envelope(entry: bytes, offset: int) -> Envelope:
    """Return what an entry says of the event; EntryInvalid unless all of it has the right form.

    The form is one JSON object on one line, its keys in the order of docs/proofs.md.
    """
    try:
        text = entry.decode()
    except UnicodeDecodeError as error:
        raise EntryInvalid(f"it is not UTF-8: {error}") from error
    match = _ENVELOPE.match(text)
    if match is None or "\n" in text or "\r" in text:
        raise EntryInvalid("it does not have the form of a recorded event")
    at = match.end()
    at = at + 4 if text.startswith(_NO_METADATA, at) else _object_end(text, at, "metadata")
    if not text.startswith(_BODY, at):
        raise EntryInvalid("its metadata is not followed by its body")
    at = _object_end(text, at + len(_BODY), "body")
    if text[at:] != "}":
        raise EntryInvalid("it does not end with its body")
    journal, said, stream, version, event_id, recorded_at = match.groups()
    if int(said) != offset:
        raise EntryInvalid(f"it says that its offset is {said}")
    return Envelope(
        journal, stream, int(version), bytes.fromhex(event_id.replace("-", "")), recorded_at
    )


def examine_bundle(data: bytes, start: int) -> Bundle:
    """Hash a bundle's entries, the first of which has offset `start`, and read their envelopes.

    The result depends on the arguments alone, so it may be kept where a log is checked again.
    """
    entries, whole = split_bundle(data)
    hashes = list(map(leaf_hash, entries))
    sequence = _Sequence()
    problem = None
    for offset, entry in enumerate(entries[:TILE_WIDTH], start):
        try:
            sequence.add(read_envelope(entry, offset), offset)
        except EntryInvalid as error:
            problem = Problem(f"entry {offset} is wrong: {error}", offset=offset)
            break
    return sequence.bundle(hashes, whole, problem)


class _Sequence:
    """The envelopes of a bundle, as they must follow each other."""

    def __init__(self) -> None:
        self._journal: str | None = None
        self._streams: dict[str, tuple[int, int, int]] = {}
        """By stream its first version, the last one, and the offset of the first."""
        self._ids: list[bytes] = []
        self._first = self._last = ""

    def add(self, envelope: Envelope, offset: int) -> None:
        journal, stream, version, event_id, recorded_at = envelope
        if journal != self._journal:
            _check_journal(self._journal, journal)
            self._journal = journal
            self._first = recorded_at
        if recorded_at < self._last:
            raise EntryInvalid(_backwards(recorded_at, self._last))
        first, last, at = self._streams.get(stream, (version, version - 1, offset))
        if version != last + 1:
            raise EntryInvalid(_gap(stream, version, last))
        self._last = recorded_at
        self._streams[stream] = (first, version, at)
        self._ids.append(event_id)

    def bundle(self, hashes: list[bytes], whole: bool, problem: Problem | None) -> Bundle:
        runs = [
            Run(stream, first, last, offset)
            for stream, (first, last, offset) in self._streams.items()
        ]
        times = (self._first, self._last) if self._ids else None
        ids = b"".join(self._ids)
        return Bundle(hashes, whole, self._journal, runs, ids, times, problem)


def _check_journal(known: str | None, found: str) -> None:
    if known is not None and found != known:
        raise EntryInvalid(f"it is of journal {found}, those before of {known}")


def _backwards(found: str, before: str) -> str:
    return f"it was recorded at {found}, the one before at {before}"


def _gap(stream: str, version: int, before: int) -> str:
    return f"it is version {version} of stream {stream}, whose last version is {before}"


class History:
    """What must be remembered of all entries: streams, event ids, the last recorded_at."""

    _RECORD = Struct(">16sQ")
    _BUCKETS = 4096

    def __init__(self) -> None:
        self.journal: str | None = None
        self._versions: dict[str, int] = {}
        self._recorded_at = ""
        # By a part of the id that is random, so that each bucket stays small enough for a set.
        self._ids = [bytearray() for _ in range(self._BUCKETS)]

    def add(self, bundle: Bundle, start: int) -> Problem | None:
        """Let a bundle follow; return the first problem with that, if any."""
        found = [*self._check_first(bundle, start), *self._check_runs(bundle)]
        self._remember(bundle, start)
        if not found:
            return None
        at, why = min(found, key=itemgetter(0))
        return Problem(f"entry {at} is wrong: {why}", offset=at)

    def _check_first(self, bundle: Bundle, start: int) -> list[tuple[int, str]]:
        if bundle.times is None or bundle.journal is None:
            return []
        try:
            _check_journal(self.journal, bundle.journal)
        except EntryInvalid as error:
            return [(start, str(error))]
        if bundle.times[0] < self._recorded_at:
            return [(start, _backwards(bundle.times[0], self._recorded_at))]
        return []

    def _check_runs(self, bundle: Bundle) -> list[tuple[int, str]]:
        known = self._versions
        return [
            (run.offset, _gap(run.stream, run.first, known.get(run.stream, 0)))
            for run in bundle.runs
            if known.get(run.stream, 0) + 1 != run.first
        ]

    def _remember(self, bundle: Bundle, start: int) -> None:
        if bundle.times is None:
            return
        self.journal, self._recorded_at = bundle.journal, bundle.times[1]
        for stream, _, last, _ in bundle.runs:
            self._versions[stream] = last
        pack, buckets, ids = self._RECORD.pack, self._ids, bundle.ids
        for at in range(0, len(ids), 16):
            number = (ids[at + 14] << 8 | ids[at + 15]) % self._BUCKETS
            buckets[number] += pack(ids[at : at + 16], start + at // 16)

    def first_repeated(self) -> Problem | None:
        """Return the first event whose id an earlier one has, if there is one."""
        found = [each for bucket in self._ids if (each := self._repeated_in(bucket))]
        if not found:
            return None
        offset, before = min(found)
        return Problem(f"entry {offset} is wrong: entry {before} has its event id", offset=offset)

    def _repeated_in(self, bucket: bytearray) -> tuple[int, int] | None:
        records = list(self._RECORD.iter_unpack(bucket))
        if len({event_id for event_id, _ in records}) == len(records):
            return None
        seen: dict[bytes, int] = {}
        return next((at, seen[key]) for key, at in records if seen.setdefault(key, at) != at)
