"""Write the report page: one HTML file that needs no server, asks for nothing outside itself, and works offline.

In: saved results (``axs_lib.io.saved``) and the JSON of ``axs evaluate``, either may be missing. Out: the page, with
a swipe view, metrics, histograms, trust and provenance of every result. Everything from files is escaped, and the
page's own content security policy runs no script but its own.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axs_lib import __version__
from axs_lib.errors import InputError
from axs_lib.evaluate.html.charts import Series, bar_chart, line_chart
from axs_lib.evaluate.html.figures import (
    Cell,
    Chart,
    Charts,
    Table,
    badge,
    comparison_table,
    correctness,
    error_change,
    histograms,
    metrics_table,
    number,
    rows_of,
    trust_charts,
    trust_of,
)
from axs_lib.evaluate.html.views import SMALL, View, thumbnail, views_of
from axs_lib.evaluate.measured import measure_layers
from axs_lib.evaluate.tables import percent
from axs_lib.io.atomic import atomic_write
from axs_lib.io.saved import LONGEST, Result, find_results, read_results

PathLike = str | os.PathLike[str]

FOLDER = Path(__file__).parent
MOST_RESULTS = 50
LEFT = ("opt_v2", "opt_v1", "s1")  # what stands left at first, as far as it is there


@dataclass(frozen=True)
class Entry:
    """One result, as the template shows it."""

    id: str
    name: str
    facts: Sequence[str]
    views: Sequence[View]
    left: str
    right: str
    left_label: str
    right_label: str
    width: int
    height: int
    small: bool
    thumbnail: str
    headline: Cell | None
    tables: Sequence[Table]
    charts: Sequence[Charts]
    provenance: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Part:
    """One report of an evaluation, or what compares several."""

    title: str
    facts: Sequence[str]
    tables: Sequence[Table]
    beside: Sequence[Chart]
    charts: Sequence[Charts]
    provenance: Sequence[tuple[str, str]]


def write_report(
    path: PathLike,
    results: Sequence[PathLike] = (),
    *,
    evaluation: PathLike | None = None,
    companions: Mapping[str, PathLike] | None = None,
    title: str = "Report",
    most: int = MOST_RESULTS,
    longest: int = LONGEST,
    overwrite: bool = False,
) -> int:
    """Write the page.

    Args:
        path: the file.
        results: folders and files, see ``axs_lib.io.saved.find_results``.
        evaluation: JSON of ``axs evaluate``.
        companions: GeoTIFFs of further layers by name (``s1``, ``opt_v2``, ``truth``, ...), for a single result.
        title: of the page.
        most: results shown; the page says how many files are left out.
        longest: longest side of a picture in pixels.
        overwrite: whether an existing file may be replaced.

    Returns:
        How many results it shows.

    Raises:
        InputError: there is nothing to show, or no file of it can be read.
        OutputError: the file exists and ``overwrite`` is false, or it cannot be written.
    """
    if not results and evaluation is None:
        raise InputError("nothing is given to report; expected folders or files of results, or an evaluation")
    figures = None if evaluation is None else _load(evaluation)
    entries: list[Entry] = []
    problems: list[str] = []
    if results:
        entries, problems = _read(results, companions or {}, most, longest, _tiles(figures))
    page = render(title, entries, None if figures is None else _evaluation(figures, evaluation), problems)
    with atomic_write(path, overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return len(entries)


def render(
    title: str, results: Sequence[Entry], evaluation: Mapping[str, Any] | None = None, problems: Sequence[str] = ()
) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    script = (FOLDER / "script.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    many = f"{len(results)} {'result' if len(results) == 1 else 'results'}"
    today = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y").lstrip("0")
    text: str = environment.get_template("template.html").render(
        title=title,
        subtitle=" · ".join([*([many] if results else []), today]),
        results=results,
        evaluation=evaluation,
        problems=problems,
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        footer=f"Written by Axion-Sat {__version__}. MSE and MAE are in reflectance. The optical images of a result"
        " share one stretch, so that their colours may be compared; nodata is light grey. A flat colour is the mean of"
        " the truth, or of what is clear around a gap; a smooth fill takes each pixel from its nearest clear ones. An"
        " error is green in the list of results where opt_v3 beats them.",
    )
    return text


def _read(
    paths: Sequence[PathLike],
    companions: Mapping[str, PathLike],
    most: int,
    longest: int,
    tiles: Mapping[str, Mapping[str, Any]],
) -> tuple[list[Entry], list[str]]:
    """Entries, and what could not be shown in words."""
    found = find_results(paths)
    if companions and len(found) > 1:
        raise InputError(
            f"{len(found)} results are given with {', '.join(companions)}, which belong to one; expected one file"
        )
    entries: list[Entry] = []
    problems: list[str] = []
    for index, (name, path) in enumerate(found):
        if len(entries) >= most:
            problems.append(f"{len(found) - index} further files are not shown: the page holds {most} results.")
            break
        try:
            for result in read_results(path, name, longest=longest, companions=companions):
                if len(entries) >= most:
                    problems.append(f"{path} holds further tiles: the page shows {most} results.")
                    break
                entries.append(_entry(f"result-{len(entries) + 1}", result, tiles))
        except InputError as error:
            if len(found) == 1:
                raise
            problems.append(f"{name} is not shown: {error}")
    if not entries:
        raise InputError(f"not one of {len(found)} results can be read; the first: {problems[0]}")
    return entries, problems


def _entry(identity: str, result: Result, tiles: Mapping[str, Mapping[str, Any]]) -> Entry:
    views = views_of(result)
    labels = {view.key: view.label for view in views}
    left = next((key for key in LEFT if key in labels), "opt_v3")
    height, width = result.layers["opt_v3"].shape[1:]

    measured = measure_layers(result.layers)
    tile = tiles.get(result.name) or tiles.get(Path(result.source).stem) or {}
    controls = {key: value for key, value in tile.items() if isinstance(value, Mapping) and key != "metrics"}
    tables = []
    headline = None
    if measured is not None:
        metrics, baseline = measured.metrics, measured.baseline
        notes = ["measured on the reduced image"] if result.reduction > 1 else []
        notes.append(correctness(metrics, baseline))
        note = " · ".join(note for note in notes if note)
        where = "Inside the gaps, against the clear truth" if baseline != "opt_v2" else "Against the clear truth"
        tables.append(metrics_table(metrics, where, baseline=baseline, note=note))
        rows = rows_of(metrics, {}, baseline)
        tables.append(comparison_table(rows | {"one flat colour": measured.flat}, baseline, "Beside simpler images"))
        headline = badge(measured, controls)
    if controls:
        rows = rows_of(tile.get("metrics") or {}, controls)
        tables.append(comparison_table(rows, "opt_v2", "Controls of the evaluation, this tile"))
    blocks = [trust_of(result), histograms(result)]
    return Entry(
        id=identity,
        name=result.name,
        facts=_facts(result),
        views=views,
        left=left,
        right="opt_v3",
        left_label=labels[left],
        right_label=labels["opt_v3"],
        width=width,
        height=height,
        small=max(width, height) <= SMALL,
        thumbnail=thumbnail(result),
        headline=headline,
        tables=tables,
        charts=[block for block in blocks if block],
        provenance=[("file", result.source), *_words(result.tags)],
    )


def _facts(result: Result) -> list[str]:
    height, width = result.size
    facts = [f"{width} × {height} px"]
    if result.reduction > 1:
        facts[0] += f", shown at 1 : {result.reduction:.3g}"
    place = result.grid.centre_lat_lon()
    if place is not None:
        lat, lon = place
        facts.append(f"{abs(lat):.3f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.3f}° {'E' if lon >= 0 else 'W'}")
    tags = result.tags
    facts += [tags[key] for key in ("AXS_VARIANT",) if key in tags]
    if "AXS_TIMESTEPS" in tags:
        facts.append(_steps(tags["AXS_TIMESTEPS"]))
    if "AXS_OPT_V2_SOURCE" in tags:
        facts.append(f"opt_v2 {tags['AXS_OPT_V2_SOURCE']}")
    if "opt_v1" in result.layers:  # made of SAR alone
        facts.append("estimate, not observation")
    return facts


def _steps(count: object) -> str:
    return f"{count} {'timestep' if str(count) == '1' else 'timesteps'}"


def _words(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """Tags for people, those of this library first."""
    own = sorted(key for key in tags if key.startswith("AXS_"))
    others = sorted(key for key in tags if not key.startswith("AXS_"))
    spelled = {"sha256": "SHA-256", "nfe": "network evaluations", "sar": "SAR", "s1": "S1"}
    names = {key: key.removeprefix("AXS_").lower().split("_") for key in own}
    return [(" ".join(spelled.get(word, word) for word in names[key]), tags[key]) for key in own] + [
        (key, tags[key]) for key in others
    ]


# -- the evaluation -----------------------------------------------------------------------------------------------


def _load(path: PathLike) -> list[dict[str, Any]]:
    """The reports of an evaluation, one a number of timesteps."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({error}); expected what axs evaluate --json writes"
        ) from error
    reports = content.get("reports", [content]) if isinstance(content, dict) else []
    if not reports or not all(isinstance(one, dict) and one.get("summary") for one in reports):
        raise InputError(f"{path} holds no report; expected what axs evaluate --json writes")
    return reports


def _tiles(reports: Sequence[Mapping[str, Any]] | None) -> dict[str, Mapping[str, Any]]:
    """The evaluation's figures of every tile, by its id; of the last report."""
    tiles = (reports or [{}])[-1].get("tiles") or []
    return {str(tile["id"]): tile for tile in tiles if isinstance(tile, dict) and "id" in tile}


def _evaluation(reports: Sequence[dict[str, Any]], path: PathLike | None) -> dict[str, Any]:
    try:
        parts = [_part(report) for report in reports]
        if len(reports) > 1:
            parts.insert(0, _trade_off(reports))
        first = reports[0]
        sources = ", ".join(f"{source} ({count})" for source, count in first["opt_v2_source"].items())
        facts = [str(first["data"]), f"opt_v2 from: {sources}", f"quality {first['quality']}"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not as axs evaluate --json writes it ({type(error).__name__}: {error}); run it again"
        ) from error
    return {"facts": facts, "parts": parts}


def _part(report: Mapping[str, Any]) -> Part:
    summary = report["summary"]
    tables = [
        metrics_table(part["mean"], f"Mean over {part['tiles']} tiles, quality {quality}")
        for quality, part in summary.items()
    ]
    figures = next(iter(summary.values()))
    worth = number((figures.get("no_sar") or {}).get("sar_worth_%"))
    note = f"With SAR instead of without: {percent(worth)} of opt_v2's MSE." if math.isfinite(worth) else ""
    rows = rows_of(figures["mean"], figures)
    if len(rows) > 2:
        tables.append(comparison_table(rows, "opt_v2", "Controls", note=note))
    quartiles = ", ".join(error_change(number(value)).text for value in figures["improvement_quartiles_%"])
    facts = [
        f"nearer to the truth on {100 * number(figures['wins']):.0f} % of the tiles",
        f"tiles' MSE, quartiles {quartiles}",
        f"worst tile {error_change(-number(figures['worst_tile_%'])).text}",
        *filter(None, [correctness(figures["mean"])]),
        f"{number(report['seconds_per_tile']):.2f} s a tile on {report['device']}",
    ]
    changes = [(str(tile["id"]), -number(tile["metrics"]["mse_improvement_%"])) for tile in report["tiles"]]
    changes = sorted((one for one in changes if math.isfinite(one[1])), key=lambda one: one[1])
    bars = bar_chart("Change of MSE from opt_v2 to opt_v3 in percent, tile by tile", changes, y_label="%")
    beside = [Chart("Change of MSE, tile by tile", bars)] if bars else []
    trust = trust_charts(report.get("uncertainty") or {})
    provenance = [*_words({key: str(value) for key, value in report["model"].items()})]
    provenance += [(key, str(report[key])) for key in ("seed", "nfe") if key in report]
    return Part(
        title=_steps(report["timesteps"]),
        facts=facts,
        tables=tables,
        beside=beside,
        charts=[trust] if trust else [],
        provenance=provenance,
    )


def _trade_off(reports: Sequence[Mapping[str, Any]]) -> Part:
    """What more network evaluations bring and cost."""
    points = {}
    for report in reports:
        quality = "all" if "all" in report["summary"] else next(iter(report["summary"]))
        points[int(report["timesteps"])] = (report["summary"][quality]["mean"], number(report["seconds_per_tile"]))
    steps = sorted(points)

    def chart(title: str, key: str, label: str, factor: float = 1.0) -> Chart:
        after = [(float(n), factor * number(points[n][0][f"{key}_v3"])) for n in steps]
        before = [(float(n), factor * number(points[n][0][f"{key}_v2"])) for n in steps]
        series = [Series("opt_v2", "v2", before), Series("opt_v3", "v3", after, marks=True)]
        return draw(title, series, label)

    def draw(title: str, series: Sequence[Series], label: str, y_from_zero: bool = False) -> Chart:
        named = f"{title} by timesteps"
        svg = line_chart(named, series, x_label="timesteps", y_label=label, y_from_zero=y_from_zero, x_ticks=steps)
        return Chart(title, svg)

    time = [Series("opt_v3", "v3", [(float(n), points[n][1]) for n in steps], marks=True)]
    charts = [
        chart("Error", "mse", "MSE, 10⁻⁴", 1e4),
        chart("Sharpness (truth = 1)", "sharpness", "sharpness"),
        chart("Edges, with truth", "edge_truth", "correlation"),
        draw("Time", time, "s a tile", y_from_zero=True),
    ]
    legend = [("opt_v2", "v2"), ("opt_v3", "v3")]
    return Part("", (), (), (), [Charts("How many timesteps", charts, legend)], ())
