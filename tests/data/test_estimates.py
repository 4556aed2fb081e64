"""Every kind of estimate: finite, reproducible, light near the truth, and no kind in two splits."""

from __future__ import annotations

import pytest
import torch

from axs_lib.data import estimates
from axs_lib.data.estimates import KINDS, kinds_of, make_estimate
from axs_lib.errors import InputError

ALONE = [name for name, kind in KINDS.items() if kind.make is not None]


def tiles(batch: int = 2, height: int = 48, width: int = 56) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, 4, height // 8, width // 8, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return 500 + 2500 * smooth + 60 * torch.randn(batch, 4, height, width, generator=random)


def made(name: str, strength: float | None = None, seed: int = 0) -> torch.Tensor:
    return make_estimate(name, tiles(), generator=torch.Generator().manual_seed(seed), strength=strength)


@pytest.mark.parametrize("name", ALONE)
def test_estimate_is_finite_a_function_of_its_generator_and_nearer_where_it_is_light(name: str) -> None:
    first = made(name)
    assert first.shape == tiles().shape and bool(first.isfinite().all())
    assert torch.equal(first, made(name))
    if name != "truth":
        assert not torch.equal(first, tiles()) and not torch.equal(first, made(name, seed=1))
    light, strong = ((made(name, level) - tiles()).square().mean().sqrt() for level in (0.0, 1.0))
    assert light <= strong + 1.0


def test_a_pixel_half_way_between_two_coarse_ones_has_a_value() -> None:
    made = make_estimate("enlarged_nearest", tiles(8, 24, 240), generator=torch.Generator().manual_seed(1195))
    assert made.isfinite().all()


def test_nodata_stays() -> None:
    truth = tiles()
    truth[0, :, :5, :5] = torch.nan
    estimate = make_estimate("gaussian_blur", truth, generator=torch.Generator().manual_seed(0))
    assert torch.equal(estimate.isnan(), truth.isnan())


def test_older_image_is_the_one_given_and_wrong_input_is_named() -> None:
    truth, older = tiles(), tiles() + 100
    random = torch.Generator().manual_seed(0)
    assert torch.equal(make_estimate("older_image", truth, generator=random, given=older), older)
    with pytest.raises(InputError, match="older"):
        make_estimate("older_image", truth, generator=random)
    with pytest.raises(InputError, match="unknown kind"):
        make_estimate("nothing", truth, generator=random)
    with pytest.raises(InputError, match="shape"):
        make_estimate("truth", truth[0], generator=random)


def test_a_third_of_the_kinds_is_left_out_of_training_and_combinations_never_mix_splits() -> None:
    report, choose, train = (kinds_of(split) for split in ("report", "choose", "train"))
    assert 3 * len(report + choose) >= len(KINDS) == len(report) + len(choose) + len(train)
    assert set(estimates.COMBINED) <= set(train) and set(estimates.COMBINED_REPORT) <= set(report)
