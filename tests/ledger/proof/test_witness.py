"""The witness server: what it answers, what it remembers, and what it does not put up with."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from ledger.proof import witness as witness_module
from ledger.proof.merkle import EMPTY_ROOT
from ledger.proof.notes import Note, SigningKey, open_note
from ledger.proof.requests import AddCheckpoint, RequestInvalid
from ledger.proof.witness import SIZE_TYPE, State, Witness, WitnessServer, WitnessUnusable
from tests.ledger.proof.sealers import KEY
from tests.ledger.proof.witnesses import LOGS, WITNESS_KEY, Served, Tree, post, process, served

TREE = Tree()
OF_THE_PAGE = b"""old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

\xe2\x80\x94 example.com/behind-the-sofa \
Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
"""
"""The request on the page c2sp.org/tlog-witness, without its second signature."""


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Served]:
    """A witness that has seen nothing."""
    with served(tmp_path) as found:
        yield found


def test_the_request_of_the_specification_is_read_and_written() -> None:
    """Old size, hashes and checkpoint are what the page shows, byte by byte."""
    request = AddCheckpoint.parse(OF_THE_PAGE)
    assert (request.old, len(request.proof)) == (20852014, 4)
    assert request.checkpoint.startswith(b"example.com/behind-the-sofa\n20852163\n")
    assert request.render() == OF_THE_PAGE


def test_growth_is_cosigned(witness: Served) -> None:
    """Each answer is one cosignature line of the checkpoint; the same one may be shown again."""
    for old, new in ((0, 0), (0, 3), (3, 3), (3, 700), (700, 701)):
        status, line, _ = witness.post(TREE.request(old, new))
        assert status == http.client.OK, line
        note = open_note(TREE.checkpoint(new) + line.encode(), [WITNESS_KEY.cosigner])
        assert [each.name for each in note.signatures] == [KEY.name, WITNESS_KEY.name]


def test_the_latest_size_is_told(witness: Served) -> None:
    """Another old size, lower or higher, is a conflict, answered with the size that was seen."""
    assert witness.post(TREE.request(5, 7)) == (409, "0\n", SIZE_TYPE)
    witness.post(TREE.request(0, 7))
    for old, new in ((0, 9), (6, 9), (8, 9), (0, 3), (3, 3)):
        assert witness.post(TREE.request(old, new)) == (409, "7\n", SIZE_TYPE)


def test_another_history_is_not_cosigned(witness: Served) -> None:
    """Not at the same size (409), nor a larger one (422); the state stays as it was."""
    witness.post(TREE.request(0, 7))
    other = Tree("b")
    assert witness.post(other.request(7, 7)) == (409, "7\n", SIZE_TYPE)
    assert witness.post(other.request(7, 9))[0] == 422
    assert witness.post(TREE.request(7, 7))[0] == 200


def test_a_proof_must_be_exactly_right(witness: Served) -> None:
    """One that is too long, too short or changed is refused; so is one from the empty tree."""
    proof = AddCheckpoint.parse(TREE.request(3, 7)).proof
    assert witness.post(AddCheckpoint(0, proof, TREE.checkpoint(7)).render())[0] == 422
    witness.post(TREE.request(0, 3))
    for wrong in (proof[1:], proof + proof[:1], (bytes(32), *proof[1:]), ()):
        assert witness.post(AddCheckpoint(3, wrong, TREE.checkpoint(7)).render())[0] == 422
    assert witness.post(TREE.request(3, 7))[0] == 200


def test_unknown_logs_and_keys(witness: Served) -> None:
    """A log that is not configured is not found, a known one signed by another key forbidden."""
    stranger = Tree(key=SigningKey("else/where", bytes(32)))
    impostor = Tree(key=SigningKey(KEY.name, bytes(32)))
    assert witness.post(stranger.request(0, 3))[0] == 404
    assert witness.post(impostor.request(0, 3))[0] == 403
    note = Note.parse(TREE.checkpoint(3))
    altered = note.render().replace(b"\n3\n", b"\n4\n")
    assert witness.post(AddCheckpoint(0, (), altered).render())[0] == 403


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"old 0\n",
        b"\n\n",
        TREE.request(0, 3).replace(b"old 0", b"old 00"),
        TREE.request(0, 3).replace(b"old 0", b"old -1"),
        TREE.request(0, 3).replace(b"old 0", b"new 0"),
        TREE.request(0, 3).replace(b"old 0", b"old 9999999999999999999"),
        TREE.request(0, 3).replace(b"old 0\n", b"old 0\nAAAA\n"),
        TREE.request(0, 3).replace(b"old 0\n", b"old 0\n" + 64 * (b"A" * 43 + b"=\n")),
        TREE.request(0, 3).replace(b"old 0", "old \u00b2".encode()),
        TREE.request(0, 3)[:-1],
        AddCheckpoint(4, (), TREE.checkpoint(3)).render(),
    ],
    ids=range(12),
)
def test_bad_requests(witness: Served, data: bytes) -> None:
    """What is no request, or goes backwards, is answered 400, and changes nothing."""
    assert witness.post(data)[0] == 400
    assert witness.post(TREE.request(0, 3))[0] == 200


def test_random_bytes_never_break_it() -> None:
    """A request with any byte changed is read, or refused as invalid."""
    random, good = Random(5), TREE.request(3, 700)
    for _ in range(2_000):
        at = random.randrange(len(good))
        try:
            AddCheckpoint.parse(good[:at] + bytes([random.randrange(256)]) + good[at + 1 :])
        except RequestInvalid:
            continue


def test_only_add_checkpoint_is_answered(witness: Served) -> None:
    """Other paths and methods, bodies without a length and bodies that are too long are refused."""
    assert witness.post(b"", "/other")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", witness.server.port, timeout=20)
    connection.putrequest("POST", "/add-checkpoint")
    connection.putheader("Content-Length", str(witness_module.REQUEST_BYTES_MAX + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    # Without the body itself: the answer does not wait for it, and the server then hangs up.
    connection.putrequest("POST", "/add-checkpoint")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()
    connection.request("GET", "/add-checkpoint")
    assert connection.getresponse().status == 501
    connection.close()


def test_a_connection_is_used_again(witness: Served) -> None:
    """Several requests go over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", witness.server.port, timeout=20)
    connection.connect()
    first = connection.sock
    for old, new in ((0, 3), (3, 7)):
        connection.request("POST", "/add-checkpoint", TREE.request(old, new))
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (200, True)
        assert connection.sock is first
    connection.close()


def test_slow_and_silent_clients_are_cut_off(
    witness: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever does not finish a request in time loses the connection; others are answered."""
    monkeypatch.setattr(witness_module, "REQUEST_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", witness.server.port), timeout=20) as slow:
        slow.sendall(b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 100\r\n\r\nold")
        assert witness.post(TREE.request(0, 3))[0] == 200
        assert slow.recv(1) == b""


def test_too_many_connections(witness: Served) -> None:
    """Beyond the bound a connection is closed at once; there is room again when others end."""
    address = ("127.0.0.1", witness.server.port)
    held = [socket.create_connection(address, timeout=20) for _ in range(70)]
    refused = 0
    for each in held[witness_module.CONNECTIONS_MAX :]:
        with suppress(ConnectionResetError):
            assert each.recv(1) == b""
        refused += 1
    assert refused == 70 - witness_module.CONNECTIONS_MAX
    for each in held:
        each.close()
    for _ in range(1_000):
        with suppress(OSError, http.client.HTTPException):
            assert witness.post(TREE.request(0, 3))[0] == 200
            return
    raise AssertionError


def test_requests_at_once_never_go_back(tmp_path: Path) -> None:
    """Of a larger and a smaller checkpoint at once, the larger is what was seen last.

    Threads of two witnesses with the same state, which is that of two processes.
    """
    witnesses = [Witness(WITNESS_KEY, LOGS, tmp_path) for _ in range(2)]
    size = 0
    for turn in range(20):
        growths = [size + 1 + (turn + each) % 4 for each in range(4)]
        with ThreadPoolExecutor(len(growths)) as threads:
            requests = [TREE.request(size, new) for new in growths]
            asked = [witnesses[new % 2] for new in growths]
            statuses = [
                each.status for each in threads.map(Witness.add_checkpoint, asked, requests)
            ]
        cosigned = [new for new, status in zip(growths, statuses, strict=True) if status == 200]
        assert sorted(statuses) == [200, 409, 409, 409]
        with State(tmp_path).turn(KEY.name) as seen:
            assert (seen.size, seen.root != EMPTY_ROOT) == (cosigned[0], True)
        size = cosigned[0]


@pytest.mark.parametrize("death", ["before", "after"])
def test_killed_between_request_and_answer(tmp_path: Path, death: str) -> None:
    """What a killed witness may have answered is on the disk, what it has not written is not."""
    gone = (OSError, http.client.HTTPException)
    with process(tmp_path, death) as (_, port), pytest.raises(gone):
        post(port, TREE.request(0, 7))
    with process(tmp_path) as (_, port):
        expected = (409, "7\n") if death == "after" else (200, "\u2014 witness.example/w1")
        status, text, _ = post(port, TREE.request(0, 7))
        assert (status, text[: len(expected[1])]) == expected
        assert post(port, TREE.request(7, 9))[0] == 200


def test_what_cannot_be_served(tmp_path: Path, witness: Served) -> None:
    """A folder that is a file, no log at all, and an address that is taken."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(WitnessUnusable, match="state"):
        Witness(WITNESS_KEY, LOGS, file)
    with pytest.raises(WitnessUnusable, match="at least one log"):
        Witness(WITNESS_KEY, (), tmp_path)
    with pytest.raises(WitnessUnusable, match="cannot listen"):
        WitnessServer(("127.0.0.1", witness.server.port), witness.witness)
