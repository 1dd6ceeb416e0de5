"""Taking turns between processes that write to one SQLite file.

SQLite itself lets writers busy-wait, which leaves some of them waiting for seconds. Two locked
files make it fair: who wants to write first queues for `next`, then for `turn`, and gives `next`
back once it has the turn. Who has just written must queue for `next` again, behind those waiting.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from ledger.errors import StoreUnavailable

POLL_SECONDS = 0.0005

if sys.platform == "win32":

    def _try_to_lock(file: IO[bytes]) -> bool:
        """Do nothing: SQLite's own waiting has to do."""
        return True

else:
    import fcntl

    def _try_to_lock(file: IO[bytes]) -> bool:
        """Lock a file if nobody holds it; the system lets go of it when the process dies."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def turn(database: Path, timeout_seconds: float) -> Iterator[None]:
    """Wait for, then hold, this process's turn to write to the database file.

    Raises StoreUnavailable where another process, which may be frozen, does not let go in time.
    """
    deadline = time.monotonic() + timeout_seconds
    with ExitStack() as held:
        with _locked(database.with_name(f"{database.name}-next"), deadline):
            held.enter_context(_locked(database.with_name(f"{database.name}-turn"), deadline))
        yield


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("ab")
    except OSError as error:
        raise StoreUnavailable(
            f"cannot open {path}, by which processes take turns: {error.strerror}"
        ) from error


@contextmanager
def _locked(path: Path, deadline: float) -> Iterator[None]:
    with _opened(path) as file:
        # Asking again and again, since waiting in the system could not be given up.
        while not _try_to_lock(file):
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"another process has held {path} for too long; find it (`fuser {path}`), and "
                    "end it if it is frozen"
                )
            time.sleep(POLL_SECONDS)
        yield
