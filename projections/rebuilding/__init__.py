"""Rebuilding: read tables are made afresh beside the live ones, and swapped in under way."""

from projections.rebuilding.comparing import ColumnDifference, Comparison
from projections.rebuilding.errors import (
    BuildFailed,
    CannotCatchUp,
    CannotSwap,
    DependsOnTable,
    InvalidTables,
    KeptFoldUnknown,
    KeptTableExists,
    KeptTableMissing,
    PartlySwapped,
    RebuildRunning,
)
from projections.rebuilding.rebuild import Outcome, drop_old, rebuild, rollback, side_tables
from projections.rebuilding.side import SideTable
from projections.rebuilding.work import Options, Watch

__all__ = [
    "BuildFailed",
    "CannotCatchUp",
    "CannotSwap",
    "ColumnDifference",
    "Comparison",
    "DependsOnTable",
    "InvalidTables",
    "KeptFoldUnknown",
    "KeptTableExists",
    "KeptTableMissing",
    "Options",
    "Outcome",
    "PartlySwapped",
    "RebuildRunning",
    "SideTable",
    "Watch",
    "drop_old",
    "rebuild",
    "rollback",
    "side_tables",
]
