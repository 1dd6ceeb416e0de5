"""Points of a journal: sizes, and times on either axis; what an answer says about its own."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec

from ledger.errors import LedgerError
from ledger.proof import log
from ledger.sqltypes import time_to_text
from ledger.stores import SizeAt

NOT_SEALED = "not sealed"
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class InvalidRequest(LedgerError):
    """What was asked for does not exist."""


class Sized(log.Source, Protocol):
    """What knows how many events a journal held when: a journal, or a published log of one."""

    async def size_at(self, moment: datetime) -> SizeAt:
        """Return how many events were recorded at or before `moment`."""
        ...


class Request(msgspec.Struct, frozen=True):
    """A point as it is asked for: a size, a time of recording, or an effective time.

    With `effective`, `recorded` says as known when; without it that is now.
    """

    size: int | None = None
    recorded: datetime | None = None
    effective: datetime | None = None

    @classmethod
    def of(cls, size: int | None, recorded: str | None, effective: str | None) -> Request:
        """Take what the options say; raises InvalidRequest."""
        if size is not None and (recorded is not None or effective is not None):
            raise InvalidRequest("--size goes neither with --recorded nor with --effective")
        if size is None and recorded is None and effective is None:
            raise InvalidRequest("give either --size or --recorded, or --effective")
        return cls(size, parsed_time(recorded, "--recorded"), parsed_time(effective, "--effective"))


class Point(msgspec.Struct, frozen=True):
    """A point in a journal: a size, and the time that was asked for if it was found by time.

    Its `root` is the Merkle root of the first `size` events, None where they are not sealed.
    It is provisional while events of that very time may still be recorded. With `effective_at` only
    those `events` count that had happened by then. `snapshots` are the sizes of those that a fold
    to this point began at, by the names of their groups. `notes` say what is left out of the
    tables, what waits, and how the answer was found.
    """

    size: int
    recorded_at: datetime | None = None
    provisional: bool = False
    effective_at: datetime | None = None
    events: int | None = None
    root: bytes | None = None
    snapshots: dict[str, int] = {}
    notes: list[str] = []

    def __str__(self) -> str:
        found = f"size {self.size}"
        if self.recorded_at is not None:
            found += f", recorded at or before {time_to_text(self.recorded_at)}"
        if self.effective_at is not None:
            found += f", effective at or before {time_to_text(self.effective_at)}"
        if self.events is not None:
            found += f" ({self.events} events)"
        if self.provisional:
            found += " (provisional)"
        begun = (f"; {group} from its snapshot at {n}" for group, n in self.snapshots.items())
        return found + "".join(begun)

    @property
    def root_text(self) -> str:
        """The root as checkpoints have it, or that there is none."""
        return NOT_SEALED if self.root is None else base64.b64encode(self.root).decode()

    def heading(self, journal: str) -> list[str]:
        """Return the lines that lead an answer which people read."""
        lines = [f"journal {journal} as of {self}", f"root: {self.root_text}"]
        return lines + [f"note: {note}" for note in self.notes]

    def described(self, journal: str) -> dict[str, Any]:
        """Return the point for JSON."""
        answer: dict[str, Any] = {"journal": journal, "size": self.size, "root": None}
        if self.root is not None:
            answer["root"] = self.root_text
        if self.recorded_at is not None:
            answer["recorded_at"] = time_to_text(self.recorded_at)
            answer["provisional"] = self.provisional
        if self.effective_at is not None:
            answer["effective_at"] = time_to_text(self.effective_at)
        if self.events is not None:
            answer["events"] = self.events
        also = {"snapshots": self.snapshots, "notes": self.notes}
        return answer | {name: value for name, value in also.items() if value}


def shown_point(journal: str, point: Point) -> dict[str, Any]:
    """Return a point for JSON with all that could be said of it."""
    nothing: dict[str, Any] = {
        "recorded_at": None,
        "provisional": False,
        "snapshots": {},
        "notes": [],
    }
    return nothing | point.described(journal)


UNTOLD = (
    "some keys wait, some events are left out, or all of them were folded; those who may read all "
    "rows are told more"
)


def untold(point: Point) -> Point:
    """Return a point that says so instead of naming keys and errors, which may be of others."""
    return msgspec.structs.replace(point, notes=[UNTOLD]) if point.notes else point


def parsed_time(text: str | None, option: str) -> datetime | None:
    """Return the time that an option holds; raises InvalidRequest."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequest(f"{option}: {text!r} is not an ISO 8601 time") from error
    if moment.utcoffset() is None:
        raise InvalidRequest(f"{option}: {text!r} has no time zone; add Z or an offset")
    return moment


def parsed_point(text: str) -> Request:
    """Return the size or the time of recording that an argument names; raises InvalidRequest."""
    if text.isascii() and text.isdigit():
        return Request(size=int(text))
    return Request(recorded=parsed_time(text, "the point"))


async def point_of(journal: Sized, asked: Request) -> Point:
    """Return the point that is asked for, with its root; raises InvalidRequest."""
    if asked.recorded is not None:
        found = await journal.size_at(asked.recorded)
        size, provisional = found.size, found.provisional
    else:
        size, provisional = await _size(journal, asked.size), False
    return Point(
        size,
        asked.recorded,
        provisional=provisional,
        effective_at=asked.effective,
        root=await root_at(journal, size),
    )


async def _size(journal: Sized, wanted: int | None) -> int:
    end = await journal.size()
    if wanted is not None and wanted > end:
        raise InvalidRequest(f"--size: journal {journal.name!r} holds only {end} events")
    return end if wanted is None else wanted


async def root_at(journal: Sized, size: int) -> bytes | None:
    """Return the Merkle root of the first `size` events, None where they are not sealed."""
    return await log.root_at(journal, size)


def microseconds(moment: datetime) -> int:
    """Return a time as whole microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND
