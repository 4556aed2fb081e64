"""Measure optical estimates against the clear truth and against the SAR: tensors in, a dictionary of floats out.

Images are DN (reflectance x 10000) in the order B02, B03, B04, B08, of shape (B,4,H,W) or (4,H,W), any dtype and
device; the figures are in reflectance. A pixel counts only where every image (and the SAR, if given) is not NaN in all
its bands and the mask is true; what lies in other pixels changes nothing. Pixels of a batch are pooled, except for
SSIM and the edge figures, which are taken image by image and averaged.

============ ============== ==========================================================================================
key          unit           meaning
============ ============== ==========================================================================================
mse, mae     reflectance^2, mean squared and mean absolute error over bands and pixels
             reflectance
psnr         dB             peak signal-to-noise ratio for a peak of reflectance 1
ssim         1              structural similarity, 11 px Gaussian window (std 1.5 px), data range of reflectance 1; NaN
                            for images under 6 px
sam          degree         mean angle between the two spectra of a pixel
ergas        %              100 sqrt(mean over bands of (RMSE / mean truth)^2), with a resolution ratio of 1
ndvi, ndwi   1              mean absolute error of (B08 - B04)/(B08 + B04) and of (B03 - B08)/(B03 + B08)
edge_truth   -1..1          Pearson correlation of g(estimate) and g(truth), where g is the magnitude of the Sobel
                            gradient of the mean of the four bands; 0 where either is constant
edge_sar     -1..1          the same of the estimate and (VV + VH)/2 in dB, both first smoothed with a Gaussian of 2 px:
                            smoothing the SAR alone would favour a blurred estimate
sharpness    1              RMS of g(estimate) / RMS of g(truth): 1 is as sharp as the truth, below is blurred
============ ============== ==========================================================================================
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.checks import check_dn, check_tensor
from axs_lib.errors import InputError

METRIC_KEYS = ("mse", "mae", "psnr", "ssim", "sam", "ergas", "ndvi", "ndwi", "edge_truth", "sharpness")
SAR_KEY = "edge_sar"
LOWER_IS_BETTER = frozenset({"mse", "mae", "sam", "ergas", "ndvi", "ndwi"})
"""Metrics that are errors; for the others a larger figure is better (``sharpness``: nearer to 1)."""

VISIBLE = 0.005  # reflectance; a pixel where all three images agree to this is neither right nor wrong
SHARPNESS_OF_CLASSES = 0.05  # the constant of opensr-test's scores

SSIM_SMALLEST = 6  # px; the window's half-width 5 must fit the image for reflection
SAR_SMOOTHING = 2.0  # px, standard deviation


@torch.no_grad()
def compute_metrics(
    estimate: Tensor, truth: Tensor, *, s1: Tensor | None = None, mask: Tensor | None = None
) -> dict[str, float]:
    """Compare one optical estimate (B,4,H,W) or (4,H,W) in DN with the truth, DN of the same shape.

    ``s1`` (B,2,H,W) or (2,H,W) in dB adds ``edge_sar``; ``mask`` (B,1,H,W), (B,H,W) or (H,W) is true where pixels
    count. Returns the module's table; ``InputError`` for shapes that do not match, or not one pixel that counts.
    """
    from torchmetrics.functional import image as of_images
    from torchmetrics.functional import mean_absolute_error, mean_squared_error

    images, sar, valid = _prepare({"estimate": estimate, "truth": truth}, s1, mask)
    estimate, truth = images["estimate"], images["truth"]
    keep = valid[:, 0]
    seen, real = (image.permute(0, 2, 3, 1)[keep].contiguous() for image in (estimate, truth))  # (pixels, 4)
    seen_column, real_column = (pixels.T[None, :, :, None].contiguous() for pixels in (seen, real))  # (1,4,pixels,1)
    mse = mean_squared_error(seen, real)
    # A pixel without any signal has no angle.
    angles = of_images.spectral_angle_mapper(seen_column, real_column, reduction="none")
    figures = {
        "mse": mse,
        "mae": mean_absolute_error(seen, real),
        "psnr": of_images.peak_signal_noise_ratio(seen, real, data_range=1.0) if mse > 0 else math.inf,
        "ssim": _ssim(estimate, truth, valid),
        "sam": torch.rad2deg(angles.nanmean()).nan_to_num(),
        "ergas": of_images.error_relative_global_dimensionless_synthesis(seen_column, real_column, ratio=1),
        "ndvi": mean_absolute_error(_index(seen, "B08", "B04"), _index(real, "B08", "B04")),
        "ndwi": mean_absolute_error(_index(seen, "B03", "B08"), _index(real, "B03", "B08")),
    }
    inner = whole_windows(valid)  # where Sobel reads what counts
    edges, real_edges = _gradient(estimate.mean(1, keepdim=True)), _gradient(truth.mean(1, keepdim=True))
    figures["edge_truth"] = _correlation(edges, real_edges, inner)
    figures["sharpness"] = (_mean(edges.square(), inner) / _mean(real_edges.square(), inner)).sqrt()
    if sar is not None:
        broad, sar_broad = (smooth(i.mean(1, keepdim=True), valid, SAR_SMOOTHING) for i in (estimate, sar))
        figures[SAR_KEY] = _correlation(_gradient(broad), _gradient(sar_broad), inner)
    return {key: float(value) for key, value in figures.items()}


@torch.no_grad()
def stage3_metrics(
    opt_v3: Tensor, opt_v2: Tensor, s2_truth: Tensor, mask: Tensor | None = None, s1: Tensor | None = None
) -> dict[str, float]:
    """Compare the Stage 3 image and the Stage 2 image with the truth, over the same pixels; see ``compute_metrics``.

    Returns every metric of the module's table with the suffixes ``_v3`` and ``_v2``; ``mse_improvement_%`` and
    ``mae_improvement_%``, see ``improvement``; ``copy_ratio``, the sum of |v3 - v2| over the sum of |v3 - truth|: 0 is
    a copy of opt_v2 (inf where v3 equals the truth and not opt_v2); and what ``correctness`` returns.
    """
    images, _, valid = _prepare({"opt_v3": opt_v3, "opt_v2": opt_v2, "s2_truth": s2_truth}, s1, mask)
    figures: dict[str, float] = {}
    for suffix, image in (("v3", opt_v3), ("v2", opt_v2)):
        own = compute_metrics(image, s2_truth, s1=s1, mask=valid)
        figures |= {f"{key}_{suffix}": value for key, value in own.items()}
    for key in ("mse", "mae"):
        figures[f"{key}_improvement_%"] = improvement(figures[f"{key}_v2"], figures[f"{key}_v3"])
    changed = (images["opt_v3"] - images["opt_v2"]).abs().sum().item()
    wrong = (images["opt_v3"] - images["s2_truth"]).abs().sum().item()
    figures["copy_ratio"] = _ratio(changed, wrong)
    return figures | correctness(opt_v3, opt_v2, s2_truth, valid)


@torch.no_grad()
def correctness(opt_v3: Tensor, opt_v2: Tensor, s2_truth: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """What became of opt_v2's errors: corrected, left in, or replaced by others; images as of ``stage3_metrics``.

    The triple of opensr-test (Aybar et al. 2024) with opt_v2 as the low-resolution image and the truth as the
    high-resolution one, without its matching of histograms and positions. With d the mean absolute difference over the
    bands of a pixel, d_im = d(v3, truth) / d(v2, truth), d_om = d(v3, v2) / d(v2, truth) and H = d_im + d_om - 1,
    which is 0 where opt_v3 lies between opt_v2 and the truth. A pixel belongs to the smallest of three scores, with l
    = 0.05: improvement d_im + d_om (1 - exp(-l H)), omission d_om + d_im (1 - exp(-l H)), hallucination exp(-l d_im
    d_om).

    ``d_improvement``, ``d_omission`` and ``d_hallucination`` are d_im, d_om and H of the means over all pixels (where
    opt_v2 is the truth itself: 0 if opt_v3 is too, else inf). ``improved``, ``omitted``, ``hallucinated`` are the
    shares of the pixels that count; their sum is below 1 by the pixels whose three images agree to 0.005 reflectance.
    ``identity_collapse`` is 1 where d_om is 0, so that opt_v3 is opt_v2 unchanged, else 0.
    """
    images, _, valid = _prepare({"opt_v3": opt_v3, "opt_v2": opt_v2, "s2_truth": s2_truth}, None, mask)
    v3, v2, truth = images.values()
    keep = valid[:, 0]
    missing, wrong, changed = ((one - other).abs().mean(1)[keep] for one, other in ((v2, truth), (v3, truth), (v3, v2)))
    of_missing = (_ratio(float(distance.mean()), float(missing.mean())) for distance in (wrong, changed))
    figures = dict(zip(("d_improvement", "d_omission"), of_missing, strict=True))
    total = figures["d_improvement"] + figures["d_omission"]
    figures["d_hallucination"] = total - 1.0 if total > 0 else 0.0
    d_im, d_om = (distance / missing.clamp_min(1e-12) for distance in (wrong, changed))
    excess = 1 - torch.exp(-SHARPNESS_OF_CLASSES * (d_im + d_om - 1).clamp_min(0))
    scores = torch.stack([d_im + d_om * excess, d_om + d_im * excess, torch.exp(-SHARPNESS_OF_CLASSES * d_im * d_om)])
    seen = torch.stack([missing, wrong, changed]).amax(0) > VISIBLE
    kind = scores.argmin(0).masked_fill(~seen, -1)
    shares = ((kind == index).double().mean().item() for index in range(3))
    figures |= dict(zip(("improved", "omitted", "hallucinated"), shares, strict=True))
    figures["identity_collapse"] = 0.0 if bool(changed.any()) else 1.0
    return figures


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else (math.inf if above > 0 else 0.0)


def improvement(before: float, after: float) -> float:
    """100 (before - after) / before in percent; with ``before`` zero: 0 if ``after`` is zero too, else -inf."""
    if before == 0:
        return 0.0 if after == 0 else -math.inf
    return 100.0 * (1.0 - after / before)


def _prepare(
    images: dict[str, Tensor], s1: Tensor | None, mask: Tensor | None
) -> tuple[dict[str, Tensor], Tensor | None, Tensor]:
    """Images as (B,4,H,W) reflectance, SAR as (B,2,H,W), both 0 where nothing counts, and (B,1,H,W) of what counts."""
    for name, image in (images | {"s1": s1, "mask": mask}).items():
        if image is not None or name in images:
            check_tensor(name, image)
    first_name, first = next(iter(images.items()))
    batches = {name: _batch(name, image, len(OPTICAL_BANDS), first.device) for name, image in images.items()}
    shape = batches[first_name].shape
    for name, image in batches.items():
        check_dn(name, image)
        if image.shape != shape:
            raise InputError(
                f"{name} has shape {tuple(images[name].shape)} and {first_name} {tuple(first.shape)};"
                " metrics need images of one shape. Crop or resample them to one grid."
            )
    valid = torch.stack([~torch.isnan(image).any(1, keepdim=True) for image in batches.values()]).all(0)
    sar = None
    if s1 is not None:
        sar = _batch("s1", s1, 2, first.device)
        if sar.shape[0] != shape[0] or sar.shape[2:] != shape[2:]:
            raise InputError(f"s1 has shape {tuple(s1.shape)} and {first_name} {tuple(first.shape)}; expected one grid")
        valid &= ~torch.isnan(sar).any(1, keepdim=True)
    if mask is not None:
        valid &= pixel_mask(mask, shape, first.device)
    if not bool(valid.any()):
        raise InputError(
            "no pixel counts: every pixel is NaN in an input or false in the mask; check the nodata, and that the"
            " mask is true where pixels count."
        )
    clean = {name: (image / DN_PER_REFLECTANCE).masked_fill(~valid, 0.0) for name, image in batches.items()}
    return clean, None if sar is None else sar.masked_fill(~valid, 0.0), valid


def _batch(name: str, image: Tensor, bands: int, device: torch.device) -> Tensor:
    if image.ndim not in (3, 4) or image.shape[-3] != bands or image.numel() == 0:
        raise InputError(f"{name} has shape {tuple(image.shape)}; expected (B,{bands},H,W) or ({bands},H,W), not empty")
    image = image.detach().to(device=device, dtype=torch.float64)
    return image if image.ndim == 4 else image.unsqueeze(0)


def pixel_mask(mask: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """(B or 1,1,H,W) bool of a mask of any accepted shape, for images of ``shape`` (B,C,H,W); else ``InputError``."""
    batch, _, height, width = shape
    seen = tuple(mask.shape)
    if mask.ndim in (2, 3):
        mask = mask[None, None] if mask.ndim == 2 else mask[:, None]
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[0] not in (1, batch) or mask.shape[2:] != (height, width):
        raise InputError(
            f"mask has shape {seen}; expected ({batch},1,{height},{width}), ({batch},{height},{width}) or"
            f" ({height},{width})."
        )
    return (mask.to(device) != 0) & ~torch.isnan(mask.to(device))


def whole_windows(valid: Tensor) -> Tensor:
    """Pixels whose 3 x 3 neighbourhood counts wholly, what lies outside the image aside: (B, 1, H, W) bool."""
    return functional.max_pool2d((~valid).float(), 3, stride=1, padding=1) == 0


def _index(pixels: Tensor, plus: str, minus: str) -> Tensor:
    """Normalised difference of two bands of (pixels, 4); 0 where both are 0."""
    first, second = (pixels[:, OPTICAL_BANDS.index(band)] for band in (plus, minus))
    total = first + second
    return torch.where(total > 0, (first - second) / total.clamp_min(1e-8), torch.zeros_like(total)).clamp(-1, 1)


def _ssim(estimate: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """SSIM in float32 averaged over the pixels that count; both images hold the truth's band mean in the others."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(truth.shape[-2:]) < SSIM_SMALLEST:
        return torch.tensor(math.nan)
    share = valid.sum((2, 3), keepdim=True).clamp_min(1)
    level = truth.sum((2, 3), keepdim=True) / share
    filled = (torch.where(valid, image, level).float() for image in (estimate, truth))
    result = structural_similarity_index_measure(*filled, data_range=1.0, return_full_image=True)
    return _mean(result[1], valid)


def _mean(image: Tensor, valid: Tensor) -> Tensor:
    """Mean over the pixels that count, image by image, then over the images that have any."""
    count = valid.sum((1, 2, 3))
    per_image = (image * valid).sum((1, 2, 3)) / (count.clamp_min(1) * image.shape[1])
    return per_image[count > 0].mean()


def _gradient(image: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient of (B,1,H,W), per pixel; the border repeats its outermost row and column."""
    from kornia.filters import spatial_gradient

    return spatial_gradient(image).square().sum(2).sqrt()


def smooth(image: Tensor, valid: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of (B,1,H,W) over the pixels that count only."""
    from kornia.filters import gaussian_blur2d

    side, weight = 2 * math.ceil(3 * sigma) + 1, valid.to(image.dtype)
    kernel = (side, side), (sigma, sigma), "constant"
    total, count = (gaussian_blur2d(values, *kernel) for values in (image * weight, weight))
    return total / count.clamp_min(1e-12)


def _correlation(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    """Pearson correlation over the pixels that count, image by image, then averaged; 0 where either is constant."""
    results = []
    for one, other, keep in zip(first, second, valid, strict=True):
        a, b = one[keep], other[keep]
        if a.numel() == 0:
            continue
        flat = a.numel() < 2 or any(bool(values.std() <= 1e-9 * (1 + values.abs().max())) for values in (a, b))
        results.append(a.new_zeros(()) if flat else torch.corrcoef(torch.stack([a, b]))[0, 1])
    return torch.stack(results).mean() if results else first.new_zeros(())
