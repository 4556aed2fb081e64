"""The tiles of an evaluation: which pairs, in which batches, and where their opt_v2 comes from.

Whatever is simulated depends on nothing but the truth and the tile's name, so that all models meet the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.checks import check_pair
from axs_lib.data.degrade import degrade
from axs_lib.data.pairs import PairRecord, Quality, check_groups, check_valid, list_pairs, load_pair
from axs_lib.errors import InputError, counted
from axs_lib.grounding.sar_inconsistency import open_water
from axs_lib.nodata import fill_nodata, pad_square, valid_pixels

# The pair's own (simulated where it has none), made by Stages 1 and 2, simulated, or the pair's cloudy image.
OptV2Source = Literal["file", "stage2", "degraded", "cloudy"]


@dataclass(frozen=True)
class EvaluationTile:
    """A pair as tensors, NaN = nodata: ``s1`` (2,H,W) in dB, the others (4,H,W) in DN."""

    record: PairRecord
    s1: Tensor
    truth: Tensor
    opt_v2: Tensor | None = None
    s2_cloudy: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.truth.shape[-2], self.truth.shape[-1]

    def estimate(self, source: OptV2Source) -> tuple[Tensor, str]:
        """What is grounded, (4,H,W) DN, and its source; all NaN where Stages 1 and 2 will make it."""
        given = self.s2_cloudy if source == "cloudy" else self.opt_v2 if source == "file" else None
        if given is not None:
            name = "s2_cloudy" if source == "cloudy" else "opt_v2"
            check_valid(self.record.path, s1=self.s1.numpy(), s2=self.truth.numpy(), **{name: given.numpy()})
            return given, source
        if source == "stage2":
            return torch.full_like(self.truth, torch.nan), source
        return simulated_estimate(self.truth, self.record.name), "degraded"


def read_tile(record: PairRecord, *, force: bool = False) -> EvaluationTile:
    """Read one pair; ``InputError`` names the file that is broken or, unless ``force``, in another unit."""
    pair = load_pair(record)
    s1, truth = torch.from_numpy(pair.s1), torch.from_numpy(pair.s2)
    opt_v2, s2_cloudy = (None if image is None else torch.from_numpy(image) for image in (pair.opt_v2, pair.s2_cloudy))
    try:
        for name, image in (("s2", truth), ("opt_v2", opt_v2), ("s2_cloudy", s2_cloudy)):
            if image is not None:
                check_pair(s1, image, source="file", force=force, name=name)
    except InputError as error:
        raise InputError(f"{record.path}: {error}") from error
    return EvaluationTile(record, s1, truth, opt_v2, s2_cloudy)


def generator_of(name: str) -> torch.Generator:
    """Draws that depend on a name alone: the same wherever and whenever a tile is evaluated."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode(errors="surrogateescape")))


def simulated_estimate(truth: Tensor, name: str) -> Tensor:
    """The simulated Stage 2 estimate (4,H,W) of a tile."""
    return degrade(truth, generator=generator_of(name), preset="test")


def water_on_land(s1: Tensor, truth: Tensor) -> float:
    """Share of the valid pixels that are open water in the SAR (2,H,W) and, by NDWI, dry land in the truth (4,H,W)."""
    valid = valid_pixels(s1[None], truth[None])
    if not bool(valid.any()):
        return 0.0
    filled = fill_nodata(truth[None], valid)
    green, nir = filled[:, OPTICAL_BANDS.index("B03")], filled[:, OPTICAL_BANDS.index("B08")]
    wet = open_water(fill_nodata(s1[None], valid))[:, 0] > 0.5
    return float((wet & (green < nir))[valid[:, 0]].float().mean())


def select_pairs(
    folder: str | Path, quality: Quality, groups: Sequence[str] | None, source: OptV2Source = "file"
) -> list[PairRecord]:
    """The pairs to evaluate, of source ``cloudy`` those with a cloudy image; InputError where there is none."""
    records = list_pairs(folder, quality)
    if groups is not None:
        check_groups(folder, records, groups or ["(none given)"])
        records = [record for record in records if record.group in set(groups)]
    if source == "cloudy":
        count = len(records)
        records = [record for record in records if load_pair(record).s2_cloudy is not None]
        if not records:
            raise InputError(
                f"of {counted(count, 'pair')} of {folder} none holds s2_cloudy; expected at least one: choose another"
                " --opt-v2-source or other groups"
            )
    return records


def find_donors(records: Sequence[PairRecord]) -> dict[str, PairRecord]:
    """For each tile's name another one: the next in the list of another group and the same size, where there is one."""
    donors = {}
    for index, record in enumerate(records if len(records) > 1 else []):
        others = [*records[index + 1 :], *records[:index]]
        merits = [(other.group != record.group, other.size == record.size) for other in others]
        donors[record.name] = others[merits.index(max(merits))]
    return donors


def find_other_dates(records: Sequence[PairRecord]) -> dict[str, PairRecord]:
    """For a tile's name one of its group, size and location (where known) and another date or month, if any."""
    found = {}
    for index, record in enumerate(records):
        day = _known(record, "date", "year", "month")
        for other in (*reversed(records[:index]), *records[index + 1 :]):
            other_day = _known(other, "date", "year", "month")
            same_place = record.group == other.group and _known(record, "lat", "lon") == _known(other, "lat", "lon")
            if same_place and record.size == other.size and day and other_day and day != other_day:
                found[record.name] = other
                break
    return found


def _known(record: PairRecord, *keys: str) -> dict[str, str | float]:
    return {key: record.metadata[key] for key in keys if key in record.metadata}


def fitted(image: Tensor, size: Sequence[int]) -> Tensor:
    """Another tile's image (C,h,w), nodata filled with the band's mean, reflected and cropped to (C,*size)."""
    filled = torch.where(image.isnan(), image.nanmean((1, 2), keepdim=True), image)
    height, width = size
    return pad_square(filled[None], max(*image.shape[1:], *size))[0, :, :height, :width]
