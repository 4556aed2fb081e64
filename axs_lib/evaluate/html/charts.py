"""Small charts as SVG for a page: lines, points and bars that take their colours from the page's style sheet.

In: numbers in plain sequences. Out: SVG text with a title for screen readers; every text in it is escaped. Classes are
``s-NAME`` a series, so that light and dark are the page's business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 320, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 34
TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: for people.
        key: of its style, such as ``v2``.
        points: x and y.
        marks: whether its points are drawn, too.
    """

    name: str
    key: str
    points: Sequence[Point]
    marks: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "",
    y_label: str = "",
    y_from_zero: bool = False,
    diagonal: bool = False,
    same_axes: bool = False,
    x_ticks: Sequence[float] | None = None,
) -> str:
    """Lines over one pair of axes.

    Args:
        title: says what is shown.
        series: at least one with a finite point, else the chart is empty text.
        x_label: below.
        y_label: above the vertical axis.
        y_from_zero: whether the vertical axis starts at 0.
        diagonal: draws y = x.
        same_axes: whether both axes have one range.
        x_ticks: numbers along the horizontal axis; round ones by default.
    """
    shown = [(s, [p for p in s.points if all(map(math.isfinite, p))]) for s in series]
    points = [p for _, kept in shown for p in kept]
    if not points:
        return ""
    xs, ys = _range([x for x, _ in points]), _range([y for _, y in points], y_from_zero)
    if same_axes:
        xs = ys = _range([v for p in points for v in p], y_from_zero)
    plot = _Plot(xs, ys)
    parts = [plot.axes(x_label, y_label, _ticks(*xs) if x_ticks is None else x_ticks)]
    if diagonal:
        low, high = max(xs[0], ys[0]), min(xs[1], ys[1])
        parts.append(f'<path class="ideal" d="{plot.path([(low, low), (high, high)])}"/>')
    for one, kept in shown:
        if len(kept) > 1:
            parts.append(f'<path class="line s-{escape(one.key)}" d="{plot.path(kept)}"/>')
        if one.marks or len(kept) == 1:
            dots = "".join(f'<circle cx="{plot.x(x)}" cy="{plot.y(y)}" r="3"/>' for x, y in kept)
            parts.append(f'<g class="dots s-{escape(one.key)}">{dots}</g>')
    return _svg(title, parts)


def bar_chart(title: str, values: Sequence[tuple[str, float]], *, y_label: str = "") -> str:
    """Bars of changes of an error, from zero up (worse) and down, in the order given, with names as tooltips."""
    bars = [(name, value) for name, value in values if math.isfinite(value)]
    if not bars:
        return ""
    low, high = _range([0.0, *(value for _, value in bars)])
    plot = _Plot((0.0, float(len(bars))), (low, high))
    parts = [plot.axes("", y_label)]
    zero = plot.y(0.0)
    for index, (name, value) in enumerate(bars):
        left, right = plot.x(index + 0.1), plot.x(index + 0.9)
        top, bottom = sorted((plot.y(value), zero))
        parts.append(
            f'<rect class="{"loss" if value > 0 else "gain"}" x="{left}" y="{top}"'
            f' width="{max(right - left, 0.6):.1f}" height="{max(bottom - top, 0.5):.1f}">'
            f"<title>{escape(name)}: {value:+.1f}</title></rect>"
        )
    parts.append(f'<path class="axis" d="M{LEFT} {zero}H{WIDTH - RIGHT}"/>')
    return _svg(title, parts)


class _Plot:
    """Maps values to places in the picture."""

    def __init__(self, xs: Point, ys: Point) -> None:
        self.xs, self.ys = xs, ys

    def x(self, value: float) -> float:
        low, high = self.xs
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.ys
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def path(self, points: Sequence[Point]) -> str:
        return "M" + "L".join(f"{self.x(x)} {self.y(y)}" for x, y in points)

    def axes(self, x_label: str, y_label: str, x_ticks: Sequence[float] = ()) -> str:
        """Grid, numbers and names; without ``x_ticks`` no horizontal axis."""
        bottom = HEIGHT - BOTTOM
        parts = []
        for tick in _ticks(*self.ys):
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5}" text-anchor="end">{_number(tick)}</text>')
        if x_ticks:
            for tick in x_ticks:
                parts.append(f'<text x="{self.x(tick)}" y="{bottom + 14}" text-anchor="middle">{_number(tick)}</text>')
            parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
        place = (TOP + bottom) / 2
        parts.append(
            f'<text class="label" transform="translate(10 {place}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )
        return "".join(parts)


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _range(values: Sequence[float], from_zero: bool = False) -> Point:
    """Ends of an axis: the values' own, widened a little, and never of no length."""
    low, high = min(values), max(values)
    low = min(low, 0.0) if from_zero else low
    gap = (high - low) or max(abs(high), 1e-6)
    return low if from_zero and low == 0 else low - 0.04 * gap, high + 0.06 * gap


def _ticks(low: float, high: float) -> list[float]:
    """About ``TICKS`` round numbers between the ends."""
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    text = f"{value:.3g}"
    return f"{value:.0e}".replace("e-0", "e-") if "e" in text else text.replace("-", "−")
