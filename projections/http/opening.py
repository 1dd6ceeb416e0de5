"""What an application that reads has open: the ledger, the tables, and what waits for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from fastapi import FastAPI, Request
from sqlalchemy.ext.asyncio import AsyncSession

from ledger.http import opening
from projections.database import Database
from projections.reading import Reading


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep ledger and tables open while an application runs.

    They are `app.state.ledger`, `.database` and `.reading`; `.wait_projected` waits until the
    tables show what was stored. The settings are `app.state.settings`, by default those of the
    environment.
    """
    async with opening.lifespan(app):
        settings, state = opening.settings_of(app), app.state
        async with Database(settings) as database:
            state.database = database
            state.reading = reading = Reading(settings, state.ledger.journal, database)
            state.wait_projected = reading.wait_projected
            try:
                yield
            finally:
                await reading.close()


def get_database(request: Request) -> Database:
    """Return the read side's database; a dependency."""
    return cast(Database, request.app.state.database)


def get_reading(request: Request) -> Reading:
    """Return what reads the tables, live and as of any point; a dependency."""
    return cast(Reading, request.app.state.reading)


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Give a session in which all reads see the tables at one size; a dependency."""
    async with get_database(request).session() as session:
        yield session
