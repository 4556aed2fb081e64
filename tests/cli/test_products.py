"""Products as they are delivered, and a SAR without a pixel, through the command line; nano's packaged weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from tests.models import plausible_pair
from tests.products import write_hyp3, write_safe
from tests.scenes.conftest import PLACE, read_tiff, write_tiff

from .conftest import Run

NANO = ("--variant", "nano", "--timesteps", 1, "--device", "cpu")


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    s1, opt_v2 = plausible_pair(1, 60, 50)
    return s1[0].numpy(), opt_v2[0].numpy().round().clip(60).astype("uint16")


def test_a_safe_folder_through_ground(axs: Run, tmp_path: Path, pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Its offset is taken off; what its SCL calls clear comes back, the cloud in the upper 12 rows is filled."""
    sar, optical = pair
    safe = write_safe(tmp_path, optical)
    s1, out = write_tiff(tmp_path / "s1.tif", sar, SAR_BANDS), tmp_path / "o.tif"
    result = axs("ground", "--s1", s1, "--opt-v2", safe, "--mask", "scl", "--out", out, *NANO)
    assert "2,400 kept as observed (80.0 %), 600 filled (20.0 %)" in result.output
    with rasterio.open(out) as written:
        image, tags = written.read(), written.tags()
        assert written.transform == PLACE and written.descriptions == OPTICAL_BANDS
    np.testing.assert_array_equal(image[:, 12:], optical[:, 12:])
    assert (image[:, :12] > 0).all() and (image[:, :12] != optical[:, :12]).any()
    assert tags["AXS_BOA_OFFSET_REMOVED"] == "1000" and tags["AXS_UNKNOWN_PERCENT"] == "20.00"
    assert "taken off: 1000 DN" in tags["AXS_OPT_V2_NOTES"] and str(tmp_path) not in tags["AXS_OPT_V2_NOTES"]


def test_a_hyp3_pair_through_run(axs: Run, tmp_path: Path, pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Power is taken for what it is, and zeros for nodata: the images are those of the same SAR in dB."""
    sar, _ = pair
    sar[:, :5] = -np.inf  # in power 0
    files = write_hyp3(tmp_path / "hyp3", sar)
    sar[:, :5] = np.nan
    inputs = {"power": files, "db": [write_tiff(tmp_path / "db.tif", sar, SAR_BANDS)]}
    for name, s1 in inputs.items():
        result = axs("run", "--s1", *s1, "--out", tmp_path / name, "--date", "2021-07-14", *NANO)
        if name == "power":
            assert "linear power" in result.stderr and "250 left empty" in result.stdout
    for stage in ("opt_v1", "opt_v2", "opt_v3"):
        images = [read_tiff(tmp_path / name / f"{stage}.tif").astype(int) for name in inputs]
        assert (images[0][:, :5] == 0).all() and (images[0][:, 5:] > 0).all() and images[0][:, 5:].std() > 10
        assert np.abs(images[0] - images[1]).max() <= 1


def test_a_sar_without_a_pixel_ends_with_a_word(axs: Run, tmp_path: Path) -> None:
    """Through run; of what ground says, tests/scenes/test_doors.py."""
    s1 = write_tiff(tmp_path / "s1.tif", np.full((2, 60, 50), np.nan, "float32"), SAR_BANDS)
    result = axs("run", "--s1", s1, "--out", tmp_path / "out" / "results", *NANO, code=2)
    assert "nodata" in result.stderr, result.output
    assert not any((tmp_path / "out").rglob("*.*"))
