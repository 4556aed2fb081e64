"""Figures for people and for scripts: averages over tiles, numbers as text, rich tables, JSON without infinities."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table


def over_tiles(
    rows: Sequence[Mapping[str, float]], average: Callable[[list[float]], float] = statistics.fmean
) -> dict[str, float]:
    """Average each key over the rows where it is defined."""
    result = {}
    for key in rows[0]:
        values = [row[key] for row in rows if not math.isnan(row[key])]
        result[key] = float(average(values)) if values else math.nan
    return result


def finite_only(value: Any) -> Any:
    """Replace what JSON cannot hold by null."""
    if isinstance(value, dict):
        return {key: finite_only(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite_only(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(value: float | None, digits: int = 1, sign: int = 1) -> str:
    """A change for people, with sign -1 of its opposite; "-" where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{sign * value + 0.0:+.{digits}f} %"


def share(value: float | None) -> str:
    """A share for people, in percent."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.0f} %"


def shown_figure(key: str, value: float | None) -> str:
    """A figure for people, with the digits its metric deserves; "-" where there is none."""
    digits = {"mse": 6, "mae": 5, "psnr": 2, "sam": 2, "ergas": 1}.get(key, 3)
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def rich_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> Table:
    """A table of text: names on the left, figures on the right, no frame. Names and headings wrap, figures never do."""
    table = Table(title=title, caption=caption or None, header_style="bold", box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        widest = max((len(row[index]) for row in rows), default=0)
        table.add_column(heading, justify="right" if index else "left", min_width=widest if index else min(widest, 12))
    for row in rows:
        table.add_row(*row)
    return table
