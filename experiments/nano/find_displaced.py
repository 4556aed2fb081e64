"""Whether the SAR shows where the ground of an estimate is displaced: a U-Net that looks for it, and its control.

Usage: python -m experiments.nano.find_displaced DATA --exclude GROUP ... --groups GROUP ... [--steps N] [--swapped]

In: pairs of quality ok; trained on all groups but ``--exclude`` and ``--groups``, looked at on ``--groups``. Estimates
are the preset's: patches displaced or copied, then blur, gain and texture. With ``--swapped`` each estimate lies beside
the SAR of another pair, so that only what the estimate gives away of itself can be found. Out: every 1000 steps the
area under the ROC curve, by pixels and weighed by the squared error of the displacement. One thread.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from axs_lib.bands import OPTICAL_MEAN, OPTICAL_STD, sar_stats
from axs_lib.blur import gaussian_blur
from axs_lib.checks import Trust
from axs_lib.data.degrade import (
    PIXELS_PER_FWHM,
    PRESETS,
    Degradation,
    Draw,
    blur,
    displace_patches,
    gain_and_bias,
    texture,
)
from axs_lib.data.pairs import list_pairs
from axs_lib.grounding.guided import guided_difference
from axs_lib.grounding.unet import UNet, fine_detail
from axs_lib.terramind.adapters import Adapter
from experiments.nano.crops import Crops

DISPLACED = 0.03  # root mean square of the bands, in DN / 1000, from which on a pixel is displaced
WIDE = replace(
    PRESETS["train"], patches=(1, 4), patch_shift=(20, 80), patch_radius=(60, 240), resolution=(30, 60)
)  # what is trained on
SAR, OPTICAL = Adapter(*sar_stats("S1GRD")), Adapter(OPTICAL_MEAN, OPTICAL_STD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--exclude", nargs="*", default=[])
    parser.add_argument("--groups", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--swapped", action="store_true", help="each estimate beside the SAR of another pair")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    records = list_pairs(arguments.data, quality="ok")
    left_out = {*arguments.exclude, *arguments.groups}
    crops = Crops([r for r in records if r.group not in left_out], (64, 96, 96), 6 * 96 * 96, seed=0)
    held_out = Crops([r for r in records if r.group in arguments.groups], (64,), 64 * 64, seed=0).tiles
    network = UNet(2 + 4 + 8, 1, half_channels=4 + 1)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=arguments.steps)
    for step in range(arguments.steps):
        batch, random = crops.batch(step), torch.Generator().manual_seed(step)
        s1 = batch["s1"].roll(1, 0) if arguments.swapped else batch["s1"]
        estimate, squared = displaced_estimate(batch["truth"], WIDE, random)
        displaced = (squared > DISPLACED**2).float()
        weight = 1.0 + (squared / squared.mean().clamp_min(1e-6)).clamp_max(10.0) * displaced
        logits = network(*inputs(s1, estimate))
        loss = (F.binary_cross_entropy_with_logits(logits, displaced, reduction="none") * weight).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if (step + 1) % 1000 == 0:
            report(network, held_out, step + 1, arguments.swapped)


def displaced_estimate(truth: Tensor, ranges: Degradation, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """An estimate of (B, 4, H, W) in DN, and the squared displacement error (B, 1, H, W) in (DN / 1000) squared."""
    draw = Draw(random, len(truth), truth.device)
    moved = displace_patches(truth, ranges, draw)
    squared = gaussian_blur(((moved - truth) / 1000.0).square().mean(1, keepdim=True), 1.5)
    estimate = gain_and_bias(blur(moved, draw.uniform(*ranges.resolution, 2) * PIXELS_PER_FWHM), ranges, draw)
    return estimate + texture(truth.shape[-2:], ranges, draw), squared


def inputs(s1: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """What the U-Net is given, at full resolution and at half of it."""
    sar, image = SAR.to_z(s1), OPTICAL.to_z(estimate)
    guided, explained = guided_difference(sar, image, torch.full_like(image[:, :1], Trust.ESTIMATE))
    return torch.cat([sar, image, *fine_detail(image)], dim=1), torch.cat([3.0 * guided, explained], dim=1)


@torch.no_grad()
def report(network: UNet, tiles: list[tuple[Tensor, Tensor]], step: int, swapped: bool) -> None:
    scores, errors = [], []
    for number, (s1, truth) in enumerate(tiles):
        height, width = (side // 16 * 16 for side in truth.shape[-2:])
        if swapped:
            s1 = tiles[(number + 11) % len(tiles)][0]
        s1 = F.interpolate(s1[None], (height, width), mode="bilinear") if swapped else s1[None, :, :height, :width]
        random = torch.Generator().manual_seed(number)
        estimate, squared = displaced_estimate(truth[None, :, :height, :width], PRESETS["test"], random)
        scores.append(network(*inputs(s1, estimate)).flatten())
        errors.append(squared.flatten())
    error = torch.cat(errors)[torch.cat(scores).argsort(descending=True)]
    displaced = (error > DISPLACED**2).float()
    false = (1.0 - displaced).cumsum(0) / (1.0 - displaced).sum()
    areas = [float(torch.trapezoid(found.cumsum(0) / found.sum(), false)) for found in (displaced, displaced * error)]
    print(f"step {step}: area under the curve {areas[0]:.3f}, weighed by error {areas[1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
