"""What commands over HTTP take and answer with.

Amounts are text in plain decimal notation, `"12.50"`: a JSON number is refused, since it may have
gone through a float on its way. Times are RFC 3339 with a zone. Fields that are not known are
refused.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    StrictBool,
    StrictInt,
    StringConstraints,
    WithJsonSchema,
)

from ledger.amounts import Amount, PlainDecimal, VenueAmount
from ledger.domain.api_keys import RATE_LIMIT_MAX
from ledger.domain.order_commands import BASIS_POINTS_MAX, TOKEN_CHARS_MAX
from ledger.domain.orders import Action, Liquidity, OrderType, TimeInForce
from ledger.domain.users import LABELS_MAX, TEXT_CHARS_MAX
from ledger.security.passwords import PASSWORD_CHARS_MAX

REASON_CHARS_MAX = 2000
EXTRA_FIELDS_MAX = 50
OVERLAP_SECONDS_MAX = 31_536_000

_CONTROLS = r"\x00-\x1f\x7f-\x9f"
_RFC_3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


def _readable(text: str) -> str:
    """Refuse what the domain refuses as well, before anything is looked up by it."""
    if text != text.strip() or not text.isprintable():
        raise ValueError("begins or ends with space, or has characters that cannot be printed")
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return text


def _written_time(value: object) -> object:
    """Refuse what pydantic would take for seconds since 1970."""
    if not isinstance(value, str) or _RFC_3339.fullmatch(value) is None:
        raise ValueError("must be a time as RFC 3339 writes it, 2026-01-31T12:00:00Z")
    return value


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("names something twice")
    return names


def _text(chars_max: int, refused: str = _CONTROLS) -> StringConstraints:
    return StringConstraints(
        strict=True, min_length=1, max_length=chars_max, pattern=f"^[^{refused}]+$"
    )


def _decimal(kind: type[PlainDecimal], sign: str) -> StringConstraints:
    """Accept text that `kind` takes."""
    digits, places = kind.integer_digits, kind.decimal_places
    pattern = rf"^{sign}(0|[1-9][0-9]{{0,{digits - 1}}})(\.[0-9]{{1,{places}}})?$"
    return StringConstraints(strict=True, pattern=pattern)


OwnAmount = Annotated[
    str,
    _decimal(Amount, ""),
    Field(description="12 digits before and 8 after the point, at most", examples=["12.50"]),
]
"""An amount of a command: fits NUMERIC(20,8)."""

VenueFigure = Annotated[
    str,
    _decimal(VenueAmount, "-?"),
    Field(description="40 digits before and 30 after the point, at most", examples=["64249.5"]),
]
"""An amount as a venue reports it, kept exactly."""

Moment = Annotated[
    datetime, BeforeValidator(_written_time), Field(examples=["2024-01-31T12:00:00Z"])
]
Later = Annotated[
    datetime, BeforeValidator(_written_time), Field(examples=["2099-01-31T12:00:00Z"])
]
"""A time that must not have come yet."""

Line = Annotated[str, _text(TEXT_CHARS_MAX), AfterValidator(_readable)]
"""One line that a column can hold and a person can read."""

Token = Annotated[str, _text(TOKEN_CHARS_MAX), AfterValidator(_printable), Field(examples=["BTC"])]
Identifier = Annotated[str, _text(TEXT_CHARS_MAX)]
"""What a venue names something by."""

Reason = Annotated[str, _text(REASON_CHARS_MAX)]
Username = Annotated[str, _text(TEXT_CHARS_MAX, f"@{_CONTROLS}"), AfterValidator(_readable)]
Email = Annotated[
    str,
    StringConstraints(
        strict=True,
        max_length=TEXT_CHARS_MAX,
        pattern=rf"^[^@ {_CONTROLS}]+@[^@ {_CONTROLS}]+$",
    ),
    AfterValidator(_readable),
    Field(examples=["ada@example.org"]),
]
Password = Annotated[SecretStr, Field(min_length=1, max_length=PASSWORD_CHARS_MAX)]
Labels = Annotated[
    tuple[Line, ...],
    Field(max_length=LABELS_MAX, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_each_once),
]
ExtraName = Annotated[
    str,
    StringConstraints(strict=True, min_length=1, max_length=TEXT_CHARS_MAX),
    AfterValidator(_printable),
]
ExtraData = Annotated[
    dict[ExtraName, Annotated[str, _text(REASON_CHARS_MAX)]], Field(max_length=EXTRA_FIELDS_MAX)
]


class Body(BaseModel):
    """What all bodies are: closed, and unchanged once they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def given(self, *but: str) -> dict[str, Any]:
        """Return the fields that were given, by name, without those named."""
        return {name: getattr(self, name) for name in self.model_fields_set.difference(but)}


def _example(**fields: Any) -> ConfigDict:
    """Return the configuration of a body with an example."""
    return _described([fields])


def _described(examples: list[dict[str, Any]], **rules: Any) -> ConfigDict:
    """Return that of a body with examples, and with rules of JSON Schema for what goes together."""
    extra: dict[str, Any] = {"examples": examples, **rules}
    return ConfigDict(json_schema_extra=extra)


def _case(**fields: str | list[Any]) -> dict[str, Any]:
    """Return the schema of a case: fields that have a JSON type, or one of some values.

    Those that are not null are required.
    """
    kinds = {
        name: {"type": kind} if isinstance(kind, str) else {"enum": kind}
        for name, kind in fields.items()
    }
    return {"properties": kinds, "required": [name for name in fields if fields[name] != "null"]}


# Users


class NewUser(Body):
    """A user; without a password nobody can log in."""

    model_config = _example(
        username="ada",
        password="an engine weaves",  # noqa: S106 - an example
        email="ada@example.org",
        roles=["trader"],
    )

    username: Username
    password: Password | None = None
    email: Email | None = None
    permissions: Labels = ()
    roles: Labels = ()
    user_id: UUID | None = None


class NewPassword(Body):
    """Another password; `current_password` is needed for one's own."""

    model_config = _example(
        password="an engine weaves algebra",  # noqa: S106 - an example
        current_password="an engine weaves",  # noqa: S106 - an example
    )

    password: Password
    current_password: Password | None = None


class NewEmail(Body):
    """Another e-mail address, null for none."""

    model_config = _example(email="countess@example.org")

    email: Email | None


class NewPermissions(Body):
    """Exactly the permissions that a user has from now on, beside those of their roles."""

    model_config = _example(permissions=["marks:write"])

    permissions: Labels


class NewRoles(Body):
    """Exactly the roles that a user has from now on."""

    model_config = _example(roles=["trader"])

    roles: Labels


class Why(Body):
    """Why something is done, if that is to be kept; it must not name a person."""

    model_config = _example(reason="on leave")

    reason: Reason | None = None


class CaseReason(Body):
    """Why something is done, in the words of a case file; it must not name a person."""

    model_config = _example(reason="case 4711")

    reason: Line


class NewLock(Body):
    """Until when nobody can log in as the user."""

    model_config = _example(locked_until="2099-01-31T12:00:00Z", reason="lost laptop")

    locked_until: Later
    reason: Reason | None = None


# API keys


class NewKey(Body):
    """A key for oneself, or for `user_id`; `rate_limit` is in requests a minute, null for none."""

    model_config = _example(name="bot", permissions=["orders:write"], rate_limit=600)

    name: Line
    permissions: Labels = ()
    rate_limit: Annotated[StrictInt, Field(ge=1, le=RATE_LIMIT_MAX)] | None = None
    expires_at: Later | None = None
    user_id: UUID | None = None
    key_id: UUID | None = None


class KeyRotation(Body):
    """How a key gives way to another with the same rights.

    The old one lives on for `overlap_seconds`. The new one expires when the old one would have,
    unless `expires_at` says otherwise.
    """

    model_config = _example(overlap_seconds=86_400)

    overlap_seconds: Annotated[StrictInt, Field(ge=0, le=OVERLAP_SECONDS_MAX)] = 0
    expires_at: Later | None = None
    successor_key_id: UUID | None = None


# Orders

_TRIGGERED = [OrderType.STOP_LOSS, OrderType.TAKE_PROFIT]
_UNDATED = [each for each in TimeInForce if each is not TimeInForce.GTD]
_ORDER_CASES = (
    [_case(quantity="string", amount="null"), _case(amount="string", quantity="null")],
    [
        _case(order_type=[OrderType.MARKET], price="null", trigger_price="null"),
        _case(order_type=[OrderType.LIMIT], price="string", trigger_price="null"),
        _case(order_type=_TRIGGERED, trigger_price="string"),
    ],
    [
        _case(time_in_force=[TimeInForce.GTD], expires_at="string"),
        {"properties": {"time_in_force": {"enum": _UNDATED}, "expires_at": {"type": "null"}}},
    ],
)
"""What goes together in an order; each of the three has one case that holds."""


class NewOrder(Body):
    """An order over either `quantity` (of the token) or `amount` (in the quote currency).

    A limit order needs a `price`, a market order has none; stop_loss and take_profit need a
    `trigger_price`; gtd needs `expires_at`. One that may only reduce needs a `quantity`.
    """

    model_config = _described(
        [
            {
                "token": "BTC",
                "action": "buy",
                "order_type": "limit",
                "quantity": "0.5",
                "price": "64250.00",
            },
            {"token": "BTC", "action": "sell", "order_type": "market", "amount": "1000.00"},
            {
                "token": "BTC",
                "action": "sell",
                "order_type": "stop_loss",
                "quantity": "0.5",
                "trigger_price": "60000.00",
                "reduce_only": True,
            },
        ],
        allOf=[{"oneOf": cases} for cases in _ORDER_CASES],
    )

    token: Token
    action: Action
    order_type: OrderType
    quantity: OwnAmount | None = None
    amount: OwnAmount | None = None
    price: OwnAmount | None = None
    trigger_price: OwnAmount | None = None
    reference_price: OwnAmount | None = None
    time_in_force: TimeInForce = TimeInForce.GTC
    expires_at: Later | None = None
    slippage_bps: Annotated[StrictInt, Field(ge=0, le=BASIS_POINTS_MAX)] | None = None
    position_id: UUID | None = None
    reduce_only: StrictBool = False
    strategy: Identifier | None = None
    extra_data: ExtraData | None = None
    user_id: UUID | None = None
    order_id: UUID | None = None


class NewTerms(Body):
    """Another total quantity or price of an order, or both."""

    model_config = _described(
        [{"quantity": "0.4"}], anyOf=[_case(quantity="string"), _case(price="string")]
    )

    quantity: OwnAmount | None = None
    price: OwnAmount | None = None


class Nothing(Body):
    """Nothing: an empty object, or no body at all."""


class GivenUp(Body):
    """Why an order could not be carried out."""

    model_config = _example(reason="the venue is away")

    reason: Reason


# What a venue reports


class Fact(Body):
    """What a venue reports, and when that happened; without `occurred_at` when it is recorded."""

    occurred_at: Moment | None = None


class AcceptedFact(Fact):
    """The venue took the order."""

    model_config = _example(venue_order_id="V-1")

    venue_order_id: Identifier | None = None


class PriceFact(Fact):
    """Something happened to the order at a price."""

    model_config = _example(price="59990.00")

    price: VenueFigure | None = None


class TermsFact(Fact):
    """The venue changed the order to this total quantity and price; null: as before."""

    model_config = _example(quantity="0.4")

    quantity: VenueFigure | None = None
    price: VenueFigure | None = None


class RestatedFact(Fact):
    """The venue changed the order unasked: to a total quantity, or by a difference."""

    model_config = _example(quantity_change="-0.1", reason="reduced by the venue")

    quantity: VenueFigure | None = None
    quantity_change: VenueFigure | None = None
    reason: Reason | None = None


class ReasonFact(Fact):
    """Something happened to the order, and perhaps why."""

    model_config = _example(reason="too late")

    reason: Reason | None = None


class RejectedFact(Fact):
    """The venue refused the order."""

    model_config = _example(reason="no liquidity")

    reason: Reason


class ExecutionFact(Fact):
    """What a fill and the bust of one have; the venue names the fill by `fill_id`.

    Token, action, user and position are those of the order where they are not given. The fee is in
    the quote currency unless `fee_currency` names another; a rebate is negative.
    """

    fill_id: Identifier
    price: VenueFigure | None = None
    quote_amount: VenueFigure | None = None
    fee: VenueFigure | None = None
    fee_currency: Identifier | None = None
    token: Identifier | None = None
    action: Action | None = None
    user_id: UUID | None = None
    position_id: UUID | None = None


class FillFact(ExecutionFact):
    """The venue executed `quantity` at `price`, or for `quote_amount` in all."""

    model_config = _described(
        [{"fill_id": "F-1", "quantity": "0.2", "price": "64249.50", "fee": "1.28"}],
        anyOf=[_case(price="string"), _case(quote_amount="string")],
    )

    quantity: VenueFigure
    liquidity: Liquidity | None = None
    transaction_signature: Identifier | None = None


class BustFact(ExecutionFact):
    """The venue took a fill back; only one that is not known has to be described."""

    model_config = _example(fill_id="F-1", quantity="0.2", price="64249.50", fee="1.28")

    quantity: VenueFigure | None = None


# Marks and positions


class NewMark(Fact):
    """The token's mark price in the quote currency, and whose it is."""

    model_config = _example(token="BTC", price="64300.00", source="venue")  # noqa: S106 - no secret

    token: Token
    price: VenueFigure
    source: Identifier | None = None


class NewProtection(Body):
    """The levels of an open position, in place of those that it has; null takes one away.

    `position_id` is the explicit one that its orders carry, none for netting.
    """

    model_config = _example(token="BTC", stop_loss="60000.00", take_profit="70000.00")  # noqa: S106

    token: Token
    position_id: UUID | None = None
    stop_loss: OwnAmount | None = None
    take_profit: OwnAmount | None = None
    user_id: UUID | None = None


class LiquidationFact(Fact):
    """The venue closed the whole position at `price`, for a fee in the quote currency."""

    model_config = _example(
        user_id="01890a5d-ac96-774b-bcce-b302099a8057",
        token="BTC",  # noqa: S106 - no secret
        price="60000.00",
        fee="3",
    )

    user_id: UUID
    token: Token
    price: VenueFigure
    fee: VenueFigure | None = None
    position_id: UUID | None = None


# Answers


def _revealed(secret: SecretStr) -> str:
    return secret.get_secret_value()


ShownOnce = Annotated[
    SecretStr,
    PlainSerializer(_revealed, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string"}, mode="serialization"),
]
"""A secret that stands in the answer, and in no log of it."""


class Stored(BaseModel):
    """Where the events of a command are.

    `size` is a size of the journal that includes them. `offsets` is empty where all was so already;
    `duplicate` says that this very call stored nothing.
    """

    offsets: list[int]
    size: int
    duplicate: bool


class UserStored(Stored):
    """What was done to a user."""

    user_id: UUID


class UserErasure(UserStored):
    """A user's personal data is destroyed; `key_destroyed` is false where that was so already.

    `plain_events` counts events that an older release stored in plain, which cannot be erased.
    """

    key_destroyed: bool
    plain_events: int


class KeyStored(Stored):
    """What was done to an API key."""

    key_id: UUID


class KeyShown(KeyStored):
    """A key, which is never shown again.

    `key` is null where the answer is to a repeated request: the first one had it.
    """

    key: ShownOnce | None


class OrderStored(Stored):
    """What was stored of an order; `event` is null where a report was known already.

    `conflict` says that a known fill id came with other content, for which nothing was booked.
    """

    order_id: UUID
    event: str | None
    conflict: bool = False


class PositionStored(Stored):
    """What was stored of a position: the id of the cycle that it is about."""

    position_id: UUID


class MarkStored(Stored):
    """Where a mark is stored."""
