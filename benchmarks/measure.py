"""What the benchmarks share: timing many callers, and saying on what machine it was."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

DURABILITY = ("fsync", "synchronous_commit", "full_page_writes", "wal_sync_method")


class Figure(NamedTuple):
    """How fast something went: events a second, and how long one append took."""

    rate: float
    p50_ms: float = float("nan")
    p99_ms: float = float("nan")


def settle() -> None:
    """Take what was made so far out of the garbage collector's sight, before time is taken."""
    gc.collect()
    gc.freeze()


async def drive(callers: int, events: int, append: Callable[[int], Awaitable[object]]) -> Figure:
    """Let `callers` append at the same time, each one event after the other."""
    latencies: list[float] = []

    async def caller(first: int) -> None:
        for number in range(first, events, callers):
            began = time.perf_counter()
            await append(number)
            latencies.append(time.perf_counter() - began)

    settle()
    began = time.perf_counter()
    await asyncio.gather(*(caller(first) for first in range(callers)))
    return figure(len(latencies), time.perf_counter() - began, latencies)


def figure(events: int, seconds: float, latencies: list[float] | None = None) -> Figure:
    """Return the figure for so many events in so many seconds."""
    if not latencies:
        return Figure(events / seconds)
    cuts = statistics.quantiles(latencies, n=100)
    return Figure(events / seconds, cuts[49] * 1000, cuts[98] * 1000)


def median(figures: list[Figure]) -> Figure:
    """Return the median of each part."""
    return Figure(*(statistics.median(part) for part in zip(*figures, strict=True)))


def machine() -> str:
    """Return date, processor, cores and Python in one line."""
    model = platform.processor() or platform.machine()
    for line in _cpuinfo():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    day = datetime.now(UTC).date().isoformat()
    return f"{day}, {model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def table(rows: list[tuple[str, Figure]]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| what | events/s | p50 ms | p99 ms |", "|---|--:|--:|--:|"]
    for name, (rate, p50_ms, p99_ms) in rows:
        shown = [f"{x:.2f}" if x == x else "" for x in (p50_ms, p99_ms)]
        lines.append(f"| {name} | {rate:,.0f} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)
