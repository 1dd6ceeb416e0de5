"""Who may see and do what in the console, without a browser: sessions, permissions, forgeries."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.console.day import PASSWORD, Day

OWN = {"Sec-Fetch-Site": "same-origin"}
COOKIE = "ledger_session"

PAGES = [
    *(
        f"/console/tables/{slug}"
        for slug in (
            "positions",
            "orders",
            "users",
            "api-keys",
            "audit-log",
            "postings",
            "balances",
            "marks",
        )
    ),
    "/console/events/0",
    "/console/security",
    "/console/difference",
    "/console/operations",
]


_tokens: dict[tuple[str, str], str] = {}
"""Sessions that are open, by address and name."""


@asynccontextmanager
async def visiting(address: str, name: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client with cookies of its own, logged in if it has a name."""
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
        if name is not None:
            if (address, name) not in _tokens:
                await log_in(client, name)
                _tokens[address, name] = client.cookies[COOKIE]
            client.cookies.set(COOKIE, _tokens[address, name], path="/console")
        yield client


async def log_in(
    client: httpx.AsyncClient, name: str, wanted: str = "", password: str = PASSWORD
) -> httpx.Response:
    """Send the form of the log-in page."""
    form = {"username": name, "password": password, "next": wanted}
    return await client.post("/console/login", data=form, headers=OWN)


@pytest.mark.parametrize("path", [*PAGES, "/console", "/console/operations/skip"])
async def test_strangers_are_sent_to_the_log_in(address: str, path: str) -> None:
    """Every page leads whoever is not logged in to the log-in, and from there back."""
    async with visiting(address) as client:
        answer = await client.get(f"{path}?at=5")
        assert answer.status_code == 303
        back = httpx.URL(answer.headers["location"])
        assert (back.path, back.params["next"]) == ("/console/login", f"{path}?at=5")
        assert (await client.get(back)).status_code == 200


async def test_cookie_and_pages_are_kept_from_others(address: str) -> None:
    """The cookie is for our pages alone; a page runs no foreign script and is in no cache."""
    async with visiting(address) as client:
        answer = await log_in(client, "auditor")
        cookie = answer.headers["set-cookie"]
        for attribute in ("HttpOnly", "SameSite=strict", "Path=/console"):
            assert attribute in cookie
        assert "Secure" not in cookie
        page = await client.get("/console/tables/users")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["x-frame-options"] == "DENY"
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=", page.text)
        assert not re.search(r"password_hash|key_hash|\$argon2", page.text)


@pytest.mark.parametrize("name", ["auditor", "nobody"])
async def test_refused_log_in_does_not_tell_why(address: str, name: str) -> None:
    """A wrong password and an unknown user are answered alike, and nobody is logged in."""
    async with visiting(address) as client:
        answer = await log_in(client, name, password="not it")
        assert answer.status_code == 401
        assert "The username or the password is wrong" in unescape(answer.text)
        assert COOKIE not in client.cookies
        assert "not it" not in answer.text


@pytest.mark.parametrize(
    "wanted",
    [
        "https://elsewhere.example/console",
        "//elsewhere.example/console",
        "/console/../metrics",
        "/console/%2e%2e/metrics",
        "/consoles",
        "/\\elsewhere.example",
        "javascript:alert(1)",
        "/console/\n/x",
    ],
)
async def test_log_in_leads_nowhere_else(address: str, wanted: str) -> None:
    """Whatever a link says, the log-in leads to a page of the console."""
    async with visiting(address) as client:
        answer = await log_in(client, "auditor", wanted)
        assert answer.headers["location"] == "/console"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://elsewhere.example"},
    ],
)
async def test_forms_of_other_sites_do_nothing(address: str, headers: dict[str, str]) -> None:
    """What was not sent from a page of the console is refused, also with the right cookie."""
    async with visiting(address, "operator") as client:
        for path in ("/console/logout", "/console/operations/rebuilds", "/console/operations/skip"):
            form = {"tables": "marks", "table": "marks", "offset": "0", "reason": "x"}
            answer = await client.post(path, data=form, headers=headers)
            assert answer.status_code == 403
            assert "was not sent from a page of this console" in answer.text
        assert (await client.get("/console/operations")).status_code == 200


async def test_own_origin_is_enough_where_a_browser_tells_no_more(address: str) -> None:
    """An older browser says only the origin of a form."""
    async with visiting(address) as client:
        form = {"username": "auditor", "password": PASSWORD, "next": ""}
        answer = await client.post("/console/login", data=form, headers={"Origin": address})
        assert answer.status_code == 303


async def test_session_is_over_for_everybody_who_has_its_token(address: str) -> None:
    """After the log-out its cookie is worth nothing, wherever it was copied to."""
    async with visiting(address) as client:
        answer = await log_in(client, "auditor", "/console/operations?at=5")
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/operations?at=5")
        token = client.cookies[COOKIE]
        answer = await client.post("/console/logout", headers=OWN)
        assert answer.headers["location"] == "/console/login"
        assert COOKIE not in client.cookies
        again = await client.get("/console/security", headers={"Cookie": f"{COOKIE}={token}"})
        assert again.headers["location"].startswith("/console/login")


@pytest.mark.parametrize("path", PAGES)
async def test_traders_see_nothing_here(address: str, path: str) -> None:
    """Without the permission that a page needs there is a page that says so."""
    async with visiting(address, "trader") as client:
        answer = await client.get(path)
        assert answer.status_code == 403
        assert re.search(r"permission &#39;(tables|events|operations):read&#39;", answer.text)


async def test_what_cannot_be_done_is_said_on_a_page(address: str) -> None:
    """A retry of what is not parked, a skip without a reason, a rebuild of nothing: not done."""
    async with visiting(address, "operator") as client:
        form = {"table": "marks", "value": "BTC", "offset": "0", "reason": " "}
        far = form | {"offset": str(10**25), "reason": "x"}
        for path, sent, status in (
            ("retry", form, 404),
            ("skip", form, 422),
            ("skip", far, 404),
            ("rebuilds", form, 422),
        ):
            answer = await client.post(f"/console/operations/{path}", data=sent, headers=OWN)
            assert answer.status_code == status
            assert 'role="alert"' in answer.text


async def test_auditors_change_nothing(address: str) -> None:
    """Who may only look is refused by all that operators do."""
    async with visiting(address, "auditor") as client:
        form = {"tables": "marks", "table": "marks", "value": "BTC", "offset": "0", "reason": "x"}
        for path in ("retry", "skip", "rebuilds"):
            answer = await client.post(f"/console/operations/{path}", data=form, headers=OWN)
            assert answer.status_code == 403
        assert (await client.get("/console/operations/skip")).status_code == 403


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/console/tables/nothing", 404),
        ("/console/nothing", 404),
        ("/console/events/99999999", 404),
        ("/console/events/99999999999999999999", 404),
        ("/console/events/x", 422),
        ("/console/tables/positions?at=99999999", 404),
        ("/console/tables/positions?at=yesterday", 422),
        ("/console/tables/positions?a=yesterday", 200),
        ("/console/tables/positions?nothing=eq:1", 422),
        ("/console/tables/users?password_hash=contains:x", 422),
        ("/console/tables/positions?sort=nothing", 422),
        ("/console/tables/positions?cursor=nothing", 404),
        ("/console/tables/positions/no-uuid", 422),
        ("/console/tables/positions/00000000-0000-0000-0000-000000000000", 404),
        ("/console/export/positions?format=xml", 422),
        ("/console/export-difference?format=csv", 422),
        ("/console/difference?a=x&b=y", 422),
        ("/console/difference?a=1&b=2&start=x", 200),
        ("/console/operations/skip?table=marks&offset=x", 422),
        ("/console/tables/positions/%00", 422),
        ("/console/tables/positions?limit=%C2%B2", 200),
        (f"/console/difference?a=1&b=2&start={'9' * 5000}", 200),
        ("/console/tables/positions?token=eq:%00", 422),
        ("/console/%ff", 404),
    ],
)
async def test_wrong_addresses_are_pages_too(address: str, path: str, status: int) -> None:
    """Whatever an address has in it, the answer is a page with the reason."""
    async with visiting(address, "operator") as client:
        answer = await client.get(path)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/html")
        assert 'id="slider"' in answer.text


async def test_all_that_pages_link_to_is_there(address: str, day: Day) -> None:
    """A link of each form that any page has, and that those pages have, leads to a page."""
    async with visiting(address, "operator") as client:
        seen: set[str] = set()
        ahead = [f"{path}?at={day.noon_size}&a=1000&b={day.noon_size}" for path in PAGES]
        ahead.append(f"/console/tables/positions/{day.position_id}?at={day.size}")
        while ahead:
            path = ahead.pop()
            if (form := _form(path)) in seen:
                continue
            seen.add(form)
            answer = await client.get(path)
            assert answer.status_code == 200, (path, answer.text)
            if answer.headers["content-type"].startswith("text/html"):
                links = re.findall(r'href="(/console[^"]*)"', answer.text)
                ahead += [unescape(link) for link in links if "/static/" not in link]
        assert len(seen) > len(PAGES)


def _form(path: str) -> str:
    """Return what pages of one kind have in common: the path without ids, and what is asked for."""
    url = httpx.URL(path)
    _, _, kind, *others = url.path.split("/")
    asked = sorted(set(url.params) - {"at", "a", "b"})[:1]
    named = others[:1] if kind == "tables" and not asked else []
    return "/".join([kind, *named, "x" * len(others), *asked])


async def test_event_that_is_not_sealed_yet_has_no_proof(address: str, day: Day) -> None:
    """Its page says so, and there is no file to take along."""
    async with visiting(address, "auditor") as client:
        page = await client.get(f"/console/events/{day.size}")
        assert page.status_code == 200
        assert "There is no proof" in page.text
        assert "this moment is not sealed yet" in page.text
        assert (await client.get(f"/console/events/{day.size}/proof.json")).status_code == 404


async def test_exports_hold_what_the_page_shows(address: str, day: Day) -> None:
    """All rows that match, as of the moment, in the order of the page, without secrets."""
    async with visiting(address, "auditor") as client:
        query = f"at={day.noon_size}&status=eq:open&sort=-opened_at"
        answer = await client.get(f"/console/export/positions?{query}&format=json")
        rows = json.loads(answer.text)["rows"]
        moments = [row["opened_at"] for row in rows]
        assert moments == sorted(moments, reverse=True)
        own = next(row for row in rows if row["position_id"] == day.position_id)
        assert own["size"] == "3.5"
        assert "attachment" in answer.headers["content-disposition"]
        users = await client.get("/console/export/users?format=ndjson")
        assert '"username": "auditor"' in users.text.replace('":"', '": "')
        assert not re.search(r"password_hash|\$argon2", users.text)


async def test_difference_is_the_same_in_all_forms(address: str, day: Day) -> None:
    """The three files tell of the same rows."""
    async with visiting(address, "auditor") as client:
        query = f"a={day.noon_size}&b={day.size}&table=positions"
        texts = {
            form: (await client.get(f"/console/export-difference?{query}&format={form}")).text
            for form in ("json", "ndjson", "csv")
        }
        found = json.loads(texts["json"])
        assert (found["from"]["size"], found["to"]["size"]) == (day.noon_size, day.size)
        changes = found["changes"]
        assert [json.loads(line) for line in texts["ndjson"].splitlines()[1:]] == changes
        assert len(texts["csv"].splitlines()) == len(changes) + 2
        own = next(each for each in changes if each["key"] == day.position_id)
        assert own["columns"]["size"] == ["3.5", "3"]


async def test_filter_form_becomes_an_address(address: str) -> None:
    """The form adds its filter to those there are, in the form that can be shared."""
    async with visiting(address, "auditor") as client:
        path = "/console/tables/orders?token=eq:BTC&column=price&operator=null&text=no&at=500"
        answer = await client.get(path)
        assert answer.status_code == 303
        assert httpx.URL(answer.headers["location"]).params.multi_items() == [
            ("token", "eq:BTC"),
            ("at", "500"),
            ("price", "null:false"),
        ]
        shown = await client.get(answer.headers["location"])
        assert unescape(shown.text).count('class="chip"') == 2


async def test_parts_of_a_difference_stay_between_its_sizes(address: str) -> None:
    """A moment may come to stand for more events, so the link to the next rows names sizes."""
    async with visiting(address, "auditor") as client:
        page = await client.get("/console/difference?a=0&b=2999-01-01T00:00:00Z")
        [link] = re.findall(r'href="([^"]+)">Next rows<', page.text)
        found = parse_qs(urlsplit(unescape(link)).query)
        assert found["a"] == ["0"]
        assert found["b"][0].isdigit()
        more = await client.get(unescape(link))
        assert f"Rows {int(found['start'][0]) + 1} to" in more.text
