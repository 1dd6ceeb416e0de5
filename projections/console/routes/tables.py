"""Tables and rows, at any moment, and as files."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ledger.event import RecordedEvent
from ledger.http.permissions import TABLES_READ
from ledger.journal import Journal
from projections.console import exporting, trading
from projections.console.desk import Desk, PageRoute, at_desk
from projections.console.here import Here
from projections.console.views import VIEWS, View
from projections.history import Change, History
from projections.keyed import projection_of
from projections.reading.paging import Filter, Page, Query, parsed_sort

router = APIRouter(route_class=PageRoute)

Reader = Annotated[Desk, Depends(at_desk(TABLES_READ))]

RESERVED = ("at", "a", "b", "sort", "cursor", "limit", "columns", "column", "operator", "text")
LIMITS, LIMIT = (25, 50, 100, 250), 50
CHANGES_SHOWN = 50
OPERATOR_NAMES = {
    "eq": "=",
    "ne": "≠",
    "lt": "<",
    "le": "≤",
    "gt": ">",
    "ge": "≥",
    "in": "is one of",
    "contains": "contains",
    "null": "is empty",
}
NULLED = {"yes": "true", "no": "false"}


class Shown(msgspec.Struct, frozen=True):
    """A change of a row with the columns before it (None for the first), and more of its event."""

    change: Change
    before: dict[str, Any] | None
    ip_address: str | None


def view_of(slug: str) -> View:
    """Return a table by its name in URLs; 404 where there is none."""
    if slug not in VIEWS:
        raise HTTPException(404, f"there is no table {slug!r}; there are {', '.join(VIEWS)}")
    return VIEWS[slug]


def query_of(view: View, here: Here) -> Query:
    """Return what a page asks for: all its parameters but the reserved ones are filters."""
    filters = tuple(Filter.parsed(name, text) for name, text in here.all_but(*RESERVED))
    limit = here.number("limit")
    return Query(
        table=view.table,
        filters=filters,
        sort=parsed_sort(here.get("sort") or ""),
        cursor=here.get("cursor"),
        limit=limit if limit in LIMITS else LIMIT,
    )


@router.get("/tables/{slug}")
async def table(slug: str, desk: Reader) -> Response:
    """Show rows of a table."""
    view, here = view_of(slug), desk.here
    if here.get("column"):
        return desk.go(_filtered(here))
    query = query_of(view, here)
    page = await desk.reading.page(query, here.at)
    return await desk.page(
        "table.html",
        view=view,
        query=query,
        filters=_removable(query, here),
        found=page,
        columns=_columns(view, page, here),
        operators=OPERATOR_NAMES,
        limits=LIMITS,
        sorted_by=dict(query.sort),
    )


def _filtered(here: Here) -> str:
    """Return the page with the filter that the form asks for."""
    column, operator = here.get("column") or "", here.get("operator") or "eq"
    text = here.get("text") or ""
    if operator == "null":
        text = NULLED.get(text.strip().lower(), text or "true")
    kept = Here(here.path, here.all_but("column", "operator", "text", "cursor"))
    return Here(here.path, (*kept.parameters, (column, f"{operator}:{text}"))).url()


def _removable(query: Query, here: Here) -> list[tuple[Filter, str]]:
    """Return the filters, each with the page that lacks it."""
    given = here.all_but(*RESERVED)
    return [
        (each, here.without(*parameter))
        for each, parameter in zip(query.filters, given, strict=True)
    ]


def _columns(view: View, page: Page, here: Here) -> tuple[str, ...]:
    if here.get("columns") == "all":
        return page.columns
    return tuple(each for each in view.leading if each in page.columns)


@router.get("/export/{slug}")
async def export(slug: str, desk: Reader) -> Response:
    """Give out all rows that match, in the order of the page, as a file."""
    view, here = view_of(slug), desk.here
    form = exporting.form_of(here.get("format"))
    query = query_of(view, Here(here.path, here.all_but("format")))
    found = await desk.reading.export(query, form, here.at)
    return exporting.attached(slug, form, found)


@router.get("/tables/{slug}/{key:path}")
async def row(slug: str, key: str, desk: Reader) -> Response:
    """Show one row at a moment, and all that led to it."""
    view, here = view_of(slug), desk.here
    point, found = await desk.reading.row(view.table, key, here.at)
    if found is None:
        raise HTTPException(404, f"{view.one} {key} does not exist at size {point.size:,}")
    history = await _history(desk, view, key, str(point.size))
    context: dict[str, Any] = {"course": None}
    if view.slug == "positions" and history.changes:
        context["course"] = await trading.course_of(desk.journal, found, history, point.size)
    return await desk.page(
        "row.html",
        view=view,
        key=key,
        point=point,
        row=found,
        note=history.note,
        total=len(history.changes),
        shown=await _newest(desk.journal, history.changes, here.number("before")),
        trading=trading,
        **context,
    )


async def _history(desk: Desk, view: View, key: str, at: str) -> History:
    """Return a row's changes; one that is only ever added has none but that."""
    if projection_of(view.table).append_only:
        return History([])
    _, history = await desk.reading.history(view.table, key, at)
    return history


async def _newest(journal: Journal, changes: Sequence[Change], before: int | None) -> list[Shown]:
    """Return some changes, the newest first, those below an offset if one is given."""
    if before is not None:
        changes = [each for each in changes if each.offset < before]
    first = max(0, len(changes) - CHANGES_SHOWN)
    chosen = changes[first:]
    events = await asyncio.gather(*(event_at(journal, each.offset) for each in chosen))
    earlier = [changes[first - 1].columns if first else None, *(each.columns for each in chosen)]
    addresses = [None if each is None else each.metadata.ip_address for each in events]
    found = [Shown(*each) for each in zip(chosen, earlier, addresses, strict=False)]
    return found[::-1]


async def event_at(journal: Journal, offset: int) -> RecordedEvent | None:
    """Return the event at an offset, None where there is none."""
    async for event in journal.read(offset, offset + 1):
        return event
    return None
