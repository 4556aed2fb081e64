"""Batches of random crops for training and whole tiles for validation, from any reader's samples.

A training batch is a function of (seed, index) alone, so that a resumed run, or several devices, see the same ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from axs_lib.bands import sar_stats
from axs_lib.errors import InputError
from axs_lib.nodata import fill_nodata, valid_pixels
from axs_lib.tilegrid import Tile
from axs_lib.train.readers import BadDataWarning, DataConfig
from axs_lib.train.readers.sample import Crop, TrainingSample, evenly_spread

Batch = dict[str, Any]
MIN_VALID = 0.5  # share of a training crop's pixels that must hold data
TRIES = 100
VALIDATION_SIDE = 256  # px


class CropDataset(Dataset[Batch]):
    """Item ``index`` is one batch of random crops.

    A batch holds ``s1`` (B, 2, c, c) dB and ``truth`` (B, 4, c, c) DN, nodata filled; ``mask`` (B, 1, c, c), True where
    a pixel is real; ``opt_v1`` and ``opt_v2`` where ``estimates`` asks for them; ``metadata``, one mapping a crop; and
    its ``index``. Larger samples are drawn more often, by their shorter side. Samples that cannot be read are errors,
    or with ``on_bad: skip`` named once and replaced. Raises InputError: no sample is large enough.
    """

    def __init__(
        self, samples: Sequence[TrainingSample], config: DataConfig, estimates: Sequence[str] = (), seed: int = 0
    ) -> None:
        self.samples, self.config, self.estimates, self.seed = list(samples), config, estimates, seed
        sides = torch.tensor([min(sample.height, sample.width) for sample in self.samples])
        self.crop_sizes = [size for size in config.crop_sizes if size <= int(sides.max())]
        if not self.crop_sizes:
            raise InputError(
                f"the largest pair is {int(sides.max())} px; expected at least {min(config.crop_sizes)} px: give"
                " smaller data.crop_sizes"
            )
        self._chances = {size: torch.where(sides >= size, sides.double(), 0.0).cumsum(0) for size in self.crop_sizes}
        self._reported: set[str] = set()

    def __getitem__(self, index: int) -> Batch:
        random = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
        size = self.crop_sizes[draw(random, len(self.crop_sizes))]
        crops = [self._crop(size, random) for _ in range(self.config.batch_size)]
        return _stack(crops, self.estimates) | {"index": index}

    def _crop(self, size: int, random: torch.Generator) -> Crop:
        error: InputError | None = None
        for _ in range(TRIES):
            chance = self._chances[size]
            point = torch.rand((), generator=random, dtype=torch.float64) * chance[-1]
            sample = self.samples[min(int(torch.searchsorted(chance, point, right=True)), len(chance) - 1)]
            top, left = draw(random, sample.height - size + 1), draw(random, sample.width - size + 1)
            turns, mirror = draw(random, 4), draw(random, 2)
            try:
                crop = sample.read(Tile(top, left, top + size, left + size))
            except InputError as problem:
                if self.config.on_bad == "refuse":
                    raise InputError(f"{problem}; to train without such files: --data.on_bad skip") from problem
                error = problem
                if sample.name not in self._reported:
                    self._reported.add(sample.name)
                    warnings.warn(f"left out: {problem}", BadDataWarning, stacklevel=2)
                continue
            if _valid_share(crop) >= MIN_VALID:
                rotated = crop.map(partial(np.rot90, k=turns, axes=(1, 2)))
                return rotated.map(lambda image: image[..., ::-1]) if mirror else rotated
        raise InputError(
            f"{TRIES} draws gave no {size} px crop with data in half of its pixels"
            + (f"; the last problem: {error}" if error else "; look for nodata in the pairs")
        )


def validation_batches(
    samples: Sequence[TrainingSample], config: DataConfig, estimates: Sequence[str] = ()
) -> list[Batch]:
    """The middle of held-out samples, one a batch: ``validation_tiles`` of them, evenly spread."""
    batches: list[Batch] = []
    for sample in evenly_spread(samples, config.validation_tiles):
        crop = sample.read_or_skip(sample.centre(VALIDATION_SIDE), config.on_bad == "skip")
        if crop is not None and _valid_share(crop) > 0:
            batches.append(_stack([crop], estimates) | {"index": len(batches)})
    return batches


def _valid_share(crop: Crop) -> float:
    """Share of the pixels in which both SAR and truth hold data."""
    return float((np.isfinite(crop.s1).all(0) & np.isfinite(crop.s2).all(0)).mean())


def draw(random: torch.Generator, high: int) -> int:
    """A whole number from 0 to below ``high``."""
    return int(torch.randint(high, (), generator=random))


def _stack(crops: Sequence[Crop], estimates: Sequence[str]) -> Batch:
    def tensor(images: Sequence[np.ndarray[Any, Any]]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.stack(images), dtype=np.float32))

    images = {"s1": tensor([c.s1 for c in crops]), "truth": tensor([c.s2 for c in crops])}
    images |= {key: tensor([c.estimates[key] for c in crops]) for key in estimates}
    dark = torch.tensor(sar_stats("S1GRD")[0])[None, :, None, None]
    batch: Batch = {
        key: fill_nodata(image, valid_pixels(image), fallback=dark if key == "s1" else 1.0)
        for key, image in images.items()
    }
    return batch | {"mask": valid_pixels(*images.values()), "metadata": [dict(c.metadata) for c in crops]}
