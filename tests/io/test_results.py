"""Results keep georeference, names and nodata in every format, and are read back as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.io.grid import SceneGrid
from axs_lib.io.results import optical_layer, write_layer
from axs_lib.io.tiles import read_raster

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
