"""Training examples of nano's own trainings from clear pairs: what opt_v2 may look like, and what the answer is.

In goes a batch of crops, SAR and the clear truth; out come the estimate to be grounded, the trust map, and the truth
after whatever happened to the place. There are four kinds: a degraded estimate (``axs_lib.data.degrade``), one with
little or other damage, one that misses a flood which the SAR shows (``axs_lib.data.flood``; the truth is then water),
and clear pixels around clouds (``axs_lib.data.clouds``). Every draw comes from the given generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from axs_lib.bands import VALID_DN
from axs_lib.checks import Trust
from axs_lib.data.clouds import cloud_trust
from axs_lib.data.degrade import degrade, degrade_lightly
from axs_lib.data.flood import simulate_flood
from axs_lib.nodata import fill_nodata
from axs_lib.train.head import draw_gain, water_colour

Kind = Literal["degraded", "light", "flood", "gaps"]
SAR_JITTER_DB = 0.5  # standard deviation of a calibration error, each band and crop


@dataclass(frozen=True)
class Examples:
    """One kind of examples."""

    s1: Tensor  # (B, 2, H, W) in dB
    estimate: Tensor  # opt_v2 (B, 4, H, W) in DN, smooth where unknown, no NaN
    trust: Tensor  # (B, 1, H, W), values of ``axs_lib.checks.Trust``
    truth: Tensor  # (B, 4, H, W) in DN


def augment(s1: Tensor, truth: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """SAR calibration error and illumination, drawn for each crop."""
    s1 = s1 + torch.randn(len(s1), 2, 1, 1, generator=random) * SAR_JITTER_DB
    return s1, (truth * draw_gain(len(s1), random)).clamp(*VALID_DN)


def make_examples(kind: Kind, s1: Tensor, truth: Tensor, random: torch.Generator) -> Examples:
    """Examples of one kind, from s1 (B, 2, H, W) in dB and truth (B, 4, H, W) in DN."""
    if kind == "gaps":
        trust = cloud_trust(len(truth), *truth.shape[-2:], generator=random)
        filled = fill_nodata(truth, trust > 0, fallback=truth.mean((0, 2, 3))[:, None, None])
        return Examples(s1, filled, trust, truth)
    everywhere = torch.full_like(truth[:, :1], Trust.ESTIMATE)
    if kind == "light":
        return Examples(s1, degrade_lightly(truth, generator=random), everywhere, truth)
    degraded = degrade(truth, generator=random, preset="train")
    if kind == "flood":
        s1, water = simulate_flood(s1, generator=random)
        truth = torch.where(water, water_colour(truth, random), truth)
    return Examples(s1, degraded, everywhere, truth)
