"""How fast nano is on a CPU: tiles a second, how cost and memory grow, cold start, the share of the peak, a profile.

Usage: python -m benchmarks.nano [--quick] [--only throughput growth ...] [--json FILE]

Sections (--only):
    throughput   tiles of 120 px a second, Stage 3 alone and the whole pipeline, by threads, time steps and batch
    growth       milliseconds by time steps, batch, tile side and ensemble size, one thing changed at a time
    work         GFLOP of the parts and the share of the processor's peak that they reach
    levers       what each way to be faster brings: the same call without and with it, in turn
    precision    what lower precision changes on the packaged real tiles, degraded: RMS in DN, and the error itself
    memory       resident memory after 8 and after many tiles: it must not grow with their number
    start        a fresh process: seconds to import, to build, to the first tile
    commands     wall time of `axs --help`, `axs info` and `axs demo`
    profile      torch.profiler's table of Stage 3 and of the pipeline (printed)

In: options. Out: tables, and JSON with --json. Times on a shared machine are only good for ratios.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from axs_lib.terramind.integers import round_convolutions
from torch import Tensor

from axs_lib.blur import gaussian_blur
from axs_lib.data.degrade import degrade
from axs_lib.data.samples import load_sample, sample_names
from axs_lib.pipeline import Pipeline, build_pipeline
from axs_lib.stage3_tm_ground import Stage3GroundingModel
from axs_lib.terramind.build import build_nano
from axs_lib.terramind.noise import gaussian_field, sample_seeds
from benchmarks.measure import (
    alternate,
    gflop,
    host_memory_mb,
    machine,
    median_milliseconds,
    peak_gflops,
    profile_table,
    speed_ups,
    table,
    write_json,
)

SIDE = 120
SECTIONS = ("throughput", "growth", "work", "levers", "precision", "memory", "start", "commands", "profile")
START = """
import json, time
start = time.perf_counter()
from axs_lib.stage3_tm_ground import build_stage3_model, stage3_inference
import torch
imported = time.perf_counter()
model = build_stage3_model(variant="nano")
built = time.perf_counter()
stage3_inference(model, torch.full((1, 2, 120, 120), -12.0), torch.full((1, 4, 120, 120), 900.0), 1)
first = time.perf_counter()
print(json.dumps({"import_s": imported - start, "build_s": built - imported, "first_tile_s": first - built}))
"""


def tiles(batch: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Smooth s1 in dB and opt_v2 in DN."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, 6, max(2, side // 8), max(2, side // 8), generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    level = torch.tensor([-11.0, -18.0, 500.0, 700.0, 800.0, 2400.0])[:, None, None]
    spread = torch.tensor([3.0, 3.0, 120.0, 150.0, 200.0, 500.0])[:, None, None]
    image = level + spread * smooth
    return image[:, :2], image[:, 2:].clamp_min(1.0)


def stage3_call(
    model: Stage3GroundingModel, batch: int, timesteps: int, side: int = SIDE, ensemble: int = 1
) -> Callable[[], object]:
    s1, opt_v2 = tiles(batch, side)
    return functools.partial(
        model.ground, s1, opt_v2, timesteps, ensemble_size=ensemble, batch_size=batch, seed=0
    )


def pipeline_call(pipeline: Pipeline, batch: int, timesteps: int) -> Callable[[], object]:
    return functools.partial(pipeline, tiles(batch)[0], None, timesteps, batch_size=batch)


def throughput(
    pipeline: Pipeline, threads: list[int], timesteps: list[int], batches: list[int], rounds: int
) -> list[dict[str, Any]]:
    """Tiles a second."""
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        for steps in timesteps:
            for batch in batches:
                calls = {
                    "stage3": stage3_call(pipeline.stage3, batch, steps),
                    "pipeline": pipeline_call(pipeline, batch, steps),
                }
                times = alternate(calls, rounds)
                rate = {name: batch / statistics.median(each) for name, each in times.items()}
                rows.append({"threads": count, "timesteps": steps, "batch": batch} | rate)
    return rows


def growth(model: Stage3GroundingModel, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Milliseconds of one call of Stage 3, one thing changed at a time."""
    ways: dict[str, list[int]] = {
        "timesteps": [1, 2] if quick else [1, 2, 5, 10, 20],
        "batch": [1, 2] if quick else [1, 2, 4, 8, 16],
        "side": [32, 64] if quick else [64, 120, 128, 192, 256, 512],
        "ensemble": [1, 2] if quick else [1, 2, 4, 8],
    }
    rows = []
    for changed, values in ways.items():
        calls = {}
        for value in values:
            options = {"batch": 1, "timesteps": 1} | {changed: value}
            calls[str(value)] = stage3_call(model, **options)
        for name, times in alternate(calls, rounds).items():
            rows.append({"changed": changed, "to": int(name), "ms": 1e3 * statistics.median(times)})
    return rows


def work(pipeline: Pipeline, rounds: int, batch: int, peak: float) -> list[dict[str, Any]]:
    """GFLOP a tile of each network, milliseconds and the share of ``peak``, in GFLOP a second."""
    model = pipeline.stage3
    generator = model.terramind_generator
    side = 128
    s1, opt_v2 = (torch.nn.functional.pad(image, (0, 8, 0, 8), mode="reflect") for image in tiles(batch))
    inputs = {"s1": generator.sar.to_z(s1), "optical": generator.optical.to_z(opt_v2)}
    codes = generator.codes(generator.logits(inputs), (side, side))
    noise = gaussian_field(sample_seeds(0, batch), (generator.image_channels, side, side))
    t = torch.full((batch,), 999)
    calls: dict[str, Callable[[], object]] = {
        "encoder-decoder": lambda: generator.logits(inputs),
        "detokenizer, one evaluation": lambda: generator.denoise_once(noise, t, codes),
        "Stage 2": lambda: pipeline.stage2(opt_v2),
        "Stage 3, 1 evaluation": stage3_call(model, batch, 1),
        "pipeline, 1 evaluation": pipeline_call(pipeline, batch, 1),
    }
    times = alternate(calls, rounds)
    rows = []
    for name, call in calls.items():
        each, amount = statistics.median(times[name]) / batch, gflop(call) / batch
        share = 100 * amount / each / peak
        rows.append({"part": name, "gflop_a_tile": amount, "ms_a_tile": 1e3 * each, "share_of_peak_%": share})
    return rows


def levers(model: Stage3GroundingModel, rounds: int, batch: int) -> list[dict[str, Any]]:
    """Milliseconds a tile without and with each lever; ratios are medians over the rounds."""
    generator = model.terramind_generator
    with mock.patch("axs_lib.terramind.build.speed_up", lambda unet: unet):
        original = build_nano().detokenizer
    original.load_state_dict(generator.detokenizer.state_dict())
    rough = copy.deepcopy(generator)
    rough.use_precision(torch.bfloat16)
    image = torch.randn(batch, 4, 128, 128)
    noise, codes = image.clone(), torch.rand(batch, 3, 8, 8)
    t = torch.full((batch,), 999)
    whole = stage3_call(model, batch, 10)
    singles = [stage3_call(model, 1, 1) for _ in range(batch)]

    def convolved() -> None:
        with mock.patch("axs_lib.grounding.low_freq.PRODUCT_SIDE", 0):
            gaussian_blur(image, 5.0)

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "detokenizer: terratorch's layers, ours": (
            lambda: original(noise, t, codes),
            lambda: generator.denoise_once(noise, t, codes),
        ),
        "detokenizer: float32, bfloat16": (
            lambda: generator.denoise_once(noise, t, codes),
            lambda: rough.denoise_once(noise, t, codes),
        ),
        "blur of 5 px: convolution, product": (convolved, lambda: gaussian_blur(image, 5.0)),
        "Stage 3: one by one, a batch": (
            lambda: [single() for single in singles],
            stage3_call(model, batch, 1),
        ),
        "Stage 3: 10 evaluations, 1": (whole, stage3_call(model, batch, 1)),
    }
    rows = []
    for name, (before, after) in pairs.items():
        times = alternate({"without": before, "with": after}, rounds)
        rows.append(
            {"lever": name, "times_faster": speed_ups(times, "without")["with"]}
            | {f"ms_a_tile_{way}": value for way, value in median_milliseconds(times, batch).items()}
        )
    return rows


def precision(model: Stage3GroundingModel) -> list[dict[str, Any]]:
    """RMS in DN of what bfloat16 and integers change, and the error of opt_v3, at one evaluation.

    16-bit integers change nothing where they do not gain.
    """
    ways = {"float32": model}
    for dtype in (torch.bfloat16, torch.int16, torch.int8):
        name = str(dtype).removeprefix("torch.")
        ways[name] = copy.deepcopy(model)
        ways[name].terramind_generator.use_precision(dtype)
        if dtype.is_floating_point:
            continue
        # nano's convolutions are too narrow to gain; rounded all the same they tell what a published variant's will do.
        wider = ways[f"{name}, narrow convolutions too"] = copy.deepcopy(ways[name])
        round_convolutions(wider.terramind_generator.detokenizer, dtype.itemsize, narrowest=1)

    def rms(image: Tensor) -> float:
        return float(image.square().nanmean().sqrt())

    pairs = []
    for name in sample_names():
        s1, truth = (torch.from_numpy(raster.batch) for raster in load_sample(name))
        pairs.append((s1, truth, degrade(truth, seed=0, preset="test")))
    exact = [model.ground(s1, opt_v2, 1) for s1, _, opt_v2 in pairs]
    rows = []
    for name, way in ways.items():
        outputs = [way.ground(s1, opt_v2, 1) for s1, _, opt_v2 in pairs]
        each = {
            "proposal_dn": [rms(a.proposal - b.proposal) for a, b in zip(outputs, exact, strict=True)],
            "opt_v3_dn": [rms(a.image - b.image) for a, b in zip(outputs, exact, strict=True)],
            "error_dn": [rms(a.image - truth) for a, (_, truth, _) in zip(outputs, pairs, strict=True)],
        }
        rows.append({"precision": name} | {key: statistics.fmean(values) for key, values in each.items()})
    return rows


def memory(pipeline: Pipeline, quick: bool) -> list[dict[str, Any]]:
    """Peak resident memory of this process after so many tiles, a batch at a time."""
    batch = 2 if quick else 8
    call = pipeline_call(pipeline, batch, 1)
    rows, done = [], 0
    for count in (batch, 2 * batch) if quick else (8, 64, 512):
        while done < count:
            call()
            done += batch
        rows.append({"tiles": done, "memory_mb": host_memory_mb()})
    return rows


def start() -> dict[str, float]:
    """Seconds to import, build and ground the first tile, in a fresh process."""
    result = subprocess.run([sys.executable, "-c", START], check=True, capture_output=True, text=True)
    return json.loads(result.stdout.strip().splitlines()[-1])


def commands(rounds: int) -> list[dict[str, Any]]:
    """Median wall time of the commands; `axs demo` runs once."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        demo = ["demo", "--out", str(Path(folder) / "demo")]
        for words, times in ((["--help"], rounds), (["info"], rounds), (demo, 1)):
            walls = []
            for _ in range(times):
                begin = time.perf_counter()
                command = [sys.executable, "-m", "axs_lib", *words]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                walls.append(time.perf_counter() - begin)
            rows.append({"command": f"axs {words[0]}", "seconds": statistics.median(walls)})
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS[:-1]))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--timesteps", nargs="+", type=int, default=[1, 10])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller settings, 3 rounds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.batches = 3, [4]
    return arguments


def measure(pipeline: Pipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of the sections asked for."""
    rounds, quick, batch = arguments.rounds, arguments.quick, 2 if arguments.quick else 8
    figures: dict[str, Any] = {}
    # Memory first: the peak is the process', and the larger calls of other sections would hide it.
    if "memory" in arguments.only:
        figures["memory"] = memory(pipeline, quick)
    if "throughput" in arguments.only:
        figures["throughput"] = throughput(
            pipeline, arguments.threads, arguments.timesteps, arguments.batches, rounds
        )
    torch.set_num_threads(max(arguments.threads))
    if "growth" in arguments.only:
        figures["growth"] = growth(pipeline.stage3, rounds, quick)
    if "work" in arguments.only:
        figures["work"] = work(pipeline, rounds, batch, peak_gflops(size=512 if quick else 2048))
    if "levers" in arguments.only:
        figures["levers"] = levers(pipeline.stage3, rounds, batch)
    if "precision" in arguments.only:
        figures["precision"] = precision(pipeline.stage3)
    if "start" in arguments.only:
        figures["start"] = [start()]
    if "commands" in arguments.only:
        figures["commands"] = commands(rounds)
    if "profile" in arguments.only:
        print(profile_table(stage3_call(pipeline.stage3, 8, 1)))
        print(profile_table(pipeline_call(pipeline, 8, 1)))
    return figures


@torch.inference_mode()
def main() -> None:
    arguments = parse()
    figures = measure(build_pipeline("nano"), arguments)
    for name, rows in figures.items():
        print(f"\n{name}\n{table(rows, list(rows[0]))}")
    write_json(arguments.json, {"machine": machine()} | figures)


if __name__ == "__main__":
    main()
