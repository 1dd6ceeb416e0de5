"""The body of an add-checkpoint request (C2SP tlog-witness)."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

from ledger.proof.notes import PROOF_HASHES_MAX, NoteInvalid, parse_hash, parse_number

_OLD = "old "


class RequestInvalid(ValueError):
    """A request has the wrong form; the message says why."""


@dataclass(frozen=True)
class AddCheckpoint:
    """A signed checkpoint and the proof (hashes of 32 bytes) that it continues that of size `old`.

    The checkpoint is bytes as they were received: nothing of it has been checked.
    """

    old: int
    proof: tuple[bytes, ...]
    checkpoint: bytes

    @classmethod
    def parse(cls, data: bytes) -> AddCheckpoint:
        """Return the request that the bytes hold; RequestInvalid where they hold none."""
        head, empty_line, checkpoint = data.partition(b"\n\n")
        if not empty_line:
            raise RequestInvalid("a request is an old size, hashes, an empty line and a checkpoint")
        try:
            lines = head.decode("ascii").split("\n")
            if not lines[0].startswith(_OLD):
                raise RequestInvalid("a request begins with the old size")
            old = parse_number(lines.pop(0).removeprefix(_OLD))
            if len(lines) > PROOF_HASHES_MAX:
                raise RequestInvalid(f"a proof has at most {PROOF_HASHES_MAX} hashes")
            return cls(old, tuple(map(parse_hash, lines)), checkpoint)
        except (UnicodeDecodeError, NoteInvalid) as error:
            raise RequestInvalid(str(error)) from error

    def render(self) -> bytes:
        """Return the request as it is sent."""
        lines = (f"{_OLD}{self.old}", *(b64encode(each).decode() for each in self.proof))
        return "".join(f"{line}\n" for line in lines).encode() + b"\n" + self.checkpoint
