"""The read side over HTTP: what the service is made of, and what other FastAPI applications take.

app = FastAPI(lifespan=lifespan)

@app.get("/open-positions")
async def open_positions(session: Annotated[AsyncSession, Depends(get_session)]) -> …
"""

from fastapi import APIRouter

from ledger.http.routes import events, log
from projections.http.opening import get_database, get_reading, get_session, lifespan
from projections.http.routes import points, tables

__all__ = ["get_database", "get_reading", "get_session", "lifespan", "read_routers"]


def read_routers() -> list[APIRouter]:
    """Return the routers of all routes that read, for an application to include."""
    return [*tables.ROUTERS, points.router, events.router, log.router]
