"""Dying at the n-th SQL statement of a process that works on a SQLite file."""

from __future__ import annotations

import os
import signal
import sqlite3
from typing import Any


class Fuse:
    """Kills this very process when a statement is about to begin, counted from `light` on."""

    def __init__(self, statements: int) -> None:
        """Take how many statements may begin before; the next one does not."""
        self._left: int | None = None
        self._statements = statements

    def install(self) -> None:
        """See all statements of all connections that are opened from now on."""
        connect = sqlite3.connect

        def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **options)
            connection.set_trace_callback(self._begins)
            return connection

        sqlite3.connect = connected  # type: ignore[assignment] # drivers look it up at each call

    def light(self) -> None:
        """Count from now on."""
        self._left = self._statements

    def _begins(self, statement: str) -> None:
        if self._left is None or statement.startswith("--"):  # a trigger's part of a statement
            return
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
