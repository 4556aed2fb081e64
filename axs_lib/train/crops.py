"""Random crops of Sentinel-1/Sentinel-2 pairs for training: everything in memory, one square size a batch.

In go pair records, out come batches ``{"s1": (B, 2, c, c) dB, "truth": (B, 4, c, c) DN}``. Tiles are drawn with a
chance that grows with the square root of their area, so that big tiles do not drown small ones, and turned and
mirrored. A batch is a function of (seed, step), so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from axs_lib.data.pairs import PairRecord, load_pair
from axs_lib.errors import InputError
from axs_lib.nodata import fill_nodata, valid_pixels


class CropBatches(IterableDataset[dict[str, Tensor]]):
    """Endless batches of random crops, from the batch of step ``start`` on.

    Args:
        records: the training pairs.
        start: first step; a resumed run passes the steps already made.
        crop_sizes: crop sides in pixels, one drawn for each batch.
        batch_pixels: pixels a batch holds, so that small crops come in larger batches.
        seed: of all draws.

    Raises:
        InputError: no pair is large enough.
    """

    def __init__(
        self,
        records: Sequence[PairRecord],
        *,
        start: int = 0,
        crop_sizes: Sequence[int] = (64, 96, 128),
        batch_pixels: int = 8 * 96 * 96,
        seed: int = 0,
    ) -> None:
        if not records:
            raise InputError(
                "no training pair is left after the selection by quality and group; check the data folder"
            )
        self.start, self.crop_sizes, self.batch_pixels, self.seed = (
            start,
            list(crop_sizes),
            batch_pixels,
            seed,
        )
        self.tiles: list[tuple[Tensor, Tensor]] = []
        for record in records:
            pair = load_pair(record)
            s1, s2 = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
            valid = valid_pixels(s1, s2)
            self.tiles.append((fill_nodata(s1, valid)[0], fill_nodata(s2, valid)[0]))
        self._sides = torch.tensor([min(s1.shape[-2:]) for s1, _ in self.tiles])
        if int(self._sides.max()) < min(self.crop_sizes):
            raise InputError(
                f"the largest pair is {int(self._sides.max())} px; expected at least {min(self.crop_sizes)} px"
            )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        step = self.start
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of one step, the same whenever it is asked for."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + step)

        def draw(high: int) -> int:
            return int(torch.randint(high, (), generator=random))

        sizes = [size for size in self.crop_sizes if size <= int(self._sides.max())]
        size = sizes[draw(len(sizes))]
        count = max(1, self.batch_pixels // size**2)
        chance = torch.where(self._sides >= size, self._sides.float(), 0.0)
        chosen = torch.multinomial(chance, count, replacement=True, generator=random).tolist()
        sar, optical = [], []
        for index in chosen:
            s1, s2 = self.tiles[index]
            top, left = draw(s1.shape[-2] - size + 1), draw(s1.shape[-1] - size + 1)
            turns, mirror = draw(4), draw(2)
            crops = [
                image[:, top : top + size, left : left + size].rot90(turns, (1, 2)) for image in (s1, s2)
            ]
            crops = [crop.flip(2) if mirror else crop for crop in crops]
            sar.append(crops[0])
            optical.append(crops[1])
        return {"s1": torch.stack(sar), "truth": torch.stack(optical)}
