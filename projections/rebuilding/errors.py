"""What can keep a rebuild from being done; in each case the live tables are as they were.

Several groups are swapped one after the other. If a later one fails, PartlySwapped says which are
swapped already.
"""

from __future__ import annotations

from collections.abc import Iterable

from ledger.errors import LedgerError


class InvalidTables(LedgerError):
    """The tables that were asked for cannot be rebuilt, or rolled back, like this."""


class RebuildRunning(LedgerError):
    """Another rebuild is at work in this database; only one may be at a time."""

    exit_code = 3

    def __init__(self) -> None:
        super().__init__(
            "another rebuild, rollback or drop-old is at work in this database; wait for it to end"
        )


class KeptTableExists(LedgerError):
    """The table that the last rebuild replaced is still kept, and its name is needed."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is still kept from the last rebuild; drop it with `replay.py drop-old`, or "
            "give --replace-old to have it replaced"
        )


class KeptTableMissing(LedgerError):
    """There is no kept table to go back to."""

    def __init__(self, table: str) -> None:
        super().__init__(f"no table is kept beside {table}; rebuild it instead")


class KeptFoldUnknown(LedgerError):
    """The kept table was filled by a fold that this program does not have."""

    def __init__(self, name: str, group: str, kept: str, own: str) -> None:
        super().__init__(
            f"{name} was filled by version {kept} of the fold of group {group!r}, this program has "
            f"version {own}; run `rollback` with the release that has version {kept}"
        )


class BuildFailed(LedgerError):
    """A process that folded a part of the journal failed or died."""

    exit_code = 3

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"building {part} failed: {reason}; the live tables are as they were")


class CannotCatchUp(LedgerError):
    """Events are appended faster than the new tables can be caught up."""

    exit_code = 3

    def __init__(self, group: str, lag: int, rounds: int) -> None:
        super().__init__(
            f"the new tables of group {group!r} are still {lag:,} events behind after {rounds} "
            "rounds: appends are faster than the catching up; try again when less is appended"
        )


class CannotSwap(LedgerError):
    """The tables could not be locked in time, or something refused to move to the new ones."""

    exit_code = 3

    def __init__(self, tables: Iterable[str], reason: str) -> None:
        super().__init__(f"cannot swap {', '.join(tables)}: {reason}")


class PartlySwapped(LedgerError):
    """Tables of one group were swapped, then another group failed; `swapped` names the former."""

    exit_code = 3

    def __init__(self, swapped: Iterable[str], error: LedgerError) -> None:
        self.swapped = tuple(swapped)
        super().__init__(
            f"{', '.join(self.swapped)}: swapped, and stays so; the tables of the other groups "
            f"were not: {error}"
        )


class DependsOnTable(LedgerError):
    """Something that cannot be moved to another table depends on one that is to be replaced."""

    def __init__(self, tables: Iterable[str], dependents: Iterable[str]) -> None:
        super().__init__(
            f"cannot replace {', '.join(tables)}, since these would keep to the replaced table: "
            f"{'; '.join(dependents)}; drop them first and make them again afterwards"
        )
