"""OCSF's own words, and making reports in memory."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec

from ledger.journal import Journal
from projections.reports.ocsf import security_events
from projections.reports.order_trail import KINDS, order_trail
from projections.reports.span import Span, find_span
from projections.reports.writing import Format, Written, write_report
from tests.support import data

CLASS_FILES = {3002: "authentication", 6003: "api_activity", 3007: "account_change"}
"""3007 is so new that the data has only its predecessor, which requires the same of its own."""
PARENTS = {3: "iam", 6: "application"}
OCCURRENCES_MAX = 100_000


class Schema:
    """What OCSF requires of the events of each class."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of the reference data."""
        self._folder = data.require(folder / "ocsf")

    def of_class(self, name: str) -> dict[str, Any]:
        """Return a class as OCSF describes it."""
        found: dict[str, Any] = json.loads((self._folder / f"{name}.json").read_text())
        return found

    def required(self, class_uid: int) -> set[str]:
        """Return the required attributes of a class, those of its parents too."""
        names = ("base_event", PARENTS[class_uid // 1000], CLASS_FILES[class_uid])
        attributes = [self.of_class(name)["attributes"] for name in names]
        return {
            name
            for each in attributes
            for name, attribute in each.items()
            if isinstance(attribute, dict) and attribute.get("requirement") == "required"
        }

    def check(self, event: dict[str, Any]) -> None:
        """Hold an event against what its class requires, and its own numbers against each other."""
        class_uid, activity_id = event["class_uid"], event["activity_id"]
        assert self.required(class_uid) <= set(event), event
        assert event["type_uid"] == class_uid * 100 + activity_id
        assert event["category_uid"] == class_uid // 1000
        own = self.of_class(CLASS_FILES[class_uid])
        if class_uid != 3007:
            assert class_uid % 1000 == own["uid"]
            enum = own["attributes"]["activity_id"]["enum"]
            assert activity_id == 99 or event["activity_name"] == enum[str(activity_id)]["caption"]
        if one_of := own.get("constraints", {}).get("at_least_one"):
            assert set(one_of) & set(event)
        check_objects(event)


def check_objects(event: dict[str, Any]) -> None:
    """Hold the objects in an event against what OCSF's dictionary requires of them."""
    assert event["activity_name"]
    assert isinstance(event["time"], int)
    assert event["metadata"]["version"]
    assert {"name", "vendor_name"} <= set(event["metadata"]["product"])
    for name, one_of in {
        "user": ("uid", "name"),
        "updated_user": ("uid", "name"),
        "actor": ("user", "app_name"),
        "src_endpoint": ("ip", "name"),
        "api": ("operation",),
    }.items():
        if name in event:
            assert any(event[name].get(each) for each in one_of), (name, event)


async def reported(
    report: str, journal: Journal, output: Format, first: str | None = None, last: str | None = None
) -> tuple[bytes, Written]:
    """Return a report's bytes and what it was made of."""
    span = await find_span(journal, first, last)
    makes = {"security": security_events, "orders": order_trail}[report]
    columns = KINDS if report == "orders" else {}
    file, seen = io.BytesIO(), [0]

    def advanced(offsets: int) -> None:
        seen[0] += offsets

    rows = makes(journal, span)
    written = await write_report(report, span, rows, output, columns, file, advanced)
    assert seen == [span.stop - span.start]
    return file.getvalue(), written


async def lines_of(
    report: str, journal: Journal, first: str | None = None, last: str | None = None
) -> list[dict[str, Any]]:
    """Return a report's lines as JSON objects."""
    found, _ = await reported(report, journal, Format.NDJSON, first, last)
    return [msgspec.json.decode(line) for line in found.splitlines()]


def span_of(journal: Journal, stop: int = OCCURRENCES_MAX) -> Span:
    """Return a span from the beginning."""
    return Span(journal.name, 0, stop)
