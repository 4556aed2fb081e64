"""How a tile reaches the network: nodata filled, padded to a square, and the start of a training pass."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from axs_lib.checks import check_count, check_number
from axs_lib.errors import InputError
from axs_lib.nodata import fill_nodata, pad_square
from axs_lib.terramind.adapters import Adapter
from axs_lib.terramind.generator import GeneratorLayout
from axs_lib.terramind.noise import gaussian_field, sample_seeds
from axs_lib.terramind.sampler import TRAIN_TIMESTEPS, add_noise

Output = TypeVar("Output")


def check_sampling(temperature: float, ensemble_size: int, batch_size: int) -> None:
    """An InputError for a temperature that is not above 0, or an ensemble or batch of less than one."""
    check_count("ensemble_size", ensemble_size)
    check_count("batch_size", batch_size)
    check_number("temperature", temperature, 1e-6, 1e6, "a number above 0 (tokens='argmax' for the limit)")


def network_side(layout: GeneratorLayout, height: int, width: int) -> int:
    """Side in pixels of the square the network is given for a tile."""
    longest = max(height, width, layout.min_side)
    return -(-longest // layout.multiple) * layout.multiple


def to_network(image: Tensor, valid: Tensor, side: int, adapter: Adapter, *, standardize: bool) -> Tensor:
    """A tile (B, C, side, side) in dB or DN: filled from its neighbours (else with the mean), reflected up to the side.

    The image (B, C, H, W) is in z-units where not ``standardize``, and counts where ``valid`` (B, 1, H, W).
    """
    physical = image if standardize else adapter.from_z(image)
    return pad_square(fill_nodata(physical, valid, fallback=adapter.mean), side)


def mean_and_spread(members: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the first axis of (M, ...); the deviation of one member is zero."""
    return members.mean(0), members.std(0) if len(members) > 1 else torch.zeros_like(members[0])


def unbatch(output: Output) -> Output:
    """The result of the only tile of a batch: every tensor of a dataclass without its first axis."""
    values = {field.name: getattr(output, field.name) for field in fields(output)}  # type: ignore[arg-type]
    return replace(output, **{k: v[0] for k, v in values.items() if isinstance(v, Tensor)})  # type: ignore[type-var]


def check_training_size(layout: GeneratorLayout, image: Tensor) -> tuple[int, int]:
    """Height and width of a training image; an InputError where it is larger than the network's tile."""
    height, width = image.shape[-2:]
    if max(height, width) > layout.max_side:
        raise InputError(f"tiles are {height}x{width} px; expected at most {layout.max_side} px a side: train on crops")
    return height, width


def training_start(clean: Tensor, *, training: bool, noised: bool = True) -> tuple[Tensor, Tensor]:
    """x_t (B, C, H, W) and t (B,) of the one denoiser evaluation of a differentiable pass, from the clean image.

    In ``training`` steps and noise are drawn from torch's global generator, as dropout is, half of the steps (without
    ``noised`` all) at the pure-noise end, where every inference starts. Else it is that end with the noise of seed 0.
    """
    batch, device = len(clean), clean.device
    t = torch.full((batch,), TRAIN_TIMESTEPS - 1, device=device)
    if training and noised:
        t = torch.randint(TRAIN_TIMESTEPS, (batch,), device=device)
        t[torch.rand(batch, device=device) < 0.5] = TRAIN_TIMESTEPS - 1
    if training:
        return add_noise(clean, torch.randn(clean.shape, device=device), t), t
    channels, height, width = clean.shape[1:]
    return add_noise(clean, gaussian_field(sample_seeds(0, batch, device=device), (channels, height, width)), t), t
