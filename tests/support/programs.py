"""Programs of this project, run as processes of their own that live within milliseconds.

They are forked from a server that has imported them. How they start by themselves is for
tests/test_programs.py and for the examples.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import ledger.cli
import projections.cli
import replay
from ledger import console
from tests.support.forks import FORKS

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 60.0
MAINS: dict[str, Callable[[], None]] = {
    "ledger": ledger.cli.main,
    "projections": projections.cli.main,
    "replay.py": lambda: console.main(replay.app, "replay.py"),
}
STREAMS = {
    "stdin": os.O_RDONLY,
    "stdout": os.O_WRONLY | os.O_CREAT,
    "stderr": os.O_WRONLY | os.O_CREAT,
}
NOWHERE = Path("/dev/null")


def run(
    program: str,
    *arguments: str,
    environment: Mapping[str, str],
    stdin: bytes = b"",
    cwd: Path = ROOT,
) -> subprocess.CompletedProcess[bytes]:
    """Run one of MAINS to its end, with nothing else in its environment.

    Raises subprocess.TimeoutExpired where it does not end by itself.
    """
    command = [program, *arguments]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "stdin").write_bytes(stdin)
        process = FORKS.Process(target=_main, args=(command, dict(environment), folder, cwd))
        process.start()
        process.join(TIMEOUT_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, TIMEOUT_SECONDS)
        output, errors = ((folder / each).read_bytes() for each in ("stdout", "stderr"))
    return subprocess.CompletedProcess(command, process.exitcode, output, errors)


def start(program: str, *arguments: str, environment: Mapping[str, str]) -> BaseProcess:
    """Start one of MAINS, and let nobody see what it prints; whoever starts it ends it."""
    command = [program, *arguments]
    process = FORKS.Process(target=_main, args=(command, dict(environment), None, ROOT))
    process.start()
    return process


def start_in(
    folder: Path, program: str, *arguments: str, environment: Mapping[str, str]
) -> BaseProcess:
    """Start one of MAINS; what it prints is in `stdout` and `stderr` of a folder."""
    (folder / "stdin").touch()
    command = [program, *arguments]
    process = FORKS.Process(target=_main, args=(command, dict(environment), folder, ROOT))
    process.start()
    return process


def _main(command: list[str], environment: dict[str, str], folder: Path | None, cwd: Path) -> None:
    """Make this process what `python -m` would make it, and run the program."""
    for number, (stream, flags) in enumerate(STREAMS.items()):
        file = os.open(NOWHERE if folder is None else folder / stream, flags, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = command
    MAINS[command[0]]()
