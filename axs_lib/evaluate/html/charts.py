"""Small charts as SVG text, by ``chart.svg``: lines, points and bars that take their colours from the page's style."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line: its name for people, the ``key`` of its style, its points, and whether they are drawn, too."""

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
    x_ticks: Sequence[float] | None = None,
) -> str:
    """Lines over one pair of axes; empty text where no point is finite.

    ``diagonal`` gives both axes one range and draws y = x; ``x_ticks`` are by default round numbers.
    """
    series = [replace(one, points=[p for p in one.points if all(map(math.isfinite, p))]) for one in series]
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    xs, ys = _range([x for x, _ in points]), _range([y for _, y in points], y_from_zero)
    if diagonal:
        xs = ys = _range([value for point in points for value in point], y_from_zero)
    x_ticks = _ticks(*xs) if x_ticks is None else x_ticks
    ideal = list(zip(xs, ys, strict=True)) if diagonal else []
    return _draw(title, xs, ys, x_label=x_label, y_label=y_label, x_ticks=x_ticks, series=series, ideal=ideal)


def bar_chart(title: str, values: Sequence[tuple[str, float]], *, y_label: str = "") -> str:
    """Bars of changes of an error, from zero up (worse) and down, in the order given, with names as tooltips."""
    bars = [(name, value) for name, value in values if math.isfinite(value)]
    if not bars:
        return ""
    ys = _range([0.0, *(value for _, value in bars)])
    return _draw(title, (0.0, float(len(bars))), ys, y_label=y_label, bars=bars)


@functools.cache
def environment() -> Environment:
    """The templates of the page; whatever is put into them is escaped."""
    folder = FileSystemLoader(Path(__file__).parent)
    templates = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.filters["figure"] = _figure
    return templates


class _Plot:
    """Maps values to places in the picture."""

    width, height = 320, 190
    left, right, top, bottom = 46, 310, 12, 156

    def __init__(self, xs: Point, ys: Point) -> None:
        self.xs, self.ys = xs, ys
        self.y_ticks = _ticks(*ys)

    def x(self, value: float) -> float:
        low, high = self.xs
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        low, high = self.ys
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    def path(self, points: Sequence[Point]) -> str:
        return "M" + "L".join(f"{self.x(x)} {self.y(y)}" for x, y in points)


def _draw(title: str, xs: Point, ys: Point, **content: Any) -> str:
    nothing = {"x_label": "", "x_ticks": (), "series": (), "ideal": (), "bars": ()}
    return environment().get_template("chart.svg").render(nothing | content, title=title, plot=_Plot(xs, ys))


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


def _figure(value: float) -> str:
    text = f"{value:.3g}"
    return f"{value:.0e}".replace("e-0", "e-") if "e" in text else text.replace("-", "−")
