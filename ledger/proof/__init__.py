"""Proof that a journal was not altered: Merkle tree, tiles, signed checkpoints, a verifier."""
