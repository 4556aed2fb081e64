"""The corrector: nothing from a fresh head, broad colour only where it may change, observed pixels never."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from axs_lib.checks import Trust
from axs_lib.grounding.corrector import Correction, GroundingCorrector, GroundingTiles
from axs_lib.grounding.head import GroundingHead, HeadOutput

LAND, WATER = torch.tensor([-11.0, -18.0]), torch.tensor([-21.0, -29.0])
FIELD = torch.tensor([500.0, 700.0, 800.0, 2400.0])


class DarkerEverywhere(GroundingHead):
    """A head that wants everything half a standard deviation darker, with the gate fully open."""

    missed_water = 1.0

    def forward(self, s1: torch.Tensor, *_: torch.Tensor) -> HeadOutput:
        one = torch.ones_like(s1[:, :1])
        every_band = one.expand(-1, 4, -1, -1)
        return HeadOutput(-0.5 * every_band, one, self.missed_water * one, 0.1 * every_band)


def tiles(trust: float = Trust.ESTIMATE, side: int = 128) -> GroundingTiles:
    """Fields, whose right half the SAR shows under water."""
    s1 = LAND[:, None, None].repeat(1, 1, side, side)
    s1[..., side // 2 :] = WATER[:, None, None]
    inconsistency = torch.zeros(1, 1, side, side)
    inconsistency[..., side // 2 :] = 1.0
    return GroundingTiles(
        s1, FIELD[:, None, None].repeat(1, 1, side, side), torch.full((1, 1, side, side), trust), inconsistency
    )


def test_broad_colour_changes_only_under_water_that_the_estimate_lacks() -> None:
    corrector = GroundingCorrector(DarkerEverywhere()).eval()
    change = corrector(tiles(), tiles().estimate).change
    wanted = (-0.5 * corrector.optical_std).expand(1, 4, 128, 30)
    assert torch.allclose(change[..., 90:120], wanted, rtol=0.05)
    assert change[..., :30].abs().max() < 1.0
    held = corrector(tiles(), tiles().estimate, hold_colour=True)
    assert held.change.abs().max() < 1.0 and not held.low_freq_mask.any()


@pytest.mark.parametrize(("likely", "share"), [(0.5, 0.0), (0.9, 1.0)])
def test_water_is_painted_wholly_or_not_at_all(likely: float, share: float) -> None:
    corrector = GroundingCorrector(DarkerEverywhere()).eval()
    corrector.head.missed_water = likely  # type: ignore[assignment]
    correction = corrector(tiles(), tiles().estimate)
    assert (correction.low_freq_mask[..., 90:120] == share).all() and not correction.low_freq_mask[..., :30].any()
    assert torch.allclose(corrector.train()(tiles(), tiles().estimate).low_freq_mask[..., 90:120], torch.tensor(likely))


def test_the_surer_the_head_is_of_water_that_is_refused_the_less_is_painted() -> None:
    """A pond of 16 px is fine enough to pass the low-frequency constraint by half."""
    pond = torch.zeros(1, 1, 128, 128)
    pond[..., 24:40, 24:40] = 1.0

    class Pond(DarkerEverywhere):
        def forward(self, s1: torch.Tensor, *rest: torch.Tensor) -> HeadOutput:
            every = super().forward(s1, *rest)
            return every._replace(residual=every.residual * pond, missed_water=self.missed_water * pond)

    corrector, painted = GroundingCorrector(Pond()).eval(), []
    for sure in (1.0, 0.5, 0.0):
        corrector.head.missed_water = sure  # type: ignore[assignment]
        painted.append(float(corrector(tiles(), tiles().estimate).change[..., 28:36, 28:36].detach().abs().max()))
    assert painted[0] < 1.0 and painted[1] == pytest.approx(painted[2] / 2, rel=0.01) and painted[2] > 100.0
    corrector.optical_std *= 10.0  # in DN ten times as much that is no water, of which half is refused: all is
    assert corrector(tiles(), tiles().estimate).change[..., 28:36, 28:36].detach().abs().max() < 1.0


def test_an_estimate_that_shows_the_water_keeps_its_colour() -> None:
    corrector = GroundingCorrector(DarkerEverywhere()).eval()
    wet = dataclasses.replace(tiles(), estimate=FIELD.flip(0)[:, None, None].expand(1, 4, 128, 128))
    assert corrector(wet, wet.estimate).change.abs().max() < 1.0
    field, spoiled = tiles().estimate, tiles().estimate.clone()
    spoiled[..., 60, 100] = torch.tensor([5.0, 5.0, 5.0, -6.0])  # NDWI of millions, were it not bounded
    change = [corrector(dataclasses.replace(tiles(), estimate=each), each).change for each in (field, spoiled)]
    assert torch.allclose(change[0][..., 57, 98:103], change[1][..., 57, 98:103], atol=1.0), "3 px away"


@pytest.mark.parametrize("hold_colour", [False, True])
def test_where_nothing_is_known_everything_may_change(hold_colour: bool) -> None:
    corrector = GroundingCorrector(DarkerEverywhere()).eval()
    change = corrector(tiles(Trust.UNKNOWN), tiles().estimate, hold_colour=hold_colour).change
    assert torch.allclose(change, (-0.5 * corrector.optical_std).expand_as(change), rtol=1e-3)


def test_observed_pixels_do_not_change_and_are_certain() -> None:
    corrector = GroundingCorrector(DarkerEverywhere()).eval()
    correction = corrector(tiles(Trust.OBSERVED), tiles().estimate)
    assert not correction.change.any()
    assert correction.error is not None and not correction.error.any()


@pytest.mark.parametrize(("rows", "factor"), [(64, 1.0), (8, 8**0.25), (1, (0.5 / 0.03) ** 0.25)])
def test_the_less_of_a_tile_is_known_the_less_sure_its_gaps_are(rows: int, factor: float) -> None:
    given = tiles(Trust.UNKNOWN)
    given.trust[..., :rows, :] = Trust.ESTIMATE
    error = GroundingCorrector(DarkerEverywhere()).eval()(given, given.estimate).error
    assert error is not None
    assert torch.allclose(error[..., rows:, :] / error[..., :1, :1], torch.tensor(factor))


def test_difference_is_zero_where_the_sar_changes_nothing_and_weighted_by_confidence() -> None:
    corrector = GroundingCorrector(GroundingHead()).eval()
    given = tiles(side=32)
    confidence = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    same = corrector.difference(given, given.estimate, given.estimate, confidence=confidence)
    assert not same.change.any() and same.error is None
    out = corrector.difference(given, given.estimate + 1, given.estimate, confidence=confidence)
    assert torch.allclose(out.residual, torch.ones_like(given.estimate))
    assert out.gate[..., 0].max() == 0 and out.gate[..., -1].min() == 1
    water = WATER[:, None, None].expand_as(given.s1)
    shore = ((torch.arange(32.0) - 8) / 8).clamp(0, 1).expand(1, 1, 32, 32)  # 0 up to column 8, from 16 on 1
    lake = dataclasses.replace(given, s1=water, sar_inconsistency=shore)
    mask = corrector.difference(lake, lake.estimate, lake.estimate, confidence=confidence).low_freq_mask
    assert mask[..., 9].min() > 0 and not mask[..., :9].any(), "the rule is 0.3 only from column 10.4 on"
    assert mask[..., 12:].min() == 1
    dry = dataclasses.replace(given, s1=LAND[:, None, None].expand_as(given.s1))
    assert out.low_freq_mask.any()
    assert not corrector.difference(dry, dry.estimate, dry.estimate, confidence=confidence).low_freq_mask.any()


def test_deviation_joins_predicted_error_and_spread() -> None:
    corrector = GroundingCorrector(GroundingHead())
    one = torch.ones(1, 4, 8, 8)
    members = [Correction(k * one, one, one[:, :1], one[:, :1], 3 * one) for k in (0.0, 2.0)]
    deviation = corrector.deviation(members, nfe=1)
    assert deviation is not None and torch.allclose(deviation, (2 + 9) ** 0.5 * one)
    assert corrector.deviation([Correction(one, one, one[:, :1], one[:, :1])], nfe=1) is None
