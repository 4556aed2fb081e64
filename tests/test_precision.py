"""Images do not depend on what else the process allows its products: importing terratorch allows bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch

from axs_lib import precision
from axs_lib.bands import TERRAMIND_BOA_OFFSET
from axs_lib.grounding.low_freq import gaussian_blur
from axs_lib.grounding.sar_inconsistency import mahalanobis_distance
from axs_lib.pipeline import Pipeline
from axs_lib.precision import full_float32
from axs_lib.stage1_tm_s2o import Stage1Model
from axs_lib.stage2_prithvi_refine import build_prithvi_refiner
from axs_lib.terramind.adapters import OpticalAdapter, terramind_spectral_lift
from axs_lib.terramind.layers import speed_up
from tests.models import plausible_pair, random_nano
from tests.published import wide_unet


@pytest.fixture(params=["high", "medium"])
def lowered(request: pytest.FixtureRequest) -> Iterator[str]:
    """The process's setting as other libraries leave it; a CPU follows it where it has bfloat16 units."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def test_the_setting_is_lifted_inside_and_kept_outside(lowered: str) -> None:
    @full_float32()
    def fails() -> None:
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        with full_float32():
            pass
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        raise ValueError

    with pytest.raises(ValueError):
        fails()
    assert torch.get_float32_matmul_precision() == lowered


def test_an_older_pytorchs_setting_too(lowered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_parts", tuple)
    with full_float32():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == lowered


@torch.no_grad()
def test_products_outside_the_networks_are_full(lowered: str) -> None:
    s1, opt_v2 = plausible_pair(1, 128, 128)
    adapter = OpticalAdapter(
        mean=[0.0] * 4,
        std=[1.0] * 4,
        boa_offset=TERRAMIND_BOA_OFFSET,
        lift=terramind_spectral_lift(),
    )
    z = torch.randn(1, 4, 16, 16)
    lifted, blurred, distance = (
        adapter.expand_bands(z),
        gaussian_blur(opt_v2, 4.0),
        mahalanobis_distance(s1, opt_v2),
    )
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(lifted, adapter.expand_bands(z))
    assert torch.equal(blurred, gaussian_blur(opt_v2, 4.0))
    assert torch.equal(distance, mahalanobis_distance(s1, opt_v2))


@torch.no_grad()
def test_images_stay_bit_for_bit(lowered: str) -> None:
    model = random_nano(timesteps=2)
    stage2 = build_prithvi_refiner(variant="nano", pretrained=False)
    torch.nn.init.normal_(stage2.head.out.weight, std=0.01)
    pipeline = Pipeline(Stage1Model(model.terramind_generator).eval(), stage2.eval(), model)
    s1, opt_v2 = plausible_pair(2, 120, 120)
    date = {"date": "2020-07-01"}
    images = [model.ground(s1, opt_v2).image, pipeline(s1, date, 1).opt_v2]
    torch.set_float32_matmul_precision("highest")
    again = [model.ground(s1, opt_v2).image, pipeline(s1, date, 1).opt_v2]
    assert all(torch.equal(*pair) for pair in zip(images, again, strict=True))


@torch.no_grad()
def test_a_wide_unet_loses_no_more_than_terratorchs_products(lowered: str) -> None:
    """Winograd's transforms in bfloat16 would put it off by 0.1."""
    original = wide_unet()
    fast = speed_up(copy.deepcopy(original))
    x, codes = torch.randn(1, 12, 64, 64), torch.randn(1, 3, 4, 4)
    actual = fast(x, torch.tensor([999]), codes)
    torch.set_float32_matmul_precision("highest")
    assert (actual - original(x, torch.tensor([999]), codes)).abs().max() < 0.02
