"""Commands for orders, of our own users and programs."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Response

from ledger.deciding import StreamMoved
from ledger.domain.order_commands import OrderState
from ledger.errors import CommandRefused
from ledger.http import routing
from ledger.http.answering import changing, making, not_found, stored
from ledger.http.calls import Call, call
from ledger.http.errors import IdTaken
from ledger.http.models import GivenUp, NewOrder, NewTerms, Nothing, OrderStored
from ledger.http.permissions import ACT_ANY, ORDERS_WRITE, VENUE_WRITE
from ledger.services.orders import Recorded

router = routing.router("orders")

Ordering = Annotated[Call, Depends(call(ORDERS_WRITE))]

_ON_AN_ORDER = changing(404, 409, 412)


@router.post(
    "/orders",
    status_code=201,
    responses=making(OrderStored, 409, 412),
)
async def place_order(body: NewOrder, by: Ordering, response: Response) -> OrderStored:
    """Place an order for oneself, or with `act:any` for `user_id`.

    Without `order_id` one is made, which follows from the Idempotency-Key if there is one.
    """
    user_id = by.for_user(body.user_id)
    try:
        placed = await by.ledger.orders.place(
            **body.given("user_id"), user_id=user_id, origin=by.origin
        )
    except (CommandRefused, StreamMoved):
        if body.order_id is not None and await _is_anothers(by, body.order_id):
            raise IdTaken from None
        raise
    fields = await stored(by, response, placed.appended)
    return OrderStored(order_id=placed.order_id, event=_kind(placed), **fields)


@router.post("/orders/{order_id}/cancel", responses=_ON_AN_ORDER)
async def cancel_order(
    order_id: UUID, body: Nothing, by: Ordering, response: Response
) -> OrderStored:
    """Ask the venue to cancel an order of one's own, or with `act:any` or `venue:write` of any."""
    await _check_own(by, order_id)
    done = await by.ledger.orders.request_cancel(order_id=order_id, origin=by.origin)
    return await _changed(by, response, done)


@router.post("/orders/{order_id}/replace", responses=_ON_AN_ORDER)
async def replace_order(
    order_id: UUID, body: NewTerms, by: Ordering, response: Response
) -> OrderStored:
    """Ask the venue for another total quantity or price of an order; whose, as for `cancel`."""
    await _check_own(by, order_id)
    done = await by.ledger.orders.request_replace(
        order_id=order_id, quantity=body.quantity, price=body.price, origin=by.origin
    )
    return await _changed(by, response, done)


@router.post("/orders/{order_id}/fail", responses=_ON_AN_ORDER)
async def fail_order(
    order_id: UUID, body: GivenUp, by: Ordering, response: Response
) -> OrderStored:
    """Give up an order that could not be carried out; whose, as for `cancel`."""
    await _check_own(by, order_id)
    done = await by.ledger.orders.fail(order_id=order_id, reason=body.reason, origin=by.origin)
    return await _changed(by, response, done)


async def _changed(by: Call, response: Response, done: Recorded) -> OrderStored:
    fields = await stored(by, response, done.appended)
    return OrderStored(order_id=done.order_id, event=_kind(done), **fields)


def _kind(done: Recorded) -> str:
    return type(done.event).__name__


async def _check_own(by: Call, order_id: UUID) -> None:
    """Turn whoever asks for somebody else's order away as if there were none."""
    order = await by.ledger.orders.state(order_id)
    if order.stage == 0 or not _may_see(by, order):
        raise not_found("order")


async def _is_anothers(by: Call, order_id: UUID) -> bool:
    """Whether there is an order that the caller must learn nothing of."""
    order = await by.ledger.orders.state(order_id)
    return order.stage != 0 and not _may_see(by, order)


def _may_see(by: Call, order: OrderState) -> bool:
    may_any = by.who.may(ACT_ANY) or by.who.may(VENUE_WRITE)
    return may_any or order.user_id == by.who.user_id
