"""How fast `axs batch` works through small tiles, and what larger areas would cost at that rate.

In: a variant and the ways to run it. Out: one line a way (tiles a second, speed-up over the first) and, from the
fastest one, the time, storage and reading that a country or the world's land would take. The tiles are copies of the
packaged samples with a little noise, so that no two have the same bytes. See docs/batch.md for the method. The bars
of this project are 1.7 times for local:2 over local:1, and 0.8 for ray:2 over local:2; --tiles 60 gives a first idea.

    python -m benchmarks.batch --variant nano --tiles 1000 --way local:1 --way local:2 --way ray:2
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from axs_lib.batch.manifest import read_manifest
from axs_lib.data.samples import load_sample, sample_names
from benchmarks.areas import PIXEL_KM, cost_table


def make_tiles(folder: Path, count: int) -> tuple[int, float]:
    """Write tiles; the mean size of a file in bytes and the area of a tile in km2."""
    random = np.random.default_rng(0)
    samples = [load_sample(name) for name in sample_names()]
    for number in range(count):
        s1, s2 = samples[number % len(samples)]
        noise = random.normal(0, 0.05, s1.data.shape).astype(np.float32)
        np.savez(folder / f"{number:06d}.npz", s1=s1.data + noise, opt_v2=s2.data.astype(np.uint16))
    height, width = samples[0][0].size
    size = statistics.fmean(path.stat().st_size for path in folder.iterdir())
    return round(size), height * width * PIXEL_KM**2


def run(tiles: Path, out: Path, way: str, options: list[str]) -> tuple[float, float, float]:
    """Run a way; tiles a second once the models are loaded, wall-clock seconds in all, bytes of an output."""
    engine, _, workers = way.partition(":")
    command = [sys.executable, "-m", "axs_lib", "batch", str(tiles), "--out", str(out), "-q"]
    start = time.perf_counter()
    subprocess.run([*command, "--engine", engine, "--workers", workers, *options], check=True, stdout=sys.stderr)
    wall = time.perf_counter() - start
    records = read_manifest(out)
    # From the moment every worker has its first item behind it, which waited for the model.
    finished = {record.id: datetime.fromisoformat(record.finished) for record in records}
    first: dict[str, datetime] = {}
    for record in records:
        first[record.worker] = min(first.get(record.worker, finished[record.id]), finished[record.id])
    warm = max(first.values())
    after = [moment for moment in finished.values() if moment > warm]
    if not after:
        raise SystemExit(f"{way}: all tiles were done before every worker had its model; give more --tiles")
    rate = len(after) / (max(after) - warm).total_seconds()
    return rate, wall, statistics.fmean(record.output_bytes for record in records)


def main(
    variant: Annotated[str, typer.Option(help="Variant of TerraMind.")] = "nano",
    tiles: Annotated[int, typer.Option(min=10, help="Number of 120x120 tiles.")] = 1000,
    way: Annotated[list[str] | None, typer.Option(help="ENGINE:WORKERS, as often as you like.")] = None,
    timesteps: Annotated[int, typer.Option(help="Network evaluations.")] = 10,
    stage: Annotated[str, typer.Option(help="ground or pipeline.")] = "ground",
    format: Annotated[str, typer.Option(help="npz or tif.")] = "tif",
    gpus_per_worker: Annotated[float, typer.Option(help="GPU share of a worker; 0 is the CPU.")] = 0.0,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights.")] = None,
) -> None:
    """Measure `axs batch`, and project the cost of larger areas."""
    options = ["--variant", variant, "--timesteps", str(timesteps), "--stage", stage, "--format", format]
    options += ["--gpus-per-worker", str(gpus_per_worker)] if gpus_per_worker else []
    options += ["--checkpoint", str(checkpoint)] if checkpoint else []
    with tempfile.TemporaryDirectory(prefix="axs-benchmark-") as temporary:
        folder = Path(temporary, "tiles")
        folder.mkdir()
        read, area = make_tiles(folder, tiles)
        rates: dict[str, float] = {}
        for each in way or ["local:1", "local:2"]:
            rate, wall, written = run(folder, Path(temporary, each.replace(":", "-")), each, options)
            rates[each] = rate
            ratios = [f"{rate / other:.2f} times {name}" for name, other in rates.items() if name != each]
            typer.echo(
                f"{each}: {', '.join([f'{rate:.2f} tiles/s with models loaded', *ratios])};"
                f" {wall:.1f} s in all for {tiles} tiles ({tiles / wall:.2f} tiles/s)"
            )
    best = max(rates.values())
    typer.echo(f"\n{variant}, {stage}, timesteps {timesteps}, {format}; a tile is {area:.2f} km2 without overlap,")
    typer.echo(f"{read / 1e3:.0f} kB to read and {written / 1e3:.0f} kB written. At {best:.2f} tiles/s:\n")
    typer.echo(cost_table(best * area, read / area, written / area, "tiles", area))


if __name__ == "__main__":
    typer.run(main)
