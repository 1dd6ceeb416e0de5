"""What somebody may hand out: nobody can give a permission of this service without having it.

So whoever may register users or issue keys, but little else, cannot make themselves more by way of
another user or key. Names that this service does not know are for other applications; who may write
users hands these out, others only what they have.
"""

from __future__ import annotations

from collections.abc import Iterable

from ledger.http.auth import Principal
from ledger.http.errors import Forbidden
from ledger.http.permissions import PERMISSIONS, USERS_WRITE, permissions_of


def check_granted(who: Principal, permissions: Iterable[str], roles: Iterable[str] = ()) -> None:
    """Raise Forbidden where any of these, or of what the roles stand for, is not theirs to give."""
    for name in sorted(permissions_of(permissions, roles) - who.permissions):
        if name in PERMISSIONS or not who.may(USERS_WRITE):
            raise Forbidden(name, f"only who has the permission {name!r} can give it to others")
