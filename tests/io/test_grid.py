"""Grids know whether they are the same, shifted or different, and where their noise begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

from axs_lib.errors import InputError
from axs_lib.io.grid import SceneGrid
from axs_lib.tilegrid import Tile

from ..scenes.conftest import write_scene

UTM = SceneGrid.of("EPSG:32633", 10, (500_000, 5_999_000, 501_500, 6_000_000))


def moved(grid: SceneGrid, x: float, y: float, height: int = 20, width: int = 30) -> SceneGrid:
    assert grid.transform is not None
    a, b, c, d, e, f = grid.transform
    return SceneGrid(height, width, grid.crs, (a, b, c + x, d, e, f + y))


def test_a_grid_of_numbers() -> None:
    assert UTM.size == (100, 150)
    assert UTM.transform == (10, 0, 500_000, 0, -10, 6_000_000)
    assert UTM.bounds() == (500_000, 5_999_000, 501_500, 6_000_000)
    assert UTM.part(Tile(10, 20, 30, 50)).bounds() == (500_200, 5_999_700, 500_500, 5_999_900)
    assert SceneGrid(5, 5).noise_origin == (0, 0)  # as where it is turned
    assert SceneGrid(5, 5, "any", (7, 7, 70, 7, -7, 70)).noise_origin == (0, 0)
    # Edges lie on multiples of the resolution.
    grid = SceneGrid.of("EPSG:32633", 20, (500_001, 5_999_011, 500_119, 6_000_001))
    assert grid.bounds() == (500_000, 5_999_000, 500_120, 6_000_020)
    decimals = SceneGrid.of("EPSG:4326", 0.0001, (14.1, 54.3, 14.3, 54.4))
    assert decimals.size == (1000, 2000)


@pytest.mark.parametrize(
    ("crs", "resolution", "bounds", "match"),
    [
        ("EPSG:1", 10, (0, 0, 1, 1), "CRS 'EPSG:1' is unknown"),
        ("EPSG:32633", 0, (0, 0, 1, 1), "positive pixel side"),
        ("EPSG:32633", 10, (0, 5, 10, 5), "left, bottom, right, top"),
        ("EPSG:32633", 10, (0, 5, 10), "left, bottom, right, top"),
        ("EPSG:32633", 5e-6, (0, 0, 5e-5, 10), "output grid is 2000000x10 px; .* larger --res or smaller --bounds"),
    ],
)
def test_what_is_no_grid(crs: str, resolution: float, bounds: tuple[float, ...], match: str) -> None:
    with pytest.raises(InputError, match=match):
        SceneGrid.of(crs, resolution, bounds)


def test_a_grid_like_a_file(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.tif", np.ones((4, 100, 150)))
    assert SceneGrid.like(path).same_as(UTM)
    assert str(SceneGrid.like(path)).startswith("100x150 px (height x width), EPSG:32633, pixels of 10 x -10")
    plain = write_scene(tmp_path / "b.tif", np.ones((4, 9, 8)), crs=None)
    assert SceneGrid.like(plain).crs is None and SceneGrid.like(plain).centre_lat_lon() is None
    bare = write_scene(tmp_path / "c.tif", np.ones((4, 100, 150)), crs=None, transform=None)
    Path(f"{bare}.aux.xml").write_text(f"<PAMDataset><SRS>{CRS.from_epsg(32633).to_wkt()}</SRS></PAMDataset>")
    bare.with_suffix(".TFW").write_text("10 0 0 -10 500005 5999995".replace(" ", "\n"))
    assert SceneGrid.like(bare).same_as(UTM)
    with pytest.raises(InputError, match="does not exist"):
        SceneGrid.like(tmp_path / "none.tif")


def test_offsets_in_whole_pixels() -> None:
    assert moved(UTM, 200, -50).offset_in(UTM) == (5, 20)
    assert moved(UTM, -200, 50).offset_in(UTM) == (-5, -20)
    assert moved(UTM, 0, 0).offset_in(UTM) == (0, 0) and not moved(UTM, 0, 0).same_as(UTM)
    assert moved(UTM, 5, 0).offset_in(UTM) is None
    assert SceneGrid.of("EPSG:32632", 10, UTM.bounds()).offset_in(UTM) is None
    assert SceneGrid.of("EPSG:32633", 20, UTM.bounds()).offset_in(UTM) is None
    assert SceneGrid(100, 150).same_as(UTM) and SceneGrid(100, 151).offset_in(UTM) is None


@given(
    row=st.integers(-(10**6), 10**6),
    column=st.integers(-(10**6), 10**6),
    phase=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    resolution=st.sampled_from([10.0, 20.0, 0.0001, 1 / 3600]),
)
def test_a_part_of_a_grid_has_its_noise(row: int, column: int, phase: float, resolution: float) -> None:
    def at(top: int, left: int) -> SceneGrid:
        corner = (left + phase) * resolution, -(top + phase) * resolution
        return SceneGrid(5, 5, "any", (resolution, 0, corner[0], 0, -resolution, corner[1]))

    whole, part = at(0, 0).noise_origin, at(row, column).noise_origin
    assert (part[0] - whole[0], part[1] - whole[1]) == (row, column)


@pytest.mark.parametrize(
    ("crs", "transform", "place"),
    [
        # Zone 33's central meridian is 15 degrees east; the equator is at northing 0.
        ("EPSG:32633", (10.0, 0.0, 499_000.0, 0.0, -10.0, 500.0), (0.0, 15.0)),
        ("EPSG:4326", (0.001, 0.0, 10.0, 0.0, -0.001, 50.0), (49.95, 10.1)),
        ("EPSG:4326", (0.001, 0.0, 190.0, 0.0, -0.001, 50.0), (49.95, -169.9)),
        ("EPSG:32633", None, None),
        (None, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), None),
        ('LOCAL_CS["here",UNIT["metre",1]]', (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), None),
        ("EPSG:4326", (1.0, 0.0, 1e12, 0.0, -1.0, 1e12), None),
        ("EPSG:32633", (1.0, 0.0, 1e12, 0.0, -1.0, 1e12), None),
    ],
)
def test_the_middle_in_degrees(
    crs: str | None, transform: tuple[float, ...] | None, place: tuple[float, float] | None
) -> None:
    grid = SceneGrid(100, 200, crs and CRS.from_string(crs).to_wkt(), transform)
    assert grid.centre_lat_lon() == (place and pytest.approx(place, abs=1e-6))
