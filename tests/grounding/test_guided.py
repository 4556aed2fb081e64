"""The guided image follows the SAR by the estimate's own relation, whatever that is, and knows how much it explains."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from axs_lib.blur import gaussian_blur
from axs_lib.grounding.guided import guided_difference

SLOPES = torch.tensor([[0.8, -0.3], [0.5, 0.2], [-0.6, 0.9], [1.0, 0.4]])  # of each band on VV and VH


def scene(seed: int = 0, side: int = 96) -> tuple[Tensor, Tensor]:
    """Smooth SAR in z-units, and an image that is a linear function of it."""
    noise = torch.randn(1, 2, side, side, generator=torch.Generator().manual_seed(seed))
    s1 = gaussian_blur(noise, 4.0)
    s1 = s1 / s1.std((2, 3), keepdim=True)
    image = torch.einsum("kc,bchw->bkhw", SLOPES, gaussian_blur(s1, 2.0)) + 0.3
    return s1, image


def everywhere(s1: Tensor, value: float = 0.5) -> Tensor:
    return torch.full_like(s1[:, :1], value)


def guided_estimate(s1: Tensor, estimate: Tensor, trust: Tensor) -> tuple[Tensor, Tensor]:
    """The guided image itself, at the image's resolution, and the explained share."""
    difference, share = guided_difference(s1, estimate, trust)
    assert difference.shape[2:] == share.shape[2:] == (s1.shape[2] // 2, s1.shape[3] // 2)
    image = difference + functional.avg_pool2d(estimate, 2)
    return functional.interpolate(image, scale_factor=2.0, mode="bilinear"), share


def rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def test_a_linear_relation_is_found_and_explains_nearly_all() -> None:
    s1, image = scene()
    guided, share = guided_estimate(s1, image, everywhere(s1))
    assert rms(guided - image) < 0.15 * float(image.std()) and float(share.mean()) > 0.9


def test_what_the_sar_does_not_know_of_goes() -> None:
    s1, image = scene()
    made_up = gaussian_blur(torch.randn(1, 4, 96, 96, generator=torch.Generator().manual_seed(1)), 2.0) * 4
    guided, _ = guided_estimate(s1, image + made_up, everywhere(s1))
    assert rms(guided - image) < 0.5 * rms(made_up)
    moved = image.roll((4, 4), (2, 3))
    guided, _ = guided_estimate(s1, moved, everywhere(s1))
    inside = (..., slice(16, -16), slice(16, -16))
    assert rms((guided - image)[inside]) < 0.8 * rms((moved - image)[inside])


def test_a_gap_is_filled_from_the_relation_around_it_and_not_from_what_lies_in_it() -> None:
    s1, image = scene()
    trust = everywhere(s1, 1.0)
    trust[..., 30:60, 30:60] = 0.0
    first, _ = guided_estimate(s1, image.masked_fill(trust == 0, 5.0), trust)
    other, _ = guided_estimate(s1, image.masked_fill(trust == 0, -5.0), trust)
    torch.testing.assert_close(first, other)
    hole = (trust == 0).expand_as(image)
    assert rms((first - image)[hole]) < 0.4 * float(image[hole].std())


def test_nothing_known_is_finite() -> None:
    s1, image = scene()
    guided, share = guided_estimate(s1, image, everywhere(s1, 0.0))
    assert torch.isfinite(guided).all() and torch.isfinite(share).all()
