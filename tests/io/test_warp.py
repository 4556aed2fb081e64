"""SAR of another grid is resampled in linear power, and no pixel depends on the window it is read in."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject

from axs_lib.bands import SAR_BANDS
from axs_lib.errors import InputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.products import Source, open_source
from axs_lib.io.warp import to_grid
from axs_lib.scenes.api import ground_scene
from axs_lib.tilegrid import Tile

from .conftest import CORNER, CRS, GRID, BoxGrounder, SceneFiles, scene_arrays, write_scene

OPTICAL = SceneGrid(200, 150, rasterio.crs.CRS.from_string(CRS).to_wkt(), (10, 0, CORNER[0], 0, -10, CORNER[1]))
ELSEWHERE = "EPSG:32632"


def sar_elsewhere(path: Path, pixel: float = 10.0, side: int = 420) -> tuple[np.ndarray, Affine]:
    """SAR in the neighbouring UTM zone around the optical scene, with a hole."""
    (x, *_), (y, *_) = rasterio.warp.transform(CRS, ELSEWHERE, [CORNER[0] + 750], [CORNER[1] - 1000])[:2]
    place = Affine(pixel, 0, x - side / 2 * pixel, 0, -pixel, y + side / 2 * pixel)
    sar, _ = scene_arrays(side, side, seed=3)
    sar[:, side // 2 - 6 : side // 2 + 6, side // 2 - 20 : side // 2] = np.nan
    write_scene(path, sar, crs=ELSEWHERE, transform=place)
    return sar, place


def read(source: Source, rows: int = 10_000, columns: int = 10_000) -> np.ndarray:
    """All of a source, in windows of this size."""
    height, width = source.grid.size
    return np.concatenate(
        [
            np.concatenate(
                [
                    source.read(Tile(top, left, min(top + rows, height), min(left + columns, width)))
                    for left in range(0, width, columns)
                ],
                axis=2,
            )
            for top in range(0, height, rows)
        ],
        axis=1,
    )


def reference(sar: np.ndarray, place: Affine, grid: SceneGrid, scale: float = 1.0) -> np.ndarray:
    power = np.full((2, *grid.size), np.nan, dtype="float32")
    reproject(
        (10 ** (sar / 10)).astype("float32"),
        power,
        src_transform=place,
        src_crs=ELSEWHERE,
        src_nodata=np.nan,
        dst_transform=Affine(*grid.transform),
        dst_crs=CRS,
        dst_nodata=np.nan,
        resampling=Resampling.bilinear,
        XSCALE=scale,
        YSCALE=scale,
    )
    return 10 * np.log10(power)


def test_linear_power_is_what_is_interpolated(tmp_path: Path) -> None:
    sar, place = sar_elsewhere(tmp_path / "s1.tif")
    with ExitStack() as stack:
        source = to_grid(open_source(tmp_path / "s1.tif", SAR_BANDS, stack), OPTICAL, stack, lambda: tmp_path)
        warped = read(source)
    expected = reference(sar, place, OPTICAL)
    np.testing.assert_array_equal(np.isnan(warped), np.isnan(expected))
    assert 0 < np.isnan(warped).mean() < 0.1
    np.testing.assert_allclose(warped, expected, atol=3e-3)  # reproject() places pixels to a thousandth


@pytest.mark.parametrize("window", [(1, 10_000), (33, 10_000), (64, 41), (200, 150)])
def test_no_pixel_depends_on_the_window(tmp_path: Path, window: tuple[int, int]) -> None:
    sar_elsewhere(tmp_path / "s1.tif")
    with ExitStack() as stack:
        source = to_grid(open_source(tmp_path / "s1.tif", SAR_BANDS, stack), OPTICAL, stack, lambda: tmp_path)
        np.testing.assert_array_equal(read(source, *window), read(source))


def test_no_pixel_depends_on_where_the_scene_is_cut(tmp_path: Path) -> None:
    sar_elsewhere(tmp_path / "s1.tif")
    place = (10, 0, CORNER[0] + 480, 0, -10, CORNER[1] - 960)
    part = SceneGrid(OPTICAL.height - 96, OPTICAL.width - 48, OPTICAL.crs, place)
    with ExitStack() as stack:
        opened = open_source(tmp_path / "s1.tif", SAR_BANDS, stack)
        whole = read(to_grid(opened, OPTICAL, stack, lambda: tmp_path))
    with ExitStack() as stack:
        opened = open_source(tmp_path / "s1.tif", SAR_BANDS, stack)
        np.testing.assert_array_equal(read(to_grid(opened, part, stack, lambda: tmp_path)), whole[:, 96:, 48:])


def test_finer_sar_is_averaged(tmp_path: Path) -> None:
    sar, place = sar_elsewhere(tmp_path / "s1.tif", pixel=2.5, side=1000)
    with ExitStack() as stack:
        source = to_grid(open_source(tmp_path / "s1.tif", SAR_BANDS, stack), OPTICAL, stack, lambda: tmp_path)
        warped = read(source)
        np.testing.assert_array_equal(read(source, 31, 47), warped)
    np.testing.assert_allclose(warped, reference(sar, place, OPTICAL, 0.25), atol=0.05)
    plain = reference(sar, place, OPTICAL)
    rough = [np.nanstd(np.diff(image, axis=2)) for image in (warped, plain)]
    assert rough[0] < 0.6 * rough[1]  # less speckle than picking four neighbours


def test_one_lattice_is_read_as_it_is(tmp_path: Path) -> None:
    sar, _ = scene_arrays(300, 260)
    place = Affine(10, 0, CORNER[0] - 500, 0, -10, CORNER[1] + 300)
    write_scene(tmp_path / "s1.tif", sar, transform=place)
    with ExitStack() as stack:
        source = to_grid(open_source(tmp_path / "s1.tif", SAR_BANDS, stack), OPTICAL, stack, lambda: tmp_path)
        for window in ((1000, 1000), (37, 41)):
            np.testing.assert_array_equal(read(source, *window), sar[:, 30:230, 50:200])


def test_sar_that_covers_a_part(tmp_path: Path) -> None:
    sar, _ = scene_arrays(100, 80)
    write_scene(tmp_path / "s1.tif", sar, transform=Affine(10, 0, CORNER[0] + 1000, 0, -10, CORNER[1] + 300))
    with ExitStack() as stack:
        source = to_grid(open_source(tmp_path / "s1.tif", SAR_BANDS, stack), OPTICAL, stack, lambda: tmp_path)
        shifted = read(source, 19, 23)
    np.testing.assert_array_equal(shifted[:, :70, 100:], sar[:, 30:, :50])
    assert np.isnan(shifted[:, 70:]).all() and np.isnan(shifted[:, :, :100]).all()


def test_sar_that_cannot_be_brought_onto_the_grid(tmp_path: Path) -> None:
    sar, _ = scene_arrays(50, 50)
    far = write_scene(tmp_path / "far.tif", sar, transform=Affine(10, 0, 0, 0, -10, 1000))
    other = write_scene(tmp_path / "other.tif", sar, crs="EPSG:32640")
    bare = write_scene(tmp_path / "bare.tif", sar, crs=None)
    for path, match in ((far, "does not meet"), (other, "does not meet"), (bare, "a georeference on both")):
        with ExitStack() as stack, pytest.raises(InputError, match=match):
            to_grid(open_source(path, SAR_BANDS, stack), OPTICAL, stack, lambda: tmp_path)


def test_a_scene_with_sar_of_another_zone(grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path) -> None:
    sar_elsewhere(tmp_path / "s1.tif", side=300)
    images = []
    for rows in (17, 64, 500):
        out = tmp_path / f"{rows}.tif"
        ground_scene(grounder, tmp_path / "s1.tif", scene.opt_v2, out, grid=GRID, window_rows=rows)
        with rasterio.open(out) as file:
            images.append(file.read())
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])
    assert (images[0] > 0).mean() > 0.8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["17.tif", "500.tif", "64.tif", "in", "s1.tif"]
