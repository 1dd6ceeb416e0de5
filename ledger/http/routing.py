"""Routers whose routes ask who calls before they look at what was sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from ledger.http.problems import COMMON, NOT_JSON


class _Request(Request):
    """A request whose body may be malformed: that is found when the route's body is checked.

    The framework reads the body before it asks for the caller, and would tell a stranger what is
    wrong with it.
    """

    async def json(self) -> Any:
        """Return the body decoded, or what no model takes in its place."""
        try:
            return json.loads(await self.body())
        except (ValueError, RecursionError):
            return NOT_JSON


class Route(APIRoute):
    """A route that reads its body so, and whose summary is the first line of its docstring.

    What a dependency says of itself as `openapi_extra` is said of the route.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        first, _, _ = (endpoint.__doc__ or "").partition("\n")
        options["summary"] = options.get("summary") or first.rstrip(".") or None
        super().__init__(path, endpoint, **options)
        for each in self.dependant.dependencies:
            extra = getattr(each.call, "openapi_extra", {})
            self.openapi_extra = {**(self.openapi_extra or {}), **extra}

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what handles a request."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return handler


def router(tag: str) -> APIRouter:
    """Return a router of the service: all its routes may answer with the common problems."""
    return APIRouter(
        tags=[tag],
        route_class=Route,
        responses=COMMON,
        generate_unique_id_function=lambda route: route.name,
    )
