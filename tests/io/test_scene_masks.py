"""A scene's mask read by windows is the mask read whole."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.errors import InputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.masks import MaskFile, MaskSource, read_mask
from axs_lib.io.tiles import read_raster
from axs_lib.scenes.api import ground_scene
from axs_lib.tilegrid import Tile

from .conftest import CORNER, GRID, BoxGrounder, SceneFiles, write_scene


@pytest.fixture
def scl(tmp_path: Path) -> Path:
    """A scene classification at 20 m with clouds."""
    classes = np.full((1, 100, 75), 4)
    classes[:, 30:45, 10:40] = 9
    classes[:, 80, 70] = 3
    place = Affine(20, 0, CORNER[0], 0, -20, CORNER[1])
    return write_scene(
        tmp_path / "T33_SCL_20m.tif", classes, ("SCL",), dtype="uint8", nodata=0, transform=place
    )


@pytest.mark.parametrize("buffer", [0, 3])
def test_windows_of_a_classification(scene: SceneFiles, scl: Path, buffer: int) -> None:
    whole = read_mask(scl, read_raster(scene.opt_v2, OPTICAL_BANDS), buffer=buffer).trust[0]
    with ExitStack() as stack:
        source = MaskSource(MaskFile(scl, buffer=buffer), SceneGrid.like(scene.opt_v2), stack)
        assert source.kind == "scl" and 0 < whole.mean() < 1
        for window in (source.grid.whole, Tile(55, 15, 95, 90), Tile(0, 0, 7, 150), Tile(159, 130, 200, 150)):
            part = whole[:, window.top : window.bottom, window.left : window.right]
            np.testing.assert_array_equal(source.read(window), part)


def test_boolean_masks_and_their_nodata(scene: SceneFiles, tmp_path: Path) -> None:
    clouds = np.zeros((1, 200, 150))
    clouds[:, 5:9] = 1
    clouds[:, 20:30] = 7
    path = write_scene(tmp_path / "clouds.tif", clouds, ("cloud",), dtype="uint8", nodata=7)
    grid = SceneGrid.like(scene.opt_v2)
    with ExitStack() as stack:
        source = MaskSource(MaskFile(path, invert=True), grid, stack)
        assert source.kind == "boolean"
        np.testing.assert_array_equal(source.read(grid.whole), clouds == 0)


def test_gaps_of_a_scene_are_filled(
    grounder: BoxGrounder, scene: SceneFiles, scl: Path, tmp_path: Path
) -> None:
    ground_scene(grounder, scene.s1, scene.opt_v2, tmp_path / "o.tif", trust=MaskFile(scl), grid=GRID)
    with rasterio.open(tmp_path / "o.tif") as file:
        result = file.read()
    kept = ~np.isnan(scene.optical) & ~np.isnan(scene.sar).any(axis=0)
    kept[:, 60:90, 20:80] = False
    kept[:, 160:162, 140:142] = False
    np.testing.assert_array_equal(result[kept], scene.optical[kept])
    assert (result[:, 60:90, 30:80] != scene.optical[:, 60:90, 30:80]).mean() > 0.9


def test_what_is_no_mask(scene: SceneFiles, scl: Path, tmp_path: Path) -> None:
    grid = SceneGrid.like(scene.opt_v2)
    far = write_scene(
        tmp_path / "far.tif",
        np.ones((1, 9, 9)),
        ("m",),
        dtype="uint8",
        nodata=255,
        transform=Affine(10, 0, 0, 0, -10, 0),
    )
    part = write_scene(tmp_path / "part.tif", np.ones((1, 190, 150)), ("m",), dtype="uint8", nodata=255)
    bare = write_scene(tmp_path / "bare.tif", np.ones((1, 9, 9)), ("m",), dtype="uint8", nodata=255, crs=None)
    for mask, match in (
        (MaskFile(scl, invert=True), "no inverse"),
        (MaskFile(scl, kind="clouds"), "expected 0 or more and one of"),
        (MaskFile(scl, kind="trust"), "expected trust in 0..1"),
        (MaskFile(far), "does not cover the scene"),
        (MaskFile(part), "does not cover the scene"),
        (MaskFile(bare), "a georeference on both"),
        (MaskFile(scene.opt_v2), "has 4 bands"),
    ):
        with ExitStack() as stack, pytest.raises(InputError, match=match):
            MaskSource(mask, grid, stack).read(grid.whole)
