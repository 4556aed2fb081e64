"""Charts put points where they belong and words where they cannot hurt."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from axs_lib.evaluate.html.charts import Series, bar_chart, line_chart


def circles(svg: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(svg)
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter("circle")]


def test_points_keep_their_order_and_stay_inside() -> None:
    svg = line_chart("t", [Series("a", "v3", [(0, 1), (1, 3), (2, 2)], marks=True)], x_label="x", y_label="y")
    places = circles(svg)
    (x0, y0), (x1, y1), (x2, y2) = places
    numbers = [text.text for text in ElementTree.fromstring(svg).iter("text")]
    assert {"0", "0.5", "1", "1.5", "2"} <= set(numbers), "round ticks"
    assert x0 < x1 < x2 and y1 < y2 < y0  # up is more
    assert 'viewBox="0 0 320 190"' in svg and all(46 <= x <= 310 and 12 <= y <= 156 for x, y in places)
    assert abs((x1 - x0) - (x2 - x1)) < 0.2 and abs((y0 - y1) - 2 * (y0 - y2)) < 0.3


def test_what_is_not_finite_or_all_the_same_does_not_break_it() -> None:
    assert line_chart("t", [Series("a", "v3", [(0, math.nan), (math.inf, 1)])]) == ""
    assert bar_chart("t", [("a", math.nan)]) == "" and bar_chart("t", []) == ""
    assert len(circles(line_chart("t", [Series("a", "v3", [(0, 5), (1, 5), (2, math.nan)], marks=True)]))) == 2
    assert len(circles(line_chart("t", [Series("a", "v3", [(0, 0)])]))) == 1


def test_bars_of_gains_go_down_and_of_losses_up() -> None:
    root = ElementTree.fromstring(bar_chart("t", [("good", -20.0), ("<bad>", 10.0)], y_label="%"))
    good, bad = list(root.iter("rect"))
    assert (good.attrib["class"], bad.attrib["class"]) == ("gain", "loss")
    assert float(good.attrib["height"]) > 1.9 * float(bad.attrib["height"])
    bottom = float(bad.attrib["y"]) + float(bad.attrib["height"])
    assert abs(bottom - float(good.attrib["y"])) < 0.2
    assert [title.text for title in bad.iter("title")] == ["<bad>: +10.0"]
