"""How much of a scenario is played."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Extent:
    """`count` faults at most; of statements one in `stride`, chosen at random."""

    count: int
    stride: int = 1
