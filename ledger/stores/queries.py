"""What a store does for tables beside the events: the same statements for both databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec


class Statement(msgspec.Struct, frozen=True):
    """A statement that writes, and the arguments ($1, $2, …) of each time that it is run."""

    sql: str
    arguments: Sequence[Sequence[Any]]


class Queries(Protocol):
    """What runs them."""

    async def query(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        """Return the rows of a query, whose arguments are $1, $2, …."""
        ...

    async def transact(self, statements: Sequence[Statement]) -> bool:
        """Run statements in one transaction, unless the first one changes no row.

        Return whether they were run. The first one has one list of arguments.
        """
        ...
