"""What faults are made with: a standby, a debugger that lets system calls fail, a tiny disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from tests.postgres import PostgresServer

WAIT_SECONDS = 30
DISK_BYTES = 12 * 1024**2
HEIR = "heir"


class Standby(PostgresServer):
    """A server that follows another and can take its place."""

    def __init__(self, primary: PostgresServer, settings: Mapping[str, str]) -> None:
        """Copy the primary, but do not start."""
        self._primary = primary
        super().__init__({**settings, "cluster_name": HEIR}, in_memory=True)

    @classmethod
    def of(cls, primary: PostgresServer, settings: Mapping[str, str]) -> Self:
        """Make a standby and start it."""
        standby = cls(primary, settings)
        try:
            standby.restart()
        except BaseException:
            standby.close()
            raise
        return standby

    def _initialise(self) -> None:
        source = ["-h", "127.0.0.1", "-p", str(self._primary.port), "-U", "postgres"]
        options = ["-D", str(self.data), "-R", "-X", "stream", "--checkpoint=fast", "--no-sync"]
        self.account.run(self.bin / "pg_basebackup", *source, *options, cwd=self.folder)

    def promote(self) -> None:
        """Take the primary's place; wait until that is done."""
        self.psql("SELECT pg_promote()")
        require_standby(self, "")


def require_standby(server: PostgresServer, name: str) -> None:
    """Have every commit wait for the standby of that name, or for none; wait until it is so."""
    server.psql(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
    server.psql("SELECT pg_reload_conf()")
    wait_until(lambda: server.psql("SHOW synchronous_standby_names") == name)


def wait_until_waiting(server: PostgresServer) -> None:
    """Wait until a commit waits for the standby: from then on none is acknowledged without it."""
    sql = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    wait_until(lambda: server.psql(sql) == "t")


def wait_until_synchronous(server: PostgresServer) -> None:
    """Wait until the standby has all and takes part in each commit."""
    sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
    wait_until(lambda: server.psql(sql) == "1")


def wait_until(holds: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """Wait until something holds; TimeoutError where it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited for {seconds} s in vain")
        time.sleep(0.01)


class Strace:
    """Lets system calls of running processes fail until it is left."""

    def __init__(self, pids: Sequence[int], injection: str, log: Path) -> None:
        """Take what to inject, such as `fdatasync:error=EIO:when=1`."""
        self._log = log
        targets = [word for pid in pids for word in ("-p", str(pid))]
        call = injection.partition(":")[0]
        self._process = subprocess.Popen(
            ["strace", "-f", "-q", "-o", log, *targets, f"-etrace={call}", f"-einject={injection}"],
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGTERM)  # lets the processes go on
        self._process.wait(WAIT_SECONDS)

    @property
    def injected(self) -> int:
        """How many calls have failed."""
        return self._log.read_text().count("(INJECTED)") if self._log.exists() else 0


def why_no_strace() -> str | None:
    """Return why system calls cannot be made to fail here; None where they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as idle:
        command = ["strace", "-q", "-o", "/dev/null", "-p", str(idle.pid)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as attached:
            try:
                attached.wait(0.3)
            except subprocess.TimeoutExpired:
                attached.terminate()
                return None
            finally:
                idle.kill()
    return "strace is not permitted"


@contextmanager
def tiny_disk() -> Iterator[Path | None]:
    """Give a file system of a few megabytes, None where none may be mounted."""
    folder = Path(tempfile.mkdtemp(prefix="ledger-disk-"))
    options = f"size={DISK_BYTES}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "ledger-test", str(folder)]
    try:
        is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        is_mounted = False
    try:
        yield folder if is_mounted else None
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


async def frozen(pids: Sequence[int], seconds: float) -> None:
    """Let processes stand still for a while."""
    for pid in pids:
        signal_process(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        for pid in reversed(pids):
            signal_process(pid, signal.SIGCONT)


def signal_process(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
