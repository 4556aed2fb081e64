"""One saved result against the clear truth, beside the simplest images that could stand in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from axs_lib.errors import InputError
from axs_lib.metrics import compute_metrics, stage3_metrics
from axs_lib.nodata import fill_nodata, valid_pixels


class Measured(NamedTuple):
    """A result against the clear truth, by the figures of ``axs_lib.metrics``."""

    baseline: str  # what opt_v3 is compared with: ``opt_v2``, or ``smooth fill`` inside gaps
    metrics: dict[str, float]  # of opt_v1 (where there is one), the baseline (suffix ``_v2``) and opt_v3
    flat: dict[str, float]  # without a suffix, of one flat colour: the truth's mean, or that of what is clear


def measure_layers(images: Mapping[str, NDArray[Any]]) -> Measured | None:
    """Figures of layers (C,H,W) by name, inside gaps where ``trust`` is 0; None where nothing can be compared."""
    if not {"truth", "opt_v2"} <= set(images):
        return None
    layers = {name: torch.from_numpy(image)[None] for name, image in images.items()}
    truth, opt_v2, s1 = layers["truth"], layers["opt_v2"], layers.get("s1")
    gap = layers["trust"] == 0 if "trust" in layers else torch.zeros_like(truth[:, :1], dtype=torch.bool)
    baseline, mask, colour = "opt_v2", None, truth
    if bool(gap.any()):
        colour = opt_v2.masked_fill(gap, torch.nan)
        baseline, mask, opt_v2 = "smooth fill", gap, fill_nodata(colour, valid_pixels(colour))
    flat = colour.nanmean((2, 3), keepdim=True).expand_as(truth)
    try:
        metrics = stage3_metrics(layers["opt_v3"], opt_v2, truth, mask, s1)
        if "opt_v1" in layers:
            first = compute_metrics(layers["opt_v1"], truth, s1=s1, mask=mask)
            metrics |= {f"{key}_v1": value for key, value in first.items()}
        return Measured(baseline, metrics, compute_metrics(flat, truth, s1=s1, mask=mask))
    except InputError:  # not one pixel that counts
        return None
