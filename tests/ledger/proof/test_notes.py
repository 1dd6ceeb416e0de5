"""Signed notes, checkpoints, cosignatures and proof files."""

from __future__ import annotations

from base64 import b64decode
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from ledger.proof.merkle import ProofInvalid, inclusion_proof, leaf_hash, root_of
from ledger.proof.notes import (
    COSIGNATURE_V1,
    CheckpointBody,
    Note,
    NoteInvalid,
    Signature,
    SigningKey,
    TlogProof,
    VerifierKey,
    open_checkpoint,
    open_note,
    sign_cosignature,
)
from tests.ledger.proof.logs import KEY, checkpoint, flipped

WITNESS = SigningKey("witness.example/w", bytes(range(32, 64)))

# https://c2sp.org/signed-note, "Verifier keys"
EXAMPLE_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE_NOTE = (
    "This is an example message.\n"
    "\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXm"
    "RKuwHjG1Yu72IneyaQM=\n"
).encode()
# https://c2sp.org/signed-note, the note at the top of the page
POEM = (
    "Ognuno sta solo sul cuor della terra\n"
    "trafitto da un raggio di sole:\n"
    "\n"
    "ed è subito sera.\n"
    "\n"
    "— quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMou"
    "FSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=\n"
).encode()
# https://c2sp.org/tlog-checkpoint and, with the witness's line, https://c2sp.org/tlog-cosignature
SOFA_TEXT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
SOFA_LINE = (
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhc"
    "yv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
)
WITNESS_LINE = (
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX"
    "3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)
# The documentation of golang.org/x/mod/sumdb/note, whose format signed-note is
GO_KEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
GO_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpR"
    "Zb6KE6RyyBwJnAM=\n"
)


def test_the_example_of_signed_note_verifies() -> None:
    """The key of the page has the id given there, and signed the message given there."""
    key = VerifierKey.parse(EXAMPLE_VKEY)
    assert (key.name, key.key_id.hex(), key.kind) == ("example.com/foo", "530d903a", 1)
    public = "e932791ae6e7a840a46164c904786426d5e7821dd8b29a00d61cae72afdd4da4"
    assert key.public.hex() == public
    assert key.vkey == EXAMPLE_VKEY
    note = open_note(EXAMPLE_NOTE, [key])
    assert note.text == "This is an example message.\n"
    assert note.signers == (key,)
    assert note.render() == EXAMPLE_NOTE


def test_the_text_of_a_note_may_have_empty_lines() -> None:
    """The last empty line divides the poem of signed-note from its signature."""
    note = Note.parse(POEM)
    assert note.text.endswith("raggio di sole:\n\ned è subito sera.\n")
    [signature] = note.signatures
    assert signature.name == "quasimodo.example/salvatore"
    assert signature.key_id.hex() == "367ba04b"
    assert len(signature.signature) == 64
    assert note.render() == POEM


def test_the_example_of_tlog_checkpoint_is_read() -> None:
    """Origin, size, root and signer as the page gives them."""
    data = (SOFA_TEXT + "\n" + SOFA_LINE).encode()
    note = Note.parse(data)
    body = CheckpointBody.parse(note.text)
    root = b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
    assert body == CheckpointBody("example.com/behind-the-sofa", 20852163, root)
    assert body.text == SOFA_TEXT
    assert [each.name for each in note.signatures] == [body.origin]
    assert note.render() == data


def test_the_example_of_tlog_cosignature_is_read() -> None:
    """The witness signed at second 1679315147, and over the message that the page shows."""
    note = Note.parse((SOFA_TEXT + "\n" + SOFA_LINE + WITNESS_LINE).encode())
    assert [each.line for each in note.signatures] == [SOFA_LINE, WITNESS_LINE]
    assert note.signatures[1].cosigned_at == 1679315147
    with pytest.raises(NoteInvalid, match="not a cosignature"):
        _ = note.signatures[0].cosigned_at
    signed = f"cosignature/v1\ntime 1679315147\n{SOFA_TEXT}".encode()
    ours = sign_cosignature(WITNESS, SOFA_TEXT, 1679315147)
    public = Ed25519PublicKey.from_public_bytes(WITNESS.cosigner.public)
    public.verify(ours.signature[8:], signed)
    assert ours.signature[:8] == note.signatures[1].signature[:8]


def test_the_example_of_the_first_implementation_is_signed_alike() -> None:
    """A key, its public key and its signature are those of sumdb/note, byte for byte."""
    key = SigningKey.from_text(GO_KEY)
    assert (key.text, key.vkey) == (GO_KEY, GO_VKEY)
    assert key.sign(GO_TEXT).line == GO_LINE
    open_note(Note(GO_TEXT, (key.sign(GO_TEXT),)).render(), [VerifierKey.parse(GO_VKEY)])


def test_a_new_key_can_be_written_and_read() -> None:
    """What one process writes another signs and verifies with; no two keys are alike."""
    key = SigningKey.generate("ledger/main")
    again = SigningKey.from_text(key.text + "\n")
    assert again.vkey == key.vkey != SigningKey.generate("ledger/main").vkey
    VerifierKey.parse(key.vkey).verify("text\n", again.sign("text\n"))


def test_a_private_key_does_not_show() -> None:
    """Neither its representation nor an error has the key in it."""
    secret = GO_KEY.split("+", 4)[4]
    assert secret not in repr(SigningKey.from_text(GO_KEY))
    for text in (GO_KEY[:-1], GO_KEY.replace("c74f", "c74e"), GO_KEY.replace("+AY", "+BY")):
        with pytest.raises(NoteInvalid) as caught:
            SigningKey.from_text(text)
        assert secret[3:20] not in str(caught.value)


@pytest.mark.parametrize("text", ["", "PeterNeumann", GO_VKEY, GO_KEY.replace("Peter", "Pe ter")])
def test_what_is_no_private_key_is_refused(text: str) -> None:
    """A public key, or something else, is not signed with."""
    with pytest.raises(NoteInvalid):
        SigningKey.from_text(text)


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "example.com/foo",
        EXAMPLE_VKEY.replace("530d903a", "530d903b"),
        EXAMPLE_VKEY.replace("530d903a", "530D903A"),
        EXAMPLE_VKEY.replace("/foo", "/ foo"),
        EXAMPLE_VKEY.replace("/foo", "/bar"),
        EXAMPLE_VKEY.replace("example.com/foo", ""),
        EXAMPLE_VKEY[:-4],
        EXAMPLE_VKEY[:-1] + "!",
        EXAMPLE_VKEY.replace("+Ae", "+Ce"),
    ],
)
def test_what_is_no_public_key_is_refused(vkey: str) -> None:
    """Wrong key ids, names, kinds and lengths do not go unnoticed."""
    with pytest.raises(NoteInvalid):
        VerifierKey.parse(vkey)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\N{NO-BREAK SPACE}b"])
def test_a_name_that_would_break_the_line_is_refused(name: str) -> None:
    """Key names have no spaces and no plus."""
    with pytest.raises(NoteInvalid):
        SigningKey.generate(name)


def test_signatures_of_others_are_ignored() -> None:
    """An unknown key's signature counts for nothing and does no harm."""
    other = SigningKey("ledger/main", bytes(32))
    note = Note("text\n", (other.sign("text\n"), KEY.sign("text\n"))).render()
    assert open_note(note, [KEY.verifier]).signers == (KEY.verifier,)
    with pytest.raises(NoteInvalid, match="signed by ledger/main, ledger/main, not by witness"):
        open_note(note, [WITNESS.verifier])


def test_a_wrong_signature_of_a_known_key_spoils_the_note() -> None:
    """Even where another known key did sign."""
    note = Note("text\n", (WITNESS.sign("other\n"), KEY.sign("text\n"))).render()
    with pytest.raises(NoteInvalid, match=r"signature of witness\.example/w is not of this"):
        open_note(note, [KEY.verifier, WITNESS.verifier])


@given(st.randoms(use_true_random=False))
def test_each_byte_of_a_note_counts(random: Random) -> None:
    """A note with any one byte changed is refused."""
    note = checkpoint([leaf_hash(b"a")])
    with pytest.raises(NoteInvalid):
        open_checkpoint(flipped(note, random), KEY.verifier)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"text\n",
        b"text\n\n",
        b"text\n\nno signature\n",
        EXAMPLE_NOTE[:-1],
        EXAMPLE_NOTE + b"\n",
        EXAMPLE_NOTE.replace(b"\n\n", b"\n"),
        EXAMPLE_NOTE.replace(b" an ", b"\tan\t"),
        EXAMPLE_NOTE.replace(b" an ", b" \xff "),
        EXAMPLE_NOTE.replace(b"aQM=", b"aQN="),
        "text\n\n— name AAAA\n".encode(),
        b"x" * 1_000_001,
        b"text\n\n" + EXAMPLE_NOTE.partition(b"\n\n")[2] * 101,
    ],
    ids=range(14),
)
def test_what_is_no_note_is_refused(data: bytes) -> None:
    """Notes are UTF-8 without control characters, with an empty line before the signatures."""
    with pytest.raises(NoteInvalid):
        Note.parse(data)


def test_what_is_no_note_is_not_written() -> None:
    """A text without a newline at its end is not signed, a note without signatures not made."""
    with pytest.raises(NoteInvalid):
        KEY.sign("text")
    with pytest.raises(NoteInvalid):
        Note("text\n", ()).render()


def test_sixteen_signatures_are_accepted() -> None:
    """A verifier must take at least that many."""
    keys = [SigningKey(f"witness/{number}", bytes([number] * 32)) for number in range(16)]
    note = Note("text\n", tuple(key.sign("text\n") for key in keys)).render()
    assert len(open_note(note, [key.verifier for key in keys]).signers) == 16


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1),
    st.integers(0, 2**63 - 1),
    st.binary(min_size=32, max_size=32),
    st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)),
)
def test_checkpoints_can_be_read_back(
    origin: str, size: int, root: bytes, extensions: list[str]
) -> None:
    """What is written is what is read."""
    body = CheckpointBody(origin, size, root, tuple(extensions))
    assert CheckpointBody.parse(body.text) == body


ROOT = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin\n5\n",
        f"origin\n5\n{ROOT}",
        f"\n5\n{ROOT}\n",
        f"origin\n05\n{ROOT}\n",
        f"origin\n-5\n{ROOT}\n",
        f"origin\n9223372036854775808\n{ROOT}\n",
        f"origin\n5\n{ROOT[4:]}\n",
        f"origin\n5\n{ROOT[:-1]}\n",
        f"origin\n5\n{ROOT}\n\n",
        f"origin\n5\n{ROOT}\n\nextension\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    """Sizes are plain numbers, roots 32 bytes, and no line is empty."""
    with pytest.raises(NoteInvalid):
        CheckpointBody.parse(text)


@pytest.mark.parametrize("body", [("a\nb", 1, bytes(32)), ("a", -1, bytes(32)), ("a", 1, b"")])
def test_a_checkpoint_that_could_not_be_read_back_is_not_written(
    body: tuple[str, int, bytes],
) -> None:
    """A line break in the origin, say, would make another checkpoint of it."""
    with pytest.raises(NoteInvalid):
        _ = CheckpointBody(*body).text


def test_a_checkpoint_is_of_the_log_whose_key_signed_it() -> None:
    """The origin is the key's name; a witness's signature alone does not do."""
    text = CheckpointBody("ledger/other", 0, root_of([])).text
    with pytest.raises(NoteInvalid, match="is of 'ledger/other', the key of 'ledger/main'"):
        open_checkpoint(Note(text, (KEY.sign(text),)).render(), KEY.verifier)
    text = CheckpointBody("ledger/main", 0, root_of([])).text
    note = Note(text, (WITNESS.cosign(text, 1),)).render()
    with pytest.raises(NoteInvalid, match="lacks the signature of ledger/main"):
        open_checkpoint(note, KEY.verifier, [WITNESS.cosigner])


def test_witnesses_must_have_cosigned_where_they_are_asked_for() -> None:
    """With the key for cosignatures; a plain signature of the same key is something else."""
    leaves = [leaf_hash(b"a")]
    cosigned = checkpoint(leaves, cosigners=[WITNESS])
    body, note = open_checkpoint(cosigned, KEY.verifier, [WITNESS.cosigner])
    assert body.size == 1
    assert note.signatures[1].cosigned_at == 1_800_000_000
    assert VerifierKey.parse(WITNESS.cosigner.vkey).kind == COSIGNATURE_V1
    with pytest.raises(NoteInvalid, match="lacks the signature of witness"):
        open_checkpoint(checkpoint(leaves), KEY.verifier, [WITNESS.cosigner])
    with pytest.raises(NoteInvalid, match="lacks the signature of witness"):
        open_checkpoint(cosigned, KEY.verifier, [WITNESS.verifier])


def test_the_time_of_a_cosignature_is_signed_too() -> None:
    """A cosignature cannot be given another time, nor be made before 1970."""
    text = CheckpointBody("ledger/main", 0, root_of([])).text
    made = WITNESS.cosign(text, 5)
    moved = Signature(made.name, made.key_id, (6).to_bytes(8, "big") + made.signature[8:])
    with pytest.raises(NoteInvalid, match="not of this text"):
        WITNESS.cosigner.verify(text, moved)
    for seconds in (-1, 2**63):
        with pytest.raises(NoteInvalid):
            WITNESS.cosign(text, seconds)


def test_only_checkpoints_are_cosigned() -> None:
    """A witness does not sign just any text."""
    with pytest.raises(NoteInvalid):
        sign_cosignature(WITNESS, "text\n", 5)


LEAVES = [leaf_hash(bytes([number])) for number in range(11)]


def made_proof(index: int = 3, extra: bytes | None = None) -> TlogProof:
    """Return a proof of one of the leaves, cosigned."""

    def read_hash(level: int, at: int) -> bytes:
        return root_of(LEAVES[at << level : (at + 1) << level])

    hashes = tuple(inclusion_proof(index, len(LEAVES), read_hash))
    return TlogProof(index, hashes, checkpoint(LEAVES, cosigners=[WITNESS]), extra)


@pytest.mark.parametrize("index", range(len(LEAVES)))
@pytest.mark.parametrize("extra", [None, b"", b"\x00more"])
def test_proof_files_can_be_read_and_verified(index: int, extra: bytes | None) -> None:
    """A proof written and read shows its leaf, and no other."""
    proof = TlogProof.parse(made_proof(index, extra).render())
    assert proof == made_proof(index, extra)
    assert proof.verify(LEAVES[index], KEY.verifier, [WITNESS.cosigner]).size == len(LEAVES)
    with pytest.raises(ProofInvalid):
        proof.verify(LEAVES[index - 1], KEY.verifier)


def test_a_proof_file_has_the_form_of_the_specification() -> None:
    """Head, extra data, index, hashes, an empty line, and the checkpoint as it is."""
    head, _, rest = made_proof(extra=b"data").render().decode().partition("\n\n")
    lines = head.split("\n")
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", "extra ZGF0YQ==", "index 3"]
    assert [b64decode(line) for line in lines[3:]] == list(made_proof().hashes)
    assert rest.encode() == made_proof().checkpoint


@given(st.randoms(use_true_random=False))
def test_each_byte_of_a_proof_file_counts(random: Random) -> None:
    """A proof with any one byte changed is refused, but for the witness's line, unless asked for.

    What is in `extra` is not signed, so there is none here.
    """
    data = flipped(made_proof().render(), random)
    with pytest.raises((NoteInvalid, ProofInvalid)):
        TlogProof.parse(data).verify(LEAVES[3], KEY.verifier, [WITNESS.cosigner])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"tlog-proof@v1", b"tlog-proof@v2"),
        (b"index 3", b"index 03"),
        (b"index 3\n", b""),
        (b"index 3\n", b"index 3\n" + b"A" * 43 + b"=\n"),
        (b"index 3\n", b"index 3\n" + (b"A" * 43 + b"=\n") * 64),
        (b"index 3\n", b"index 3\nAAAA\n"),
        (b"index 3\n", b"extra !\nindex 3\n"),
        (b"\n\n", b"\n"),
    ],
)
def test_what_is_no_proof_file_is_refused(old: bytes, new: bytes) -> None:
    """Wrong heads, indexes, hashes and a missing checkpoint."""
    data = made_proof().render().replace(old, new)
    with pytest.raises((NoteInvalid, ProofInvalid)):
        TlogProof.parse(data).verify(LEAVES[3], KEY.verifier)
