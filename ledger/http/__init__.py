"""The ledger over HTTP: what the service is made of, and what other FastAPI applications take.

app = FastAPI(lifespan=lifespan)
install(app, audits=True)

@app.get("/mine")
async def mine(
who: Annotated[Principal, Depends(require_api_key("own:read"))],
journal: Annotated[Journal, Depends(get_journal)],
) -> …
"""

from fastapi import APIRouter

from ledger.http.auditing import AuditMiddleware
from ledger.http.auth import Principal, require, require_api_key
from ledger.http.calls import Call, call
from ledger.http.opening import get_journal, get_ledger, install, lifespan
from ledger.http.routes import (
    api_keys,
    executions,
    marks,
    orders,
    positions,
    sessions,
    streams,
    users,
)

__all__ = [
    "AuditMiddleware",
    "Call",
    "Principal",
    "call",
    "get_journal",
    "get_ledger",
    "install",
    "lifespan",
    "require",
    "require_api_key",
    "write_routers",
]


def write_routers() -> list[APIRouter]:
    """Return the routers of all routes that write, for an application to include in this order.

    Routes are looked at one after the other, so those of most requests come first.
    """
    modules = (orders, marks, executions, positions, users, api_keys, sessions, streams)
    return [module.router for module in modules]
