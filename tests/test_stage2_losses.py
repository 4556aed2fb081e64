"""Stage 2's loss: zero at the truth, what each term is blind to, and pixels that do not count never do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axs_lib.errors import InputError
from axs_lib.stage2_losses import ComparedImages, Stage2Loss, ms_ssim, spectral_angle
from tests.models import plausible_pair

TERMS = ("charbonnier", "l1", "ms_ssim", "sam", "gradient")


def tiles(batch: int = 2, height: int = 48, width: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """(estimate, truth) in DN: the estimate is brighter, bluer and noisy."""
    truth = plausible_pair(batch, height, width)[1]
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(5))
    tint = torch.tensor([1.3, 1.1, 1.0, 0.9])[:, None, None]
    return truth * tint + 60.0 * noise + 50.0, truth


def alone(term: str) -> Stage2Loss:
    """A loss of one term."""
    return Stage2Loss(**{name: float(name == term) for name in TERMS})  # type: ignore[arg-type]


def terms_of(criterion: Stage2Loss, pred: torch.Tensor, truth: torch.Tensor, mask: Any = None, **more: Any) -> Any:
    """Every term before weighting."""
    return {name: term() for name, term in criterion.measures(ComparedImages(pred, truth, mask), **more).items()}


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    estimate, truth = tiles()
    assert Stage2Loss()(truth, truth) < 1e-5 and Stage2Loss()(estimate, truth) > 0.01
    criterion = Stage2Loss(0.7, 0.3, 0.2, 0.4, l1=0.9)
    terms = terms_of(criterion, estimate, truth)
    assert set(terms) == set(TERMS)
    weights = {"charbonnier": 0.7, "ms_ssim": 0.3, "sam": 0.2, "gradient": 0.4, "l1": 0.9}
    expected = sum(weights[name] * float(value) for name, value in terms.items())
    assert float(criterion(estimate, truth)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_pulls_towards_the_truth(term: str) -> None:
    estimate, truth = tiles(1)
    loss = alone(term)(estimate.requires_grad_(True), truth)
    (gradient,) = torch.autograd.grad(loss, estimate)
    assert gradient.isfinite().all()
    step = 2e-4 * loss.detach() / gradient.square().sum() * 100
    assert alone(term)(estimate.detach() - step * gradient, truth) < loss.detach()


@pytest.mark.parametrize("term", TERMS)
def test_gradients_are_finite_at_the_truth_and_in_the_dark(term: str) -> None:
    truth = tiles(1)[1]
    truth[..., :20] = 0.0
    estimate = truth.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(alone(term)(estimate, truth), estimate)
    assert gradient.isfinite().all()


def test_weights_and_shapes_that_cannot_be_are_refused() -> None:
    for weights, message in (({"sam": -1.0}, "weight of sam is -1"), ({"l1": math.nan}, "weight of l1 is nan")):
        with pytest.raises(InputError, match=message):
            Stage2Loss(**weights)
    estimate, truth = tiles()
    with pytest.raises(InputError, match=r"all weights of charbonnier.*are 0"):
        Stage2Loss(**dict.fromkeys(TERMS, 0.0))(estimate, truth)
    for images in ((estimate, truth[..., :47]), (estimate[:, :3], truth[:, :3])):
        with pytest.raises(InputError, match="expected two of"):
            Stage2Loss()(*images)
    with pytest.raises(InputError, match="mask has shape"):
        Stage2Loss()(estimate, truth, torch.ones(3, 3))


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), side=st.integers(8, 60), share=st.floats(0.05, 0.9))
def test_masked_pixels_change_nothing(seed: int, side: int, share: float) -> None:
    """Neither loss, nor any term, nor the gradient of any other pixel; MS-SSIM's windows included."""
    random = torch.Generator().manual_seed(seed)
    estimate, truth = tiles(2, side, side + 3)
    mask = torch.rand(2, 1, side, side + 3, generator=random) > share
    mask[:, :, 0, 0] = True
    results = []
    for fill in (0.0, 60_000.0, torch.nan):
        one = torch.where(mask, estimate, fill).requires_grad_(True)
        other = torch.where(mask, truth, 2 * fill + 7)
        loss = Stage2Loss(l1=0.5)(one, other, mask)
        loss.backward()
        assert one.grad is not None
        results.append((loss.detach(), one.grad, terms_of(Stage2Loss(), one.detach(), other, mask)))
    for loss, gradient, terms in results:
        assert torch.equal(loss, results[0][0]) and torch.equal(gradient, results[0][1])
        assert gradient.masked_fill(mask, 0.0).abs().sum() == 0 and terms == results[0][2] and loss > 0


def test_nan_is_a_mask() -> None:
    """In one band of either image; and what a mask of the same pixels says is the same."""
    estimate, truth = tiles()
    mask = torch.ones(2, 1, 48, 48, dtype=torch.bool)
    mask[0, :, 5:9, 5:9] = False
    mask[1, :, 30, :] = False
    holed_truth, holed = truth.clone(), estimate.clone()
    holed_truth[0, 2, 5:9, 5:9] = torch.nan
    holed[1, 0, 30, :] = torch.nan
    assert torch.equal(Stage2Loss()(holed, holed_truth), Stage2Loss()(estimate, truth, mask))
    assert not torch.equal(Stage2Loss()(holed, holed_truth), Stage2Loss()(estimate, truth))


@pytest.mark.parametrize("term", TERMS)
def test_a_half_that_is_masked_weighs_nothing(term: str) -> None:
    """A mean over what counts: not diluted by what does not."""
    estimate, truth = tiles(1, 64, 64)
    twice = [torch.cat([image, image.flip(-1)], dim=-1) for image in (estimate, truth)]
    mask = torch.zeros(1, 1, 64, 128)
    mask[..., :64] = 1
    half, whole = alone(term)(*twice, mask), alone(term)(estimate, truth)
    assert float(half) == pytest.approx(float(whole), rel=0.02)


def test_masks_of_every_accepted_shape() -> None:
    estimate, truth = tiles()
    mask = torch.rand(48, 48, generator=torch.Generator().manual_seed(0)) > 0.3
    expected = Stage2Loss()(estimate, truth, mask)
    for same in (mask[None, None], mask.expand(2, 1, 48, 48), mask.expand(2, 48, 48).float()):
        assert torch.equal(Stage2Loss()(estimate, truth, same), expected)
    assert Stage2Loss()(estimate[0], truth[0], mask).isfinite()


def test_nothing_that_counts_is_zero_and_a_diverged_model_is_not() -> None:
    estimate, truth = tiles()
    estimate.requires_grad_(True)
    loss = Stage2Loss()(estimate, torch.full_like(truth, torch.nan))
    assert loss == 0
    loss.backward()
    assert estimate.grad is not None and not estimate.grad.any()
    assert Stage2Loss()(torch.full_like(truth, torch.nan), truth).isnan()
    assert not Stage2Loss()(torch.full_like(truth, torch.inf), truth).isfinite()


def test_pixel_terms_are_in_reflectance_and_the_gradient_is_its_slope_per_pixel() -> None:
    _, truth = tiles()
    terms = terms_of(Stage2Loss(), truth + 100.0, truth)
    assert terms["l1"] == pytest.approx(0.01, rel=1e-3)
    assert terms["charbonnier"] == pytest.approx(math.hypot(0.01, 1e-3) - 1e-3, rel=1e-3)
    assert terms["gradient"] == pytest.approx(0.0, abs=1e-6)
    ramp = torch.arange(32.0).expand(1, 4, 32, 32) * 100 + 1
    flat = torch.full_like(ramp, 500.0)
    # The border repeats its outermost column, which halves the slope in two of 32 columns; two directions.
    assert terms_of(Stage2Loss(), flat, ramp)["gradient"] == pytest.approx(0.01 / 2 * 31 / 32, rel=1e-4)


def test_the_angle_is_blind_to_brightness_and_equals_torchmetrics() -> None:
    from torchmetrics.functional.image import spectral_angle_mapper

    estimate, truth = tiles()
    assert terms_of(Stage2Loss(), truth * 1.7, truth)["sam"] == pytest.approx(0.0, abs=1e-4)
    expected = spectral_angle_mapper(estimate, truth, reduction="none")
    mine = spectral_angle(estimate / 1e4, truth / 1e4)[:, 0]
    assert torch.allclose(mine, expected, atol=1e-3) and mine.std() > 0.01


def test_ms_ssim_is_torchmetrics_but_for_the_border() -> None:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    estimate, truth = (image / 1e4 for image in tiles(1, 256, 256))
    theirs = multiscale_structural_similarity_index_measure(estimate, truth, data_range=1.0)
    mine = ms_ssim(estimate, truth, torch.ones(1, 1, 256, 256, dtype=torch.bool))
    assert float(mine) == pytest.approx(float(theirs), abs=0.003) and float(mine) < 0.995


@pytest.mark.parametrize("side", [8, 10, 11, 21, 22, 43, 64, 175, 176])
def test_small_tiles_use_fewer_scales(side: int) -> None:
    estimate, truth = tiles(1, side, side + 5)
    value = terms_of(Stage2Loss(), estimate, truth)["ms_ssim"]
    assert 1e-4 < value < 0.9


def test_autocast_and_half_precision_lose_nothing() -> None:
    estimate, truth = tiles()
    expected = Stage2Loss()(estimate, truth)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Stage2Loss()(estimate, truth), expected)
    assert Stage2Loss()(estimate.double(), truth.double()).dtype == torch.float32
