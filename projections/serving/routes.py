"""Routes for operators: how far the tables are, what is parked, and rebuilds."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ledger.http.auth import Principal, require
from ledger.http.models import Body, Identifier
from ledger.http.permissions import OPERATIONS_READ, OPERATIONS_WRITE
from ledger.http.problems import Kind, define, responses
from ledger.http.routing import router as make_router
from projections.groups import TABLES
from projections.operations import REASON_CHARS_MAX, REASON_PATTERN, Operations
from projections.parking import Part
from projections.rebuilding import InvalidTables, RebuildRunning
from projections.retrying import FoldDiffers, NotParked, Overtaken, StillRefused

OFFSET_MAX = 2**53
"""More than JSON counts exactly no journal holds."""

PARKED_MAX = 1000

define(NotParked, Kind("not-parked", 404, "Nothing is parked there"))
define(StillRefused, Kind("still-refused", 409, "The database still refuses the rows"))
define(FoldDiffers, Kind("fold-differs", 409, "This release folds the event differently"))
define(Overtaken, Kind("overtaken", 409, "Somebody else has just changed what is parked"))
define(RebuildRunning, Kind("rebuild-running", 409, "A rebuild is at work"))
define(InvalidTables, Kind("invalid-tables", 422, "These tables cannot be rebuilt together"))

TableName = StrEnum("TableName", {name: name for name in TABLES})  # type: ignore[misc]
"""The read tables, by name."""

Reader = Annotated[Principal, Depends(require(OPERATIONS_READ))]
Writer = Annotated[Principal, Depends(require(OPERATIONS_WRITE))]


class Shown(BaseModel):
    """What is shown of one of the project's own structures."""

    model_config = ConfigDict(from_attributes=True)


class Worked(Shown):
    """How far a group of a journal is, and which worker takes care of it."""

    group: str
    journal: str
    checkpoint: int
    size: int
    lag_events: int
    lag_seconds: float
    moved_at: datetime | None = Field(description="When the checkpoint moved last.")
    worker_id: str | None
    epoch: int
    lease: Literal["held", "stale", "free"]
    stalled: bool
    ownerless: bool
    fold_version: str | None
    is_other_version: bool
    parked: int


class ParkedRow(Shown):
    """A key of a table that waits since an event could not be folded."""

    group: str
    table: str
    column: str
    value: str
    offset: int
    event_id: UUID
    event_type: str
    error: str | None = Field(description="What the fold of the event raised.")
    waits_for: str | None = Field(description="The key that it waits for, without an own error.")
    waiting: int
    parked_at: datetime


class RetriedGroup(Shown):
    """What came of a retry."""

    group: str
    freed: int
    rows: dict[str, int] = Field(description="Rows written, by table.")
    parked: list[ParkedRow] = Field(description="What is parked still.")


class Skipped(Shown):
    """An event that a table does without from now on, and what that has freed."""

    group: str
    table: str
    offset: int
    event_id: UUID
    event_type: str
    error: str | None
    reason: str
    actor: str | None
    skipped_at: datetime


class SkippedAndRetried(BaseModel):
    """What was skipped, and what was folded that had waited for it."""

    skipped: Skipped
    retried: RetriedGroup


class Rebuild(Shown):
    """A rebuild, as it stands."""

    id: str
    tables: list[str]
    actor: str
    accept: bool
    state: Literal["running", "done", "differs", "failed", "cancelled"]
    stage: str
    folded: int
    total: int
    started_at: datetime
    ended_at: datetime | None
    error: str | None
    differences: list[str]
    notes: list[str]


class Sized(Shown):
    """How large a table is; on PostgreSQL `rows` is an estimate."""

    table: str
    rows: int
    bytes: int | None


class Pool(Shown):
    """The connections of the read side."""

    size: int
    overflow_max: int
    open: int
    in_use: int


class RetryBody(Body):
    """What to fold again."""

    table: TableName
    value: Identifier


class SkipBody(Body):
    """Which event a table is to do without for ever, and why."""

    table: TableName
    offset: int = Field(ge=0, le=OFFSET_MAX)
    reason: Annotated[
        str, StringConstraints(strict=True, max_length=REASON_CHARS_MAX, pattern=REASON_PATTERN)
    ]


class RebuildBody(Body):
    """Which tables to build afresh, and whether to swap them in where they differ."""

    tables: list[TableName] = Field(min_length=1, max_length=len(TABLES))
    accept: bool = Field(False, description="Swap the new tables in also where they differ.")
    replace_old: bool = Field(False, description="Drop what the last rebuild has kept.")


router: APIRouter = make_router("operations")


def _operations(request: Request) -> Operations:
    return cast(Operations, request.app.state.operations)


Opened = Annotated[Operations, Depends(_operations)]


@router.get("/operations/workers")
async def workers(_who: Reader, operations: Opened) -> list[Worked]:
    """Say how far each group of each journal is, and who takes care of it."""
    return [Worked.model_validate(each) for each in await operations.statuses()]


@router.get("/operations/parked")
async def parked(
    _who: Reader,
    operations: Opened,
    table: TableName | None = None,
    start: Annotated[int, Query(ge=0, le=OFFSET_MAX, description="So many are passed over.")] = 0,
    limit: Annotated[int, Query(ge=1, le=PARKED_MAX)] = 100,
) -> list[ParkedRow]:
    """List keys of tables that wait since an event could not be folded, the oldest first."""
    part = Part(None if table is None else table.value, start=start, limit=limit)
    return [ParkedRow.model_validate(each) for each in await operations.parked(part)]


@router.post("/operations/parked/retry", responses=responses(404, 409))
async def retry(body: RetryBody, who: Writer, operations: Opened) -> RetriedGroup:
    """Fold again what is parked in a table under a value, and what only waits for it."""
    retried = await operations.retry(body.table.value, body.value, actor=who.actor)
    return RetriedGroup.model_validate(retried)


@router.post("/operations/parked/skip", responses=responses(404, 409))
async def skip(body: SkipBody, who: Writer, operations: Opened) -> SkippedAndRetried:
    """Leave a parked event out of a table for ever, and fold what has waited for it."""
    done = await operations.skip(body.table.value, body.offset, body.reason, who.actor)
    return SkippedAndRetried(
        skipped=Skipped.model_validate(done[0]), retried=RetriedGroup.model_validate(done[1])
    )


@router.get("/operations/rebuilds")
async def rebuilds(_who: Reader, operations: Opened) -> list[Rebuild]:
    """List the rebuilds that this process was asked for, the latest first."""
    return [Rebuild.model_validate(each) for each in operations.rebuilds()]


@router.post("/operations/rebuilds", status_code=202, responses=responses(409))
async def start_rebuild(body: RebuildBody, who: Writer, operations: Opened) -> Rebuild:
    """Begin to rebuild tables beside the live ones; `GET /operations/rebuilds` says how far it is.

    Differences from the live tables are only swapped in with `accept`.
    """
    names = [each.value for each in body.tables]
    seen = operations.start_rebuild(
        names, accept=body.accept, actor=who.actor, replace_old=body.replace_old
    )
    return Rebuild.model_validate(seen)


@router.get("/operations/pool")
async def pool(_who: Reader, operations: Opened) -> Pool:
    """Say how the read side's connections are used."""
    return Pool.model_validate(operations.pool())


@router.get("/operations/tables")
async def tables(_who: Reader, operations: Opened) -> list[Sized]:
    """Say how large the read tables are."""
    return [Sized.model_validate(each) for each in await operations.table_sizes()]
