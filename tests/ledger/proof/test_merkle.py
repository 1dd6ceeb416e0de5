"""The Merkle tree and its proofs."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.proof.merkle import (
    EMPTY_ROOT,
    Frontier,
    ProofInvalid,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from tests.support import data

VECTORS = 196
LEAVES = [leaf_hash(str(number).encode()) for number in range(600)]
sizes = st.integers(1, len(LEAVES))


def defined_root(leaves: Sequence[bytes]) -> bytes:
    """Return the Merkle Tree Hash word for word as RFC 6962 defines it."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"").digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    both = defined_root(leaves[:split]) + defined_root(leaves[split:])
    return sha256(b"\x01" + both).digest()


def read_hash(level: int, index: int) -> bytes:
    """Return the hash of a full tree over the leaves."""
    held = LEAVES[index << level : (index + 1) << level]
    assert len(held) == 1 << level
    return defined_root(held)


def vectors() -> list[dict[str, Any]]:
    """Return the reference proofs, good and bad; none where they are not there."""
    path = data.folder() / "merkle_vectors.json"
    return json.loads(path.read_text())["vectors"] if path.exists() else []


def test_all_reference_proofs_are_there() -> None:
    """None of the proofs goes unchecked."""
    data.require(data.folder() / "merkle_vectors.json")
    assert len(vectors()) == VECTORS


def decoded(hashes: list[str] | None) -> list[bytes]:
    """Return hashes in bytes."""
    return [b64decode(each) for each in hashes or ()]


@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: vector["case"])
def test_a_reference_proof_is_judged_as_it_should_be(vector: dict[str, Any]) -> None:
    """Good proofs verify, bad ones are refused (transparency-dev/merkle)."""
    proof = decoded(vector["proof"])
    if vector["kind"] == "inclusion":
        leaf, root = decoded([vector["leafHash"], vector["root"]])
        arguments: tuple[Any, ...] = (leaf, vector["leafIdx"], vector["treeSize"], proof, root)
        verify: Callable[..., None] = verify_inclusion
    else:
        roots = decoded([vector["root1"], vector["root2"]])
        arguments = (vector["size1"], vector["size2"], proof, *roots)
        verify = verify_consistency
    if vector["wantErr"]:
        with pytest.raises(ProofInvalid):
            verify(*arguments)
    else:
        verify(*arguments)


def test_hashes_are_those_of_the_rfc() -> None:
    """Leaves and nodes have prefixes of their own; the empty tree is SHA-256 of nothing."""
    assert leaf_hash(b"") == sha256(b"\0").digest()
    assert node_hash(b"a" * 32, b"b" * 32) == sha256(b"\1" + b"a" * 32 + b"b" * 32).digest()
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(st.lists(st.integers(0, 90), max_size=8))
def test_the_root_is_as_defined_however_leaves_come(steps: list[int]) -> None:
    """Appending in any steps, and going on from a stored edge, gives the defined root."""
    frontier, size = Frontier(), 0
    for step in steps:
        frontier.extend(LEAVES[size : size + step])
        size = min(size + step, len(LEAVES))
        frontier = Frontier.of(frontier.size, frontier.hashes)
        assert (frontier.size, frontier.root()) == (size, defined_root(LEAVES[:size]))
    frontier.append(LEAVES[0])
    assert frontier.root() == defined_root([*LEAVES[:size], LEAVES[0]])


def test_an_edge_must_have_the_hashes_of_its_size() -> None:
    """A stored edge with a hash too many or too few is refused."""
    for size, hashes in ((3, 1), (4, 2), (0, 1), (-1, 0)):
        with pytest.raises(ValueError, match="does not have"):
            Frontier.of(size, LEAVES[:hashes])


def test_the_root_at_each_size_is_as_defined() -> None:
    """All small sizes, not only those that a search hits on."""
    for size in range(130):
        assert root_of(LEAVES[:size]) == defined_root(LEAVES[:size])


@st.composite
def inclusions(draw: st.DrawFn) -> tuple[bytes, int, int, list[bytes], bytes]:
    """Draw what `verify_inclusion` takes, all of it right."""
    size = draw(sizes)
    index = draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, read_hash)
    return LEAVES[index], index, size, proof, defined_root(LEAVES[:size])


@st.composite
def consistencies(draw: st.DrawFn) -> tuple[int, int, list[bytes], bytes, bytes]:
    """Draw what `verify_consistency` takes, all of it right."""
    new = draw(sizes)
    old = draw(st.integers(1, new))
    proof = consistency_proof(old, new, read_hash)
    return old, new, proof, defined_root(LEAVES[:old]), defined_root(LEAVES[:new])


def spoilt(value: Any, random: st.DataObject) -> Any:
    """Return a number, a hash or a proof with one thing changed."""
    if isinstance(value, int):
        return value ^ 1 << random.draw(st.integers(0, 12))
    if isinstance(value, list):
        at = random.draw(st.integers(0, len(value)))
        if at == len(value):
            return [*value, LEAVES[0]]
        kept = random.draw(st.sampled_from([[], [spoilt(value[at], random)]]))
        return [*value[:at], *kept, *value[at + 1 :]]
    at = random.draw(st.integers(0, len(value) - 1))
    return value[:at] + bytes([value[at] ^ 1 << random.draw(st.integers(0, 7))]) + value[at + 1 :]


@given(inclusions(), st.data())
def test_inclusion_proofs_verify_and_nothing_else_does(
    right: tuple[bytes, int, int, list[bytes], bytes], random: st.DataObject
) -> None:
    """A proof made verifies; with a byte, the index or the number of hashes changed it does not.

    The size is left out: the path of some leaves is the same in trees of several sizes, and then
    only the root tells them apart, which belongs to one size by the checkpoint's signature.
    """
    verify_inclusion(*right)
    at = random.draw(st.sampled_from([0, 1, 3, 4]))
    wrong: list[Any] = list(right)
    wrong[at] = spoilt(wrong[at], random)
    with pytest.raises(ProofInvalid):
        verify_inclusion(*wrong)


@given(inclusions(), st.integers(1, 1000))
def test_an_inclusion_proof_is_of_the_size_of_its_root(
    right: tuple[bytes, int, int, list[bytes], bytes], other: int
) -> None:
    """A proof verifies with another size only where the path is the same in both trees."""
    leaf, index, size, proof, root = right

    def path(size: int) -> tuple[int, int]:
        inner = (index ^ (size - 1)).bit_length()
        return inner, (index >> inner).bit_count()

    if other > index and path(other) == path(size):
        verify_inclusion(leaf, index, other, proof, root)
    else:
        with pytest.raises(ProofInvalid):
            verify_inclusion(leaf, index, other, proof, root)


@given(consistencies(), st.data())
def test_consistency_proofs_verify_and_nothing_else_does(
    right: tuple[int, int, list[bytes], bytes, bytes], random: st.DataObject
) -> None:
    """A proof made verifies; with a byte of it or of a root changed it does not."""
    verify_consistency(*right)
    wrong: list[Any] = list(right)
    at = random.draw(st.sampled_from([2, 3, 4]))
    wrong[at] = spoilt(wrong[at], random)
    with pytest.raises(ProofInvalid):
        verify_consistency(*wrong)


def test_consistency_proofs_of_all_small_sizes_verify_for_their_old_size_alone() -> None:
    """Every pair of sizes to 40; the proof for another old size is refused."""
    roots = [defined_root(LEAVES[:size]) for size in range(41)]
    for new in range(1, 41):
        for old in range(1, new + 1):
            proof = consistency_proof(old, new, read_hash)
            verify_consistency(old, new, proof, roots[old], roots[new])
            for other in range(new + 2):
                if other != old:
                    with pytest.raises(ProofInvalid):
                        verify_consistency(other, new, proof, roots[old], roots[new])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 3), (9, 4)])
def test_there_is_no_inclusion_proof_outside_the_tree(index: int, size: int) -> None:
    """Making and verifying refuse a leaf that the tree does not have."""
    with pytest.raises(ValueError, match="has no leaf"):
        inclusion_proof(index, size, read_hash)
    with pytest.raises(ProofInvalid, match="has no leaf"):
        verify_inclusion(LEAVES[0], index, size, [], LEAVES[0])


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 1), (2, 1), (-1, 1)])
def test_there_is_no_consistency_proof_from_nothing_or_backwards(old: int, new: int) -> None:
    """Making and verifying refuse sizes between which nothing can be proved."""
    with pytest.raises(ValueError, match="no proof from"):
        consistency_proof(old, new, read_hash)
    with pytest.raises(ProofInvalid, match="no proof from"):
        verify_consistency(old, new, [], EMPTY_ROOT, EMPTY_ROOT)
