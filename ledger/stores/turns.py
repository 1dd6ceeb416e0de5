"""Taking turns between processes that write to one SQLite file.

SQLite itself lets writers busy-wait, which leaves some of them waiting for seconds. Two locked
files make it fair: who wants to write first queues for `next`, then for `turn`, and gives `next`
back once it has the turn. Who has just written must queue for `next` again, behind those waiting.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

if sys.platform == "win32":

    @contextmanager
    def locked(path: Path) -> Iterator[None]:
        """Do nothing: SQLite's own waiting has to do."""
        yield

else:
    import fcntl

    @contextmanager
    def locked(path: Path) -> Iterator[None]:
        """Hold an exclusive lock on a file; the system lets go of it when the process dies."""
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextmanager
def turn(database: Path) -> Iterator[None]:
    """Wait for, then hold, this process's turn to write to the database file."""
    with ExitStack() as held:
        with locked(database.with_name(f"{database.name}-next")):
            held.enter_context(locked(database.with_name(f"{database.name}-turn")))
        yield
