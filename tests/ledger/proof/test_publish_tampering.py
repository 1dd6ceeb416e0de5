"""A thousand ways to tamper with a published log of 100,000 events: each is found where it is."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random

import pytest

from benchmarks.history import Plan, load
from ledger.proof import tiles
from ledger.proof.folders import Folder
from ledger.proof.merkle import leaf_hash
from ledger.proof.publish import publish
from ledger.proof.tiles import (
    TILE_WIDTH,
    bundle_path,
    decode_bundle,
    encode_bundle,
    roots_of_tiles,
    tile_path,
)
from ledger.proof.verifier import Bundle, LogFolder, Problem, Report, examine_bundle, verify_log
from tests.ledger.proof.logs import flipped, tile_files
from tests.ledger.proof.sealers import KEY, seal
from tests.ledger.support import opened

EVENTS = 100_000
TAMPERINGS, PARTS = 1_000, 4
COPIES = 100


class Published:
    """A good log in memory, and what was found when its bundles were looked at."""

    def __init__(self, folder: Path) -> None:
        self.files = {
            str(file.relative_to(folder)): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }
        self.checkpoints = LogFolder(folder).names("checkpoints")
        self.entries = [
            entry
            for start in range(0, EVENTS, TILE_WIDTH)
            for entry in decode_bundle(self.files[_bundle_path(start)])
        ]
        self._examined: dict[int, tuple[bytes, Bundle]] = {}

    def examine_briefly(self, data: bytes, start: int) -> Bundle:
        """Look at a bundle, and forget the ids in a good one: they are not what is looked for."""
        found = self.examine(data, start)
        return found._replace(ids=b"") if data is self.files.get(_bundle_path(start)) else found

    def examine(self, data: bytes, start: int) -> Bundle:
        """Look at a bundle, once if it is the good one."""
        kept = self._examined.get(start)
        if kept is not None and kept[0] is data:
            return kept[1]
        found = examine_bundle(data, start)
        if data is self.files.get(_bundle_path(start)):
            self._examined[start] = data, found
        return found

    def verify(self, changed: Changed) -> Report:
        """Check the log with changes laid over it."""
        examine = self.examine_briefly if changed.files else self.examine
        return verify_log(changed, KEY.verifier, examine=examine)


class Changed:
    """A log in which some files are others, or missing (None)."""

    def __init__(self, log: Published, files: dict[str, bytes | None]) -> None:
        self._log = log
        self.files = files

    def read(self, path: str) -> bytes:
        """Return a file's content."""
        data = self.files[path] if path in self.files else self._log.files.get(path)
        if data is None:
            raise FileNotFoundError(path)
        return data

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in the one folder that is listed."""
        assert folder == "checkpoints"
        return self._log.checkpoints


def _bundle_path(start: int) -> str:
    return bundle_path(start // TILE_WIDTH, min(TILE_WIDTH, EVENTS - start))


@pytest.fixture(autouse=True)
def remembered_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the root of the same 256 hashes be computed once only."""

    @lru_cache(maxsize=2 * EVENTS // TILE_WIDTH)
    def remembered(hashes: tuple[bytes, ...]) -> list[bytes]:
        return roots_of_tiles(list(hashes))

    monkeypatch.setattr(tiles, "roots_of_tiles", lambda hashes: remembered(tuple(hashes)))


@pytest.fixture(scope="module")
def log(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A published log of a realistic history, with some older checkpoints."""
    folder = tmp_path_factory.mktemp("published")
    file = shutil.copy(migrated_sqlite, folder / "ledger.db")
    load(f"sqlite:///{file}", Plan(EVENTS))
    asyncio.run(_publish(f"sqlite:///{file}", folder / "log"))
    return Published(folder / "log")


async def _publish(url: str, folder: Path) -> None:
    async with opened(url) as journal:
        await seal(journal, 10_000)
        await publish(journal, Folder(folder))


Tampering = tuple[dict[str, bytes | None], int, int]
"""Files to change, and between which offsets (the second exclusive) the first bad event is."""


def a_byte(log: Published, random: Random) -> Tampering:
    """Change one byte of an entry bundle, be it of an entry or of its length."""
    start = random.randrange(EVENTS) // TILE_WIDTH * TILE_WIDTH
    path = _bundle_path(start)
    data = log.files[path]
    at = random.randrange(len(data))
    changed = data[:at] + bytes([data[at] ^ random.randrange(1, 256)]) + data[at + 1 :]
    offset, end = start, 2 + len(log.entries[start])
    while end <= at:
        offset += 1
        end += 2 + len(log.entries[offset])
    return {path: changed}, offset, offset + 1


def a_field(log: Published, random: Random) -> Tampering:
    """Change one value of an envelope or a body for another that looks right."""
    offset = random.randrange(EVENTS)
    entry = log.entries[offset]
    fields = (b'"stream":"', b'"version":', b'"event_id":"', b'"recorded_at":"', b'"occurred_at":"')
    field = random.choice((*fields, b'"body":{"type":"', b'"type":"', b'"journal":"'))
    at = entry.index(field) + len(field)
    other = b"8" if entry[at : at + 1] != b"8" else b"7"
    return _replaced(log, offset, entry[:at] + other + entry[at + 1 :])


def a_body(log: Published, random: Random) -> Tampering:
    """Put the body of another event into an entry."""
    offset = random.randrange(EVENTS)
    entry, other = log.entries[offset], log.entries[random.randrange(EVENTS)]
    head, body = entry.split(b',"body":', 1)[0], other.split(b',"body":', 1)[1]
    changed = head + b',"body":' + body
    return _replaced(log, offset, changed if changed != entry else entry[:-2] + b',"a":1}}')


def _replaced(log: Published, offset: int, entry: bytes) -> Tampering:
    return _bundles(log, [offset], {offset: entry}), offset, offset + 1


def _bundles(
    log: Published, offsets: Sequence[int], changed: dict[int, bytes]
) -> dict[str, bytes | None]:
    """Return the bundles that the offsets are in, with some entries changed."""
    files: dict[str, bytes | None] = {}
    for start in {offset // TILE_WIDTH * TILE_WIDTH for offset in offsets}:
        stop = min(EVENTS, start + TILE_WIDTH)
        files[_bundle_path(start)] = encode_bundle(
            changed.get(at, log.entries[at]) for at in range(start, stop)
        )
    return files


def an_order(log: Published, random: Random) -> Tampering:
    """Exchange two events."""
    first, second = sorted(random.sample(range(EVENTS), 2))
    changed = {first: log.entries[second], second: log.entries[first]}
    return _bundles(log, [first, second], changed), first, first + 1


def a_deletion(log: Published, random: Random) -> Tampering:
    """Take an event out; those behind it move up, as far as anybody would get to see."""
    offset = random.randrange(EVENTS - 1)
    entries = log.entries[offset + 1 : offset + 1 + 2 * TILE_WIDTH]
    return _bundles(log, [offset], dict(enumerate(entries, offset))), offset, offset + 1


def an_insertion(log: Published, random: Random) -> Tampering:
    """Put a copy of an event in, with the right offset; those behind it move down."""
    offset = random.randrange(EVENTS)
    copied = log.entries[random.randrange(EVENTS)]
    head, _, rest = copied.partition(b',"stream"')
    forged = head.rpartition(b":")[0] + b":%d" % offset + b',"stream"' + rest
    forged = forged if forged != log.entries[offset] else forged[:-2] + b',"a":1}}'
    moved = [forged, *log.entries[offset : offset + TILE_WIDTH]]
    return _bundles(log, [offset], dict(enumerate(moved, offset))), offset, offset + 1


def a_truncation(log: Published, random: Random) -> Tampering:
    """Cut everything off from somewhere within an entry, or from before it."""
    offset = random.randrange(EVENTS)
    start = offset // TILE_WIDTH * TILE_WIDTH
    cut = encode_bundle(log.entries[start:offset])
    cut += encode_bundle([log.entries[offset]])[: random.choice((0, 1, 2, 50))]
    files: dict[str, bytes | None] = {_bundle_path(start): cut}
    files |= {_bundle_path(at): None for at in range(start + TILE_WIDTH, EVENTS, TILE_WIDTH)}
    return files, offset, offset + 1


def swapped_tiles(log: Published, random: Random) -> Tampering:
    """Exchange two tiles of hashes."""
    first, second = sorted(random.sample(range(EVENTS // TILE_WIDTH), 2))
    paths = tile_path(0, first), tile_path(0, second)
    files = dict(zip(paths, map(log.files.get, reversed(paths)), strict=True))
    return files, first * TILE_WIDTH, first * TILE_WIDTH + 1


def a_tile(log: Published, random: Random) -> Tampering:
    """Change one byte of a hash tile, on any level."""
    path = random.choice([each for each in log.files if each[:7] in ("tile/0/", "tile/1/")])
    data = log.files[path]
    at = random.randrange(len(data))
    level = int(path[5])
    index = int(path.split("/")[2][:3])
    start = index * TILE_WIDTH + at // 32 << 8 * level
    changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    return {path: changed}, start, start + (1 << 8 * level)


def a_backup(log: Published, random: Random) -> Tampering:
    """Put back entries and tiles as they were at a smaller size, under the newest checkpoint."""
    size = random.randrange(1, EVENTS)
    start = size // TILE_WIDTH * TILE_WIDTH
    files: dict[str, bytes | None] = {
        _bundle_path(at): None for at in range(start, EVENTS, TILE_WIDTH)
    }
    files |= {
        tile_path(0, at // TILE_WIDTH, min(TILE_WIDTH, EVENTS - at)): None
        for at in range(start, EVENTS, TILE_WIDTH)
    }
    # The partial files of that size do not have the names that the newest checkpoint asks for.
    return files, start, size + 1


KINDS: Sequence[Callable[[Published, Random], Tampering]] = (
    a_byte,
    a_byte,
    a_field,
    a_body,
    an_order,
    a_deletion,
    an_insertion,
    a_truncation,
    swapped_tiles,
    a_tile,
    a_backup,
)


def _problems(part: int) -> Iterator[tuple[int, Random]]:
    for number in range(part, TAMPERINGS, PARTS):
        yield number, Random(number)


@pytest.mark.parametrize("part", range(PARTS))
def test_each_tampering_is_found_where_it_is(log: Published, part: int) -> None:
    """The first problem names the first bad offset, exactly where it can be told."""
    for number, random in _problems(part):
        kind = KINDS[number % len(KINDS)]
        files, first, stop = kind(log, random)
        problem = log.verify(Changed(log, files)).first_problem
        assert isinstance(problem, Problem), (number, kind)
        assert problem.offset is not None, (number, kind, problem)
        assert first <= problem.offset < stop, (number, kind, problem)
        if stop - first > 1 and kind is a_tile:
            assert (problem.offset, problem.until) == (first, stop)


def test_no_false_alarm(log: Published, tmp_path: Path) -> None:
    """A hundred untouched copies are verified, one of them from files on disk."""
    for _ in range(COPIES):
        report = log.verify(Changed(log, {}))
        assert report.verified
        assert (report.entries, report.size) == (EVENTS, EVENTS)
    for path, data in log.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    assert verify_log(tmp_path, KEY.verifier).verified


def test_everything_made_anew_but_the_signature(log: Published) -> None:
    """Who changes an event and makes all tiles anew is found by the root that was signed."""
    random = Random(9)
    for _ in range(3):
        offset = random.randrange(EVENTS)
        entry = flipped(log.entries[offset], random)[:-1] + b"}"
        leaves = [leaf_hash(each) for each in log.entries]
        leaves[offset] = leaf_hash(entry)
        files: dict[str, bytes | None] = {**tile_files(leaves)}
        files |= _bundles(log, [offset], {offset: entry})
        report = log.verify(Changed(log, files))
        assert not report.verified
        problem = report.first_problem
        assert problem is not None
        assert problem.offset is not None
        assert problem.offset <= offset < (problem.until or problem.offset + 1)
