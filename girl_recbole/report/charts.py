"""Charts of a report: SVG made here, without a plotting library, that works without JavaScript.

tracks       one line a row: its name, marks and intervals on a common axis, its numbers. The SVG has coordinates in
             per cent and no view box, so that it fills any width while letters and dots keep their size
panel        lines with intervals against a number; two_panels: one above the other, with one x-axis
reliability  share of matches against predicted probability, by bin, with the number of pairs in each
shares       parts of a whole, one bar a row (wins, ties, losses)

Colours and dashes are CSS classes (page.css) that follow the theme: series k is ``s1`` ... ``s6``, which differ in
colour (for colour-blind readers too) and in shape. What a mark says stands in its ``<title>``. Every text goes through
``Markup.format``, which escapes it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from girl_recbole.report.tables import minus

__all__ = [
    "Chart",
    "Mark",
    "Series",
    "Track",
    "bins_of",
    "nice_ticks",
    "panel",
    "reliability",
    "shares",
    "swatch",
    "tracks",
    "two_panels",
]

_SHAPES = (  # centred on 0, 0; about as large as a circle of radius 4.5
    "",  # a circle
    "M-4 -4H4V4H-4Z",
    "M0 -5L5 4H-5Z",
    "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "M0 5L5 -4H-5Z",
    "M-4.5 -1.6H-1.6V-4.5H1.6V-1.6H4.5V1.6H1.6V4.5H-1.6V1.6H-4.5Z",
)
SERIES = len(_SHAPES)
"""How many series a chart can tell apart."""


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption; ``wide`` ones take a line of their own, others stand side by side in a grid."""

    caption: str
    html: Markup
    legend: Sequence[tuple[int, str]] = ()
    wide: bool = True
    about: str = ""
    kind: str = "chart"


@dataclass(frozen=True)
class Mark:
    """One dot, with an interval where ``low`` and ``high`` are given; ``series`` counts from 1."""

    x: float
    low: float | None = None
    high: float | None = None
    series: int = 1
    title: str = ""


@dataclass(frozen=True)
class Track:
    """A row of :func:`tracks`: its marks below each other, what is said at its end."""

    label: str
    marks: Sequence[Mark]
    value: str = ""


@dataclass(frozen=True)
class Series:
    """A line through points (x, y, low or None, high or None); ``best``: a point (x, y) that is marked."""

    name: str
    points: Sequence[tuple[float, float, float | None, float | None]]
    number: int = 1
    dots: bool = True
    best: tuple[float, float] | None = None


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high], some ``about`` of them, at least two where low < high."""
    raw = (high - low) / max(1, about)
    power = 10 ** math.floor(math.log10(raw))
    steps = [k * power for k in (10, 5, 2.5, 2, 1, 0.5, 0.25, 0.2, 0.1)]
    for step in [step for step in steps if step >= raw * 0.999][::-1] + [step for step in steps if step < raw]:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last > first:
            return [round(k * step, 12) for k in range(first, last + 1)]
    return [low, high]


def tracks(rows: Sequence[Track], axis: str, *, lines: Sequence[tuple[float, str]] = (), zero: bool = False) -> Markup:
    """The rows on one axis named ``axis``; ``lines``: references (x, name) drawn through all; ``zero``: a line at 0."""
    every = [x for row in rows for mark in row.marks for x in (mark.x, mark.low, mark.high) if x is not None]
    low, high = _domain([*every, *(x for x, _ in lines), *([0.0] if zero else [])])
    ticks = nice_ticks(low, high)

    def at(x: float) -> str:
        return _r(100 * (x - low) / (high - low))

    grid = _all(_upright("grid", at(tick)) for tick in ticks)
    grid += _upright("zero", at(0.0)) if zero else ""
    grid += _all(_upright("ref", at(x)) for x, _ in lines)
    parts = [_references(lines, at)] if lines else []
    parts += [_track(row, grid, at) for row in rows]
    names = _all(
        Markup('<text x="{}%" y="14" text-anchor="{}" class="tick">{}</text>').format(at(t), _anchor(at(t)), name)
        for t, name in zip(ticks, _names(ticks), strict=True)
    )
    names += Markup('<text x="50%" y="33" text-anchor="middle" class="unit">{}</text>').format(axis)
    parts.append(_row("", _plot(names, 38), "", "axis"))
    return Markup('<div class="tracks">{}</div>').format(_all(parts))


def panel(
    series: Sequence[Series], x_name: str, y_name: str, ticks: Sequence[float], heights: Sequence[float],
    width: int = 420, height: int = 290,
) -> Markup:  # fmt: skip
    """Lines against a number with ``ticks`` there; ``heights``: all values that the y-axis must hold."""
    low, high = _domain(ticks, 0.06)
    y_ticks = nice_ticks(*_domain(heights))
    box = (_left(y_ticks), 12, width - 12, height - 44)
    body, at_x, at_y = _axes(box, (low, high), _apart(ticks, low, high), _domain(heights), y_ticks, x_name, y_name)
    for k, one in enumerate(series):
        aside = 7 * (k - (len(series) - 1) / 2)  # so that intervals at one number do not hide each other
        body += _line(one, lambda x, aside=aside: at_x(x) + aside, at_y, x_name, y_name)
    return _boxed(body, width, height)


def two_panels(
    upper: Sequence[Series], lower: Sequence[Series], x_name: str, names: tuple[str, str], heights: Sequence[float],
    width: int = 290,
) -> Markup:  # fmt: skip
    """Two plots above each other with one x-axis that counts; ``heights``: what the upper y-axis must hold."""
    xs = [point[0] for one in (*upper, *lower) for point in one.points]
    span = _domain(xs, 0.02)
    ticks = [tick for tick in nice_ticks(*span, about=4) if tick == int(tick)] or [float(round(sum(span) / 2))]
    below = [point[1] for one in lower for point in one.points]
    plots = [(upper, names[0], heights)] * bool(upper) + [(lower, names[1], below)] * bool(lower)
    y_ticks = [nice_ticks(*_domain(values), about=4) for *_, values in plots]
    left, top, body = max(map(_left, y_ticks)), 10, Markup("")
    for k, ((series, name, values), some) in enumerate(zip(plots, y_ticks, strict=True)):
        box, last = (left, top, width - 10, top + 96), k == len(plots) - 1
        axes, at_x, at_y = _axes(box, span, ticks, _domain(values), some, x_name if last else "", name)
        body += axes + _all(_line(one, at_x, at_y, x_name, name) for one in series)
        top += 96 + (44 if last else 20)
    return _boxed(body, width, top)


def bins_of(probabilities, labels, bins: int) -> list[tuple[float, float, int]]:
    """(mean probability, share of matches, pairs) of each bin of equal width on [0, 1] that has pairs; as ECE's."""
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    which = np.minimum((p * bins).astype(np.int64), bins - 1)
    counts = np.bincount(which, minlength=bins)
    mean, share = (np.bincount(which, weights=w, minlength=bins) / np.maximum(counts, 1) for w in (p, y))
    return [(float(mean[k]), float(share[k]), int(counts[k])) for k in range(bins) if counts[k]]


def reliability(bins: Sequence[tuple[float, float, int]], of: int) -> Markup:
    """A reliability diagram of :func:`bins_of`'s ``of`` bins; below it the number of pairs in each."""
    size, strip, ticks = 180, 34, (0, 0.25, 0.5, 0.75, 1)
    box = (_left(ticks), 8, _left(ticks) + size, 8 + size)
    body, x, y = _axes(box, (0, 1), ticks, (0, 1), ticks, "", "share matched")
    body += Markup('<line class="diagonal" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
        *map(_r, (x(0), y(0), x(1), y(1)))
    )
    body += _path([(x(p), y(share)) for p, share, _ in bins], 1)
    most, floor = max(count for *_, count in bins), y(0) + strip + 6
    for p, share, count in bins:
        title = _title(f"predicted {p:.3f}, matched {share:.3f}, {count:,} pairs")
        radius, tall = 2.5 + 4.5 * math.sqrt(count / most), max(1.0, strip * count / most)
        begin, wide = x(math.floor(min(p, 1 - 1e-9) * of) / of), size / of
        spot = [*map(_r, (x(p), y(share), radius)), title]
        body += Markup('<circle class="s1" cx="{}" cy="{}" r="{}">{}</circle>').format(*spot)
        bar = [*map(_r, (begin + 1, floor - tall, wide - 2, tall)), title]
        body += Markup('<rect class="count" x="{}" y="{}" width="{}" height="{}">{}</rect>').format(*bar)
    body += _all(_text("tick", x(tick), floor + 15, "middle", f"{tick:g}") for tick in ticks)
    body += _text("unit", x(0.5), floor + 32, "middle", "predicted probability")
    return _boxed(body, box[2] + 14, floor + 38)


def shares(rows: Sequence[tuple[str, Sequence[tuple[float, str]], str]]) -> Markup:
    """Bars of parts (share, title) that sum to 1: rows of (label, parts, what is said at the end)."""
    out = []
    for label, parts, said in rows:
        begin, body = 0.0, Markup("")
        for k, (share, title) in enumerate(parts, start=1):
            if share > 0:
                bar = (k, _r(100 * begin), _r(100 * share), _title(title))
                body += Markup('<rect class="p{}" x="{}%" width="{}%" y="4" height="20">{}</rect>').format(*bar)
            if share >= 0.12:
                at = _r(100 * (begin + share / 2))
                body += Markup('<text class="in p{}" x="{}%" y="18.5" text-anchor="middle">{:.0f} %</text>').format(
                    k, at, 100 * share
                )
            begin += share
        out.append(_row(label, _plot(body, 28), said))
    return Markup('<div class="tracks">{}</div>').format(_all(out))


def swatch(series: int) -> Markup:
    """A series' mark, for a legend; of a negative one the colour of that part of :func:`shares`."""
    if series < 0:
        part = Markup('<rect class="p{}" x="1" y="1" width="12" height="12"/>').format(-series)
        return Markup('<svg class="swatch" width="14" height="14" aria-hidden="true">{}</svg>').format(part)
    line = Markup('<line class="whisker s{}" x1="1" x2="21" y1="7" y2="7"/>').format(series)
    return Markup('<svg class="swatch" width="22" height="14" aria-hidden="true">{}{}</svg>').format(
        line, _dot(series, "11", "7")
    )


# --------------------------------------------------------------------------------------------------------- the pieces


def _all(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _r(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _domain(values: Sequence[float], pad: float = 0.04) -> tuple[float, float]:
    """The range of an axis: that of the values, and a little on both sides."""
    low, high = min(values), max(values)
    room = pad * (high - low) or abs(low) * 0.05 or 0.5
    return low - room, high + room


def _names(ticks: Sequence[float]) -> list[str]:
    """Ticks with as many decimals as the step between them has."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
    digits = next((d for d in range(8) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 8)
    return [minus(f"{tick:,.{digits}f}") for tick in ticks]


def _apart(ticks: Sequence[float], low: float, high: float) -> list[float]:
    """Those of ``ticks`` that have room for their names."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick - kept[-1] > 0.07 * (high - low):
            kept.append(tick)
    return kept


def _anchor(place: str) -> str:
    return "start" if float(place) < 2 else "end" if float(place) > 98 else "middle"


def _title(text: str) -> Markup:
    return Markup("<title>{}</title>").format(text)


def _text(kind: str, x: float, y: float, anchor: str, text: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, _r(x), _r(y), anchor, text)


def _upright(kind: str, x: str) -> Markup:
    return Markup('<line class="{0}" x1="{1}%" x2="{1}%" y1="0" y2="100%"/>').format(kind, x)


def _plot(body: Markup, height: int) -> Markup:
    return Markup(
        '<svg class="plot" width="100%" height="{0}" aria-hidden="true"><svg x="2%" width="96%" height="{0}" '
        'overflow="visible">{1}</svg></svg>'
    ).format(height, body)


def _row(label: str, drawing: Markup, value: str, kind: str = "") -> Markup:
    return Markup(
        '<div class="track {}"><span class="name">{}</span>{}<span class="value">{}</span></div>'
    ).format(kind, label, drawing, value)  # fmt: skip


def _references(lines: Sequence[tuple[float, str]], at: Callable[[float], str]) -> Markup:
    """The names of the reference lines, on levels of their own so that near ones do not meet."""
    body = Markup("")
    for k, (x, name) in enumerate(lines):
        anchor = "start" if float(at(x)) < 15 else "end" if float(at(x)) > 85 else "middle"
        level = 12 + 15 * k
        body += Markup('<text class="refname" x="{}%" y="{}" text-anchor="{}">{}</text>').format(
            at(x), level, anchor, name
        )
        body += Markup('<line class="ref" x1="{0}%" x2="{0}%" y1="{1}" y2="100%"/>').format(at(x), level + 4)
    return _row("", _plot(body, 18 + 15 * (len(lines) - 1)), "", "refs")


def _track(row: Track, grid: Markup, at: Callable[[float], str]) -> Markup:
    height = max(28, 10 + 11 * len(row.marks))
    body = grid
    for k, mark in enumerate(row.marks):
        y = _r(height / 2 + 11 * (k - (len(row.marks) - 1) / 2))
        title = _title(mark.title or f"{row.label}: {row.value}")
        if mark.low is not None and mark.high is not None:
            ends = (mark.series, at(mark.low), at(mark.high), y, title)
            body += Markup('<line class="whisker s{0}" x1="{1}%" x2="{2}%" y1="{3}" y2="{3}">{4}</line>').format(*ends)
        body += _dot(mark.series, f"{at(mark.x)}%", y, title)
    return _row(row.label, _plot(body, height), row.value)


def _dot(series: int, x: str, y: str, title: Markup | str = "") -> Markup:
    shape = _SHAPES[(series - 1) % SERIES]
    if not shape:
        return Markup('<circle class="s{}" cx="{}" cy="{}" r="4.5">{}</circle>').format(series, x, y, title)
    path = Markup('<path class="s{}" d="{}">{}</path>').format(series, shape, title)
    return Markup('<svg x="{}" y="{}" overflow="visible">{}</svg>').format(x, y, path)


def _left(ticks: Sequence[float]) -> float:
    """Where a plot begins beside the names of its y-ticks and the name of the axis."""
    return 30 + 7.4 * max(map(len, _names(ticks)))


def _axes(box, x_range, x_ticks, y_range, y_ticks, x_name: str, y_name: str):
    """Grid, ticks and names of a plot in ``box`` (left, top, right, bottom); functions that place x and y."""
    left, top, right, bottom = box

    def at_x(value: float) -> float:
        return left + (right - left) * (value - x_range[0]) / (x_range[1] - x_range[0])

    def at_y(value: float) -> float:
        return bottom - (bottom - top) * (value - y_range[0]) / (y_range[1] - y_range[0])

    body = Markup("")
    for tick, name in zip(y_ticks, _names(y_ticks), strict=True):
        line = (_r(left), _r(right), _r(at_y(tick)))
        body += Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(*line)
        body += _text("tick", left - 6, at_y(tick) + 4, "end", name)
    for tick in x_ticks:
        line = (_r(at_x(tick)), _r(top), _r(bottom))
        body += Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(*line)
        body += _text("tick", at_x(tick), bottom + 16, "middle", f"{tick:,g}") if x_name else ""
    body += _text("unit", (left + right) / 2, bottom + 35, "middle", x_name) if x_name else ""
    turned = (13, _r((top + bottom) / 2), y_name)
    body += Markup(
        '<text class="unit" x="{0}" y="{1}" text-anchor="middle" transform="rotate(-90 {0} {1})">{2}</text>'
    ).format(*turned)
    return body, at_x, at_y


def _line(one: Series, at_x, at_y, x_name: str, y_name: str) -> Markup:
    body = _path([(at_x(x), at_y(y)) for x, y, *_ in one.points], one.number)
    for x, y, low, high in one.points:
        about = f"{one.name}: {x_name} {x:,g}, {y_name} {y:.4f}"
        if low is not None and high is not None:
            about += f" [{low:.4f}, {high:.4f}]"
            line = (one.number, _r(at_x(x)), _r(at_y(low)), _r(at_y(high)))
            body += Markup('<line class="whisker s{0}" x1="{1}" x2="{1}" y1="{2}" y2="{3}"/>').format(*line)
        if one.dots or len(one.points) == 1:
            body += _dot(one.number, _r(at_x(x)), _r(at_y(y)), _title(minus(about)))
    if one.best is not None:
        x, y = one.best
        about = f"{one.name}: best {y_name} {y:.4f} at {x_name} {x:,g}"
        body += _dot(one.number, _r(at_x(x)), _r(at_y(y)), _title(minus(about)))
    return body


def _path(points: Iterable[tuple[float, float]], series: int) -> Markup:
    places = " ".join(f"{_r(x)},{_r(y)}" for x, y in points)
    return Markup('<polyline class="path s{}" points="{}"/>').format(series, places)


def _boxed(body: Markup, width: float, height: float) -> Markup:
    return Markup('<svg class="panel" viewBox="0 0 {0} {1}" width="{0}" aria-hidden="true">{2}</svg>').format(
        _r(width), _r(height), body
    )
