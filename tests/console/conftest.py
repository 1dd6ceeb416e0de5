"""A small trading day behind a real server, and a real browser in front of it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI
from playwright.async_api import Browser, async_playwright

from projections.serving.app import make_app
from projections.serving.running import Parts
from tests import browser as browsers
from tests.console import day as days
from tests.console.day import Day

START_SECONDS = 30


@pytest.fixture(scope="session")
def day(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Day:
    """The day, in a database of its own for all tests of the console."""
    folder = tmp_path_factory.mktemp("console")
    shutil.copy(migrated_sqlite, folder / "ledger.db")
    return asyncio.run(days.make(days.settings_of(folder)))


@pytest.fixture(scope="package")
def address(day: Day) -> Iterator[str]:
    """Where the service with the console listens; it projects what is appended.

    It ends with these tests: Hypothesis takes its use of random numbers for that of other tests.
    """
    with served(make_app(day.settings, parts=Parts(project=True))) as found:
        yield found


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an application from a thread of this process; give its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    begun = threading.Event()
    startup = server.startup

    async def start(sockets: object = None) -> None:
        await startup()
        begun.set()

    server.startup = start  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert begun.wait(START_SECONDS)
        [listening] = server.servers[0].sockets
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One browser for all tests; each visit is one of its own."""
    async with async_playwright() as playwright:
        started = await browsers.launch(playwright)
        yield started
        await started.close()
