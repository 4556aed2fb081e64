"""The summary of an evaluation: wins, the worst tile, quartiles, controls, and the comparison of timesteps."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from axs_lib.data.pairs import PairRecord
from axs_lib.evaluate.report import Report, TileResult, timesteps_rows, timesteps_table
from axs_lib.metrics import METRIC_KEYS, SAR_KEY, improvement


def result(name: str, mse_v2: float, mse_v3: float, no_sar: float | None = None) -> TileResult:
    metrics = {f"{key}_{suffix}": 0.5 for key in (*METRIC_KEYS, SAR_KEY) for suffix in ("v2", "v3")}
    metrics |= {"mse_v2": mse_v2, "mse_v3": mse_v3, "copy_ratio": 0.25}
    metrics |= {"mse_improvement_%": improvement(mse_v2, mse_v3), "mae_improvement_%": 0.0}
    controls: dict[str, dict[str, float | str]] = {}
    if no_sar is not None:
        controls["no_sar"] = dict.fromkeys((*METRIC_KEYS, SAR_KEY), 0.5) | {"mse": no_sar}
    record = PairRecord(Path(name), name, name, "ok", "src", "", 8, 8)
    return TileResult(record, "degraded", 0.1, 10, metrics, controls)


def report(*tiles: TileResult) -> Report:
    return Report("folder", "ok", list(tiles), {}, {}, 10, 10, 0, "cpu", 1.0)


def test_wins_worst_tile_and_quartiles() -> None:
    """Improvements of 50, 30, 10, 0 and -20 %."""
    values = (0.5, 0.7, 0.9, 1.0, 1.2)
    summary = report(*(result(str(value), 1.0, value) for value in values)).summary()["ok"]
    assert summary["wins"] == pytest.approx(0.6)
    assert summary["worst_tile_%"] == pytest.approx(20)
    assert summary["improvement_quartiles_%"] == pytest.approx([0, 10, 30])
    assert summary["mean"]["copy_ratio"] == 0.25


def test_the_worst_tile_is_negative_where_all_are_better_and_one_tile_is_its_quartiles() -> None:
    summary = report(result("a", 1.0, 0.9)).summary()["ok"]
    assert summary["worst_tile_%"] == pytest.approx(-10)
    assert summary["improvement_quartiles_%"] == pytest.approx([10, 10, 10])


def test_a_tile_whose_sar_shows_another_day_is_named_and_set_aside() -> None:
    flooded = replace(result("flooded", 1.0, 4.0), sar_water_on_land=0.06)
    summary = report(result("a", 1.0, 0.8), result("b", 1.0, 0.9), flooded).summary()["ok"]
    assert summary["worst_tile_%"] == pytest.approx(300)  # the headline counts every tile
    assert summary["sar_contradicts_truth"] == [flooded.record.name]
    rest = summary["without_contradicted"]
    assert rest["tiles"] == 2
    assert rest["wins"] == 1
    assert rest["worst_tile_%"] == pytest.approx(-10)
    assert rest["improvement_of_mean_%"]["mse"] == pytest.approx(15)


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_nothing_is_set_aside_where_sar_and_truth_agree(share: float) -> None:
    tiles = [replace(result(name, 1.0, 0.9), sar_water_on_land=share) for name in "ab"]
    summary = report(*tiles).summary()["ok"]
    assert not {"sar_contradicts_truth", "without_contradicted"} & set(summary)


def test_what_the_sar_is_worth() -> None:
    """opt_v2 2.0, without SAR 1.6, with it 1.2: 20 % of opt_v2's MSE, 25 % of that without SAR."""
    summary = report(result("a", 3.0, 2.0, 1.9), result("b", 1.0, 0.4, 1.3)).summary()["ok"]
    control = summary["no_sar"]
    assert control["mean"]["mse"] == pytest.approx(1.6)
    assert control["improvement_of_mean_%"]["mse"] == pytest.approx(20)
    assert control["v3_improvement_over_it_%"]["mse"] == pytest.approx(25)
    assert control["sar_worth_%"] == pytest.approx(20)
    assert control["sar_worth_of_no_sar_%"] == pytest.approx(25)
    assert control["wins_over"] == 0.5


def test_timesteps_side_by_side() -> None:
    first = replace(report(result("a", 1.0, 0.5)), timesteps=1, nfe=1)
    second = report(result("a", 1.0, 0.8))
    rows = timesteps_rows([first, second])
    assert [(row["timesteps"], row["nfe"], row["mse_v3"], row["mse_v2"]) for row in rows] == [
        (1, 1, 0.5, 1.0),
        (10, 10, 0.8, 1.0),
    ]
    assert [row["mse_improvement_%"] for row in rows] == pytest.approx([50, 20])
    assert rows[0]["seconds_per_tile"] == 0.1
    console = Console(file=io.StringIO(), width=80)
    console.print(timesteps_table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "+50.0 %" in text and "(opt_v2, ok)" in text and "…" not in text


def test_a_perfect_estimate_is_no_number_in_the_json() -> None:
    spoiled = report(result("a", 0.0, 0.5))
    assert math.isinf(spoiled.summary()["ok"]["worst_tile_%"])
    written = json.loads(json.dumps(spoiled.to_json(), allow_nan=False))
    assert written["summary"]["ok"]["worst_tile_%"] is None
