"""The auditor's bundle: events, proofs, reports and tables in one archive, all of it signed."""

from __future__ import annotations

import hashlib
import zipfile
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

import ledger
from ledger import console
from ledger.journal import Journal
from ledger.options import JournalOption, JsonOption
from ledger.proof import bundle as checking
from ledger.proof.bundle import LOG, MANIFEST, Manifest
from ledger.proof.checking import CHECKPOINT, CHECKPOINTS
from ledger.proof.keys import KeyUnusable, read_key
from ledger.proof.log import LogDamaged, NotSealed, body_of, log_of, root_of_tiles
from ledger.proof.merkle import EMPTY_ROOT
from ledger.proof.notes import CheckpointBody, Note, SigningKey
from ledger.proof.publish import log_files
from projections.cli import opened
from projections.database import Database
from projections.exporting import replacing, write_csv
from projections.folding import Folding, undisturbed
from projections.points import InvalidRequest, Point
from projections.replaying_commands.shared import LogKeyOption, named_tables
from projections.reports.ocsf import security_events
from projections.reports.order_trail import KINDS, order_trail
from projections.reports.span import Span, find_span
from projections.reports.writing import Format, write_report

MODULES = ("__init__", "bundle", "checking", "envelopes", "merkle", "notes", "tiles", "verifier")
"""The modules of ledger.proof that a stranger checks a bundle with."""

SEAL_FIRST = (
    "a bundle is signed with the log's key: make one with `ledger keys new FILE`, set "
    "LEDGER_LOG_KEY_FILE to it, and run `ledger seal`"
)
_WHEN = (1980, 1, 1, 0, 0, 0)

CHECK = '''"""Check this bundle: python check.py --key VKEY (needs the package cryptography)."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE / "verifier"))

from ledger.proof.bundle import main

sys.exit(main(HERE))
'''

README = """# Bundle of journal {journal}

Events from size {start} to size {stop} of the log `{origin}`: those at offsets {start} up to, and
without, {stop}.

| what | where |
|---|---|
| all events up to size {stop}, with their tree and signed checkpoints (C2SP tlog-tiles) | `log/` |
| security events of the range (OCSF), audit trail of its orders | `reports/` |
| the read tables as they stood at size {stop} | `tables/` |
| the SHA-256 of each file outside of the log's tree, signed with the log's key | `manifest` |
| the program that checks it all, as Python source | `check.py`, `verifier/` |

Personal data stand encrypted in `log/`. `reports/` and `tables/` show those of people who were not
erased when the bundle was made.

## How to check it

Unpack the archive into an empty folder (`python -m zipfile -e ARCHIVE .`) and there, with
Python 3.11 or later:

```sh
python -m pip install cryptography
python check.py --key '{vkey}'
```

It prints `verified` (exit code 0), or `NOT VERIFIED` (1) and which files are wrong. It recomputes
the hash of every event and the root of the log at size {start} and size {stop}, and checks the
signatures of both, and of the manifest with the digest of every other file.

The key above stands in the archive itself. Compare it with the one that you have from elsewhere,
from whoever keeps the log or from a witness. And who does not trust the program in the archive
reads it, or takes the same files from the project's repository.
"""


def bundle(
    file: Annotated[Path, typer.Argument(metavar="OUT", help="The new archive, a .zip.")],
    first: Annotated[
        str, typer.Option("--from", help="A size, or a time of recording.", show_default="0")
    ] = "0",
    last: Annotated[
        str | None, typer.Option("--to", help="Likewise.", show_default="all that is sealed")
    ] = None,
    log_key: LogKeyOption = None,
    as_json: JsonOption = False,
    journal: JournalOption = None,
) -> None:
    """Put events, proofs, reports and tables into one signed archive that a stranger can check.

    It is signed with the key of LEDGER_LOG_KEY_FILE; with --log-key that must be its public part.
    """
    if file.suffix != ".zip":
        raise InvalidRequest(f"OUT: {file} must end in .zip")
    settings = console.load_settings()
    if settings.log_key_file is None:
        raise KeyUnusable(SEAL_FIRST)
    key = read_key(settings.log_key_file)
    if log_key is not None and log_key != key.vkey:
        raise KeyUnusable(f"--log-key: the key of LEDGER_LOG_KEY_FILE is {key.vkey}")
    manifest = console.run(_bundle(file, (first, last), key, journal))
    words = (
        f"bundle of {manifest.origin} from size {manifest.start} to {manifest.stop}: "
        f"{len(manifest.files)} files and the log, key {key.vkey}"
    )
    console.tell(manifest, words, as_json=as_json)


async def _bundle(
    file: Path, points: tuple[str, str | None], key: SigningKey, name: str | None
) -> Manifest:
    async with opened(name) as (journal, database):
        seal = await log_of(journal).seal()
        if seal is None:
            raise NotSealed(f"journal {journal.name!r} is not sealed: {SEAL_FIRST}")
        if seal.origin != key.name:
            raise KeyUnusable(
                f"the log is {seal.origin}, LEDGER_LOG_KEY_FILE the key of {key.name}"
            )
        span = await find_span(journal, points[0], points[1] or str(seal.size))
        if span.stop > seal.size:
            raise NotSealed(f"--to: sealed up to size {seal.size} only; run `ledger seal`")
        with replacing(file) as part, zipfile.ZipFile(part, "w") as archive:
            return await _Bundling(journal, database, span, key, archive).run()


class _Bundling:
    """A bundle being written; each file has the same time, and they come in the same order."""

    def __init__(
        self,
        journal: Journal,
        database: Database,
        span: Span,
        key: SigningKey,
        archive: zipfile.ZipFile,
    ) -> None:
        self._journal = journal
        self._database = database
        self._span = span
        self._key = key
        self._archive = archive
        self._digests: dict[str, str] = {}

    async def run(self) -> Manifest:
        """Write everything, the manifest last; return it."""
        span = self._span
        roots = await self._root(span.start), await self._root(span.stop)
        self._write_program()
        await self._write_log(roots)
        await self._write_reports()
        await self._write_tables(roots[1])
        manifest = Manifest(
            self._key.name, span.start, roots[0], span.stop, roots[1], self._digests
        )
        note = Note(manifest.text, (self._key.sign(manifest.text),)).render()
        self._put(MANIFEST, note)
        return manifest

    async def _root(self, size: int) -> bytes:
        return await root_of_tiles(log_of(self._journal), size) if size else EMPTY_ROOT

    def _put(self, path: str, data: bytes) -> None:
        info = zipfile.ZipInfo(path, _WHEN)
        info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
        info.create_system = 3
        self._archive.writestr(info, data)

    def _sign_off(self, path: str, data: bytes) -> None:
        """Write a file that stands in the manifest."""
        self._digests[path] = hashlib.sha256(data).hexdigest()
        self._put(path, data)

    def _write_program(self) -> None:
        text = README.format(
            journal=self._span.journal,
            start=self._span.start,
            stop=self._span.stop,
            origin=self._key.name,
            vkey=self._key.vkey,
        )
        self._sign_off("README.md", text.encode())
        self._sign_off("check.py", CHECK.encode())
        root = Path(checking.__file__).parent
        self._sign_off("verifier/ledger/__init__.py", Path(ledger.__file__).read_bytes())
        for name in MODULES:
            data = (root / f"{name}.py").read_bytes()
            self._sign_off(f"verifier/ledger/proof/{name}.py", data)

    async def _write_log(self, roots: tuple[bytes, bytes]) -> None:
        start, stop = self._span.start, self._span.stop
        self._sign_off(f"{LOG}/{CHECKPOINT}", await self._checkpoint(stop, roots[1]))
        if 0 < start < stop:
            older = await self._checkpoint(start, roots[0])
            self._sign_off(f"{LOG}/{CHECKPOINTS}/{start}", older)
        with console.waiting("copying the log"):
            async for files in log_files(self._journal, stop):
                for path, data in files.items():
                    self._put(f"{LOG}/{path}", data)

    async def _checkpoint(self, size: int, root: bytes) -> bytes:
        """Return the checkpoint that is kept of a size, else one signed now: it is no other log."""
        kept = await log_of(self._journal).checkpoint(self._key.name, size)
        if kept is not None:
            if body_of(kept, self._key.verifier).root != root:
                raise LogDamaged(f"the checkpoint of size {size} has another root than the tiles")
            return kept.note.encode()
        text = CheckpointBody(self._key.name, size, root).text
        return Note(text, (self._key.sign(text),)).render()

    async def _write_reports(self) -> None:
        reports = {
            "security.ndjson": (security_events, Format.NDJSON, {}),
            "orders.csv": (order_trail, Format.CSV, KINDS),
        }
        with TemporaryDirectory() as folder:
            for name, (report, output, columns) in reports.items():
                part = Path(folder) / name
                with part.open("wb") as file, console.folding() as advanced:
                    rows = report(self._journal, self._span)
                    await write_report(name, self._span, rows, output, columns, file, advanced)
                self._sign_off(f"reports/{name}", part.read_bytes())

    async def _write_tables(self, root: bytes) -> None:
        point = Point(self._span.stop, root=root)
        folding = Folding(self._journal, self._database, point, from_start=True)
        with undisturbed():
            point, tables = await folding.tables(named_tables(None))
        for name, found in tables.items():
            text = StringIO(newline="")
            write_csv(text, self._journal.name, point, {name: found})
            self._sign_off(f"tables/{name}.csv", text.getvalue().encode())
