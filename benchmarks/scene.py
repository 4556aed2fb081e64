"""What a scene costs: seconds, peak memory, and the share that is not the model's; nano, one step, synthetic pixels.

Usage: python -m benchmarks.scene [--rows 2048] [--tiles-before 24] [--json FILE]

The scene is as wide as a Sentinel-2 granule; ``--rows 10980`` is a whole one. The model's own time is that of one tile
after another, as the deterministic mode runs it, in this process before and after the scene, so that all of it meets
the same machine. Beside the share of the clock stands that of the processor's time, which other jobs disturb less. Last
comes what countries and the world's land would take at that rate.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import Affine

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.scenes.api import ground_scene
from axs_lib.stage3_tm_ground import Stage3GroundingModel, build_stage3_model
from benchmarks.areas import PIXEL_KM, cost_table

WIDTH, SIDE, CHUNK_ROWS = 10_980, 256, 512
LEVELS = {"VV": -11.0, "VH": -18.0, "B02": 500.0, "B03": 700.0, "B04": 800.0, "B08": 2400.0}


def write_strip(path: Path, bands: tuple[str, ...], rows: int, dtype: str) -> Path:
    """Noise around each band's usual level, written by rows."""
    random = np.random.default_rng(0)
    level = np.array([LEVELS[band] for band in bands], dtype=np.float32)[:, None, None]
    grid = {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5, 0, -10, 5e6), "tiled": True}
    with rasterio.open(path, "w", "GTiff", WIDTH, rows, len(bands), dtype=dtype, **grid) as file:
        file.descriptions = bands
        for top in range(0, rows, CHUNK_ROWS):
            count = min(CHUNK_ROWS, rows - top)
            noise = random.standard_normal((len(bands), count, WIDTH), dtype=np.float32)
            pixels = (level * (1 + 0.1 * noise)).astype(dtype)
            file.write(pixels, window=((top, top + count), (0, WIDTH)))
    return path


def time_tiles(model: Stage3GroundingModel, count: int) -> tuple[float, float]:
    """Seconds of the clock and of the processor for a tile."""
    level = torch.tensor(list(LEVELS.values()))[None, :, None, None]
    pair = level * (1 + 0.1 * torch.randn(1, 6, SIDE, SIDE))
    clock, processor = time.perf_counter(), time.process_time()
    for _ in range(count):
        model.ground(pair[:, :2], pair[:, 2:], 1)
    return (time.perf_counter() - clock) / count, (time.process_time() - processor) / count


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048, help="of the scene; 10980 is a granule")
    parser.add_argument("--tiles-before", type=int, default=24, help="tiles timed before the scene, and after it")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    model = build_stage3_model(variant="nano")
    time_tiles(model, 2)
    before = time_tiles(model, arguments.tiles_before)
    with tempfile.TemporaryDirectory() as folder:
        s1 = write_strip(Path(folder) / "s1.tif", SAR_BANDS, arguments.rows, "float32")
        opt_v2 = write_strip(Path(folder) / "opt_v2.tif", OPTICAL_BANDS, arguments.rows, "uint16")
        processor = time.process_time()
        result = ground_scene(model, s1, opt_v2, Path(folder) / "o.tif", timesteps=1, deterministic=True)
        processor = time.process_time() - processor
        read, size = s1.stat().st_size + opt_v2.stat().st_size, (Path(folder) / "o.tif").stat().st_size
    after = time_tiles(model, arguments.tiles_before)
    tile, tile_processor = ((first + second) / 2 for first, second in zip(before, after, strict=True))
    figures = {
        "rows": arguments.rows,
        "threads": torch.get_num_threads(),
        "tiles": result.tiles,
        "seconds": round(result.seconds, 1),
        "tile_s": round(tile, 4),
        "beside_the_model_%": round(100 * (result.seconds / (tile * result.tiles) - 1), 1),
        "beside_the_model_processor_%": round(100 * (processor / (tile_processor * result.tiles) - 1), 1),
        "peak_memory_GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "output_MB": round(size / 1e6, 1),
    }
    print(json.dumps(figures))
    km2 = arguments.rows * WIDTH * PIXEL_KM**2
    print(cost_table(km2 / result.seconds, read / km2, size / km2, "granules", (WIDTH * PIXEL_KM) ** 2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
