"""Between the rows that a fold has in memory and the chunks that a snapshot keeps of them.

A chunk is `SHA-256 (32 bytes) ‖ 1 if it is the last of its table, else 0 (1 byte) ‖ zlib(JSON)`.
The checksum also covers which chunk of which snapshot it is, so none can stand in for another. The
JSON is an array of rows, each an array of its columns: it holds whole numbers of any size, and is
decoded faster than MessagePack. Amounts are text with all their digits and exponents.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from typing import Any, cast
from uuid import UUID

import msgspec
import sqlalchemy as sa

from ledger.errors import LedgerError
from projections.model import Model
from projections.projection import Projection, itself

FORMAT = 1
"""A snapshot of another format is never read."""

CHUNK_ROWS = 10_000

_CHECKSUM_BYTES = 32
_COMPRESSION = 1
_FLAGS = (b"\0", b"\1")

_Values = tuple[Any, ...]

AsId = Callable[[UUID], Any]
"""What a state makes of ids: `itself`, or `str` where events come through a lens."""


class Damaged(LedgerError):
    """A chunk of a snapshot is missing, or is not what was stored."""

    exit_code = 3


class Inexact(LedgerError):
    """A row holds what would not come back as it was; the fold must not put it there."""

    exit_code = 3


def pack(projection: Projection[Model], rows: Iterable[Model], snapshot: str) -> Iterator[bytes]:
    """Yield the chunks of a table, at least one; `snapshot` names what they are a part of.

    Raises Inexact.
    """
    values = (msgspec.structs.astuple(cast("Any", row)) for row in rows)
    chunk, number, is_last = list(islice(values, CHUNK_ROWS)), 0, False
    while not is_last:
        following = list(islice(values, CHUNK_ROWS))
        is_last = not following
        content = _FLAGS[is_last] + zlib.compress(_exact(projection, chunk), _COMPRESSION)
        yield _checksum(projection, snapshot, number, content) + content
        chunk, number = following, number + 1


def _exact(projection: Projection[Any], chunk: list[_Values]) -> bytes:
    """Return the rows as JSON, from which the very same rows come back."""
    text = _encode(chunk)
    if _decoder(projection, itself)(text) != chunk:
        raise Inexact(
            f"a row of {projection.name} would not come back from a snapshot as it is; see to it "
            "that its fold puts only values of its columns' types there, and JSON into JSON columns"
        )
    return text


def unpack(
    projection: Projection[Model],
    body: bytes | None,
    snapshot: str,
    number: int,
    as_id: AsId = itself,
) -> tuple[list[Model], bool]:
    """Return the rows of a table's chunk, and whether it is the last.

    `as_id` is as for `Group.state`. Raises Damaged.
    """
    if body is None:
        raise Damaged(f"chunk {number} of {projection.name} is missing")
    checksum, content = body[:_CHECKSUM_BYTES], body[_CHECKSUM_BYTES:]
    if checksum != _checksum(projection, snapshot, number, content):
        raise Damaged(f"chunk {number} of {projection.name} is not what was stored")
    decode = _decoder(projection, as_id)
    rows = [projection.row(*values) for values in decode(zlib.decompress(content[1:]))]
    return rows, content[:1] == _FLAGS[True]


def _checksum(projection: Projection[Any], snapshot: str, number: int, content: bytes) -> bytes:
    digest = sha256(f"{snapshot} {projection.name} {number}\n".encode())
    digest.update(content)
    return digest.digest()


def _plain(value: Any) -> str:
    """Return an amount of a class of its own as the amount that it is."""
    if isinstance(value, Decimal):
        return str(value)
    raise Inexact(f"{type(value).__name__} has no place in a snapshot")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


@lru_cache(maxsize=64)
def _decoder(projection: Projection[Any], as_id: AsId) -> Callable[[bytes], list[_Values]]:
    """Return the function from JSON to the values of many rows."""
    columns = tuple(_value_type(column.type, as_id) for column in projection.table.columns)
    values: Any = tuple.__class_getitem__(columns)
    return msgspec.json.Decoder(list[values]).decode


def _value_type(column_type: sa.types.TypeEngine[Any], as_id: AsId) -> Any:
    """Return the type of a column's values in memory."""
    kept = column_type
    if isinstance(column_type, sa.types.TypeDecorator):
        kept = column_type.impl_instance
    if isinstance(kept, sa.JSON):
        return Any
    python_type = kept.python_type
    return (str if python_type is UUID and as_id is str else python_type) | None
