"""What the two databases do in ways of their own: the shape of new tables, and the swap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from projections.projection import Projection
from projections.rebuilding.plan import Plan


class Swap(msgspec.Struct, frozen=True):
    """Which tables take the places of which: `incoming` has their names by those of the live ones.

    All names beside theirs end in `suffix`. The replaced tables are kept. `dropped` are tables kept
    from an earlier time, which make room.
    """

    projections: tuple[Projection[Any], ...]
    incoming: Mapping[str, str]
    suffix: str
    dropped: tuple[str, ...] = ()


class Shape(Protocol):
    """The statements of one database."""

    async def make(self, connection: AsyncConnection, plan: Plan) -> None:
        """Make the plan's tables, empty, without keys and indexes."""

    async def finish(self, plan: Plan) -> None:
        """Give the loaded tables their keys, indexes, constraints and statistics."""

    async def drop(self, connection: AsyncConnection, names: Sequence[str]) -> None:
        """Drop side tables, whoever of the owner's own still works on them."""

    async def refuse_obstacles(self, connection: AsyncConnection, tables: Sequence[str]) -> None:
        """Raise DependsOnTable where something could not follow to new tables."""

    async def columns(self, connection: AsyncConnection, name: str) -> dict[str, str]:
        """Return the types of a table's columns; none where there is no such table."""

    async def unfilled(self, connection: AsyncConnection, name: str) -> list[str]:
        """Return the columns that every insert must name."""

    def swapping(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open the transaction of a swap, which waits for nobody for long."""

    async def swap(self, connection: AsyncConnection, swap: Swap, patience_seconds: float) -> None:
        """Exclude everybody from the tables and move the new ones into their places.

        Others wait while this waits for the tables: no longer than `patience_seconds`.
        """

    async def settle(self, tables: Sequence[str]) -> list[str]:
        """Check what was left unchecked; return what is not as it should be."""

    async def mend(self, tables: Sequence[str]) -> list[str]:
        """Do what a rebuild that was killed right after its swap has left undone.

        Returns what is not as it should be all the same.
        """

    def may_try_again(self, error: BaseException) -> bool:
        """Whether a swap failed only because somebody else held a lock."""

    async def lock_holders(self, tables: Sequence[str]) -> list[str]:
        """Return who uses the tables at present."""
