"""CloudTrail: key uses, refusals, and what became of users and keys."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.domain.api_keys import ApiKeyIssued, ApiKeyRefused, ApiKeyRevoked, ApiKeyUsed
from ledger.domain.users import (
    LoginFailed,
    LoginSucceeded,
    UserDeactivated,
    UserReactivated,
    UserRegistered,
)
from tests.examples.support import Line, convert, facts, write_csv
from tests.examples.test_adapters import CLOUDTRAIL_HEADER

Converted = Callable[[str], list[Line]]


def test_events_are_those_of_the_file(
    converted: Converted, expected_counts: dict[str, Any]
) -> None:
    """Uses, refusals and effects, each as often as the file has them."""
    expected = expected_counts["cloudtrail"]
    assert Counter(map(type, facts(converted("cloudtrail")))) == {
        ApiKeyUsed: 2515,
        ApiKeyRefused: expected["with_error_code"],
        UserRegistered: expected["CreateUser"],
        UserDeactivated: expected["DeleteUser"],
        ApiKeyIssued: expected["CreateAccessKey"],
        ApiKeyRevoked: expected["DeleteAccessKey"],
        LoginSucceeded: expected["ConsoleLogin"],
    }


def test_used_keys_are_made_up_and_issued_ones_are_not(
    converted: Converted, expected_counts: dict[str, Any]
) -> None:
    """133 keys are used, none of which the file issues."""
    found = converted("cloudtrail")
    uses = (e for e in facts(found) if isinstance(e, ApiKeyUsed | ApiKeyRefused))
    used = {event.key_id for event in uses}
    made_up = [line.event for line in found if line.is_made_up()]
    keys = [event for event in made_up if isinstance(event, ApiKeyIssued)]
    assert {key.key_id for key in keys} == used
    assert len(keys) == len(used) == expected_counts["cloudtrail"]["distinct_keys_used"]
    users = [event for event in made_up if isinstance(event, UserRegistered)]
    assert {key.user_id for key in keys} <= {user.user_id for user in users}


def test_a_row_with_two_events_keeps_its_id_for_the_use(converted: Converted) -> None:
    """Twelve effects have an id of their own and name the use as their cause."""
    found = converted("cloudtrail")
    uses = {line.event_id for line in found if line.type == "ApiKeyUsed"}
    effects = [line for line in found if line.metadata.causation_id is not None]
    assert len(effects) == 12
    assert {line.metadata.causation_id for line in effects} <= uses


def test_sources_that_are_no_addresses_stand_in_the_event(converted: Converted) -> None:
    """Every use has either an ip address or the name of a service."""
    for line in converted("cloudtrail"):
        event = line.event
        if isinstance(event, ApiKeyUsed | ApiKeyRefused):
            assert (event.source is None) != (line.metadata.ip_address is None)
            assert event.resource is not None


def _row(number: int, name: str, **fields: str) -> str:
    values = {
        "event_id": f"00000000-0000-4000-8000-{number:012}",
        "event_time": "2023-07-10T11:42:18Z",
        "event_source": "iam.amazonaws.com",
        "event_name": name,
        "source_ip": "10.0.0.1",
        **fields,
    }
    return ",".join(values.get(column, "") for column in CLOUDTRAIL_HEADER.split(","))


def _events(tmp_path: Path, *rows: str) -> list[Any]:
    file = write_csv(tmp_path / "rows.csv", CLOUDTRAIL_HEADER, *rows)
    return [line.event for line in convert("cloudtrail", file)]


def test_a_name_that_comes_back_is_reactivated(tmp_path: Path) -> None:
    """The journal gives a name out once: a user made again is the same one."""
    subject = {"subject_user": "eve"}
    names = ("CreateUser", "DeleteUser", "CreateUser")
    events = _events(tmp_path, *(_row(n, name, **subject) for n, name in enumerate(names)))
    assert [type(event) for event in events] == [UserRegistered, UserDeactivated, UserReactivated]
    assert len({event.user_id for event in events}) == 1


def test_a_refused_call_has_no_effect(tmp_path: Path) -> None:
    """CreateUser with an error code registers nobody but the caller."""
    row = _row(
        1, "CreateUser", user_name="eve", key_id="k", subject_user="x", error_code="AccessDenied"
    )
    events = _events(tmp_path, row)
    assert [type(event) for event in events] == [UserRegistered, ApiKeyIssued, ApiKeyRefused]
    assert events[0].username == "eve"


@pytest.mark.parametrize(("identity", "owner"), [("AWSService", "AWSService k"), ("", "unknown k")])
def test_a_key_without_a_name_has_an_owner(tmp_path: Path, identity: str, owner: str) -> None:
    """Its owner is named after the kind of identity and the key."""
    events = _events(tmp_path, _row(1, "GetObject", key_id="k", identity_type=identity))
    assert events[0].username == owner
    assert events[1].user_id == events[0].user_id


def test_deleted_users_and_keys_are_made_up_where_needed(tmp_path: Path) -> None:
    """What is deleted without having been made existed before the file."""
    rows = (
        _row(1, "DeleteUser", subject_user="eve"),
        _row(2, "DeleteAccessKey", subject_user="eve", subject_key_id="k"),
    )
    kinds = [type(event) for event in _events(tmp_path, *rows)]
    assert kinds == [UserRegistered, UserDeactivated, ApiKeyIssued, ApiKeyRevoked]


def test_a_key_made_for_oneself_is_ones_own(tmp_path: Path) -> None:
    """CloudTrail leaves the subject out where it is the caller."""
    rows = (_row(1, "CreateAccessKey", user_name="eve", subject_key_id="k"),)
    registered, issued = _events(tmp_path, *rows)
    assert (registered.username, issued.user_id) == ("eve", registered.user_id)


def test_a_failed_console_login_is_recorded(tmp_path: Path) -> None:
    """Its error code is the reason."""
    login = {"user_name": "eve", "console_login": "Failure", "error_code": "wrong"}
    events = _events(tmp_path, _row(1, "ConsoleLogin", **login))
    assert isinstance(events[1], LoginFailed)
    assert (events[1].username, events[1].reason) == ("eve", "wrong")
