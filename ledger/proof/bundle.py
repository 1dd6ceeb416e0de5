"""Check an auditor's bundle: `python check.py --key VKEY` in the folder that it was unpacked to.

Like all that the verifier needs, this imports the standard library and `cryptography` alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from ledger.proof.checking import CHECKPOINT, CHECKPOINTS, verify_log
from ledger.proof.notes import NoteInvalid, VerifierKey, open_note, parse_hash, parse_number
from ledger.proof.tiles import bundle_path, tile_spans

MANIFEST, LOG = "manifest", "log"
HEAD = "trading-ledger bundle v1"
_FILE = re.compile("file ([0-9a-f]{64}) ([A-Za-z0-9_./-]+)")


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself, signed with the log's key.

    The range is that of offsets from `start` up to, and without, `stop`; a root is that of the
    first so many events. `files` has the SHA-256, in hexadecimal, of each file but the log's tiles
    and entries, which the root covers.
    """

    origin: str
    start: int
    start_root: bytes
    stop: int
    stop_root: bytes
    files: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text that is signed; it can never be read as a checkpoint."""
        roots = b64encode(self.start_root).decode(), b64encode(self.stop_root).decode()
        lines = [HEAD, f"origin {self.origin}", f"from {self.start} {roots[0]}"]
        lines += [f"to {self.stop} {roots[1]}"]
        lines += [f"file {digest} {path}" for path, digest in sorted(self.files.items())]
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """Return what a manifest's text says; NoteInvalid where it is none."""
        lines = text.split("\n")[:-1]
        if len(lines) < 4 or lines[0] != HEAD or not lines[1].startswith("origin "):
            raise NoteInvalid(f"it does not begin with {HEAD!r}, an origin, and two points")
        start, start_root = _point(lines[2], "from")
        stop, stop_root = _point(lines[3], "to")
        files = {}
        for line in lines[4:]:
            match = _FILE.fullmatch(line)
            if match is None or ".." in match[2]:
                raise NoteInvalid(f"{line[:100]!r} does not name a file")
            files[match[2]] = match[1]
        return cls(lines[1][7:], start, start_root, stop, stop_root, files)


def _point(line: str, word: str) -> tuple[int, bytes]:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != word:
        raise NoteInvalid(f"{line[:100]!r} is not a size and a root")
    return parse_number(parts[1]), parse_hash(parts[2])


def check_bundle(directory: Path, key: VerifierKey) -> tuple[list[str], Manifest | None]:
    """Return what is wrong with an unpacked bundle, file by file, and what it says of itself.

    Nothing is wrong where the list is empty. Raises OSError where a file cannot be read.
    """
    try:
        data = (directory / MANIFEST).read_bytes()
        manifest = Manifest.parse(open_note(data, [key]).text)
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"], None
    except NoteInvalid as error:
        return [f"{MANIFEST} is not valid: {error}"], None
    found = [*_wrong_files(directory, manifest), *_wrong_log(directory, manifest, key)]
    return found, manifest


def _wrong_files(directory: Path, manifest: Manifest) -> Iterator[str]:
    for path, digest in manifest.files.items():
        file = directory / path
        if not file.is_file():
            yield f"{path} is missing"
        elif _digest(file) != digest:
            yield f"{path} was changed: it does not have the SHA-256 of the manifest"
    known = {MANIFEST, *manifest.files, *log_paths(manifest.stop)}
    for file in sorted(directory.rglob("*")):
        path = file.relative_to(directory).as_posix()
        if not file.is_dir() and path not in known:
            yield f"{path} does not belong to the bundle"


def _digest(file: Path) -> str:
    digest = sha256()
    with file.open("rb") as opened:
        while piece := opened.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def log_paths(size: int) -> Iterator[str]:
    """Name the files of a log of this size in a bundle, without its checkpoints."""
    for span in tile_spans(0, size):
        yield f"{LOG}/{span.path}"
        if span.level == 0:
            yield f"{LOG}/{bundle_path(span.index, span.width)}"


def _wrong_log(directory: Path, manifest: Manifest, key: VerifierKey) -> Iterator[str]:
    report = verify_log(directory / LOG, key)
    for problem in report.problems:
        yield f"{LOG}/{problem.file}: {problem.message}" if problem.file else problem.message
    if report.size is None:
        return
    if (report.origin, report.size, report.root) != (
        manifest.origin,
        manifest.stop,
        manifest.stop_root,
    ):
        yield f"{LOG}/{CHECKPOINT} is not of the size and root of the manifest"
    if 0 < manifest.start < manifest.stop and manifest.start not in report.checkpoints:
        yield f"{LOG}/{CHECKPOINTS}/{manifest.start} is missing: the log does not agree with it"


def main(directory: Path, arguments: Sequence[str] | None = None) -> int:
    """Check the bundle in a folder and say what was found; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Check this bundle against the log's public key.",
        epilog="Exit code: 0 verified, 1 not verified, 2 wrong usage or nothing to read.",
    )
    parser.add_argument("--key", metavar="VKEY", required=True, help="the log's public key")
    options = parser.parse_args(arguments)
    try:
        wrong, manifest = check_bundle(directory, VerifierKey.parse(options.key))
    except (NoteInvalid, OSError) as error:
        parser.error(str(error))
    print("\n  ".join(["NOT VERIFIED", *wrong]) if wrong else "verified")
    if manifest is not None:
        print(f"log     {manifest.origin}\nevents  {manifest.start} to {manifest.stop} (exclusive)")
        print(f"files   {len(manifest.files)} signed, and the log from the first event")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path.cwd()))
