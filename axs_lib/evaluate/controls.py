"""Controls: what a gain would be without its supposed cause.

In: a batch of tiles with the opt_v2 that was grounded. Out: one image a control, to be measured like opt_v3:

================== ==================================================================================================
key                opt_v3 is replaced by
================== ==================================================================================================
sar_swapped        Stage 3 with another tile's SAR and the same opt_v2
proposal_swapped   Stage 3 with the proposal that it drew for another tile, and the tile's own SAR and opt_v2 (not where
                   it corrects by the difference of two proposals)
no_sar             Stage 3 retrained without SAR: it is given the mean backscatter everywhere
plain              one plain U-Net
mean_colour        the mean colour of nano's training tiles everywhere
tile_mean          the true mean colour of the tile: an oracle that knows place and season, and nothing else
no_date            the pipeline's opt_v3 where nothing is known of date and place
no_date_v2         its opt_v2 there
================== ==================================================================================================

The other tile is the next in the list, of another group (and of the same size) where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from axs_lib.data.pairs import PairRecord, load_pair
from axs_lib.evaluate.models import Grounder, Plain, ground
from axs_lib.evaluate.sources import EvaluationTile
from axs_lib.nodata import pad_square

if TYPE_CHECKING:
    from axs_lib.stage3_tm_ground import Stage3GroundingModel

SAR_SWAPPED = "sar_swapped"
PROPOSAL_SWAPPED = "proposal_swapped"
NO_SAR = "no_sar"
PLAIN = "plain"
MEAN_COLOUR = "mean_colour"
TILE_MEAN = "tile_mean"
NO_DATE = "no_date"
NO_DATE_V2 = "no_date_v2"
CONTROL_LABELS = {
    SAR_SWAPPED: "another tile's SAR",
    PROPOSAL_SWAPPED: "another tile's proposal",
    NO_SAR: "retrained without SAR",
    PLAIN: "one plain U-Net",
    MEAN_COLOUR: "mean colour",
    TILE_MEAN: "tile's true mean colour",
    NO_DATE: "date and place withheld",
    NO_DATE_V2: "opt_v2, date and place withheld",
}


@dataclass(frozen=True)
class ControlModels:
    """Models beside the one that is measured.

    Attributes:
        no_sar: Stage 3 retrained without SAR.
        plain: one plain network.
    """

    no_sar: Stage3GroundingModel | None = None
    plain: Plain | None = None

    def described(self) -> dict[str, dict[str, str]]:
        """What they are, for the report."""
        described = {}
        if self.no_sar is not None:
            described[NO_SAR] = dict(self.no_sar.provenance)
        if self.plain is not None:
            described[PLAIN] = {"inputs": self.plain.inputs}
        return described


def find_donors(records: Sequence[PairRecord]) -> dict[str, PairRecord]:
    """For each tile's name another tile; nothing where there is only one tile."""
    if len(records) < 2:
        return {}
    return {record.name: _donor(records, index) for index, record in enumerate(records)}


def _donor(records: Sequence[PairRecord], index: int) -> PairRecord:
    record = records[index]
    others = [*records[index + 1 :], *records[:index]]

    def merit(other: PairRecord) -> tuple[bool, bool]:
        return other.group != record.group, (other.height, other.width) == (record.height, record.width)

    return max(others, key=merit)


def fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Another tile's image (C,h,w), nodata filled with the band's mean, reflected and cropped to a size."""
    mean = image.nanmean((1, 2), keepdim=True)
    filled = torch.where(image.isnan(), mean, image)
    height, width = size
    return pad_square(filled[None], max(*image.shape[1:], *size))[0, :, :height, :width]


def swapped_sar(tiles: Sequence[EvaluationTile], donors: dict[str, PairRecord]) -> Tensor:
    """SAR (B,2,H,W) of other tiles, nodata where the tiles have it."""
    images = []
    for tile in tiles:
        other = torch.from_numpy(load_pair(donors[tile.record.name]).s1)
        size = (tile.s1.shape[-2], tile.s1.shape[-1])
        images.append(fitted(other, size).masked_fill(tile.s1.isnan(), torch.nan))
    return torch.stack(images)


def without_sar(s1: Tensor, mean: Tensor) -> Tensor:
    """(B,2,H,W) of mean backscatter (1,2,1,1) in dB, nodata where the SAR has it."""
    return torch.where(s1.isnan(), s1, mean.to(s1))


def control_images(
    tiles: Sequence[EvaluationTile],
    opt_v2: Tensor,
    stage3: Grounder,
    models: ControlModels,
    timesteps: int,
    seed: int,
    *,
    donors: dict[str, PairRecord],
    floors: bool,
) -> dict[str, Tensor]:
    """The image (B,4,H,W) of every control but ``proposal_swapped``, which needs all tiles to have been grounded, and
    those of the whole pipeline.

    Args:
        tiles: of one size.
        opt_v2: (B,4,H,W), what was grounded.
        stage3: the model that is measured.
        models: those beside it.
        timesteps: network evaluations of Stage 3.
        seed: of its noise.
        donors: from ``find_donors``; empty leaves ``sar_swapped`` out.
        floors: whether to add the constant colours.
    """
    s1 = torch.stack([tile.s1 for tile in tiles])
    images: dict[str, Tensor] = {}
    if donors:
        other = swapped_sar(tiles, donors)
        images[SAR_SWAPPED] = ground(stage3, other, opt_v2, timesteps, seed).image.cpu()
    if models.no_sar is not None:
        blind = without_sar(s1, models.no_sar.terramind_generator.sar.mean.cpu())
        images[NO_SAR] = ground(models.no_sar, blind, opt_v2, timesteps, seed).image.cpu()
    if models.plain is not None:
        estimate = opt_v2.to(stage3.device) if "optical" in models.plain.inputs else None
        images[PLAIN] = models.plain.predict(s1.to(stage3.device), estimate).cpu()
    if floors:
        from axs_lib.bands import OPTICAL_MEAN

        truth = torch.stack([tile.truth for tile in tiles])
        images[MEAN_COLOUR] = torch.tensor(OPTICAL_MEAN)[None, :, None, None].expand_as(truth)
        images[TILE_MEAN] = truth.nanmean((2, 3), keepdim=True).expand_as(truth)
    return images


def swapped_proposal_images(
    tiles: Sequence[EvaluationTile],
    opt_v2: Tensor,
    proposals: dict[str, Tensor],
    stage3: Grounder,
    timesteps: int,
    seed: int,
    *,
    donors: dict[str, PairRecord],
) -> Tensor:
    """opt_v3 (B,4,H,W) with the proposals (by name, (4,h,w) DN) of other tiles."""
    s1 = torch.stack([tile.s1 for tile in tiles])
    size = (s1.shape[-2], s1.shape[-1])
    others = torch.stack([fitted(proposals[donors[tile.record.name].name], size) for tile in tiles])
    image: Tensor = ground(stage3, s1, opt_v2, timesteps, seed, proposal=others).image
    return image.cpu()
