"""What permissions and roles allow, and that the documents say the same."""

from __future__ import annotations

import re
from pathlib import Path

from ledger.http.permissions import PERMISSIONS, ROLES, permissions_of
from tests.ledger.support import ROOT, ledger

DOCUMENT = Path(ROOT / "docs" / "authentication.md")


def rows() -> dict[str, str]:
    """Return the rows of the document's tables whose first column is a name."""
    found = re.findall(r"^\| `([\w:]+)` \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    return dict(found)


def test_what_roles_stand_for() -> None:
    """Each for its own work; only an administrator may do all."""
    assert {name: set(stands_for) for name, stands_for in ROLES.items()} == {
        "auditor": {"tables:read", "events:read", "operations:read"},
        "operator": {"tables:read", "events:read", "operations:read", "operations:write"},
        "trader": {"own:read", "orders:write", "positions:write"},
        "admin": set(PERMISSIONS),
    }


def test_permissions_add_up() -> None:
    """Own ones, of whatever name, and those of roles; a role that nobody knows stands for none."""
    assert permissions_of((), ()) == frozenset()
    assert permissions_of(("trade", "own:read"), ()) == {"trade", "own:read"}
    assert permissions_of(("trade",), ("trader", "captain")) == ROLES["trader"] | {"trade"}
    assert permissions_of(("*", "admin"), ("tables:read",)) == {"*", "admin"}
    assert permissions_of((), ("auditor", "admin")) == set(PERMISSIONS)


def test_the_document_has_each_permission() -> None:
    """With what it allows, in the same words."""
    assert {name: text for name, text in rows().items() if ":" in name} == dict(PERMISSIONS)


def test_the_document_has_each_role() -> None:
    """With all that it stands for."""
    text = {name: set(re.findall(r"`([\w:]+)`", says)) for name, says in rows().items()}
    for name, stands_for in ROLES.items():
        assert text[name] == (set() if name == "admin" else stands_for)
    assert rows()["admin"] == "all"


def test_the_command_that_registers_users_names_the_roles(sqlite_url: str) -> None:
    """Its help says which there are."""
    text = ledger(sqlite_url, "register", "--help", COLUMNS="200").stdout.decode()
    assert all(re.search(rf"\b{role}\b", text) for role in ROLES)
