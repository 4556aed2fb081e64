"""``axs demo`` writes everything it promises for every packaged tile, and only into a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from axs_lib import pipeline as pipeline_module
from axs_lib.bands import OPTICAL_BANDS
from axs_lib.data.samples import load_sample, sample_metadata, sample_names
from axs_lib.pipeline import Pipeline, build_pipeline

from .conftest import FakePipeline, Run

PARTS = ("gap", "estimate", "from_sar")
FILES = {"truth.tif", "opt_v2.tif", "opt_v3.tif", "tile.npz"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tile only."""
    monkeypatch.setattr("axs_lib.data.samples.sample_names", lambda: ("finland_lake",))


def test_everything_is_written_and_the_figures_are_true(axs: Run, fake_pipeline: FakePipeline, tmp_path: Path) -> None:
    """The fake adds 100 DN to an estimate; its three stages are 100, 200 and 300 DN everywhere."""
    folder, name = tmp_path / "demo", "finland_lake"
    result = axs("demo", "--out", folder, "--seed", 3, "--timesteps", 5)
    assert fake_pipeline.built == {"variant": "nano", "stage1_timesteps": 5, "stage3_timesteps": 5}
    assert fake_pipeline.stage3.called == {"timesteps": 5, "seed": 3, "ensemble_size": 4}
    assert fake_pipeline.settings == {"timesteps": 5, "seed": 3, "ensemble_size": 1}
    assert {path.name for path in folder.iterdir()} == {*PARTS, "demo.json", "report.html"}
    record = json.loads((folder / "demo.json").read_text())
    assert record["settings"] == {"timesteps": 5, "seed": 3}
    for part in PARTS:
        assert list(record["parts"][part]) == list(sample_names())
        for sample in sample_names():
            extra = {"opt_v1.tif"} if part == "from_sar" else set()
            assert {path.name for path in (folder / part / sample).iterdir()} == FILES | extra
    page, words = (folder / "report.html").read_text(), " ".join(result.output.split())
    assert page.count("data-result") == len(PARTS) * len(sample_names()) + 1
    assert page.index("gap/") < page.index("estimate/") < page.index("from_sar/")
    for word in (*sample_names(), "opt_v2", "smooth fill", "simulated", "report.html"):
        assert word in words, word
    assert words.index("1. A cloud gap") < words.index("2. An estimate") < words.index("3. The three stages")
    assert "MSE is lower in opt_v3 than in mean colour on 0 of" in words
    assert "estimate, not observation" in words and "estimate, not observation" in page

    truth, figures = load_sample(name)[1], {part: record["parts"][part][name] for part in PARTS}
    with np.load(folder / "gap" / name / "tile.npz", allow_pickle=False) as data:
        gap = data["trust"][0] == 0
        assert 0 < gap.mean() < 1 and np.isnan(data["opt_v2"][:, gap]).all()
        np.testing.assert_array_equal(data["opt_v2"][:, ~gap], truth.data[:, ~gap])
    assert set(figures["gap"]) == {"mean colour", "smooth fill", "opt_v3"}
    colour = truth.data[:, ~gap].mean(1, dtype=np.float64)[:, None]
    expected = np.square((truth.data[:, gap] - colour) / 10_000).mean()
    assert figures["gap"]["mean colour"]["mse"] == pytest.approx(expected, rel=1e-4)

    with rasterio.open(folder / "estimate" / name / "opt_v3.tif") as after:
        assert tuple(after.transform)[:6] == truth.grid.transform and after.descriptions == OPTICAL_BANDS
        assert after.tags()["AXS_SAMPLE"] == name and "degraded" in after.tags()["AXS_OPT_V2_SOURCE"]
    with np.load(folder / "estimate" / name / "tile.npz", allow_pickle=False) as data:
        assert {"s1_vv", "s1_vh", "gate", "uncertainty"} <= set(data.files)
        np.testing.assert_allclose(data["opt_v3"], data["opt_v2"] + 100, atol=1)
        mse = np.mean(((data["opt_v3"] - truth.data) / 10_000) ** 2)
    assert figures["estimate"]["opt_v3"]["mse"] == pytest.approx(mse, rel=1e-3)

    for image, value in (("opt_v1", 100), ("opt_v2", 200), ("opt_v3", 300)):
        with rasterio.open(folder / "from_sar" / name / f"{image}.tif") as written:
            assert (written.read() == value).all() and written.descriptions == OPTICAL_BANDS
            assert written.tags()["AXS_NOTICE"] == "estimate, not observation"
            assert written.tags()["AXS_METADATA_DATE"].startswith("2017-")
        mse = np.mean(((value - truth.data) / 10_000) ** 2)
        assert figures["from_sar"][image]["mse"] == pytest.approx(mse, rel=1e-4)
    variance = truth.data.astype(float).var((1, 2)).mean() / 10_000**2
    assert figures["from_sar"]["mean colour"]["mse"] == pytest.approx(variance, rel=1e-4)


@pytest.mark.usefixtures("quick")
def test_a_folder_with_other_files_is_refused(axs: Run, fake_pipeline: FakePipeline, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert "--overwrite" in axs("demo", "--out", tmp_path, code=2).stderr
    assert fake_pipeline.built == {} and [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    assert "is a file" in axs("demo", "--out", tmp_path / "thesis.txt", code=2).stderr
    axs("demo", "--out", tmp_path, "--overwrite")
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    assert fake_pipeline.built["stage3_timesteps"] == 1, "what nano recommends"


@pytest.mark.usefixtures("quick")
def test_an_interrupted_demo_may_be_run_again_and_the_seed_decides(
    axs: Run, fake_pipeline: FakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fake_pipeline.stage3, "ground", interrupted)
        axs("demo", "--out", tmp_path / "demo", code=130)
    images = []
    for seed in (3, 3, 4):
        axs("demo", "--out", tmp_path / "demo", "--seed", seed)
        images.append((tmp_path / "demo" / "estimate" / "finland_lake" / "opt_v2.tif").read_bytes())
    assert images[0] == images[1] != images[2]


@pytest.mark.usefixtures("quick")
def test_nano_fills_the_gap_and_keeps_what_is_clear(axs: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Packaged weights; Stage 2 has the day and the place of the tile, and stages share one generator."""
    built: list[Pipeline] = []
    known: list[Any] = []

    def build(**options: Any) -> Pipeline:
        built.append(build_pipeline(**options))
        built[0].stage2.register_forward_pre_hook(lambda _, given: known.append(given[1]))
        return built[0]

    monkeypatch.setattr(pipeline_module, "build_pipeline", build)
    axs("demo", "--out", tmp_path / "demo")
    assert built[0].shares_generator
    assert known == [sample_metadata("finland_lake")]
    record = json.loads((tmp_path / "demo" / "demo.json").read_text())
    gap, estimate = (record["parts"][part]["finland_lake"] for part in ("gap", "estimate"))
    assert gap["opt_v3"]["changed_where_clear"] == 0
    assert gap["opt_v3"]["mse"] < gap["mean colour"]["mse"]
    assert estimate["opt_v3"]["mse"] < estimate["opt_v2"]["mse"]
    for part in PARTS:
        with rasterio.open(tmp_path / "demo" / part / "finland_lake" / "opt_v3.tif") as written:
            assert written.read().min() >= 1 and written.tags()["AXS_VARIANT"] == "nano"
