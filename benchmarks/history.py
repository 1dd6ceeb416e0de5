"""A realistic history of any length, the same for the same seed, loaded faster than appended.

About 35 % of the events are about orders (a tenth as many orders as events), 60 % are uses of API
keys, 5 % logins; users and keys come first, some marks in between. Orders lie interleaved, each
lives for some hundred to some thousand events, and positions open, grow, shrink, close and flip.

The history is cut into two lanes, which processes of their own make: each holds every second event,
and all events of half of the users. Rows are made as text with one template for each type; the
tests hold the bodies against what `ledger.codec` makes of the same events.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import sqlite3
import sys
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from itertools import islice
from multiprocessing.synchronize import Barrier
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from ledger.domain.api_keys import ApiKeyIssued
from ledger.domain.users import UserRegistered, masked, name_digest
from ledger.event import Event, NewEvent
from ledger.prepare import prepare
from ledger.privacy import NOBODY
from ledger.security.data_keys import NAME_KEY, NAMES, check_of
from ledger.security.fields import Place, encrypt
from ledger.settings import async_url
from ledger.sqltypes import time_to_text

VERSION = 3
"""Changes with whatever changes the history, so that a kept one is not taken for another."""

LANES = 2
START = datetime(2026, 1, 5, tzinfo=UTC)
BATCH_EVENTS = 8
"""So many events are recorded at one time, as by group commit, one batch every 8 ms."""
VENUE_DELAY_MS = 5
LOGIN_SECONDS = 30

ORDER_SHARE, LOGIN_SHARE, MARK_SHARE = 0.35, 0.05, 0.002
USERS_PER_EVENT = 1 / 2000
TOKENS = 300
BOOKS_PER_USER = 6
OPEN_ORDERS_MAX = 150
EVENTS_PER_OPEN_ORDER = 200
UNIT = 10_000
"""Quantities have four places, prices and fees eight; both are reckoned as integers."""
PRICE_UNIT = 10**8
LOT = 10
"""The smallest order, in units of its quantity: enough for three fills."""
BLOCK_EVENTS = 2_000
TOLD_EVENTS = 1_000_000
STEP_EVENTS = 50_000
"""The lanes keep in step, so that the rows lie in the table much as if they had been appended."""

EVENT_COLUMNS = (
    "journal_id",
    "offset",
    "event_id",
    "stream",
    "version",
    "type",
    "schema_version",
    "occurred_at",
    "recorded_at",
    "metadata",
    "body",
)
TAG_COLUMNS = ("journal_id", "tag", "offset", "kind", "type", "stream")
KEY_COLUMNS = ("journal", "subject", "key_id", "wrapped", "created_at")
NULL = r"\N"
JOURNAL = "main"
KEY_ID_CHARS = 16
_PERSONAL = re.compile(r'"(username|email|password_hash|name|key_hash|ip_address)":"([^"]*)"')

USES = (
    ("read", "/v1/positions"),
    ("read", "/v1/orders"),
    ("read", "/v1/orders/open"),
    ("read", "/v1/balances"),
    ("read", "/v1/marks"),
    ("read", "/v1/fills"),
    ("trade", "/v1/orders"),
    ("trade", "/v1/orders/cancel"),
)
STRATEGIES = ("", "", "grid", "momentum", "arbitrage", "rebalance")
REASONS = ("insufficient margin", "price out of bounds", "market closed", "size below minimum")

# What becomes of an order: accepted, filled, triggered, asked to cancel, cancelled, expired,
# rejected; by hundredths.
FATES = (
    [("market", "AF")] * 24
    + [("amount", "AF")] * 6
    + [("stop_loss", "ATF")] * 2
    + [("limit", "AF")] * 16
    + [("limit", "AFF")] * 15
    + [("limit", "AFFF")] * 7
    + [("limit", "ARX")] * 13
    + [("limit", "AFRX")] * 4
    + [("ioc", "AFX")] * 2
    + [("ioc", "AX")] * 2
    + [("gtd", "AE")] * 4
    + [("gtd", "AFE")] * 1
    + [("limit", "J")] * 3
    + [("market", "J")] * 1
)
IS_FILLED = {fate: fate[-1] == "F" for _, fate in FATES}


class Plan(NamedTuple):
    """Which history it is: so many events, this seed, and the journal that it is for.

    `users_min` is for short histories, which would have few users otherwise. Where they are not
    `encrypted`, personal fields stand in plain, as somebody hands them to a journal.
    """

    events: int
    seed: int = 1
    journal_id: int = 1
    users_min: int = 2 * LANES
    encrypted: bool = True

    @property
    def users(self) -> int:
        """The number of users."""
        return max(self.users_min, int(self.events * USERS_PER_EVENT))

    @property
    def last_recorded_at(self) -> datetime:
        """When the last event was recorded."""
        batch = (self.events - 1) // BATCH_EVENTS
        return START + timedelta(milliseconds=batch * BATCH_EVENTS)


class Block(NamedTuple):
    """Rows as COPY reads them, one in a line: of `events`, `event_tags` and `subject_keys`."""

    events: list[str]
    tags: list[str]
    keys: list[str]


class Cipher:
    """Encrypts the personal fields of one subject."""

    def __init__(self, plan: Plan, subject: str) -> None:
        self.secret = sha256(f"{plan.seed}:{subject}".encode()).digest()
        self.key_id = self.secret.hex()[:KEY_ID_CHARS]
        self._cipher = AESSIV(self.secret)
        wrapped = f"plain1:{urlsafe_b64encode(self.secret).decode()}"
        self.row = f"{JOURNAL}\t{subject}\t{self.key_id}\t{wrapped}\t{time_to_text(START)}\n"

    def encrypted(self, text: str, stream: str, event_id: str) -> str:
        """Return a body or metadata with its personal fields encrypted."""
        place = Place(JOURNAL, stream, event_id)

        def encrypted(found: re.Match[str]) -> str:
            field, value = found.groups()
            return f'"{field}":"{encrypt(value, place, field, self.key_id, self._cipher)}"'

        return _PERSONAL.sub(encrypted, text)


class Token:
    """A market; all prices are in units of 0.00000001."""

    def __init__(self, number: int, random: Random) -> None:
        self.name = f"TOKEN{number:03}-USD"
        self.stream = f"market-{self.name}"
        self.price = int(10 ** random.uniform(4.0, 12.8))
        self.fee_currency = ',"fee_currency":"BNB"' if number % 25 == 0 else ""
        self.has_signatures = number % 2 == 1
        self.marks = 0


class Key:
    """An API key of a subject; `head` is what the bodies of its uses begin with."""

    def __init__(self, key_id: str, subject: str, address: str) -> None:
        self.subject = subject
        self.stream = f"apikey-use-{key_id}"
        self.head = f'{{"type":"ApiKeyUsed","key_id":"{key_id}",'
        self.tail = f'","ip_address":"{address}"}}'
        self.uses = 0


class Account:
    """A user, or a name that nobody has (`user_id` is empty), and the stream of the logins."""

    def __init__(self, number: int, user_id: str, name: str, stream: str, address: str) -> None:
        self.number = number
        self.user_id = user_id
        self.name = name
        self.stream = stream
        self.subject = stream if user_id else NOBODY
        self.tail = f'","ip_address":"{address}"}}'
        self.version = 0
        self.failures = 0
        self.digest = stream.removeprefix("login-")


class Order:
    """An order at work: what is still to happen to it, and what is left to fill."""

    def __init__(self, order_id: str, account: Account, book: int, token: Token, fate: str) -> None:
        self.stream = f"order-{order_id}"
        self.head = f'"order_id":"{order_id}"'
        self.account = account
        self.book = book
        self.token = token
        self.fate = fate
        self.done = 0
        self.version = 0
        self.side = 1
        self.left = 0
        self.amount = ""

    @property
    def action(self) -> str:
        """The side in words."""
        return "buy" if self.side > 0 else "sell"


class Lane:
    """Every second event of a history, in order, beginning with the event of this number."""

    def __init__(self, plan: Plan, number: int) -> None:
        self._plan = plan
        self._number = number
        self._random = Random(f"{plan.seed}:{plan.events}:{number}")
        self._count = (plan.events - number + LANES - 1) // LANES
        self._slot = 0
        self._block = Block([], [], [])
        self._ciphers: dict[str, Cipher] = {}
        self._journal = f"{plan.journal_id}\t"
        self._seconds = -1
        self._tokens = self._make_tokens()
        self._accounts: list[Account] = []
        self._keys: list[Key] = []
        self._sizes: list[int] = []
        self._orders: list[Order] = []
        self._orders_max = max(2, min(OPEN_ORDERS_MAX, self._count // EVENTS_PER_OPEN_ORDER))
        self._attempts: list[tuple[Account, str]] = []
        # Both lanes have the keys that belong to no user; one of them stores them.
        shared = [Cipher(plan, each) for each in (NAMES, NOBODY)]
        self._name_key = shared[0].secret
        self._ciphers[NOBODY] = shared[1]
        mark = f"{JOURNAL}\t{NAME_KEY}\t{check_of(shared[0].secret)}\t{NAME_KEY}\t"
        rows = [*(each.row for each in shared), f"{mark}{time_to_text(START)}\n"]
        self._shared_keys = rows if number == 0 else []
        self._strangers = [self._stranger(n) for n in range(20)]
        self._steps: dict[str, Callable[[Order], None]] = {
            "A": self._accepted,
            "T": self._triggered,
            "F": self._filled,
            "R": self._cancel_requested,
            "X": self._cancelled,
            "E": self._expired,
            "J": self._rejected,
        }

    def _make_tokens(self) -> list[Token]:
        """Both lanes know the same markets and begin with the same prices."""
        random = Random(f"{self._plan.seed}:tokens")
        return [Token(number, random) for number in range(TOKENS)]

    def _stranger(self, number: int) -> Account:
        name = f"visitor{self._number}{number:03}"
        digest = name_digest(name, self._name_key)
        return Account(-1, "", masked(name), f"login-{digest}", self._address())

    def blocks(self) -> Iterator[Block]:
        """Yield the rows, block by block; the last may be short, none is empty."""
        self._tick()
        life = self._life()
        while self._slot < self._count:
            self._block = Block([], [], [])
            if self._plan.encrypted and not self._slot:
                self._block.keys.extend(self._shared_keys)
            wanted = min(BLOCK_EVENTS, self._count - self._slot)
            for _ in islice(life, wanted):
                pass
            yield self._block

    def _life(self) -> Iterator[None]:
        """Make one event at each step: the users and their keys first, then whatever happens."""
        for number in range(self._plan.users // LANES):
            for event in self._arrival(number):
                self._record(event)
                yield
        random = self._random.random
        order, login = ORDER_SHARE, ORDER_SHARE + LOGIN_SHARE
        mark = login + MARK_SHARE
        while True:
            drawn = random()
            if drawn >= mark:
                self._use()
            elif drawn < order:
                self._order_event()
            elif drawn < login:
                self._login()
            else:
                self._mark()
            yield

    def _arrival(self, number: int) -> Iterator[Event]:
        """Yield the registration of a user and the issues of one or two keys."""
        user_id, name = self._random_id(), f"trader{number * LANES + self._number:05}"
        self._accounts.append(
            Account(number, user_id, name, f"user-{user_id}", address := self._address())
        )
        self._sizes += [0] * BOOKS_PER_USER
        self._accounts[-1].version = 1
        yield UserRegistered(
            user_id=UUID(user_id),
            username=name,
            email=f"{name}@example.com",
            password_hash=f"$argon2id$v=19$m=65536,t=3,p=4${self._hex(16)}${self._hex(32)}",
            permissions=("read", "trade"),
            roles=("trader",),
        )
        for key_number in range(1 + self._random.getrandbits(1)):
            key_id = self._random_id()
            self._keys.append(Key(key_id, f"user-{user_id}", address))
            yield ApiKeyIssued(
                key_id=UUID(key_id),
                user_id=UUID(user_id),
                name=f"key {key_number + 1}",
                key_hash=self._hex(32),
                permissions=("read", "trade"),
            )

    def _hex(self, count: int) -> str:
        return self._random.randbytes(count).hex()

    def _random_id(self) -> str:
        return str(UUID(bytes=self._random.randbytes(16), version=4))

    def _address(self) -> str:
        return ".".join(str(number) for number in (10, *self._random.randbytes(3)))

    def _record(self, event: Event) -> None:
        """Add an event that was made as an object, the first of its stream."""
        event = event.with_digests(partial(name_digest, key=self._name_key))
        [prepared] = prepare([NewEvent(event)], []).events
        offset, name, subject = self._offset, prepared.type, event.subject()
        self._add(prepared.stream, 1, name, prepared.body.decode(), subject=subject)
        self._block.tags.extend(
            f"{self._journal}{tag}\t{offset}\t{kind}\t{name}\t{prepared.stream}\n"
            for tag, kind in prepared.tags
        )

    @property
    def _offset(self) -> int:
        return self._slot * LANES + self._number

    def _tick(self) -> None:
        """Move the clock on to the batch that the next event is recorded in."""
        batch = self._offset // BATCH_EVENTS
        seconds, ms = divmod(batch * BATCH_EVENTS, 1000)
        before = ms - VENUE_DELAY_MS
        if seconds != self._seconds:
            self._seconds = seconds
            self._second = _to_the_second(seconds)
            self._second_before = _to_the_second(seconds - 1)
            self._second_later = _to_the_second(seconds + LOGIN_SECONDS)
            self._day_after = f"{_to_the_second(seconds + 86_400)[:10]}T00:00:00Z"
        self._now = f"{self._second}.{ms:03}000Z"
        self._venue_time = (
            f"{self._second}.{before:03}000Z"
            if before >= 0
            else f"{self._second_before}.{before + 1000:03}000Z"
        )
        self._later = f"{self._second_later}.{ms:03}000Z" if ms else f"{self._second_later}Z"
        stamp = f"{int(START.timestamp()) * 1000 + batch * BATCH_EVENTS:012x}"
        self._id_head = f"{stamp[:8]}-{stamp[8:]}-7"

    def _new_id(self) -> str:
        """Return the text of a UUIDv7 of this moment."""
        drawn = f"{self._random.getrandbits(72):018x}"
        return f"{self._id_head}{drawn[:3]}-a{drawn[3:6]}-{drawn[6:]}"

    def _add(
        self,
        stream: str,
        version: int,
        name: str,
        body: str,
        metadata: str = NULL,
        occurred_at: str = "",
        *,
        subject: str | None = None,
    ) -> None:
        """Add a row at the next offset; it occurred when it is recorded unless a time is given.

        With a subject, personal fields are encrypted.
        """
        slot, now = self._slot, self._now
        drawn = f"{self._random.getrandbits(72):018x}"
        event_id = f"{self._id_head}{drawn[:3]}-a{drawn[3:6]}-{drawn[6:]}"
        if subject is not None and self._plan.encrypted:
            cipher = self._cipher(subject)
            body = cipher.encrypted(body, stream, event_id)
            metadata = cipher.encrypted(metadata, stream, event_id)
        self._block.events.append(
            f"{self._journal}{slot * LANES + self._number}\t{event_id}\t"
            f"{stream}\t{version}\t{name}\t1\t{occurred_at or now}\t{now}\t{metadata}\t{body}\n"
        )
        self._slot = slot + 1
        if not self._slot % (BATCH_EVENTS // LANES):
            self._tick()

    def _cipher(self, subject: str) -> Cipher:
        """Return what encrypts for a subject; its key is stored when it is first needed."""
        if subject not in self._ciphers:
            made = self._ciphers[subject] = Cipher(self._plan, subject)
            self._block.keys.append(made.row)
        return self._ciphers[subject]

    def _request(self, tail: str) -> str:
        """Return the metadata of a request from an address."""
        return f'{{"request_id":"req-{self._random.getrandbits(64):016x}{tail}'

    def _use(self) -> None:
        random = self._random.random
        key = self._keys[int(len(self._keys) * random() ** 2)]
        key.uses += 1
        body = f"{key.head}{_USED[int(len(_USED) * random())]}"
        metadata, subject = self._request(key.tail), key.subject
        self._add(key.stream, key.uses, "ApiKeyUsed", body, metadata, subject=subject)

    def _mark(self) -> None:
        """Move a price; each market is marked in one lane."""
        token = self._tokens[self._random.randrange(TOKENS // LANES) * LANES + self._number]
        token.price = max(PRICE_UNIT // 10_000, int(token.price * self._random.uniform(0.98, 1.02)))
        token.marks += 1
        body = f'{{"type":"PriceMarked","token":"{token.name}","price":"{_eight(token.price)}"}}'
        self._add(token.stream, token.marks, "PriceMarked", body, NULL, self._venue_time)

    def _login(self) -> None:
        """Begin to check a login, or finish one."""
        attempts = self._attempts
        if len(attempts) > 4 or (attempts and self._random.random() < 0.5):
            self._finish_login(*attempts.pop(0))
            return
        accounts = self._strangers if self._random.random() < 0.02 else self._accounts
        account = accounts[int(len(accounts) * self._random.random())]
        attempt = self._new_id()
        attempts.append((account, attempt))
        terms = f'"attempt_id":"{attempt}","expires_at":"{self._later}"'
        if account.user_id:
            body = f'"user_id":"{account.user_id}",{terms}'
        else:
            body = f'{terms},"username":"{account.name}","name_digest":"{account.digest}"'
        self._account_event(account, "LoginAttempted", body)

    def _finish_login(self, account: Account, attempt: str) -> None:
        """Say how a login ended; nobody fails often enough to be locked."""
        if not account.user_id:
            body = f'"username":"{account.name}","reason":"wrong_password"'
            end = f',"attempt_id":"{attempt}","name_digest":"{account.digest}"'
            self._account_event(account, "LoginFailed", body + end)
        elif account.failures < 2 and self._random.random() < 0.1:
            account.failures += 1
            who = f'"username":"{account.name}","user_id":"{account.user_id}"'
            body = f'{who},"reason":"wrong_password","attempt_id":"{attempt}"'
            self._account_event(account, "LoginFailed", body)
        else:
            account.failures = 0
            body = f'"user_id":"{account.user_id}","attempt_id":"{attempt}"'
            self._account_event(account, "LoginSucceeded", body)

    def _account_event(self, account: Account, name: str, body: str) -> None:
        account.version += 1
        body = f'{{"type":"{name}",{body}}}'
        metadata, subject = self._request(account.tail), account.subject
        self._add(account.stream, account.version, name, body, metadata, subject=subject)

    def _order_event(self) -> None:
        """Place an order, or let the next thing happen to one that is at work."""
        orders = self._orders
        if len(orders) < self._orders_max:
            orders.append(self._placed())
            return
        number = int(len(orders) * self._random.random())
        order = orders[number]
        step = order.fate[order.done]
        order.done += 1
        self._steps[step](order)
        if order.done == len(order.fate):
            last = orders.pop()
            if last is not order:
                orders[number] = last

    def _placed(self) -> Order:
        random = self._random.random
        account = self._accounts[int(len(self._accounts) * random() ** 1.5)]
        choice = int(BOOKS_PER_USER * random())
        token = self._tokens[(account.number * 7 + choice * 53) % TOKENS]
        kind, fate = FATES[int(len(FATES) * random())]
        order_id = self._new_id()
        order = Order(order_id, account, account.number * BOOKS_PER_USER + choice, token, fate)
        is_closing = self._choose_size(order, is_buy=kind == "amount")
        order.version = 1
        terms = self._terms(order, kind, is_closing=is_closing)
        who = f'"user_id":"{account.user_id}","token":"{token.name}","action":"{order.action}"'
        body = f'{{"type":"OrderPlaced",{order.head},{who},{terms}}}'
        metadata, subject = self._request(account.tail), account.subject
        self._add(order.stream, 1, "OrderPlaced", body, metadata, subject=subject)
        return order

    def _choose_size(self, order: Order, *, is_buy: bool) -> bool:
        """Let the book open, grow, shrink, close or flip; return whether it is to close."""
        size, drawn = self._sizes[order.book], self._random.random()
        worth = self._random.uniform(20, 5000) * PRICE_UNIT * UNIT
        order.left = max(LOT, int(worth / order.token.price))
        if size == 0 or is_buy:
            order.side = 1 if is_buy or drawn < 0.65 else -1
            return False
        order.side = 1 if (size > 0) == (drawn < 0.3) else -1
        if drawn >= 0.93:
            order.left += abs(size)
        elif drawn >= 0.3:
            order.left = max(LOT, abs(size) if drawn >= 0.55 else abs(size) // 2)
        return 0.55 <= drawn < 0.75

    def _terms(self, order: Order, kind: str, *, is_closing: bool) -> str:
        """Return the fields of a new order from its type on, for the kinds of FATES."""
        price = _eight(order.token.price)
        reduce_only = ',"reduce_only":true' if is_closing else ""
        strategy = STRATEGIES[int(len(STRATEGIES) * self._random.random())]
        end = f',"strategy":"{strategy}"' if strategy else ""
        if kind == "amount":
            order.amount = _eight(order.left * order.token.price // UNIT)
            size = f'"amount":"{order.amount}"'
        else:
            size = f'"quantity":"{_four(order.left)}"'
        if kind in ("market", "amount"):
            reference = f',"reference_price":"{price}"'
            return f'"order_type":"market",{size},"slippage_bps":50{reduce_only}{reference}{end}'
        if kind == "stop_loss":
            return f'"order_type":"stop_loss",{size},"trigger_price":"{price}"{reduce_only}{end}'
        force = _FORCES[kind].format(self._day_after)
        return f'"order_type":"limit",{size},"price":"{price}"{force}{reduce_only}{end}'

    def _fact(self, order: Order, name: str, fields: str = "", occurred_at: str = "") -> None:
        """Add what the venue says of an order."""
        order.version += 1
        body = f'{{"type":"{name}",{order.head}{fields}}}'
        self._add(order.stream, order.version, name, body, NULL, occurred_at or self._venue_time)

    def _accepted(self, order: Order) -> None:
        number = self._random.getrandbits(48)
        self._fact(order, "OrderAccepted", f',"venue_order_id":"v{number:012x}"')

    def _triggered(self, order: Order) -> None:
        self._fact(order, "OrderTriggered", f',"price":"{_eight(order.token.price)}"')

    def _filled(self, order: Order) -> None:
        """Fill the rest if that is what is to become of the order, else a part."""
        token, stream, offset = order.token, order.stream, self._offset
        is_last = IS_FILLED[order.fate] and order.done == len(order.fate)
        quantity = order.left if is_last else max(1, int(order.left * 0.3))
        order.left -= quantity
        self._sizes[order.book] += order.side * quantity
        self._fact(order, "OrderFilled", self._fill(order, quantity))
        book = f"book:{order.account.user_id}:{token.name}"
        self._block.tags.append(f"{self._journal}{book}\t{offset}\t0\tOrderFilled\t{stream}\n")

    def _fill(self, order: Order, quantity: int) -> str:
        """Return the fields of a fill at a price near the mark."""
        token, drawn = order.token, self._random.getrandbits(64)
        price = token.price + (token.price * (drawn & 1023) >> 20)
        is_maker = drawn & 3072 == 0
        fee = quantity * price // (5 * 10**7 if is_maker else 10**7)
        what = f'"token":"{token.name}","action":"{order.action}","price":"{_eight(price)}"'
        whose = f'"quantity":"{_four(quantity)}","user_id":"{order.account.user_id}"'
        liquidity = "maker" if is_maker else "taker"
        paid = f'"fee":"{_eight(fee)}"{token.fee_currency},"liquidity":"{liquidity}"'
        signature = f',"transaction_signature":"{self._hex(32)}"' if token.has_signatures else ""
        exact = f',"quote_amount":"{order.amount}"' if order.amount else ""
        return f',"fill_id":"f{drawn:016x}",{what},{whose},{paid}{signature}{exact}'

    def _cancel_requested(self, order: Order) -> None:
        order.version += 1
        body = f'{{"type":"OrderCancelRequested",{order.head}}}'
        metadata, subject = self._request(order.account.tail), order.account.subject
        name, version = "OrderCancelRequested", order.version
        self._add(order.stream, version, name, body, metadata, subject=subject)

    def _cancelled(self, order: Order) -> None:
        by_user = order.fate[order.done - 2] == "R"
        self._fact(order, "OrderCancelled", "" if by_user else ',"reason":"not filled at once"')

    def _expired(self, order: Order) -> None:
        self._fact(order, "OrderExpired")

    def _rejected(self, order: Order) -> None:
        reason = REASONS[int(len(REASONS) * self._random.random())]
        self._fact(order, "OrderRejected", f',"reason":"{reason}"')


_USED = tuple(f'"action":"{action}","resource":"{resource}"}}' for action, resource in USES)
_FORCES = {
    "limit": "",
    "ioc": ',"time_in_force":"ioc"',
    "gtd": ',"time_in_force":"gtd","expires_at":"{}"',
}


def _to_the_second(seconds: int) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()[:19]


def _four(units: int) -> str:
    return f"{units // UNIT}.{units % UNIT:04}"


def _eight(units: int) -> str:
    return f"{units // PRICE_UNIT}.{units % PRICE_UNIT:08}"


def load(url: str, plan: Plan, told: Callable[[str], None] = lambda _: None) -> None:
    """Fill an empty, migrated journal with the history of `plan`, as its owner.

    The journal must be the one that the plan names. On PostgreSQL the indexes are made at the end
    and there is a process for each lane; `told` is called with each step in words.
    """
    if async_url(url).get_backend_name() == "sqlite":
        _load_sqlite(str(async_url(url).database), plan)
    else:
        asyncio.run(_load_postgres(url, plan, told))


async def _load_postgres(url: str, plan: Plan, told: Callable[[str], None]) -> None:
    connection = await asyncpg.connect(url, command_timeout=3600)
    try:
        assert await connection.fetchval("SELECT count(*) FROM events") == 0, "must be empty"
        made_again = await _drop_indexes(connection)
        told(f"making {plan.events:,} events")
        await asyncio.to_thread(_copy_lanes, url, plan)
        await connection.execute("SET maintenance_work_mem = '512MB'")
        for statement in made_again:
            told(statement)
            await connection.execute(statement)
        await connection.execute(
            "UPDATE journals SET size = $2, last_recorded_at = $3 WHERE journal_id = $1",
            plan.journal_id, plan.events, plan.last_recorded_at,
        )  # fmt: skip
        for table in ("events", "event_tags", "journals", "subject_keys"):
            await connection.execute(f"VACUUM (ANALYZE) {table}")
    finally:
        await connection.close()


async def _drop_indexes(connection: asyncpg.Connection[Any]) -> list[str]:
    """Drop all indexes of the journal's tables; return the statements that make them again."""
    found = await connection.fetch("""
        SELECT i.indexrelid::regclass::text AS name, i.indrelid::regclass::text AS on_table,
            pg_get_indexdef(i.indexrelid) AS made, pg_get_constraintdef(c.oid) AS constraint
        FROM pg_index i LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid
        WHERE i.indrelid IN ('events'::regclass, 'event_tags'::regclass) ORDER BY 1""")
    made_again = []
    for name, table, made, constraint in found:
        if constraint is None:
            await connection.execute(f"DROP INDEX {name}")
            made_again.append(made)
        else:
            await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
            made_again.append(f"ALTER TABLE {table} ADD CONSTRAINT {name} {constraint}")
    return made_again


_in_step: list[Barrier] = []
"""What the processes of the lanes meet at."""


def _meet_at(barrier: Barrier) -> None:
    _in_step.append(barrier)


def _copy_lanes(url: str, plan: Plan) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(LANES)
    with ProcessPoolExecutor(LANES, context, initializer=_meet_at, initargs=(barrier,)) as pool:
        for lane in [pool.submit(_copy_lane, url, plan, number) for number in range(LANES)]:
            lane.result()


def _copy_lane(url: str, plan: Plan, number: int) -> None:
    """Be the process of a lane."""
    [barrier] = _in_step
    try:
        asyncio.run(_copy(url, plan, number, barrier))
    except BaseException:
        barrier.abort()
        raise


async def _copy(url: str, plan: Plan, number: int, barrier: Barrier) -> None:
    connection = await asyncpg.connect(url, command_timeout=3600)
    blocks = Lane(plan, number).blocks()
    for done in range(0, plan.events, STEP_EVENTS * LANES):
        if number == 0 and done and done % TOLD_EVENTS == 0:
            print(f"{done:,} of {plan.events:,} events", file=sys.stderr, flush=True)
        tags: list[str] = []
        keys: list[str] = []
        step = islice(blocks, STEP_EVENTS // BLOCK_EVENTS)
        await connection.copy_to_table(
            "events", source=_lines(step, tags, keys), columns=EVENT_COLUMNS, format="text"
        )
        for table, columns, lines in (
            ("event_tags", TAG_COLUMNS, tags),
            ("subject_keys", KEY_COLUMNS, keys),
        ):
            await connection.copy_to_table(
                table, source=_once(lines), columns=columns, format="text"
            )
        barrier.wait(600)
    await connection.close()


async def _lines(blocks: Iterator[Block], tags: list[str], keys: list[str]) -> AsyncIterator[bytes]:
    """Yield the lines of the events, and put those of the tags and of the data keys aside.

    A body goes in as plain text: it has no backslash, which is all that bytea's input looks for.
    """
    for block in blocks:
        tags.extend(block.tags)
        keys.extend(block.keys)
        yield "".join(block.events).encode()


async def _once(lines: Sequence[str]) -> AsyncIterator[bytes]:
    yield "".join(lines).encode()


def rows(plan: Plan, keys: list[str] | None = None) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield each event's row with those of its tags, in the order of offsets, as text.

    The lines of the data keys are added to `keys`.
    """
    keys = [] if keys is None else keys
    lanes = [_lane_rows(Lane(plan, number), keys) for number in range(LANES)]
    for number in range(plan.events):
        yield next(lanes[number % LANES])


def _lane_rows(lane: Lane, keys: list[str]) -> Iterator[tuple[list[str], list[list[str]]]]:
    for block in lane.blocks():
        keys.extend(block.keys)
        tags = iter([line.rstrip("\n").split("\t") for line in block.tags])
        tag = next(tags, None)
        for line in block.events:
            event = line.rstrip("\n").split("\t")
            own = []
            while tag is not None and tag[2] == event[1]:
                own.append(tag)
                tag = next(tags, None)
            yield event, own


def _load_sqlite(file: str, plan: Plan) -> None:
    """Insert the rows in order; the triggers that deny gaps need the indexes."""
    with sqlite3.connect(file, isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")
        events, tags = _insert("events", EVENT_COLUMNS), _insert("event_tags", TAG_COLUMNS)
        keys: list[str] = []
        made = rows(plan, keys)
        while chunk := list(islice(made, BLOCK_EVENTS)):
            connection.executemany(events, [_sqlite_row(event) for event, _ in chunk])
            connection.executemany(tags, [tag for _, own in chunk for tag in own])
        own_keys = [line.rstrip("\n").split("\t") for line in keys]
        connection.executemany(_insert("subject_keys", KEY_COLUMNS), own_keys)
        connection.execute(
            "UPDATE journals SET size = ?, last_recorded_at = ? WHERE journal_id = ?",
            (plan.events, time_to_text(plan.last_recorded_at), plan.journal_id),
        )
        connection.execute("COMMIT")
        connection.execute("ANALYZE")
    connection.close()


def _insert(table: str, columns: Sequence[str]) -> str:
    names = ", ".join(f'"{column}"' for column in columns)
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608


def _sqlite_row(event: Sequence[str]) -> tuple[str | bytes | None, ...]:
    """Return a row as SQLite holds it: ids as 32 digits, metadata and bodies as bytes."""
    journal, offset, event_id, stream, version, *kept, metadata, body = event
    stored = None if metadata == NULL else metadata.encode()
    return (
        journal, offset, event_id.replace("-", ""), stream, version, *kept, stored, body.encode()
    )  # fmt: skip
