"""What the page says of a result in numbers: tables of metrics, histograms, the trust that its uncertainty deserves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS, SAR_BANDS
from axs_lib.evaluate.estimates import CONTROL_LABELS, ERRORS, METRIC_LABELS
from axs_lib.evaluate.html.charts import Series, line_chart
from axs_lib.evaluate.measured import Measured
from axs_lib.evaluate.tables import percent, shown_figure
from axs_lib.evaluate.uncertainty import CALIBRATED, uncertainty_figures
from axs_lib.io.saved import Result
from axs_lib.metrics import LOWER_IS_BETTER, improvement

BINS = 48
HISTOGRAM_PERCENTILES = (0.2, 99.8)
FACTORS = {"mse": (1e4, "MSE, 10⁻⁴"), "mae": (1e2, "MAE, 10⁻²")}  # of reflectance, so that digits are few
BAND_NAMES = {"B02": "B02 blue", "B03": "B03 green", "B04": "B04 red", "B08": "B08 near infrared"}
IMAGE_KEYS = {"opt_v1": "v1", "opt_v2": "v2", "opt_v3": "v3", "truth": "truth"}


class Cell(NamedTuple):
    """Text, and ``gain`` or ``loss`` where it is better or worse than opt_v2."""

    text: str
    verdict: str = ""


class Table(NamedTuple):
    """Rows of a name and cells with their heading, and what is to be known of them."""

    title: str
    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""


class Charts(NamedTuple):
    """Titles and SVG of pictures that belong together, and the names and styles of their lines."""

    title: str
    charts: Sequence[tuple[str, str]]
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""


def badge(measured: Measured, controls: Mapping[str, Mapping[str, Any]]) -> Cell:
    """What a result comes to in a word: green only where opt_v3 beats baseline, flat colour and another tile's SAR."""
    own = measured.metrics["mse_v3"]
    rivals = {"one flat colour": measured.flat["mse"]}
    if "sar_swapped" in controls:
        rivals[CONTROL_LABELS["sar_swapped"]] = number(controls["sar_swapped"].get("mse"))
    lost = [name for name, mse in rivals.items() if own >= mse]
    change = error_change(measured.metrics["mse_improvement_%"])
    beside = "" if measured.baseline == "opt_v2" else f" beside {measured.baseline}"
    if change.verdict == "gain" and lost:
        return Cell(f"MSE {change.text}{beside}, {lost[0]} is nearer")
    return Cell(f"MSE {change.text}{beside}", change.verdict)


def metrics_table(metrics: Mapping[str, Any], title: str, *, baseline: str = "opt_v2", note: str = "") -> Table:
    """Metrics of opt_v1 (where measured), the baseline and opt_v3, and what changed from the baseline to opt_v3."""
    suffixes = [s for s in ("v1", "v2", "v3") if f"mse_{s}" in metrics]
    rows = []
    for key, label in METRIC_LABELS.items():
        if f"{key}_v3" not in metrics:
            continue
        values = {suffix: number(metrics.get(f"{key}_{suffix}")) for suffix in suffixes}
        cells = [Cell(_text(key, values[suffix])) for suffix in suffixes]
        before, after = values["v2"], values["v3"]
        if key in ERRORS:
            change = error_change(improvement(before, after))
        else:
            text = _text(key, after - before)
            gain = before - after if key in LOWER_IS_BETTER else after - before
            gain = abs(1 - before) - abs(1 - after) if key == "sharpness" else gain
            change = Cell(text if text[0] in "-−" else f"+{text}", _verdict(gain))
        rows.append((FACTORS[key][1] if key in FACTORS else label, [*cells, change]))
    names = [baseline if suffix == "v2" else f"opt_{suffix}" for suffix in suffixes]
    return Table(title, ["", *names, "change"], rows, note)


def correctness(metrics: Mapping[str, Any], baseline: str = "opt_v2") -> str:
    """The shares of pixels that were improved, omitted and hallucinated, in words; empty where not measured."""
    shares = {key: number(metrics.get(key)) for key in ("improved", "omitted", "hallucinated")}
    if not all(map(math.isfinite, shares.values())):
        return ""
    text = "pixels: " + ", ".join(f"{100 * value:.0f} % {key}" for key, value in shares.items())
    if number(metrics.get("identity_collapse")) == 1:
        return f"{text} (opt_v3 is {baseline} unchanged)"
    return (
        f"{text} (improved: nearer to the truth than to {baseline}; omitted: still as in {baseline}; hallucinated: far"
        " from both)"
    )


def comparison_table(rows: Mapping[str, Mapping[str, Any]], baseline: str, title: str, *, note: str = "") -> Table:
    """MSE and MAE of images by their names, and the change of the MSE from that of one of them, the baseline."""
    lines = []
    for name, values in rows.items():
        cells = [Cell(_text(error, number(values.get(error)))) for error in ERRORS]
        gain = improvement(number(rows[baseline].get("mse")), number(values.get("mse")))
        lines.append((name, [*cells, Cell("") if name == baseline else error_change(gain)]))
    return Table(title, ["image", *(FACTORS[error][1] for error in ERRORS), "MSE change"], lines, note)


def rows_of(
    metrics: Mapping[str, Any], controls: Mapping[str, Any], baseline: str = "opt_v2"
) -> dict[str, Mapping[str, Any]]:
    """Rows of ``comparison_table``: the baseline, opt_v3, and controls of the evaluation by the names people read."""
    rows: dict[str, Mapping[str, Any]] = {
        name: {error: metrics.get(f"{error}_{suffix}") for error in ERRORS}
        for name, suffix in ((baseline, "v2"), ("opt_v3", "v3"))
    }
    for key, label in CONTROL_LABELS.items():
        entry = controls.get(key)
        if isinstance(entry, Mapping):
            rows[label] = entry.get("mean", entry)
    return rows


def histograms(result: Result) -> Charts | None:
    """How the values of every band are spread: the optical images in reflectance, the SAR in dB."""
    named = {name: result.layers[name] for name in IMAGE_KEYS if name in result.layers}
    charts = []
    for index, band in enumerate(OPTICAL_BANDS):
        layers = [(name, IMAGE_KEYS[name], layer[index] / DN_PER_REFLECTANCE) for name, layer in named.items()]
        charts.append(_histogram(BAND_NAMES[band], layers, "reflectance"))
    for layer, band in zip(result.layers.get("s1", ()), SAR_BANDS, strict=False):
        charts.append(_histogram(f"{band} backscatter", [(band, "sar", layer)], "dB"))
    charts = [(title, svg) for title, svg in charts if svg]
    legend = [(name, IMAGE_KEYS[name]) for name in named]
    if "s1" in result.layers:
        legend.append(("SAR", "sar"))
    return Charts("Histograms", charts, legend) if charts else None


def trust_of(result: Result) -> Charts | None:
    """How well the uncertainty ranks and foretells the errors of a result; None without uncertainty and truth."""
    if not {"truth", "uncertainty"} <= set(result.layers):
        return None
    error = result.layers["opt_v3"] - result.layers["truth"]
    predicted = result.layers["uncertainty"]
    keep = np.isfinite(error).all(0) & np.isfinite(predicted).all(0) & (predicted >= 0).all(0)
    if not keep.any():
        return None
    members = result.tags.get("AXS_ENSEMBLE_SIZE", "")
    bare = CALIBRATED not in result.tags and members.isdecimal() and int(members) > 1
    columns = (torch.from_numpy(a[:, keep].T / DN_PER_REFLECTANCE) for a in (predicted, error))
    figures = uncertainty_figures(*columns, members=int(members) if bare else None)
    note = "" if not bare else f"The deviation is the bare spread of {members} ensemble members."
    return trust_charts(figures, note)


def trust_charts(figures: Mapping[str, Any], note: str = "") -> Charts | None:
    """Retention curve and reliability plot from the figures of ``axs_lib.evaluate.uncertainty``."""
    dropped = [(100 * number(share), 1e4 * number(mse)) for share, mse in figures.get("retention") or ()]
    bins = {
        band: [(100 * number(seen), 100 * number(found)) for seen, found in points]
        for band, points in (figures.get("reliability") or {}).items()
        if band in OPTICAL_BANDS
    }
    curve = line_chart(
        "Mean squared error of the pixels that are left when the least certain are dropped",
        [Series("opt_v3", "v3", dropped, marks=True)],
        x_label="least certain pixels dropped, %",
        y_label="MSE, 10⁻⁴",
        y_from_zero=True,
    )
    plot = line_chart(
        "Observed error against predicted deviation, by band",
        [Series(band, band, points, marks=True) for band, points in bins.items()],
        x_label="predicted deviation, % reflectance",
        y_label="RMSE, % reflectance",
        y_from_zero=True,
        diagonal=True,
    )
    charts = [("Error of what is kept", curve), ("Predicted and observed error", plot)]
    charts = [(title, svg) for title, svg in charts if svg]
    if not charts:
        return None
    says = "Falling: the uncertainty finds the wrong pixels. On the dashed line: it also says how wrong they are."
    spread = figures.get("spread_skill") or {}
    ratios = ", ".join(f"{band} {number(value):.2f}" for band, value in spread.items() if band in OPTICAL_BANDS)
    if ratios:
        says += f" Spread over error (1 is calibrated, less is overconfident): {ratios}."
    return Charts("Uncertainty", charts, [(band, band) for band in bins], f"{says} {note}".strip())


def number(value: Any) -> float:
    """A figure of a JSON file, NaN for null; ``TypeError`` where it is something else."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _verdict(gain: float) -> str:
    """The style of a gain: none where it is nothing or unknown."""
    if not math.isfinite(gain) or gain == 0:
        return ""
    return "gain" if gain > 0 else "loss"


def error_change(gain: float) -> Cell:
    """An improvement in percent as the change of the error that it is: 12 % better is −12.0 %."""
    return Cell(percent(-gain).replace("-", "−") if math.isfinite(gain) else "-", _verdict(gain))


def _text(key: str, value: float) -> str:
    """A figure in the unit of its row."""
    if math.isnan(value):
        return "-"
    text = f"{FACTORS[key][0] * value:.2f}" if key in FACTORS else shown_figure(key, value)
    return text.replace("-", "−")


def _histogram(title: str, layers: Iterable[tuple[str, str, NDArray[Any]]], unit: str) -> tuple[str, str]:
    """Share of the valid pixels in each of one set of bins, in percent, of layers with their names and styles."""
    valid = [(name, key, layer[np.isfinite(layer)]) for name, key, layer in layers if np.isfinite(layer).any()]
    ends = [np.percentile(values, HISTOGRAM_PERCENTILES) for _, _, values in valid]
    low, high = min((low for low, _ in ends), default=0.0), max((high for _, high in ends), default=1.0)
    edges = np.linspace(low, high if high > low else low + 1e-3, BINS + 1)
    middle = ((edges[1:] + edges[:-1]) / 2).tolist()
    series = []
    for name, key, values in valid:
        shares = 100 * np.histogram(values, edges)[0] / values.size
        series.append(Series(name, key, list(zip(middle, shares.tolist(), strict=True))))
    return title, line_chart(f"Histogram of {title}", series, x_label=unit, y_label="% of pixels", y_from_zero=True)
