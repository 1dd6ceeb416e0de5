"""Signed texts: notes, checkpoints, cosignatures and proof files, as C2SP lays them down.

https://c2sp.org/signed-note, /tlog-checkpoint, /tlog-cosignature and /tlog-proof. All signatures
are Ed25519 (RFC 8032).
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ledger.proof.merkle import HASH_BYTES, verify_inclusion

NOTE_BYTES_MAX = 1_000_000
SIGNATURES_MAX = 100
SIZE_MAX = 2**63 - 1
PROOF_HASHES_MAX = 63

ED25519 = 0x01
"""The kind of a key that signs a note's text."""
COSIGNATURE_V1 = 0x04
"""The kind of a key that signs a checkpoint along with the time."""

_PRIVATE = "PRIVATE+KEY+"
_DASH = "\N{EM DASH} "
_PROOF_HEAD = "c2sp.org/tlog-proof@v1"
_NUMBER = re.compile("0|[1-9][0-9]{0,18}")
_KEY_ID = re.compile("[0-9a-f]{8}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


class NoteInvalid(ValueError):
    """A note, checkpoint, key or proof file has the wrong form or signature."""


def _decode(text: str) -> bytes:
    """Return the bytes of base64 in its one canonical form, so that each byte of it counts."""
    try:
        data = b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteInvalid(f"{text[:100]!r} is not base64: {error}") from error
    if _encode(data) != text:
        raise NoteInvalid(f"{text[:100]!r} is not the usual base64 of its bytes")
    return data


def _encode(data: bytes) -> str:
    return b64encode(data).decode()


def parse_number(text: str) -> int:
    """Return a size or index in its one written form; NoteInvalid where it is none."""
    if not _NUMBER.fullmatch(text) or int(text) > SIZE_MAX:
        raise NoteInvalid(f"{text[:100]!r} is not a plain number up to 2**63 - 1")
    return int(text)


def parse_hash(text: str) -> bytes:
    """Return the hash that is written in base64; NoteInvalid where it is none."""
    digest = _decode(text)
    if len(digest) != HASH_BYTES:
        raise NoteInvalid(f"{text!r} is not a hash of {HASH_BYTES} bytes")
    return digest


def _check_name(name: str) -> None:
    bad = not name or "+" in name or any(each.isspace() or each < " " for each in name)
    if bad:
        raise NoteInvalid(f"{name[:100]!r} is no name for a key: it is empty, or has a space or +")


def _key_id(name: str, kind: int, public: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


def _split_key(text: str) -> tuple[str, bytes, int, bytes]:
    """Return the name, key id, kind and key of `name+id+base64(kind ‖ key)`."""
    parts = text.split("+", 2)
    if len(parts) != 3 or not _KEY_ID.fullmatch(parts[1]):
        raise NoteInvalid("a key is written as name+key id in 8 hex digits+base64")
    name, key_id, material = parts
    _check_name(name)
    data = _decode(material)
    if len(data) != 33 or data[0] not in (ED25519, COSIGNATURE_V1):
        raise NoteInvalid(f"the key of {name} is not an Ed25519 key of kind 1 or 4")
    return name, bytes.fromhex(key_id), data[0], data[1:]


@dataclass(frozen=True)
class Signature:
    """One signature line of a note; `key_id` (4 bytes) and `name` say whose it is."""

    name: str
    key_id: bytes
    signature: bytes

    @property
    def line(self) -> str:
        """The line as it stands in the note, with its newline."""
        return f"{_DASH}{self.name} {_encode(self.key_id + self.signature)}\n"

    @classmethod
    def parse(cls, line: str) -> Signature:
        """Return the signature of a line without its newline; NoteInvalid if it is none."""
        parts = line.removeprefix(_DASH).split(" ")
        if not line.startswith(_DASH) or len(parts) != 2:
            raise NoteInvalid(f"{line[:100]!r} is not a signature line")
        _check_name(parts[0])
        data = _decode(parts[1])
        if len(data) < 5:
            raise NoteInvalid(f"the signature of {parts[0]} is too short")
        return cls(parts[0], data[:4], data[4:])

    @property
    def cosigned_at(self) -> int:
        """Seconds since 1970 at which a cosignature was made; NoteInvalid if it is none."""
        if len(self.signature) != 72:
            raise NoteInvalid(f"the signature of {self.name} is not a cosignature")
        return int.from_bytes(self.signature[:8], "big")


@dataclass(frozen=True)
class VerifierKey:
    """A public key and the name that it signs with; `kind` is ED25519 or COSIGNATURE_V1."""

    name: str
    public: bytes
    kind: int = ED25519

    @classmethod
    def parse(cls, vkey: str) -> VerifierKey:
        """Return the key that is written as `name+key id+base64(kind ‖ public key)`.

        Raises NoteInvalid, also where the key id does not belong to the key.
        """
        name, key_id, kind, public = _split_key(vkey)
        key = cls(name, public, kind)
        if key.key_id != key_id:
            raise NoteInvalid(f"the key of {name} has another key id than {key_id.hex()}")
        return key

    @property
    def key_id(self) -> bytes:
        """The four bytes that a signature begins with."""
        return _key_id(self.name, self.kind, self.public)

    @property
    def vkey(self) -> str:
        """The key in writing."""
        return f"{self.name}+{self.key_id.hex()}+{_encode(bytes([self.kind]) + self.public)}"

    def signed(self, signature: Signature) -> bool:
        """Whether a signature says that it is by this key."""
        return (signature.name, signature.key_id) == (self.name, self.key_id)

    def verify(self, text: str, signature: Signature) -> None:
        """Raise NoteInvalid unless the signature is by this key and of this text."""
        if not self.signed(signature):
            raise NoteInvalid(f"{signature.name} signed, not {self.name}+{self.key_id.hex()}")
        message, plain = text.encode(), signature.signature
        if self.kind == COSIGNATURE_V1:
            message = _cosigned_message(text, signature.cosigned_at)
            plain = plain[8:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(plain, message)
        except (InvalidSignature, ValueError) as error:
            raise NoteInvalid(f"the signature of {self.name} is not of this text") from error


class SigningKey:
    """A private key and the name that it signs with."""

    def __init__(self, name: str, private: bytes) -> None:
        _check_name(name)
        self.name = name
        self._private = Ed25519PrivateKey.from_private_bytes(private)
        self._public = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, name: str) -> SigningKey:
        """Make a new key; NoteInvalid where the name is empty or has a space or a +."""
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_text(cls, text: str) -> SigningKey:
        """Return the key that is written as `PRIVATE+KEY+name+key id+base64(1 ‖ seed)`.

        Raises NoteInvalid, and never shows the key in doing so.
        """
        line = text.strip()
        if not line.startswith(_PRIVATE):
            raise NoteInvalid(f"a private key begins with {_PRIVATE}")
        try:
            name, key_id, kind, private = _split_key(line.removeprefix(_PRIVATE))
        except NoteInvalid:
            raise NoteInvalid("the private key is damaged: it is cut off or not base64") from None
        key = cls(name, private)
        if kind != ED25519 or key.verifier.key_id != key_id:
            raise NoteInvalid(f"the private key of {name} does not fit its key id")
        return key

    def __repr__(self) -> str:
        return f"SigningKey({self.name!r})"

    @property
    def text(self) -> str:
        """The key in writing: a secret."""
        seed = _encode(bytes([ED25519]) + self._private.private_bytes_raw())
        return f"{_PRIVATE}{self.name}+{self.verifier.key_id.hex()}+{seed}"

    @property
    def verifier(self) -> VerifierKey:
        """The public key for notes."""
        return VerifierKey(self.name, self._public)

    @property
    def cosigner(self) -> VerifierKey:
        """The public key for cosignatures; a witness must use a key of its own for them."""
        return VerifierKey(self.name, self._public, COSIGNATURE_V1)

    @property
    def vkey(self) -> str:
        """The public key for notes, in writing."""
        return self.verifier.vkey

    def sign(self, note_text: str) -> Signature:
        """Sign a note's text, which ends in a newline."""
        _check_text(note_text)
        key_id = self.verifier.key_id
        return Signature(self.name, key_id, self._private.sign(note_text.encode()))

    def cosign(self, note_text: str, timestamp: int) -> Signature:
        """Sign a checkpoint's text and a time in seconds since 1970 (cosignature/v1)."""
        CheckpointBody.parse(note_text)
        message = _cosigned_message(note_text, timestamp)
        signature = timestamp.to_bytes(8, "big") + self._private.sign(message)
        return Signature(self.name, self.cosigner.key_id, signature)


def sign_cosignature(key: SigningKey, note_text: str, timestamp: int) -> Signature:
    """Sign a checkpoint's text as a witness, at `timestamp` seconds since 1970."""
    return key.cosign(note_text, timestamp)


def _cosigned_message(note_text: str, timestamp: int) -> bytes:
    if not 0 <= timestamp <= SIZE_MAX:
        raise NoteInvalid(f"a cosignature cannot be made at second {timestamp}")
    return f"cosignature/v1\ntime {timestamp}\n{note_text}".encode()


def _check_text(text: str) -> None:
    if not text.endswith("\n"):
        raise NoteInvalid("a note's text ends in a newline")
    if found := _CONTROL.search(text):
        raise NoteInvalid(f"a note has no control characters, this has one at {found.start()}")


@dataclass(frozen=True)
class Note:
    """A text with signatures; `signers` are the known keys whose signatures were verified."""

    text: str
    signatures: tuple[Signature, ...]
    signers: tuple[VerifierKey, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> Note:
        """Return a note of which no signature has been verified; NoteInvalid if it is none."""
        if len(data) > NOTE_BYTES_MAX:
            raise NoteInvalid(f"a note of {len(data)} bytes is too large")
        try:
            whole = data.decode()
        except UnicodeDecodeError as error:
            raise NoteInvalid(f"a note is UTF-8: {error}") from error
        text, empty_line, lines = whole.rpartition("\n\n")
        if not empty_line or not lines.endswith("\n"):
            raise NoteInvalid("a note is a text, an empty line and signature lines")
        _check_text(whole)
        signatures = lines[:-1].split("\n")
        if len(signatures) > SIGNATURES_MAX:
            raise NoteInvalid(f"a note has at most {SIGNATURES_MAX} signatures here")
        return cls(text + "\n", tuple(map(Signature.parse, signatures)))

    def render(self) -> bytes:
        """Return the note as it is stored and sent; NoteInvalid where it lacks a signature."""
        _check_text(self.text)
        if not self.signatures:
            raise NoteInvalid("a note has at least one signature")
        return (self.text + "\n" + "".join(each.line for each in self.signatures)).encode()


def open_note(data: bytes, keys: Sequence[VerifierKey]) -> Note:
    """Return the note with those of `keys` that signed it; signatures of others are ignored.

    Raises NoteInvalid where none of the keys signed, or a signature by one of them is wrong.
    """
    note = Note.parse(data)
    signers: dict[VerifierKey, None] = {}
    for signature in note.signatures:
        for key in keys:
            if key.signed(signature):
                key.verify(note.text, signature)
                signers[key] = None
    if not signers:
        names = ", ".join(each.name for each in note.signatures)
        wanted = " or ".join(key.vkey for key in keys)
        raise NoteInvalid(f"signed by {names[:300]}, not by {wanted}")
    return Note(note.text, note.signatures, tuple(signers))


@dataclass(frozen=True)
class CheckpointBody:
    """What a log says of itself in a checkpoint: so many entries, under this root."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text that is signed; NoteInvalid where it could not be read back as it is."""
        lines = (self.origin, str(self.size), _encode(self.root), *self.extensions)
        text = "".join(f"{line}\n" for line in lines)
        if CheckpointBody.parse(text) != self:
            raise NoteInvalid("the origin and extensions of a checkpoint are one line each")
        return text

    @classmethod
    def parse(cls, text: str) -> CheckpointBody:
        """Return what a checkpoint's text says; NoteInvalid where it is none."""
        _check_text(text)
        lines = text[:-1].split("\n")
        if len(lines) < 3 or not all(lines):
            raise NoteInvalid("a checkpoint is an origin, a size and a root, one line each")
        return cls(lines[0], parse_number(lines[1]), parse_hash(lines[2]), tuple(lines[3:]))


def open_checkpoint(
    data: bytes, key: VerifierKey, witnesses: Sequence[VerifierKey] = ()
) -> tuple[CheckpointBody, Note]:
    """Return a checkpoint that the log's `key` has signed and all `witnesses` have cosigned.

    Raises NoteInvalid where a signature is missing or wrong, or the origin is not the key's name.
    """
    note = open_note(data, (key, *witnesses))
    missing = [each.name for each in (key, *witnesses) if each not in note.signers]
    if missing:
        raise NoteInvalid(f"the checkpoint lacks the signature of {', '.join(missing)}")
    body = CheckpointBody.parse(note.text)
    if body.origin != key.name:
        raise NoteInvalid(f"the checkpoint is of {body.origin!r}, the key of {key.name!r}")
    return body, note


@dataclass(frozen=True)
class TlogProof:
    """A `.tlog-proof` file: that an entry is in a log, with the checkpoint that says so.

    `hashes` is the inclusion proof of entry `index` in the tree of the `checkpoint`, `extra` what
    anyone may have written along; it is not signed.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    @classmethod
    def parse(cls, data: bytes) -> TlogProof:
        """Return a proof of which nothing has been verified; NoteInvalid where it is none."""
        head, empty_line, checkpoint = data.partition(b"\n\n")
        if len(data) > NOTE_BYTES_MAX or not empty_line:
            raise NoteInvalid("a proof is a few lines, an empty one and a checkpoint")
        lines = head.decode(errors="replace").split("\n")
        if lines.pop(0) != _PROOF_HEAD:
            raise NoteInvalid(f"a proof begins with {_PROOF_HEAD}")
        extra = None
        if lines and lines[0].startswith("extra "):
            extra = _decode(lines.pop(0).removeprefix("extra "))
        if not lines or not lines[0].startswith("index "):
            raise NoteInvalid("a proof has a line with the index")
        if len(lines) > 1 + PROOF_HASHES_MAX:
            raise NoteInvalid(f"a proof has at most {PROOF_HASHES_MAX} hashes")
        index = parse_number(lines.pop(0).removeprefix("index "))
        return cls(index, tuple(map(parse_hash, lines)), checkpoint, extra)

    def render(self) -> bytes:
        """Return the file's content."""
        lines = [_PROOF_HEAD]
        if self.extra is not None:
            lines.append(f"extra {_encode(self.extra)}")
        lines += (f"index {self.index}", *map(_encode, self.hashes))
        return "\n".join(lines).encode() + b"\n\n" + self.checkpoint

    def verify(
        self, leaf_hash: bytes, key: VerifierKey, witnesses: Sequence[VerifierKey] = ()
    ) -> CheckpointBody:
        """Return the checkpoint under which the leaf with this hash is entry `index`.

        Raises NoteInvalid where the checkpoint is not signed as it must be, and ProofInvalid where
        the hashes do not lead from the leaf to its root.
        """
        body, _ = open_checkpoint(self.checkpoint, key, witnesses)
        verify_inclusion(leaf_hash, self.index, body.size, self.hashes, body.root)
        return body
