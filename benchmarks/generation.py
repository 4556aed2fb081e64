"""Our generation against terratorch's ``TerraMindGeneration``: same random weights, tile, evaluations and machine.

Usage: python -m benchmarks.generation [--quick] [--variants base] [--sides 128] [--timesteps 10] [--batches 4] ...

All-zero parameters are redrawn and the output is scaled to order 1, so that outputs can be compared: ours decodes
terratorch's own tokens, from the same noise and with terratorch's clamping scheduler, once, and the largest difference
is reported. Then the ways run in turn, and the ratio is the median over the rounds. Ways:

    terratorch                        TerraMindGeneration in float32
    terratorch_bf16                   the same under bfloat16 autocast
    float32, bfloat16, int16, int8    our generator, after ``use_precision``; integers on a CPU
    compiled_PRECISION                the same after ``compile()``
    ..._one                           the same at one evaluation, always
    direct                            our generator in float32 without Winograd's convolutions

Importing the whole of terratorch sets torch's precision of float32 products to "medium", which Axion-Sat, importing
parts of it, does not; each runs as it is used: terratorch's ways in "medium", ours in torch's default, "highest".

Operations are those of the direct convolutions for all ways, so Winograd's share of the peak may pass 100 %.

In: options. Out: a table, and JSON with --json.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axs_lib.terramind.build import TARGET_KEY, build_v1
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.noise import gaussian_field, sample_seeds
from axs_lib.terramind.sampler import Schedule, build_schedule
from axs_lib.terramind.weights import load_strict, other_modalities
from benchmarks.measure import (
    alternate,
    gflop,
    host_memory_mb,
    machine,
    median_milliseconds,
    peak_gflops,
    profile_table,
    redraw_zero_parameters,
    speed_ups,
    table,
    write_json,
)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int16": torch.int16,
    "int8": torch.int8,
}
BUILDS = (*DTYPES, *(f"compiled_{name}" for name in DTYPES), "direct")
ONE = "_one"
WAYS = ("terratorch", "terratorch_bf16", *BUILDS, *(build + ONE for build in BUILDS))
DEFAULT_WAYS = (
    "terratorch",
    "terratorch_bf16",
    "float32",
    "direct",
    "bfloat16",
    "float32_one",
    "bfloat16_one",
)
PEAKS = ("float32", "bfloat16")  # precisions of the matrix product whose speed is taken for the peak
REFERENCE_SIDE = 128  # at which the output is scaled

Reference = Callable[[Tensor, Tensor, int], Tensor]  # (s1, optical, timesteps) -> image, all in z-units
Generators = dict[str, TerraMindGenerator]


@dataclass(frozen=True)
class Case:
    """One line of the benchmark."""

    variant: str
    side: int
    timesteps: int
    batch: int
    device: str

    def inputs(self, bands: int = 4) -> tuple[Tensor, Tensor]:
        """s1 (B, 2, H, W) and optical (B, 4, H, W) in z-units, smooth."""
        random = torch.Generator().manual_seed(self.side + self.batch)
        coarse = 3.0 * torch.randn(self.batch, 2 + bands, 12, 12, generator=random)
        smooth = torch.nn.functional.interpolate(coarse, size=(self.side, self.side), mode="bilinear")
        return smooth[:, :2].to(self.device), smooth[:, 2:].to(self.device)


def build_reference(variant: str) -> Any:
    """terratorch's generation with random weights, nothing zero, argmax tokens, output of order 1."""
    import terratorch.models.backbones.terramind  # noqa: F401  (registers the models)
    from terratorch.registry import FULL_MODEL_REGISTRY

    torch.set_float32_matmul_precision("highest")  # which the import lowered
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = FULL_MODEL_REGISTRY.build(
            f"{variant}_generate",
            modalities=["S1GRD", "S2L2A"],
            output_modalities=["S2L2A"],
            pretrained=False,
        )
    model.temps = 0.0
    redraw_zero_parameters(model)
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


def run_reference(
    model: Any, lift: Callable[[Tensor], Tensor], s1: Tensor, optical: Tensor, timesteps: int
) -> Tensor:
    """terratorch's image (B, 12, H, W), z-units; the caller's random state is kept."""
    with torch.random.fork_rng():
        out = model({"S1GRD": s1.clone(), "S2L2A": lift(optical)}, standardize=False, timesteps=timesteps)
    return out["S2L2A"]


def run_ours(
    generator: TerraMindGenerator, s1: Tensor, optical: Tensor, timesteps: int, tokens: str = "argmax"
) -> Tensor:
    """Our image (B, C, H, W), z-units."""
    size = (s1.shape[-2], s1.shape[-1])
    codes = generator.codes(generator.logits({"s1": s1, "optical": optical}), size, tokens=tokens)
    noise = gaussian_field(sample_seeds(0, len(s1), device=s1.device), (generator.image_channels, *size))
    return generator.decode(codes, noise, build_schedule("ddim", timesteps))


def difference_from_terratorch(model: Any, generator: TerraMindGenerator, case: Case) -> dict[str, float]:
    """Largest difference in z-units of one decoding of the same tokens from the same noise, and the output's spread."""
    from terratorch.models.backbones.terramind.tokenizer.scheduling import DDIMScheduler

    s1, optical = case.inputs()
    tokenizer = model.tokenizer[TARGET_KEY]
    original, seen = type(tokenizer).decode_tokens, []

    def decode_tokens(tokens: Tensor, **options: Any) -> Tensor:
        seen.append(tokens)
        return original(tokenizer, tokens, generator=torch.Generator().manual_seed(3), **options)

    tokenizer.decode_tokens = decode_tokens
    try:
        expected = run_reference(model, generator.optical.lift, s1, optical, case.timesteps)
    finally:
        del tokenizer.decode_tokens
    scheduler = DDIMScheduler(
        thresholding=True,
        clip_sample=True,
        beta_schedule="linear",
        prediction_type="sample",
        zero_terminal_snr=True,
    )
    scheduler.set_timesteps(case.timesteps, mode="trailing")
    schedule = Schedule(tuple(scheduler.timesteps.tolist()), scheduler, starts_from_noise=True)
    height, width = case.side // 16, case.side // 16
    codes = generator.codebook[seen[0].flatten(1)].transpose(1, 2).unflatten(2, (height, width)).float()
    shape = (case.batch, generator.image_channels, case.side, case.side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(case.device)
    actual = generator.decode(codes, noise, schedule)
    tokens = generator.logits({"s1": s1, "optical": optical}).argmax(-1)
    return {
        "largest_difference": float((actual - expected).abs().max()),
        "equal_tokens_%": 100 * float((tokens == seen[0].flatten(1)).float().mean()),
        "output_std": float(expected.std()),
    }


def difference_of_precision(generators: Generators, case: Case) -> dict[str, float]:
    """RMS and largest difference of lower precision from our float32, end to end with soft tokens, z-units.

    Also how many of the most likely tokens stay: with random weights no token is likely, so that soft tokens hardly
    differ.
    """
    s1, optical = case.inputs()
    inputs = {"s1": s1, "optical": optical}
    exact = run_ours(generators["float32"], s1, optical, case.timesteps, "soft")
    tokens = generators["float32"].logits(inputs).argmax(-1)
    figures = {}
    for name in generators.keys() - {"float32", "direct"}:
        error = (run_ours(generators[name], s1, optical, case.timesteps, "soft") - exact).abs()
        equal = (generators[name].logits(inputs).argmax(-1) == tokens).float().mean()
        figures |= {
            f"{name}_rms": float(error.square().mean().sqrt()),
            f"{name}_largest": float(error.max()),
            f"{name}_equal_tokens_%": 100 * float(equal),
        }
    return figures


def generators_of(exact: TerraMindGenerator, ways: list[str]) -> Generators:
    """A generator for each build that our ways need, float32's always."""
    generators = {"float32": exact}
    for build in dict.fromkeys(way.removesuffix(ONE) for way in ways):
        if build in generators or build not in BUILDS:
            continue
        generators[build] = copy.deepcopy(exact)
        precision = build.removeprefix("compiled_")
        if precision in DTYPES and precision != "float32":
            generators[build].use_precision(DTYPES[precision])
        if precision != build:
            generators[build].compile()
        if build == "direct":
            generators[build].use_winograd(False)
    return generators


@torch.no_grad()
def measure_case(
    case: Case,
    generators: Generators,
    reference: Reference | None,
    ways: list[str],
    rounds: int,
    peaks: dict[str, float],
) -> dict[str, Any]:
    """The figures of one case; the first way is the baseline of the ratios."""
    s1, optical = case.inputs()
    calls: dict[str, Callable[[], object]] = {}
    for way in ways:
        build = way.removesuffix(ONE)
        if build in generators:
            timesteps = case.timesteps if way == build else 1
            calls[way] = functools.partial(run_ours, generators[build], s1, optical, timesteps)
        elif reference is not None:
            calls[way] = functools.partial(reference, s1, optical, case.timesteps)
            if way.endswith("bf16"):
                calls[way] = functools.partial(_autocast, case.device, calls[way])
            calls[way] = functools.partial(_as_terratorch_leaves_it, calls[way])
    times = alternate(calls, rounds, case.device)
    milliseconds = median_milliseconds(times, case.batch)
    plain = copy.deepcopy(generators["float32"])
    plain.use_winograd(False)
    work = gflop(functools.partial(run_ours, plain, s1, optical, case.timesteps)) / case.batch
    share = {
        way: 100
        * work
        / (value * 1e-3)
        / peaks["bfloat16" if way.endswith(("bfloat16", "bf16")) else "float32"]
        for way, value in milliseconds.items()
        if not way.endswith(("int8", "int16", ONE))
    }
    record: dict[str, Any] = {
        **case.__dict__,
        "rounds": rounds,
        "ms_a_tile": milliseconds,
        "speed_up": speed_ups(times, ways[0]),
        "gflop_a_tile": work,
        "share_of_peak_%": share,
        "memory_mb": host_memory_mb() if case.device == "cpu" else _cuda_memory(calls),
    }
    return record


def _as_terratorch_leaves_it(call: Callable[[], object]) -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        call()
    finally:
        torch.set_float32_matmul_precision("highest")


def _autocast(device: str, call: Callable[[], object]) -> None:
    with torch.autocast(device, torch.bfloat16):
        call()


def _cuda_memory(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Peak of what each call allocates beyond what was there (the weights), in MB."""
    peaks = {}
    for name, call in calls.items():
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        peaks[name] = (torch.cuda.max_memory_allocated() - start) / 2**20
    return peaks


def rows_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a way, ratios first."""
    return [
        {
            **{key: record[key] for key in ("variant", "side", "timesteps", "batch", "device")},
            "way": way,
            "times terratorch": record["speed_up"][way],
            "ms a tile": record["ms_a_tile"][way],
            "% of peak": record["share_of_peak_%"].get(way),
        }
        for record in records
        for way in record["ms_a_tile"]
    ]


def precision_rows_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a precision: how far from float32."""
    return [
        {
            **{key: record[key] for key in ("variant", "side", "timesteps", "batch")},
            "build": build,
            **{figure: record[f"{build}_{figure}"] for figure in ("rms", "largest", "equal_tokens_%")},
        }
        for record in records
        for build in BUILDS
        if f"{build}_rms" in record
    ]


PRECISION_COLUMNS = ("variant", "side", "timesteps", "batch", "build", "rms", "largest", "equal_tokens_%")
COLUMNS = (
    "variant",
    "device",
    "side",
    "timesteps",
    "batch",
    "way",
    "times terratorch",
    "ms a tile",
    "% of peak",
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", default=["tiny", "base"], help="tiny, small, base, large")
    parser.add_argument("--sides", nargs="+", type=int, default=[128, 224])
    parser.add_argument("--timesteps", nargs="+", type=int, default=[1, 10], help="divisors of 1000")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(DEFAULT_WAYS), help="the first is the baseline"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--quick", action="store_true", help="tiny, 128 px, 1 time step, batch 1, 3 rounds")
    parser.add_argument("--profile", action="store_true", help="also print where float32 spends its time")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        quick = {"variants": ["tiny"], "sides": [128], "timesteps": [1], "batches": [1], "rounds": 3}
        vars(arguments).update(quick)
    return arguments


@torch.no_grad()
def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    peaks = {name: peak_gflops(device, DTYPES[name]) for name in PEAKS}
    records = []
    for name in arguments.variants:
        variant = f"terramind_v1_{name}"
        model = build_reference(variant)
        exact = ours_of(model, variant).to(device)
        model = model.to(device)
        reference = functools.partial(run_reference, model, exact.optical.lift)
        generators = generators_of(exact, arguments.ways)
        for side in arguments.sides:
            for timesteps in arguments.timesteps:
                for batch in arguments.batches:
                    case = Case(variant, side, timesteps, batch, device)
                    record = measure_case(
                        case, generators, reference, arguments.ways, arguments.rounds, peaks
                    )
                    record |= difference_from_terratorch(model, exact, case)
                    record |= difference_of_precision(generators, case)
                    records.append(record)
                    print(table(rows_of([record]), COLUMNS), flush=True)
        if arguments.profile:
            case = Case(variant, arguments.sides[0], arguments.timesteps[0], arguments.batches[0], device)
            print(profile_table(functools.partial(run_ours, exact, *case.inputs(), case.timesteps)))
    print()
    print(table(rows_of(records), COLUMNS))
    accuracy = ("variant", "side", "timesteps", "batch", "output_std", "largest_difference", "equal_tokens_%")
    print(table(records, (*accuracy, "gflop_a_tile")))
    print(table(precision_rows_of(records), PRECISION_COLUMNS))
    figures = {"machine": machine() | {"threads": torch.get_num_threads()}, "peak_gflops": peaks}
    write_json(arguments.json, figures | {"cases": records})


if __name__ == "__main__":
    main()
