"""One hash of everything that a group's rows follow from, beside the events."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from hashlib import sha256
from importlib.abc import InspectLoader
from importlib.util import find_spec
from typing import Any

from ledger.errors import LedgerError
from projections.fold import Group
from projections.projection import Projection

PACKAGES = ("ledger", "projections")
ROOTS = ("projections.fold", "projections.guarding", "ledger.codec")
"""What every fold goes through: the loops over handlers, and how bodies become events."""


class SourceMissing(LedgerError):
    """The source of a module is not installed, so nobody can tell whether a fold has changed."""

    exit_code = 3

    def __init__(self, module: str) -> None:
        super().__init__(
            f"the source of module {module!r} is not installed, without which snapshots cannot be "
            "bound to the fold; install the package with its sources, or drop the snapshots"
        )


@lru_cache(maxsize=32)
def fold_hash(group: Group) -> str:
    """Return 64 hexadecimal digits that change whenever the group's fold may have changed.

    They cover its declared version, its columns with their types, and the source of the modules
    that hold its handlers and of all modules of this project that these import. The sources are
    read once in a process. Raises SourceMissing.
    """
    digest = sha256(repr((group.name, group.fold_version)).encode())
    for projection in group.projections:
        digest.update(repr(_declared(projection)).encode())
    for name in sorted(_needed(_own_modules(group))):
        digest.update(f"{name}\n{source(name)}\n".encode())
    return digest.hexdigest()


def _declared(projection: Projection[Any]) -> tuple[object, ...]:
    columns = [(column.name, repr(column.type)) for column in projection.table.columns]
    return projection.name, projection.key, projection.looks_up, columns


def _own_modules(group: Group) -> Iterator[str]:
    """Name the modules in which a group's projections are declared."""
    for projection in group.projections:
        yield projection.model.__module__
        yield from (handler.__module__ for handler in projection.handlers.values())


def _needed(modules: Iterable[str]) -> set[str]:
    """Return these modules, the roots, and all of this project that they import."""
    found: set[str] = set()
    waiting = {*modules, *ROOTS}
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= _imported(name) - found
    return found


@cache
def _imported(module: str) -> frozenset[str]:
    """Return the modules of this project that a module imports."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    own = (name for name in named if name.partition(".")[0] in PACKAGES)
    return frozenset(name for name in own if _is_module(name))


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, so this is a name in it
        return False


@cache
def source(module: str) -> str:
    """Return the source text of a module; SourceMissing where it is not installed."""
    spec = find_spec(module)
    loader = None if spec is None else spec.loader
    text = loader.get_source(module) if isinstance(loader, InspectLoader) else None
    if text is None:
        raise SourceMissing(module)
    return text
