"""Marks: the last price of each token."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from sqlalchemy.orm import Mapped, mapped_column

from ledger.domain.marks import PriceMarked
from ledger.event import RecordedEvent
from projections.model import AMOUNT, Flags, ReadModel, exact
from projections.numbers import short
from projections.projection import Projection, State


class Mark(ReadModel):
    """The last mark price of a token, in the quote currency; `source` says whose."""

    __tablename__ = "marks"

    token: Mapped[str] = mapped_column(primary_key=True)
    price: Mapped[Decimal | None] = mapped_column(AMOUNT)
    exact_price: Mapped[Decimal] = exact()
    source: Mapped[str | None]
    marked_at: Mapped[datetime]
    flags: Mapped[Flags] = mapped_column(default=dict)


def _derived(row: Mark) -> dict[str, Decimal | None]:
    return {"price": row.exact_price}


marks = Projection(Mark, derived=_derived)


@marks.on(PriceMarked)
def _marked(state: State, recorded: RecordedEvent, event: PriceMarked) -> None:
    """The name of the stream bounds the token's length."""
    rows = state.rows(Mark)
    row = rows.edit(event.token, recorded) or rows.add(event.token, recorded)
    row.exact_price = event.price
    row.source = short(event.source)
    row.marked_at = recorded.occurred_at
