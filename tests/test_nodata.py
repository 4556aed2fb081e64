"""Holes fill from their neighbours, padding reflects, and nothing valid changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axs_lib.nodata import fill_nodata, pad_square, spread, valid_pixels


@given(height=st.integers(8, 70), width=st.integers(8, 70), share=st.floats(0.0, 0.95), seed=st.integers(0, 99))
def test_filling_is_finite_within_range_and_leaves_valid_pixels(
    height: int, width: int, share: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, height, width, generator=random) * 10 + 5
    image[:, :, torch.rand(height, width, generator=random) < share] = torch.nan
    image[:, :, 0, 0] = 7.0
    valid = valid_pixels(image)
    filled = fill_nodata(image, valid)
    assert torch.isfinite(filled).all()
    assert torch.equal(filled[valid.expand_as(filled)], image[valid.expand_as(image)])
    assert filled.min() >= 5.0 - 1e-3 and filled.max() <= 15.0 + 1e-3


def test_a_hole_takes_its_surroundings() -> None:
    image = torch.cat([torch.full((1, 1, 32, 16), 10.0), torch.full((1, 1, 32, 16), 20.0)], dim=3)
    image[..., 10:20, 2:8] = torch.nan
    image[..., 10:20, 24:30] = torch.nan
    filled = fill_nodata(image, valid_pixels(image))
    assert (filled[..., 10:20, 2:8] - 10.0).abs().max() < 1.0
    assert (filled[..., 10:20, 24:30] - 20.0).abs().max() < 1.0


def test_a_slope_goes_on_through_a_hole() -> None:
    slope = torch.arange(48.0).expand(1, 1, 48, 48)
    holed = slope.clone()
    holed[..., 8:40, 9:37] = torch.nan
    alone, relaxed = ((fill_nodata(holed, valid_pixels(holed), steps=n) - slope).square().mean() for n in (0, 5))
    assert relaxed < 0.1 * alone
    assert torch.equal(fill_nodata(holed, valid_pixels(holed), steps=5), fill_nodata(holed, valid_pixels(holed)))


def test_a_pixel_is_valid_only_where_every_channel_of_every_image_is() -> None:
    a, b = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)
    a[0, 1, 0, 0] = torch.nan
    b[0, 2, 3, 3] = torch.inf
    valid = valid_pixels(a, b)
    assert valid.sum() == 14 and not valid[0, 0, 0, 0] and not valid[0, 0, 3, 3]


def test_a_tile_without_any_valid_pixel_takes_the_fallback() -> None:
    image = torch.full((2, 1, 8, 8), torch.nan)
    image[1] = 4.0
    filled = fill_nodata(image, valid_pixels(image), fallback=torch.full((1, 1, 1, 1), -9.0))
    assert (filled[0] == -9.0).all() and (filled[1] == 4.0).all()


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (63, 64), (64, 64)])
def test_padding_reflects_in_steps(size: tuple[int, int]) -> None:
    """One reflection of 8 pixels reaches only 15."""
    image = torch.rand(1, 2, *size)
    padded = pad_square(image, 64)
    assert padded.shape == (1, 2, 64, 64)
    assert torch.equal(padded[..., : size[0], : size[1]], image)
    if size[0] < 64:
        assert torch.equal(padded[..., size[0], : size[1]], image[..., size[0] - 2, :])


@pytest.mark.parametrize(("radius", "height", "width"), [(0, 5, 9), (1, 1, 9), (3, 16, 8), (9, 4, 6)])
def test_values_spread_in_squares(radius: int, height: int, width: int) -> None:
    image = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(radius))
    expected = torch.empty_like(image)
    for row in range(height):
        for column in range(width):
            around = image[..., max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1]
            expected[..., row, column] = around.amax((2, 3))
    assert torch.equal(spread(image, radius), expected)
