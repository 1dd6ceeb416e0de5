"""Proofs are verified in the browser, by the bytes alone, and fail where one of them is another."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.async_api import Browser, expect

from ledger.journal import open_journal
from ledger.proof.merkle import (
    ReadHash,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_inclusion,
)
from ledger.proof.notes import CheckpointBody, SigningKey, TlogProof, VerifierKey, open_checkpoint
from tests.browser import visit
from tests.console.day import KEY, Day
from tests.console.pages import log_in
from tests.console.test_access import visiting

pytestmark = pytest.mark.asyncio(loop_scope="session")
OFFSET = 1500
OTHER = SigningKey(KEY.name, bytes(32))


FORGERIES = {
    "entry": ("entry", '"body":', '"body" :', "another root"),
    "version": ("entry", '"version":1,', '"version":2,', "another version"),
    "quantity": ("entry", '"quantity":"', '"quantity":"1', "another quantity"),
    "hash": ("hashes", None, b64encode(bytes(32)).decode(), "another root"),
    "missing hash": ("hashes", None, "", "too few hashes"),
    "checkpoint": ("checkpoint", f"{KEY.name}\n", f"{KEY.name}x\n", "the key of"),
    "size": ("checkpoint", "\n", "\n1", "hashes"),
    "key": ("vkey", None, OTHER.vkey, "no signature of"),
    "index": ("index", None, "1499", "offset 1500"),
}


async def test_forged_proofs_are_not_verified(browser: Browser, address: str) -> None:
    """Whatever part of a proof is another, the page says that nothing is proved, and why."""
    async with visit(browser, address) as page:
        await log_in(page, "auditor", f"/console/events/{OFFSET}")
        verdict = page.locator("#verdict")
        for name, (field, old, new, reason) in FORGERIES.items():
            await page.reload()
            await expect(verdict).to_contain_text("Verified in this browser")
            await page.get_by_text("Show the proof").click()
            box = page.locator(f"#{field}")
            text = await box.input_value()
            forged = text.replace(old, new, 1) if old else _other_line(text, new, field)
            assert forged != text, name
            await box.fill(forged)
            await page.get_by_role("button", name="Verify").click()
            await expect(verdict, name).to_contain_text("Not verified")
            await expect(verdict, name).to_contain_text(reason)


def _other_line(text: str, new: str, field: str) -> str:
    """Return a list of hashes with another first one, or a wholly new value."""
    if field != "hashes":
        return new
    return "\n".join(filter(None, [new, *text.split("\n")[1:]]))


async def test_downloaded_proof_is_verified_by_python_and_taken_back(
    browser: Browser, address: str, day: Day, tmp_path: Path
) -> None:
    """The file holds all that a verifier needs; of one that was changed, the page says so."""
    async with visit(browser, address) as page:
        await log_in(page, "auditor", f"/console/events/{OFFSET}")
        await page.get_by_text("Show the proof").click()
        async with page.expect_download() as started:
            await page.get_by_role("link", name="Download as JSON").click()
        file = tmp_path / "proof.json"
        await (await started.value).save_as(file)
        proof = msgspec.json.decode(file.read_bytes())
        assert _proved(proof).size == day.size
        async with visiting(address, "auditor") as client:
            names = ("proof.tlog-proof", "entry.json", "nothing.json")
            files = [await client.get(f"/console/events/{OFFSET}/{name}") for name in names]
        parsed = TlogProof.parse(files[0].content)
        assert parsed.verify(leaf_hash(files[1].content), KEY.verifier).size == day.size
        assert files[2].status_code == 404
        proof["entry"] = proof["entry"].replace("2026-03-02", "2026-03-03", 1)
        file.write_bytes(msgspec.json.encode(proof))
        await page.locator("#file").set_input_files(file)
        await expect(page.locator("#verdict")).to_contain_text("Not verified")


def _proved(proof: dict[str, Any]) -> CheckpointBody:
    key = VerifierKey.parse(proof["vkey"])
    body, _ = open_checkpoint(proof["checkpoint"].encode(), key)
    hashes = [_bytes(each) for each in proof["hashes"]]
    leaf = leaf_hash(proof["entry"].encode())
    verify_inclusion(leaf, proof["index"], body.size, hashes, body.root)
    return body


def _bytes(text: str) -> bytes:
    return msgspec.convert(text, bytes)


async def test_events_of_all_types_are_verified_as_they_are_shown(
    browser: Browser, address: str, day: Day
) -> None:
    """Also those with personal fields, of which only the ciphertext is in the log."""
    async with open_journal(day.settings) as journal:
        first = {each.type: each.offset async for each in journal.read(0, day.size)}
    assert len(first) > 10
    async with visit(browser, address) as page:
        await log_in(page, "auditor", "/console/events/0")
        for kind, offset in first.items():
            await page.goto(f"/console/events/{offset}")
            await expect(page.locator("#verdict"), kind).to_have_class("verdict holds")
            if kind == "UserRegistered":
                said = page.locator("#steps li").first
                await expect(said).to_contain_text("only as ciphertext: email, username")


SIZES = (1, 2, 3, 5, 8, 11, 16, 23)
FOLDED = """async ([module, cases]) => {
    const { leafHash, wayToRoot } = await import(module);
    const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const found = [];
    for (const [entry, index, size, hashes] of cases) {
        const leaf = await leafHash(entry);
        const { root } = await wayToRoot(leaf, index, size, hashes.map(bytes));
        found.push(btoa(String.fromCharCode(...root)));
    }
    return found;
}"""


async def test_way_to_the_root_is_that_of_the_log(browser: Browser, address: str) -> None:
    """For all leaves of trees of many shapes, the browser folds the log's proofs to its root."""
    cases: list[tuple[str, int, int, list[str]]] = []
    roots: list[str] = []
    for size in SIZES:
        leaves = [leaf_hash(f"entry {number}".encode()) for number in range(size)]
        read = _reader(leaves)
        for index in range(size):
            hashes = [b64encode(each).decode() for each in inclusion_proof(index, size, read)]
            cases.append((f"entry {index}", index, size, hashes))
            roots.append(b64encode(root_of(leaves)).decode())
    async with visit(browser, address) as page:
        await page.goto("/console/login")
        assert await page.evaluate(FOLDED, ["/console/static/proof.js", cases]) == roots


def _reader(leaves: list[bytes]) -> ReadHash:
    def read(level: int, index: int) -> bytes:
        if level == 0:
            return leaves[index]
        return node_hash(read(level - 1, 2 * index), read(level - 1, 2 * index + 1))

    return read
