"""The simulated Stage 2 estimate: deterministic, bounded, wrong in the documented ways."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axs_lib.data.degrade import PIXELS_PER_FWHM, blur, degrade, degrade_lightly
from axs_lib.errors import InputError


def scene(batch: int = 2, height: int = 64, width: int = 48, seed: int = 0) -> torch.Tensor:
    """Fields with sharp borders, each band at a level of its own."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 4, height // 8 + 1, width // 8 + 1, generator=generator)
    fields = coarse.repeat_interleave(8, -1).repeat_interleave(8, -2)[..., :height, :width]
    return 300 + fields * torch.tensor([600.0, 800.0, 1000.0, 3000.0])[:, None, None]


def lightly(truth: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return degrade_lightly(truth, generator=torch.Generator().manual_seed(seed))


def test_the_generator_alone_decides_and_every_sample_is_another() -> None:
    truth, state = scene(1).repeat(2, 1, 1, 1), torch.get_rng_state()
    copy = truth.clone()
    for preset in ("train", "test"):
        first = degrade(truth, seed=7, preset=preset)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(7)
        assert torch.equal(first, degrade(truth, generator=generator, preset=preset))  # type: ignore[arg-type]
        assert not torch.equal(first, degrade(truth, generator=generator, preset=preset))  # type: ignore[arg-type]
        assert not torch.equal(first[0], first[1])
    assert not torch.equal(degrade(truth), degrade(truth)), "without a seed a fresh one"
    assert torch.equal(lightly(truth), lightly(truth)) and not torch.equal(lightly(truth), lightly(truth, 1))
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(truth, copy)


@pytest.mark.parametrize("preset", ["train", "test"])
def test_error_is_of_the_documented_size(preset: str) -> None:
    truth = scene(24, 96, 96)
    error = (degrade(truth, seed=0, preset=preset) - truth) / 10_000  # type: ignore[arg-type]
    rmse = error.square().mean((1, 2, 3)).sqrt()
    assert 0.01 < rmse.median() < 0.05
    assert (rmse > 0.004).all()


@given(
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    level=st.sampled_from([0.0, 1.0, 800.0, 65_535.0, 70_000.0]),
    preset=st.sampled_from(["train", "test"]),
)
def test_any_size_and_level_stays_a_valid_image(height: int, width: int, level: float, preset: str) -> None:
    estimate = degrade(torch.full((4, height, width), level), seed=height * width, preset=preset)  # type: ignore[arg-type]
    assert estimate.shape == (4, height, width) and estimate.dtype == torch.float32
    assert torch.isfinite(estimate).all() and estimate.min() >= 1 and estimate.max() <= 65_535


def test_nodata_stays_nodata_and_neither_spreads_nor_darkens() -> None:
    truth = scene(8, 61, 47)
    truth[:, :, 10:20, 5:30] = torch.nan
    truth[0, 2, 40, 40] = torch.nan
    truth[1] = torch.nan
    for estimate in (degrade(truth, seed=0), lightly(truth)):
        assert torch.equal(estimate.isnan(), truth.isnan())
        assert estimate.nan_to_num(1).min() >= 1 and estimate.nan_to_num(1).max() <= 65_535
    half = torch.full((1, 4, 48, 48), 5000.0)
    half[..., :24] = torch.nan
    assert (degrade(half, seed=3)[..., 24:] - 5000).abs().max() < 2000


def test_blur_keeps_the_level_at_the_borders_and_has_its_width() -> None:
    flat = torch.full((2, 4, 40, 30), 1234.0)
    assert torch.allclose(blur(flat, torch.tensor([[1.3, 2.0], [0.5, 4.0]])), flat, rtol=1e-5)
    point = torch.zeros(1, 4, 41, 41)
    point[:, :, 20, 20] = 1.0
    sigma = 30 * PIXELS_PER_FWHM
    assert sigma == pytest.approx(30 / 2.3548 / 10, rel=1e-3)
    profile = blur(point, torch.tensor([[sigma, 2 * sigma]]))[0, 0]
    at = (torch.arange(41.0) - 20).square()
    assert float((profile.sum(1) * at).sum().sqrt()) == pytest.approx(sigma, rel=0.01)
    assert float((profile.sum(0) * at).sum().sqrt()) == pytest.approx(2 * sigma, rel=0.01)


def test_wrong_arguments_are_named() -> None:
    for shape in [(3, 16, 16), (1, 2, 16, 16), (16, 16), (0, 4, 16, 16), (4, 0, 16)]:
        with pytest.raises(InputError, match="shape"):
            degrade(torch.zeros(shape), seed=0)
    with pytest.raises(InputError, match="expected"):
        lightly(scene()[:, :3])
    with pytest.raises(InputError, match="'easy'"):
        degrade(scene(), seed=0, preset="easy")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="both"):
        degrade(scene(), seed=0, generator=torch.Generator())


def test_light_damage_reaches_from_none_to_noise_coarse_pixels_and_blur() -> None:
    truth = scene(batch=1).expand(200, -1, -1, -1)
    estimates = lightly(truth)
    error = (estimates - truth).square().mean((1, 2, 3)).sqrt()
    untouched = [torch.equal(a, b) for a, b in zip(estimates, truth, strict=True)]
    assert 0.05 < sum(untouched) / len(untouched) < 0.25
    assert error.max() > 100 and error.unique().numel() > 150
    heavy = (degrade(truth, seed=0) - truth).square().mean((1, 2, 3)).sqrt()
    assert error.median() < 0.7 * heavy.median()
    # Neighbours in whole blocks of equal pixels; neighbours that differ more than in the truth's flat fields.
    flat = (estimates[..., 1::2] - estimates[..., ::2]).abs().amax((1, 2, 3))
    assert (flat == 0).sum() > sum(untouched)
    steps = (estimates[..., 1:] - estimates[..., :-1]).abs().median(-1).values.mean((1, 2))
    assert (steps > 10).float().mean() > 0.2
