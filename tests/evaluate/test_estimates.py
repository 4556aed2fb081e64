"""The main scenario with models whose figures are known: a perfect one, a copy, one that only follows the SAR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from axs_lib.bands import OPTICAL_MEAN
from axs_lib.checks import Trust
from axs_lib.data.pairs import PairRecord, list_pairs, load_pair
from axs_lib.evaluate import Estimates, Report, evaluate
from axs_lib.evaluate.estimates import tile_table, timesteps_rows, timesteps_table
from axs_lib.evaluate.evaluator import TileFigures
from axs_lib.evaluate.sources import simulated_estimate
from axs_lib.metrics import METRIC_KEYS, SAR_KEY, compute_metrics, improvement, stage3_metrics
from tests.evaluate import fakes
from tests.evaluate.fakes import FakeModel, FakePipeline, FakePlain, follow_sar


def outcome(model: Any, folder: Path, settings: Estimates | None = None, **options: Any) -> dict[str, Any]:
    return fakes.outcome(model, folder, settings or Estimates(), **options)


def of_pair(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """SAR, truth, and what is grounded by default."""
    pair = load_pair(next(record for record in list_pairs(folder, "all") if record.id == name))
    s1, truth = torch.from_numpy(pair.s1), torch.from_numpy(pair.s2)
    given = pair.opt_v2
    return (s1, truth, simulated_estimate(truth, pair.record.name) if given is None else torch.from_numpy(given))


def test_figures_are_those_of_the_metrics(folder: Path) -> None:
    written = outcome(FakeModel(follow_sar), folder, quality="all")
    for entry in written["tiles"]:
        s1, truth, opt_v2 = of_pair(folder, entry["id"])
        opt_v3 = follow_sar(s1[None], opt_v2[None])[0]
        assert entry["metrics"] == pytest.approx(stage3_metrics(opt_v3, opt_v2, truth, s1=s1)) and entry["win"]
    assert {name: figures["tiles"] for name, figures in written["summary"].items()} == {"ok": 3, "all": 4}
    mean, median = written["summary"]["all"]["mean"], written["summary"]["ok"]["median"]
    assert mean["mse_v3"] == pytest.approx(np.mean([t["metrics"]["mse_v3"] for t in written["tiles"]]))
    clear = [t["metrics"]["sam_v2"] for t in written["tiles"] if t["quality"] == "ok"]
    assert median["sam_v2"] == pytest.approx(np.median(clear))
    gain = written["summary"]["all"]["improvement_of_mean_%"]["mse"]
    assert gain == pytest.approx(100 * (1 - mean["mse_v3"] / mean["mse_v2"]))


def test_sources_of_the_estimate_are_named(folder: Path) -> None:
    written = outcome(FakeModel(), folder, quality="all")
    sources = {tile["id"]: tile["opt_v2_source"] for tile in written["tiles"]}
    assert sources == {"a": "file", "b": "degraded", "c": "degraded", "d": "degraded"}
    assert written["opt_v2_source"] == {"file": 1, "degraded": 3} and written["opt_v2_preset"] == "test"
    assert written["tiles"][0]["metrics"]["mae_v2"] == pytest.approx(0.03, rel=1e-4)
    assert outcome(FakeModel(), folder, source="degraded")["opt_v2_source"] == {"degraded": 3}


def test_water_of_the_sar_on_land_of_the_truth_is_counted(tmp_path: Path) -> None:
    """A quarter of the tile is water in the SAR, less its shore; of that half is water in the truth, too."""
    s1 = np.full((2, 64, 64), -10, np.float32)
    s1[:, :32, :32] = np.array([-21, -28], np.float32)[:, None, None]
    s2 = np.broadcast_to(np.array([400, 600, 500, 2500], np.uint16)[:, None, None], (4, 64, 64)).copy()
    s2[:, :16, :32] = np.array([400, 600, 300, 150], np.uint16)[:, None, None]
    np.savez(tmp_path / "a.npz", s1=s1, s2=s2)
    assert 0.08 < outcome(FakeModel(), tmp_path, timesteps=1)["tiles"][0]["sar_water_on_land"] < 1 / 8


def test_swapped_sar_shows_what_the_sar_brings(folder: Path) -> None:
    written = outcome(FakeModel(follow_sar), folder, Estimates(controls=True), quality="all")
    donors = {tile["id"]: tile["donor"] for tile in written["tiles"]}
    assert donors == {"a": "src/c", "b": "src/c", "c": "src/a", "d": "src/a"}, "another group, of one size if it can be"
    for tile in written["tiles"]:
        assert tile["sar_swapped"]["mse"] > tile["metrics"]["mse_v3"]
        assert tile["sar_withheld"]["mse"] > tile["metrics"]["mse_v3"]
    figures = written["summary"]["all"]
    assert figures["sar_swapped"]["wins_over"] == 1
    assert figures["sar_swapped"]["improvement_of_mean_%"]["mse"] < figures["improvement_of_mean_%"]["mse"]
    s1, truth, opt_v2 = of_pair(folder, "a")
    swapped = follow_sar(of_pair(folder, "c")[0][None], opt_v2[None])[0]
    assert written["tiles"][0]["sar_swapped"] == pytest.approx(compute_metrics(swapped, truth, s1=s1))
    withheld = follow_sar(torch.full_like(s1, -10.0)[None], opt_v2[None])[0]
    assert written["tiles"][0]["sar_withheld"] == pytest.approx(compute_metrics(withheld, truth, s1=s1))
    assert "sar_swapped" not in outcome(FakeModel(), folder)["tiles"][0]


def test_another_tiles_proposal(folder: Path) -> None:
    """A model that adds the proposal it is given is worse by just that."""
    model = FakeModel(propose=lambda s1: s1[:, :1].expand(-1, 4, -1, -1))
    written = outcome(model, folder, Estimates(controls=True))
    for tile in written["tiles"]:
        s1, truth, opt_v2 = of_pair(folder, tile["id"])
        other = of_pair(folder, tile["donor"][-1])[0]
        assert tile["proposal_swapped"] == pytest.approx(compute_metrics(opt_v2 + other[:1], truth, s1=s1))
    assert written["summary"]["ok"]["proposal_swapped"]["tiles"] == 3
    model.provenance["AXS_CORRECTION_MODE"] = "difference"
    assert "proposal_swapped" not in outcome(model, folder, Estimates(controls=True))["tiles"][0]


def test_one_tile_has_no_other(folder: Path) -> None:
    for name in "abd":
        (folder / "pairs" / "src" / f"{name}.npz").unlink()
    (folder / "index.csv").unlink()
    figures = outcome(FakeModel(), folder, Estimates(controls=True))["summary"]["ok"]
    assert not {"sar_swapped", "proposal_swapped"} & set(figures)
    assert "mean_colour" in figures, "a floor needs no other tile"


def test_the_floors_are_constant_colours(folder: Path) -> None:
    for tile in outcome(FakeModel(), folder, Estimates(controls=True))["tiles"]:
        truth = of_pair(folder, tile["id"])[1] / 10_000
        assert tile["tile_mean"]["mse"] == pytest.approx(float(truth.var((1, 2), correction=0).mean()), rel=1e-4)
        nano = torch.tensor(OPTICAL_MEAN)[:, None, None] / 10_000
        assert tile["mean_colour"]["mse"] == pytest.approx(float((truth - nano).square().mean()), rel=1e-4)
        assert tile["tile_mean"]["mse"] < tile["mean_colour"]["mse"]


def test_models_beside_the_model_are_measured_as_it_is(folder: Path) -> None:
    """Without the SAR nothing is gained here, so the SAR is worth the whole gain."""
    blind, plain, model = FakeModel(), FakePlain("sar+optical"), FakeModel(follow_sar)
    written = outcome(model, folder, Estimates(ensemble_size=4, no_sar=blind, plain=plain))  # type: ignore[arg-type]
    assert written["ensemble_size"] == 4 and {call.ensemble_size for call in model.calls} == {4}
    assert {call.ensemble_size for call in blind.calls} == {1}
    mean = blind.terramind_generator.sar.mean
    assert torch.equal(blind.calls[0].s1, mean.expand_as(blind.calls[0].s1))
    figures = written["summary"]["ok"]
    assert not {"sar_swapped", "mean_colour", "proposal_swapped"} & set(figures)
    without, own = figures["no_sar"], figures["mean"]
    assert without["mean"]["mse"] == pytest.approx(own["mse_v2"])
    assert without["improvement_of_mean_%"]["mse"] == pytest.approx(0)
    assert without["sar_worth_%"] == pytest.approx(100 * (own["mse_v2"] - own["mse_v3"]) / own["mse_v2"])
    assert without["wins_over"] == 1 and figures["plain"]["mean"]["mse"] == pytest.approx(own["mse_v2"])
    assert without["v3_improvement_over_it_%"]["mse"] == pytest.approx(without["sar_worth_%"])
    assert written["control_models"] == {"no_sar": {"AXS_VARIANT": "fake"}, "plain": {"inputs": "sar+optical"}}
    from_sar = outcome(FakeModel(), folder, Estimates(plain=FakePlain("sar")))["tiles"][0]["plain"]
    s1, truth, _ = of_pair(folder, "a")
    assert from_sar == pytest.approx(compute_metrics(torch.full_like(truth, 1000.0), truth, s1=s1))


def date_first_tile(folder: Path) -> None:
    index = (folder / "index.csv").read_text().splitlines()
    dated = [f"{index[0]},date,lat", f"{index[1]},2021-07-14,48.2", *(f"{row},," for row in index[2:])]
    (folder / "index.csv").write_text("\n".join(dated))


def test_the_whole_pipeline_from_sar_alone(folder: Path) -> None:
    """Its own opt_v1 and opt_v2 are measured, also where a pair carries an opt_v2."""
    date_first_tile(folder)
    pipeline = FakePipeline()
    written = outcome(pipeline, folder, timesteps=3, seed=5, source="stage2")
    assert pipeline.metadata == [{"date": "2021-07-14", "lat": 48.2}, {}, {}]
    assert pipeline.asked == [(3, 5)] and (written["timesteps"], written["nfe"]) == (3, 22)
    assert written["opt_v2_source"] == {"stage2": 3}
    for tile in written["tiles"]:
        s1, truth, _ = of_pair(folder, tile["id"])
        opt_v2 = torch.full_like(truth, 2000.0)
        expected = stage3_metrics(follow_sar(s1[None], opt_v2[None])[0], opt_v2, truth, s1=s1)
        drawn = compute_metrics(torch.full_like(truth, 1000.0), truth, s1=s1)
        assert tile["metrics"] == pytest.approx(expected | {f"{key}_v1": v for key, v in drawn.items()})


def test_controls_of_the_pipeline_ground_its_own_estimate(folder: Path) -> None:
    pipeline = FakePipeline(FakeModel(follow_sar, propose=lambda s1: s1[:, :1].expand(-1, 4, -1, -1)))
    written = outcome(pipeline, folder, Estimates(controls=True), source="stage2")
    assert all((call.trust == Trust.SAR_ONLY).all() for call in pipeline.stage3.calls)
    tile = written["tiles"][0]
    s1, truth, _ = of_pair(folder, tile["id"])
    other, opt_v2 = of_pair(folder, tile["donor"][-1])[0], torch.full_like(truth, 2000.0)
    swapped = follow_sar(other[None], opt_v2[None])[0]
    assert tile["sar_swapped"] == pytest.approx(compute_metrics(swapped, truth, s1=s1))
    proposed = follow_sar(s1[None], opt_v2[None])[0] + other[:1]
    assert tile["proposal_swapped"] == pytest.approx(compute_metrics(proposed, truth, s1=s1))


def test_what_the_date_is_worth(folder: Path) -> None:
    """With dates in the index the pipeline runs again without them; without any it does not."""
    controls = Estimates(controls=True)
    assert "no_date" not in outcome(FakePipeline(), folder, controls, source="stage2")["summary"]["ok"]
    date_first_tile(folder)
    written = outcome(FakePipeline(), folder, controls, source="stage2")
    assert "…" not in fakes.shown(controls.tables(written, ""), width=80), "figures are whole"
    for tile in written["tiles"]:  # this one's images do not depend on the date
        assert tile["no_date_v2"]["mse"] == pytest.approx(tile["metrics"]["mse_v2"])
        assert tile["no_date"]["mse"] == pytest.approx(tile["metrics"]["mse_v3"])


def measured(name: str, mse_v2: float, mse_v3: float, **facts: Any) -> TileFigures:
    metrics = {f"{key}_{suffix}": 0.5 for key in (*METRIC_KEYS, SAR_KEY) for suffix in ("v2", "v3")}
    shares = dict.fromkeys(("copy_ratio", "improved", "omitted", "hallucinated", "identity_collapse"), 0.25)
    metrics |= shares | {"mse_v2": mse_v2, "mse_v3": mse_v3}
    metrics |= {"mse_improvement_%": improvement(mse_v2, mse_v3), "mae_improvement_%": 0.0}
    record = PairRecord(path=Path(name), source="src", id=name, group=name, height=8, width=8)
    defaults = {"opt_v2_source": "degraded", "seconds": 0.1, "nfe": 10, "sar_water_on_land": 0.0}
    return TileFigures(record, {"opt_v3": metrics}, defaults | facts)


def report(*tiles: TileFigures) -> Report:
    scenario = Estimates()
    return Report({}, {scenario: list(tiles)}, {scenario: []})


def summary_of(*tiles: TileFigures) -> dict[str, Any]:
    summary: dict[str, Any] = report(*tiles).to_json()["summary"]["ok"]
    return summary


def test_wins_worst_tile_and_quartiles() -> None:
    """Improvements of 50, 30, 10, 0 and -20 %."""
    summary = summary_of(*(measured(str(value), 1.0, value) for value in (0.5, 0.7, 0.9, 1.0, 1.2)))
    assert summary["wins"] == pytest.approx(0.6) and summary["worst_tile_%"] == pytest.approx(20)
    assert summary["improvement_quartiles_%"] == pytest.approx([0, 10, 30])
    assert summary["mean"]["copy_ratio"] == 0.25
    alone = summary_of(measured("a", 1.0, 0.9))
    assert alone["worst_tile_%"] == pytest.approx(-10), "negative where all are better"
    for value, worst in ((0.9, "+10.0"), (1.2, "-20.0")):
        text = fakes.shown(Estimates().tables(report(measured("a", 1.0, value)).to_json(), ""))
        assert f"worst tile: {worst} %" in " ".join(text.split()), "signed as the quartiles beside it"
    assert alone["improvement_quartiles_%"] == pytest.approx([10, 10, 10])


def test_a_tile_whose_sar_shows_another_day_is_named_and_set_aside() -> None:
    flooded = measured("flooded", 1.0, 4.0, sar_water_on_land=0.06)
    summary = summary_of(measured("a", 1.0, 0.8), measured("b", 1.0, 0.9), flooded)
    assert summary["worst_tile_%"] == pytest.approx(300)  # the headline counts every tile
    assert summary["sar_inconsistent_tiles"] == [flooded.record.name]
    assert "on 1 tile the SAR" in fakes.shown(Estimates().tables(report(measured("a", 1, 0.8), flooded).to_json(), ""))
    rest = summary["sar_consistent"]
    assert (rest["tiles"], rest["wins"]) == (2, 1) and rest["worst_tile_%"] == pytest.approx(-10)
    assert rest["improvement_of_mean_%"]["mse"] == pytest.approx(15)
    for share in (0.0, 0.05):
        summary = summary_of(*(measured(name, 1.0, 0.9, sar_water_on_land=share) for name in "ab"))
        assert not {"sar_inconsistent_tiles", "sar_consistent"} & set(summary)


def test_timesteps_side_by_side() -> None:
    first = report(measured("a", 1.0, 0.5, nfe=1)).to_json()
    rows = timesteps_rows({1: first, 10: report(measured("a", 1.0, 0.8)).to_json()})
    assert [(row["timesteps"], row["nfe"], row["mse_v3"], row["mse_v2"]) for row in rows] == [
        (1, 1, 0.5, 1.0),
        (10, 10, 0.8, 1.0),
    ]
    assert [row["mse_improvement_%"] for row in rows] == pytest.approx([50, 20])
    assert rows[0]["seconds_per_tile"] == 0.1
    text = fakes.shown([timesteps_table(rows)], width=80)
    assert "+50.0 %" in text and "(opt_v2, ok)" in text and "…" not in text


def test_tables_tell_what_was_measured(folder: Path) -> None:
    settings = Estimates(controls=True, no_sar=FakeModel())  # type: ignore[arg-type]
    report = evaluate(FakeModel(follow_sar), folder, [settings], quality="all")
    text = fakes.shown([*report.tables(), tile_table(report.to_json())])
    for word in (
        *("3 tiles, quality ok", "4 tiles, quality all", "degraded (3)", "file (1)", "10 timesteps"),
        *("MSE", "SSIM", "edges, with SAR", "smaller MSE on 100 %", "quartiles", "worst tile", "src/d", "cloud"),
        *("Controls: 3 tiles", "another tile's SAR", "another tile's proposal", "mean colour", "SAR withheld"),
        *("retrained without SAR", "with SAR instead of without"),
    ):
        assert word in text, word
    assert "Controls" not in fakes.shown(evaluate(FakeModel(), folder, [Estimates()]).tables())
    pipeline = outcome(FakePipeline(), folder, source="stage2")
    assert "opt_v1" in fakes.shown(Estimates().tables(pipeline, ""), width=80)
    assert "MSE v1" in fakes.shown([tile_table(pipeline)])


def test_the_json_is_complete(folder: Path) -> None:
    path = folder / "pairs" / "src" / "a.npz"
    content = dict(np.load(path))
    np.savez(path, **(content | {"opt_v2": content["s2"]}))  # the truth itself
    written = outcome(FakeModel(), folder, quality="all")
    assert set(written) == {
        "data", "quality", "opt_v2_source", "opt_v2_preset", "model", "control_models", "timesteps", "nfe", "seed",
        "ensemble_size", "device", "seconds", "seconds_per_tile", "units", "summary", "tiles",
    }  # fmt: skip
    assert written["model"] == {"AXS_VARIANT": "fake"}
    assert written["summary"]["all"]["wins"] == 0, "a copy wins nothing"
    assert written["summary"]["all"]["improvement_of_mean_%"] == {"mse": 0, "mae": 0}
    assert written["tiles"][0]["metrics"]["psnr_v3"] is None and written["tiles"][0]["metrics"]["mse_v3"] == 0
    assert {"group", "quality", "opt_v2_source", "seconds", "win", "height", "width"} <= set(written["tiles"][0])
