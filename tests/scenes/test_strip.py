"""A strip as wide as a Sentinel-2 granule goes through nano in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS

from .conftest import scene_arrays, write_tiff

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


@pytest.mark.slow
def test_a_strip_of_a_granule(repository: Path, tmp_path: Path) -> None:
    sar, optical = scene_arrays(512, 512)
    files = [tmp_path / name for name in ("s1.tif", "opt.tif", "out.tif")]
    for path, block in zip(files, (sar, optical.astype("uint16")), strict=False):
        wide = np.tile(block, (1, HEIGHT // 512, -(-WIDTH // 512)))[:, :, :WIDTH]
        write_tiff(path, wide, SAR_BANDS if len(block) == 2 else OPTICAL_BANDS, tiled=True, compress="deflate")
    command = [sys.executable, "-c", SCRIPT, *map(str, files)]
    output = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout
    measured = json.loads(output.splitlines()[-1])
    print(measured)
    assert measured["peak"] < 3e9
    assert measured["tiles"] == 57 * 11
    with rasterio.open(files[2]) as file:
        assert (file.height, file.width) == (HEIGHT, WIDTH)
        assert file.read(1, window=((1800, 2048), (0, WIDTH))).min() >= 1
