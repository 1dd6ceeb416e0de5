"""Telling what goes wrong in a worker, in one line each and not in a flood."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

import asyncpg
from sqlalchemy.exc import DBAPIError

from ledger.errors import LedgerError, StoreUnavailable

REPEATED_AFTER_SECONDS = 60.0
REMEMBERED_MAX = 1000
_AWAY_STATES = ("08", "57P")
"""SQLSTATE: connection exceptions, and a server that shuts down or starts."""


def print_line(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr, flush=True)


class Reporter:
    """Passes errors on; the same one at most once a minute."""

    def __init__(self, write: Callable[[str], None] = print_line) -> None:
        """Take what writes a line."""
        self._write = write
        self._told: OrderedDict[tuple[str, str], float] = OrderedDict()

    def tell(self, subject: str, error: BaseException) -> None:
        """Say what went wrong with `subject`; a database that is away is told once for all."""
        said = str(error) if isinstance(error, LedgerError) else repr(error)
        line = " ".join(said.split())
        key = ("" if is_away(error) else subject, line)
        if monotonic() - self._told.get(key, -REPEATED_AFTER_SECONDS) < REPEATED_AFTER_SECONDS:
            return
        self._told[key] = monotonic()
        self._told.move_to_end(key)
        while len(self._told) > REMEMBERED_MAX:
            self._told.popitem(last=False)
        self._write(f"{subject}: {line}")


def is_away(error: BaseException) -> bool:
    """Whether the database was lost or not reached, which is not the fault of any one subject."""
    cause = error.__cause__
    if not isinstance(error, StoreUnavailable) or cause is None:
        return False
    if isinstance(cause, DBAPIError):
        if cause.connection_invalidated:
            return True
        cause = cause.orig
    causes = (cause, None if cause is None else cause.__cause__)
    states = (str(getattr(each, "sqlstate", None) or "") for each in causes)
    return any(isinstance(each, OSError | asyncpg.InterfaceError) for each in causes) or any(
        state.startswith(_AWAY_STATES) for state in states
    )
