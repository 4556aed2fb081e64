"""The corrector: from SAR, estimate and TerraMind's proposal to a bounded correction of the estimate.

Everything that limits a correction is here: the gate, the mask of where broad colour may change, the low-frequency
constraint (levelled blocks and the tile's filter are not under it), and the feathering at the borders of gaps. The
statistics are the corrector's own, so one trained head serves every TerraMind variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.bands import OPTICAL_MEAN, OPTICAL_STD, sar_stats
from axs_lib.grounding.calibration import Calibration
from axs_lib.grounding.gap import estimate_share, fit_to_observed, unknown_share
from axs_lib.grounding.head import GroundingHead
from axs_lib.grounding.low_freq import constrain_low_frequencies
from axs_lib.grounding.orientation import turn, turn_back
from axs_lib.grounding.sar_inconsistency import open_water, shows_water, smoothstep
from axs_lib.grounding.spikes import without_spikes
from axs_lib.nodata import spread

if TYPE_CHECKING:
    from axs_lib.terramind.weights import WeightsInfo


# Smoothstep limits (start, end) for the head's missed water and the backscatter rule: where broad colour changes.
WATER_SEEN, WATER_LIKELY = (0.5, 0.7), (0.3, 0.6)
SHORE_PX, SHORE = 4, 0.25  # the rule also applies within SHORE_PX pixels, at most to its own value there / SHORE
# Shares of a tile: errors in gaps are larger where less is known, down to the least. By the validation tiles.
ENOUGH_KNOWN, LEAST_KNOWN = 0.5, 0.03
REFUSED_DN = (600.0, 1500.0)  # RMS over the bands of refused broad change, from where on the gate closes, and wholly


@dataclass(frozen=True)
class GroundingTiles:
    """Tiles without nodata, padded to the network's side S."""

    s1: Tensor  # backscatter (B, 2, S, S) in dB, VV and VH
    estimate: Tensor  # opt_v2 (B, 4, S, S) in DN, B02 B03 B04 B08; filled from neighbours where it is unknown
    trust: Tensor  # (B, 1, S, S), values of ``axs_lib.checks.Trust``; 0 also where either image has no data
    sar_inconsistency: Tensor  # (B, 1, S, S) in [0, 1], from ``axs_lib.grounding.sar_inconsistency``
    size: tuple[int, int] | None = None  # height and width without the padding, at the upper left; None without any

    def without_sar(self, s1: Tensor) -> GroundingTiles:
        """The tiles with ``s1`` (dB, broadcast) in the place of the SAR's content."""
        consistent = torch.zeros_like(self.sar_inconsistency)
        return replace(self, s1=s1.expand_as(self.s1), sar_inconsistency=consistent)


@dataclass(frozen=True)
class Correction:
    """What the corrector makes of one proposal."""

    change: Tensor  # (B, 4, S, S) in DN, to be added to the estimate; 0 from a fresh head and where it was observed
    residual: Tensor  # (B, 4, S, S) in DN, before gate, constraint and feathering
    gate: Tensor  # (B, 1, S, S) in [0, 1], how much of the residual is used
    low_freq_mask: Tensor  # (B, 1, S, S) in [0, 1], where broad colour may change
    # Of the learned correction alone: the predicted standard error of estimate + change, (B, 4, S, S) in DN, not
    # calibrated, 0 where the estimate was observed; the part of the change that levelling and the tile's filter make,
    # (B, 4, S, S) in DN; and where the head sees water that the estimate lacks, (B, 1, S, S) in [0, 1].
    error: Tensor | None = None
    filtered: Tensor | None = None
    missed_water: Tensor | None = None


class GroundingCorrector(nn.Module):
    """Head, masks, low-frequency constraint, feathering and predicted error.

    With a fresh head it changes nothing. ``s1_product`` (``"S1GRD"`` or ``"S1RTC"``) chooses the SAR statistics.
    """

    s1_mean: Tensor
    s1_std: Tensor
    optical_mean: Tensor
    optical_std: Tensor

    def __init__(self, head: GroundingHead, *, s1_product: str = "S1GRD") -> None:
        super().__init__()
        self.head = head
        self.calibration: Calibration | None = None
        self.weights: WeightsInfo | None = None
        statistics = (*sar_stats(s1_product), OPTICAL_MEAN, OPTICAL_STD)
        for name, values in zip(("s1_mean", "s1_std", "optical_mean", "optical_std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @property
    def provenance(self) -> dict[str, str]:
        """What made an output, for file tags: the head's weights, their hash, and what it is calibrated for."""
        tags = self.weights.tags() if self.weights else {"AXS_WEIGHTS": "random"}
        tags = {name.replace("AXS_WEIGHTS", "AXS_HEAD", 1): value for name, value in tags.items()}
        if self.calibration is not None:
            tags["AXS_CALIBRATION"] = f"nfe {','.join(map(str, sorted(self.calibration.scales)))}"
        return tags

    def forward(
        self, tiles: GroundingTiles, proposal: Tensor, *, hold_colour: bool = False, orientation: int = 0
    ) -> Correction:
        """The learned correction.

        Args:
            tiles: SAR, estimate, trust and SAR inconsistency.
            proposal: TerraMind's image (B, 4, S, S) in DN.
            hold_colour: keep the broad colour of an estimate; blocks are levelled and gaps filled all the same, trust
                below 0.5 in part.
            orientation: how the tile is turned or mirrored for the head, 0 to 7.
        """
        # 1. Blocks are levelled, the tile filtered; the head is shown that, from which no gradient comes back to them.
        s1 = (tiles.s1 - self.s1_mean) / self.s1_std  # (B, 2, S, S)
        estimate, proposal = (
            without_spikes((image - self.optical_mean) / self.optical_std, tiles.trust > 0)
            for image in (tiles.estimate, proposal)
        )  # (B, 4, S, S) each
        size = tiles.size or (estimate.shape[-2], estimate.shape[-1])
        filtered, statistics = self.head.filtered(s1, estimate, tiles.trust, size)  # (B, 4, S, S), (B, N)
        estimate = estimate + estimate_share(tiles.trust) * filtered.detach()
        # 2. What the head predicts, for the tile turned or mirrored.
        images = (s1, estimate, proposal, tiles.trust, tiles.sar_inconsistency)
        predicted = self.head(*(turn(image, orientation) for image in images), statistics)
        residual, gate, missed, error = (turn_back(part, orientation) for part in predicted)
        # 3. Where broad colour may change. The constraint lets the edges of a broad change through, so that where water
        #    or any large one is refused the gate closes.
        mask = self.broad_change(tiles, missed, hold_colour)
        kept = constrain_low_frequencies(residual, mask)
        refused = (residual - kept) * self.optical_std * (1.0 - unknown_share(tiles.trust))  # (B, 4, S, S) in DN
        rms = (refused.square().mean(1, keepdim=True) + 1.0).sqrt()  # with a gradient at 0
        gate = gate * (1.0 - (missed - mask).clamp_min(0.0)) * (1.0 - smoothstep(rms, *REFUSED_DN))
        change = fit_to_observed(gate * kept + filtered, tiles.trust) * self.optical_std
        known = (tiles.trust > 0).float().mean((2, 3), keepdim=True).clamp_min(LEAST_KNOWN)  # (B, 1, 1, 1)
        unsure = (ENOUGH_KNOWN / known).clamp_min(1.0) ** 0.25
        error = error * torch.where(tiles.trust == 0, unsure, 1.0)
        error = error.masked_fill(tiles.trust == 1, 0.0) * self.optical_std
        return Correction(change, residual * self.optical_std, gate, mask, error, filtered * self.optical_std, missed)

    def difference(
        self,
        tiles: GroundingTiles,
        with_sar: Tensor,
        without_sar: Tensor,
        *,
        confidence: Tensor,
        hold_colour: bool = False,
    ) -> Correction:
        """The correction that needs no training (experimental): what the SAR changes in the proposal.

        ``with_sar`` and ``without_sar`` are proposals (B, 4, S, S) in DN, decoded from the same noise, so that their
        difference is free of what both lose in the tokenizer; ``confidence`` is of the tokens, (B, 1, h, w) in [0, 1].
        """
        residual = with_sar - without_sar
        gate = F.interpolate(confidence, residual.shape[-2:], mode="bilinear").clamp(0.0, 1.0)
        mask = self.broad_change(tiles, torch.ones_like(tiles.sar_inconsistency), hold_colour)
        change = fit_to_observed(gate * constrain_low_frequencies(residual, mask), tiles.trust)
        return Correction(change, residual, gate, mask)

    def broad_change(self, tiles: GroundingTiles, missed_water: Tensor, hold_colour: bool) -> Tensor:
        """Where broad colour may change, (B, 1, S, S) in [0, 1].

        In an estimate that is where a head sees water that it lacks, it and the SAR disagree and the SAR looks like
        open water, there or near by, and its colour does not: the broad change that heads are trained on. A colour
        between land and water is neither: both are sharpened, except in training, where the ends of the ramps have no
        gradient. Unknown pixels may change wholly.
        """
        rule = tiles.sar_inconsistency * open_water(tiles.s1)
        rule = torch.minimum(spread(rule, SHORE_PX), rule / SHORE)
        if not (self.training and torch.is_grad_enabled()):
            missed_water, rule = smoothstep(missed_water, *WATER_SEEN), smoothstep(rule, *WATER_LIKELY)
        mask = missed_water * rule * (1.0 - shows_water(tiles.estimate)) * (not hold_colour)
        return torch.maximum(mask, unknown_share(tiles.trust))

    def deviation(self, corrections: Sequence[Correction], nfe: int) -> Tensor | None:
        """Standard deviation of the error to expect of the mean over an ensemble, (B, 4, S, S) in DN.

        The predicted error and the spread of the members together, calibrated for ``nfe`` evaluations where the head
        is; ``None`` where there is neither.
        """
        errors = [each.error for each in corrections if each.error is not None]
        changes = torch.stack([each.change for each in corrections])  # (M, B, 4, S, S)
        if not errors and len(changes) == 1:
            return None
        variance = changes.var(0) if len(changes) > 1 else torch.zeros_like(changes[0])
        if errors:
            variance = variance + torch.stack(errors).square().mean(0)
        deviation = variance.sqrt()
        if errors and self.calibration is not None:
            deviation = deviation * self.calibration.scale(nfe).to(deviation)[:, None, None]
        return deviation
