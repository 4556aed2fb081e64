"""``axs demo`` writes everything it promises for every packaged tile, and only into a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from axs_lib import pipeline as pipeline_module
from axs_lib.bands import OPTICAL_BANDS
from axs_lib.data.samples import load_sample, sample_metadata, sample_names
from axs_lib.pipeline import Pipeline, build_pipeline

from .conftest import FakePipeline

Run = Callable[..., Any]
FILES = {
    "s1.tif",
    "truth.tif",
    "opt_v2.tif",
    "opt_v3.tif",
    "uncertainty.tif",
    "tile.npz",
    "panel.png",
    "pipeline",
}
PIPELINE_FILES = {"opt_v1.tif", "opt_v2.tif", "opt_v3.tif", "truth.tif", "result.npz", "panel.png"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tile and no picture: drawing takes seconds."""
    monkeypatch.setattr("axs_lib.data.samples.sample_names", lambda: ("finland_lake",))
    for name in ("save_panel", "save_pipeline_panel"):
        monkeypatch.setattr(f"axs_lib.evaluate.panel.{name}", lambda path, **_: path)


def test_everything_is_written_and_the_figures_are_true(
    axs: Run, fake_pipeline: FakePipeline, tmp_path: Path
) -> None:
    folder = tmp_path / "demo"
    result = axs("demo", "--out", folder, "--seed", 3, "--timesteps", 5)
    assert result.exit_code == 0, result.output
    assert fake_pipeline.built == {"variant": "nano", "stage1_timesteps": 5, "stage3_timesteps": 5}
    assert fake_pipeline.stage3.called == {"timesteps": 5, "seed": 3, "ensemble_size": 4}
    assert fake_pipeline.settings == {"timesteps": 5, "seed": 3, "ensemble_size": 1}
    check_files(folder)
    check_figures(folder, result.output)
    check_pipeline(folder, result.output)
    page = (folder / "report.html").read_text()
    assert "report.html" in result.output and page.count("data-result") == 2 * len(sample_names()) + 1
    for name in sample_names():
        assert f"<b>{name}</b>" in page and f"<b>{name}/<wbr>pipeline</b>" in page


def check_pipeline(folder: Path, printed: str) -> None:
    """The second part: the fake's three images are 100, 200 and 300 DN everywhere."""
    record = json.loads((folder / "demo.json").read_text())["pipeline"]
    assert record["opt_v2_source"] == "stage2" and record["settings"]["ensemble_size"] == 1
    for name in sample_names():
        results = folder / name / "pipeline"
        assert {p.name for p in results.iterdir()} == PIPELINE_FILES
        assert (results / "panel.png").read_bytes().startswith(b"\x89PNG")
        truth = load_sample(name)[1]
        for image, value in (("opt_v1", 100), ("opt_v2", 200), ("opt_v3", 300)):
            with rasterio.open(results / f"{image}.tif") as written:
                assert (written.read() == value).all() and written.descriptions == OPTICAL_BANDS
                assert tuple(written.transform)[:6] == truth.transform
                assert written.tags()["AXS_SAMPLE"] == name
                assert written.tags()["AXS_METADATA_DATE"].startswith("2017-")
            mse = np.mean(((value - truth.data) / 10_000) ** 2)
            assert record["tiles"][name][f"mse_{image.removeprefix('opt_')}"] == pytest.approx(mse, rel=1e-4)
        variance = truth.data.astype(float).var((1, 2)).mean() / 10_000**2
        assert record["tiles"][name]["mse_mean_colour"] == pytest.approx(variance, rel=1e-4)
    words = " ".join(printed.split())
    assert "from SAR and date" in words and "opt_v1" in words and "mean colour" in words
    assert "nano is a demonstration" in words
    assert "MSE is lower in opt_v3 than in the mean colour on 0 of 3 tiles." in words


def check_files(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {*sample_names(), "demo.json", "report.html"}
    for name in sample_names():
        assert {p.name for p in (folder / name).iterdir()} == FILES
        assert (folder / name / "panel.png").read_bytes().startswith(b"\x89PNG")
        truth = load_sample(name)[1]
        with (
            rasterio.open(folder / name / "opt_v3.tif") as after,
            rasterio.open(folder / name / "opt_v2.tif") as before,
        ):
            assert after.descriptions == before.descriptions == OPTICAL_BANDS
            assert tuple(after.transform)[:6] == truth.transform and after.crs == before.crs
            assert after.tags()["AXS_SAMPLE"] == name and "degraded" in after.tags()["AXS_OPT_V2_SOURCE"]
            estimate = before.read().astype(float)
            np.testing.assert_allclose(after.read(), estimate + 100, atol=1)
            assert not np.array_equal(estimate, truth.data)
        with np.load(folder / name / "tile.npz", allow_pickle=False) as data:
            assert {"opt_v3", "opt_v2", "s1_vv", "s1_vh", "s2_real", "gate"} <= set(data.files)
            np.testing.assert_array_equal(data["s2_real"], truth.data)


def check_figures(folder: Path, printed: str) -> None:
    for word in (*sample_names(), "mean", "opt_v2", "opt_v3", "MSE", "PSNR", "SSIM", "SAM", "simulated"):
        assert word in printed
    record = json.loads((folder / "demo.json").read_text())
    assert record["opt_v2_source"] == "degraded (test)" and record["settings"]["seed"] == 3
    assert set(record["tiles"]) == set(sample_names())
    with np.load(folder / "ireland_fields" / "tile.npz", allow_pickle=False) as data:
        mse = np.mean(((data["opt_v3"] - data["s2_real"]) / 10_000) ** 2)
    assert record["tiles"]["ireland_fields"]["mse_v3"] == pytest.approx(mse, rel=1e-3)


@pytest.mark.usefixtures("quick", "fake_pipeline")
def test_it_runs_again_over_its_own_folder_and_the_seed_decides(axs: Run, tmp_path: Path) -> None:
    folder = tmp_path / "demo"

    def estimate() -> bytes:
        return (folder / "finland_lake" / "opt_v2.tif").read_bytes()

    assert axs("demo", "--out", folder, "--seed", 3).exit_code == 0
    first = estimate()
    assert axs("demo", "--out", folder, "--seed", 3).exit_code == 0
    assert estimate() == first
    assert axs("demo", "--out", folder, "--seed", 4).exit_code == 0
    assert estimate() != first


@pytest.mark.usefixtures("quick")
def test_a_folder_with_other_files_is_refused(axs: Run, fake_pipeline: FakePipeline, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    result = axs("demo", "--out", tmp_path)
    assert result.exit_code == 2 and "--overwrite" in result.stderr
    assert fake_pipeline.built == {} and [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    result = axs("demo", "--out", tmp_path / "thesis.txt")
    assert result.exit_code == 2 and "is a file" in result.stderr
    assert axs("demo", "--out", tmp_path, "--overwrite").exit_code == 0
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.usefixtures("quick")
def test_an_interrupted_demo_may_be_run_again(
    axs: Run, fake_pipeline: FakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fake_pipeline.stage3, "ground", interrupted)
        assert axs("demo", "--out", tmp_path / "demo").exit_code == 130
    assert axs("demo", "--out", tmp_path / "demo").exit_code == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore::axs_lib.errors.UntrainedHeadWarning")
def test_the_real_stages_share_one_generator(
    axs: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """nano's architecture with random weights; Stage 2 has the day and the place of the tile."""
    built: list[Pipeline] = []
    known: list[Any] = []

    def build(**options: Any) -> Pipeline:
        built.append(build_pipeline(pretrained=False, **options))
        built[0].stage2.register_forward_pre_hook(lambda _, given: known.append(given[1]))
        return built[0]

    monkeypatch.setattr(pipeline_module, "build_pipeline", build)
    result = axs("demo", "--out", tmp_path / "demo", "--timesteps", 1)
    assert result.exit_code == 0, result.output
    assert built[0].shares_generator
    assert known == [sample_metadata("finland_lake")]
    folder = tmp_path / "demo" / "finland_lake"
    for name in ("opt_v3.tif", "pipeline/opt_v3.tif"):
        with rasterio.open(folder / name) as written:
            assert written.read().min() >= 1 and written.tags()["AXS_VARIANT"] == "nano"
