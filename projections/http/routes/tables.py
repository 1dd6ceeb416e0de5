"""Each read table: pages of it, one row, and all that a row went through."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import unquote_to_bytes
from uuid import UUID

import msgspec
import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from starlette.routing import Match
from starlette.types import Scope

from ledger.errors import Overloaded
from ledger.http import routing
from ledger.http.calls import WAIT_SHARE, Prefer, wait_seconds_of
from ledger.http.middleware import aside
from ledger.http.problems import responses
from projections.history import Change, Window
from projections.http.access import Reader, reader
from projections.http.answers import answer, attached, described
from projections.http.shapes import (
    Asked,
    HistoryAsked,
    HistoryShown,
    RowAsked,
    one_of,
    page_of,
    parameters_of,
    row_of,
)
from projections.keyed import projection_of
from projections.points import shown_point
from projections.reading.paging import Query as TableQuery
from projections.reading.paging import parsed_sort

TABLE_OF = {
    "users": "users",
    "api-keys": "api_keys",
    "orders": "orders",
    "positions": "positions",
    "audit-log": "security_audit_logs",
    "postings": "postings",
    "balances": "book_balances",
    "marks": "marks",
}
"""The tables by their names in paths."""

KEY_CHARS_MAX = 255
CATCH_UP_SECONDS = 5.0
"""So long is waited for a size that is asked for, if the request does not say how long."""

Reading = Annotated[Reader, Depends(reader)]


class Table(msgspec.Struct, frozen=True):
    """A table and its name in paths."""

    slug: str
    name: str

    @property
    def has_uuids(self) -> bool:
        """Whether its keys are UUIDs, and not names that may have slashes."""
        projection = projection_of(self.name)
        return isinstance(projection.table.c[projection.key].type, sa.Uuid)

    def query(self, asked: Asked, by: Reader, rows_max: int) -> TableQuery:
        """Return what is asked for, of the rows that are the caller's to read."""
        return TableQuery(
            self.name,
            (*asked.filters(), *by.filters(self.name)),
            parsed_sort(asked.sort or ""),
            asked.cursor,
            min(asked.limit, rows_max),
        )

    def missing(self, key: str) -> HTTPException:
        """Return the error for a row that is not there, or is not the caller's to read."""
        return HTTPException(404, f"{self.slug} has no row {key[:100]!r} that you may read here")


async def caught_up(
    request: Request, by: Reader, table: Table, asked: RowAsked, prefer: str | None
) -> dict[str, str]:
    """Wait for the table where that is asked for; return the header that says so.

    Raises NotCaughtUp where a size was asked for and has not come in time.
    """
    settings, wanted = request.app.state.settings, wait_seconds_of(prefer)
    seconds = CATCH_UP_SECONDS if wanted is None else wanted
    seconds = min(seconds, WAIT_SHARE * settings.http_timeout_seconds)
    if asked.at_least is None and wanted is None:
        return {}
    with aside(request) as may_wait:
        if not may_wait:
            raise Overloaded("too many requests wait for the tables; try again")
        if asked.at_least is not None:
            await by.reading.wait_for_table(table.name, asked.at_least, seconds)
        elif not await by.reading.wait_projected(await by.reading.journal.size(), seconds):
            return {}
    return {} if wanted is None else {"Preference-Applied": f"wait={wanted:g}"}


def make_router(table: Table) -> APIRouter:
    """Return the routes of a table."""
    router = routing.router(table.slug)
    _add_page(router, table)
    _add_history(router, table)  # first, since a key may have slashes
    _add_row(router, table)
    return router


def _add_page(router: APIRouter, table: Table) -> None:
    projection = projection_of(table.name)

    async def page(request: Request, by: Reading, asked: Asked, prefer: Prefer = None) -> Response:
        query = table.query(asked, by, request.app.state.settings.http_page_rows_max)
        applied = await caught_up(request, by, table, asked, prefer)
        if asked.format is not None:
            found = attached(
                table.slug,
                asked.format,
                await by.reading.export(query, asked.format, asked.at, tells_all=by.reads_all),
            )
        else:
            read = await by.reading.page(query, asked.at)
            point = shown_point(by.reading.journal.name, by.told(read.point))
            body = {"point": point, "rows": read.rows, "next": read.next_cursor}
            found = answer(body, read.point.size)
        found.headers.update(applied)
        return found

    page.__annotations__["asked"] = Annotated[parameters_of(projection), Query()]
    router.get(
        f"/{table.slug}",
        name=f"read {table.slug}",
        operation_id=f"read_{table.name}",
        description=f"Return rows of `{table.name}`, live or as of a point, or all as a file.",
        response_model=page_of(row_of(projection)),
        responses=responses(404) | described("A page, or a file.", files=True),
    )(page)


def _add_row(router: APIRouter, table: Table) -> None:
    async def row(
        request: Request,
        by: Reading,
        key: Any,
        asked: Annotated[RowAsked, Query()],
        prefer: Prefer = None,
    ) -> Response:
        by.filters(table.name)
        applied = await caught_up(request, by, table, asked, prefer)
        point, found = await by.reading.row(table.name, str(key), asked.at)
        if found is None or not by.may_see(table.name, found):
            raise table.missing(str(key))
        shown = shown_point(by.reading.journal.name, by.told(point))
        answered = answer({"point": shown, "row": found}, point.size)
        answered.headers.update(applied)
        return answered

    row.__annotations__["key"] = _key_of(table)
    router.get(
        f"/{table.slug}/{_key_path(table)}",
        name=f"read one of {table.slug}",
        operation_id=f"read_one_of_{table.name}",
        description=f"Return one row of `{table.name}`, live or as of a point.",
        response_model=one_of(row_of(projection_of(table.name))),
        responses=responses(404) | described("The row."),
    )(row)


def _add_history(router: APIRouter, table: Table) -> None:
    async def history(
        request: Request, by: Reading, key: Any, asked: Annotated[HistoryAsked, Query()]
    ) -> Response:
        if by.filters(table.name):
            await _check_there(by, table, str(key), asked.at)
        limit = min(asked.limit, request.app.state.settings.http_page_rows_max)
        window = Window(asked.after, limit + 1)
        point, found = await by.reading.history(table.name, str(key), asked.at, window)
        if not found.changes:
            await _check_there(by, table, str(key), asked.at)
        shown = list(map(_state, found.changes[:limit]))
        body = {
            "point": shown_point(by.reading.journal.name, by.told(point)),
            "states": shown,
            "next": shown[-1]["offset"] if len(found.changes) > limit else None,
        }
        return answer(body, point.size)

    history.__annotations__["key"] = _key_of(table)
    router.add_api_route(
        f"/{table.slug}/{_key_path(table)}/history",
        history,
        methods=["GET"],
        route_class_override=_HistoryRoute,
        name=f"read the history of one of {table.slug}",
        operation_id=f"read_history_of_one_of_{table.name}",
        description=f"Return all states of a row of `{table.name}`, and what led to each.",
        response_model=HistoryShown,
        responses=responses(404) | described("Its states."),
    )


async def _check_there(by: Reader, table: Table, key: str, at: str | None) -> None:
    """Raise 404 where a row is not there, or is not the caller's to read.

    Without a point the journal's end counts, as for histories.
    """
    point = await by.reading.point(at)
    _, found = await by.reading.row(table.name, key, str(point.size))
    if found is None or not by.may_see(table.name, found):
        raise table.missing(key)


class _HistoryRoute(routing.Route):
    """A path that ends with `/history`, where the slash is none that was sent as part of a key."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a path as it was sent."""
        sent = scope.get("raw_path") or scope["path"].encode()
        last = sent.partition(b"?")[0].rpartition(b"/")[2]
        if unquote_to_bytes(last) != b"history":
            return Match.NONE, {}
        return super().matches(scope)


def _state(change: Change) -> dict[str, Any]:
    state = msgspec.structs.asdict(change)
    state["row"] = state.pop("columns")
    return state


def _key_path(table: Table) -> str:
    return "{key:uuid}" if table.has_uuids else "{key:path}"


def _key_of(table: Table) -> Any:
    if table.has_uuids:
        return UUID
    return Annotated[str, Path(min_length=1, max_length=KEY_CHARS_MAX, pattern=r"^[^\x00]+$")]


ROUTERS = [make_router(Table(slug, name)) for slug, name in TABLE_OF.items()]
