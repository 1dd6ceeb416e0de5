"""Points of the journal, how it grew, and what changed between two of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from ledger.http import routing
from ledger.http.problems import responses
from ledger.proof.log import log_of
from ledger.sqltypes import time_to_text
from projections.http.access import Reader, reader
from projections.http.answers import (
    answer,
    attached,
    described,
    streamed,
)
from projections.http.routes.tables import TABLE_OF
from projections.http.shapes import (
    ROWS_MAX,
    At,
    DifferenceShown,
    Moment,
    PointShown,
)
from projections.points import shown_point
from projections.reading.activity import activity
from projections.reading.filtering import SIZE, TIME
from projections.reading.spooling import Form

router = routing.router("points")

ReadsTables = Annotated[Reader, Depends(reader)]
End = Annotated[str, Query(pattern=f"^({SIZE}|{TIME})$", description="A size, or a time.")]


class DifferenceAsked(BaseModel):
    """Between which points, and what of it."""

    model_config = ConfigDict(extra="forbid")

    from_: Annotated[str, Field(alias="from", pattern=f"^({SIZE}|{TIME})$", examples=["1000"])]
    to: Annotated[str, Field(pattern=f"^({SIZE}|{TIME})$", examples=["2000"])]
    table: Annotated[
        str | None, Field(pattern=f"^({'|'.join(TABLE_OF)})$", description="Only this table.")
    ] = None
    start: Annotated[
        int,
        Field(
            ge=0,
            le=10**9,
            description="So many changes are passed over; then `from` and `to` must be the sizes "
            "that the first answer names.",
        ),
    ] = 0
    limit: Annotated[int, Field(ge=1, le=ROWS_MAX)] = 1000
    format: Annotated[Form | None, Field(description="All changes in one file.")] = None


class SampleShown(BaseModel):
    """A size of a journal, and when the last of so many events was recorded."""

    size: int
    recorded_at: Moment


class JournalShown(BaseModel):
    """A journal, how far it is sealed and its tables are, and how it grew."""

    name: str
    size: int
    sealed_size: int | None
    checkpoints: dict[str, int]
    activity: list[SampleShown]


@router.get(
    "/points", response_model=PointShown, responses=responses(404) | described("The point.")
)
async def read_point(by: ReadsTables, at: Annotated[At, Query()] = None) -> Response:
    """Return the point that a size or a time names, by default the journal's present end."""
    point = await by.reading.point(at)
    return answer(shown_point(by.reading.journal.name, point), point.size)


@router.get(
    "/diff",
    response_model=DifferenceShown,
    responses=responses(404) | described("What changed, or a file of it.", files=True),
)
async def read_difference(by: ReadsTables, asked: Annotated[DifferenceAsked, Query()]) -> Response:
    """Return which rows came, changed (column by column) or went between two points."""
    by.require_all()
    table = None if asked.table is None else TABLE_OF[asked.table]
    ends, reading = (asked.from_, asked.to), by.reading
    if asked.format is not None:
        return attached("diff", asked.format, await reading.export_diff(*ends, asked.format, table))
    return streamed(await reading.diff_page(*ends, table, asked.limit, asked.start))


@router.get("/journal", response_model=JournalShown, responses=described("The journal."))
async def read_journal(request: Request, by: ReadsTables) -> Response:
    """Return what there is to know of the journal as a whole."""
    journal = by.reading.journal
    seen, seal = await activity(journal), await log_of(journal).seal()
    body = {
        "name": journal.name,
        "size": seen.size,
        "sealed_size": None if seal is None else seal.size,
        "checkpoints": await by.reading.checkpoints(),
        "activity": [
            {"size": size, "recorded_at": time_to_text(moment)} for size, moment in seen.samples
        ],
    }
    return answer(body, seen.size)
