"""What streaming a scene costs beside the model: nano, one time step, a synthetic strip as wide as a granule.

Usage: python benchmarks/scene.py [--rows 2048] [--json FILE]

Baseline and strip run in one process, so that both meet the same machine; the baseline is the model on one tile after
another, as the deterministic mode runs it. Prints seconds a tile, of the strip, and the share that is not the model's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import Affine

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.scenes.api import ground_scene
from axs_lib.stage3_tm_ground import build_stage3_model

WIDTH, SIDE, REPEATS = 10_980, 256, 24
LEVELS = {"VV": -11.0, "VH": -18.0, "B02": 500.0, "B03": 700.0, "B04": 800.0, "B08": 2400.0}


def write_strip(path: Path, bands: tuple[str, ...], rows: int, dtype: str) -> Path:
    """Noise around each band's usual level."""
    random = np.random.default_rng(0)
    grid = {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5, 0, -10, 5e6), "tiled": True}
    with rasterio.open(path, "w", "GTiff", WIDTH, rows, len(bands), dtype=dtype, **grid) as file:
        for number, band in enumerate(bands, 1):
            noise = random.normal(1.0, 0.1, (rows, WIDTH)).astype(np.float32)
            file.write((LEVELS[band] * noise).astype(dtype), number)
            file.set_band_description(number, band)
    return path


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = build_stage3_model(variant="nano")
    level = torch.tensor(list(LEVELS.values()))[None, :, None, None]
    pair = level * (1 + 0.1 * torch.randn(1, 6, SIDE, SIDE))
    model.ground(pair[:, :2], pair[:, 2:], 1)
    started = time.perf_counter()
    for _ in range(REPEATS):
        model.ground(pair[:, :2], pair[:, 2:], 1)
    tile = (time.perf_counter() - started) / REPEATS
    with tempfile.TemporaryDirectory() as folder:
        s1 = write_strip(Path(folder) / "s1.tif", SAR_BANDS, arguments.rows, "float32")
        opt_v2 = write_strip(Path(folder) / "opt_v2.tif", OPTICAL_BANDS, arguments.rows, "uint16")
        result = ground_scene(model, s1, opt_v2, Path(folder) / "o.tif", timesteps=1, deterministic=True)
    beside = result.seconds / (tile * result.tiles) - 1
    figures = {
        "tile_s": tile,
        "tiles": result.tiles,
        "seconds": result.seconds,
        "beside_the_model_%": 100 * beside,
    }
    print(json.dumps(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
