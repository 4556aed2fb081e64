"""Fit the tile's filter of a grounding head by itself.

Usage: python -m experiments.nano.tile_filter --config YAML --data DIR --start HEAD --out FILE [--examples N]
    [--steps N]

In: a configuration of `axs train head`, by which the examples are drawn (estimates, and what Stages 1 and 2 make of SAR
alone), and the head to put the filter into. Of each example only the statistics and the products of the filter's terms
with each other and with the error are kept, from which the error of any filter follows. Out: the head with the filter,
which levels blocks, to start `axs train head --fit_filter false` from, without calibration. The defaults take 25
minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.bands import OPTICAL_STD
from axs_lib.cli.train import parse
from axs_lib.grounding.block_grid import block_grid
from axs_lib.grounding.corrector import GroundingCorrector
from axs_lib.grounding.tile_filter import TileFilter, activity, difference_along, scales_of, spectral_statistics
from axs_lib.terramind.weights import load_strict, read_metadata, read_state, sha256_file, write_state
from axs_lib.train.head import STAGE2, ExampleSampler, HeadBatch, HeadConfig, by_logarithm, load_tiles, model_of

# Weights in place of the configuration's.
KINDS = {"truth": 3.0, "roll_off": 6.0, "one_way_blur": 13.0, "block_transform": 5.0, "diffusion": 1.5}
MODES, PROPOSALS = (0.92, 0.0, 0.08, 0.0), (0.0, 0.0, 0.0, 1.0)
CROP_SIZES, BATCH_PIXELS = (64, 96, 128, 128), 128 * 128
SWAPPED = 0.05
JOINTS = 0.08  # share of the tiles of which a part is another's, or brighter
BRIGHTER = 0.25  # or darker (1 std of the logarithm)
BATCH, LEARNING_RATE, WEIGHT_DECAY = 512, 2e-3, 0.02
DROPOUT, JITTER = 0.1, 0.05  # of the standardised statistics: there are few places
HARM_WEIGHT, HARM_DN, LEAST_DN = 0.6, 6.0, 10.0
RIDGE = 0.003  # of the terms' own energies: large ones that cancel each other go wrong together
TYPICAL_DN = 63.0
FLOOR = 0.017  # z-units, while the U-Net is trained behind it; then 0.024, by the validation groups
SHARES_DN2 = torch.tensor(OPTICAL_STD).square() / 4  # of the bands' squared errors, from z-units

Example = tuple[Tensor, Tensor, Tensor, Tensor]  # statistics, terms by terms, terms by error, error squared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--config", "--data", "--start", "--out"):
        parser.add_argument(name, required=True)
    parser.add_argument("--examples", type=int, default=90_000)
    parser.add_argument("--steps", type=int, default=16_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(arguments.out).parent
    words = ["--config", arguments.config, "--data", arguments.data, "--out", str(folder)]
    config, _, _ = parse(HeadConfig, words, "tile_filter")
    model = model_of(config)
    load_strict(model.corrector, read_state(arguments.start), what=arguments.start)
    tiles = load_tiles(config, model.terramind_generator, folder / STAGE2, progress=True)
    drawn = replace(
        config,
        kinds={**config.kinds, **KINDS},
        modes=MODES,
        proposals=PROPOSALS,
        crop_sizes=CROP_SIZES,
        batch_pixels=BATCH_PIXELS,
        swapped=SWAPPED,
        blind=0.0,
    )
    examples = draw_examples(ExampleSampler(drawn, tiles), model.corrector, arguments.examples, config.seed)
    fit_filter(model.corrector.head.filter, examples, arguments.steps)
    model.corrector.head.filter_floor.fill_(FLOOR)
    model.corrector.head.gate_floor.zero_()
    model.corrector.head.levelled.fill_(1.0)
    header = dict(read_metadata(arguments.start), head_start=sha256_file(arguments.start))
    for stale in ("calibration", "calibration_groups", "head_config"):
        header.pop(stale, None)
    write_state(Path(arguments.out), model.corrector.state_dict(), header, half=True, overwrite=True)


@torch.no_grad()
def draw_examples(sampler: ExampleSampler, corrector: GroundingCorrector, count: int, seed: int) -> Example:
    """So many examples, drawn from ``seed``: (N, STATISTICS), (N, TERMS, TERMS), (N, TERMS, 4), (N, 4) in z-units."""
    random = torch.Generator().manual_seed(seed)
    kept, drawn = None, 0
    while drawn < count:
        parts = example(with_joints(sampler.batch(random), random), corrector)
        if kept is None:  # one large tensor each: between many small ones memory falls to pieces
            kept = tuple(part.new_empty(count, *part.shape[1:]) for part in parts)
        many = min(len(parts[0]), count - drawn)
        for whole, part in zip(kept, parts, strict=True):
            whole[drawn : drawn + many] = part[:many]
        drawn += many
    assert kept is not None
    statistics, terms, by_error, squared = kept
    return statistics, terms, by_error, squared


def with_joints(batch: HeadBatch, random: torch.Generator) -> HeadBatch:
    """The batch with straight joints in some of its tiles, as where swaths meet: another tile beyond, or the same."""
    count, height, width = len(batch.truth), *batch.truth.shape[2:]
    angle, place = torch.rand(2, count, 1, 1, 1, generator=random)
    angle = torch.where(torch.rand(angle.shape, generator=random) < 0.5, (4 * angle).round() / 4, angle) * 2 * math.pi
    down, across = torch.linspace(-0.5, 0.5, height)[:, None], torch.linspace(-0.5, 0.5, width)
    beyond = down * angle.sin() + across * angle.cos() > 0.8 * (place - 0.5)
    beyond = beyond & (torch.rand(angle.shape, generator=random) < JOINTS)
    gain = torch.exp(BRIGHTER * torch.randn(count, 4, 1, 1, generator=random))
    other = (torch.rand(angle.shape, generator=random) < 0.5) & (count > 1)

    def joined(image: Tensor, gain: Tensor | float) -> Tensor:
        return torch.where(beyond, torch.where(other, image.roll(1, 0), image * gain), image)

    images = {"s1": joined(batch.s1, 1.0), "estimate": joined(batch.estimate, gain), "truth": joined(batch.truth, gain)}
    return replace(batch, **images)


def example(batch: HeadBatch, corrector: GroundingCorrector) -> Example:
    """What is kept of a batch; every pixel of it is an estimate."""
    estimate = (batch.estimate - corrector.optical_mean) / corrector.optical_std
    weight = torch.ones_like(batch.trust)
    s1 = (batch.s1 - corrector.s1_mean) / corrector.s1_std
    level, grid = block_grid(estimate, weight, s1)
    estimate = estimate + level
    error = ((batch.truth - corrector.optical_mean) / corrector.optical_std - estimate).flatten(2)
    images = torch.cat([estimate, s1.mean(1, keepdim=True)], dim=1)
    detail, smooth = scales_of(estimate)
    statistics, orientation = spectral_statistics(images, detail, weight)
    terms = torch.cat(
        [detail, detail * activity(detail, weight), difference_along(smooth, orientation)], dim=1
    ).flatten(2)
    pixels = terms.shape[2]
    statistics = torch.cat([statistics, grid], dim=1)
    return statistics, terms @ terms.mT / pixels, terms @ error.mT / pixels, error.square().mean(2)


def fit_filter(tile_filter: TileFilter, examples: Example, steps: int) -> None:
    """Train the filter in place."""
    statistics = examples[0]
    tile_filter.mean.copy_(statistics.mean(0))
    tile_filter.scale.copy_(statistics.std(0) + 1e-3)
    tile_filter.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(tile_filter.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.05)
    torch.manual_seed(0)
    for step in range(steps):
        chosen = torch.randint(len(statistics), (BATCH,))
        chosen_statistics, terms, by_error, squared = (part[chosen] for part in examples)
        noisy = (chosen_statistics - tile_filter.mean) / tile_filter.scale
        noisy = noisy + JITTER * torch.randn(noisy.shape)
        coefficients = tile_filter.coefficients(F.dropout(noisy, DROPOUT))
        loss = loss_of(coefficients, terms, by_error, squared)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tile_filter.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % 1000 == 0:
            print(f"step {step}: loss {float(loss.detach()):.3f}", flush=True)


def loss_of(coefficients: Tensor, terms: Tensor, by_error: Tensor, squared: Tensor) -> Tensor:
    """The filtered tiles' squared error beside the root of what it was, and its ratio to that, harm counted twice."""
    left = squared - 2 * (coefficients * by_error.mT).sum(2) + ((coefficients @ terms) * coefficients).sum(2)
    left = left + RIDGE * (coefficients.square() @ terms.diagonal(dim1=1, dim2=2)[..., None])[..., 0]
    before = (squared * SHARES_DN2).sum(1)  # DN squared
    after = (left * SHARES_DN2).sum(1).clamp_min(0.0)
    balanced = after * ((before + LEAST_DN**2) * TYPICAL_DN**2).rsqrt()
    ratio = (after + HARM_DN**2) / (before + HARM_DN**2)
    return by_logarithm(balanced).mean() + HARM_WEIGHT * by_logarithm(ratio + (ratio - 1.0).relu()).mean()


if __name__ == "__main__":
    main()
