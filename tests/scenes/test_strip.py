"""A strip as wide as a Sentinel-2 granule goes through nano in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS

from .conftest import CORNER, CRS, scene_arrays

HEIGHT, WIDTH = 2048, 10_980

SCRIPT = """
import json, re, sys
from pathlib import Path
from axs_lib.scenes.api import ground_scene
from tests.models import random_nano
s1, opt_v2, out = sys.argv[1:]
result = ground_scene(random_nano(), s1, opt_v2, out, timesteps=1, deterministic=True)
# The largest since this process began; getrusage's would also be that of the process that started it.
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps({"tiles": result.tiles, "peak": 1024 * peak}))
"""


def write_strip(path: Path, block: np.ndarray, bands: tuple[str, ...], height: int, dtype: str) -> Path:
    """A block repeated to the size of the strip, written by rows."""
    nodata = 0 if dtype == "uint16" else np.nan
    wide = np.tile(block.astype(dtype), (1, 1, -(-WIDTH // block.shape[2])))[:, :, :WIDTH]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(bands),
        height=height,
        width=WIDTH,
        dtype=dtype,
        nodata=nodata,
        crs=CRS,
        transform=Affine(10, 0, CORNER[0], 0, -10, CORNER[1]),
        tiled=True,
        compress="deflate",
    ) as file:
        file.descriptions = bands
        for top in range(0, height, block.shape[1]):
            rows = min(block.shape[1], height - top)
            file.write(wide[:, :rows], window=((top, top + rows), (0, WIDTH)))
    return path


@pytest.mark.slow
def test_a_strip_of_a_granule(repository: Path, tmp_path: Path) -> None:
    sar, optical = scene_arrays(512, 512)
    files = (
        write_strip(tmp_path / "s1.tif", sar, SAR_BANDS, HEIGHT, "float32"),
        write_strip(tmp_path / "opt.tif", optical, OPTICAL_BANDS, HEIGHT, "uint16"),
        tmp_path / "out.tif",
    )
    command = [sys.executable, "-c", SCRIPT, *map(str, files)]
    output = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout
    measured = json.loads(output.splitlines()[-1])
    print(measured)
    assert measured["peak"] < 3e9
    assert measured["tiles"] == 57 * 11
    with rasterio.open(files[2]) as file:
        assert (file.height, file.width) == (HEIGHT, WIDTH)
        assert file.read(1, window=((1800, 2048), (0, WIDTH))).min() >= 1
