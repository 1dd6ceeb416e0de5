"""Running an adapter as a user does, and reading what it wrote as the ledger would."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

import ledger.domain  # noqa: F401 - registers the event types
from ledger.event import Metadata
from ledger.ndjson import parse_line

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = {
    "hyperliquid": "hyperliquid_fills_dev.csv",
    "lobster": "lobster_goog_2012-06-21_level1_messages.csv.gz",
    "openssh": "openssh_2k_structured.csv",
    "cloudtrail": "cloudtrail_api_key_usage.csv",
}


class Line(msgspec.Struct, frozen=True):
    """One line of an adapter's output, read and checked."""

    stream: str
    event: Any
    event_id: UUID
    occurred_at: datetime
    metadata: Metadata

    @property
    def type(self) -> str:
        """Name the event's type."""
        return type(self.event).__name__

    def is_made_up(self) -> bool:
        """Whether the adapter marked the event as its own invention."""
        return (self.metadata.actor or "").startswith("adapter:")


class Conversion(msgspec.Struct, frozen=True):
    """What one run of an adapter gave."""

    output: bytes
    summary: str
    lines: list[Line]


def command(name: str, *arguments: object) -> list[str]:
    """Return the command line that runs an adapter."""
    return [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run an adapter to its end."""
    return subprocess.run(command(name, *arguments), capture_output=True, check=False, timeout=120)


def conversion(name: str, file: Path, *options: str) -> Conversion:
    """Run an adapter that must succeed."""
    done = run(name, file, *options)
    assert done.returncode == 0, done.stderr.decode()
    lines = [_read(line) for line in done.stdout.splitlines()]
    return Conversion(done.stdout, done.stderr.decode(), lines)


def convert(name: str, file: Path, *options: str) -> list[Line]:
    """Run an adapter that must succeed and return its lines."""
    return conversion(name, file, *options).lines


def _read(text: bytes) -> Line:
    """Read a line as `ledger append` does, which checks every field."""
    new = parse_line(text, number=1, source=None).event
    assert new.occurred_at is not None
    return Line(new.stream, new.event, new.event_id, new.occurred_at, new.metadata or Metadata())


def write_csv(path: Path, header: str, *rows: str) -> Path:
    """Make a small file of a source."""
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return path


def facts(found: list[Line]) -> list[Any]:
    """Return the events that stand in the source."""
    return [line.event for line in found if not line.is_made_up()]
