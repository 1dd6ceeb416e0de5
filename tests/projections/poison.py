"""Groups whose folds raise at some events: after all that the handlers do, so that it is undone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from ledger.event import RecordedEvent
from projections.fold import Group
from projections.lanes import Place
from projections.model import ReadModel, values_of
from projections.projection import Handler, Projection, State

IsPoison = Callable[[str, RecordedEvent], bool]


class Spoilt(Exception):
    """What poisoned events raise here."""


def poisoned(group: Group, is_poison: IsPoison) -> Group:
    """Return the same group with folds that raise where `is_poison(table, event)`."""
    projections = [_raising(each, is_poison) for each in group.projections]
    version = group.fold_version
    return Group(group.name, *projections, fold_version=version, slicing=group.slicing)


def _raising(projection: Projection[Any], is_poison: IsPoison) -> Projection[Any]:
    other = copy.copy(projection)
    other.handlers = {
        kind: _wrapped(projection.name, handler, is_poison)
        for kind, handler in projection.handlers.items()
    }
    return other


def _wrapped(table: str, handler: Handler, is_poison: IsPoison) -> Handler:
    def fold(state: State, recorded: RecordedEvent, event: Any) -> None:
        handler(state, recorded, event)
        if is_poison(table, recorded):
            raise Spoilt(f"{table} at {recorded.offset}")

    return fold


def at(*places: Place) -> IsPoison:
    """Let the folds of these events into these tables raise."""
    return lambda table, recorded: (table, recorded.offset) in places


def some(group: Group, seed: int, size: int, count: int) -> list[Place]:
    """Pick places at random."""
    random = Random(seed)
    tables = [each.name for each in group.projections]
    return [(random.choice(tables), random.randrange(size)) for _ in range(count)]


def rows_by_key(group: Group, state: State) -> dict[str, dict[Any, dict[str, Any]]]:
    """Return all finished rows by table and key."""
    return {
        each.name: {
            getattr(row, each.key): values_of(row) for row in group.finished(state, each.name)
        }
        for each in group.projections
    }


def parked_rows(group: Group, state: State) -> Iterator[tuple[str, Any]]:
    """Yield table and key of the rows that are parked."""
    for each in group.projections:
        for row in state.tables[each.name]:
            if is_parked(each, state, row):
                yield each.name, getattr(row, each.key)


def is_parked(projection: Projection[Any], state: State, row: ReadModel) -> bool:
    """Whether a lane of the row is parked in `state`."""
    values = state.parking.values(projection.name)
    return any(value in values.get(column, ()) for column, value in projection.names_of(row))
