"""What went wrong at the doors: failed logins, refused keys, lockouts, and the audit log."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from ledger.domain.users import AccountLocked
from ledger.http.permissions import TABLES_READ
from projections.console import charts
from projections.console.desk import Desk, PageRoute, at_desk
from projections.console.incidents import KINDS, Incidents, incidents
from projections.console.views import VIEWS
from projections.reading.paging import Filter, Query

router = APIRouter(route_class=PageRoute)

Reader = Annotated[Desk, Depends(at_desk(TABLES_READ))]

AUDIT = VIEWS["audit-log"]
NEWEST = (("timestamp", True),)
LOCKOUTS_SHOWN, ENTRIES_SHOWN = 10, 25
SPANS = {"day": timedelta(days=1), "week": timedelta(days=7), "month": timedelta(days=30)}
CLASSES = ("failed", "refused", "locked")


@router.get("/security")
async def security(desk: Reader) -> Response:
    """Show them as of the moment of the time bar."""
    at = desk.here.at
    locked = Filter("event_type", "eq", AccountLocked.__name__)
    lockouts = Query(AUDIT.table, (locked,), NEWEST, limit=LOCKOUTS_SHOWN)
    entries = Query(AUDIT.table, (), NEWEST, limit=ENTRIES_SHOWN)
    page = await desk.reading.page(entries, at)
    span = desk.here.get("span")
    size, days = page.point.size, SPANS.get(span or "")
    found = await incidents(desk.database, desk.journal.journal_id, size, days)
    return await desk.page(
        "security.html",
        view=AUDIT,
        found=found,
        kinds=KINDS,
        spans=SPANS,
        span=None if days is None else span,
        chart=_chart(found),
        lockouts=await desk.reading.page(lockouts, at),
        entries=page,
    )


def _chart(found: Incidents) -> str:
    series = [
        charts.Series(name, css, found.counts[kind])
        for (kind, name), css in zip(KINDS.items(), CLASSES, strict=True)
    ]
    title = "Failed logins, refused keys and lockouts over time"
    return charts.histogram("incidents", title, found.starts, found.width, series)
