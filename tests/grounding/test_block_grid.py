"""Grids of blocks: constant offsets are taken out, and whatever else looks like a grid is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from axs_lib.grounding.block_grid import block_grid

RANDOM = torch.Generator()
ONES, SAR = torch.ones(1, 1, 120, 120), torch.randn(1, 2, 120, 120, generator=RANDOM)


def ground(seed: int = 0, side: int = 120) -> Tensor:
    noise = torch.randn(1, 4, side, side, generator=RANDOM.manual_seed(seed))
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)).clamp_min(1 / side)
    return 0.02 * torch.fft.irfft2(torch.fft.rfft2(noise) * frequency**-1.5, s=(side, side))


def blocks(period: int, start: int = 0) -> Tensor:
    index = (torch.arange(120) + start) // period
    return 0.1 * torch.randn(1, 4, 40, 40, generator=RANDOM.manual_seed(9))[:, :, index][..., index]


@pytest.mark.parametrize(("period", "start"), [(4, 1), (8, 0), (10, 1), (10, 9), (20, 7)])
def test_offsets_of_blocks_are_levelled(period: int, start: int) -> None:
    before = blocks(period, start)
    change, statistics = block_grid(ground() + before, ONES, SAR)
    assert (before + change).square().mean() < 0.5 * before.square().mean() and statistics[0, 0] > 0.95
    assert not block_grid(ground() + before, ONES, (ground(3) + before)[:, 2:])[0].any()  # fields that the SAR shows
    line = (..., slice(1), slice(None))  # of start 9 beyond the last seam: its jump is unknown, so nor is it changed
    assert (before + change)[line].square().mean() < 1.01 * before[line].square().mean()


@pytest.mark.parametrize("bands", [
    *(ground(side=side) for side in (8, 16, 40, 256)), torch.full((1, 4, 64, 64), 3.0), (10 * ground()).round() / 10,
    *(ground() + blocks(period)[:, :, :1] for period in (4, 10, 16)),  # strips of fields
    ground() + 0.5 * ((torch.arange(120) % 10 == 3) | (torch.arange(120) % 10 == 3)[:, None]),  # roads
    *(F.interpolate(F.avg_pool2d(ground(), factor), size=(120, 120), mode=mode) + noise * SAR.repeat(1, 2, 1, 1)
      for factor in (4, 8, 12) for mode in ("nearest", "bicubic") for noise in (0.0, 0.01)),
])  # fmt: skip
def test_what_is_no_offset_is_left_alone(bands: Tensor) -> None:
    assert block_grid(bands, bands[:, :1] ** 0, 0 * bands[:, :2])[0].abs().max() < 1 / 1125  # 1 DN


def test_only_what_is_inside_of_the_tile_itself_is_read() -> None:
    bands, inside = torch.cat([ground(seed) + blocks(10) for seed in range(3)]), ONES.repeat(3, 1, 1, 1)
    inside[0], inside[1, :, 30:60] = 0.0, 0.0
    bands[2, 0, 50, 50] = torch.nan  # of a damaged network, which its own check tells
    together = block_grid(bands, inside, SAR.repeat(3, 1, 1, 1))
    alone = block_grid(bands[1:2].where(inside[1:2] > 0, 1e4), inside[1:2], SAR)
    assert not together[0][0].any() and together[0][1].any()
    assert all(torch.allclose(one, both[1:2], atol=1e-5) for one, both in zip(alone, together, strict=True))


@pytest.mark.parametrize(("scale", "dtype"), [(1e20, torch.float32), (1.0, torch.float64), (1.0, torch.bfloat16)])
def test_bands_alike_of_any_size_and_type_do_not_fail(scale: float, dtype: torch.dtype) -> None:
    bands = scale * (ground() + blocks(10))[:, :1].expand(-1, 4, -1, -1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(each.isfinite().all() for each in block_grid(bands, ONES, SAR))
