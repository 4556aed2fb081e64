"""``axs evaluate`` from the outside: tables, the JSON report, and what it refuses."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from axs_lib import pipeline as pipeline_module
from axs_lib import stage3_tm_ground
from axs_lib.evaluate import plain as plain_module
from tests.evaluate.fakes import FakeModel, FakePipeline, FakePlain

from .conftest import run_axs

run = functools.partial(run_axs, "evaluate")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def half_way(s1: Tensor, opt_v2: Tensor) -> Tensor:
    """opt_v2 drawn towards its own mean."""
    opt_v2 = opt_v2.nan_to_num(2000.0)
    return (opt_v2 + opt_v2.mean((2, 3), keepdim=True)) / 2


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the model; the list holds how each was asked for."""
    asked: list[dict[str, Any]] = []

    def build(timesteps: int = 10, **options: Any) -> FakeModel:
        asked.append({"timesteps": timesteps, **options})
        return FakeModel(half_way, timesteps=timesteps, uncertainty=50.0)

    monkeypatch.setattr(stage3_tm_ground, "build_stage3_model", build)
    return asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "pairs").mkdir()
    for name in ("a", "b", "c"):
        truth = rng.integers(500, 3000, (4, 24, 24)).astype(np.uint16)
        truth[3] += 3000  # dry land
        sar = rng.normal(-14, 3, (2, 24, 24)).astype(np.float32)
        np.savez(tmp_path / "pairs" / f"{name}.npz", s1=sar, s2=truth)
    return tmp_path / "pairs"


def test_tables_and_report(folder: Path, tmp_path: Path, built: list[dict[str, Any]]) -> None:
    target = tmp_path / "out" / "report.json"
    result = run("--data", folder, "--timesteps", 4, "--seed", 3, "--controls", "--json", target)
    assert "3 tiles, quality ok" in result.stdout and "Per tile" in result.stdout
    assert "degraded" in result.stdout
    report = json.loads(target.read_text())
    assert (report["timesteps"], report["nfe"], report["seed"], len(report["tiles"])) == (4, 4, 3, 3)
    assert report["summary"]["ok"]["sar_swapped"]["tiles"] == 3
    assert built == [{"timesteps": 4, "variant": "nano", "device": DEVICE, "s1_product": "S1GRD"}]


@pytest.mark.parametrize("way", [("--stage", "pipeline"), ("--opt-v2-source", "stage2")])
def test_the_whole_pipeline(
    folder: Path, tmp_path: Path, built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, way: tuple[str, str]
) -> None:
    pipeline, asked = FakePipeline(), {}
    monkeypatch.setattr(pipeline_module, "build_pipeline", lambda **options: (asked.update(options), pipeline)[1])
    target = tmp_path / "report.json"
    result = run("--data", folder, *way, "--timesteps", 4, "--controls", "--json", target,
                 "--correction-mode", "difference", "--stage1-checkpoint", "one", "--hold-colour")  # fmt: skip
    assert not built, "Stage 3 comes with the pipeline"
    assert asked == {
        "stage1_timesteps": 4, "stage3_timesteps": 4, "variant": "nano", "device": DEVICE, "s1_product": "S1GRD",
        "stage1_checkpoint": Path("one"),
    }  # fmt: skip
    assert pipeline.stage3.correction_mode == "difference" and pipeline.stage3.hold_colour is True
    report = json.loads(target.read_text())
    assert report["opt_v2_source"] == {"stage2": 3} and (report["timesteps"], report["nfe"]) == (4, 22)
    assert all(tile["opt_v2_source"] == "stage2" for tile in report["tiles"])
    assert report["summary"]["ok"]["mean"]["mse_v1"] > 0
    assert {"sar_swapped", "proposal_swapped", "tile_mean"} <= set(report["summary"]["ok"])
    assert "MSE v1" in result.stdout and "opt_v1" in result.stdout


def test_several_timesteps_are_compared(folder: Path, tmp_path: Path, built: list[dict[str, Any]]) -> None:
    target = tmp_path / "report.json"
    result = run("--data", folder, "--timesteps", "1,5, 10,5", "--quality", "all", "--json", target,
                 "--variant", "terramind_v1_tiny", "--checkpoint", "w", "--device", "cpu",
                 "--s1-product", "S1RTC")  # fmt: skip
    wanted = {"variant": "terramind_v1_tiny", "checkpoint": Path("w"), "s1_product": "S1RTC", "device": "cpu"}
    assert len(built) == 1 and wanted.items() <= built[0].items()
    written = json.loads(target.read_text())
    assert set(written) == {"timesteps_table", "reports"}
    assert [report["timesteps"] for report in written["reports"]] == [1, 5, 10]
    rows = written["timesteps_table"]
    assert [(row["quality"], row["timesteps"], row["nfe"]) for row in rows] == [
        ("ok", 1, 1), ("ok", 5, 5), ("ok", 10, 10),
    ]  # fmt: skip
    mean = written["reports"][1]["summary"]["ok"]["mean"]
    for key in ("mse_v3", "ssim_v3", "sharpness_v3", "edge_truth_v3", "edge_sar_v2"):
        assert rows[1][key] == mean[key]
    assert rows[1]["seconds_per_tile"] == written["reports"][1]["seconds_per_tile"]
    assert "Timesteps" in result.stdout and "sharpness" in result.stdout


def test_models_to_compare_with(
    folder: Path, tmp_path: Path, built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Copy(FakePlain):
        def to(self, device: torch.device) -> Copy:
            return self

    loaded: list[Path] = []
    monkeypatch.setattr(plain_module, "load_plain", lambda path: (loaded.append(path), Copy("optical"))[1])
    target = tmp_path / "report.json"
    result = run("--data", folder, "--correction-mode", "learned", "--no-sar-checkpoint", tmp_path / "blind", "--gaps",
                 "--plain-checkpoint", tmp_path / "plain", "--json", target)  # fmt: skip
    assert loaded == [tmp_path / "plain"]
    assert [options.get("checkpoint") for options in built] == [None, tmp_path / "blind"]
    assert [options["correction_mode"] for options in built] == ["learned", "learned"]
    written = json.loads(target.read_text())
    summary = written["summary"]["ok"]
    assert summary["no_sar"]["sar_worth_%"] == pytest.approx(0)
    assert summary["plain"]["improvement_of_mean_%"]["mse"] == pytest.approx(0)
    methods = written["gaps"]["summary"]["simulated"]["mean"]
    assert "plain" not in methods, "a net without SAR is what the gaps are filled with for comparison"
    assert methods["no_sar"]["mse"] != methods["stage3"]["mse"]
    assert "with SAR instead of without" in result.stdout and "plain U-Net" in result.stdout


def test_the_flood_the_kinds_and_the_gaps(folder: Path, tmp_path: Path, built: list[dict[str, Any]]) -> None:
    target = tmp_path / "report.json"
    result = run("--data", folder, "--flood", "--damages", "--gaps", "--timesteps", "2", "--seed", 3,
                 "--groups", "pairs/a,pairs/b", "--quiet", "--json", target)  # fmt: skip
    report = json.loads(target.read_text())
    assert (report["timesteps"], report["flood"]["tiles"], report["damages"]["tiles"]) == (2, 2, 2)
    assert report["gaps"]["summary"]["simulated"]["tiles"] == 2
    for title in ("Flood in the SAR alone: 2 dry tiles", "Estimates of every kind: 2 tiles", "Simulated gaps: 2 tiles"):
        assert title in result.stdout


def test_tiles_of_the_weights_own_training_are_named(
    folder: Path, tmp_path: Path, built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    header = {"train_groups": json.dumps(["pairs/a", "elsewhere"]), "validation_groups": json.dumps(["pairs/c"])}
    monkeypatch.setattr("axs_lib.hub.source_header", lambda weights: header)
    target = tmp_path / "report.json"
    result = run("--data", folder, "--json", target)
    assert "trained or chosen on the groups of 2 of 3 tiles (pairs/a, pairs/c)" in result.stderr
    assert json.loads(target.read_text())["groups_of_training"] == ["pairs/a", "pairs/c"]
    assert "trained or chosen" not in run("--data", folder, "--groups", "pairs/b").stderr


def test_reports_are_not_overwritten_unasked(folder: Path, tmp_path: Path, built: list[dict[str, Any]]) -> None:
    target = tmp_path / "report.json"
    target.write_text("mine")
    assert "--overwrite" in run("--data", folder, "--json", target, code=2).output
    assert target.read_text() == "mine" and not built, "refused before the model is built"
    run("--data", folder, "--json", target, "--overwrite")
    assert json.loads(target.read_text())["quality"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/no/such/folder"], "no folder"), (["--quality", "fine"], "fine"),
        (["--stage", "second"], "second"), (["--groups", "nowhere"], "nowhere"), (["--timesteps", "5,many"], "5,many"),
        (["--timesteps", "0"], "1 to 1000"),
        (["--opt-v2-source", "cloudy"], "s2_cloudy"),
        (["--opt-v2-source", "cloudy", "--stage", "pipeline"], "leave --stage out"),
        (["--stage2-checkpoint", "x"], "--stage pipeline"),
        (["--correction-mode", "guess"], "guess"),
        ([], "--data"),
    ],
)  # fmt: skip
def test_user_errors_have_code_2(folder: Path, built: list[dict[str, Any]], arguments: list[str], message: str) -> None:
    needs_data = arguments and "--data" not in arguments
    result = run(*(["--data", folder] if needs_data else []), *arguments, code=2)
    assert message in result.output and "Traceback" not in result.output


def test_uncertainty_joins_the_report(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel(half_way, uncertainty=50.0)
    monkeypatch.setattr(stage3_tm_ground, "build_stage3_model", lambda timesteps, **_: model)
    result = run("--data", folder, "--uncertainty", "--json", tmp_path / "r.json", "-q")
    assert "spread-skill" in result.output and "pixels dropped" in result.output
    written = json.loads((tmp_path / "r.json").read_text())["uncertainty"]
    assert written["ensemble_size"] == 4 and {call.ensemble_size for call in model.calls} == {1, 4}
    assert {"spread_skill", "uce", "auce", "retention", "crps", "reliability"} <= set(written)
    assert 0 < written["spread_skill"]["B08"] < 1
    assert [share for share, _ in written["retention"]][:4] == [0, 0.05, 0.1, 0.2]
    model.calls.clear()
    run("--data", folder, "--ensemble-size", "3", "-q")
    assert {call.ensemble_size for call in model.calls} == {3}
