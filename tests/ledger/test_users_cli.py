"""The command that registers a user, run as a program."""

from __future__ import annotations

import asyncio
import json
from uuid import UUID

from ledger.domain.users import UserRegistered, user_stream
from ledger.event import RecordedEvent
from tests.ledger.services.support import a_ledger
from tests.ledger.support import ledger

PASSWORD = "an engine weaves, ä"
OPTIONS = ("--role", "admin", "--role", "auditor", "--permission", "trade")


def registered(url: str, *arguments: str, stdin: bytes) -> UUID:
    """Register a user; return the id that is printed."""
    done = ledger(url, "register", *arguments, "--password-stdin", "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return UUID(json.loads(done.stdout)["user_id"])


def refused(url: str, *arguments: str, stdin: bytes = b"") -> str:
    """Register a user, which is refused; return what it says."""
    done = ledger(url, "register", *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, b"")
    return done.stderr.decode()


async def read_user(url: str, user_id: UUID, password: str) -> tuple[RecordedEvent, bool]:
    """Return how a user begins, and whether they can log in with a password."""
    async with a_ledger(url) as opened:
        [first, *_] = await opened.journal.read_stream(user_stream(user_id))
        login = await opened.sessions.start(username="ann@example.org", password=password)
        return first, login is not None


def test_registering_a_user(database_url: str) -> None:
    """With all that is given; the password is the first line, and can be logged in with."""
    options = (*OPTIONS, "--email", "ann@example.org", "--actor", "officer")
    ann = registered(database_url, "ann", *options, stdin=f"{PASSWORD}\r\nmore\n".encode())
    first, is_let_in = asyncio.run(read_user(database_url, ann, PASSWORD))
    assert isinstance(first.event, UserRegistered)
    assert first.event.roles == ("admin", "auditor")
    assert first.event.permissions == ("trade",)
    assert first.metadata.actor == "officer"
    assert is_let_in
    said = refused(database_url, "ann", "--password-stdin", stdin=b"secret\n")
    assert "is taken" in said


def test_what_it_says(sqlite_url: str) -> None:
    """The id and the offset, but no password."""
    done = ledger(sqlite_url, "register", "ann", "--password-stdin", stdin=b"secret")
    said = done.stdout.decode()
    assert said.startswith("user ")
    assert said.endswith(" was registered at offset 0\n")
    assert "secret" not in said + done.stderr.decode()


def test_without_a_password_nobody_is_registered(sqlite_url: str) -> None:
    """It asks on a terminal only; standard input has to have a line that is text."""
    assert "give --password-stdin" in refused(sqlite_url, "ann")
    assert "password: must have 1" in refused(sqlite_url, "ann", "--password-stdin", stdin=b"\n")
    assert "is no UTF-8" in refused(sqlite_url, "ann", "--password-stdin", stdin=b"\xff\n")
    size = ledger(sqlite_url, "size")
    assert size.stdout == b"0\n"
