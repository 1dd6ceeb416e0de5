"""What docs/proofs.md says about checking by hand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.proof.merkle import inclusion_proof, leaf_hash, root_of
from ledger.proof.notes import TlogProof
from tests.ledger.proof.logs import KEY, Log, checkpoint, entries

DOCUMENT = Path(__file__).parents[3] / "docs" / "proofs.md"
TOOLS = ("sh", "openssl", "sha256sum", "od")


def code(language: str) -> str:
    """Return the one piece of code in that language."""
    [found] = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    return str(found)


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
)
@pytest.mark.parametrize("size", [3, 300])
def test_a_shell_can_check_an_entry_and_the_signature(size: int, tmp_path: Path) -> None:
    """The commands print the same hash twice, and that the signature is verified."""
    folder = Log.of(entries(size)).write_to(tmp_path)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", f"VKEY='{KEY.vkey}'\n{code('sh')}"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    done = run()
    computed, stored, said = done.stdout.splitlines()
    assert computed == stored == leaf_hash(entries(1)[0]).hex()
    assert said == "Signature Verified Successfully"
    good = (folder / "checkpoint").read_bytes()
    (folder / "checkpoint").write_bytes(good.replace(f"\n{size}\n".encode(), b"\n4\n"))
    assert run().returncode != 0


def test_a_few_lines_of_python_can_check_a_proof(tmp_path: Path) -> None:
    """For each entry of a log, and for none that is another."""
    logged = entries(11)
    leaves = [leaf_hash(each) for each in logged]

    def read_hash(level: int, at: int) -> bytes:
        return root_of(leaves[at << level : (at + 1) << level])

    def run(index: int, entry: bytes) -> str:
        hashes = tuple(inclusion_proof(index, len(leaves), read_hash))
        proof = TlogProof(index, hashes, checkpoint(leaves), b"more" if index else None)
        (tmp_path / "event.tlog-proof").write_bytes(proof.render())
        (tmp_path / "entry").write_bytes(entry)
        return subprocess.run(
            [sys.executable, "-X", "utf8", "-c", code("python")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    for index in (0, 7, 8, 10):
        assert run(index, logged[index]) == "proved\n"
    assert run(3, logged[4]) == "not proved\n"
