"""The HTTP service as a process of its own, and who may ask it for what."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from uuid import UUID

import msgspec
import psutil

from ledger.http.permissions import ROLES
from ledger.services import open_ledger
from ledger.settings import Settings
from tests.support import programs
from tests.support.secrets import secrets_in

START_SECONDS = 30.0
STOP_SECONDS = 30.0
PASSWORD = "correct horse battery staple"


class Served(msgspec.Struct, frozen=True):
    """A service that listens at `address`; all that it printed is in files of `folder`."""

    address: str
    process: psutil.Process
    folder: Path

    def log(self) -> str:
        """Return all that the service has printed so far."""
        return "".join((self.folder / name).read_text() for name in ("stdout", "stderr"))

    def memory_bytes(self) -> int:
        """Return how much of the machine's memory the process has to itself."""
        return int(self.process.memory_full_info().uss)


@contextmanager
def served(*options: str, environment: Mapping[str, str]) -> Iterator[Served]:
    """Run `projections serve` until the end of the block; it must end well, and tell no secret."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = ("projections", "serve", *options)
        process = programs.start_in(
            folder, *command, environment={"LEDGER_HTTP_PORT": "0"} | dict(environment)
        )
        try:
            address = _address(folder, process)
            assert process.pid is not None
            yield Served(address, psutil.Process(process.pid), folder)
        finally:
            process.terminate()
            process.join(STOP_SECONDS)
            if process.exitcode is None:
                process.kill()
                process.join()
        printed = "".join((folder / each).read_text() for each in ("stdout", "stderr"))
        assert process.exitcode == 0, printed[-3000:]
        assert not (found := secrets_in(printed)), f"the service has printed {found}"


def _address(folder: Path, process: BaseProcess) -> str:
    """Wait until the service says where it listens."""
    until = time.monotonic() + START_SECONDS
    printed = folder / "stdout"
    while time.monotonic() < until and process.is_alive():
        text = printed.read_text() if printed.exists() else ""
        if found := re.search(r"http://[\w.]+:\d+", text):
            return found[0]
        time.sleep(0.02)
    raise TimeoutError((folder / "stderr").read_text()[-3000:])


class Caller(msgspec.Struct, frozen=True):
    """A user, by name and password, with an API key."""

    user_id: UUID
    username: str
    key: str


async def with_role(settings: Settings, role: str) -> Caller:
    """Register a user with a role, and issue a key with all that the role may do."""
    async with open_ledger(settings) as ledger:
        registered = await ledger.users.register(username=role, password=PASSWORD, roles=[role])
        issued = await ledger.api_keys.issue(
            user_id=registered.user_id, name=role, permissions=sorted(ROLES[role])
        )
    assert issued.key is not None
    return Caller(registered.user_id, role, issued.key.reveal())
