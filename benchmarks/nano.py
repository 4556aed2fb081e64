"""How fast nano is on a CPU: tiles a second, how cost and memory grow, what bfloat16 changes, and the start.

Usage: python -m benchmarks.nano [--only throughput growth ...] [--threads 2] [--rounds 5] [--json FILE]

Sections (--only):
    throughput   tiles of 120 px a second, Stage 3 alone and the whole pipeline, by time steps and batch
    growth       milliseconds of Stage 3 by time steps, batch, tile side and ensemble size, one thing changed at a time
    precision    what bfloat16 changes on the packaged real tiles, degraded: RMS in DN, and the error itself
    memory       resident memory after 8 and after many tiles: it must not grow with their number
    start        wall time of `axs --help`, `axs info`, and `axs ground` on one packaged tile
    profile      torch.profiler's table of Stage 3 and of the pipeline (printed)

In: options. Out: tables, and JSON with --json. Times on a shared machine are only good for ratios.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from axs_lib.data.degrade import degrade
from axs_lib.data.samples import load_sample, sample_names, sample_paths
from axs_lib.pipeline import Pipeline, build_pipeline
from axs_lib.stage3_tm_ground import Stage3GroundingModel
from benchmarks.measure import alternate, machine, peak_memory_mb, plausible_pair, profile_table, table, write_json

SIDE = 120
SECTIONS = ("memory", "throughput", "growth", "precision", "start", "profile")


def stage3_call(
    model: Stage3GroundingModel, batch: int = 1, timesteps: int = 1, side: int = SIDE, ensemble: int = 1
) -> Callable[[], object]:
    s1, opt_v2 = plausible_pair(batch, side, side)
    return functools.partial(model.ground, s1, opt_v2, timesteps, ensemble_size=ensemble, batch_size=batch)


def pipeline_call(pipeline: Pipeline, batch: int, timesteps: int = 1) -> Callable[[], object]:
    return functools.partial(pipeline, plausible_pair(batch, SIDE, SIDE)[0], None, timesteps, batch_size=batch)


def throughput(pipeline: Pipeline, timesteps: list[int], batches: list[int], rounds: int) -> list[dict[str, Any]]:
    """Tiles a second."""
    rows = []
    for steps in timesteps:
        for batch in batches:
            calls = {
                "stage3": stage3_call(pipeline.stage3, batch, steps),
                "pipeline": pipeline_call(pipeline, batch, steps),
            }
            times = alternate(calls, rounds)
            rate = {name: batch / statistics.median(each) for name, each in times.items()}
            rows.append({"timesteps": steps, "batch": batch} | rate)
    return rows


def growth(model: Stage3GroundingModel, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Milliseconds of one call of Stage 3, one thing changed at a time."""
    values: dict[str, list[int]] = {
        "timesteps": [1, 2, 5, 10, 20],
        "batch": [1, 2, 4, 8, 16],
        "side": [64, 120, 128, 192, 256, 512],
        "ensemble": [1, 2, 4, 8],
    }
    rows = []
    for changed, series in values.items():
        chosen = series[:2] if quick else series
        calls = {str(value): stage3_call(model, **{changed: value}) for value in chosen}
        for value, times in alternate(calls, rounds).items():
            rows.append({"changed": changed, "to": int(value), "ms": 1e3 * statistics.median(times)})
    return rows


def precision(model: Stage3GroundingModel) -> list[dict[str, Any]]:
    """RMS in DN of what bfloat16 changes, and the error of opt_v3, at one evaluation."""
    rough = copy.deepcopy(model)
    rough.use_precision(torch.bfloat16)
    figures: dict[str, list[float]] = {"proposal_dn": [], "opt_v3_dn": [], "error_dn": [], "float32_error_dn": []}
    for name in sample_names():
        s1, truth = (torch.from_numpy(raster.batch) for raster in load_sample(name))
        opt_v2 = degrade(truth, seed=0, preset="test")
        exact, rounded = (each.ground(s1, opt_v2, 1) for each in (model, rough))
        differences = {
            "proposal_dn": rounded.proposal - exact.proposal,
            "opt_v3_dn": rounded.image - exact.image,
            "error_dn": rounded.image - truth,
            "float32_error_dn": exact.image - truth,
        }
        for key, difference in differences.items():
            figures[key].append(float(difference.square().nanmean().sqrt()))
    return [{key: statistics.fmean(values) for key, values in figures.items()}]


def memory(pipeline: Pipeline, quick: bool) -> list[dict[str, Any]]:
    """Peak resident memory of this process after so many tiles, a batch at a time."""
    batch = 2 if quick else 8
    call = pipeline_call(pipeline, batch)
    rows, done = [], 0
    for count in (batch, 2 * batch) if quick else (8, 64, 512):
        while done < count:
            call()
            done += batch
        rows.append({"tiles": done, "memory_mb": peak_memory_mb()})
    return rows


def start(rounds: int) -> list[dict[str, Any]]:
    """Median wall time of commands, each in a process of its own."""
    s1, s2 = sample_paths(sample_names()[0])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.tif")
        ground = ["ground", "--s1", str(s1), "--opt-v2", str(s2), "--out", out, "--variant", "nano", "--overwrite"]
        for words in (["--help"], ["info"], ground):
            walls = []
            for _ in range(rounds):
                begin = time.perf_counter()
                command = [sys.executable, "-m", "axs_lib", *words]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                walls.append(time.perf_counter() - begin)
            rows.append({"command": f"axs {words[0]}", "seconds": statistics.median(walls)})
    return rows


def measure(pipeline: Pipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of the sections asked for."""
    rounds, quick = arguments.rounds, arguments.quick
    # Memory first: the peak is the process', and the larger calls of other sections would hide it.
    sections: dict[str, Callable[[], Any]] = {
        "memory": lambda: memory(pipeline, quick),
        "throughput": lambda: throughput(pipeline, arguments.timesteps, arguments.batches, rounds),
        "growth": lambda: growth(pipeline.stage3, rounds, quick),
        "precision": lambda: precision(pipeline.stage3),
        "start": lambda: start(rounds),
    }
    return {name: section() for name, section in sections.items() if name in arguments.only}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS[:-1]))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--timesteps", nargs="+", type=int, default=[1, 10])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller settings")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    pipeline = build_pipeline("nano")
    figures = measure(pipeline, arguments)
    for name, rows in figures.items():
        print(f"\n{name}\n{table(rows)}")
    if "profile" in arguments.only:
        print(profile_table(stage3_call(pipeline.stage3, 8)))
        print(profile_table(pipeline_call(pipeline, 8)))
    write_json(arguments.json, {"machine": machine()} | figures)


if __name__ == "__main__":
    main()
