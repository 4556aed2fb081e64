"""``axs run``: what it reads, what it writes, where it takes the place from, what it refuses."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.data.samples import load_sample, sample_paths
from tests.scenes.conftest import scene_arrays, write_scene

from .conftest import FakeModel, FakePipeline, Run

S1, S2 = sample_paths("ireland_fields")
IMAGES = ("opt_v1.tif", "opt_v2.tif", "opt_v3.tif")


def test_georeferenced_files_and_an_npz(axs: Run, fake_pipeline: FakePipeline, tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    result = axs("run", "--s1", S1, "--out", out, "--date", "2017-06-17", "--seed", 5, "--device", "cpu")
    assert sorted(path.name for path in out.iterdir()) == [*IMAGES, "result.npz", "uncertainty.tif"]
    with rasterio.open(S1) as given:
        for name, value in zip(IMAGES, (100, 200, 300), strict=True):
            with rasterio.open(out / name) as written:
                assert (written.crs, written.transform) == (given.crs, given.transform)
                assert written.descriptions == OPTICAL_BANDS
                assert written.dtypes[0] == "uint16" and written.nodata == 0
                assert (written.read() == value).all()
                tags = written.tags()
        with rasterio.open(out / "uncertainty.tif") as written:
            assert (written.read() == 7.0).all() and written.crs == given.crs
        sar = given.read()
    assert tags["AXS_VARIANT"] == "fake" and tags["AXS_SEED"] == "5" and tags["AXS_NFE"] == "12 10"
    assert tags["AXS_METADATA_DATE"] == "2017-06-17"
    with np.load(out / "result.npz") as arrays:
        assert arrays["opt_v3"].shape == (4, 120, 120) and (arrays["opt_v1"] == 100).all()
        np.testing.assert_array_equal(np.stack([arrays["s1_vv"], arrays["s1_vh"]]), sar)
        assert json.loads(str(arrays["provenance"]))["AXS_ENSEMBLE_SIZE"] == "4"
    assert {"timesteps": 10, "seed": 5, "ensemble_size": 4}.items() <= fake_pipeline.settings.items()
    assert fake_pipeline.precision == torch.float32
    steps = {"stage1_timesteps": 10, "stage3_timesteps": 10}
    assert fake_pipeline.built == {"device": "cpu", "s1_product": "S1GRD"} | steps
    assert "no --date" not in result.stderr
    assert "opt_v3.tif: opt_v3" in result.output.replace("\n", "")


def test_the_place_comes_from_the_file(axs: Run, fake_pipeline: FakePipeline, tmp_path: Path) -> None:
    """To a hundredth of a degree where a second tool says so."""
    result = axs("run", "--s1", S1, "--out", tmp_path / "a")
    (metadata,) = fake_pipeline.metadata
    assert set(metadata) == {"lat", "lon"} and "no --date" in result.stderr
    with rasterio.open(S1) as dataset:
        lon, lat = rasterio.warp.transform(dataset.crs, "EPSG:4326", *([at] for at in dataset.xy(60, 60)))
    assert (metadata["lat"], metadata["lon"]) == (pytest.approx(lat[0], abs=0.01), pytest.approx(lon[0], abs=0.01))


def test_what_the_user_says_outranks_the_file(axs: Run, fake_pipeline: FakePipeline, tmp_path: Path) -> None:
    options = ("--lat", -33.5, "--biome", "12", "--timesteps", 3, "--ensemble-size", 1, "--variant", "nano")
    more = ("--s1-product", "S1RTC", "--dtype", "bfloat16", "--device", "cpu", "--quiet")
    assert axs("run", "--s1", S1, "--out", tmp_path, *options, *more).output == ""
    (metadata,) = fake_pipeline.metadata
    assert metadata["lat"] == -33.5 and metadata["lon"] < 0 and metadata["biome"] == 12
    assert {"timesteps": 3, "seed": 0, "ensemble_size": 1}.items() <= fake_pipeline.settings.items()
    assert fake_pipeline.built["variant"] == "nano" and fake_pipeline.built["s1_product"] == "S1RTC"
    assert fake_pipeline.precision == torch.bfloat16
    with rasterio.open(tmp_path / "opt_v3.tif") as written:
        assert written.tags()["AXS_DTYPE"] == "bfloat16"
    assert not (tmp_path / "uncertainty.tif").exists()


def test_a_batch_without_georeference(axs: Run, fake_pipeline: FakePipeline, tmp_path: Path) -> None:
    s1 = np.stack([load_sample("ireland_fields")[0].data] * 2)
    s1[1, :, :4] = np.nan
    np.savez(tmp_path / "batch.npz", s1=s1)
    result = axs("run", "--s1", tmp_path / "batch.npz", "--out", tmp_path / "out", "--gate", tmp_path / "gate.npz")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.npz"]
    assert fake_pipeline.metadata == [{}, {}]
    assert "no date and place" in result.output
    with np.load(tmp_path / "out" / "result.npz") as arrays, np.load(tmp_path / "gate.npz") as gate:
        assert gate["gate"].shape == (2, 1, 120, 120)
        assert arrays["opt_v2"].shape == (2, 4, 120, 120) and arrays["s1"].shape == s1.shape
        assert np.isnan(arrays["opt_v2"][1, :, :4]).all() and np.isfinite(arrays["opt_v2"][0]).all()


def test_existing_results_are_kept(axs: Run, fake_pipeline: FakePipeline, tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "opt_v2.tif"):
        (tmp_path / "opt_v2.tif").write_bytes(b"mine")
        fake_pipeline.settings.clear()
        assert "opt_v2.tif exists already" in axs("run", "--s1", S1, "--out", out, code=2).output
        assert (tmp_path / "opt_v2.tif").read_bytes() == b"mine" and not fake_pipeline.settings
        axs("run", "--s1", S1, "--out", out, "--overwrite", "--stage2-checkpoint", tmp_path)  # beside weights
        assert (tmp_path / "opt_v2.tif").read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--date", "2021-13-01"), "date is '2021-13-01'"),
        (("--lat", "91"), "lat is 91"),
        (("--lon", "200"), "lon is 200"),
        (("--biome", "15"), "biome is 15"),
        (("--biome", "jungle"), "biome is 'jungle'"),
        (("--variant", "nanno"), "Did you mean 'nano'"),
        (("--bands", "VV,XX"), "XX"),
    ],
)
def test_refused_in_one_line(
    axs: Run, fake_pipeline: FakePipeline, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = axs("run", "--s1", S1, "--out", tmp_path / "out", *options, code=2)
    assert message in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists() and not fake_pipeline.settings


@pytest.mark.parametrize(
    "words",
    [
        f"run --s1 {S1} --like image.tif --out image.tif",
        f"run --s1 {S1} --like opt_v3.tif --out .",
        f"run --s1 {S1} --stage2-checkpoint w.json --stac w.json --date 2021-07-14 --out new",
        f"ground --s1 {S1} --opt-v2 {S2} --checkpoint w.json --stac w.json --date 2021-07-14 --out new.tif",
        f"ground --s1 {S1} --opt-v2 {S2} --adapter a --stac a/w.json --date 2021-07-14 --out new.tif",
        "evaluate --data pairs --json pairs/pair.npz",
        "evaluate --data pairs --json w.json --plain-checkpoint w.json",
        "report pair.npz --out pair.npz",
        "report page.html --out page.html",
        "report . --out opt_v3.tif",
        "report --evaluation w.json --out w.json",
        "report image.tif --gate page.html --out page.html",
    ],
)
@pytest.mark.usefixtures("fake_model", "fake_pipeline")
def test_no_command_replaces_its_input(axs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    image, stored = load_sample("ireland_fields")[1].data, io.BytesIO()
    np.savez(stored, s1=image[:2] * 0 - 12, s2=image, opt_v3=image)
    content = {"image.tif": S2.read_bytes(), "opt_v3.tif": S2.read_bytes(), "w.json": b"{}", "a/w.json": b"{}"}
    content |= dict.fromkeys(("pairs/pair.npz", "pair.npz", "page.html"), stored.getvalue())
    for name, data in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    result = axs(*words.split(), "--overwrite", code=2)
    assert re.search("would replace|is the name of an image", result.stderr), result.output
    assert {n: (tmp_path / n).read_bytes() for n in content} == content and not (tmp_path / "new.tif").exists()


def test_every_option_works_for_a_tile_and_for_a_scene(
    axs: Run, fake_model: FakeModel, fake_pipeline: FakePipeline, tmp_path: Path
) -> None:
    scene = [
        write_scene(tmp_path / f"{name}.tif", image) for name, image in zip("ab", scene_arrays(120, 360), strict=True)
    ]
    for size, (s1, s2) in {"tile": (S1, S2), "scene": scene}.items():
        out = tmp_path / size
        maps = [w for n in ("uncertainty", "gate", "sar-contribution") for w in (f"--{n}", out / f"{n}.tif")]
        common = [*maps, "--stac", out / "i.json", "--date", "2017-06-17", "--deterministic", "--hold-colour"]
        common += ["--ensemble-size", 2, "--timesteps", 1, "--overwrite"]
        axs("ground", "--s1", s1, "--opt-v2", s2, "--out", out / "opt_v3.tif", *common)
        assert fake_model.called["hold_colour"] is True
        made = {"opt_v3.tif", "uncertainty.tif", "gate.tif", "sar-contribution.tif", "i.json"}
        assert {path.name for path in out.iterdir()} == made
        axs("run", "--s1", s1, "--out", out, *common)
        assert fake_pipeline.settings["hold_colour"] is True and fake_pipeline.settings["sar_contribution"]
        with rasterio.open(out / "gate.tif") as gate:
            assert gate.count == 1 and (gate.read() == 1).all()


def test_the_pipeline_on_a_grid_that_is_given(axs: Run, fake_pipeline: FakePipeline, tmp_path: Path) -> None:
    with rasterio.open(S1) as one:
        left, bottom, right, top = one.bounds
        crs = one.crs.to_string()
    box = f"{left + 200},{bottom + 200},{right - 200},{top - 200}"
    axs("run", "--s1", S1, "--out", tmp_path / "a", "--crs", crs, "--res", 20, f"--bounds={box}")
    with rasterio.open(tmp_path / "a" / "opt_v3.tif") as written:
        assert written.transform.a == 20 and 40 <= written.width <= 42
    axs("run", "--s1", S1, "--out", tmp_path / "b", "--like", tmp_path / "a" / "opt_v3.tif")
    for wrong in (("--crs", crs), ("--like", S1, "--res", 20), ("--crs", crs, "--res", 1, "--bounds", "a,b")):
        axs("run", "--s1", S1, "--out", tmp_path / "c", *wrong, code=2)
