"""Write the report page: one HTML file that needs no server, asks for nothing outside itself, and works offline.

Everything from files is escaped, and the page's own content security policy runs no script but its own.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from axs_lib import __version__
from axs_lib.errors import InputError, counted
from axs_lib.evaluate.html import figures
from axs_lib.evaluate.html.charts import Series, bar_chart, environment, line_chart
from axs_lib.evaluate.html.views import SMALL, thumbnail, views_of
from axs_lib.evaluate.measured import measure_layers
from axs_lib.evaluate.tables import percent
from axs_lib.io.atomic import atomic_write
from axs_lib.io.files import PathLike, check_kept, open_regular
from axs_lib.io.raster import SUFFIXES
from axs_lib.io.saved import NOT_SHOWN, Result, find_results, read_results

FOLDER = Path(__file__).parent
LEFT = ("opt_v2", "opt_v1", "s1")  # what stands left at first, as far as it is there


def write_report(
    path: PathLike,
    results: Sequence[PathLike] = (),
    *,
    evaluation: PathLike | None = None,
    companions: Mapping[str, PathLike | Sequence[PathLike]] | None = None,
    title: str = "Report",
    most: int = 50,
    overwrite: bool = False,
) -> int:
    """Write the page, and give the number of results on it: at most ``most``, and it says how many are left out.

    ``results`` are folders and files, see ``axs_lib.io.saved.find_results``; ``evaluation`` is the JSON of ``axs
    evaluate``; ``companions`` are GeoTIFFs of further layers of a single result, as ``read_results`` takes them.

    Raises InputError: there is nothing to show, no file of it can be read, or the page would replace an input; or
    OutputError: the file exists and ``overwrite`` is false, or it cannot be written.
    """
    if not results and evaluation is None:
        raise InputError("nothing is given to report; expected folders or files of results, or an evaluation")
    if Path(path).suffix.lower() in SUFFIXES:
        raise InputError(f"{path} is the name of an image; expected that of a page, such as report.html")
    check_kept([path], evaluation, *(companions or {}).values(), *(each for each in results if not Path(each).is_dir()))
    reports = [] if evaluation is None else _load(evaluation)
    entries, problems = _read(results, companions or {}, most, _tiles(reports)) if results else ([], [])
    script = (FOLDER / "script.js").read_text(encoding="utf-8")
    today = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y").lstrip("0")
    template = environment().get_template("template.html")
    page = template.render(
        title=title,
        subtitle=" · ".join([*([counted(len(entries), "result")] if entries else []), today]),
        results=entries,
        small=SMALL,
        evaluation=_evaluation(reports, evaluation) if reports else None,
        problems=problems,
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        version=__version__,
    )
    with atomic_write(path, overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return len(entries)


def _read(
    paths: Sequence[PathLike], companions: Mapping[str, Any], most: int, tiles: Mapping[str, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """What the template shows of each result, and in words what could not be shown."""
    found = find_results(paths)
    if companions and len(found) > 1:
        raise InputError(
            f"{len(found)} results are given with {', '.join(companions)}, which belong to one; expected one file"
        )
    entries: list[dict[str, Any]] = []
    problems: list[str] = []
    for index, (name, path) in enumerate(found):
        if len(entries) >= most:
            problems.append(f"{len(found) - index} further files are not shown: the page holds {most} results.")
            break
        try:
            for result in read_results(path, name, companions=companions):
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


def _entry(identity: str, result: Result, tiles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    views = views_of(result)
    labels = {view.key: view.label for view in views}
    left = next((key for key in LEFT if key in labels), "opt_v3")
    measured = measure_layers(result.layers)
    parts = Path(result.source).with_suffix("").parts
    names = [result.name, *("/".join(parts[start:]) for start in range(len(parts)))]
    tile = next((tiles[name] for name in names if name in tiles), {})
    controls = {key: value for key, value in tile.items() if isinstance(value, Mapping) and key != "metrics"}
    tables, headline = [], None
    if measured is not None:
        metrics, baseline = measured.metrics, measured.baseline
        notes = ["measured on the reduced image"] if result.reduction > 1 else []
        notes.append(figures.correctness(metrics, baseline))
        note = " · ".join(note for note in notes if note)
        where = "Inside the gaps, against the clear truth" if baseline != "opt_v2" else "Against the clear truth"
        tables.append(figures.metrics_table(metrics, where, baseline=baseline, note=note))
        rows = figures.rows_of(metrics, {}, baseline) | {"one flat colour": measured.flat}
        tables.append(figures.comparison_table(rows, baseline, "Beside simpler images"))
        headline = figures.badge(measured, controls)
    if controls:
        rows = figures.rows_of(tile.get("metrics") or {}, controls)
        tables.append(figures.comparison_table(rows, "opt_v2", "Controls of the evaluation, this tile"))
    return {
        "id": identity,
        "name": result.name,
        "facts": _facts(result),
        "views": views,
        "sides": {"left": left, "right": "opt_v3"},
        "labels": labels,
        "size": result.layers["opt_v3"].shape[1:],
        "thumbnail": thumbnail(result),
        "headline": headline,
        "tables": tables,
        "charts": [block for block in (figures.trust_of(result), figures.histograms(result)) if block],
        "provenance": [("file", result.source), *_words(result.tags)],
    }


def _facts(result: Result) -> list[str]:
    height, width = result.size
    facts = [f"{width} × {height} px"]
    if result.reduction > 1:
        facts[0] += f", shown at 1 : {result.reduction:.3g}"
    if (place := result.grid.centre_lat_lon()) is not None:
        lat, lon = place
        facts.append(f"{abs(lat):.3f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.3f}° {'E' if lon >= 0 else 'W'}")
    tags = result.tags
    facts += [tags["AXS_VARIANT"]] if "AXS_VARIANT" in tags else []
    facts += [counted(tags["AXS_TIMESTEPS"], "timestep")] if "AXS_TIMESTEPS" in tags else []
    facts += [f"opt_v2 {tags['AXS_OPT_V2_SOURCE']}"] if "AXS_OPT_V2_SOURCE" in tags else []
    facts += [f"{NOT_SHOWN}: {tags[NOT_SHOWN]}"] if NOT_SHOWN in tags else []
    return facts + (["estimate, not observation"] if "opt_v1" in result.layers else [])  # made of SAR alone


def _words(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """Tags for people, those of this library first."""
    spelled = {"sha256": "SHA-256", "nfe": "network evaluations", "sar": "SAR", "s1": "S1"}
    words = []
    for key in sorted(tags, key=lambda key: (not key.startswith("AXS_"), key)):
        parts = key.removeprefix("AXS_").lower().split("_") if key.startswith("AXS_") else [key]
        words.append((" ".join(spelled.get(part, part) for part in parts), tags[key]))
    return words


def _load(path: PathLike) -> list[dict[str, Any]]:
    """The reports of an evaluation, one a number of timesteps."""
    try:
        with open_regular(path, "the evaluation") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        message = f"{path} cannot be read as JSON ({error}); expected what axs evaluate --json writes"
        raise InputError(message) from error
    reports = content.get("reports", [content]) if isinstance(content, dict) else []
    if not reports or not all(isinstance(one, dict) and one.get("summary") for one in reports):
        raise InputError(f"{path} holds no report; expected what axs evaluate --json writes")
    return reports


def _tiles(reports: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The evaluation's figures of every tile, of the last report: by source/id, and by an id that no other has."""
    tiles = (reports[-1].get("tiles") if reports else None) or []
    tiles = [tile for tile in tiles if isinstance(tile, dict) and "id" in tile]
    count = Counter(str(tile["id"]) for tile in tiles)
    alone = {str(tile["id"]): tile for tile in tiles if count[str(tile["id"])] == 1}
    return alone | {f"{tile.get('source')}/{tile['id']}": tile for tile in tiles}


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


def _part(report: Mapping[str, Any]) -> dict[str, Any]:
    summary = report["summary"]
    tables = [
        figures.metrics_table(part["mean"], f"Mean over {counted(part['tiles'], 'tile')}, quality {quality}")
        for quality, part in summary.items()
    ]
    totals = next(iter(summary.values()))
    worth = figures.number((totals.get("no_sar") or {}).get("sar_worth_%"))
    note = f"With SAR instead of without: {percent(worth)} of opt_v2's MSE." if math.isfinite(worth) else ""
    rows = figures.rows_of(totals["mean"], totals)
    if len(rows) > 2:
        tables.append(figures.comparison_table(rows, "opt_v2", "Controls", note=note))
    quartiles = ", ".join(figures.error_change(figures.number(each)).text for each in totals["improvement_quartiles_%"])
    facts = [
        f"nearer to the truth on {100 * figures.number(totals['wins']):.0f} % of the tiles",
        f"tiles' MSE, quartiles {quartiles}",
        f"worst tile {figures.error_change(-figures.number(totals['worst_tile_%'])).text}",
        *filter(None, [figures.correctness(totals["mean"])]),
        f"{figures.number(report['seconds_per_tile']):.2f} s a tile on {report['device']}",
    ]
    changes = [(str(tile["id"]), -figures.number(tile["metrics"]["mse_improvement_%"])) for tile in report["tiles"]]
    changes = sorted((one for one in changes if math.isfinite(one[1])), key=lambda one: one[1])
    bars = bar_chart("Change of MSE from opt_v2 to opt_v3 in percent, tile by tile", changes, y_label="%")
    trust = figures.trust_charts(report.get("uncertainty") or {})
    provenance = _words({key: str(value) for key, value in report["model"].items()})
    provenance += [(key, str(report[key])) for key in ("seed", "nfe") if key in report]
    return {
        "title": counted(report["timesteps"], "timestep"),
        "facts": facts,
        "tables": tables,
        "beside": [("Change of MSE, tile by tile", bars)] if bars else [],
        "charts": [trust] if trust else [],
        "provenance": provenance,
    }


def _trade_off(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What more network evaluations bring and cost."""
    means = {}
    for report in sorted(reports, key=lambda report: int(report["timesteps"])):
        quality = "all" if "all" in report["summary"] else next(iter(report["summary"]))
        mean = report["summary"][quality]["mean"] | {"seconds_v3": report["seconds_per_tile"]}
        means[int(report["timesteps"])] = mean
    charts = []
    for title, key, label, factor in (
        ("Error", "mse", "MSE, 10⁻⁴", 1e4),
        ("Sharpness (truth = 1)", "sharpness", "sharpness", 1),
        ("Edges, with truth", "edge_truth", "correlation", 1),
        ("Time", "seconds", "s a tile", 1),
    ):
        series = []
        for image in ("v3",) if key == "seconds" else ("v2", "v3"):
            points = [(float(n), factor * figures.number(mean[f"{key}_{image}"])) for n, mean in means.items()]
            series.append(Series(f"opt_{image}", image, points, marks=image == "v3"))
        axes: dict[str, Any] = {"x_label": "timesteps", "y_label": label, "x_ticks": list(means)}
        charts.append((title, line_chart(f"{title} by timesteps", series, y_from_zero=key == "seconds", **axes)))
    shown = figures.Charts("How many timesteps", charts, [("opt_v2", "v2"), ("opt_v3", "v3")])
    return {"title": "", "facts": (), "tables": (), "beside": (), "charts": [shown], "provenance": ()}
