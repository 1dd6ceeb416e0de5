"""The Merkle tree of RFC 6962 and RFC 9162 (section 2.1), with SHA-256.

A leaf's hash is SHA-256(0x00 ‖ entry), an inner node's SHA-256(0x01 ‖ left ‖ right), and the left
part of any tree is the largest full one that leaves something on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()

ReadHash = Callable[[int, int], bytes]
"""`read_hash(level, index)` returns the hash of the `index`-th full tree of 2**level leaves."""


class ProofInvalid(ValueError):
    """A proof does not show what it should; the message says why."""


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a leaf."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


def pair_up(hashes: Sequence[bytes]) -> list[bytes]:
    """Return the hashes one level up; an odd one at the end is left out."""
    return [
        sha256(b"\x01" + left + right).digest()
        for left, right in zip(hashes[::2], hashes[1::2], strict=False)
    ]


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Return the root of the tree with these leaf hashes."""
    frontier = Frontier()
    frontier.extend(hashes)
    return frontier.root()


class Frontier:
    """The right edge of a growing tree: all that is needed to append and to tell the root."""

    def __init__(self) -> None:
        self._size = 0
        self._edge: list[bytes] = []
        """By level the hash of the full tree that ends the edge there, b"" where none does."""

    @classmethod
    def of(cls, size: int, hashes: Sequence[bytes]) -> Frontier:
        """Return the edge of a tree of `size` leaves from its `hashes`, the largest tree first.

        Raises ValueError where `size` is negative or needs another number of hashes.
        """
        if size < 0 or len(hashes) != size.bit_count():
            raise ValueError(f"the edge of size {size} does not have {len(hashes)} hashes")
        frontier = cls()
        frontier._size = size
        smallest_first = iter(reversed(hashes))
        frontier._edge = [
            next(smallest_first) if size >> level & 1 else b"" for level in range(size.bit_length())
        ]
        return frontier

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._size

    @property
    def hashes(self) -> list[bytes]:
        """The hashes of the full trees that the tree is made of, the largest first."""
        return [each for each in reversed(self._edge) if each]

    def append(self, leaf: bytes) -> None:
        """Append one leaf's hash."""
        self.extend((leaf,))

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Append the hashes of many leaves, level by level as in an addition with carries."""
        nodes = list(leaves)
        self._size += len(nodes)
        level = 0
        while nodes:
            if level == len(self._edge):
                self._edge.append(b"")
            if self._edge[level]:
                nodes.insert(0, self._edge[level])
            self._edge[level] = nodes[-1] if len(nodes) % 2 else b""
            nodes = pair_up(nodes)
            level += 1

    def root(self) -> bytes:
        """Return the root; that of the empty tree is SHA-256 of nothing."""
        return join_edge(self.hashes)


def join_edge(hashes: Sequence[bytes]) -> bytes:
    """Return the root over full trees of falling sizes, the largest first."""
    if not hashes:
        return EMPTY_ROOT
    *larger, root = hashes
    for each in reversed(larger):
        root = node_hash(each, root)
    return root


def full_trees(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Name the full trees (level, index) that leaves `start` to `end` (exclusive) are made of.

    `start` must be where a tree of this many leaves can begin, as 0 always is.
    """
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def _hash_between(start: int, end: int, read_hash: ReadHash) -> bytes:
    return join_edge([read_hash(level, index) for level, index in full_trees(start, end)])


def _split(size: int) -> int:
    """Return the number of leaves on the left of a tree of `size` > 1."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_proof(index: int, size: int, read_hash: ReadHash) -> list[bytes]:
    """Prove that leaf `index` is in the tree of `size` leaves: siblings, from the leaf up.

    Raises ValueError where the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of size {size} has no leaf {index}")
    return _path(index, 0, size, read_hash)[::-1]


def _path(index: int, start: int, end: int, read_hash: ReadHash) -> list[bytes]:
    """Return the siblings on the way down to the leaf, from the top."""
    path = []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_hash_between(middle, end, read_hash))
            end = middle
        else:
            path.append(_hash_between(start, middle, read_hash))
            start = middle
    return path


def consistency_proof(old: int, new: int, read_hash: ReadHash) -> list[bytes]:
    """Prove that the first `old` leaves of the tree of size `new` are those of the tree of `old`.

    Raises ValueError unless 0 < old ≤ new: about the empty tree there is nothing to prove.
    """
    if not 0 < old <= new:
        raise ValueError(f"there is no proof from size {old} to size {new}")
    proof, start, end = [], 0, new
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            proof.append(_hash_between(middle, end, read_hash))
            end = middle
        else:
            proof.append(_hash_between(start, middle, read_hash))
            start = middle
    if start:
        proof.append(_hash_between(start, end, read_hash))
    return proof[::-1]


def verify_inclusion(
    leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check the proof that the leaf with `leaf_hash` is number `index` under `root`.

    Raises ProofInvalid with the reason.
    """
    if not 0 <= index < size:
        raise ProofInvalid(f"a tree of size {size} has no leaf {index}")
    _check_hashes(leaf_hash, *proof)
    # Where the path leaves the tree's right edge, it has siblings on both sides all the way down;
    # above, on the left alone.
    inner = (index ^ (size - 1)).bit_length()
    left = (index >> inner).bit_count()
    _check_count(len(proof), inner + left)
    result = leaf_hash
    for level, sibling in enumerate(proof):
        on_left = level >= inner or index >> level & 1
        result = node_hash(sibling, result) if on_left else node_hash(result, sibling)
    if result != root:
        raise ProofInvalid(f"the proof of leaf {index} leads to another root of size {size}")


def verify_consistency(
    old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """Check the proof that the tree of size `new` begins with the tree of size `old`.

    Raises ProofInvalid with the reason, also where `old` is 0: nothing can be proved of it.
    """
    if not 0 < old <= new:
        raise ProofInvalid(f"there is no proof from size {old} to size {new}")
    _check_hashes(*proof)
    if old == new:
        _check_count(len(proof), 0)
        if old_root != new_root:
            raise ProofInvalid(f"two roots differ at size {old}")
        return
    _follow_both(old, new, list(proof), old_root, new_root)


def _follow_both(old: int, new: int, proof: list[bytes], old_root: bytes, new_root: bytes) -> None:
    """Compute both roots from the largest full tree that ends where the old tree ends."""
    shift = (old & -old).bit_length() - 1
    index = (old - 1) >> shift
    inner = ((old - 1) ^ (new - 1)).bit_length() - shift
    _check_count(len(proof), bool(index) + inner + (index >> inner).bit_count())
    if index == 0:
        proof.insert(0, old_root)  # the old tree is that full tree itself
    as_old = as_new = proof[0]
    for level, sibling in enumerate(proof[1:]):
        if level >= inner or index >> level & 1:
            as_old = node_hash(sibling, as_old)
            as_new = node_hash(sibling, as_new)
        else:
            as_new = node_hash(as_new, sibling)
    if as_old != old_root:
        raise ProofInvalid(f"the proof leads to another root of size {old}")
    if as_new != new_root:
        raise ProofInvalid(f"the proof leads to another root of size {new}")


def _check_hashes(*hashes: bytes) -> None:
    if any(len(each) != HASH_BYTES for each in hashes):
        raise ProofInvalid(f"a hash has {HASH_BYTES} bytes")


def _check_count(found: int, needed: int) -> None:
    if found != needed:
        raise ProofInvalid(f"the proof has {found} hashes, {needed} are needed")
