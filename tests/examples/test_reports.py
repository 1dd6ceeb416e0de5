"""Reports of the real files, held against tallies that were made without the adapters."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger.journal import Journal, open_journal
from ledger.ndjson import import_lines
from ledger.settings import Settings
from tests.examples.support import Conversion
from tests.projections.reports.support import Schema, lines_of

RealConversion = Callable[[str], Conversion]
Lines = list[dict[str, Any]]


@pytest.fixture
def schema(data_dir: Path) -> Schema:
    """OCSF's classes, from the reference data."""
    return Schema(data_dir)


async def import_all(journal: Journal, conversion: Conversion) -> None:
    """Append what an adapter made of its file."""
    async for _ in import_lines(journal, io.BytesIO(conversion.output), "lines"):
        pass


async def reported(url: str, conversion: Conversion, report: str) -> Lines:
    """Return a report of a real file."""
    async with open_journal(Settings(database_url=url)) as journal:
        await import_all(journal, conversion)
        return await lines_of(report, journal)


def from_source(lines: Lines) -> Iterator[dict[str, Any]]:
    """Leave out what the adapter made up."""
    for line in lines:
        actor = line.get("actor") or {}
        if not str(actor.get("app_name", "")).startswith("adapter:"):
            yield line


async def test_openssh(
    database_url: str,
    real_conversion: RealConversion,
    expected_counts: dict[str, Any],
    schema: Schema,
) -> None:
    """532 failed logins, 135 + 4 of them of names that nobody has, and one that succeeded."""
    lines = await reported(database_url, real_conversion("openssh"), "security")
    for line in lines:
        schema.check(line)
    counts = {name.split()[0]: count for name, count in expected_counts["openssh"].items()}
    logons = [line for line in from_source(lines) if line["type_uid"] == 300201]
    assert Counter(line["status"] for line in logons) == {"Failure": 532, "Success": counts["E1"]}
    strangers = [line for line in logons if "uid" not in line["user"]]
    assert len(strangers) == counts["E10"] + counts["E8"]
    assert all(line["src_endpoint"] for line in logons)
    locks = [line for line in lines if line["type_uid"] == 300706]
    assert len(locks) == counts["E5"] + 2


async def test_cloudtrail(
    database_url: str,
    real_conversion: RealConversion,
    expected_counts: dict[str, Any],
    schema: Schema,
) -> None:
    """Each use of a key by its owner, refused or not; users and keys that came and went."""
    lines = await reported(database_url, real_conversion("cloudtrail"), "security")
    for line in lines:
        schema.check(line)
    expected, found = expected_counts["cloudtrail"], list(from_source(lines))
    codes = Counter(line["metadata"]["event_code"] for line in found)
    assert codes == {
        "ApiKeyUsed": 2515,
        "ApiKeyRefused": expected["with_error_code"],
        "UserRegistered": expected["CreateUser"],
        "UserDeactivated": expected["DeleteUser"],
        "ApiKeyIssued": expected["CreateAccessKey"],
        "ApiKeyRevoked": expected["DeleteAccessKey"],
        "LoginSucceeded": expected["ConsoleLogin"],
    }
    uses = [
        line for line in found if line["metadata"]["event_code"] in ("ApiKeyUsed", "ApiKeyRefused")
    ]
    assert {line["class_uid"] for line in uses} == {6003}
    used = {line["actor"]["user"]["credential_uid"] for line in uses}
    assert len(used) == expected["distinct_keys_used"]
    assert all(line["actor"]["user"]["name"] for line in uses)
    read = sum(line["activity_id"] == 2 for line in uses)
    assert read == sum(
        line["api"]["operation"].startswith(("Get", "List", "Describe", "Head", "Lookup"))
        for line in uses
    )


async def test_hyperliquid(
    sqlite_url: str, real_conversion: RealConversion, real_file: Callable[[str], Path]
) -> None:
    """Every fill of the file is in the orders' trail, with its price, quantity and fee."""
    lines = await reported(sqlite_url, real_conversion("hyperliquid"), "orders")
    executed = [line for line in lines if line["activity"] == "executed"]
    with real_file("hyperliquid").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(executed) == len(rows) == 1963
    names = {"event_price": "price", "event_quantity": "size", "fee": "fee"}
    for name, column in names.items():
        own = Counter(Decimal(line[name]) for line in executed)
        assert own == Counter(Decimal(row[column]) for row in rows)
    last = {line["order_id"]: line for line in lines}
    assert {line["status"] for line in last.values()} == {"executed"}
    assert {line["leaves_quantity"] for line in last.values()} == {"0"}
