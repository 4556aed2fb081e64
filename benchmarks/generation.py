"""Our generation against terratorch's ``TerraMindGeneration``: same random weights, tile, evaluations and machine.

Usage: python -m benchmarks.generation [--variants base] [--sides 128] [--timesteps 10] [--batches 4] [--rounds 5] ...

All-zero parameters are redrawn and the output is scaled to order 1, so that outputs can be compared: ours decodes
terratorch's own tokens from the same noise with terratorch's clamping scheduler, once, and the largest difference is
reported. Then the ways run in turn, and a ratio is the median over the rounds of the ratio within a round, so that what
else the machine does is met by all. Ways:

    terratorch            ``TerraMindGeneration`` in float32
    terratorch_bfloat16   the same under bfloat16 autocast
    float32, bfloat16     our generator, the latter after ``use_precision``
    direct                our generator in float32 without Winograd's convolutions
    ..._compiled          the same after ``compile_denoiser()``
    ..._one               the same at one evaluation

Importing the whole of terratorch sets torch's precision of float32 products to "medium"; all ways run in torch's
default, "highest". (terratorch in "medium" took 0.998 times as long on a processor with avx512_bf16.)

In: options. Out: tables with the floors that are to be met, and JSON with --json.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from axs_lib.terramind.build import TARGET_KEY, build_v1, other_modalities
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.noise import gaussian_field, sample_seeds
from axs_lib.terramind.sampler import Schedule, build_schedule
from axs_lib.terramind.weights import load_strict
from benchmarks.measure import (
    alternate,
    machine,
    peak_memory_mb,
    profile_table,
    ratio,
    redraw_zero_parameters,
    table,
    write_json,
)

WAYS = (
    "terratorch", "terratorch_bfloat16", "float32", "direct", "bfloat16", "bfloat16_compiled", "float32_one",
    "bfloat16_one",
)  # fmt: skip
# (way, baseline, how many times faster it is to be); bfloat16's only where the hardware has instructions for it
FLOORS = (
    ("float32", "terratorch", 1.4),
    ("direct", "terratorch", 1.05),
    ("bfloat16", "terratorch_bfloat16", 1.15),
    ("bfloat16_compiled", "terratorch_bfloat16", 1.15),
    ("bfloat16_one", "terratorch", 10.0),
)
REFERENCE_SIDE = 128  # at which the output is scaled

Way = Callable[[Tensor, Tensor, int], object]  # (s1, optical, timesteps), all in z-units


class Case(NamedTuple):
    """What is generated."""

    variant: str
    side: int
    timesteps: int
    batch: int
    device: str

    def inputs(self) -> tuple[Tensor, Tensor]:
        """s1 (B, 2, H, W) and optical (B, 4, H, W) in z-units, smooth."""
        random = torch.Generator().manual_seed(self.side + self.batch)
        coarse = 3.0 * torch.randn(self.batch, 6, 12, 12, generator=random)
        smooth = torch.nn.functional.interpolate(coarse, size=(self.side, self.side), mode="bilinear")
        return smooth[:, :2].to(self.device), smooth[:, 2:].to(self.device)


def build_terratorchs(variant: str, modalities: list[str]) -> Any:
    """terratorch's generation with random weights, nothing zero, and argmax tokens."""
    import terratorch.models.backbones.terramind  # noqa: F401  (registers the models)
    from terratorch.registry import FULL_MODEL_REGISTRY

    torch.set_float32_matmul_precision("highest")  # which the import lowered
    given = {"modalities": modalities, "output_modalities": ["S2L2A"]}
    model = FULL_MODEL_REGISTRY.build(f"{variant}_generate", **given, pretrained=False)
    model.temps = 0.0
    redraw_zero_parameters(model)
    return model


def build_reference(variant: str) -> Any:
    """The same with an output of order 1."""
    model = build_terratorchs(variant, ["S1GRD", "S2L2A"])
    unet = model.tokenizer[TARGET_KEY].decoder
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(1, unet.in_channels, REFERENCE_SIDE, REFERENCE_SIDE, generator=random)
    codes = torch.rand(1, 5, REFERENCE_SIDE // 16, REFERENCE_SIDE // 16, generator=random)
    with torch.no_grad():
        unet.out[-1].weight.div_(unet(noise, torch.tensor([999]), codes).std())
    return model.eval().requires_grad_(False)


def ours_of(reference: Any, variant: str) -> TerraMindGenerator:
    """Our generator with the reference's weights."""
    generator = build_v1(variant)
    core = reference.sampler.model.state_dict()
    load_strict(generator.core, core, ignore_prefixes=other_modalities(generator.core, core))
    load_strict(generator.detokenizer, reference.tokenizer[TARGET_KEY].decoder.state_dict())
    return generator.eval().requires_grad_(False)


def run_reference(model: Any, lift: Callable[[Tensor], Tensor], s1: Tensor, optical: Tensor, timesteps: int) -> Tensor:
    """terratorch's image (B, 12, H, W) in z-units."""
    out = model({"S1GRD": s1.clone(), "S2L2A": lift(optical)}, standardize=False, timesteps=timesteps)
    image: Tensor = out["S2L2A"]
    return image


def run_under_autocast(way: Way, s1: Tensor, optical: Tensor, timesteps: int) -> None:
    """A way under bfloat16 autocast."""
    with torch.autocast(s1.device.type, torch.bfloat16):
        way(s1, optical, timesteps)


def run_ours(generator: TerraMindGenerator, s1: Tensor, optical: Tensor, timesteps: int) -> Tensor:
    """Our image (B, C, H, W) in z-units, of soft tokens."""
    size = (s1.shape[-2], s1.shape[-1])
    codes = generator.codes(generator.logits({"s1": s1, "optical": optical}), size)
    noise = gaussian_field(sample_seeds(0, len(s1), device=s1.device), (generator.optical.channels, *size))
    return generator.decode(codes, noise, build_schedule("ddim", timesteps))


def build_ways(names: list[str], reference: Way | None, exact: TerraMindGenerator) -> dict[str, Way]:
    """The ways by name; of ours, those that only differ in their evaluations share a generator."""
    generators: dict[str, TerraMindGenerator] = {"float32": exact}
    ways: dict[str, Way] = {}
    for name in names:
        if name.startswith("terratorch"):
            assert reference is not None
            ways[name] = reference
            if name.endswith("bfloat16"):
                ways[name] = functools.partial(run_under_autocast, reference)
            continue
        build = name.removesuffix("_one")
        if build not in generators:
            generators[build] = copy.deepcopy(exact)
            if build.startswith("bfloat16"):
                generators[build].use_precision(torch.bfloat16)
            if build.startswith("direct"):
                generators[build].use_winograd(False)
            if build.endswith("_compiled"):
                generators[build].compile_denoiser()
        ways[name] = functools.partial(run_ours, generators[build])
    return ways


@torch.no_grad()
def measure_case(case: Case, ways: dict[str, Way], rounds: int) -> dict[str, Any]:
    """Milliseconds a tile of each way, and how many times faster than the baseline of its floor it is."""
    inputs = case.inputs()
    calls = {
        name: functools.partial(way, *inputs, 1 if name.endswith("_one") else case.timesteps)
        for name, way in ways.items()
    }
    times = alternate(calls, rounds, case.device)
    first = next(iter(ways))
    return {
        **case._asdict(),
        "rounds": rounds,
        "times_first": {name: ratio(times, name, first) for name in ways},
        "ms_a_tile": {name: 1e3 * sorted(each)[rounds // 2] / case.batch for name, each in times.items()},
        "floors": {
            f"{name} against {baseline}": {"wanted": floor, "reached": ratio(times, name, baseline)}
            for name, baseline, floor in FLOORS
            if name in ways and baseline in ways
        },
        "memory_mb": peak_memory_mb(case.device),
    }


def terratorchs_schedule(timesteps: int) -> Schedule:
    """terratorch's own clamping scheduler, injected into our loop."""
    from terratorch.models.backbones.terramind.tokenizer.scheduling import DDIMScheduler

    scheduler = DDIMScheduler(
        thresholding=True, clip_sample=True, beta_schedule="linear", prediction_type="sample", zero_terminal_snr=True
    )
    scheduler.set_timesteps(timesteps, mode="trailing")

    def update(x0: Tensor, number: int, x: Tensor) -> Tensor:
        return scheduler.step(x0, scheduler.timesteps[number], x).prev_sample

    return Schedule(tuple(scheduler.timesteps.tolist()), lambda: update)


@torch.no_grad()
def difference_from_terratorch(model: Any, generator: TerraMindGenerator, case: Case) -> dict[str, float]:
    """Largest difference in z-units of one decoding of the same tokens from the same noise, and the output's spread."""
    s1, optical = case.inputs()
    tokenizer = model.tokenizer[TARGET_KEY]
    original, seen = type(tokenizer).decode_tokens, []

    def decode_tokens(tokens: Tensor, **options: Any) -> Tensor:
        seen.append(tokens)
        return original(tokenizer, tokens, generator=torch.Generator().manual_seed(3), **options)

    tokenizer.decode_tokens = decode_tokens
    try:
        expected = run_reference(model, generator.optical.expand_bands, s1, optical, case.timesteps)
    finally:
        del tokenizer.decode_tokens
    height, width = case.side // 16, case.side // 16
    codes = generator.codebook[seen[0].flatten(1)].transpose(1, 2).unflatten(2, (height, width)).float()
    shape = (case.batch, generator.optical.channels, case.side, case.side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(case.device)
    actual = generator.decode(codes, noise, terratorchs_schedule(case.timesteps))
    tokens = generator.logits({"s1": s1, "optical": optical}).argmax(-1)
    return {
        "largest_difference": float((actual - expected).abs().max()),
        "equal_tokens_%": 100 * float((tokens == seen[0].flatten(1)).float().mean()),
        "output_std": float(expected.std()),
    }


@torch.no_grad()
def difference_of_bfloat16(exact: TerraMindGenerator, case: Case) -> dict[str, float]:
    """RMS and largest difference of bfloat16 from our float32, end to end, z-units."""
    rough = copy.deepcopy(exact)
    rough.use_precision(torch.bfloat16)
    images = [run_ours(generator, *case.inputs(), case.timesteps) for generator in (exact, rough)]
    error = (images[1] - images[0]).abs()
    return {"bfloat16_rms": float(error.square().mean().sqrt()), "bfloat16_largest": float(error.max())}


def show(record: dict[str, Any]) -> None:
    """Print a case's tables."""
    print(", ".join(f"{key} {record[key]}" for key in Case._fields))
    rows = [
        {"way": name, f"times {next(iter(record['ms_a_tile']))}": times, "ms a tile": record["ms_a_tile"][name]}
        for name, times in record["times_first"].items()
    ]
    print(table(rows))
    floors = [{"floor": name} | figures for name, figures in record["floors"].items()]
    if floors:
        print(table(floors))
    differences = {key: value for key, value in record.items() if key.endswith(("largest", "rms", "_%", "std"))}
    print(table([differences | {"largest_difference": record.get("largest_difference")}]), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["base"], help="tiny, small, base, large")
    parser.add_argument("--sides", nargs="+", type=int, default=[128])
    parser.add_argument("--timesteps", nargs="+", type=int, default=[10], help="divisors of 1000")
    parser.add_argument("--batches", nargs="+", type=int, default=[4])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), help="the first is the baseline of the table")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="also print where float32 spends its time")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    records = []
    for name in arguments.variants:
        variant, device = f"terramind_v1_{name}", arguments.device
        model = build_reference(variant)
        exact = ours_of(model, variant).to(device)
        reference = functools.partial(run_reference, model.to(device), exact.optical.expand_bands)
        ways = build_ways(arguments.ways, reference, exact)
        for side in arguments.sides:
            for timesteps in arguments.timesteps:
                for batch in arguments.batches:
                    case = Case(variant, side, timesteps, batch, device)
                    record = measure_case(case, ways, arguments.rounds)
                    record |= difference_from_terratorch(model, exact, case)
                    record |= difference_of_bfloat16(exact, case)
                    records.append(record)
                    show(record)
        if arguments.profile:
            inputs = Case(variant, arguments.sides[0], 1, arguments.batches[0], device).inputs()
            print(profile_table(functools.partial(run_ours, exact, *inputs, 1)))
    write_json(arguments.json, {"machine": machine(), "cases": records})


if __name__ == "__main__":
    main()
