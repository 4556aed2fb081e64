"""The simulated flood: deterministic, of the stated extent and backscatter, and nothing changed outside of it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from axs_lib.data.flood import FLOODED_SHARE, LOOKS, VH_BELOW_VV, WATER_VV, simulate_flood
from axs_lib.errors import InputError


def land(batch: int = 8, height: int = 120, width: int = 120) -> torch.Tensor:
    """Dry land of constant backscatter."""
    return torch.tensor([-10.0, -16.0]).view(1, 2, 1, 1).repeat(batch, 1, height, width)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_generator_alone_decides() -> None:
    state = torch.get_rng_state()
    s1 = land(2)
    first, again = simulate_flood(s1, generator(3)), simulate_flood(s1, generator(3))
    other = simulate_flood(s1, generator(4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1]) and not torch.equal(first[1][0], first[1][1])
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(s1, land(2))


def test_the_stated_share_of_each_tile_is_flooded_in_few_patches() -> None:
    _, mask = simulate_flood(land(32), generator())
    share = mask.float().mean((1, 2, 3))
    assert mask.dtype == torch.bool and mask.shape == (32, 1, 120, 120)
    assert share.min() >= FLOODED_SHARE[0] - 0.001 and share.max() <= FLOODED_SHARE[1] + 0.001
    assert share.max() - share.min() > 0.08
    inner = -F.max_pool2d(-mask.float(), 3, 1, 1)  # what is left when the shore is taken off
    assert (inner.mean((1, 2, 3)) / share).min() > 0.5


def test_nothing_changes_outside_the_flood() -> None:
    s1 = land(4) + torch.randn(4, 2, 120, 120, generator=generator(1))
    flooded, mask = simulate_flood(s1, generator())
    outside = F.max_pool2d(mask.float(), 3, 1, 1) == 0
    assert torch.equal(flooded[outside.expand_as(s1)], s1[outside.expand_as(s1)])
    inside = (F.max_pool2d((~mask).float(), 3, 1, 1) == 0).expand_as(s1)
    assert flooded[:, 0][inside[:, 0]].mean() < -16


def test_water_has_the_stated_level_and_speckle() -> None:
    flooded, mask = simulate_flood(land(64), generator())
    inside = F.max_pool2d((~mask).float(), 3, 1, 1) == 0
    looks = []
    for tile, water in zip(flooded, inside, strict=True):
        power = 10 ** (tile[:, water[0]] / 10)
        vv, vh = (10 * power.mean(1).log10()).tolist()
        assert WATER_VV[0] - 0.3 < vv < WATER_VV[1] + 0.3
        assert VH_BELOW_VV[0] - 0.5 < vv - vh < VH_BELOW_VV[1] + 0.5
        looks.append((power.mean(1) ** 2 / power.var(1)).mean())
        assert abs(torch.corrcoef(power)[0, 1]) < 0.2
    assert LOOKS[0] * 0.8 < min(looks) < LOOKS[0] * 1.6
    assert LOOKS[1] * 0.6 < max(looks) < LOOKS[1] * 1.25


def test_speckle_is_correlated_between_neighbours_only() -> None:
    flooded, mask = simulate_flood(land(32), generator())
    inside = F.max_pool2d((~mask).float(), 3, 1, 1) == 0
    for distance, low, high in ((1, 0.4, 0.6), (3, -0.1, 0.1)):
        found = []
        for tile, water in zip(flooded[:, 0], inside[:, 0], strict=True):
            both = water[:, distance:] & water[:, :-distance]
            pair = torch.stack([tile[:, distance:][both], tile[:, :-distance][both]])
            found.append(torch.corrcoef(pair)[0, 1])
        assert low < torch.stack(found).mean() < high


def test_nodata_stays_nodata() -> None:
    s1 = land(4)
    s1[:, 0, :, :60] = torch.nan
    flooded, mask = simulate_flood(s1, generator())
    assert torch.equal(flooded.isnan(), s1.isnan())
    assert not mask[..., :60].any() and mask[..., 60:].any()


@pytest.mark.parametrize("side", [(8, 8), (33, 70), (256, 256)])
def test_any_size(side: tuple[int, int]) -> None:
    flooded, mask = simulate_flood(land(2, *side), generator())
    assert flooded.shape == (2, 2, *side) and mask.any() and not mask.all()
    assert flooded.isfinite().all()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 8, 8\); expected \(B,2,H,W\)"):
        simulate_flood(torch.zeros(2, 8, 8), generator())
