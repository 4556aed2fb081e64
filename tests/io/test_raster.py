"""Where a raster is."""

from __future__ import annotations

import numpy as np
import pytest
from rasterio.crs import CRS

from axs_lib.bands import SAR_BANDS
from axs_lib.data.samples import load_sample
from axs_lib.io.raster import Raster, centre_lat_lon

DATA = np.zeros((2, 100, 200), dtype=np.float32)


def located(crs: CRS | None, transform: tuple[float, ...] | None) -> Raster:
    return Raster(DATA, SAR_BANDS, None if crs is None else crs.to_wkt(), transform)


def test_the_centre_in_degrees() -> None:
    """Zone 33's central meridian is 15 degrees east; the equator is at northing 0."""
    raster = located(CRS.from_epsg(32633), (10.0, 0.0, 500_000.0 - 1000.0, 0.0, -10.0, 500.0))
    assert centre_lat_lon(raster) == pytest.approx((0.0, 15.0), abs=1e-6)


def test_degrees_stay_degrees() -> None:
    raster = located(CRS.from_epsg(4326), (0.001, 0.0, 10.0, 0.0, -0.001, 50.0))
    assert centre_lat_lon(raster) == pytest.approx((49.95, 10.1))


def test_sample_tiles_lie_where_their_names_say() -> None:
    lat, lon = centre_lat_lon(load_sample("finland_lake")[0]) or (0.0, 0.0)
    assert 59 < lat < 71 and 20 < lon < 32


@pytest.mark.parametrize("crs", [None, CRS.from_epsg(32633), CRS.from_wkt('LOCAL_CS["here",UNIT["metre",1]]')])
def test_nowhere(crs: CRS | None) -> None:
    transform = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0) if crs is not None and not crs.is_epsg_code else None
    assert centre_lat_lon(located(crs, transform)) is None


@pytest.mark.parametrize("epsg", [4326, 32633, 3035])
def test_far_outside_a_projection_is_nowhere(epsg: int) -> None:
    raster = located(CRS.from_epsg(epsg), (1.0, 0.0, 1e12, 0.0, -1.0, 1e12))
    assert centre_lat_lon(raster) is None
