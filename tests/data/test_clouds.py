"""Simulated clouds have the drawn cover and the shapes of clouds; those of real images follow their rule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from axs_lib.data import clouds
from axs_lib.data.clouds import cloud_trust, cloudy_trust
from axs_lib.data.pairs import list_pairs, load_pair
from axs_lib.errors import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def borders(trust: torch.Tensor) -> torch.Tensor:
    """(B,) share of neighbouring pixels that differ: large for noise, small for clouds."""
    across = (trust[..., 1:] != trust[..., :-1]).float().mean((1, 2, 3))
    down = (trust[..., 1:, :] != trust[..., :-1, :]).float().mean((1, 2, 3))
    return (across + down) / 2


@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 130), (37, 51), (8, 9)])
def test_a_map_is_zeros_and_ones_of_the_size_asked_for(height: int, width: int) -> None:
    trust = cloud_trust(5, height, width, generator=generator())
    assert trust.shape == (5, 1, height, width) and trust.dtype == torch.float32
    assert set(trust.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(trust, cloud_trust(5, height, width, generator=generator()))


def test_the_cover_is_the_one_drawn_and_a_few_tiles_are_unknown_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = (cloud_trust(1000, 16, 16, generator=generator()).sum((1, 2, 3)) == 0).float().mean()
    assert 0.005 < blank < 0.04
    monkeypatch.setattr(clouds, "BLANK_CHANCE", 0.0)
    unknown = 1 - cloud_trust(256, 96, 96, generator=generator()).mean((1, 2, 3))
    assert unknown.min() > 0.08 and unknown.max() < 0.72
    assert unknown.mean() == pytest.approx(0.4, abs=0.04) and unknown.std() > 0.14
    for cover, error in ((0.3, 0.015), (0.0, 0.0), (1.0, 0.0)):
        unknown = 1 - cloud_trust(16, 96, 96, generator=generator(), cover=(cover, cover)).mean((1, 2, 3))
        assert (unknown - cover).abs().max() <= error


def test_clouds_are_patches_with_smooth_outlines_and_differ() -> None:
    trust = cloud_trust(32, 96, 96, generator=generator())
    noise = (torch.rand(trust.shape, generator=generator(1)) < 0.5).float()
    assert borders(trust).max() < 0.2 * borders(noise).mean()
    assert len({each.numpy().tobytes() for each in trust}) == 32
    counts = 9 * torch.nn.functional.avg_pool2d(trust, 3, stride=1, padding=1)
    lonely = ((trust == 0) & (counts > 7.5)).float().mean()  # unknown among clear neighbours
    assert lonely < 1e-4


def test_a_swath_is_a_straight_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BLANK_CHANCE": 0.0, "SWATH_CHANCE": 1.0, "SWATH_STEEPNESS": 1e3}.items():
        monkeypatch.setattr(clouds, name, value)
    trust = cloud_trust(8, 64, 64, generator=generator(), cover=(0.4, 0.4))
    for axis in (1, 2):
        assert (trust[:, 0].diff(dim=axis).abs().sum(axis) <= 1).all()


def test_wrong_arguments_are_refused() -> None:
    for cover in [(0.5, 0.2), (-0.1, 0.2), (0.2, 1.2)]:
        with pytest.raises(InputError, match="share of clouds"):
            cloud_trust(1, 16, 16, generator=generator(), cover=cover)
    with pytest.raises(InputError, match=r"expected \(4,H,W\)"):
        cloudy_trust(scene(), scene()[:, :32])


def scene() -> torch.Tensor:
    """(4,64,64) a clear image in DN."""
    level = torch.tensor([500.0, 700.0, 800.0, 2500.0])[:, None, None]
    return level + 30 * torch.randn(4, 64, 64, generator=generator())


def test_cloud_and_shadow_are_found_with_a_buffer_and_the_rest_stays() -> None:
    clear = scene()
    cloudy = clear + 20
    cloudy[:, 10:20, 10:20] += 2500
    cloudy[:, 40:50, 40:50] *= 0.5
    trust = cloudy_trust(clear, cloudy)
    assert trust.shape == (1, 64, 64) and trust.dtype == torch.float32
    assert (trust[0, 7:23, 7:23] == 0).all() and (trust[0, 38:52, 41:49] == 0).all()
    assert (trust[0, 30:35] == 1).all() and (trust[0, 5:25, 30:] == 1).all()


def test_small_changes_a_single_new_roof_and_a_field_that_greens_are_no_cloud() -> None:
    clear = scene()
    cloudy = clear * 1.1
    cloudy[:, 20, 20] += 3000
    assert (cloudy_trust(clear, cloudy) == 1).all()
    cloudy = clear.clone()
    cloudy[:3, 20:40, 20:40] -= 200
    cloudy[3, 20:40, 20:40] += 800
    assert (cloudy_trust(clear, cloudy) == 1).all()


def test_nodata_is_unknown_and_spreads_no_further() -> None:
    clear = scene()
    cloudy = clear.clone()
    clear[:, :4], cloudy[0, :, :3] = torch.nan, torch.nan
    trust = cloudy_trust(clear, cloudy)
    assert (trust[0, :4] == 0).all() and (trust[0, :, :3] == 0).all() and (trust[0, 4:, 3:] == 1).all()


def test_the_shares_of_the_docstring_are_those_of_the_real_pairs(shared_pairs: Path) -> None:
    shares = []
    for record in list_pairs(shared_pairs):
        if record.source == "sen12mscr_oriolac":
            pair = load_pair(record)
            assert pair.s2_cloudy is not None
            clear, cloudy = torch.from_numpy(pair.s2), torch.from_numpy(pair.s2_cloudy)
            trust = cloudy_trust(clear, cloudy)
            shares.append(1 - float(trust.mean()))
            difference = (cloudy - clear).abs()[:3]
            if trust.any():
                assert difference[trust.bool().expand(3, -1, -1)].mean() < 350
    assert len(shares) == 14
    assert torch.tensor(shares).mean() == pytest.approx(0.772, abs=0.002)
    assert torch.tensor(shares).quantile(0.5) == pytest.approx(0.912, abs=0.002)
    assert cloudy_trust.__doc__ and "77 % of the pixels in the mean and 91 %" in cloudy_trust.__doc__
