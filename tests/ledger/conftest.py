"""Fixtures for the tests of the write side."""

from __future__ import annotations

import pytest

from tests.postgres import PostgresServer


@pytest.fixture
def postgres_server_in_berlin(postgres_url: str, postgres_server: PostgresServer) -> str:
    """The address of a database whose sessions live in a zone with summer time."""
    name = postgres_url.rpartition("/")[2]
    postgres_server.psql(f"ALTER DATABASE \"{name}\" SET timezone TO 'Europe/Berlin'")
    return postgres_url
