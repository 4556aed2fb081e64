"""The constraint keeps broad colour where the mask is 0, and detail everywhere; the blur below it."""

from __future__ import annotations

import torch

from axs_lib.blur import gaussian_blur
from axs_lib.grounding.low_freq import constrain_low_frequencies as constrain


def correction(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(seed))


def test_a_mask_of_0_keeps_the_broad_colour() -> None:
    """A uniform shift is removed to 1e-6 of its size; the mean of any correction nearly so."""
    shift = torch.full((1, 4, 128, 128), 1.0)
    assert constrain(shift, torch.zeros(1, 1, 128, 128)).abs().max() < 1e-6
    held = constrain(correction() + 1.0, torch.zeros(1, 1, 128, 128))
    assert held.mean().abs() < 1e-2


def test_detail_passes_a_mask_of_0() -> None:
    stripes = torch.zeros(1, 1, 128, 128)
    stripes[..., ::2] = 1.0
    held = constrain(stripes - 0.5, torch.zeros(1, 1, 128, 128))
    assert (held - (stripes - 0.5)).abs()[..., 16:-16].max() < 0.05


def test_the_mask_is_local_and_1_lets_all_through() -> None:
    x = correction()
    assert torch.equal(constrain(x, torch.ones(1, 1, 128, 128)), x)
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., :64] = 1.0
    held = constrain(torch.ones(1, 4, 128, 128), mask)
    assert (held[..., :64] - 1.0).abs().max() < 1e-6 and held[..., 64:].abs().max() < 1e-6


def test_blur_keeps_constants_and_works_on_images_smaller_than_its_kernel() -> None:
    for size in ((8, 8), (8, 64), (40, 9)):
        assert (gaussian_blur(torch.full((1, 2, *size), 5.0), sigma=5.0) - 5.0).abs().max() < 1e-5


def test_the_blur_reflects_then_repeats_at_borders() -> None:
    row = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    kernel = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
    padded = torch.tensor([4.0, 4.0, 2.0, 1.0, 2.0, 4.0, 2.0, 1.0, 1.0])  # reflected by two, then repeated by one
    expected = padded.unfold(0, 7, 1) @ (kernel / kernel.sum())
    assert (gaussian_blur(row, 1.0)[0, 0, 0] - expected).abs().max() < 1e-6


def test_a_blur_first_used_in_inference_serves_training() -> None:
    image = torch.randn(1, 1, 37, 41)
    with torch.inference_mode():
        expected = gaussian_blur(image, 1.7)
    leaf = image.clone().requires_grad_()
    blurred = gaussian_blur(leaf, 1.7)
    blurred.sum().backward()
    assert torch.equal(blurred.detach(), expected) and leaf.grad is not None
