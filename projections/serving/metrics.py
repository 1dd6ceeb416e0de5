"""What the service measures, for Prometheus: in a registry of its own, read by GET /metrics.

Counters and histograms are kept as requests and appends come; what only the database knows (lag,
parked keys, the seal) is asked for when somebody reads the metrics.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ledger.errors import LedgerError
from ledger.journal import Journal
from ledger.proof.log import log_of, seal_and_checkpoint
from ledger.stores import Appended, Outcome, Pooled
from projections.database import Database
from projections.health import PairStatus, pair_statuses
from projections.operations import RebuildSeen

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_EVENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SCRAPE_SECONDS_MAX = 5.0
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Operated(Protocol):
    """What knows of rebuilds."""

    def rebuilds(self) -> list[RebuildSeen]:
        """Return the rebuilds that were asked for, the latest first."""
        ...


class Buckets:
    """A histogram that is cheap to add to: an append must not notice it."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Take the upper bounds of the buckets, in order; there is one more for all else."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulated counts by upper bound, and the sum of all values."""
        named = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        found, total = [], 0.0
        for name, count in zip(named, self._counts, strict=True):
            total += count
            found.append((name, total))
        return found, self._sum


class Appends(Collector):
    """What a journal of this process has stored and refused since the start."""

    def __init__(self, journal: Journal) -> None:
        """Take the journal, which has to tell `stored` of its batches."""
        self._journal = journal
        self._events = 0
        self._appends: Tally[str] = Tally()
        self._seconds = Buckets(SECONDS)
        self._batches = Buckets(BATCH_EVENTS)

    def stored(self, outcomes: Sequence[Outcome], seconds: Sequence[float]) -> None:
        """Count a batch."""
        events, appended = 0, 0
        for outcome in outcomes:
            if type(outcome) is Appended and not outcome.duplicate:
                events += len(outcome.offsets)
                appended += 1
            else:
                self._appends[_kind(outcome)] += 1
        for each in seconds:
            self._seconds.add(each)
        self._appends["stored"] += appended
        self._events += events
        self._batches.add(events)

    def refused(self, error: LedgerError) -> None:
        """Count an append that never got into a batch."""
        self._appends[_kind(error)] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield what has been counted."""
        names, own = ["journal"], [self._journal.name]
        yield _counter("ledger_events_appended", "Events stored.", names, [(own, self._events)])
        found = [([*own, kind], count) for kind, count in sorted(self._appends.items())]
        names = [*names, "outcome"]
        yield _counter("ledger_appends", "Appends by what became of them.", names, found)
        waited = "Seconds from the call of an append to its outcome."
        yield _histogram("ledger_append_seconds", waited, own, self._seconds)
        yield _histogram("ledger_append_batch_events", "Events of a commit.", own, self._batches)
        queued = [(own, self._journal.queued_events)]
        yield _gauge("ledger_append_queue_events", "Events that wait.", ["journal"], queued)


class Requests:
    """Counts the requests of HTTP by the template of their path: never by the path itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Take where the metrics are registered."""
        names = ("method", "route")
        self._count = Counter(
            "ledger_http_requests", "Requests answered.", (*names, "status"), registry=registry
        )
        self._seconds = Histogram(
            "ledger_http_request_seconds",
            "Seconds until the answer began.",
            names,
            registry=registry,
            buckets=SECONDS,
        )
        self.in_progress = Gauge(
            "ledger_http_requests_in_progress", "Requests at work.", registry=registry
        )
        self._counter = cache(self._count.labels)
        self._histogram = cache(self._seconds.labels)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        known = method if method in METHODS else "OTHER"
        self._counter(known, route, str(status)).inc()
        self._histogram(known, route).observe(seconds)


class Seen(Collector):
    """What the database knows: it is asked each time before the metrics are read."""

    def __init__(self, journal: Journal, database: Database, operations: Operated) -> None:
        """Take what to ask."""
        self._journal = journal
        self._database = database
        self._operations = operations
        self._found: list[Metric] = []
        self._turn = asyncio.Lock()

    async def look(self) -> None:
        """Ask the database; where it does not answer in time, say that it is away."""
        async with self._turn:
            try:
                async with asyncio.timeout(SCRAPE_SECONDS_MAX):
                    pairs = await pair_statuses(self._database)
                    sealing = await self._sealing()
            except (LedgerError, TimeoutError):
                self._found = [_gauge(*_UP, [], [([], 0)])]
            else:
                self._found = [_gauge(*_UP, [], [([], 1)]), *_of_pairs(pairs), *sealing]

    async def _sealing(self) -> list[Metric]:
        """Return the journal's size, and how far it is sealed."""
        own, names = [self._journal.name], ["journal"]
        seal, newest = await seal_and_checkpoint(log_of(self._journal))
        size = [(own, await self._journal.size())]
        sealed = [] if seal is None else [(own, seal.size)]
        now = self._journal.now()
        age = [] if newest is None else [(own, _age(newest.made_at, now))]
        return [
            _gauge("ledger_journal_size", "Events of the journal.", names, size),
            _gauge("ledger_sealed_size", "Events that are sealed.", names, sealed),
            _gauge("ledger_signed_checkpoint_age_seconds", "Since it was signed.", names, age),
        ]

    def collect(self) -> Iterator[Metric]:
        """Yield what was found, and what this process knows itself."""
        yield from self._found
        yield from _of_pools(self._pools())
        yield from _of_rebuilds(self._operations.rebuilds())

    def _pools(self) -> dict[str, tuple[int, int, int]]:
        """Return open, used and allowed connections of each pool."""
        read, store = self._database.pool_statistics(), self._journal.store
        found = {"read": (read.open, read.in_use, read.size + read.overflow_max)}
        if isinstance(store, Pooled):
            kept = store.connections()
            found["store"] = (kept.open, kept.in_use, kept.most)
        return found


class Metrics:
    """All metrics of a process."""

    def __init__(self) -> None:
        """Begin to count."""
        self.registry = CollectorRegistry()
        self.requests = Requests(self.registry)
        self._seen: Seen | None = None
        ProcessCollector(registry=self.registry)

    def watch(self, journal: Journal, database: Database, operations: Operated) -> Appends:
        """Take what is open from now on; return what the journal has to tell of its batches."""
        appends = Appends(journal)
        self._seen = Seen(journal, database, operations)
        self.registry.register(appends)
        self.registry.register(self._seen)
        return appends

    async def text(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in a form that is accepted, and the type of that form."""
        if self._seen is not None:
            await self._seen.look()
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type


_UP = ("ledger_database_up", "Whether the database answers.")


def _kind(outcome: Outcome) -> str:
    return "duplicate" if isinstance(outcome, Appended) else type(outcome).__name__


Samples = Iterable[tuple[Sequence[str], float]]


def _counter(name: str, text: str, names: Sequence[str], samples: Samples) -> Metric:
    family = CounterMetricFamily(name, text, labels=names)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _gauge(name: str, text: str, names: Sequence[str], samples: Samples) -> Metric:
    family = GaugeMetricFamily(name, text, labels=names)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _histogram(name: str, text: str, journal: Sequence[str], counted: Buckets) -> Metric:
    family = HistogramMetricFamily(name, text, labels=["journal"])
    buckets, total = counted.buckets()
    family.add_metric(journal, buckets, total)
    return family


_PAIR = ("group", "journal")
_PAIR_GAUGES = {
    "projections_lag_events": ("Events that the tables lack.", "lag_events"),
    "projections_lag_seconds": ("Age of the first event that they lack.", "lag_seconds"),
    "projections_checkpoint": ("Size up to which the tables are folded.", "checkpoint"),
    "projections_parked_keys": ("Keys that wait for a poisoned event.", "parked"),
    "projections_stalled": ("1 where events wait and nothing moves.", "stalled"),
    "projections_ownerless": ("1 where no worker has it, for long.", "ownerless"),
}


def _of_pairs(pairs: Sequence[PairStatus]) -> Iterator[Metric]:
    for name, (text, field) in _PAIR_GAUGES.items():
        found = [([each.group, each.journal], float(getattr(each, field))) for each in pairs]
        yield _gauge(name, text, _PAIR, found)
    now = datetime.now(UTC)
    moved = [(each, each.moved_at) for each in pairs]
    ages = [([e.group, e.journal], _age(at, now)) for e, at in moved if at is not None]
    yield _gauge("projections_checkpoint_age_seconds", "Since it moved.", _PAIR, ages)


def _age(moment: datetime, now: datetime) -> float:
    return max(0.0, (now - moment).total_seconds())


def _of_pools(pools: Mapping[str, tuple[int, int, int]]) -> Iterator[Metric]:
    texts = {"open": "Open connections.", "in_use": "At work.", "max": "Allowed at most."}
    for number, (what, text) in enumerate(texts.items()):
        found = [([pool], float(figures[number])) for pool, figures in pools.items()]
        yield _gauge(f"ledger_pool_connections_{what}", text, ["pool"], found)


def _of_rebuilds(rebuilds: Sequence[RebuildSeen]) -> Iterator[Metric]:
    running = [each for each in rebuilds if each.state == "running"]
    has_failed = bool(rebuilds) and rebuilds[0].state == "failed"
    folded, total = (sum(getattr(e, name) for e in running) for name in ("folded", "total"))
    yield _gauge("projections_rebuild_running", "Rebuilds at work.", [], [([], len(running))])
    yield _gauge("projections_rebuild_folded_events", "Folded by them.", [], [([], folded)])
    yield _gauge("projections_rebuild_total_events", "To be folded.", [], [([], total)])
    text = "1 where the latest one failed."
    yield _gauge("projections_last_rebuild_failed", text, [], [([], float(has_failed))])
