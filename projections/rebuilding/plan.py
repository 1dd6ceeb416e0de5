"""What a rebuild makes: which tables, of which groups, in which parts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from projections.fold import Group
from projections.groups import GROUPS, TABLES
from projections.projection import Projection
from projections.rebuilding.errors import InvalidTables
from projections.rebuilding.side import BACK, beside
from projections.slicing import Slice, can_be_cut, common_types, sliced


class Share(NamedTuple):
    """What one process fills: tables, of some only what events of these types make, or a slice."""

    tables: set[str]
    types: dict[str, list[str]]
    slice: Slice | None = None


class Plan:
    """The rebuild of some tables of one group, `asked` for, in the order of their foreign keys.

    `names` are those of the tables to be made, by the names of the live ones. Beside those asked
    for they are the ones that the fold looks up: catching up must see their rows at the very same
    size. Such are `scratch`, dropped in the end. Tables that are only appended to are not needed.
    Unless the plan `makes_asked`, there are tables already for those that were asked for.
    """

    def __init__(
        self, group: Group, asked: Collection[str], token: str, *, makes_asked: bool = True
    ) -> None:
        self.group = group
        self.token = token
        self.asked = tuple(each.name for each in group.projections if each.name in asked)
        self.closure = group.only(self.asked)
        self.names = {
            each.name: beside(each.name, token)
            for each in self.closure.projections
            if (makes_asked if each.name in self.asked else not each.append_only)
        }
        self.lanes = beside(group.name, token if makes_asked else BACK)
        """The name under which lanes of the new tables are parked until the swap."""
        self.skipped: frozenset[tuple[int, str, int]] = frozenset()
        """Journal, table and offset of what was skipped when the building began."""

    @property
    def scratch(self) -> tuple[str, ...]:
        """The tables that are made, but not swapped in."""
        return tuple(name for name in self.names if name not in self.asked)

    @property
    def is_whole(self) -> bool:
        """Whether all tables of the group are swapped, so that its checkpoint may move as well."""
        return len(self.asked) == len(self.group.projections)

    @cached_property
    def parts(self) -> list[Share]:
        """The tables that are filled together, each set by a process.

        They are the circles of looking up. One that another folds anyway is filled by that. Rows of
        tables that are only appended to are made, share by share, where what they look up is
        folded; those that the fold of another table makes are made with it.
        """
        circles = list(dict.fromkeys(map(self._circle, filter(self._has_state, self.names))))
        hosts = [each for each in circles if not self._others_that_fold(each, circles)]
        found = {host: Share(set(host), {}) for host in hosts}
        for circle in circles:
            folding = [each for each in self._others_that_fold(circle, circles) if each in hosts]
            for host in folding[:1]:
                found[host].tables.update(circle)
        shares = [*found.values()]
        for name in self.names:
            if not self._has_state(name):
                shares += self._spread(name, shares)
        return shares

    def cut(self, share: Share, count: int) -> list[Share]:
        """Return the share in so many slices, if it can be cut; the first makes what is not cut."""
        group = self.group.only(share.tables, share.types)
        if count < 2 or not can_be_cut(group):
            return [share]
        common = {known.__name__ for known in common_types(group)}
        types = {
            each.name: [known.__name__ for known in each.handlers if known.__name__ not in common]
            for each in group.projections
            if each.append_only and each.name in share.tables
        }
        tables = {each.name for each in sliced(group)} | {name for name in types if types[name]}
        others = Share(share.tables & tables, types)
        slices = [Slice("+".join(sorted(share.tables)), number, count) for number in range(count)]
        return [
            share._replace(slice=slices[0]),
            *(others._replace(slice=each) for each in slices[1:]),
        ]

    def _spread(self, name: str, shares: Sequence[Share]) -> list[Share]:
        """Give the shares of an append-only table to those that fold what is looked up then."""
        alone: list[Share] = []
        for share in shares:
            if name in set[str]().union(*map(self._reach, share.tables)):
                share.tables.add(name)
                return alone
        for looked_up, types in self._projection(name).shares().items():
            reach = {each.name for each in self.group.only(looked_up).projections} - {name}
            hosts = [e for e in shares if reach <= set[str]().union(*map(self._reach, e.tables))]
            share = hosts[0] if hosts else Share({name}, {})
            share.tables.add(name)
            share.types[name] = [*share.types.get(name, ()), *types]
            alone += [] if hosts else [share]
        return alone

    def _reach(self, name: str) -> set[str]:
        return {each.name for each in self.group.only([name]).projections}

    def _circle(self, name: str) -> tuple[str, ...]:
        return tuple(
            other
            for other in filter(self._has_state, self.names)
            if name in self._reach(other) and other in self._reach(name)
        )

    def _others_that_fold(
        self, circle: tuple[str, ...], circles: Sequence[tuple[str, ...]]
    ) -> list[tuple[str, ...]]:
        return [each for each in circles if each != circle and circle[0] in self._reach(each[0])]

    def _has_state(self, name: str) -> bool:
        return not self._projection(name).append_only

    def _projection(self, name: str) -> Projection[Any]:
        return next(each for each in self.group.projections if each.name == name)


def plans(tables: Sequence[str], token: str, *, makes_asked: bool = True) -> list[Plan]:
    """Return one plan for each group concerned; InvalidTables names a table that there is not."""
    unknown = [name for name in tables if name not in TABLES]
    if unknown or not tables:
        wrong = f"no read table is named {unknown[0]!r}" if unknown else "no table is named"
        raise InvalidTables(f"{wrong}; there are {', '.join(TABLES)}")
    return [
        Plan(group, own, token, makes_asked=makes_asked)
        for group in GROUPS.values()
        if (own := [table for table in tables if TABLES[table] is group])
    ]
