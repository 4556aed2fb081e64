"""Fit the season's colour of Stage 2 to pairs in closed form; training would learn it slowly and badly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from axs_lib.errors import InputError
from axs_lib.prithvi.colour import REGRESSORS, regressors
from axs_lib.prithvi.metadata import encode_metadata
from axs_lib.progress import track
from axs_lib.stage2_prithvi_refine import PrithviRefiner
from axs_lib.train.readers.sample import TrainingSample, evenly_spread

MOST_SAMPLES = 2000  # evenly spread; more would only take longer to read
RIDGE, RIDGE_OF_CONSTANT = 0.3, 0.01  # beside the tiles' mean squares, which are of order 1
SIDE = 256  # px of a sample that are read


@torch.no_grad()
def fit_colour(refiner: PrithviRefiner, samples: Sequence[TrainingSample], *, progress: bool = False) -> int:
    """Set the season's colour of a refiner to the best of training pairs with opt_v1; returns how many were used.

    A tile counts by its mean, and a group by the root of the number of its tiles, so that no long-watched place rules.
    Unreadable pairs are passed over; without a dated tile outside the tropics nothing is changed.
    """
    tiles = []
    for sample in track(evenly_spread(samples, MOST_SAMPLES), "season's colour", enabled=progress):
        try:
            crop = sample.read(sample.centre(SIDE))
        except InputError:
            continue
        before, truth = (
            refiner.backbone.optical.to_z(torch.from_numpy(image.copy())[None]).float()
            for image in (crop.estimates["opt_v1"], crop.s2)
        )
        gram, moment = normal_equations(before, truth, crop.metadata)
        if bool(gram.any()):
            tiles.append((sample.group, gram, moment))
    if tiles:
        refiner.colour.weight.copy_(solve(tiles))
    return len(tiles)


def normal_equations(before: Tensor, truth: Tensor, metadata: Mapping[str, object]) -> tuple[Tensor, Tensor]:
    """Means (7, 7) and (7, 4) over the valid pixels of z-scored images (1, 4, H, W); 0 where the season is unknown."""
    x = regressors(before, encode_metadata([metadata], 1))[0].flatten(1).T.double()
    y = (truth - before)[0].flatten(1).T.double()
    counts = (x[:, 0] != 0) & x.isfinite().all(1) & y.isfinite().all(1)
    x, y = x[counts], y[counts]
    return x.T @ x / max(1, len(x)), x.T @ y / max(1, len(x))


def solve(tiles: Sequence[tuple[str, Tensor, Tensor]]) -> Tensor:
    """(4, 7) weight of ``SeasonalColour``: ridge regression over tiles, each with its group and normal equations."""
    group_size = Counter(group for group, _, _ in tiles)
    gram = torch.stack([group_size[group] ** -0.5 * gram for group, gram, _ in tiles]).sum(0)
    moment = torch.stack([group_size[group] ** -0.5 * moment for group, _, moment in tiles]).sum(0)
    ridge = torch.full((REGRESSORS,), RIDGE, dtype=torch.float64)
    ridge[0] = RIDGE_OF_CONSTANT
    return torch.linalg.solve(gram + torch.diag(ridge), moment).T.float()
