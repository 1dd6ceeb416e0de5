"""Charts as SVG: places along the axes are percentages, so that texts keep their size everywhere.

Colours come from classes of the style sheet, so charts are light and dark as the page is; nothing
is told by colour alone. Each chart has a title and a description; the page has the numbers too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from math import ceil, floor, log10, sqrt

import msgspec
from markupsafe import Markup

Points = Sequence[tuple[float, float | None]]
"""Places along the axes, x first; None breaks the line."""

BOX = 1000
TICKS = 4
LEVELS_MAX = 4
BAR_GAP_PERCENT = 0.15


class Scale(msgspec.Struct, frozen=True):
    """Which values lie at the two ends of an axis."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float], *, margin: float = 0.0) -> Scale:
        """Return the scale that holds all values, with a part of the range to spare at each end."""
        found = list(values) or [0.0]
        low, high = min(found), max(found)
        room = (high - low) * margin or (abs(high) * margin if low == high else 0.0)
        return cls(low - room, high + room)

    def share(self, value: float) -> float:
        """Return where a value lies, from 0 to 1; in the middle where there is but one."""
        span = self.high - self.low
        return (value - self.low) / span if span else 0.5

    def percent(self, value: float) -> str:
        """Return where a value lies as SVG has it."""
        return f"{100 * self.share(value):.3f}%"


def figure(name: str, title: str, description: str, height: int, parts: Iterable[Markup]) -> Markup:
    """Return a chart of `height` pixels, as wide as its place; `name` is the prefix of its ids."""
    return Markup(
        '<svg class="chart" role="img" width="100%" height="{h}" aria-labelledby="{n}-t {n}-d">'
        '<title id="{n}-t">{t}</title><desc id="{n}-d">{d}</desc>{p}</svg>'
    ).format(n=name, t=title, d=description, h=height, p=Markup("").join(parts))


def activity(samples: Sequence[tuple[int, datetime]], size: int, pins: dict[str, int]) -> Markup:
    """Return how fast a journal grew, along its sizes; `pins` are names and sizes to be marked."""
    scale, height = Scale(0, max(size, 1)), 44
    rates = [
        (first, second - first, (second - first) / max((late - early).total_seconds(), 1e-3))
        for (first, early), (second, late) in pairwise(samples)
        if second > first
    ]
    most = max((rate for _, _, rate in rates), default=1.0)
    bars = [
        _bar(scale.share(at), scale.share(count), height, (height - 14) * sqrt(rate / most))
        for at, count, rate in rates
    ]
    marks = [_pin(scale, name, at, height) for name, at in pins.items()]
    told = f"{size:,} events; bars are higher where more were recorded in the same time"
    return figure("activity", "Activity over the journal", told, height, [*bars, *marks])


def _bar(at: float, width: float, bottom: float, height: float, css: str = "bar") -> Markup:
    return Markup(
        '<rect class="{}" x="{:.3f}%" y="{:.1f}" width="{:.3f}%" height="{:.1f}"/>'
    ).format(
        css, 100 * at, bottom - height, max(0.05, 100 * width - BAR_GAP_PERCENT), max(height, 0.5)
    )


def _pin(scale: Scale, name: str, size: int, height: int) -> Markup:
    # Two pins may be near each other: the first one's name stands before it, the other's behind.
    place = scale.share(size)
    anchor = "end" if place > 0.9 or (name == "A" and place > 0.1) else "start"
    return Markup(
        '<line class="pin" x1="{x}" x2="{x}" y1="0" y2="{h}"/>'
        '<text class="pin" x="{x}" y="10" dx="{d}" text-anchor="{a}">{n}</text>'
    ).format(x=scale.percent(size), h=height, n=name, a=anchor, d=-4 if anchor == "end" else 4)


class Series(msgspec.Struct, frozen=True):
    """One kind of a histogram: its name, its class, and a count for each bucket."""

    name: str
    css: str
    counts: Sequence[int]


def histogram(
    name: str, title: str, starts: Sequence[datetime], width: timedelta, series: Sequence[Series]
) -> Markup:
    """Return stacked counts by time, in buckets of one width."""
    height, bottom = 170, 150
    up = Scale(0, max(map(sum, zip(*(each.counts for each in series), strict=True)), default=1))
    levels = [each for each in _levels(up, 16, bottom - 16) if each[1].isdigit()]
    parts = [*_grid(levels)]
    tall, wide = (bottom - 16) / up.high, 1 / max(1, len(starts))
    for number in range(len(starts)):
        counts = [(each.css, each.counts[number]) for each in series]
        parts += _stack(counts, number * wide, wide, bottom, tall)
    parts += _grid_texts(levels)
    if starts:
        parts += _time_ticks(starts[0], starts[-1] + width, height - 4)
    told = ", ".join(f"{sum(each.counts)} {each.name}" for each in series)
    return figure(name, title, f"{told}; the highest bar is {up.high:g}", height, parts)


def _stack(
    counts: Iterable[tuple[str, int]], at: float, width: float, bottom: float, tall: float
) -> Iterator[Markup]:
    """Yield the bars of one bucket, each on the one before."""
    for css, count in counts:
        if count:
            yield _bar(at, width, bottom, count * tall, css)
            bottom -= count * tall


def _grid(levels: Iterable[tuple[float, str]]) -> Iterator[Markup]:
    """Yield a line for each height."""
    for y, _ in levels:
        yield Markup('<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>').format(y=y)


def _grid_texts(levels: Iterable[tuple[float, str]]) -> Iterator[Markup]:
    """Yield the values of the lines, to be drawn over all else."""
    for y, text in levels:
        yield Markup('<text class="axis" x="100%" y="{:.1f}" text-anchor="end">{}</text>').format(
            y - 3, text
        )


def _time_ticks(first: datetime, last: datetime, y: float) -> Iterator[Markup]:
    """Yield the times at the ends of the axis and between them."""
    form = "%H:%M" if last - first <= timedelta(days=2) else "%Y-%m-%d"
    anchors = ("start", *["middle"] * (TICKS - 2), "end")
    for number, anchor in enumerate(anchors):
        share = number / (TICKS - 1)
        at = first + (last - first) * share
        yield Markup('<text class="axis" x="{:.2f}%" y="{}" text-anchor="{}">{}</text>').format(
            100 * share, y, anchor, at.strftime(form)
        )


class Line(msgspec.Struct, frozen=True):
    """A line of a panel: its class, and its points; in steps it stays until the next one."""

    css: str
    points: Points
    steps: bool = False
    filled: bool = False


class Marker(msgspec.Struct, frozen=True):
    """A mark at a place of a panel: a triangle that points up for a buy, down for a sale."""

    css: str
    x: float
    y: float
    is_up: bool
    title: str


class Panel(msgspec.Struct, frozen=True):
    """One of several charts above each other with a common axis of time."""

    title: str
    height: int
    lines: Sequence[Line]
    markers: Sequence[Marker] = ()
    includes_zero: bool = False

    def values(self) -> Iterator[float]:
        """Yield all that the vertical axis must hold."""
        yield from (y for line in self.lines for _, y in line.points if y is not None)
        yield from (marker.y for marker in self.markers)
        if self.includes_zero:
            yield 0.0


def panels(
    name: str,
    title: str,
    description: str,
    span: tuple[datetime, datetime],
    shown: Sequence[Panel],
) -> Markup:
    """Return panels above each other; their points count seconds along `span`."""
    along = Scale(0, max((span[1] - span[0]).total_seconds(), 1e-6))
    parts: list[Markup] = []
    top = 0
    for panel in shown:
        parts.append(_panel(panel, along, top))
        top += panel.height
    parts += _time_ticks(*span, top + 12)
    return figure(name, title, description, top + 18, parts)


def _panel(panel: Panel, along: Scale, top: int) -> Markup:
    up, head = Scale.of(panel.values(), margin=0.08), 18
    begin, inner = top + head, panel.height - head - 6
    levels = _levels(up, begin, inner)
    lines = Markup("").join(_drawn(line, along, up) for line in panel.lines)
    parts = [
        Markup('<text class="panel" x="0" y="{}">{}</text>').format(top + 12, panel.title),
        *_grid(levels),
        Markup(
            '<svg x="0" y="{}" width="100%" height="{}" viewBox="0 0 {b} {b}"'
            ' preserveAspectRatio="none">{}</svg>'
        ).format(begin, inner, lines, b=BOX),
        *(_marker(each, along, up, begin, inner) for each in panel.markers),
        *_grid_texts(levels),
    ]
    return Markup("").join(parts)


def _levels(up: Scale, top: float, height: float) -> list[tuple[float, str]]:
    """Return the heights of round values of the vertical axis, with their texts."""
    values = round_values(up)
    return [(top + height * (1 - up.share(value)), rounded(value)) for value in values]


def round_values(scale: Scale) -> list[float]:
    """Return the few values of a scale that have the fewest digits."""
    span = scale.high - scale.low
    if span <= 0:
        return [scale.low]
    power = 10.0 ** floor(log10(span))
    step = next(each * power for each in (0.2, 0.5, 1, 2, 5) if span / (each * power) < LEVELS_MAX)
    first = ceil(scale.low / step)
    return [step * number for number in range(first, floor(scale.high / step) + 1)]


def rounded(value: float) -> str:
    """Return a round value as axes have it."""
    return f"{value:,.10g}"


def _drawn(line: Line, along: Scale, up: Scale) -> Markup:
    drawn = [_path(piece, along, up) for piece in _pieces(line)]
    path = Markup('<path class="{}" d="{}" vector-effect="non-scaling-stroke"/>').format(
        line.css, " ".join(drawn)
    )
    if not line.filled or not drawn:
        return path
    zero = BOX * (1 - up.share(min(max(0.0, up.low), up.high)))
    areas = (
        f"{_path(piece, along, up)} V{zero:.1f} H{BOX * along.share(piece[0][0]):.1f} Z"
        for piece in _pieces(line)
    )
    return Markup('<path class="{}-area" d="{}"/>').format(line.css, " ".join(areas)) + path


def _pieces(line: Line) -> Iterator[list[tuple[float, float]]]:
    """Yield the parts of a line between its breaks; one in steps turns at each point."""
    piece: list[tuple[float, float]] = []
    for x, y in line.points:
        if line.steps and piece:
            piece.append((x, piece[-1][1]))
        if y is not None:
            piece.append((x, y))
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _path(piece: Sequence[tuple[float, float]], along: Scale, up: Scale) -> str:
    places = (f"{BOX * along.share(x):.1f} {BOX * (1 - up.share(y)):.1f}" for x, y in piece)
    return "M" + " L".join(places)


def _marker(marker: Marker, along: Scale, up: Scale, top: float, height: float) -> Markup:
    shape = "M0 -7 L6 5 L-6 5 Z" if marker.is_up else "M0 7 L6 -5 L-6 -5 Z"
    return Markup(
        '<svg class="marker" x="{}" y="{:.1f}">'
        '<path class="{}" d="{}"><title>{}</title></path></svg>'
    ).format(
        along.percent(marker.x),
        top + height * (1 - up.share(marker.y)),
        marker.css,
        shape,
        marker.title,
    )
