"""Files and DataArrays are read alike, and a DataArray comes back dressed as it came."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rioxarray
import xarray as xr

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.io.products import open_source
from axs_lib.scenes.api import ground_scene
from axs_lib.tilegrid import Tile

from ..scenes.conftest import GRID, BoxGrounder, SceneFiles, read_tiff


def both(scene: SceneFiles, **options: Any) -> tuple[xr.DataArray, xr.DataArray]:
    return (rioxarray.open_rasterio(scene.s1, **options), rioxarray.open_rasterio(scene.opt_v2, **options))


@pytest.mark.parametrize("masked", [False, True])
def test_arrays_give_what_files_give(grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path, masked: bool) -> None:
    ground_scene(grounder, scene.s1, scene.opt_v2, tmp_path / "f.tif", grid=GRID)
    expected = read_tiff(tmp_path / "f.tif")
    s1, opt_v2 = both(scene, masked=masked)
    opt_v2 = opt_v2.assign_attrs(mission="Sentinel-2")

    result = ground_scene(grounder, s1, opt_v2, grid=GRID, gate=True, uncertainty=True, ensemble_size=2)
    image = result.arrays["opt_v3"]
    assert isinstance(image, xr.DataArray) and image.dims == opt_v2.dims and not result.files
    assert image.rio.crs == opt_v2.rio.crs and image.rio.transform() == opt_v2.rio.transform()
    assert image.attrs["mission"] == "Sentinel-2" and image.attrs["long_name"] == OPTICAL_BANDS
    np.testing.assert_array_equal(image.x, opt_v2.x)
    if masked:
        assert image.dtype == np.float32
        np.testing.assert_array_equal(np.nan_to_num(image.values).round(), expected)
        np.testing.assert_array_equal(np.isnan(image.values), expected == 0)
    else:
        assert image.dtype == np.uint16 and image.rio.nodata == 0
        np.testing.assert_array_equal(image.values, expected)
    assert result.arrays["gate"].dims == ("y", "x") and result.arrays["uncertainty"].shape == image.shape
    assert np.isnan(result.arrays["gate"].values[25, 50])

    image.rio.to_raster(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.nan_to_num(read_tiff(tmp_path / "a.tif")).round(), expected)
    ground_scene(grounder, s1, opt_v2, tmp_path / "b.tif", grid=GRID)
    np.testing.assert_array_equal(read_tiff(tmp_path / "b.tif"), expected)


def test_bands_and_axes_in_any_order(grounder: BoxGrounder, scene: SceneFiles) -> None:
    s1, opt_v2 = both(scene)
    expected = ground_scene(grounder, s1, opt_v2, grid=GRID).arrays["opt_v3"]
    named = opt_v2.assign_coords(band=list(OPTICAL_BANDS)).isel(band=[3, 1, 0, 2]).transpose("y", "x", "band")
    extra = xr.concat([named, named.isel(band=[0]).assign_coords(band=["B11"])], "band")
    extra.attrs.pop("long_name")
    image = ground_scene(grounder, s1, extra, grid=GRID).arrays["opt_v3"]
    assert list(image.band.values) == list(OPTICAL_BANDS)
    np.testing.assert_array_equal(image.transpose("band", "y", "x").values, expected.values)


@pytest.mark.parametrize(("scale", "offset"), [(1e-4, -0.1), (1.0, -1000.0)])
def test_scale_and_offset_are_applied(scene: SceneFiles, scale: float, offset: float) -> None:
    _, opt_v2 = both(scene)
    stored = (opt_v2 + 1000).where(opt_v2 > 0, 0).astype("uint16")
    stored.attrs = opt_v2.attrs | {"scale_factor": scale, "add_offset": offset}
    with ExitStack() as stack:
        source = open_source(stored, OPTICAL_BANDS, stack)
        whole = source.read(source.grid.whole)
        np.testing.assert_allclose(whole, scene.optical, atol=1e-2)
        np.testing.assert_array_equal(source.read(Tile(3, 5, 60, 90)), whole[:, 3:60, 5:90])
