"""Asks a running service all that its OpenAPI allows, and more: run it with `make check-api`.

The short form of it is among the tests.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ledger.migrate import migrate
from ledger.settings import Settings
from tests.postgres import PostgresServer
from tests.support.serving import served, with_role

PROGRAM = Path(sys.executable).with_name("schemathesis")
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
EVERYTHING = ("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "25")
SECONDS_MAX = 900.0


def ask(database_url: str, *options: str) -> tuple[int, str]:
    """Let schemathesis ask a service on a database; return its exit code, and what it said.

    It asks as somebody who may do everything, and makes all its checks.
    """
    admin = asyncio.run(with_role(Settings(database_url=database_url), "admin"))
    environment = {"LEDGER_DATABASE_URL": database_url}
    with (
        tempfile.TemporaryDirectory() as folder,
        served("--no-console", "--project", environment=environment) as service,
    ):
        command: Sequence[object] = [
            PROGRAM, "--config-file", CONFIGURATION, "run", f"{service.address}/openapi.json",
            "--header", f"X-API-Key: {admin.key}", "--checks", "all", "--seed", "20260302",
            "--generation-database", "none", "--warnings", "off", "--no-color", *options,
        ]  # fmt: skip
        done = subprocess.run(
            [str(each) for each in command],
            check=False, cwd=folder, capture_output=True, text=True, timeout=SECONDS_MAX,
        )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    """Ask a service on SQLite, then one on PostgreSQL, everything; return the worse exit code."""
    with tempfile.TemporaryDirectory() as name, PostgresServer.start() as server:
        codes = []
        for url in (f"sqlite:///{name}/ledger.db", server.create_database("asked")):
            migrate(Settings(database_url=url))
            code, said = ask(url, *EVERYTHING, *sys.argv[1:])
            print(f"# {url.partition(':')[0]}\n{said}", flush=True)
            codes.append(code)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
