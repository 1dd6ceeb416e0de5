"""The commands that erase a user or forbid that, run as a program."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from ledger.domain.users import LegalHoldLifted, LegalHoldPlaced, UserErased, user_stream
from ledger.event import RecordedEvent
from tests.ledger.services.support import a_ledger
from tests.ledger.support import ledger

NAME, EMAIL = "annabelle", "annabelle@example.org"


async def _registered(url: str) -> UUID:
    async with a_ledger(url) as opened:
        return (await opened.users.register(username=NAME, email=EMAIL)).user_id


@pytest.fixture
def ann(database_url: str) -> UUID:
    """A user."""
    return asyncio.run(_registered(database_url))


def run(url: str, command: str, user_id: UUID, *options: str, stdin: bytes = b"") -> str:
    """Run a command that succeeds; return what it prints."""
    done = ledger(url, command, str(user_id), "--reason", "request 7", *options, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    assert NAME not in (done.stdout + done.stderr).decode().lower()
    return done.stdout.decode()


def refused(url: str, command: str, user_id: UUID | str, *options: str, stdin: bytes = b"") -> str:
    """Run a command that is refused as bad input; return what it says."""
    done = ledger(url, command, str(user_id), "--reason", "request 7", *options, stdin=stdin)
    assert (done.returncode, done.stdout.strip()) == (2, b"")
    return done.stderr.decode()


def events_of(url: str, user_id: UUID) -> list[RecordedEvent]:
    """Return the events of a user's stream."""

    async def read() -> list[RecordedEvent]:
        async with a_ledger(url) as opened:
            return await opened.journal.read_stream(user_stream(user_id))

    return asyncio.run(read())


def test_erasing_a_user(database_url: str, ann: UUID) -> None:
    """It says what was done and what is next, and the second time that there was nothing to do."""
    first = run(database_url, "erase-user", ann, "--yes", "--actor", "officer")
    assert first == (
        f"user {ann}: the erasure was recorded at offset 1, the data key was destroyed\n"
        "next: `projections scrub` takes the values out of the read tables and their files\n"
    )
    again = run(database_url, "erase-user", ann, "-y")
    assert again.startswith(
        f"user {ann}: the erasure was recorded before, the data key was destroyed before\n"
    )
    [registered, erased] = events_of(database_url, ann)
    assert registered.erased == ("username", "email")
    assert isinstance(erased.event, UserErased)
    assert (erased.event.reason, erased.metadata.actor) == ("request 7", "officer")


def test_it_asks_before_it_erases(sqlite_url: str) -> None:
    """Only a yes goes on: no answer at all is a no, and nothing is stored then."""
    ann = asyncio.run(_registered(sqlite_url))
    for answer in (b"n\n", b"\n", b""):
        said = refused(sqlite_url, "erase-user", ann, stdin=answer)
        assert f"Destroy the personal data of user {ann}? This cannot be undone." in said
        assert said.endswith("ledger: nothing was erased; answer with y, or give --yes\n")
    assert len(events_of(sqlite_url, ann)) == 1
    run(sqlite_url, "erase-user", ann, stdin=b"y\n")
    assert len(events_of(sqlite_url, ann)) == 2


def test_a_held_user_is_not_erased(database_url: str, ann: UUID) -> None:
    """Until the hold is lifted; who did it is recorded, whoever runs the program by default."""
    assert run(database_url, "hold-user", ann) == f"user {ann} is under a legal hold\n"
    message = (
        "EraseUser is refused in state held: the user is under a legal hold; it must be lifted"
    )
    assert message in refused(database_url, "erase-user", ann, "--yes")
    freed = run(database_url, "release-user", ann, "--actor", "judge")
    assert freed == f"user {ann} is no longer under a legal hold\n"
    _, placed, lifted = events_of(database_url, ann)
    assert placed.event == LegalHoldPlaced(user_id=ann, reason="request 7")
    assert "@" in str(placed.metadata.actor)
    assert lifted.event == LegalHoldLifted(user_id=ann, reason="request 7")
    assert lifted.metadata.actor == "judge"


@pytest.mark.parametrize("command", ["erase-user", "hold-user", "release-user"])
def test_what_cannot_be_done(sqlite_url: str, command: str) -> None:
    """A user or journal that does not exist, what is no id, and a reason of nothing are told."""
    yes = ["--yes"] if command == "erase-user" else []
    unknown = uuid4()
    assert "in state unknown: there is no such user" in refused(sqlite_url, command, unknown, *yes)
    assert "no journal is named 'x'" in refused(sqlite_url, command, unknown, "-j", "x", *yes)
    assert "should be a valid UUID" in refused(sqlite_url, command, "ann", *yes)
    assert "reason: must not be empty" in refused(
        sqlite_url, command, unknown, "--reason", "", *yes
    )
