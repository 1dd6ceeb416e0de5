"""What the service says of itself is true: schemathesis asks it all that its OpenAPI allows."""

from __future__ import annotations

import pytest

from tests.service.describing import ask


@pytest.mark.parametrize(
    ("database_url", "phase"),
    [("sqlite", "examples"), ("postgresql", "fuzzing")],
    indirect=["database_url"],
)
def test_every_answer_is_one_that_the_description_allows(database_url: str, phase: str) -> None:
    """With all checks of schemathesis there is no 5xx, and no status or body that is not described.

    Good requests are accepted, bad ones refused, none is answered without authentication. This is
    the short form; `make check-api` asks for everything on both databases.
    """
    code, said = ask(database_url, "--phases", phase, "--max-examples", "2")
    assert code == 0, said[-8000:]
