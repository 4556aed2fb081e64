"""What is ours does not depend on what the process allows its products: importing terratorch allows bfloat16.

A CPU follows the setting only where it multiplies bfloat16, so the same is tested by rounding every product.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from axs_lib.bands import TERRAMIND_BOA_OFFSET
from axs_lib.blur import gaussian_blur
from axs_lib.grounding.sar_inconsistency import mahalanobis_distance
from axs_lib.pipeline import Pipeline
from axs_lib.prithvi.colour import SeasonalColour
from axs_lib.prithvi.metadata import encode_metadata
from axs_lib.stage1_tm_s2o import Stage1Model
from axs_lib.terramind.adapters import OpticalAdapter, terramind_spectral_lift
from axs_lib.terramind.winograd import products_are_full
from tests.models import plausible_pair, random_nano, random_refiner

PRODUCTS = frozenset({"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "einsum", "linear"})


class RoundedProducts(TorchFunctionMode):
    """Multiply float32 matrices in bfloat16, as a processor with bfloat16 units does where it is allowed to."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in PRODUCTS:
            args = [a.bfloat16().float() if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in args]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_products_outside_the_networks_are_exact() -> None:
    s1, opt_v2 = plausible_pair(1, 128, 128)
    adapter = OpticalAdapter(
        mean=[0.0] * 4, std=[1.0] * 4, boa_offset=TERRAMIND_BOA_OFFSET, lift=terramind_spectral_lift()
    )
    colour, metadata = SeasonalColour(), encode_metadata({"date": "2020-07-01", "lat": 50.0, "lon": 9.0}, 1)
    torch.nn.init.normal_(colour.weight)
    generator = random_nano().terramind_generator
    z, logits = torch.randn(1, 4, 16, 16), torch.randn(1, 16, 512)

    def results() -> list[Tensor]:
        return [
            adapter.expand_bands(z),
            gaussian_blur(opt_v2, 4.0),
            mahalanobis_distance(s1, opt_v2),
            colour(z, metadata),
            generator.codes(logits, (64, 64)),
        ]

    expected = results()
    with RoundedProducts():
        assert not torch.equal(torch.eye(4) * 1.001 @ torch.eye(4), torch.eye(4) * 1.001)
        actual = results()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = results()
    for first, second, third in zip(expected, actual, under_autocast, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third)


@pytest.mark.parametrize("lowered", ["high", "medium"])
@torch.no_grad()
def test_images_stay_and_so_does_the_setting(lowered: str) -> None:
    """To the order of sums where products are full; else the networks' own are rounded to bfloat16."""
    torch.set_float32_matmul_precision(lowered)  # as other libraries leave it
    model = random_nano(timesteps=2)
    pipeline = Pipeline(Stage1Model(model.terramind_generator).eval(), random_refiner(), model)
    s1, opt_v2 = plausible_pair(2, 120, 120)
    date = {"date": "2020-07-01"}
    rounds = not products_are_full()
    images = [model.ground(s1, opt_v2).image, pipeline(s1, date, 1).opt_v2]
    assert torch.get_float32_matmul_precision() == lowered
    torch.set_float32_matmul_precision("highest")
    again = [model.ground(s1, opt_v2).image, pipeline(s1, date, 1).opt_v2]
    for before, after in zip(images, again, strict=True):
        assert (before - after).abs().max() < (2.0 if rounds else 0.05)
