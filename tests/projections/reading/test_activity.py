"""The time line of a journal."""

from __future__ import annotations

from ledger.domain.marks import PriceMarked
from ledger.event import VenueAmount
from ledger.journal import Journal
from projections.reading.activity import activity
from tests.projections.support import append


async def test_samples_lie_evenly_from_the_first_event_to_the_last(journal: Journal) -> None:
    """Each sample has the time at which an event was recorded; both ends are among them."""
    assert (await activity(journal)).samples == ()
    await append(journal, [PriceMarked(token="BTC", price=VenueAmount(1))] * 1)
    assert [size for size, _ in (await activity(journal)).samples] == [1]
    await append(journal, [PriceMarked(token="BTC", price=VenueAmount(n + 1)) for n in range(100)])
    found = await activity(journal, samples=11)
    assert found.size == 101
    assert [size for size, _ in found.samples] == [1 + 10 * n for n in range(11)]
    recorded = [each.recorded_at async for each in journal.read()]
    assert [at for _, at in found.samples] == recorded[::10]
    assert len((await activity(journal, samples=1000)).samples) == 101
