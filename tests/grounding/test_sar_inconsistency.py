"""SAR inconsistency: low where radar and colour agree, high where a field suddenly returns like water."""

from __future__ import annotations

import torch

from axs_lib.data.samples import load_sample, sample_names
from axs_lib.grounding.sar_inconsistency import open_water, sar_inconsistency


def real_sample(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    s1, s2 = load_sample(name)
    return torch.from_numpy(s1.data)[None].float(), torch.from_numpy(s2.data)[None].float()


def test_real_pairs_are_rarely_inconsistent() -> None:
    """The packaged tiles were never part of the fit."""
    for name in sample_names():
        assert sar_inconsistency(*real_sample(name)).mean() < 0.35, name


def test_a_flood_that_only_the_sar_shows_is_inconsistent_and_only_there() -> None:
    s1, optical = real_sample("ireland_fields")
    before = sar_inconsistency(s1, optical)
    flooded = s1.clone()
    flooded[..., 40:90, 30:80] = torch.tensor([-23.0, -30.0])[:, None, None]
    after = sar_inconsistency(flooded, optical)
    assert after[..., 50:80, 40:70].min() > 0.9
    assert (after - before)[..., :20, :].abs().max() < 1e-4


def test_water_is_dark_in_both_bands() -> None:
    s1 = torch.empty(1, 2, 32, 96)
    s1[:, 0], s1[:, 1] = -20.0, -28.0  # calm water
    s1[..., 32:64] = torch.tensor([-17.0, -23.5])[:, None, None]  # a smooth dry field
    s1[:, 1, :, 64:] = -20.0  # dark in VV alone
    water = open_water(s1)
    assert water[..., 8:24].min() == 1.0
    assert not water[..., 40:].any()
