"""What changed between two pins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from ledger.http.permissions import TABLES_READ
from projections.console import exporting
from projections.console.desk import Desk, PageRoute, at_desk
from projections.console.here import Here, moment_of
from projections.console.routes.tables import view_of
from projections.console.views import OF_TABLE
from projections.points import InvalidRequest

router = APIRouter(route_class=PageRoute)

Reader = Annotated[Desk, Depends(at_desk(TABLES_READ))]

CHANGES_SHOWN = 200


@router.get("/difference")
async def difference(desk: Reader) -> Response:
    """Show the rows that came, changed or went, with their columns before and after."""
    here, found = desk.here, None
    start = here.number("start") or 0
    if here.get("a") and here.get("b"):
        found = await desk.reading.diff(*_asked(here), CHANGES_SHOWN + 1, start)
    changes = [] if found is None else found[2]
    return await desk.page(
        "difference.html",
        found=found,
        changes=changes[:CHANGES_SHOWN],
        start=start,
        is_cut=len(changes) > CHANGES_SHOWN,
        of_table=OF_TABLE,
        table=here.get("table"),
    )


@router.get("/export-difference")
async def export(desk: Reader) -> Response:
    """Give the same out as a file, whole."""
    form = exporting.form_of(desk.here.get("format"))
    first, second, table = _asked(desk.here)
    return exporting.attached(
        "diff", form, await desk.reading.export_diff(first, second, form, table)
    )


def _asked(here: Here) -> tuple[str, str, str | None]:
    """Return both moments, and which table is asked for, if only one is."""
    first, second, slug = here.get("a"), here.get("b"), here.get("table")
    if first is None or second is None:
        raise InvalidRequest("pin two moments, A and B, to see what changed between them")
    return moment_of(first), moment_of(second), None if slug is None else view_of(slug).table
