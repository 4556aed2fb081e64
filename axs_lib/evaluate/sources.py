"""The tiles of an evaluation: which pairs, in which batches, and where their opt_v2 comes from.

In: a folder of NPZ pairs (see ``axs_lib.data.pairs``). Out: ``EvaluationTile``, a pair as tensors with the estimate
that is to be grounded. A simulated estimate depends on nothing but the truth and the tile's name, so that all models
meet the same one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from axs_lib.checks import check_pair
from axs_lib.data.degrade import degrade
from axs_lib.data.pairs import Pair, PairRecord, Quality, list_pairs, load_pair
from axs_lib.errors import InputError

OptV2Source = Literal["file", "stage2", "degraded", "cloudy"]
"""Where opt_v2 comes from: the pair's own (simulated where it has none), made by Stages 1 and 2, simulated from the
truth, or the pair's cloudy image."""


class EvaluationTile:
    """A pair as tensors.

    Attributes:
        record: the pair.
        s1: (2,H,W) dB.
        truth: (4,H,W) DN.
        opt_v2: (4,H,W) DN, the estimate; all NaN where Stages 1 and 2 will make it.
        opt_v2_source: ``file``, ``degraded``, ``cloudy`` or ``stage2``.

    Raises:
        InputError: values in another unit, unless ``force``; the message names the file.
    """

    def __init__(self, pair: Pair, source: OptV2Source, *, force: bool = False) -> None:
        self.record = pair.record
        self.s1 = torch.from_numpy(pair.s1)
        self.truth = torch.from_numpy(pair.s2)
        if source == "file" and pair.opt_v2 is None:
            source = "degraded"
        self.opt_v2_source = source
        try:
            check_pair(self.s1, self.truth, source="file", force=force)
            if source == "stage2":
                self.opt_v2 = torch.full_like(self.truth, torch.nan)
            elif source == "degraded":
                self.opt_v2 = simulated_estimate(self.truth, pair.record.name)
            else:
                given = pair.s2_cloudy if source == "cloudy" else pair.opt_v2
                assert given is not None  # select_pairs keeps cloudy pairs only, and file has one here
                self.opt_v2 = torch.from_numpy(given)
                check_pair(self.s1, self.opt_v2, source="file", force=force)
        except InputError as error:
            raise InputError(f"{pair.record.path}: {error}") from error


def simulated_estimate(truth: Tensor, name: str) -> Tensor:
    """The simulated Stage 2 estimate (4,H,W) of a tile: the same wherever and whenever it is evaluated."""
    return degrade(truth, seed=zlib.crc32(name.encode()), preset="test")


def select_pairs(
    folder: str | Path,
    quality: Quality,
    groups: Sequence[str] | None,
    source: OptV2Source = "file",
) -> list[PairRecord]:
    """The pairs to evaluate; of source ``cloudy`` those that hold a cloudy image.

    Raises:
        InputError: no pairs, an unknown group, no cloudy image, or (where files are read) a broken pair.
    """
    records = list_pairs(folder, quality)
    if groups is not None:
        known = {record.group for record in records}
        unknown = sorted(set(groups) - known)
        if unknown or not groups:
            raise InputError(
                f"no tile of the groups {', '.join(unknown) or '(none given)'}; there are {', '.join(sorted(known))}."
            )
        records = [record for record in records if record.group in set(groups)]
    if source == "cloudy":
        count = len(records)
        records = [record for record in records if load_pair(record).s2_cloudy is not None]
        if not records:
            raise InputError(
                f"none of the {count} pairs of {folder} holds s2_cloudy; expected at least one: choose another"
                " --opt-v2-source or other groups"
            )
    return records


def batches_of_one_size(records: Sequence[PairRecord], size: int) -> Iterator[list[PairRecord]]:
    """Up to ``size`` tiles of one height and width at a time."""
    shapes = sorted({(record.height, record.width) for record in records})
    for shape in shapes:
        same = [record for record in records if (record.height, record.width) == shape]
        yield from (same[start : start + size] for start in range(0, len(same), size))
