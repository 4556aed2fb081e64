"""Random crops of Sentinel-1/Sentinel-2 pairs for nano's own trainings: everything in memory, one square size a batch.

In go pair records, out come batches ``{"s1": (B, 2, c, c) dB, "truth": (B, 4, c, c) DN}``. Tiles are drawn with a
chance that grows with the square root of their area, so that big tiles do not drown small ones, and turned and
mirrored. A batch is a function of (seed, step), so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from axs_lib.data.pairs import PairRecord, load_pair
from axs_lib.errors import InputError
from axs_lib.nodata import fill_nodata, valid_pixels
from axs_lib.train.readers.batches import draw


class Crops:
    """Random crops of pairs, of one of the ``sizes`` in pixels a batch, which holds about ``batch_pixels``.

    Raises InputError: no pair is large enough.
    """

    def __init__(self, records: Sequence[PairRecord], sizes: Sequence[int], batch_pixels: int, seed: int) -> None:
        self.batch_pixels, self.seed = batch_pixels, seed
        self.tiles: list[tuple[Tensor, Tensor]] = []
        for record in records:
            pair = load_pair(record)
            s1, s2 = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
            valid = valid_pixels(s1, s2)
            self.tiles.append((fill_nodata(s1, valid)[0], fill_nodata(s2, valid)[0]))
        self.sides = torch.tensor([min(s1.shape[-2:]) for s1, _ in self.tiles] or [0])
        self.sizes = [size for size in sizes if size <= int(self.sides.max())]
        if not self.sizes:
            raise InputError(
                f"the largest of {len(records)} pairs is {int(self.sides.max())} px; expected at least {min(sizes)} px"
            )

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of one step, the same whenever it is asked for."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        size = self.sizes[draw(random, len(self.sizes))]
        chance = torch.where(self.sides >= size, self.sides.float(), 0.0)
        count = max(1, self.batch_pixels // size**2)
        crops = []
        for index in torch.multinomial(chance, count, replacement=True, generator=random).tolist():
            images = self.tiles[index]
            height, width = images[0].shape[-2:]
            top, left, turns, mirror = (draw(random, high) for high in (height - size + 1, width - size + 1, 4, 2))
            cut = [image[:, top : top + size, left : left + size].rot90(turns, (1, 2)) for image in images]
            crops.append([image.flip(2) if mirror else image for image in cut])
        s1, truth = (torch.stack(images) for images in zip(*crops, strict=True))
        return {"s1": s1, "truth": truth}
