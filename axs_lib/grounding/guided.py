"""The estimate as a local linear function of the SAR or of the proposal: guided filters, fitted anew at every pixel.

How colour follows backscatter differs from place to place; here it is read off the neighbourhood of each pixel in the
very image that is to be corrected. Structure that both images share stays, what the estimate has made up goes, and a
gap is filled from what is clear around it. Nothing is trained. (He, Sun, Tang: Guided image filtering, IEEE TPAMI 35,
2013; here with two guides, Gaussian windows and weights.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from axs_lib.blur import gaussian_blur
from axs_lib.grounding.gap import unknown_share

GUIDE_SIGMA_PX = 2.0  # the SAR is smoothed by so much, against speckle
WINDOW_SIGMA_PX = 8.0
WIDE_WEIGHT = 0.02  # of the whole tile beside the window: its relation is used where no pixel nearby is valid
RIDGE = 0.02  # z-units squared: guides that vary less explain nothing
LEAST_VARIANCE = 0.002  # z-units squared, of an image beside which there is something to explain
MOST_SLOPE = 2.0  # of the estimate over the proposal
STEP = 4  # px between the points where the relation is fitted


def guided_difference(s1: Tensor, estimate: Tensor, trust: Tensor) -> tuple[Tensor, Tensor]:
    """How the estimate as the SAR has it differs from the estimate.

    s1 (B, 2, H, W) and the estimate (B, 4, H, W) are in z-units, H and W multiples of 4; what is unknown in trust (B,
    1, H, W) does not take part in the fit. Out come, at half the resolution, where all of it lives, the guided image
    less the estimate, (B, 4, H/2, W/2) in z-units, and the share of the estimate's local variance that the SAR
    explains, (B, 1, H/2, W/2) in [0, 1], the mean over the bands.
    """
    with torch.autocast(s1.device.type, enabled=False):
        # 1. Weighted means in every window of the images and of their products, from half the resolution: the guide is
        #    smooth, and detail that it cannot explain is no part of the fit.
        guide = gaussian_blur(s1.float(), GUIDE_SIGMA_PX)
        known = 1.0 - unknown_share(trust.float())
        halved = _halved(torch.cat([guide, estimate.float(), known], dim=1))
        vv, vh, image, weight = halved.split([1, 1, 4, 1], dim=1)
        of_vv, of_vh, of_image, vv_vv, vv_vh, vh_vh, vv_image, vh_image, image_image = _window_means(
            weight, [vv, vh, image, vv * vv, vv * vh, vh * vh, vv * image, vh * image, image * image]
        )

        # 2. Regression on the two guides: 2 x 2 normal equations, solved by hand.
        a, b, d = vv_vv - of_vv**2 + RIDGE, vv_vh - of_vv * of_vh, vh_vh - of_vh**2 + RIDGE
        first, second = vv_image - of_vv * of_image, vh_image - of_vh * of_image
        determinant = (a * d - b * b).clamp_min(RIDGE**2)
        slope_vv = (d * first - b * second) / determinant
        slope_vh = (a * second - b * first) / determinant
        offset = of_image - slope_vv * of_vv - slope_vh * of_vh
        explained = (slope_vv * first + slope_vh * second) / (image_image - of_image**2 + LEAST_VARIANCE)
        share = explained.clamp(0.0, 1.0).mean(1, keepdim=True)

        # 3. The relation between its points, applied to every pixel.
        relation = torch.cat([slope_vv, slope_vh, offset, share], dim=1)
        relation = F.interpolate(relation, size=image.shape[-2:], mode="bilinear")
        slope_vv, slope_vh, offset, share = relation.split([4, 4, 4, 1], dim=1)
        return slope_vv * vv + slope_vh * vh + offset - image, share


def proposal_guided_difference(proposal: Tensor, estimate: Tensor, trust: Tensor) -> tuple[Tensor, Tensor]:
    """How the estimate, as a local linear function of the proposal's same band, differs from the estimate.

    The proposal's structure counts and not its colour, which a generator often misses. Where the two have nothing in
    common the slope is about 0 and the share of variance explained is small: a proposal of another place shows.

    Images and trust are as for ``guided_difference``. Out come the fitted proposal less the estimate, (B, 4, H, W) in
    z-units, and the share of each band's local variance that the proposal explains, (B, 4, H/2, W/2) in [0, 1].
    """
    with torch.autocast(proposal.device.type, enabled=False):
        known = 1.0 - unknown_share(trust.float())
        halved = _halved(torch.cat([proposal.float(), estimate.float(), known], dim=1))
        p, e, weight = halved.split([4, 4, 1], dim=1)
        of_p, of_e, p_p, p_e, e_e = _window_means(weight, [p, e, p * p, p * e, e * e])
        covariance = p_e - of_p * of_e
        variance = (p_p - of_p**2).clamp_min(0.0) + LEAST_VARIANCE
        slope = (covariance / variance).clamp(0.0, MOST_SLOPE)
        share = (covariance * slope / (e_e - of_e**2 + LEAST_VARIANCE)).clamp(0.0, 1.0)
        relation = torch.cat([slope, of_e - slope * of_p], dim=1)
        slope, offset = F.interpolate(relation, size=estimate.shape[-2:], mode="bilinear").split(4, dim=1)
        share = F.interpolate(share, size=p.shape[-2:], mode="bilinear")
        return slope * proposal.float() + offset - estimate.float(), share


def _window_means(weight: Tensor, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Weighted means of images (B, C, h, w) in the window around every second pixel."""
    coarse = _halved(weight * torch.cat([torch.ones_like(weight), *images], dim=1))
    sums = gaussian_blur(coarse, WINDOW_SIGMA_PX / STEP) + WIDE_WEIGHT * coarse.mean((2, 3), keepdim=True)
    means = sums[:, 1:] / sums[:, :1].clamp_min(1e-6)
    return means.split([image.shape[1] for image in images], dim=1)


def _halved(image: Tensor) -> Tensor:
    """Means of 2 x 2 pixels of (B, C, H, W), of even sides: ``avg_pool2d`` takes six times as long."""
    rows = image[..., ::2, :] + image[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4
