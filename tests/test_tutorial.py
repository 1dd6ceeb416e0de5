"""The tutorial, done from end to end as it is written, with the real programs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import programs
from tests.support.serving import served

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


class Block(NamedTuple):
    """A block of the tutorial: what is typed, printed or saved in a file."""

    kind: str
    text: str
    before: str


def blocks() -> list[Block]:
    """Return the blocks in their order, each with the text before it."""
    parts = re.split(r"^```(\w+)\n(.*?)^```\n", TUTORIAL, flags=re.DOTALL | re.MULTILINE)
    return [Block(parts[i + 1], parts[i + 2], parts[i]) for i in range(0, len(parts) - 2, 3)]


class Shell:
    """As much of a shell as the tutorial needs: variables, `|`, `>`, and `$(…)`."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Work in a folder; whatever goes on running ends with the stack."""
        self.folder = folder
        self.stack = stack
        self.variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        self.address = ADDRESS
        self.moment = ""
        self.differences: list[str] = []

    def run(self, line: str) -> str:
        """Run a line; return what it prints. It must end with 0, or with 1 for differences."""
        line = line.replace(ADDRESS, self.address).replace("TIME", self.moment)
        line = re.sub(r"\$\((.*)\)", lambda found: self.run(found[1]).strip(), line)
        line = re.sub(r"\$(\w+)", lambda found: self.variables.get(found[1], found[0]), line)
        if line.startswith("export "):
            self._export(line.removeprefix("export "))
            return ""
        line, _, file = line.partition(" > ")
        output = ""
        for command in line.split(" | "):
            output = self._command(shlex.split(command), output)
        if file:
            (self.folder / file).write_text(output, encoding="utf-8")
        return output

    def _export(self, assignment: str) -> None:
        name, _, value = assignment.partition("=")
        if name != "PATH":
            where = f"sqlite:///{self.folder}/"
            self.variables[name] = value.strip('"').replace("sqlite:///", where)

    def _command(self, words: list[str], stdin: str) -> str:
        if words[:2] == ["python", "replay.py"]:
            words = words[1:]
        if words[0] == "echo":
            return " ".join(words[1:]) + "\n"
        if words == ["projections", "serve"]:
            return self._serve()
        if words[0] in programs.MAINS:
            program, *arguments = words
            done = programs.run(
                program, *arguments,
                environment=self.variables, stdin=stdin.encode(), cwd=self.folder,
            )  # fmt: skip
        else:
            words = [sys.executable if words[0] == "python" else words[0], *words[1:]]
            done = subprocess.run(
                words, capture_output=True, check=False, cwd=self.folder,
                env=self.variables, input=stdin.encode(),
            )  # fmt: skip
        assert done.returncode in (0, 1), f"{words}: {done.stderr.decode()}"
        if done.returncode:
            assert b"Traceback" not in done.stderr
            self.differences.append(" ".join(words[:2]))
        return done.stdout.decode()

    def _serve(self) -> str:
        variables = self.variables | {
            "LEDGER_LOG_KEY_FILE": str(self.folder / self.variables["LEDGER_LOG_KEY_FILE"])
        }
        self.address = self.stack.enter_context(served(environment=variables)).address
        return f"listening on {ADDRESS}\n"


def pattern(text: str) -> str:
    """Return the pattern of an output in which an ellipsis stands for anything."""
    return ".*?".join(re.escape(part) for part in text.rstrip("\n").split("…"))


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    """Each command ends well and prints what stands below it; differences end with exit code 1."""
    with ExitStack() as stack:
        shell, printed = Shell(tmp_path, stack), ""
        for block in blocks():
            if block.kind == "python":
                [name] = re.findall(r"`(\w+\.py)`:\n\n$", block.before)
                (tmp_path / name).write_text(block.text, encoding="utf-8")
            elif block.kind == "text":
                assert re.search(pattern(block.text), printed, re.DOTALL), printed
            else:
                lines = [each for each in block.text.splitlines() if not each.startswith("make ")]
                printed = "".join(shell.run(line) for line in lines)
                if moment := re.search(r"between the fills: (\S+)", printed):
                    shell.moment = moment[1]
    assert shell.differences == ["replay.py diff", "replay.py verify"]


def test_an_ellipsis_stands_for_anything_and_nothing_else_does() -> None:
    """What the tutorial shows is compared literally."""
    assert re.search(pattern("verified: …\nend"), "verified: 6 events\nend", re.DOTALL)
    assert not re.search(pattern("verified: 6.events"), "verified: 6 events", re.DOTALL)


@pytest.mark.parametrize("kind", ["sh", "text", "python"])
def test_every_block_is_looked_at(kind: str) -> None:
    """No block of the tutorial escapes the test above."""
    assert {block.kind for block in blocks()} == {"sh", "text", "python"}
    assert sum(block.kind == kind for block in blocks()) == TUTORIAL.count(f"```{kind}\n") > 0
