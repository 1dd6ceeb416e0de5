"""Check a published log as a whole: entries, tiles, root, signatures and older checkpoints.

Like all that the verifier needs, this imports the standard library and `cryptography` alone. A log
is read bundle by bundle; what is remembered meanwhile is 24 bytes for each event (its id and
offset) and about 150 for each stream (its name and last version).
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ledger.proof.envelopes import Bundle, History, Problem, examine_bundle, place
from ledger.proof.merkle import HASH_BYTES
from ledger.proof.notes import (
    CheckpointBody,
    Note,
    NoteInvalid,
    VerifierKey,
    open_checkpoint,
    open_note,
)
from ledger.proof.tiles import (
    TILE_BITS,
    TILE_WIDTH,
    TileTree,
    bundle_path,
    roots_of_tiles,
    split_bundle,
    split_hashes,
    tile_path,
)

CHECKPOINT = "checkpoint"
CHECKPOINTS = "checkpoints"
FILE_BYTES_MAX = TILE_WIDTH * (2 + 65_535)

Progress = Callable[[int, int], None]
"""`progress(done, total)` is told how many entries have been checked."""


class LogReader(Protocol):
    """Where a log is read from."""

    def read(self, path: str) -> bytes:
        """Return a file's content; FileNotFoundError where there is none."""

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, none where there is no such folder."""


class LogFolder:
    """A log in a directory; files larger than any of a log's are read only in part."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    def read(self, path: str) -> bytes:
        """Return a file's content; FileNotFoundError where there is none."""
        try:
            with (self._directory / path).open("rb") as file:
                return file.read(FILE_BYTES_MAX + 1)
        except (NotADirectoryError, IsADirectoryError) as error:
            raise FileNotFoundError(path) from error

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, none where there is no such folder."""
        where = self._directory / folder
        return [each.name for each in where.iterdir()] if where.is_dir() else []


class _Found(Exception):
    """Ends a scan; all that comes after a first problem follows from it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass
class Report:
    """What was checked and what was found; `verified` where that is nothing bad."""

    origin: str
    size: int | None = None
    root: bytes | None = None
    journal: str | None = None
    entries: int = 0
    """Entries found good, from offset 0 on."""
    tiles: int = 0
    checkpoints: list[int] = field(default_factory=list)
    """Sizes of the older checkpoints that the log agrees with."""
    witnesses: dict[str, int] = field(default_factory=dict)
    """When each witness asked for cosigned, in seconds since 1970."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def verified(self) -> bool:
        """Whether everything is as it must be."""
        return not self.problems

    @property
    def first_problem(self) -> Problem | None:
        """The problem with the smallest offset, or the first one where none has an offset."""
        return min(self.problems, key=place, default=None)

    @property
    def first_bad_offset(self) -> int | None:
        """The smallest offset at which something is wrong, None where it has no offset."""
        return None if self.first_problem is None else self.first_problem.offset

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values; hashes in base64."""
        return {
            "verified": self.verified,
            "origin": self.origin,
            "journal": self.journal,
            "size": self.size,
            "root": None if self.root is None else b64encode(self.root).decode(),
            "entries": self.entries,
            "tiles": self.tiles,
            "checkpoints": self.checkpoints,
            "witnesses": self.witnesses,
            "first_bad_offset": self.first_bad_offset,
            "problems": [each.as_dict() for each in sorted(self.problems, key=place)],
        }


class _Stored:
    """The files of a log of one size, read and checked for their length."""

    def __init__(self, reader: LogReader, size: int) -> None:
        self._reader = reader
        self._size = size
        self._kept: dict[int, tuple[int, bytes]] = {}
        self.tiles = 0

    def width(self, level: int, index: int) -> int:
        return min(TILE_WIDTH, (self._size >> TILE_BITS * level) - index * TILE_WIDTH)

    def bundle(self, index: int) -> tuple[str, bytes]:
        """Return the path of a bundle and its content."""
        paths = (bundle_path(index, self.width(0, index)), bundle_path(index))
        return self._read(paths, index * TILE_WIDTH)

    def tile(self, level: int, index: int) -> tuple[str, bytes]:
        """Return the path of a tile and its hashes, as many as there must be."""
        width = self.width(level, index)
        path = tile_path(level, index, width)
        kept = self._kept.get(level)
        if kept is not None and kept[0] == index:
            return path, kept[1]
        start = index * TILE_WIDTH << TILE_BITS * level
        read_from, data = self._read((path, tile_path(level, index)), start)
        if read_from != path:
            data = data[: width * HASH_BYTES]  # the log has grown, the full tile begins the same
        if len(data) != width * HASH_BYTES:
            what = "short" if len(data) < width * HASH_BYTES else "long"
            message = f"{path} is too {what}: {len(data)} bytes, not {width * HASH_BYTES}"
            held = min(len(data) // HASH_BYTES, width - 1)
            raise _Found(Problem(message, path, start + (held << TILE_BITS * level)))
        self._kept[level] = (index, data)
        self.tiles += 1
        return path, data

    def _read(self, paths: Sequence[str], offset: int) -> tuple[str, bytes]:
        for path in paths:
            try:
                return path, self._reader.read(path)
            except FileNotFoundError:
                continue
        raise _Found(Problem(f"{paths[0]} is missing", paths[0], offset))


class _Proved:
    """Which tiles the signed root proves, found from the root down."""

    def __init__(self, reader: LogReader, body: CheckpointBody) -> None:
        self._stored = _Stored(reader, body.size)
        self._body = body

    def tile(self, level: int, index: int) -> bool:
        try:
            return self._tile(level, index)
        except _Found:
            return False

    def _tile(self, level: int, index: int) -> bool:
        if self._stored.width(level, index) < TILE_WIDTH:
            return self._edge()
        _, hashes = self._stored.tile(level, index)
        return self.hash(level + 1, index, roots_of_tiles(split_hashes(hashes))[0])

    def hash(self, level: int, index: int, found: bytes) -> bool:
        """Whether this hash stands in a proved tile."""
        tile, at = divmod(index, TILE_WIDTH)
        try:
            _, hashes = self._stored.tile(level, tile)
            return hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES] == found and self._tile(
                level, tile
            )
        except _Found:
            return False

    def _edge(self) -> bool:
        def read(level: int, index: int, width: int) -> bytes:
            return self._stored.tile(level, index)[1]

        return TileTree.load(self._body.size, read).root() == self._body.root


class _Scan:
    """One pass over the entries of a log, compared with all that is stored and signed of it."""

    def __init__(
        self,
        reader: LogReader,
        body: CheckpointBody,
        older: dict[int, bytes],
        examine: Callable[[bytes, int], Bundle],
    ) -> None:
        self._reader = reader
        self._body = body
        self._older = sorted(older.items())
        self._examine = examine
        self._stored = _Stored(reader, body.size)
        self._tree = TileTree()
        self._agreed = 0
        """The largest size at which the log agrees with a signed root."""
        self.history = History()
        self.checkpoints: list[int] = []

    @property
    def tiles(self) -> int:
        return self._stored.tiles

    @property
    def entries(self) -> int:
        return self._tree.size

    def run(self, progress: Progress | None) -> None:
        """Raise _Found at the first problem."""
        for start in range(0, self._body.size, TILE_WIDTH):
            self._check_bundle(start)
            if progress is not None:
                progress(self._tree.size, self._body.size)
        self._check_root(self._body.size, self._body.root)

    def _check_bundle(self, start: int) -> None:
        index = start // TILE_WIDTH
        width = self._stored.width(0, index)
        path, data = self._stored.bundle(index)
        bundle = self._examine(data, start)
        # The full bundle of a log that has grown since begins with what the partial one held.
        grown = path != bundle_path(index, width)
        if grown:
            bundle = self._examine(_first_entries(data, width), start)
        problems = (
            self._compare(0, start, bundle.hashes[:width], bundle),
            _count_problem(path, start, width, bundle),
            bundle.problem,
            self.history.add(bundle, start),
        )
        found = [each for each in problems if each is not None]
        if found:
            raise _Found(min(found, key=place))
        self._grow(start, bundle)

    def _grow(self, start: int, bundle: Bundle) -> None:
        """Compare the levels above, and the roots of older checkpoints within this bundle."""
        done = 0
        while self._older and self._older[0][0] <= start + len(bundle.hashes):
            size, root = self._older.pop(0)
            self._append(bundle.hashes[done : size - start])
            done = size - start
            self._check_root(size, root)
            self.checkpoints.append(size)
        self._append(bundle.hashes[done:])

    def _append(self, hashes: list[bytes]) -> None:
        for level, first, run in self._tree.grow(hashes):
            problem = self._compare(level, first, run, None) if level else None
            if problem is not None:
                raise _Found(problem)

    def _compare(
        self, level: int, first: int, hashes: list[bytes], bundle: Bundle | None
    ) -> Problem | None:
        """Compare hashes that begin a tile with the tile that is stored."""
        index = first // TILE_WIDTH
        path, stored = self._stored.tile(level, index)
        if stored.startswith(b"".join(hashes)):
            return None
        pairs = zip(hashes, split_hashes(stored), strict=False)
        at = next(at for at, (found, wanted) in enumerate(pairs) if found != wanted)
        start = first + at << TILE_BITS * level
        if bundle is None:
            return self._blame_range(level, path, index, start)
        return self._blame_entry(path, start, bundle)

    def _blame_entry(self, path: str, offset: int, bundle: Bundle) -> Problem:
        """Say what is wrong where an entry and its stored hash differ."""
        index = offset // TILE_WIDTH
        proved = _Proved(self._reader, self._body)
        message = f"entry {offset} differs from its hash in {path}"
        if proved.tile(0, index):
            message += ", which the signed root proves: the entry is not the one that was signed"
        elif self._is_proved(proved, index, bundle):
            message = (
                f"{path} was changed at entry {offset}; the entries are those that were signed"
            )
        else:
            message += ", and the signed root proves neither"
        return Problem(message, path, offset)

    def _is_proved(self, proved: _Proved, index: int, bundle: Bundle) -> bool:
        full = len(bundle.hashes) == TILE_WIDTH
        return full and proved.hash(1, index, roots_of_tiles(bundle.hashes)[0])

    def _blame_range(self, level: int, path: str, index: int, start: int) -> Problem:
        until = start + (1 << TILE_BITS * level)
        message = f"entries {start} to {until - 1} do not lead to their hash in {path}"
        if _Proved(self._reader, self._body).tile(level, index):
            message += ", which the signed root proves: one of them is not the one that was signed"
        else:
            message += ", which the signed root does not prove either"
        return Problem(message, path, start, until)

    def _check_root(self, size: int, root: bytes) -> None:
        if self._tree.root() == root:
            self._agreed = size
            return
        file = CHECKPOINT if size == self._body.size else f"{CHECKPOINTS}/{size}"
        message = (
            f"the root of the first {size} entries is not the one in {file}: one of entries "
            f"{self._agreed} to {size - 1} was changed, and the tiles with it"
        )
        raise _Found(Problem(message, file, self._agreed, size))


def _count_problem(path: str, start: int, width: int, bundle: Bundle) -> Problem | None:
    found = len(bundle.hashes)
    if found <= width and not bundle.whole:
        at = start + max(found - 1, 0)
        return Problem(f"{path} is too short: it ends within entry {at}", path, at)
    if found == width:
        return None
    what = "long" if found > width else "short"
    at = start + min(found, width)
    return Problem(f"{path} is too {what}: {found} entries, not {width}", path, at)


def _first_entries(data: bytes, count: int) -> bytes:
    entries, _ = split_bundle(data)
    return data[: sum(2 + len(entry) for entry in entries[:count])]


def verify_log(
    source: str | Path | LogReader,
    key: VerifierKey | str,
    witnesses: Sequence[VerifierKey | str] = (),
    *,
    progress: Progress | None = None,
    examine: Callable[[bytes, int], Bundle] = examine_bundle,
) -> Report:
    """Check all of a log: entries, tiles, root, signatures, and the older checkpoints kept.

    `source` is a directory or what reads the log, `examine` does what `examine_bundle` does (a
    caller may keep results). Raises NoteInvalid for a key that is none, and OSError where a file
    cannot be read; all else that is wrong is in the report.
    """
    reader = LogFolder(source) if isinstance(source, str | Path) else source
    known = VerifierKey.parse(key) if isinstance(key, str) else key
    asked = [VerifierKey.parse(each) if isinstance(each, str) else each for each in witnesses]
    report = Report(known.name)
    # Before the newest is read: what a publisher adds meanwhile is newer than that.
    kept = sorted(filter(_is_size, reader.names(CHECKPOINTS)))
    body = _read_checkpoint(reader, known, asked, report)
    if body is None:
        return report
    older = _read_older(reader, kept, known, body, report)
    scan = _Scan(reader, body, older, examine)
    try:
        scan.run(progress)
    except _Found as found:
        report.problems.append(found.problem)
    if repeated := scan.history.first_repeated():
        report.problems.append(repeated)
    return _completed(report, scan)


def _completed(report: Report, scan: _Scan) -> Report:
    journal = scan.history.journal
    report.journal = None if journal is None else json.loads(journal)
    bad = report.first_bad_offset
    report.entries = scan.entries if bad is None else min(scan.entries, bad)
    report.tiles, report.checkpoints = scan.tiles, scan.checkpoints
    return report


def _read_checkpoint(
    reader: LogReader, key: VerifierKey, witnesses: list[VerifierKey], report: Report
) -> CheckpointBody | None:
    """Return the newest checkpoint; None where nothing can be checked without it."""
    try:
        data = reader.read(CHECKPOINT)
        body, _ = open_checkpoint(data, key)
    except FileNotFoundError:
        report.problems.append(Problem(f"{CHECKPOINT} is missing", CHECKPOINT))
        return None
    except NoteInvalid as error:
        report.problems.append(Problem(f"{CHECKPOINT} is not valid: {error}", CHECKPOINT))
        return None
    report.size, report.root = body.size, body.root
    for witness in witnesses:
        try:
            report.witnesses[witness.name] = _cosigned_at(open_note(data, [witness]), witness)
        except NoteInvalid as error:
            message = f"{CHECKPOINT} is not cosigned by {witness.name}: {error}"
            report.problems.append(Problem(message, CHECKPOINT))
    return body


def _cosigned_at(note: Note, witness: VerifierKey) -> int:
    return max(each.cosigned_at for each in note.signatures if witness.signed(each))


def _is_size(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _read_older(
    reader: LogReader, names: list[str], key: VerifierKey, newest: CheckpointBody, report: Report
) -> dict[int, bytes]:
    """Return the roots of the older checkpoints by size."""
    roots: dict[int, bytes] = {}
    for name in names:
        path = f"{CHECKPOINTS}/{name}"
        try:
            body, _ = open_checkpoint(reader.read(path), key)
            _check_older(body, name, newest)
        except FileNotFoundError:
            continue  # no longer kept
        except NoteInvalid as error:
            report.problems.append(Problem(f"{path} is not valid: {error}", path))
        else:
            roots[body.size] = body.root
    return roots


def _check_older(body: CheckpointBody, name: str, newest: CheckpointBody) -> None:
    if str(body.size) != name:
        raise NoteInvalid(f"it is of size {body.size}")
    if body.size == newest.size and body.root != newest.root:
        raise NoteInvalid(f"its root differs from that of {CHECKPOINT}, and both are signed")
    if body.size > newest.size:
        raise NoteInvalid(
            f"it is newer than {CHECKPOINT}, which ends at size {newest.size}: an older one was "
            "put back, or publishing was interrupted"
        )
