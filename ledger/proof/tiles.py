"""Tiles and entry bundles of a C2SP tlog-tiles log (https://c2sp.org/tlog-tiles).

A tile has up to 256 hashes side by side: the tile at (level, index) those of the full trees of
256**level leaves from number 256 * index on. A bundle has the entries of a tile of level 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct

from ledger.proof.merkle import HASH_BYTES, Frontier, ReadHash, join_edge, pair_up

TILE_WIDTH = 256
TILE_BITS = 8
TILE_LEVEL_MAX = 63
ENTRY_BYTES_MAX = 65_535

ReadTile = Callable[[int, int, int], bytes]
"""`read_tile(level, index, width)` returns the hashes of a tile, at least `width` of them."""

_LENGTH = Struct(">H")
_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/)*[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


class TileInvalid(ValueError):
    """A tile, a bundle or a path does not have the form that it must have."""


@dataclass(frozen=True, slots=True)
class Span:
    """Which tile: its level, its index there, and its width in hashes."""

    level: int
    index: int
    width: int

    @property
    def path(self) -> str:
        """Where the tile is published."""
        return tile_path(self.level, self.index, self.width)


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile with its hashes side by side, 32 bytes each."""

    level: int
    index: int
    hashes: bytes

    @property
    def width(self) -> int:
        """Number of hashes."""
        return len(self.hashes) // HASH_BYTES


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """Return where a tile is published, as `tile/0/x001/x234/067` or `tile/1/000.p/8`.

    Raises TileInvalid for a level, an index or a width that no tile can have.
    """
    if not 0 <= level <= TILE_LEVEL_MAX:
        raise TileInvalid(f"a tile's level is 0 to {TILE_LEVEL_MAX}, not {level}")
    return f"tile/{level}/{_numbered(index, width)}"


def bundle_path(index: int, width: int = TILE_WIDTH) -> str:
    """Return where an entry bundle is published, as `tile/entries/000` or `….p/8`."""
    return f"tile/entries/{_numbered(index, width)}"


def _numbered(index: int, width: int) -> str:
    if index < 0 or not 1 <= width <= TILE_WIDTH:
        raise TileInvalid(f"there is no tile with index {index} and width {width}")
    parts = [f"{index % 1000:03}"]
    while index := index // 1000:
        parts.append(f"x{index % 1000:03}")
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return "/".join(reversed(parts)) + partial


def parse_tile_path(path: str) -> tuple[int | None, int, int]:
    """Return the level (None for an entry bundle), index and width that a path names.

    Raises TileInvalid for anything that `tile_path` and `bundle_path` do not write.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise TileInvalid(f"{path[:100]!r} is not the path of a tile")
    index = int(re.sub("[x/]", "", match["index"]))
    width = int(match["width"] or TILE_WIDTH)
    level = None if match["level"] == "entries" else int(match["level"])
    written = bundle_path(index, width) if level is None else tile_path(level, index, width)
    if path != written:
        raise TileInvalid(f"{path[:100]!r} should be {written}")
    return level, index, width


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """Return the bundle of up to 256 entries: two bytes with its length before each.

    Raises TileInvalid where an entry is larger than 65,535 bytes, or there are too many.
    """
    parts: list[bytes] = []
    for entry in entries:
        if len(entry) > ENTRY_BYTES_MAX:
            raise TileInvalid(f"an entry of {len(entry)} bytes is too large for a bundle")
        parts += (_LENGTH.pack(len(entry)), entry)
    if len(parts) > 2 * TILE_WIDTH:
        raise TileInvalid(f"{len(parts) // 2} entries are too many for a bundle")
    return b"".join(parts)


def decode_bundle(data: bytes) -> list[bytes]:
    """Return the entries of a bundle; TileInvalid where it ends within one or has too many."""
    entries, fits = split_bundle(data)
    if not fits:
        raise TileInvalid(f"the bundle ends within one of its entries, after {len(data)} bytes")
    if len(entries) > TILE_WIDTH:
        raise TileInvalid(f"the bundle has {len(entries)} entries, at most {TILE_WIDTH} fit")
    return entries


def split_bundle(data: bytes) -> tuple[list[bytes], bool]:
    """Return the entries of a bundle, the last perhaps cut off, and whether the bundle is whole."""
    entries: list[bytes] = []
    at, end = 0, len(data)
    while at + 1 < end:
        start = at + 2
        at = start + (data[at] << 8 | data[at + 1])
        entries.append(data[start:at])
    if at < end:
        entries.append(b"")  # of which only half the length is there
    return entries, at == end


def split_hashes(hashes: bytes) -> list[bytes]:
    """Return the hashes of a tile one by one; TileInvalid where it ends within one."""
    if len(hashes) % HASH_BYTES:
        raise TileInvalid(f"{len(hashes)} bytes are not a number of whole hashes")
    return [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]


def tile_spans(old_size: int, new_size: int) -> Iterator[Span]:
    """Name the tiles that are new or wider at `new_size`, level by level, in order.

    Tiles that only were partial for a size between are left out.
    """
    if not 0 <= old_size <= new_size:
        raise ValueError(f"a log does not grow from size {old_size} to {new_size}")
    level, old, new = 0, old_size, new_size
    while old != new:
        for index in range(old // TILE_WIDTH, new // TILE_WIDTH):
            yield Span(level, index, TILE_WIDTH)
        if new % TILE_WIDTH:
            yield Span(level, new // TILE_WIDTH, new % TILE_WIDTH)
        level, old, new = level + 1, old // TILE_WIDTH, new // TILE_WIDTH


def partial_spans(size: int) -> Iterator[Span]:
    """Name the partial tiles of a log of this size, level by level."""
    level = 0
    while size:
        if size % TILE_WIDTH:
            yield Span(level, size // TILE_WIDTH, size % TILE_WIDTH)
        level, size = level + 1, size // TILE_WIDTH


class TileTree:
    """A growing tree that hands out its tiles; it holds the partial ones, at most 255 hashes each.

    Where hashes come from more than one process or run, `load` goes on from the partial tiles.
    """

    def __init__(self) -> None:
        self._size = 0
        self._partial: list[list[bytes]] = []

    @classmethod
    def load(cls, size: int, read_tile: ReadTile) -> TileTree:
        """Return the tree of `size` leaves from its partial tiles.

        Raises TileInvalid where one of them has fewer hashes than it must have.
        """
        tree = cls()
        tree._size = size
        for span in partial_spans(size):
            tree._partial += [[] for _ in range(len(tree._partial), span.level + 1)]
            tree._partial[span.level] = _first_hashes(read_tile, span)
        return tree

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._size

    def extend(self, leaves: Sequence[bytes]) -> list[Tile]:
        """Append the hashes of leaves; return the tiles that are full now, lower levels first."""
        return [
            Tile(level, (first + at) // TILE_WIDTH, b"".join(hashes[at : at + TILE_WIDTH]))
            for level, first, hashes in self.grow(leaves)
            for at in range(0, len(hashes) - TILE_WIDTH + 1, TILE_WIDTH)
        ]

    def grow(self, leaves: Sequence[bytes]) -> Iterator[tuple[int, int, list[bytes]]]:
        """Append the hashes of leaves; yield what each level's tiles hold from there on.

        These are: the level, the place of the first of the hashes in it, which begins a tile, and
        the hashes. The tree is whole again when all levels have been taken.
        """
        self._size += len(leaves)
        level, hashes = 0, list(leaves)
        while hashes:
            if level == len(self._partial):
                self._partial.append([])
            hashes = self._partial[level] + hashes
            full = len(hashes) - len(hashes) % TILE_WIDTH
            self._partial[level] = hashes[full:]
            yield level, (self._size >> TILE_BITS * level) - len(hashes), hashes
            hashes = roots_of_tiles(hashes[:full])
            level += 1

    def partial_tiles(self) -> list[Tile]:
        """Return the partial tiles, level by level."""
        return [
            Tile(level, (self._size >> TILE_BITS * level) // TILE_WIDTH, b"".join(hashes))
            for level, hashes in enumerate(self._partial)
            if hashes
        ]

    def root(self) -> bytes:
        """Return the root of the whole tree."""
        edge: list[bytes] = []
        for hashes in reversed(self._partial):
            frontier = Frontier()
            frontier.extend(hashes)
            edge += frontier.hashes
        return join_edge(edge)


def roots_of_tiles(hashes: list[bytes]) -> list[bytes]:
    """Return the root of each 256 hashes, of which there is a whole number of times."""
    for _ in range(TILE_BITS):
        hashes = pair_up(hashes)
    return hashes


def hash_reader(size: int, read_tile: ReadTile) -> ReadHash:
    """Return what `merkle` makes proofs of, read from the tiles of a log of `size` leaves.

    The last few tiles read are kept. TileInvalid where a tile has too few hashes, ValueError for
    a full tree that a log of this size does not have.
    """

    @lru_cache(maxsize=16)
    def tile(level: int, index: int) -> list[bytes]:
        width = min(TILE_WIDTH, (size >> TILE_BITS * level) - index * TILE_WIDTH)
        return _first_hashes(read_tile, Span(level, index, width))

    def read_hash(level: int, index: int) -> bytes:
        if not 0 <= (index + 1) << level <= size:
            raise ValueError(f"a log of size {size} has no full tree {index} of level {level}")
        level, above = divmod(level, TILE_BITS)
        number, at = divmod(index << above, TILE_WIDTH)
        hashes = tile(level, number)[at : at + (1 << above)]
        while len(hashes) > 1:
            hashes = pair_up(hashes)
        return hashes[0]

    return read_hash


def _first_hashes(read_tile: ReadTile, span: Span) -> list[bytes]:
    hashes = split_hashes(read_tile(span.level, span.index, span.width))
    if len(hashes) < span.width:
        raise TileInvalid(f"{span.path} has {len(hashes)} hashes, {span.width} are needed")
    return hashes[: span.width]
