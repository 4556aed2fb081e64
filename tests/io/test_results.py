"""Results keep georeference, names and nodata in every format, and are read back as they were written."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError, OutputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.products import read_raster
from axs_lib.io.results import check_suffix, optical_layer, write_arrays, write_layer

H, W = 40, 21
GRID = SceneGrid(H, W, rasterio.CRS.from_epsg(32633).to_wkt(), (10.0, 0.0, 500_000.0, 0.0, -10.0, 6_000_000.0))


@pytest.fixture
def image() -> np.ndarray:
    """(4,H,W) DN with dark and bright pixels and a nodata corner."""
    image = np.random.default_rng(1).uniform(1, 8000, (4, H, W)).astype("float32")
    image[..., 0, 0], image[..., 0, 1], image[..., 0, 2] = np.nan, -30.0, 90_000.0
    return image


def test_a_geotiff_says_everything_about_itself(tmp_path: Path, image: np.ndarray) -> None:
    write_layer(tmp_path / "o.tif", optical_layer("opt_v3"), image, GRID, {"AXS_VARIANT": "nano"})
    with rasterio.open(tmp_path / "o.tif") as dataset:
        assert dataset.dtypes == ("uint16",) * 4 and dataset.nodata == 0
        assert dataset.descriptions == OPTICAL_BANDS
        assert [c.name for c in dataset.colorinterp][:3] == ["blue", "green", "red"]
        assert dataset.scales == (1e-4,) * 4 and dataset.offsets == (0.0,) * 4 and dataset.units == ("DN",) * 4
        assert dataset.crs.to_epsg() == 32633 and tuple(dataset.transform)[:6] == GRID.transform
        assert dataset.profile["tiled"] and dataset.profile["compress"] == "deflate"
        assert dataset.tags()["AXS_VARIANT"] == "nano"
        data = dataset.read()
    assert data[:, 0, :3].T.tolist() == [[0] * 4, [1] * 4, [65535] * 4]
    assert [p.name for p in tmp_path.iterdir()] == ["o.tif"]
    back = read_raster(tmp_path / "o.tif", OPTICAL_BANDS)
    np.testing.assert_array_equal(np.isnan(back.data), np.isnan(image))
    np.testing.assert_allclose(back.data, np.clip(image, 1, 65535), atol=0.5)
    assert back.grid.same_as(GRID)


def test_outputs_of_unknown_kind_and_batches_in_a_geotiff_are_refused() -> None:
    with pytest.raises(InputError, match=r"ends in \.jpg; expected an output named \.npz"):
        check_suffix("o.jpg")
    with pytest.raises(InputError, match=r"holds one tile and the input holds 3; name it \.npz or \.pt"):
        check_suffix("o.tif", 3)


def test_named_arrays_with_a_georeference(tmp_path: Path, image: np.ndarray) -> None:
    arrays = {"opt_v1": image, "s1_vv": image[0], "s1_vh": image[1]}
    write_arrays(tmp_path / "run.npz", arrays, GRID, {"AXS_SEED": "3"})
    with np.load(tmp_path / "run.npz") as written:
        assert set(written.files) == {*arrays, "crs", "transform", "provenance"}
        np.testing.assert_array_equal(written["opt_v1"], image)
        assert json.loads(str(written["provenance"])) == {"AXS_SEED": "3"}
    assert read_raster(tmp_path / "run.npz", SAR_BANDS).grid == GRID
    before = (tmp_path / "run.npz").read_bytes()
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        write_arrays(tmp_path / "run.npz", arrays, GRID, {})
    assert (tmp_path / "run.npz").read_bytes() == before


def test_a_full_disk_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: np.ndarray
) -> None:
    def full(*arguments: object, **arrays: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="disk is full"):
        write_arrays(tmp_path / "o.npz", {"opt_v3": image}, GRID, {})
    with pytest.raises(OutputError, match="disk is full"):
        write_arrays(tmp_path / "o.pt", {"opt_v3": image}, GRID, {})
    assert list(tmp_path.iterdir()) == []
