"""The file that holds a log's private key."""

from __future__ import annotations

import os
from pathlib import Path

from ledger.errors import LedgerError
from ledger.proof.notes import NoteInvalid, SigningKey

_KEY_BYTES_MAX = 10_000


class KeyUnusable(LedgerError):
    """A key file is missing, cannot be read or written, or holds no private key."""


def write_key(file: Path, key: SigningKey) -> None:
    """Write a new file that only its owner can read; KeyUnusable where there is one already."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise KeyUnusable(
            f"{file} exists; a key is never overwritten, since what it signed could not be "
            "continued: choose another name"
        ) from error
    except OSError as error:
        raise KeyUnusable(f"cannot write {file}: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(f"{key.text}\n")
        opened.flush()
        os.fsync(opened.fileno())


def read_key(file: Path) -> SigningKey:
    """Return the key of a file; KeyUnusable where it holds none."""
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(_KEY_BYTES_MAX)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise KeyUnusable(
            f"cannot read the key {file}: {reason}; make one with `ledger keys new`"
        ) from error
    try:
        return SigningKey.from_text(text)
    except NoteInvalid as error:
        raise KeyUnusable(f"{file}: {error}") from error
