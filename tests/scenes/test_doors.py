"""Any input through one door: clear pixels survive, what is empty is said, arrays come back as they came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401  # gives arrays their georeference
import torch
import xarray as xr
from rasterio.transform import Affine

import axs_lib
from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError
from axs_lib.io.masks import MaskFile
from axs_lib.scenes.api import fill_gaps, ground_scene

from .conftest import CORNER, CRS, GRID, PLACE, BoxGrounder, SceneFiles, read_tiff, scene_arrays, write_scene


def test_clear_pixels_survive_without_sar(grounder: BoxGrounder, tmp_path: Path) -> None:
    sar, optical = scene_arrays(200, 150)
    clouded = optical.copy()
    clouded[:, 60:100, 20:90] = 9000
    clear = np.ones((1, 200, 150))
    clear[:, 60:100, 20:90] = 0
    # SAR of the eastern part alone
    half = write_scene(tmp_path / "s1.tif", sar[:, :, 50:], transform=PLACE * Affine.translation(50, 0))
    opt_v2 = write_scene(tmp_path / "s2.tif", clouded)
    mask = write_scene(tmp_path / "clear.tif", clear, ("clear",), dtype="uint8", nodata=255)
    result = fill_gaps(grounder, half, opt_v2, mask, tmp_path / "o.tif", grid=GRID)
    image = read_tiff(tmp_path / "o.tif")
    kept = clear[0] == 1
    np.testing.assert_array_equal(image[:, kept], optical[:, kept])
    assert (image[:, 60:100, 20:50] == 0).all() and (image[:, 60:100, 50:90] > 0).all()
    assert result.counts == {"kept": 27200, "filled": 1600, "corrected": 0, "empty": 1200}
    np.savez(tmp_path / "t.npz", s1=sar[:, :100, :100], opt_v2=clouded[:, :100, :100])
    np.savez(tmp_path / "m.npz", mask=clear[0, :100, :100])
    again = fill_gaps(grounder, tmp_path / "t.npz", None, tmp_path / "m.npz", tmp_path / "o.npz")
    assert again.counts["kept"] + again.counts["filled"] == 10_000
    all_gap = fill_gaps(grounder, sar, optical, np.zeros((200, 150), "float32"), grid=GRID)
    assert all_gap.notes[-1].endswith("(100.0 %) are a gap, so that nothing is kept")


@pytest.mark.parametrize("what", ["sar", "estimate", "apart"])
def test_what_has_no_valid_pixel_is_said(grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path, what: str) -> None:
    sar, optical = scene.sar.copy(), scene.optical.copy()
    if what == "sar":
        sar[:] = np.nan
    elif what == "estimate":
        optical[:] = np.nan
    else:
        sar[:, :100], optical[:, 100:] = np.nan, np.nan
    match = "at once" if what == "apart" else "holds no valid pixel, all of it is nodata"
    s1, opt_v2 = write_scene(tmp_path / "a.tif", sar), write_scene(tmp_path / "b.tif", optical)
    with pytest.raises(InputError, match=match):
        ground_scene(grounder, s1, opt_v2, tmp_path / "o.tif", grid=GRID)
    assert not (tmp_path / "o.tif").exists()


def test_an_image_that_does_not_say_where_it_lies(grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path) -> None:
    bare = write_scene(tmp_path / "bare.tif", scene.sar, crs=None, transform=None)
    with pytest.raises(InputError, match="--same-grid"):
        ground_scene(grounder, bare, scene.opt_v2, tmp_path / "o.tif", grid=GRID)
    ground_scene(grounder, bare, scene.opt_v2, tmp_path / "o.tif", grid=GRID, same_grid=True)
    ground_scene(grounder, scene.s1, scene.opt_v2, tmp_path / "p.tif", grid=GRID)
    np.testing.assert_array_equal(read_tiff(tmp_path / "o.tif"), read_tiff(tmp_path / "p.tif"))
    s1, opt_v2 = (
        write_scene(tmp_path / f"{at}.tif", data, crs=None, transform=PLACE * Affine.translation(at, 0))
        for at, data in ((0, scene.sar), (40_000, scene.optical))
    )
    with pytest.raises(InputError, match=r"no CRS is named.*--same-grid"):
        ground_scene(grounder, s1, opt_v2, tmp_path / "q.tif", grid=GRID)
    result = ground_scene(grounder, s1, opt_v2, tmp_path / "q.tif", grid=GRID, same_grid=True)
    assert f"{opt_v2}: names no CRS; what is made on its grid has its transform alone" in result.notes
    ground_scene(grounder, s1, opt_v2, tmp_path / "q.npz", grid=GRID, same_grid=True)
    with rasterio.open(tmp_path / "q.tif") as file, np.load(tmp_path / "q.npz") as data:
        assert file.crs is None and file.transform == PLACE * Affine.translation(40_000, 0)
        np.testing.assert_array_equal(data["transform"], file.transform[:6])


@pytest.mark.parametrize("west", [179.90, -180.10])
def test_sar_in_degrees_beyond_the_seam(grounder: BoxGrounder, tmp_path: Path, west: float) -> None:
    """A scene across 180 degrees, SAR beyond it on either side: as GDAL warps the same SAR elsewhere."""
    crs = rasterio.CRS.from_epsg(32660)
    (x,), (y,) = rasterio.warp.transform("EPSG:4326", crs, [180.0], [10.0])[:2]
    place = Affine(100, 0, round(x, -2) - 4000, 0, -100, round(y, -2) + 4000)
    _, optical = scene_arrays(80, 80)
    opt_v2 = write_scene(tmp_path / "s2.tif", optical, crs="EPSG:32660", transform=place)
    sar, _ = scene_arrays(240, 240, seed=4)
    degrees = Affine(0.2 / 240, 0, west, 0, -0.2 / 240, 10.1)
    s1 = write_scene(tmp_path / "s1.tif", sar, crs="EPSG:4326", transform=degrees)
    result = ground_scene(grounder, s1, opt_v2, tmp_path / "o.tif", grid=GRID)
    assert result.counts["corrected"] > 0.95 * 80 * 80
    # Reference: rows and columns of the SAR for each pixel's middle, in whole turns around the SAR's own middle.
    rows, columns = np.mgrid[:80, :80] + 0.5
    east, north = place * (columns.ravel(), rows.ravel())
    lon, lat = map(np.array, rasterio.warp.transform(crs, "EPSG:4326", east, north)[:2])
    lon = lon + 360 * np.round((west + 0.1 - lon) / 360)
    at, down = ~degrees * (lon, lat)
    inside = (at > 1) & (at < 239) & (down > 1) & (down < 239)
    assert inside.mean() > 0.95
    valid = (read_tiff(tmp_path / "o.tif") > 0).all(axis=0).ravel()
    assert valid[inside].all()


@pytest.fixture
def arrays() -> tuple[xr.DataArray, xr.DataArray]:
    sar, optical = scene_arrays(80, 70)
    y, x = CORNER[1] - 10 * (np.arange(80) + 0.5), CORNER[0] + 10 * (np.arange(70) + 0.5)
    return tuple(
        xr.DataArray(data, dims=("band", "y", "x"), coords={"band": list(names), "y": y, "x": x}).rio.write_crs(CRS)
        for data, names in ((sar, SAR_BANDS), (optical, OPTICAL_BANDS))
    )  # type: ignore[return-value]


def test_numpy_in_and_numpy_out(grounder: BoxGrounder, arrays: tuple[Any, Any]) -> None:
    expected = ground_scene(grounder, *arrays).image
    result = axs_lib.ground_scene(grounder, arrays[0].values, arrays[1].values)
    assert isinstance(result.image, np.ndarray)
    np.testing.assert_array_equal(result.image, expected.values)
    assert isinstance(expected, xr.DataArray) and expected.rio.crs == arrays[1].rio.crs
    batch = ground_scene(grounder, np.stack([arrays[0]] * 2), np.stack([arrays[1]] * 2))
    np.testing.assert_array_equal(batch.image[1], result.image)
    clear = np.arange(80)[:, None].repeat(70, 1) < 60  # true where observed
    kept = ground_scene(grounder, *arrays, trust=arrays[1][0].copy(data=clear)).image
    np.testing.assert_array_equal(kept[:, :60], arrays[1][:, :60])
    for trust in (clear, np.stack([clear] * 2)):
        few = [np.stack([a.values] * 2) if trust.ndim == 3 else a.values for a in arrays]
        np.testing.assert_array_equal(ground_scene(grounder, *few, trust=trust).image.reshape(-1, 80, 70)[:4], kept)
    with pytest.raises(InputError, match="strength 0"):
        ground_scene(grounder, *arrays, trust=clear[None], strength=0)
    bare = [a.drop_vars("spatial_ref") for a in (arrays[0][:, ::-1], arrays[1])]
    with pytest.raises(InputError, match="no CRS is named"):
        ground_scene(grounder, *bare)
    masked = np.ma.masked_array(arrays[1].values)
    masked[:, 40:50, 40:50] = np.ma.masked
    assert np.isnan(ground_scene(grounder, arrays[0].values, masked).image[:, 40:50, 40:50]).all()
    for wrong, match in (
        (arrays[1].assign_attrs(scale_factor="x"), "no number as its nodata, scale_factor"),
        (arrays[1][:3].drop_vars("band"), "has 3 band.s. without names"),
        (arrays[1].expand_dims("when"), "has the axes"),
        (np.moveaxis(arrays[1].values, 0, -1), "bands last"),
        (arrays[1].values[:3], "3 band"),
        (torch.from_numpy(arrays[1].values), r"torch\.Tensor.*NumPy"),
        (arrays[1].values.astype(str), "real numbers"),
        (7, r"builtins\.int"),
    ):
        with pytest.raises(InputError, match=match):
            ground_scene(grounder, arrays[0].values, wrong)


def test_datasets_and_axes_of_any_name(grounder: BoxGrounder, arrays: tuple[Any, Any]) -> None:
    s1, opt_v2 = arrays
    expected = ground_scene(grounder, s1, opt_v2).image.values
    made = ground_scene(grounder, s1.to_dataset("band"), opt_v2.to_dataset("band")).image
    assert isinstance(made, xr.Dataset) and set(made.data_vars) == set(OPTICAL_BANDS)
    np.testing.assert_array_equal(np.stack([made[b] for b in OPTICAL_BANDS]), expected)
    names = {"y": "lat", "x": "lon"}
    renamed = ground_scene(grounder, s1.rename(names), opt_v2.rename(names)).arrays["opt_v3"]
    assert renamed.dims == ("band", "lat", "lon")
    np.testing.assert_array_equal(renamed.values, expected)
    higher = (opt_v2 + 3000).assign_attrs(scale_factor=1e-4, add_offset=-0.1)
    less = ground_scene(grounder, s1, (opt_v2 + 2000), boa_offset="0").image
    np.testing.assert_allclose(ground_scene(grounder, s1, higher, boa_offset="1000").image, less, atol=0.01)
    with pytest.raises(InputError, match="HH, HV and lacks VV, VH"):
        ground_scene(grounder, s1.assign_coords(band=["HH", "HV"]), opt_v2)
    with pytest.raises(InputError, match="holds B02, B03; expected a variable"):
        ground_scene(grounder, s1, opt_v2[:2].to_dataset("band"))


def test_an_axis_of_time_is_taken_step_by_step(grounder: BoxGrounder, arrays: tuple[Any, Any]) -> None:
    s1, opt_v2 = arrays
    days = np.array(["2021-07-14", "2021-07-26"], dtype="datetime64[ns]")
    series = xr.concat([s1, s1 - 1], xr.DataArray(days, dims="time"))
    result = ground_scene(grounder, series, opt_v2)
    assert result.image.dims == ("time", "band", "y", "x") and list(result.image.time.values) == list(days)
    for step, sar in enumerate((s1, s1 - 1)):
        np.testing.assert_array_equal(result.image[step], ground_scene(grounder, sar, opt_v2).image)
    assert ground_scene(grounder, series[:1], opt_v2).image.dims == ("band", "y", "x")
    with pytest.raises(InputError, match="out=None"):
        ground_scene(grounder, series, opt_v2, "o.tif")


def test_a_product_and_its_own_classification(grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path) -> None:
    folder = tmp_path / "S2B_MSIL2A_20210714T112121_N0209_R037_T29UPU_20210714T143000.SAFE" / "R10m"
    for i, band in enumerate(OPTICAL_BANDS):
        write_scene(folder / f"T29_{band}_10m.tif", scene.optical[i : i + 1], (band,), dtype="uint16")
    with pytest.raises(InputError, match="--mask scl"):
        ground_scene(grounder, scene.s1, folder, tmp_path / "o.tif", trust=MaskFile("scl"), grid=GRID)
    classes = np.full((1, 100, 75), 4)
    classes[:, 30:40, 5:30] = 9
    path, coarse = folder.parent / "R20m" / "T29_SCL_20m.tif", PLACE * Affine.scale(2)
    write_scene(path, classes, ("",), dtype="uint8", nodata=0, transform=coarse)
    result = ground_scene(grounder, scene.s1, folder.parent, tmp_path / "o.tif", trust=MaskFile("scl"), grid=GRID)
    assert result.counts["filled"] == 20 * 50 and "--mask-buffer 5" in result.notes[-1]
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.tags()["AXS_MASK_KIND"] == "scl" and file.tags()["AXS_BOA_OFFSET_REMOVED"] == "0"


@pytest.mark.parametrize("count", [None, 3])
def test_an_npz_holds_what_was_made_and_the_inputs(grounder: BoxGrounder, tmp_path: Path, count: int | None) -> None:
    sar, optical = (image if count is None else np.stack([image] * count) for image in scene_arrays(24, 30))
    trust = np.ones((count or 1, 1, 24, 30), "float32")
    trust[..., 4:9, 4:9] = 0
    np.savez(tmp_path / "t.npz", s1=sar, opt_v2=optical, s2_real=optical + 1)
    np.savez(tmp_path / "m.npz", trust=trust)
    mask = MaskFile(tmp_path / "m.npz", buffer=1)
    result = ground_scene(grounder, tmp_path / "t.npz", None, tmp_path / "o.npz", trust=mask, tags={"A": "b"})
    assert result.counts["filled"] == 49 * (count or 1)
    with np.load(tmp_path / "o.npz", allow_pickle=False) as data:
        names = {"s1_vv", "s1_vh"} if count is None else {"s1"}
        assert set(data.files) == {"opt_v3", "opt_v2", "s2_real", "trust", "provenance"} | names
        assert data["opt_v3"].shape == optical.shape and data["opt_v3"].dtype == np.float32
        np.testing.assert_array_equal(data["s2_real"], optical + 1)
        assert data["trust"].shape == trust.shape and (data["trust"] == 0).sum() == result.counts["filled"]
        ground_scene(grounder, tmp_path / "t.npz", None, tmp_path / "o.pt", trust=mask)
        again = ground_scene(grounder, tmp_path / "t.npz", None, tmp_path / "p.pt", trust=tmp_path / "m.npz")
        assert again.counts["filled"] == 25 * (count or 1)
        np.testing.assert_array_equal(torch.load(tmp_path / "o.pt", weights_only=True).numpy(), data["opt_v3"])
    for wrong, match in (
        ({"trust": trust * np.nan}, r"w\.npz holds no data"),
        ({"trust": trust * 2}, "holds 0 to 2; expected 1 where"),
        ({"trust": trust[..., 1:]}, "expected one grid"),
    ):
        np.savez(tmp_path / "w.npz", **({"s1": sar, "opt_v2": optical} | wrong))
        with pytest.raises(InputError, match=match):
            ground_scene(grounder, tmp_path / "w.npz", None, tmp_path / "w.pt")
