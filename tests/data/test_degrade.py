"""The simulated Stage 2 estimate: deterministic, bounded, wrong in the documented ways."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axs_lib.data import degrade as module
from axs_lib.data.degrade import PRESETS, degrade, degrade_lightly
from axs_lib.errors import InputError


def scene(batch: int = 2, height: int = 64, width: int = 48, seed: int = 0) -> torch.Tensor:
    """Fields with sharp borders, each band at a level of its own."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 4, height // 8 + 1, width // 8 + 1, generator=generator)
    fields = coarse.repeat_interleave(8, -1).repeat_interleave(8, -2)[..., :height, :width]
    return 300 + fields * torch.tensor([600.0, 800.0, 1000.0, 3000.0])[:, None, None]


@pytest.mark.parametrize("preset", ["train", "test"])
def test_same_seed_same_estimate_other_seed_another(preset: str) -> None:
    truth = scene()
    first = degrade(truth, seed=7, preset=preset)
    assert torch.equal(first, degrade(truth, seed=7, preset=preset))
    assert torch.equal(first, degrade(truth, generator=torch.Generator().manual_seed(7), preset=preset))
    assert not torch.equal(first, degrade(truth, seed=8, preset=preset))


def test_generator_advances_and_no_seed_means_a_fresh_one() -> None:
    truth = scene()
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(degrade(truth, generator=generator), degrade(truth, generator=generator))
    assert not torch.equal(degrade(truth), degrade(truth))


def test_global_rng_is_left_alone() -> None:
    before, python = torch.get_rng_state(), random.getstate()
    degrade(scene(), seed=1)
    degrade(scene())
    assert torch.equal(before, torch.get_rng_state())
    assert python == random.getstate()


def test_truth_is_not_changed() -> None:
    truth = scene()
    copy = truth.clone()
    degrade(truth, seed=0)
    assert torch.equal(truth, copy)


def test_samples_of_a_batch_differ() -> None:
    truth = scene(1).repeat(3, 1, 1, 1)
    first, second, third = degrade(truth, seed=0)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


@pytest.mark.parametrize("preset", ["train", "test"])
def test_error_is_of_the_documented_size(preset: str) -> None:
    truth = scene(24, 96, 96)
    error = (degrade(truth, seed=0, preset=preset) - truth) / 10_000
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
    estimate = degrade(torch.full((4, height, width), level), seed=height * width, preset=preset)
    assert estimate.shape == (4, height, width)
    assert estimate.dtype == torch.float32
    assert torch.isfinite(estimate).all()
    assert estimate.min() >= 1
    assert estimate.max() <= 65_535


def test_nodata_stays_nodata_and_does_not_spread() -> None:
    truth = scene(1)
    truth[0, :, 10:20, 5:30] = torch.nan
    truth[0, 2, 40, 40] = torch.nan
    estimate = degrade(truth, seed=0)
    assert torch.equal(torch.isnan(estimate), torch.isnan(truth))


def test_a_tile_of_nodata_stays_one() -> None:
    assert torch.isnan(degrade(torch.full((4, 16, 16), torch.nan), seed=0)).all()


def test_nodata_value_has_no_influence() -> None:
    """What is put under nodata comes from the valid pixels, so a bright neighbour keeps its level."""
    truth = torch.full((1, 4, 48, 48), 5000.0)
    truth[:, :, :, :24] = torch.nan
    estimate = degrade(truth, seed=3)
    assert (estimate[0, :, :, 24:] - 5000).abs().max() < 2000


def test_blur_keeps_the_level_at_the_borders_and_removes_detail() -> None:
    draw = module.Draw(torch.Generator().manual_seed(0), 2, torch.device("cpu"))
    flat = torch.full((2, 4, 40, 30), 1234.0)
    assert torch.allclose(module._blur(flat, PRESETS["train"], draw), flat, rtol=1e-5)
    checks = (torch.arange(40)[:, None] + torch.arange(30)) % 2 * 1000.0
    blurred = module._blur(checks.expand(2, 4, 40, 30), PRESETS["train"], draw)
    assert blurred[..., 8:-8, 8:-8].std() < 20


def test_blur_width_is_the_documented_resolution() -> None:
    point = torch.zeros(64, 4, 41, 41)
    point[:, :, 20, 20] = 1.0
    for preset, (low, high) in (("train", (30, 50)), ("test", (40, 60))):
        draw = module.Draw(torch.Generator().manual_seed(0), 64, point.device)
        spread = module._blur(point, PRESETS[preset], draw)[:, 0]
        at = torch.arange(41.0) - 20
        sigma = (spread.sum(2) * at.square()).sum(1).sqrt() * 10 * module.FWHM_PER_SIGMA
        assert low - 1 < sigma.min() < low + 5
        assert high - 5 < sigma.max() < high + 1


def test_texture_is_smooth_correlated_and_without_mean() -> None:
    draw = module.Draw(torch.Generator().manual_seed(0), 32, torch.device("cpu"))
    texture = module.texture(96, 80, PRESETS["train"], draw)
    assert texture.mean((-2, -1)).abs().max() < 1e-2
    step = (texture[..., 1:] - texture[..., :-1]).square().mean().sqrt()
    assert step < 0.5 * texture.std()
    red, blue, nir = (texture[:, band].std((-2, -1)).mean() for band in (2, 0, 3))
    assert 15 < blue < 80
    assert nir > red
    flat = texture.flatten(2)
    correlation = torch.stack([torch.corrcoef(sample)[0, 1] for sample in flat])
    assert correlation.mean() > 0.5


def test_displaced_patches_move_content_without_inventing_values() -> None:
    truth = scene(16, 64, 64)
    draw = module.Draw(torch.Generator().manual_seed(0), 16, torch.device("cpu"))
    moved = module.displace_patches(truth, PRESETS["test"], draw)
    changed = ((moved - truth).abs() > 1).any(1).float().mean((1, 2))
    assert (changed > 0).all()
    assert changed.mean() < 0.7
    low, high = truth.amin((2, 3), keepdim=True), truth.amax((2, 3), keepdim=True)
    assert (moved >= low - 1e-2).all()
    assert (moved <= high + 1e-2).all()


def test_test_preset_is_another_distribution() -> None:
    train, test = PRESETS["train"], PRESETS["test"]
    for field in ("patches", "patch_radius", "patch_shift", "resolution", "gain_common", "texture_scale"):
        assert getattr(train, field) != getattr(test, field), field


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 2, 16, 16), (16, 16), (0, 4, 16, 16), (4, 0, 16)])
def test_wrong_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"shape"):
        degrade(torch.zeros(shape), seed=0)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InputError, match="'easy'"):
        degrade(scene(), seed=0, preset="easy")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="both"):
        degrade(scene(), seed=0, generator=torch.Generator())


def lightly(truth: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return degrade_lightly(truth, generator=torch.Generator().manual_seed(seed))


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


def test_light_damage_is_a_function_of_the_generator() -> None:
    truth = scene(batch=4)
    assert torch.equal(lightly(truth), lightly(truth))
    assert not torch.equal(lightly(truth), lightly(truth, 1))
    before = torch.get_rng_state()
    lightly(truth)
    assert torch.equal(before, torch.get_rng_state())


def test_light_damage_keeps_nodata_range_and_shape() -> None:
    truth = scene(batch=8, height=61, width=47)
    truth[:, :, :5] = torch.nan
    truth[:, :, 10:20] = 3.0
    estimate = lightly(truth)
    assert estimate.shape == truth.shape and torch.equal(estimate.isnan(), truth.isnan())
    assert estimate.nan_to_num(1).min() >= 1 and estimate.nan_to_num(1).max() <= 65535
    assert lightly(truth[0]).shape == truth[0].shape
    with pytest.raises(InputError, match="expected"):
        lightly(truth[:, :3])
