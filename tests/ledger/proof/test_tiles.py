"""Tiles, bundles and their paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.proof.merkle import (
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from ledger.proof.tiles import (
    TILE_WIDTH,
    Span,
    TileInvalid,
    TileTree,
    bundle_path,
    decode_bundle,
    encode_bundle,
    hash_reader,
    parse_tile_path,
    partial_spans,
    tile_path,
    tile_spans,
)
from tests.ledger.proof.logs import tile_files

LEAVES = [leaf_hash(str(number).encode()) for number in range(70_000)]
sizes = st.one_of(st.integers(0, 1_500), st.integers(0, len(LEAVES)))


def test_paths_are_those_of_the_specification() -> None:
    """The examples of tlog-tiles: index 1234067, partial tiles, entries."""
    assert tile_path(0, 1234067) == "tile/0/x001/x234/067"
    assert tile_path(1, 0, 8) == "tile/1/000.p/8"
    assert tile_path(63, 1000, 1) == "tile/63/x001/000.p/1"
    assert bundle_path(5) == "tile/entries/005"
    assert bundle_path(1234067, 255) == "tile/entries/x001/x234/067.p/255"


def test_a_log_of_70000_entries_has_the_tiles_of_the_specification() -> None:
    """273 full and one of width 112 at level 0, a full one and one of 17, and one of width 1."""
    spans = list(tile_spans(0, 70_000))
    assert spans[:273] == [Span(0, index, 256) for index in range(273)]
    assert spans[273:] == [Span(0, 273, 112), Span(1, 0, 256), Span(1, 1, 17), Span(2, 0, 1)]
    assert list(partial_spans(70_000)) == [Span(0, 273, 112), Span(1, 1, 17), Span(2, 0, 1)]


def test_a_log_of_256_entries_has_the_tiles_of_the_specification() -> None:
    """A full tile of level 0 and one of width 1 at level 1, and no empty one."""
    assert list(tile_spans(0, 256)) == [Span(0, 0, 256), Span(1, 0, 1)]


@given(
    st.none() | st.integers(0, 63),
    st.integers(0, 10**12),
    st.integers(1, TILE_WIDTH),
)
def test_paths_can_be_read_back(level: int | None, index: int, width: int) -> None:
    """Each path names one tile or bundle."""
    path = bundle_path(index, width) if level is None else tile_path(level, index, width)
    assert parse_tile_path(path) == (level, index, width)


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/1",
        "tile/64/000",
        "tile/00/000",
        "tile/0/x000/001",
        "tile/0/001/002",
        "tile/0/x001",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/300",
        "tile/0/000.p/01",
        "tile/0/\N{ARABIC-INDIC DIGIT ZERO}00",
        "tile/entries",
        "/tile/0/000",
        "tile/0/000\n",
    ],
)
def test_other_paths_are_refused(path: str) -> None:
    """What no tile is published at is not taken for a tile."""
    with pytest.raises(TileInvalid):
        parse_tile_path(path)


@pytest.mark.parametrize(("level", "index", "width"), [(64, 0, 1), (-1, 0, 1), (0, -1, 1)])
def test_there_is_no_path_for_what_is_no_tile(level: int, index: int, width: int) -> None:
    """Levels go to 63, indexes begin at 0."""
    with pytest.raises(TileInvalid):
        tile_path(level, index, width)


@pytest.mark.parametrize("width", [0, 257])
def test_a_tile_has_1_to_256_hashes(width: int) -> None:
    """There is no path for an empty tile or one that is too wide."""
    with pytest.raises(TileInvalid):
        tile_path(0, 0, width)
    with pytest.raises(TileInvalid):
        bundle_path(0, width)


@given(st.lists(st.binary(max_size=300), max_size=TILE_WIDTH))
def test_bundles_can_be_read_back(entries: list[bytes]) -> None:
    """Entries come out as they went in; a bundle that is cut off or runs on is refused."""
    data = encode_bundle(entries)
    assert decode_bundle(data) == entries
    for wrong in (data[:-1], data + b"\0", data + b"\0\1"):
        if wrong != data:
            with pytest.raises(TileInvalid):
                decode_bundle(wrong)


def test_a_bundle_has_the_form_of_the_specification() -> None:
    """A big-endian length of 16 bits before each entry, up to 65,535 bytes and 256 entries."""
    assert encode_bundle([b"ab", b""]) == b"\x00\x02ab\x00\x00"
    assert encode_bundle([bytes(65_535)])[:2] == b"\xff\xff"
    for entries in ([bytes(65_536)], [b""] * 257):
        with pytest.raises(TileInvalid):
            encode_bundle(entries)
    with pytest.raises(TileInvalid):
        decode_bundle(bytes(2 * 257))


@given(st.lists(sizes, min_size=1, max_size=5))
def test_a_growing_tree_hands_out_the_tiles_of_each_size(steps: list[int]) -> None:
    """Full tiles once, partial ones of the size; stored and loaded again at any size."""
    tree = TileTree()
    made: dict[str, bytes] = {}
    for size in sorted(steps):
        before = tree.size
        full = tree.extend(LEAVES[before:size])
        partial = tree.partial_tiles()
        now = {tile_path(each.level, each.index, each.width): each.hashes for each in full}
        assert not now.keys() & made.keys()
        made |= now
        stored = {(each.level, each.index): each.hashes for each in partial}
        paths = {tile_path(each.level, each.index, each.width): each.hashes for each in partial}
        assert made | paths == tile_files(LEAVES[:size])
        assert {each.path for each in tile_spans(before, size)} <= (now | paths).keys()
        assert tree.root() == root_of(LEAVES[:size])
        tree = TileTree.load(size, lambda level, index, _: stored[level, index])  # noqa: B023
        assert tree.size == size


@given(st.integers(0, len(LEAVES)), st.integers(0, len(LEAVES)))
def test_spans_are_the_tiles_that_growth_makes(one: int, other: int) -> None:
    """What a size has and a smaller one had not."""
    old, new = sorted((one, other))
    at_new = {each.path for each in tile_spans(0, new)}
    assert {each.path for each in tile_spans(old, new)} == at_new - {
        each.path for each in tile_spans(0, old)
    }


def test_a_log_does_not_shrink() -> None:
    """There are no spans from a size to a smaller one."""
    with pytest.raises(ValueError, match="does not grow"):
        list(tile_spans(2, 1))


@given(st.integers(1, len(LEAVES)), st.data())
def test_proofs_are_made_from_tiles(size: int, random: st.DataObject) -> None:
    """The tiles of a size are enough for each proof within it."""
    files = tile_files(LEAVES[:size])
    read_hash = hash_reader(size, lambda *tile: files[tile_path(*tile)])
    index = random.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, read_hash)
    verify_inclusion(LEAVES[index], index, size, proof, root_of(LEAVES[:size]))
    old = random.draw(st.integers(1, size))
    proof = consistency_proof(old, size, read_hash)
    verify_consistency(old, size, proof, root_of(LEAVES[:old]), root_of(LEAVES[:size]))
    with pytest.raises(ValueError, match="no full tree"):
        read_hash(0, size)


def test_a_tile_with_too_few_hashes_is_refused() -> None:
    """Neither proofs nor a tree to go on with are made from a tile that is cut off."""
    short = b"".join(LEAVES[:2])
    with pytest.raises(TileInvalid, match=r"tile/0/000.p/3 has 2 hashes, 3 are needed"):
        TileTree.load(3, lambda *_: short)
    with pytest.raises(TileInvalid, match="3 are needed"):
        hash_reader(3, lambda *_: short)(0, 0)
    with pytest.raises(TileInvalid, match="whole hashes"):
        TileTree.load(3, lambda *_: bytes(97))
