"""Turn one tile's layers (bands,H,W), SAR in dB, optical in DN, into colours (H,W,3) in 0..1; nodata is light grey."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.checks import Trust

Array = NDArray[np.float64]
Stretch = list[tuple[float, float]]

TRUE_COLOUR = ("B04", "B03", "B02")
FALSE_COLOUR = ("B08", "B04", "B03")
LABELS = {
    "opt_v1": "opt_v1 · from SAR",
    "opt_v2": "opt_v2 · estimate",
    "opt_v3": "opt_v3 · grounded",
    "truth": "truth · Sentinel-2",
}
UNDER_A_MASK = {"opt_v2": "opt_v2 · clouded image", "opt_v3": "opt_v3 · filled, clear kept"}
NODATA_GREY = 0.85
STRETCH_PERCENTILES = (1.0, 99.0)
SMALLEST_RANGE = 0.02  # reflectance: a tile of open water is not stretched into noise
SMALLEST_TOP = 1e-4  # a map of nothing keeps a scale


def labels_of(layers: Mapping[str, ArrayLike], mask_kind: str = "") -> dict[str, str]:
    """What the optical images of a result are, for people; whether clear pixels were kept, trust map or mask tell."""
    if "trust" in layers:
        masked = bool(np.isin(layers["trust"], (Trust.UNKNOWN, Trust.OBSERVED)).all())
    else:
        masked = mask_kind in ("boolean", "scl")
    return LABELS | UNDER_A_MASK if masked else LABELS


def stretch_of(image: Array, bands: tuple[str, ...]) -> Stretch:
    """Low and high DN of each band of an optical image (4,H,W), from percentiles of the valid pixels."""
    limits = []
    for band in bands:
        values = image[OPTICAL_BANDS.index(band)]
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, STRETCH_PERCENTILES) if values.size else (0.0, DN_PER_REFLECTANCE)
        missing = SMALLEST_RANGE * DN_PER_REFLECTANCE - (high - low)
        limits.append((float(low), float(high)) if missing <= 0 else (low - missing / 2, high + missing / 2))
    return limits


def optical_colour(image: Array, bands: tuple[str, ...], stretch: Stretch) -> Array:
    """An optical image (4,H,W) in these bands, slightly brightened."""
    ranges = zip(bands, stretch, strict=True)
    layers = [(image[OPTICAL_BANDS.index(band)] - low) / (high - low) for band, (low, high) in ranges]
    return _fill(np.clip(np.stack(layers, -1), 0, 1) ** 0.85)


def sar_colour(sar: Array) -> Array:
    """SAR (2,H,W): red VV, green VH, blue the ratio VV/VH, each stretched to its own percentiles."""
    return _fill(np.stack([_unit(sar[0]), _unit(sar[1]), _unit(sar[0] - sar[1])], -1))


def grey(layer: Array) -> Array:
    """One band (H,W), stretched to its own percentiles."""
    return _fill(np.repeat(_unit(layer)[..., None], 3, -1))


def difference_maps(layers: Mapping[str, Array]) -> dict[str, Array]:
    """Maps (H,W) in reflectance, means over the bands: |v3 - v2|, the error that v3 has less than v2, uncertainty."""
    before, after, truth = (layers.get(name) for name in ("opt_v2", "opt_v3", "truth"))
    maps = {}
    if before is not None and after is not None:
        maps["change"] = np.abs(after - before)
        if truth is not None:
            maps["removed"] = np.abs(before - truth) - np.abs(after - truth)
    if "uncertainty" in layers:
        maps["uncertainty"] = layers["uncertainty"]
    return {name: image.mean(0) / DN_PER_REFLECTANCE for name, image in maps.items()}


def top_of(layer: ArrayLike) -> float:
    """End of a map's colour scale: the 99th percentile of its valid magnitudes."""
    values = np.abs(np.asarray(layer, dtype=np.float64))
    values = values[np.isfinite(values)]
    return max(float(np.percentile(values, 99)) if values.size else 0.0, SMALLEST_TOP)


def _unit(layer: Array) -> Array:
    valid = layer[np.isfinite(layer)]
    low, high = np.percentile(valid, (2, 98)) if valid.size else (0.0, 1.0)
    return np.clip((layer - low) / max(high - low, 1e-6), 0, 1)


def _fill(colour: Array) -> Array:
    return np.where(np.isfinite(colour).all(-1, keepdims=True), colour, NODATA_GREY)
