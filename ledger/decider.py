"""What a decider is: pure decisions about the events of one kind of stream.

`decide(command, state) -> events` and `evolve(state, event) -> state`, without a clock and without
input or output. Time and ids arrive in the command. `ledger.deciding` runs deciders.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from ledger.errors import CommandRefused, InvalidCommand
from ledger.event import Event, RecordedEvent, normalisers

S = TypeVar("S")
C = TypeVar("C")


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,)
)
class Command(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of all commands: imperative, with all times and ids that deciding needs.

    An amount may be given as text, an int or a Decimal; one that does not fit raises
    InvalidCommand, as does a time without a zone.
    """

    def __post_init__(self) -> None:
        """Bring amounts and times into their one form."""
        for name, normalise in normalisers(type(self)):
            value = getattr(self, name)
            if value is not None:
                try:
                    msgspec.structs.force_setattr(self, name, normalise(value))
                except ValueError as error:
                    raise InvalidCommand(type(self).__name__, name, str(error)) from error

    def invalid(self, field: str, reason: str) -> InvalidCommand:
        """Return the error for a value of this command that nobody could carry out."""
        return InvalidCommand(type(self).__name__, field, reason)

    def refused(self, subject: str, state: str, reason: str) -> CommandRefused:
        """Return the error for this command in a state that it does not fit."""
        return CommandRefused(type(self).__name__, subject, state, reason)


class Decider(Generic[C, S]):
    """How the events of one kind of stream come about, and what they lead to.

    `decide` returns the events to store, none where nothing is to be done, and raises
    CommandRefused where the command does not fit the state.
    """

    def __init__(
        self,
        initial: S,
        decide: Callable[[C, S], Sequence[Event]],
        evolve: Callable[[S, Event], S],
    ) -> None:
        self.initial = initial
        self.decide = decide
        self.evolve = evolve

    def take(self, state: S, recorded: RecordedEvent) -> S:
        """Return what a recorded event leads to; who needs its envelope overrides this."""
        return self.evolve(state, recorded.event)
