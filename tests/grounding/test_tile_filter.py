"""The tile's filter: what it is predicted from, and what the packaged one does to errors of known kinds."""

from __future__ import annotations

import math

import pytest
import torch

from axs_lib.data.estimates import make_estimate
from axs_lib.data.samples import load_sample
from axs_lib.grounding.block_grid import STATISTICS as GRID_STATISTICS
from axs_lib.grounding.tile_filter import TileFilter, difference_along, scales_of, spectral_statistics
from axs_lib.stage3_tm_ground import Stage3GroundingModel, build_stage3_model


@pytest.fixture(scope="module")
def nano() -> Stage3GroundingModel:
    return build_stage3_model(1, variant="nano")


def statistics(estimate: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
    s1 = torch.randn(len(estimate), 2, *estimate.shape[2:], generator=torch.Generator().manual_seed(1))
    guessed, size = torch.ones_like(estimate[:, :1]), size or (estimate.shape[2], estimate.shape[3])
    return TileFilter()(s1, estimate, guessed, torch.zeros(len(estimate), GRID_STATISTICS), size)[1]


@pytest.mark.parametrize("size", [(8, 12), (64, 128)])
def test_every_tile_has_finite_statistics_of_its_own(size: tuple[int, int]) -> None:
    """Of no batch mate, and not of what it is padded with."""
    tiles = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    tiles[1] = 0.5
    found = statistics(tiles)
    assert found.isfinite().all()
    assert torch.allclose(found[:1], statistics(tiles[:1]), atol=1e-4)
    padded = torch.nn.functional.pad(tiles, (0, 4, 0, 4), mode="reflect")
    assert (statistics(padded, size) - found)[:, :80].abs().max() < 0.1  # of the bands' power


@pytest.mark.parametrize("angle", [0.0, 0.6, 2.5])
def test_detail_is_filtered_along_the_direction_that_has_most(angle: float) -> None:
    """Across a blur in one direction; turned with the tile."""
    noise = torch.randn(1, 5, 96, 96, generator=torch.Generator().manual_seed(0))
    down, across = torch.fft.fftfreq(96)[:, None], torch.fft.rfftfreq(96)
    along = torch.sinc(4 * (down * math.sin(angle) + across * math.cos(angle)))
    tile = torch.fft.irfft2(torch.fft.rfft2(noise) * along, s=(96, 96))

    def axis_of(images: torch.Tensor) -> torch.Tensor:
        detail, _ = scales_of(images[:, :4])
        return spectral_statistics(images, detail, torch.ones_like(images[:, :1]))[1]

    axis = axis_of(tile)
    expected = -torch.tensor([math.cos(2 * angle), math.sin(2 * angle)])
    assert torch.nn.functional.cosine_similarity(axis[0], expected, dim=0) > 0.95 and axis.norm() > 0.8
    turned = tile.rot90(1, (2, 3))
    assert (axis_of(turned) + axis).norm() < 0.1
    assert torch.allclose(difference_along(turned, -axis), difference_along(tile, axis).rot90(1, (2, 3)), atol=1e-5)


@pytest.mark.parametrize(("kind", "side", "most"), [
    ("white_noise", 120, 0.65), ("gaussian_blur", 120, 0.8), ("one_way_blur", 120, 0.9), ("patch_offsets", 120, 0.5),
    ("haze", 120, 1.01), ("gaussian_blur", 16, 1.05),
])  # fmt: skip
def test_the_packaged_head_repairs_what_it_knows(nano: Stage3GroundingModel, kind: str, side: int, most: float) -> None:
    sar, optical = load_sample("ireland_fields")
    s1, truth = (torch.from_numpy(image.batch)[..., :side, :side].repeat(6, 1, 1, 1) for image in (sar, optical))
    estimate = make_estimate(kind, truth, generator=torch.Generator().manual_seed(0), strength=0.8)
    before, after = (float((image - truth).square().mean()) for image in (estimate, nano.ground(s1, estimate).image))
    assert after < most * before


def test_a_straight_joint_is_not_taken_for_stripes(nano: Stage3GroundingModel) -> None:
    """Power along an axis is what stripes have; at the edge of a swath it is in one place only."""
    sar, optical = load_sample("ireland_fields")
    s1, truth = torch.from_numpy(sar.batch), torch.from_numpy(optical.batch).clone()
    truth[..., :72, :72] *= 0.6
    assert (nano.ground(s1, truth).image - truth).square().mean().sqrt() < 3.0
