"""The noise field is a function of seed and scene coordinate, Gaussian, and nobody else's random state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axs_lib.errors import InputError
from axs_lib.terramind.noise import PIXEL_STREAM, gaussian_field, gumbel_field, member_seeds, sample_seeds, stage_seeds


def seeds(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@given(row=st.integers(-500, 500), col=st.integers(-500, 500), seed=st.integers(-(2**63), 2**63 - 1))
def test_overlapping_tiles_hold_the_same_noise(row: int, col: int, seed: int) -> None:
    whole = gaussian_field(seeds(seed), (2, 24, 24), origins=torch.tensor([[row, col]]))
    part = gaussian_field(seeds(seed), (2, 8, 10), origins=torch.tensor([[row + 5, col + 3]]))
    assert torch.equal(whole[..., 5:13, 3:13], part)


def test_is_standard_normal_and_uncorrelated() -> None:
    field = gaussian_field(seeds(3), (4, 256, 256))[0]
    assert abs(float(field.mean())) < 0.01 and abs(float(field.std()) - 1.0) < 0.01
    kurtosis = float((field**4).mean() / (field**2).mean() ** 2)
    assert abs(kurtosis - 3.0) < 0.1
    for shift in ((0, 1), (1, 0), (1, 1)):
        assert abs(float((field * field.roll(shift, (-2, -1))).mean())) < 0.01
    assert abs(float((field[0] * field[1]).mean())) < 0.02
    assert torch.isfinite(field).all()


def test_gumbel_sampling_follows_the_probabilities() -> None:
    p = torch.tensor([0.1, 0.2, 0.7])
    noise = gumbel_field(seeds(0), (3, 200, 200))
    drawn = (p.log()[None, :, None, None] + noise).argmax(1)
    assert torch.isfinite(noise).all()
    for index, expected in enumerate(p.tolist()):
        assert abs(float((drawn == index).float().mean()) - expected) < 0.01


def test_one_seed_serves_all_samples_and_generators_are_drawn_from() -> None:
    assert sample_seeds(7, 3).tolist() == [7, 7, 7]
    assert sample_seeds([1, 2], 2).tolist() == [1, 2]
    for seed in (3, np.int64(3), torch.tensor(3), [3], torch.tensor([3]), np.array([3], dtype=np.uint8)):
        assert sample_seeds(seed, 1).tolist() == [3]
    first = sample_seeds(torch.Generator().manual_seed(4), 2)
    assert torch.equal(first, sample_seeds(torch.Generator().manual_seed(4), 2))
    assert first[0] != first[1]
    each = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)]
    assert len(set(sample_seeds(each, 2).tolist())) == 1
    with pytest.raises(InputError, match=r"2 seeds .* batch of 3"):
        sample_seeds([1, 2], 3)


def test_stages_draw_other_noise_from_the_same_seeds() -> None:
    given = seeds(0, 1, 2, -5)
    derived = [given, stage_seeds(given, 1), stage_seeds(given, 2), member_seeds(given, 1)]
    assert torch.cat(derived).unique().numel() == 16
    fields = torch.stack([gaussian_field(each[:1], (1, 64, 64)).flatten() for each in derived])
    assert (torch.corrcoef(fields) - torch.eye(4)).abs().max() < 0.06


def test_it_is_the_documented_hash() -> None:
    """SplitMix64's finaliser over seed, stream, channel, row and column, then Box-Muller, in Python's own integers."""
    bits, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & bits
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & bits
        return x ^ (x >> 31)

    def value(seed: int, channel: int, row: int, column: int) -> float:
        h = mix((mix((seed + golden) & bits) + PIXEL_STREAM * golden) & bits)
        for step in (channel + 1, row + 1, column + 1):
            h = mix((h + step * golden) & bits)
        radius = math.sqrt(-2.0 * math.log(((h >> 41) + 0.5) * 2.0**-23))
        return radius * math.cos(2.0 * math.pi * 2.0**-24 * (h & 0xFFFFFF))

    field = gaussian_field(torch.tensor([7, -3]), (2, 3, 4), origins=torch.tensor([[5, 0]] * 2))
    for index, seed in enumerate((7, -3)):
        for channel, row, column in ((0, 0, 0), (1, 2, 3), (0, 1, 2)):
            expected = value(seed & bits, channel, 5 + row, column)
            assert abs(float(field[index, channel, row, column]) - expected) < 1e-4


@pytest.mark.parametrize(
    "seed", ["x", b"1", 1.5, None, True, torch.tensor([1.5]), {"a": 1}, {1}, [1, "x"], [None], object(), 2**63, [2**64]]
)
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    with pytest.raises(InputError, match=r"seed is .*; expected an integer"):
        sample_seeds(seed, 1)
