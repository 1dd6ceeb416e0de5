"""Whether the service lives, and whether it can do its work: for load balancers and orchestrators.

Nobody has to say who they are to ask. So the answers hold no text of the database's, and however
often they are asked for, the database is asked once a second at most.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Literal, cast

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from ledger.errors import LedgerError, SchemaMissing
from projections.database import Database
from projections.health import PairStatus, pair_statuses

LIVE_PATH, READY_PATH = "/health/live", "/health/ready"
LAG_SECONDS_MAX = 30.0
ANSWER_SECONDS_MAX = 3.0
KEPT_SECONDS = 1.0
UNREADY = 503
_ANSWERS: dict[int | str, dict[str, str]] = {UNREADY: {"description": "It can do no work now"}}

State = Literal["ok", "failed", "unknown"]


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Checks(BaseModel):
    """What has to be well for the service to be ready; what could not be looked at is unknown."""

    database: State = Field("unknown", description="The database answers.")
    schema_: State = Field("unknown", alias="schema", description="Its tables are this release's.")
    projections: State = Field(
        "unknown", description="What this process projects is not too far behind."
    )
    running: State = Field("ok", description="The process is not about to end.")


class Ready(BaseModel):
    """Whether the service can do its work."""

    status: Literal["ready", "unready"]
    checks: Checks


class Readiness:
    """Looks whether all is well, and keeps for a moment what it has seen."""

    def __init__(
        self,
        database: Database,
        *,
        is_projecting: bool,
        lag_seconds_max: float = LAG_SECONDS_MAX,
    ) -> None:
        """Take what to ask, and whether the tables are kept up to date by this process."""
        self._database = database
        self._is_projecting = is_projecting
        self._lag_seconds_max = lag_seconds_max
        self._seen = Checks()
        self._seen_at = -KEPT_SECONDS
        self._turn = asyncio.Lock()
        self.is_stopping = False

    async def look(self) -> Ready:
        """Return what is well and what is not."""
        async with self._turn:
            if monotonic() - self._seen_at >= KEPT_SECONDS:
                self._seen = await self._checks()
                self._seen_at = monotonic()
        running: State = "failed" if self.is_stopping else "ok"
        checks = self._seen.model_copy(update={"running": running})
        states = (checks.database, checks.schema_, checks.projections, checks.running)
        return Ready(status="ready" if set(states) == {"ok"} else "unready", checks=checks)

    async def _checks(self) -> Checks:
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                pairs = await pair_statuses(self._database)
        except SchemaMissing:
            return Checks(database="ok", schema="failed")
        except (LedgerError, TimeoutError):
            return Checks(database="failed")
        is_well = not self._is_projecting or all(map(self._is_well, pairs))
        return Checks(database="ok", schema="ok", projections="ok" if is_well else "failed")

    def _is_well(self, pair: PairStatus) -> bool:
        return pair.lag_seconds <= self._lag_seconds_max and not pair.is_other_version


def make_router() -> APIRouter:
    """Return the routes, which need `app.state.readiness`."""
    router = APIRouter(tags=["health"])

    @router.get(LIVE_PATH)
    async def live() -> Live:
        """Say that the process lives."""
        return Live()

    @router.get(READY_PATH, responses={**_ANSWERS, UNREADY: {**_ANSWERS[UNREADY], "model": Ready}})
    async def ready(request: Request, response: Response) -> Ready:
        """Say whether the service can do its work: with 200 if it can, else with 503."""
        seen = await cast(Readiness, request.app.state.readiness).look()
        response.status_code = 200 if seen.status == "ready" else UNREADY
        return seen

    return router
