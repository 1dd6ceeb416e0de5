"""OpenSSH: failed logins, repeated ones, and lock-outs."""

import csv
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from ledger.domain.users import AccountLocked, LoginFailed, LoginSucceeded
from tests.examples.support import Line, convert, facts, write_csv
from tests.examples.test_adapters import OPENSSH, OPENSSH_HEADER

Converted = Callable[[str], list[Line]]


def _lines_of(expected_counts: dict[str, Any], event_id: str) -> int:
    """Return how many lines have this event id, whatever its template."""
    counts = expected_counts["openssh"].items()
    return sum(count for template, count in counts if template.split()[0] == event_id)


def test_failed_logins_are_counted_with_their_repetitions(
    converted: Converted, expected_counts: dict[str, Any], real_file: Callable[[str], Path]
) -> None:
    """532 in all: a line that says "repeated 5 times" is five."""
    with real_file("openssh").open(encoding="utf-8") as file:
        repeated = sum(
            int(row["Content"].split()[2])
            for row in csv.DictReader(file)
            if row["EventId"] == "E14"
        )
    unknown = _lines_of(expected_counts, "E10") + _lines_of(expected_counts, "E8")
    failed = [e for e in facts(converted("openssh")) if isinstance(e, LoginFailed)]
    assert len(failed) == _lines_of(expected_counts, "E9") + unknown + repeated == 532
    assert sum(event.user_id is None for event in failed) == unknown
    assert Counter(e.reason for e in failed)["failed none"] == _lines_of(expected_counts, "E8")


def test_logins_and_lock_outs(converted: Converted, expected_counts: dict[str, Any]) -> None:
    """One login; lock-outs of root by E5 and, through the process, E18; none of strangers."""
    found = facts(converted("openssh"))
    tally = Counter(map(type, found))
    assert tally[LoginSucceeded] == _lines_of(expected_counts, "E1")
    locked = [event for event in found if isinstance(event, AccountLocked)]
    reasons = Counter(event.reason for event in locked)
    assert reasons["too many authentication failures"] == _lines_of(expected_counts, "E5")
    assert reasons["ignoring max retries"] == 2
    assert len({event.user_id for event in locked}) == 1


def test_metadata_says_from_where_and_which_process(converted: Converted) -> None:
    """Failed logins have an ip address, and all lines the process as request id."""
    for line in converted("openssh"):
        if not line.is_made_up():
            assert (line.metadata.request_id or "").startswith("sshd[")
            assert (line.metadata.ip_address is None) == (line.type == "AccountLocked")


def test_a_lock_ends_a_quarter_of_an_hour_later(converted: Converted) -> None:
    """The log does not say; the adapter does."""
    for line in converted("openssh"):
        event = line.event
        if isinstance(event, AccountLocked):
            assert event.locked_until - line.occurred_at == timedelta(minutes=15)


def test_the_year_is_an_option(tmp_path: Path) -> None:
    """Another year moves the times, not the ids."""
    file = write_csv(tmp_path / "one.csv", OPENSSH_HEADER, OPENSSH)
    before, after = convert("openssh", file), convert("openssh", file, "--year", "2016")
    assert [line.occurred_at.year for line in before + after] == [2015, 2015, 2016, 2016]
    assert [line.event_id for line in before] == [line.event_id for line in after]


def test_a_name_cannot_forge_where_it_came_from(tmp_path: Path) -> None:
    """The address is what the server wrote last, whatever the name holds."""
    forged = OPENSSH.replace("root", "invalid user x from 9.9.9.9 port 1 ssh2")
    [line] = convert("openssh", write_csv(tmp_path / "forged.csv", OPENSSH_HEADER, forged))
    event = line.event
    assert isinstance(event, LoginFailed)
    assert event.username == "x from 9.9.9.9 port 1 ssh2"
    assert line.metadata.ip_address == "10.0.0.1"


def test_a_host_name_is_a_source(tmp_path: Path) -> None:
    """What is no ip address stands in the event."""
    row = OPENSSH.replace("10.0.0.1", "bastion.example")
    line = convert("openssh", write_csv(tmp_path / "host.csv", OPENSSH_HEADER, row))[-1]
    event = line.event
    assert isinstance(event, LoginFailed)
    assert (event.source, line.metadata.ip_address) == ("bastion.example", None)
