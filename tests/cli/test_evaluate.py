"""``axs evaluate`` from the outside: tables, the JSON report, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from axs_lib import pipeline as pipeline_module
from axs_lib import stage3_tm_ground
from axs_lib.cli.app import app
from axs_lib.pipeline import PipelineOutput


@dataclass
class Output:
    image: Tensor
    nfe: int


class HalfWay:
    """A stand-in for Stage 3 that is quick to build: it draws opt_v2 towards its own mean."""

    device = torch.device("cpu")
    provenance = {"AXS_VARIANT": "stand-in"}  # noqa: RUF012

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps

    def ground(self, s1: Tensor, opt_v2: Tensor, timesteps: int | None = None, *, seed: int = 0) -> Output:
        return Output((opt_v2 + opt_v2.mean((2, 3), keepdim=True)) / 2, timesteps or self.timesteps)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the model; the list holds how each was asked for."""
    asked: list[dict[str, Any]] = []

    def build(timesteps: int = 10, **options: Any) -> HalfWay:
        asked.append({"timesteps": timesteps, **options})
        return HalfWay(timesteps)

    monkeypatch.setattr(stage3_tm_ground, "build_stage3_model", build)
    return asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "pairs").mkdir()
    for name in ("a", "b", "c"):
        truth = rng.integers(500, 3000, (4, 24, 24)).astype(np.uint16)
        sar = rng.normal(-14, 3, (2, 24, 24)).astype(np.float32)
        np.savez(tmp_path / "pairs" / f"{name}.npz", s1=sar, s2=truth)
    return tmp_path / "pairs"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_tables_and_report(folder: Path, tmp_path: Path, built: list[dict[str, Any]]) -> None:
    target = tmp_path / "out" / "report.json"
    result = run("--data", folder, "--timesteps", 4, "--seed", 3, "--controls", "--json", target)
    assert result.exit_code == 0, result.output
    assert "3 tiles, quality ok" in result.stdout
    assert "Per tile" in result.stdout
    assert "degraded" in result.stdout
    report = json.loads(target.read_text())
    assert (report["timesteps"], report["nfe"], report["seed"], len(report["tiles"])) == (4, 4, 3, 3)
    assert report["summary"]["ok"]["sar_swapped"]["tiles"] == 3
    assert built == [
        {"timesteps": 4, "variant": "nano", "checkpoint": None, "device": None, "s1_product": "S1GRD"}
    ]


def test_options_reach_the_model(folder: Path, tmp_path: Path, built: list[dict[str, Any]]) -> None:
    result = run("--data", folder, "--variant", "terramind_v1_tiny", "--checkpoint", tmp_path / "w", "--device", "cpu",
                 "--s1-product", "S1RTC", "--quality", "all", "--groups", "pairs/a, pairs/b")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert built[0]["variant"] == "terramind_v1_tiny"
    assert (built[0]["checkpoint"], built[0]["s1_product"]) == (str(tmp_path / "w"), "S1RTC")
    assert "2 tiles, quality all" in result.stdout


def test_the_whole_pipeline(
    folder: Path, tmp_path: Path, built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class FromSar:
        """All three images follow VV."""

        device = torch.device("cpu")
        provenance = {"AXS_VARIANT": "stand-in"}  # noqa: RUF012
        stage3 = HalfWay(4)

        def __call__(self, s1: Tensor, metadata: Any, timesteps: int, *, seed: int = 0) -> PipelineOutput:
            image = (s1[:, :1] * 100 + 4000).expand(-1, 4, -1, -1)
            return PipelineOutput(image, image + 10, image + 20, None, (timesteps, timesteps))

    asked: list[dict[str, Any]] = []

    def build(**options: Any) -> FromSar:
        asked.append(options)
        return FromSar()

    monkeypatch.setattr(pipeline_module, "build_pipeline", build)
    target = tmp_path / "report.json"
    result = run("--data", folder, "--stage", "pipeline", "--timesteps", 4, "--json", target)
    assert result.exit_code == 0, result.output
    assert not built, "Stage 3 comes with the pipeline"
    assert asked == [
        {"stage1_timesteps": 4, "stage3_timesteps": 4, "variant": "nano", "checkpoint": None, "device": None,
         "s1_product": "S1GRD"}
    ]  # fmt: skip
    report = json.loads(target.read_text())
    assert report["opt_v2_source"] == {"stage2": 3} and (report["timesteps"], report["nfe"]) == (4, 8)
    assert all(tile["opt_v2_source"] == "stage2" for tile in report["tiles"])
    assert report["summary"]["ok"]["mean"]["mse_v1"] > 0
    assert "MSE v1" in result.stdout and "opt_v1" in result.stdout


def test_quiet_leaves_the_summary(folder: Path, built: list[dict[str, Any]]) -> None:
    result = run("--data", folder, "--quiet")
    assert result.exit_code == 0
    assert "Per tile" not in result.stdout
    assert "3 tiles, quality ok" in result.stdout


def test_reports_are_not_overwritten_unasked(
    folder: Path, tmp_path: Path, built: list[dict[str, Any]]
) -> None:
    target = tmp_path / "report.json"
    target.write_text("mine")
    refused = run("--data", folder, "--json", target)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.output
    assert target.read_text() == "mine"
    assert not built, "refused before the model is built"
    assert run("--data", folder, "--json", target, "--overwrite").exit_code == 0
    assert json.loads(target.read_text())["quality"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/no/such/folder"], "no folder"),
        (["--quality", "fine"], "fine"),
        (["--stage", "second"], "second"),
        (["--groups", "nowhere"], "nowhere"),
        ([], "--data"),
    ],
)
def test_user_errors_have_one_line_and_code_2(
    folder: Path, built: list[dict[str, Any]], arguments: list[str], message: str
) -> None:
    needs_data = arguments and "--data" not in arguments
    result = run(*(["--data", folder] if needs_data else []), *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_broken_pairs_are_named(folder: Path, tmp_path: Path, built: list[dict[str, Any]]) -> None:
    (folder / "b.npz").write_bytes(b"PK broken")
    result = run("--data", folder, "--json", tmp_path / "r.json")
    assert result.exit_code == 2
    assert "b.npz" in result.output
    assert not (tmp_path / "r.json").exists()
