"""`replay.py bundle`: a stranger checks it by its own README, and sees each changed byte."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import subprocess
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import cryptography
import pytest

from ledger.journal import open_journal
from ledger.ndjson import import_lines
from ledger.proof.bundle import check_bundle
from ledger.proof.keys import write_key
from ledger.proof.notes import SigningKey
from ledger.proof.sealer import Sealer
from ledger.settings import Settings
from tests.examples.support import Conversion
from tests.ledger.support import environment
from tests.support import programs

ROOT = Path(__file__).parents[2]
KEY = SigningKey("ledger/main", bytes(range(32)))
START, STOP = 300, 1500


def run_bundle(url: str, key_file: Path | None, *arguments: str) -> tuple[int, str]:
    """Run the command; return its exit code and what it says on standard error."""
    variables = {} if key_file is None else {"LEDGER_LOG_KEY_FILE": str(key_file)}
    done = programs.run(
        "replay.py", "bundle", *arguments, environment=environment(url, **variables)
    )
    return done.returncode, done.stderr.decode()


async def seal(url: str, lines: bytes) -> None:
    """Import lines and seal the journal."""
    async with open_journal(Settings(database_url=url)) as journal:
        async for _ in import_lines(journal, io.BytesIO(lines), "lines"):
            pass
        await Sealer(journal, KEY).catch_up()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The log's key in a file."""
    write_key(tmp_path / "key", KEY)
    return tmp_path / "key"


def only_cryptography(folder: Path) -> Path:
    """Make an environment with nothing but `cryptography`; return the folder of its programs."""
    venv.create(folder, with_pip=False)
    [site] = folder.glob("lib/python*/site-packages")
    installed = Path(cryptography.__file__).parents[1]
    for name in ("cryptography", "cffi", "pycparser", *(e.name for e in installed.glob("_cffi_*"))):
        if (installed / name).exists():
            (site / name).symlink_to(installed / name)
    return folder / "bin"


def follow_readme(folder: Path, programs: Path) -> tuple[int, str]:
    """Run the commands of the README, but for the installation, in the bundle's folder."""
    [commands] = re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    install, check = str(commands).splitlines()
    assert install == "python -m pip install cryptography"
    done = subprocess.run(
        ["sh", "-c", check],
        cwd=folder,
        env={"PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_stranger_checks_the_hyperliquid_bundle(
    sqlite_url: str,
    real_conversion: Callable[[str], Conversion],
    key_file: Path,
    tmp_path: Path,
) -> None:
    """By its README in an empty folder; each changed file is named; its bytes are reproducible."""
    asyncio.run(seal(sqlite_url, real_conversion("hyperliquid").output))
    points = ("--from", str(START), "--to", str(STOP), "--log-key", KEY.vkey)
    for name in ("one.zip", "two.zip"):
        assert run_bundle(sqlite_url, key_file, *points, str(tmp_path / name)) == (0, "")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    folder = tmp_path / "empty"
    zipfile.ZipFile(tmp_path / "one.zip").extractall(folder)
    programs = only_cryptography(tmp_path / "environment")
    code, said = follow_readme(folder, programs)
    assert (code, said.splitlines()[0]) == (0, "verified"), said
    assert f"events  {START} to {STOP} (exclusive)" in said
    assert (folder / "reports" / "orders.csv").read_text().count("\n") > 1
    assert follow_readme(folder, programs) == (code, said)
    files = [each for each in folder.rglob("*") if each.is_file()]
    assert len(files) > 20
    for file in files:
        assert_named_when_changed(folder, file)
    bad = next(folder.glob("log/tile/entries/*"))
    changed = bad.read_bytes()
    bad.write_bytes(changed[:500] + b"#" + changed[501:])
    assert follow_readme(folder, programs)[0] == 1


def assert_named_when_changed(folder: Path, file: Path) -> None:
    """Change a byte, and then take the file away: each time what is wrong names it."""
    good, path = file.read_bytes(), file.relative_to(folder).as_posix()
    at = len(good) // 2
    file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    assert_named(check_bundle(folder, KEY.verifier)[0], path)
    file.unlink()
    assert_named(check_bundle(folder, KEY.verifier)[0], path)
    file.write_bytes(good)


def assert_named(wrong: list[str], path: str) -> None:
    """Of entries that were changed the tile is named that has their hash, and their offset."""
    tile = path.replace("log/tile/entries/", "tile/0/")
    assert any(path in each or tile in each for each in wrong), (path, wrong)


def test_what_is_not_sealed_is_refused(sqlite_url: str, key_file: Path, tmp_path: Path) -> None:
    """It says what to do: without a key, without a seal, and with another key than asked for."""
    out = str(tmp_path / "out.zip")
    code, said = run_bundle(sqlite_url, None, out)
    assert code == 2
    assert "ledger keys new" in said
    code, said = run_bundle(sqlite_url, key_file, out)
    assert code == 2
    assert "is not sealed" in said
    assert "ledger seal" in said
    other = SigningKey("ledger/main", bytes(32)).vkey
    code, said = run_bundle(sqlite_url, key_file, "--log-key", other, out)
    assert code == 2
    assert KEY.vkey in said
    assert not Path(out).exists()


def test_what_does_not_belong_is_named(sqlite_url: str, key_file: Path, tmp_path: Path) -> None:
    """A bundle of an empty sealed journal is good; an added file, or another key, is not."""
    asyncio.run(seal(sqlite_url, b""))
    assert run_bundle(sqlite_url, key_file, str(tmp_path / "b.zip"))[0] == 0
    folder = tmp_path / "b"
    zipfile.ZipFile(tmp_path / "b.zip").extractall(folder)
    assert check_bundle(folder, KEY.verifier)[0] == []
    shutil.copy(folder / "README.md", folder / "reports" / "more.md")
    [wrong] = check_bundle(folder, KEY.verifier)[0]
    assert "reports/more.md" in wrong
    [wrong] = check_bundle(folder, SigningKey("ledger/main", bytes(32)).verifier)[0]
    assert wrong.startswith("manifest is not valid")
