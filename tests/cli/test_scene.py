"""``axs ground`` and ``axs run`` stream what is larger than a tile or lies on another grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.data.samples import load_sample, sample_paths

from .conftest import FakeModel, FakePipeline, Run

S1, S2 = sample_paths("ireland_fields")


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, Path]:
    """The sample three times side by side, as S1 and S2: 120x360 px."""
    paths = []
    for raster, path, names in zip(load_sample("ireland_fields"), (S1, S2), (SAR_BANDS, OPTICAL_BANDS), strict=True):
        paths.append(tmp_path / f"scene_{path.name}")
        with rasterio.open(path) as one:
            profile = {**one.profile, "width": 360}
        with rasterio.open(paths[-1], "w", **profile) as wide:
            wide.descriptions = names
            wide.write(np.tile(raster.data, (1, 1, 3)).astype(profile["dtype"]))
    return paths[0], paths[1]


def test_a_scene_is_streamed_to_a_cog(
    axs: Run, fake_model: FakeModel, scene: tuple[Path, Path], tmp_path: Path
) -> None:
    s1, s2 = scene
    out = tmp_path / "out.tif"
    result = axs(
        "ground", "--s1", s1, "--opt-v2", s2, "--out", out, "--timesteps", 3, "--strength", 0.5, "--seed", 5,
        "--uncertainty", tmp_path / "u.tif", "--gate", tmp_path / "g.tif", "--stac", tmp_path / "i.json",
        "--date", "2017-06-17", "--variant", "nano", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0 and result.output == ""
    assert fake_model.built == {"timesteps": 3, "device": "cpu", "s1_product": "S1GRD", "variant": "nano"}
    assert {"seed": 5, "strength": 0.5, "ensemble_size": 4, "timesteps": 3}.items() <= fake_model.called.items()
    with rasterio.open(out) as written, rasterio.open(s2) as given:
        assert written.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (written.crs, written.transform) == (given.crs, given.transform)
        assert written.tags()["AXS_VARIANT"] == "fake" and written.tags()["AXS_DTYPE"] == "float32"
        np.testing.assert_array_equal(written.read(), given.read() + 100)
    assert set(json.loads((tmp_path / "i.json").read_text())["assets"]) == {"opt_v3", "uncertainty", "gate"}


def test_every_option_works_for_a_tile_and_for_a_scene(
    axs: Run, fake_model: FakeModel, fake_pipeline: FakePipeline, scene: tuple[Path, Path], tmp_path: Path
) -> None:
    for size, (s1, s2) in {"tile": (S1, S2), "scene": scene}.items():
        out = tmp_path / size
        maps = [w for n in ("uncertainty", "gate", "sar-contribution") for w in (f"--{n}", out / f"{n}.tif")]
        common = [*maps, "--stac", out / "i.json", "--date", "2017-06-17", "--deterministic", "--hold-colour"]
        common += ["--ensemble-size", 2, "--timesteps", 1, "--overwrite"]
        result = axs("ground", "--s1", s1, "--opt-v2", s2, "--out", out / "opt_v3.tif", *common)
        assert result.exit_code == 0, result.output
        assert fake_model.called["hold_colour"] is True
        made = {"opt_v3.tif", "uncertainty.tif", "gate.tif", "sar-contribution.tif", "i.json"}
        assert {path.name for path in out.iterdir()} == made
        result = axs("run", "--s1", s1, "--out", out, *common)
        assert result.exit_code == 0, result.output
        assert fake_pipeline.settings["hold_colour"] is True and fake_pipeline.settings["sar_contribution"]
        with rasterio.open(out / "gate.tif") as gate:
            assert gate.count == 1 and (gate.read() == 1).all()


def test_the_pipeline_on_a_grid_that_is_given(axs: Run, fake_pipeline: FakePipeline, tmp_path: Path) -> None:
    with rasterio.open(S1) as one:
        left, bottom, right, top = one.bounds
        crs = one.crs.to_string()
    box = f"{left + 200},{bottom + 200},{right - 200},{top - 200}"
    result = axs("run", "--s1", S1, "--out", tmp_path / "a", "--crs", crs, "--res", 20, f"--bounds={box}")
    assert result.exit_code == 0, result.output
    with rasterio.open(tmp_path / "a" / "opt_v3.tif") as written:
        assert written.transform.a == 20 and 40 <= written.width <= 42
    result = axs("run", "--s1", S1, "--out", tmp_path / "b", "--like", tmp_path / "a" / "opt_v3.tif")
    assert result.exit_code == 0, result.output
    for wrong in (("--crs", crs), ("--like", S1, "--res", 20), ("--crs", crs, "--res", 1, "--bounds", "a,b")):
        assert axs("run", "--s1", S1, "--out", tmp_path / "c", *wrong).exit_code == 2
