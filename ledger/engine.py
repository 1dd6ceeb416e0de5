"""SQLAlchemy engines for both databases."""

from __future__ import annotations

from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine


def postgres_dsn(url: URL) -> str:
    """Return the address as asyncpg reads it, with all options that the user gave (`sslmode`)."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def make_engine(url: URL, connect_options: dict[str, Any], **options: Any) -> AsyncEngine:
    """Return an engine; `connect_options` go to the driver, `options` to SQLAlchemy.

    On PostgreSQL the driver itself reads the address: SQLAlchemy would pass on options such as
    `sslmode` or `application_name` as arguments that the driver does not have.
    """
    if url.get_backend_name() == "sqlite":
        return create_async_engine(url, connect_args=connect_options, **options)
    connect = partial(asyncpg.connect, postgres_dsn(url), **connect_options)
    return create_async_engine(url.set(query={}), async_creator=connect, **options)
