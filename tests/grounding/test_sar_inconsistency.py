"""Contradiction: low where radar and colour agree, high where a field suddenly returns like water."""

from __future__ import annotations

from pathlib import Path

import torch

from axs_lib.blur import gaussian_blur
from axs_lib.data.pairs import list_pairs, load_pair
from axs_lib.data.samples import load_sample, sample_names
from axs_lib.grounding.sar_inconsistency import (
    COEFFICIENTS,
    INVERSE_COVARIANCE,
    SIGMA_PX,
    mahalanobis_distance,
    open_water,
    optical_features,
    sar_inconsistency,
)


def real_sample(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    s1, s2 = load_sample(name)
    return torch.from_numpy(s1.data)[None].float(), torch.from_numpy(s2.data)[None].float()


def test_real_pairs_rarely_contradict() -> None:
    """The packaged tiles were never part of the fit."""
    for name in sample_names():
        assert sar_inconsistency(*real_sample(name)).mean() < 0.35, name


def test_a_flood_that_only_the_sar_shows_contradicts_and_only_there() -> None:
    s1, optical = real_sample("ireland_fields")
    before = sar_inconsistency(s1, optical)
    flooded = s1.clone()
    flooded[..., 40:90, 30:80] = torch.tensor([-23.0, -30.0])[:, None, None]
    after = sar_inconsistency(flooded, optical)
    assert after[..., 50:80, 40:70].min() > 0.9
    assert (after - before)[..., :20, :].abs().max() < 1e-4


def test_clear_ground_stays_quiet(shared_pairs: Path) -> None:
    records = list_pairs(shared_pairs, quality="ok")[::8]
    means = []
    for record in records:
        pair = load_pair(record)
        means.append(
            float(
                sar_inconsistency(torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()).mean()
            )
        )
    assert sorted(means)[len(means) // 2] < 0.1


def test_the_surprise_is_a_mahalanobis_distance() -> None:
    s1, optical = real_sample("ireland_fields")
    features = optical_features(gaussian_blur(optical, SIGMA_PX)).double()
    predicted = torch.einsum("bfhw,fs->bshw", features, torch.tensor(COEFFICIENTS, dtype=torch.float64))
    residual = gaussian_blur(s1, SIGMA_PX) - predicted
    inverse = torch.tensor(INVERSE_COVARIANCE, dtype=torch.float64)
    expected = torch.einsum("bshw,st,bthw->bhw", residual, inverse, residual).clamp_min(0).sqrt()[:, None]
    assert expected.max() > 1.0
    assert (mahalanobis_distance(s1, optical) - expected).abs().max() < 1e-3


def test_autocast_does_not_blunt_it() -> None:
    pair = real_sample("ireland_fields")
    with torch.autocast("cpu", torch.bfloat16):
        rough = sar_inconsistency(*pair)
    assert torch.equal(rough, sar_inconsistency(*pair))


def test_water_is_dark_in_both_bands() -> None:
    s1 = torch.empty(1, 2, 32, 96)
    s1[:, 0], s1[:, 1] = -20.0, -28.0  # calm water
    s1[..., 32:64] = torch.tensor([-17.0, -23.5])[:, None, None]  # a smooth dry field
    s1[:, 1, :, 64:] = -20.0  # dark in VV alone
    water = open_water(s1)
    assert water[..., 8:24].min() == 1.0
    assert not water[..., 40:].any()
