"""Every error the ledger raises, under one root.

Each message says what was wrong, where, and what to do about it.
"""

from __future__ import annotations

from typing import Any, Self
from uuid import UUID


class LedgerError(Exception):
    """The root of all errors of this project.

    `exit_code` is what a command line program that ends with this error returns: 2 for bad input
    or usage, 3 for the environment (a database that is away, a part that is missing).
    """

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process have the error with its text and fields, whatever made it."""
        return type(self)._restored, (self.args, self.__dict__)

    @classmethod
    def _restored(cls, args: tuple[object, ...], fields: dict[str, object]) -> Self:
        error = cls.__new__(cls, *args)
        error.__dict__.update(fields)
        return error


class InvalidEvent(LedgerError):
    """An event was refused before it was queued; nothing was stored.

    `field` names the offending part (`data.quantity`, `stream`, …) where one is known.
    """

    def __init__(self, reason: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class UnknownEventType(InvalidEvent):
    """No event type of that name (or of that schema version) is registered in this program."""


class ConditionFailed(LedgerError):
    """A condition of the append did not hold; nothing of the append was stored."""


class VersionConflict(ConditionFailed):
    """The stream is not at the expected version: somebody appended first. Decide again."""

    def __init__(self, stream: str, expected: int, actual: int) -> None:
        super().__init__(
            f"stream {stream!r} is at version {actual}, not at the expected {expected}; "
            "load the stream again and decide anew"
        )
        self.stream = stream
        self.expected = expected
        self.actual = actual


class EventExists(ConditionFailed):
    """An event that the append ruled out has been stored at `offset`."""

    def __init__(self, where: str, types: tuple[str, ...], after: int, offset: int) -> None:
        named = " or ".join(types) or "event"
        super().__init__(
            f"{where} has a {named} at offset {offset}, which the condition rules out "
            f"after offset {after}; read it and decide anew"
        )
        self.where = where
        self.offset = offset


class TagTaken(ConditionFailed):
    """The event claims a tag (a username, an e-mail …) that another stream holds since `offset`."""

    def __init__(self, tag: str, offset: int) -> None:
        super().__init__(f"tag {tag!r} is taken since offset {offset}; choose another")
        self.tag = tag
        self.offset = offset


class TooManyEvents(ConditionFailed):
    """The stream already holds the allowed number of events in the window. Try again later."""

    def __init__(self, stream: str, count: int, window_seconds: float) -> None:
        super().__init__(
            f"stream {stream!r} may hold at most {count} events in {window_seconds:g} s; "
            "try again when the window has moved on"
        )
        self.stream = stream
        self.count = count
        self.window_seconds = window_seconds


class InvalidCommand(LedgerError):
    """A command cannot be carried out by anybody at any time: a value of it is wrong.

    `field` names the value. Nothing was stored.
    """

    def __init__(self, command: str, field: str, reason: str) -> None:
        super().__init__(f"{command}.{field}: {reason}")
        self.command = command
        self.field = field
        self.reason = reason


class CommandRefused(LedgerError):
    """The command does not fit the state that it met; nothing was stored.

    `command` and `state` name the two, `subject` what the command was for (a stream or a book).
    """

    def __init__(self, command: str, subject: str, state: str, reason: str) -> None:
        super().__init__(f"{subject}: {command} is refused in state {state}: {reason}")
        self.command = command
        self.subject = subject
        self.state = state
        self.reason = reason


class Contended(LedgerError):
    """Others changed what a command depends on each time it was decided; nothing was stored.

    Try again later; if it happens often, too many commands go to one stream.
    """

    def __init__(self, command: str, subject: str, tries: int) -> None:
        super().__init__(
            f"{subject}: {command} was decided {tries} times and each time something that it "
            "depends on changed before it was stored; try again"
        )
        self.command = command
        self.subject = subject
        self.tries = tries


class EventIdConflict(LedgerError):
    """The event id is known with other content, or only a part of the append is known."""

    def __init__(self, event_id: UUID, offset: int, reason: str) -> None:
        super().__init__(
            f"event id {event_id} is already stored at offset {offset}, {reason}; "
            "use a new id for a new event"
        )
        self.event_id = event_id
        self.offset = offset


class AppendOutcomeUnknown(LedgerError):
    """Whether the append was stored could not be found out.

    Appending the same events with the same event ids again is always safe: it either stores them
    or returns the offsets they already have.
    """

    exit_code = 3


class Overloaded(LedgerError):
    """The append queue is full; nothing was queued. Slow down and try again."""


class StoreUnavailable(LedgerError):
    """The database cannot be reached or refuses to work; nothing was stored by this call."""

    exit_code = 3


class SchemaMissing(StoreUnavailable):
    """The database lacks the ledger's tables or has older ones: run `ledger migrate`."""


class JournalNotFound(LedgerError):
    """No journal of that name exists in this database."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no journal is named {name!r}; make it with `ledger journals new {name}`")
        self.name = name


class JournalExists(LedgerError):
    """A journal of that name exists already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a journal named {name!r} exists already; choose another name")
        self.name = name


class StoredEventInvalid(LedgerError):
    """A stored event cannot be decoded by this program; `offset` says where it lies."""

    exit_code = 3

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"event at offset {offset} cannot be decoded: {reason}")
        self.offset = offset
