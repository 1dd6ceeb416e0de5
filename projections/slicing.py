"""Folding one journal in several processes: each folds what the events of some of the users make.

No event says beforehand which rows its fold looks at, so a slice claims events as it goes: those
that name one of its own users, and those that name no user, but a row that it holds. That this was
right shows in two ways. A slice that meets an event of another one which names a row of its own is
`Entangled`; and all slices together must have claimed each event, and none twice (`is_whole`).
Otherwise users share rows, or a fact came before anybody knew whose it was, and the tables have to
be folded in one piece.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from ledger.event import Event, RecordedEvent
from projections.fold import Group
from projections.projection import Alias, Projection, Rows, State

ID_DIGITS = 8
"""So many of an id's last digits, which are random in all kinds of ids, say to whom it belongs."""


class Slice(msgspec.Struct, frozen=True):
    """One of `count` slices of what is folded together as `of`; numbers begin with 0."""

    of: str
    number: int
    count: int

    @property
    def is_first(self) -> bool:
        """Whether it is the one that also makes what is not cut."""
        return self.number == 0


class Entangled(Exception):
    """Rows of one slice are named by events of another."""


def sliced(group: Group) -> list[Projection[Any]]:
    """Return the tables of (a part of) a group whose rows belong to one owner each."""
    slicing = group.slicing
    return [each for each in group.projections if slicing and each.name in slicing.tables]


def common_types(group: Group) -> set[type[Event]]:
    """Return the types of event that all slices fold: into tables that are not cut."""
    cut = sliced(group)
    whole = (each for each in group.projections if each not in cut and not each.append_only)
    return {known for each in whole for known in each.handlers}


def can_be_cut(group: Group) -> bool:
    """Whether the events of each type go either to one slice, or to tables that are not cut."""
    cut = {known for each in sliced(group) for known in each.handlers}
    return bool(cut) and cut.isdisjoint(common_types(group))


class Claims(msgspec.Struct, frozen=True):
    """Which events a slice has folded, of those that some slice must: a bit for each offset."""

    claimed: bytes
    claimable: bytes


NO_CLAIMS = Claims(b"", b"")


def is_whole(slices: Iterable[Claims]) -> bool:
    """Whether the slices saw the same events, and each event was folded by just one of them."""
    together, claimable = 0, set[bytes]()
    for each in slices:
        claimed = int.from_bytes(each.claimed, "little")
        if together & claimed:
            return False
        together |= claimed
        claimable.add(each.claimable)
    return {together} == {int.from_bytes(each, "little") for each in claimable}


class Slicer:
    """Picks the events of one slice, while they are folded: what it holds changes with each."""

    def __init__(
        self,
        part: Slice,
        size: int,
        group: Group,
        state: State,
        away: Mapping[str, Container[Hashable]],
    ) -> None:
        """Take the size to go to, the state, and by table the keys of rows that are away."""
        self._claimed = bytearray(size // 8 + 1)
        self._claimable = bytearray(size // 8 + 1)
        self._owner = "" if group.slicing is None else group.slicing.owner
        self._owned = _Owned(part)
        self._cut = group.event_types - common_types(group)
        held = (_Held(state.tables[each.name], away[each.name]) for each in sliced(group))
        self._names = _Names(list(held))

    def pick(self, events: Iterable[RecordedEvent]) -> Iterator[RecordedEvent]:
        """Yield those of the events that this slice folds; each is folded before the next is asked.

        Raises Entangled.
        """
        cut = self._cut
        for recorded in events:
            event = recorded.event
            if event.kind not in cut:
                yield recorded
                continue
            at, bit = recorded.offset >> 3, 1 << (recorded.offset & 7)
            self._claimable[at] |= bit
            if self._is_own(event):
                self._claimed[at] |= bit
                yield recorded

    @property
    def claims(self) -> Claims:
        """What it has folded so far."""
        return Claims(bytes(self._claimed), bytes(self._claimable))

    def _is_own(self, event: Event) -> bool:
        owner = getattr(event, self._owner, None)
        if owner is None:
            return self._holds(event)
        if self._owned[owner]:
            return True
        if self._holds(event):
            raise Entangled
        return False

    def _holds(self, event: Event) -> bool:
        """Whether the slice has a row that the event names."""
        fields, aliases = self._names[type(event)]
        for field, (rows, away) in fields:
            key = getattr(event, field)
            if key in away or rows.get(key) is not None:
                return True
        for alias, (rows, away) in aliases:
            for value in map(str, alias.wanted(event)):
                if rows.find(alias.column, value) is not None or value in away:
                    return True
        return False


class _Owned(dict[Hashable, bool]):
    """Says by id whether an owner is one of a slice's, in all processes alike."""

    def __init__(self, part: Slice) -> None:
        super().__init__()
        self._part = part

    def __missing__(self, owner: Hashable) -> bool:
        number = int(str(owner)[-ID_DIGITS:], 16) % self._part.count
        owned = self[owner] = number == self._part.number
        return owned


class _Held(NamedTuple):
    """The rows of a table that a slice has in memory, and the keys of those that are away."""

    rows: Rows[Any]
    away: Container[Hashable]


class _Names(dict[type[Event], tuple[list[tuple[str, _Held]], list[tuple[Alias, _Held]]]]):
    """By which fields, and by which aliases, events of a type may name rows of a slice."""

    def __init__(self, held: Sequence[_Held]) -> None:
        super().__init__()
        self._held = held

    def __missing__(
        self, known: type[Event]
    ) -> tuple[list[tuple[str, _Held]], list[tuple[Alias, _Held]]]:
        keys = [(held.rows.projection.key, held) for held in self._held]
        aliases = [(alias, held) for held in self._held for alias in held.rows.projection.aliases]
        found = self[known] = (
            [(key, held) for key, held in keys if key in known.__struct_fields__],
            [(alias, held) for alias, held in aliases if issubclass(known, alias.types)],
        )
        return found
