"""Fit the season's colour of Stage 2 to pairs in closed form: ridge regression, with every place heard.

A network learns the season from a hundred tiles slowly and badly; twenty-eight numbers by least squares need a look at
each tile. The fit comes before the training, which may change it further.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from axs_lib.errors import InputError
from axs_lib.prithvi.colour import REGRESSORS, regressors
from axs_lib.prithvi.metadata import encode_metadata
from axs_lib.progress import track
from axs_lib.stage2_prithvi_refine import PrithviRefiner
from axs_lib.train.readers.sample import Sample

MOST_SAMPLES = 2000  # evenly spread; more would only take longer to read
RIDGE = 0.3  # beside the tiles' mean squares of order 1; the constant is hardly held back
SIDE = 256  # px of a sample that are read


@torch.no_grad()
def fit_colour(refiner: PrithviRefiner, samples: Sequence[Sample], *, progress: bool = False) -> int:
    """Set the season's colour of a refiner to the best of the given pairs.

    A tile counts by its mean, whatever its size, and a group by the root of the number of its tiles, so that neither
    one long-watched place nor single tiles rule. Where no tile has a date outside the tropics nothing is changed.

    Args:
        refiner: its ``colour`` is set.
        samples: training pairs with opt_v1; unreadable ones are passed over, training will name them.
        progress: show a bar.

    Returns:
        How many tiles were used.
    """
    if len(samples) > MOST_SAMPLES:
        samples = [samples[i * len(samples) // MOST_SAMPLES] for i in range(MOST_SAMPLES)]
    group_size = Counter(sample.group for sample in samples)
    gram, moment, used = torch.zeros(REGRESSORS, REGRESSORS).double(), torch.zeros(REGRESSORS, 4).double(), 0
    for sample in track(samples, "season's colour", enabled=progress, total=len(samples)):
        try:
            x, y = _system(refiner, sample)
        except InputError:
            continue
        if len(x) == 0:
            continue
        weight = group_size[sample.group] ** -0.5 / len(x)
        gram += weight * x.T @ x
        moment += weight * x.T @ y
        used += 1
    if used:
        ridge = torch.full((REGRESSORS,), RIDGE, dtype=torch.float64)
        ridge[0] = 0.01
        solution = torch.linalg.solve(gram + torch.diag(ridge), moment)
        refiner.colour.weight.copy_(solution.T)
    return used


def _system(refiner: PrithviRefiner, sample: Sample) -> tuple[Tensor, Tensor]:
    """Regressors (N, 7) and what is missing (N, 4) in z-units, of the pixels that count; N = 0 without a season."""
    crop = sample.read(sample.centre(SIDE))
    optical = refiner.backbone.optical
    before, truth = (
        optical.to_z(torch.from_numpy(image.copy())[None]).float()
        for image in (crop.estimates["opt_v1"], crop.s2)
    )
    x = regressors(before, encode_metadata([crop.metadata], 1))[0].flatten(1).T
    y = (truth - before)[0].flatten(1).T
    counts = (x[:, 0] != 0) & x.isfinite().all(1) & y.isfinite().all(1)
    return x[counts].double(), y[counts].double()
