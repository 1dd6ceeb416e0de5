"""The sealed log over HTTP: what anybody can check, and what only readers of events see."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger.http.routes import log
from ledger.proof.bundle import log_paths
from ledger.proof.checking import verify_log
from ledger.proof.keys import write_key
from ledger.proof.merkle import leaf_hash, verify_consistency
from ledger.proof.notes import TlogProof
from tests.ledger.http.service import Service, a_service
from tests.ledger.proof.sealers import KEY, append, seal

SIZE = 256 + 40


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    """A service that has the routes of the log."""
    async with a_service(sqlite_url) as opened:
        opened.app.include_router(log.router)
        yield opened


@pytest.fixture
async def each_service(database_url: str) -> AsyncIterator[Service]:
    """The same on both kinds of database, one after the other."""
    async with a_service(database_url) as opened:
        opened.app.include_router(log.router)
        yield opened


async def sealed(service: Service) -> int:
    """Seal some events, twice; return the sealed size, and keep the key in the settings."""
    journal = service.ledger.journal
    await append(journal, 100)
    await seal(journal)
    await append(journal, SIZE - 100)
    return (await seal(journal)).size


async def test_a_log_that_is_fetched_can_be_verified(each_service: Service, tmp_path: Path) -> None:
    """All files of the log, read one by one, are a published log that the verifier accepts."""
    service = each_service
    size = await sealed(service)
    headers = await service.key("events:read")
    for path in ["log/checkpoint", *log_paths(size)]:
        answer = await service.client.get(f"/{path}", headers=headers)
        assert answer.status_code == 200, path
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(answer.content)
    report = verify_log(tmp_path / "log", KEY.verifier)
    assert report.size == size
    assert not report.problems


async def test_hashes_are_public_and_entries_are_not(service: Service) -> None:
    """Without a key there are checkpoint, tiles and consistency; entries and proofs are 401."""
    size = await sealed(service)
    get = service.client.get
    tile = await get("/log/tile/0/000")
    assert len(tile.content) == 256 * 32
    assert tile.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert (await get("/log/tile/0/001.p/40")).content[:32] != tile.content[:32]
    assert (await get("/log/checkpoint")).headers["content-type"].startswith("text/plain")
    assert (await get(f"/log/checkpoints/{size}")).text == (await get("/log/checkpoint")).text
    assert (await get("/log/tile/entries/000")).status_code == 401
    assert (await get("/proofs/events/0")).status_code == 401


NOT_THERE = (
    "log/tile/0/001",
    "log/tile/0/001.p/41",
    "log/tile/0/x000/000",
    "log/tile/0/1",
    "log/tile/0/000.p/256",
    "log/tile/9/000",
    "log/tile/0/a%00b",
    "log/checkpoints/7",
    "proofs/consistency?first=2&second=1",
    "proofs/consistency?first=1&second=100000",
)


async def test_what_the_log_does_not_have_is_not_found(service: Service) -> None:
    """Tiles that are not there yet, or never will be, are 404, as are other sizes."""
    await sealed(service)
    for path in NOT_THERE:
        answer = await service.client.get(f"/{path}")
        assert answer.status_code == 404, path
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_journal_that_is_not_sealed_says_so(service: Service) -> None:
    """Without a seal every path of the log is 404 with a type of its own."""
    headers = await service.key("events:read")
    for path in (
        "log/checkpoint",
        "log/tile/0/000",
        "proofs/events/0",
        "proofs/consistency?first=1",
    ):
        answer = await service.client.get(f"/{path}", headers=headers)
        assert answer.status_code == 404
        assert answer.json()["type"].endswith(":not-sealed")


async def test_proofs_can_be_checked(service: Service, tmp_path: Path) -> None:
    """A proof leads from the entry to the signed root; two sizes are consistent."""
    size = await sealed(service)
    file = tmp_path / "log.key"
    write_key(file, KEY)
    settings = service.app.state.settings
    service.app.state.settings = settings.model_copy(update={"log_key_file": file})
    headers = await service.key("events:read")
    found = (await service.client.get("/proofs/events/70?size=100", headers=headers)).json()
    entry = b64decode(found["entry"])
    assert b'"offset":70' in entry
    assert b64decode(found["leaf_hash"]) == leaf_hash(entry)
    assert found["vkey"] == KEY.vkey
    body = TlogProof.parse(found["proof"].encode()).verify(leaf_hash(entry), KEY.verifier)
    assert (body.size, found["size"], found["index"]) == (100, 100, 70)
    both = (await service.client.get("/proofs/consistency?first=100")).json()
    roots = [b64decode(both[each]["root"]) for each in ("first", "second")]
    assert roots[0] == body.root
    verify_consistency(100, size, [b64decode(each) for each in both["hashes"]], *roots)
