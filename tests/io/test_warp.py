"""SAR of another grid is resampled in linear power, and no pixel depends on the window it is read in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject

from axs_lib.bands import SAR_BANDS
from axs_lib.errors import InputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.products import open_source
from axs_lib.io.warp import Readable, to_grid
from axs_lib.tilegrid import Tile

from ..scenes.conftest import CORNER, CRS, PLACE, scene_arrays, write_scene

OPTICAL = SceneGrid(200, 150, rasterio.crs.CRS.from_string(CRS).to_wkt(), tuple(PLACE)[:6])
ELSEWHERE = "EPSG:32632"


def sar_elsewhere(path: Path, pixel: float = 10.0, side: int = 420) -> tuple[np.ndarray, Affine]:
    """SAR in the neighbouring UTM zone around the optical scene, with a hole."""
    (x, *_), (y, *_) = rasterio.warp.transform(CRS, ELSEWHERE, [CORNER[0] + 750], [CORNER[1] - 1000])[:2]
    place = Affine(pixel, 0, x - side / 2 * pixel, 0, -pixel, y + side / 2 * pixel)
    sar, _ = scene_arrays(side, side, seed=3)
    sar[:, side // 2 - 6 : side // 2 + 6, side // 2 - 20 : side // 2] = np.nan
    write_scene(path, sar, crs=ELSEWHERE, transform=place)
    return sar, place


def read(source: Readable, rows: int = 10_000, columns: int = 10_000) -> np.ndarray:
    """All of a source, in windows of this size."""
    height, width = source.grid.size
    result = np.empty((len(source.bands), height, width), dtype="float32")
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            part = Tile(top, left, min(top + rows, height), min(left + columns, width))
            result[:, top : part.bottom, left : part.right] = source.read(part)
    return result


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Readable]]:
    """Gives ``s1.tif`` on a grid."""
    with ExitStack() as stack:
        yield lambda grid=OPTICAL: to_grid(
            open_source(tmp_path / "s1.tif", SAR_BANDS, stack), grid, stack, lambda: tmp_path
        )


def reference(sar: np.ndarray, place: Affine, grid: SceneGrid, scale: float = 1.0) -> np.ndarray:
    power = np.full((2, *grid.size), np.nan, dtype="float32")
    of_sar = {"src_transform": place, "src_crs": ELSEWHERE, "src_nodata": np.nan}
    of_grid = {"dst_transform": Affine(*grid.transform), "dst_crs": CRS, "dst_nodata": np.nan}
    kernel = {"resampling": Resampling.bilinear, "XSCALE": scale, "YSCALE": scale}
    reproject((10 ** (sar / 10)).astype("float32"), power, **of_sar, **of_grid, **kernel)
    return 10 * np.log10(power)


def test_linear_power_is_what_is_interpolated(tmp_path: Path, opened: Callable[..., Readable]) -> None:
    sar, place = sar_elsewhere(tmp_path / "s1.tif")
    warped, expected = read(opened()), reference(sar, place, OPTICAL)
    np.testing.assert_array_equal(np.isnan(warped), np.isnan(expected))
    assert 0 < np.isnan(warped).mean() < 0.1
    np.testing.assert_allclose(warped, expected, atol=3e-3)  # reproject() places pixels to a thousandth


def test_no_pixel_depends_on_the_window_or_where_the_scene_is_cut(
    tmp_path: Path, opened: Callable[..., Readable]
) -> None:
    sar_elsewhere(tmp_path / "s1.tif")
    source = opened()
    whole = read(source)
    for window in ((1, 10_000), (33, 10_000), (64, 41)):
        np.testing.assert_array_equal(read(source, *window), whole)
    part = OPTICAL.part(Tile(96, 48, 200, 150))
    np.testing.assert_array_equal(read(opened(part)), whole[:, 96:, 48:])


def test_finer_sar_is_averaged(tmp_path: Path, opened: Callable[..., Readable]) -> None:
    sar, place = sar_elsewhere(tmp_path / "s1.tif", pixel=2.5, side=1000)
    source = opened()
    warped = read(source)
    np.testing.assert_array_equal(read(source, 31, 47), warped)
    np.testing.assert_allclose(warped, reference(sar, place, OPTICAL, 0.25), atol=0.05)
    plain = reference(sar, place, OPTICAL)
    rough = [np.nanstd(np.diff(image, axis=2)) for image in (warped, plain)]
    assert rough[0] < 0.6 * rough[1]  # less speckle than picking four neighbours


@pytest.mark.parametrize(
    ("where", "match"),
    [
        ({"transform": Affine(10, 0, 0, 0, -10, 1000)}, "does not meet"),
        ({"crs": "EPSG:32640"}, "does not meet"),
        ({"crs": None}, "a georeference on both"),
    ],
)
def test_sar_that_cannot_be_brought_onto_the_grid(
    tmp_path: Path, opened: Callable[..., Readable], where: dict[str, Any], match: str
) -> None:
    write_scene(tmp_path / "s1.tif", scene_arrays(50, 50)[0], **where)
    with pytest.raises(InputError, match=match):
        opened()
