"""The noise field: Gaussian and Gumbel noise as a fixed hash of (seed, channel, row, column) in the scene.

So overlapping tiles start from the same noise, on any device. The hash is the 64-bit finaliser of SplitMix64 (Steele,
Lea & Flood 2014), applied once per coordinate; normal deviates come by Box-Muller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from axs_lib.checks import check_count, check_tensor
from axs_lib.errors import InputError

PIXEL_STREAM = 1  # the denoiser's starting noise
TOKEN_STREAM = 2  # Gumbel noise of sampled tokens

Seed = int | Sequence[int] | Tensor | torch.Generator | Sequence[torch.Generator]


# As the signed integers that torch.int64 holds.
_CONSTANTS = torch.tensor(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=torch.uint64, device="cpu"
)
_GOLDEN, _MIX_1, _MIX_2 = _CONSTANTS.view(torch.int64).tolist()


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (zero-filling) right shift of int64, which torch only offers as arithmetic."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = _shift_right(x, 30).bitwise_xor_(x).mul_(_MIX_1)
    x = _shift_right(x, 27).bitwise_xor_(x).mul_(_MIX_2)
    return _shift_right(x, 31).bitwise_xor_(x)


def _hash_field(seeds: Tensor, stream: int, shape: tuple[int, int, int], origins: Tensor | None) -> Tensor:
    """int64 hashes of shape (B, C, H, W)."""
    channels, height, width = shape
    origins = seeds.new_zeros(len(seeds), 2) if origins is None else origins
    key = _mix(_mix(seeds + _GOLDEN) + torch.full_like(seeds, stream) * _GOLDEN)  # (B,)
    steps = torch.arange(1, max(shape) + 1, device=seeds.device)
    rows = origins[:, :1] + steps[None, :height]  # (B, H)
    cols = origins[:, 1:] + steps[None, :width]  # (B, W)
    by_channel = _mix(key[:, None] + steps[None, :channels] * _GOLDEN)  # (B, C)
    by_row = _mix(by_channel[:, :, None] + rows[:, None, :] * _GOLDEN)  # (B, C, H)
    return _mix(by_row[..., None] + cols[:, None, None, :] * _GOLDEN)


def gaussian_field(seeds: Tensor, shape: tuple[int, int, int], *, origins: Tensor | None = None) -> Tensor:
    """Standard normal noise (B, *shape), float32, by seeds (B,) int64 and scene ``origins`` (B, 2), by default 0."""
    h = _hash_field(seeds, PIXEL_STREAM, shape, origins)
    radius = ((_shift_right(h, 41) + 0.5) * 2.0**-23).log_().mul_(-2.0).sqrt_()
    angle = (h & 0xFFFFFF).to(torch.float32).mul_(2.0 * math.pi * 2.0**-24)
    return radius.mul_(angle.cos_())


def gumbel_field(seeds: Tensor, shape: tuple[int, int, int], *, origins: Tensor | None = None) -> Tensor:
    """Standard Gumbel noise of shape (B, C, H, W): adding it to logits and taking the argmax samples a category."""
    h = _hash_field(seeds, TOKEN_STREAM, shape, origins)
    uniform = (_shift_right(h, 41) + 0.5) * 2.0**-23
    return uniform.log_().neg_().log_().neg_()


def scene_origins(origin: Tensor | Sequence[int], batch: int, device: torch.device) -> Tensor:
    """Scene (row, column) of every sample's upper left pixel, (B, 2) int64, from one pair for all or one a sample."""
    try:
        origins = torch.as_tensor(origin, device=device)
        if origins.shape[-1:] != (2,) or origins.is_floating_point():
            raise ValueError
        return origins.long().expand(batch, 2)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(
            f"origin is {origin!r}; expected the scene's (row, column) of the upper left pixel, one pair of integers"
            f" for all samples or ({batch}, 2)"
        ) from None


def sample_seeds(seed: Seed, batch: int, *, device: torch.device | str = "cpu") -> Tensor:
    """One int64 seed a sample, shape (B,); anything else, or another number than the batch's, is an InputError.

    One integer serves every sample alike, which keeps a tile's result independent of its place in the batch. From a
    ``torch.Generator`` (or one a sample) the seeds are drawn, and only it advances.
    """
    value: Any = check_tensor("seed", seed) if isinstance(seed, Tensor) else seed
    value = value.tolist() if hasattr(value, "tolist") else value  # of a tensor, or of NumPy
    if isinstance(value, torch.Generator):
        seeds = _drawn_seeds(value, batch)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        seeds = torch.cat([torch.zeros(0, dtype=torch.int64), *map(_one_seed, value)])
    else:
        seeds = _one_seed(value).expand(batch)
    if len(seeds) != batch:
        raise InputError(f"got {len(seeds)} seeds (or generators) for a batch of {batch}; pass one, or one a sample")
    return seeds.to(device)


def _one_seed(value: object) -> Tensor:
    if isinstance(value, torch.Generator):
        return _drawn_seeds(value, 1)
    return torch.tensor([check_count("seed", value, -(2**63), 2**63 - 1)])


def _drawn_seeds(generator: torch.Generator, count: int) -> Tensor:
    return torch.randint(2**62, (count,), generator=generator, device=generator.device, dtype=torch.int64).cpu()


def member_seeds(seeds: Tensor, member: int) -> Tensor:
    """Seeds of ensemble member ``member`` (0 keeps the seeds, so one member equals no ensemble)."""
    return seeds if member == 0 else _mix(seeds ^ _mix(torch.full_like(seeds, member) * _GOLDEN))


def ensemble_seeds(seeds: Tensor, ensemble_size: int) -> Tensor:
    """Seeds (M * B,) of all members of an ensemble, those of the first member first."""
    return torch.cat([member_seeds(seeds, member) for member in range(ensemble_size)])


def stage_seeds(seeds: Tensor, stage: int) -> Tensor:
    """Seeds of a stage's own noise, so that no stage starts from the noise that drew its input."""
    return _mix(_mix(seeds + torch.full_like(seeds, stage) * _MIX_1))
