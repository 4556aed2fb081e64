"""The packaged tiles are real pairs on one grid, small, and documented."""

from __future__ import annotations

import re

import numpy as np
import pytest

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.data.samples import FOLDER, load_sample, sample_metadata, sample_names, sample_paths
from axs_lib.errors import InputError


def test_there_are_three_small_documented_tiles() -> None:
    assert sample_names() == ("finland_lake", "ireland_fields", "portugal_hills")
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in sample_names():
        assert f"`{name}`" in readme
        assert all(path.stat().st_size < 150_000 for path in sample_paths(name))
    assert "CDLA-Permissive-1.0" in readme and "Copernicus Sentinel data" in readme


PLACES = {"finland_lake": (60, 70, 19, 31), "ireland_fields": (51, 56, -11, -5), "portugal_hills": (36, 43, -10, -6)}


@pytest.mark.parametrize("name", PLACES)
def test_a_tile_is_a_clear_georeferenced_pair_of_its_day_and_place(name: str) -> None:
    s1, s2 = load_sample(name)
    assert s1.data.shape == (2, 120, 120) and s1.bands == SAR_BANDS
    assert s2.data.shape == (4, 120, 120) and s2.bands == OPTICAL_BANDS
    assert s1.grid == s2.grid and s2.grid.pixel_metres == 10
    assert np.isfinite(s1.data).all() and np.isfinite(s2.data).all()
    assert -25 < s1.data.mean() < -5 and (s1.data[0].mean() > s1.data[1].mean())  # VV above VH
    assert s2.data.min() >= 1 and np.median(s2.data[0]) < 1000  # no cloud: the blue band is dark
    np.testing.assert_array_equal(s2.data, np.rint(s2.data))
    south, north, west, east = PLACES[name]
    known = sample_metadata(name)
    assert set(known) == {"date", "lat", "lon"}
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith(f"| `{name}`"))
    day = re.search(r"_MSIL2A_(\d{8})T", row)
    assert day is not None and day[1] == str(known["date"]).replace("-", "")
    assert south < float(known["lat"]) < north and west < float(known["lon"]) < east


def test_sar_and_optical_show_the_same_lake_and_an_unknown_tile_lists_those_there_are() -> None:
    s1, s2 = load_sample("finland_lake")
    water = s2.data[OPTICAL_BANDS.index("B08")] < 400
    assert 0.05 < water.mean() < 0.5
    assert s1.data[0][water].mean() < s1.data[0][~water].mean() - 5
    with pytest.raises(InputError, match="expected one of finland_lake, ireland_fields"):
        load_sample("atlantis")
