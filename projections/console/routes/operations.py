"""Workers, parked keys, rebuilds: what is seen, and what operators do about it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form
from starlette.responses import Response

from ledger.http.permissions import OPERATIONS_READ, OPERATIONS_WRITE
from projections.console.desk import Desk, PageRoute, at_desk
from projections.console.visiting import same_origin
from projections.groups import TABLES
from projections.parking import Part
from projections.points import InvalidRequest

router = APIRouter(route_class=PageRoute, dependencies=[Depends(same_origin)])

Reader = Annotated[Desk, Depends(at_desk(OPERATIONS_READ))]
Operator = Annotated[Desk, Depends(at_desk(OPERATIONS_WRITE))]
Text = Annotated[str, Form(max_length=2000)]

PARKED_SHOWN = 100


@router.get("/operations")
async def operations(desk: Reader) -> Response:
    """Show how all is going; the page asks for itself every few seconds."""
    desk.request.state.looks = desk.request.app.state.looks
    at_work, start = desk.operations, desk.here.number("start") or 0
    return await desk.page(
        "operations.html",
        statuses=await at_work.statuses(),
        parked=await at_work.parked(Part(start=start, limit=PARKED_SHOWN)),
        start=start,
        parked_count=await at_work.parked_count(),
        rebuilds=at_work.rebuilds(),
        pool=at_work.pool(),
        sizes=await at_work.table_sizes(),
        tables=list(TABLES),
    )


@router.get("/operations/skip")
async def ask(desk: Operator) -> Response:
    """Ask for the reason before an event is left out of a table for ever."""
    table, offset = desk.here.get("table") or "", desk.here.number("offset")
    # Causes come first: what only waits for one has no error.
    for each in await desk.operations.parked(Part(table, offset, limit=1)):
        if each.offset == offset and each.error is not None:
            return await desk.page("skip.html", parked=each)
    raise InvalidRequest(f"no event at offset {offset} is parked in {table}; look again")


@router.post("/operations/skip")
async def skip(
    desk: Operator, table: Text, offset: Annotated[int, Form()], reason: Text
) -> Response:
    """Leave a parked event out of a table."""
    await desk.operations.skip(table, offset, reason.strip(), desk.principal.actor)
    return _back(desk)


@router.post("/operations/retry")
async def retry(desk: Operator, table: Text, value: Text) -> Response:
    """Fold a parked key again."""
    await desk.operations.retry(table, value, actor=desk.principal.actor)
    return _back(desk)


@router.post("/operations/rebuilds")
async def rebuild(
    desk: Operator,
    tables: Annotated[list[str] | None, Form()] = None,
    accept: Annotated[bool, Form()] = False,
    replace_old: Annotated[bool, Form()] = False,
) -> Response:
    """Fold tables afresh beside the live ones."""
    desk.operations.start_rebuild(
        tables or [], accept=accept, actor=desk.principal.actor, replace_old=replace_old
    )
    return _back(desk)


def _back(desk: Desk) -> Response:
    return desk.go(desk.here.to("operations"))
