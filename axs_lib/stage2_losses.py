"""The loss of Stage 2: estimate and truth in, one number to minimise out.

Images are DN (reflectance x 10000), B02 B03 B04 B08, and are brought to reflectance inside, so every term and weight
is in these units. A pixel counts where truth and estimate are not NaN in any band and the mask is true. Whatever lies
in other pixels changes neither loss nor gradient: windows and pyramids average over the pixels that count alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from kornia.filters import gaussian_blur2d, spatial_gradient
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.checks import check_number
from axs_lib.errors import InputError, listed
from axs_lib.metrics import pixel_mask, whole_windows

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
EPSILON = 1e-3  # reflectance, where Charbonnier turns from square to absolute
MS_SSIM_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_DARK = 1e-8  # squared reflectance; a spectrum shorter than its root, 1 DN, has no direction to speak of
TINY = 1e-12  # under a square root, so that its gradient is finite at zero


class Stage2Loss(nn.Module):
    """Weighted sum of the terms of ``measures``; a term of weight 0 is not computed.

    With the defaults the pixel error leads and the others add about as much again on typical estimates. Raises
    InputError: a weight that is negative or not finite; ``forward``, where no term above 0 has its inputs.
    """

    def __init__(
        self, charbonnier: float = 1, ms_ssim: float = 0.1, sam: float = 0.1, gradient: float = 0.5, *, l1: float = 0
    ) -> None:
        super().__init__()
        self.weights = {"charbonnier": charbonnier, "l1": l1, "ms_ssim": ms_ssim, "sam": sam, "gradient": gradient}
        self.check_weights()

    def check_weights(self) -> None:
        for name, weight in self.weights.items():
            check_number(f"the weight of {name}", weight, 0, math.nextafter(math.inf, 0), "a finite number from 0 up")

    def forward(self, pred: Tensor, truth: Tensor, mask: Tensor | None = None, **further: Tensor | None) -> Tensor:
        """The loss, a scalar in float32; shapes that do not match are an InputError.

        ``pred`` and ``truth`` are (B, 4, H, W) or (4, H, W); ``mask`` (B, 1, H, W), (B, H, W) or (H, W) is true where
        pixels count; ``further`` is what a subclass's ``measures`` takes besides. Where no pixel counts it is 0, but
        NaN if ``pred`` is NaN on all that truth and mask leave: a model that has diverged must not look perfect.
        """
        measures = self.measures(ComparedImages(pred, truth, mask), **further)
        # In float32: under autocast the windows' convolutions would lose the small variances.
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            terms = [self.weights[name] * measure() for name, measure in measures.items() if self.weights[name]]
        if not terms:
            raise InputError(f"all weights of {listed(list(measures))} are 0; expected at least one above 0")
        return torch.stack(terms).sum()

    def measures(self, images: ComparedImages) -> dict[str, Callable[[], Tensor]]:
        """How to compute each term; the unit is reflectance, of ``sam`` radian, of ``gradient`` reflectance per px.

        ``charbonnier`` is L1 with a smooth tip; ``ms_ssim`` 1 - MS-SSIM; ``sam`` the mean angle between the two
        spectra of a pixel; ``gradient`` the mean absolute difference of the Sobel gradients.
        """
        return {
            "charbonnier": lambda: images.mean((images.error.square() + EPSILON**2).sqrt() - EPSILON),
            "l1": lambda: images.mean(images.error.abs()),
            "ms_ssim": lambda: images.per_image(1 - ms_ssim(images.pred, images.truth, images.valid)),
            "sam": lambda: images.mean(spectral_angle(images.pred, images.truth)),
            "gradient": lambda: images.mean(spatial_gradient(images.error).abs().mean(2), whole_windows(images.valid)),
        }


class ComparedImages:
    """Estimate and truth in reflectance, 0 where they do not count, and where they do."""

    def __init__(self, pred: Tensor, truth: Tensor, mask: Tensor | None) -> None:
        bands = len(OPTICAL_BANDS)
        if pred.shape != truth.shape or pred.ndim not in (3, 4) or pred.shape[-3] != bands or not pred.numel():
            raise InputError(
                f"the estimate has shape {tuple(pred.shape)} and the truth {tuple(truth.shape)}; expected two of"
                f" (B, {bands}, H, W) or ({bands}, H, W), not empty"
            )
        truth = truth.to(pred.device)
        if pred.ndim == 3:
            pred, truth = pred[None], truth[None]
        wanted = ~truth.isnan().any(1, keepdim=True)
        if mask is not None:
            wanted = wanted & pixel_mask(mask, pred.shape, pred.device)
        self.valid = wanted & ~pred.isnan().any(1, keepdim=True)
        self.diverged = bool(wanted.any()) and not bool(self.valid.any())
        self.pred, self.truth = (x.float().masked_fill(~self.valid, 0.0) / DN_PER_REFLECTANCE for x in (pred, truth))
        self.error = self.pred - self.truth

    def mean(self, image: Tensor, valid: Tensor | None = None) -> Tensor:
        """Mean of (B, C, H, W) over bands and the pixels that count."""
        valid = self.valid if valid is None else valid
        total = image.masked_fill(~valid, 0.0).sum() / (valid.sum() * image.shape[1]).clamp_min(1)
        return total + torch.nan if self.diverged else total

    def per_image(self, values: Tensor) -> Tensor:
        """Mean of (B,) over the images that have a pixel that counts."""
        some = self.valid.flatten(1).any(1)
        total = values.masked_fill(~some, 0.0).sum() / some.sum().clamp_min(1)
        return total + torch.nan if self.diverged else total


def spectral_angle(first: Tensor, second: Tensor) -> Tensor:
    """Angle in radians between the spectra of each pixel: (B, 1, H, W) of two (B, C, H, W); 0 where either is 0.

    As 2 atan(|u - v| / |u + v|) of unit vectors: the arc cosine has no finite gradient where the spectra agree.
    """

    def length(image: Tensor, floor: float = TINY) -> Tensor:
        return (image.square().sum(1, keepdim=True) + floor).sqrt()

    u, v = first / length(first, _DARK), second / length(second, _DARK)
    angle = 2 * torch.atan2(length(u - v), length(u + v))
    dark = ~(first.any(1, keepdim=True) & second.any(1, keepdim=True))
    return angle.masked_fill(dark, 0.0)


def ms_ssim(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    """MS-SSIM (B,) of each pair of images (B, C, H, W), at most 1; 1 where nothing counts (Wang et al. 2003).

    It has as many of its five scales as the window fits into, their exponents brought to a sum of one. Window and
    pyramid are averages normalised by the pixels in them that count by ``valid`` (B, 1, H, W).
    """
    side = min(first.shape[-2:])
    scales = 1 + sum(side >> scale >= SSIM_WINDOW for scale in range(1, len(MS_SSIM_EXPONENTS)))
    exponents = torch.tensor(MS_SSIM_EXPONENTS[:scales], device=first.device)
    exponents = exponents / exponents.sum()
    weight = valid.to(first.dtype)
    result = first.new_ones(len(first))
    for scale, exponent in enumerate(exponents):
        luminance, contrast = _ssim_parts(first, second, weight)
        similarity = luminance * contrast if scale == scales - 1 else contrast
        counted = weight.expand_as(similarity)
        total = counted.flatten(1).sum(1)
        mean = (similarity * counted).flatten(1).sum(1) / total.clamp_min(TINY)
        # A similarity may be negative, and a fraction of a power has no gradient at 0.
        result = result * torch.where(total > 0, mean, 1.0).clamp_min(1e-4) ** exponent
        first, second = _halve(first, weight), _halve(second, weight)
        weight = F.avg_pool2d(weight, 2, ceil_mode=True)
    return result


def _ssim_parts(first: Tensor, second: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure maps (B, C, H, W) from windowed moments over the pixels that count."""
    share = _window(weight).clamp_min(TINY)

    def mean(image: Tensor) -> Tensor:
        return _window(image * weight) / share

    mean_1, mean_2 = mean(first), mean(second)
    # Moments about the image's own mean: those about 0 lose small variances in float32.
    middle = (second * weight).flatten(2).sum(2)[..., None, None] / weight.sum((2, 3), keepdim=True).clamp_min(TINY)
    one, two = first - middle, second - middle
    low_1, low_2 = mean_1 - middle, mean_2 - middle
    variance_1 = (mean(one.square()) - low_1.square()).clamp_min(0)
    variance_2 = (mean(two.square()) - low_2.square()).clamp_min(0)
    covariance = mean(one * two) - low_1 * low_2
    c1, c2 = 0.01**2, 0.03**2  # of a data range of reflectance 1
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1.square() + mean_2.square() + c1)
    contrast = (2 * covariance + c2) / (variance_1 + variance_2 + c2)
    return luminance, contrast


def _window(image: Tensor) -> Tensor:
    """Sum over SSIM's Gaussian window, zero outside the image."""
    size, sigma = (SSIM_WINDOW, SSIM_WINDOW), (SSIM_SIGMA, SSIM_SIGMA)
    return gaussian_blur2d(image, size, sigma, border_type="constant")


def _halve(image: Tensor, weight: Tensor) -> Tensor:
    """Half the resolution, averaging over the pixels that count."""
    total = F.avg_pool2d(image * weight, 2, ceil_mode=True)
    return total / F.avg_pool2d(weight, 2, ceil_mode=True).clamp_min(TINY)
