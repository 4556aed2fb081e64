"""The flood test with models whose answer is known: one that sees the flood, one that copies, one that drowns all."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from axs_lib.evaluate import Floods, evaluate
from axs_lib.evaluate.flood import MARGIN, is_dry, measure_flood
from axs_lib.grounding.sar_inconsistency import ndwi
from tests.evaluate import fakes
from tests.evaluate.fakes import FakeModel

WATER = torch.tensor([300.0, 400.0, 250.0, 100.0]).view(1, 4, 1, 1)
LAND = torch.tensor([400.0, 600.0, 500.0, 3000.0]).view(4, 1, 1)


def see_water(s1: Tensor, opt_v2: Tensor) -> Tensor:
    return torch.where(s1[:, :1] < -14.5, WATER, opt_v2)


def outcome(model: FakeModel, folder: Path, **options: Any) -> dict[str, Any]:
    return fakes.outcome(model, folder, Floods(), **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two dry tiles, one of them larger and with nodata, and one with a lake."""
    for name, side in (("a", 64), ("b", 80), ("lake", 64)):
        truth = LAND.expand(4, side, side).clone()
        if name == "lake":
            truth[:, :20] = WATER[0]
        sar = np.full((2, side, side), -10, np.float32)
        if name == "b":
            sar[:, :10] = np.nan
        np.savez(tmp_path / f"{name}.npz", s1=sar, s2=truth.numpy().astype(np.uint16))
    return tmp_path


def test_a_flood_that_comes_through(folder: Path) -> None:
    model = FakeModel(see_water)
    flood = outcome(model, folder, timesteps=3, seed=5)
    assert {(call.timesteps, call.seed) for call in model.calls} == {(3, 5)}
    assert (flood["tiles"], flood["left_out"], flood["came_through"]) == (2, 1, 1)
    inside, outside = flood["inside"], flood["outside"]
    assert inside["water_v2"] == 0 and inside["turned_to_water"] > 0.8 < inside["nir_fell"]
    assert inside["ndwi_change"] > 0.8 and inside["nir_change"] < -0.2
    assert list(outside) == list(inside) and not any(outside.values())
    assert flood["inside_without"] == outside == flood["outside_without"]
    assert [tile["id"] for tile in flood["per_tile"]] == ["a", "b"]
    assert all(0.05 < tile["flooded_share"] < 0.3 for tile in flood["per_tile"])
    text = fakes.shown(evaluate(model, folder, [Floods()]).tables(), width=80)
    for word in ("2 dry tiles (1 with water left out)", "in the flood", "real SAR", "on 100 % of the tiles"):
        assert word in text, word


def test_tiles_whose_sar_and_truth_disagree_are_left_out_of_a_second_count(folder: Path) -> None:
    with np.load(folder / "b.npz") as tile:
        s1, s2 = tile["s1"], tile["s2"]
    s1[0, 40:], s1[1, 40:] = -22, -29
    np.savez(folder / "b.npz", s1=s1, s2=s2)
    report = evaluate(FakeModel(see_water), folder, [Floods()])
    flood = report.to_json()["flood"]
    assert flood["tiles"] == 2 and flood["outside"]["turned_to_water"] > 0.2
    assert flood["sar_consistent"]["tiles"] == 1 and flood["sar_consistent"]["outside"]["turned_to_water"] == 0
    assert "SAR and truth agree about water on 1 tile: 100 %, 0.00 % outside" in fakes.shown(report.tables(), width=90)


def test_water_where_the_sar_is_unchanged_is_seen(folder: Path) -> None:
    flood = outcome(FakeModel(lambda s1, opt_v2: WATER.expand_as(opt_v2)), folder)
    for part in ("outside", "inside_without", "outside_without"):
        assert flood[part]["turned_to_water"] == 1 == flood[part]["nir_fell"]
    copied = outcome(FakeModel(), folder)
    assert copied["came_through"] == 0 and copied["inside"] == copied["outside"], "a copy lets none through"
    shares, again = ([tile["flooded_share"] for tile in each["per_tile"]] for each in (flood, copied))
    assert shares == again and shares[0] != shares[1], "by the tile's name"


def test_neither_what_lies_within_the_margin_of_the_flood_counts_nor_water_of_the_truth(folder: Path) -> None:
    """A model that spills the flood's water just short of the margin, and finds ponds that the estimate lacks."""
    truth, sar = LAND.expand(4, 64, 64).clone(), np.full((2, 64, 64), -10, np.float32)
    for row, column in itertools.product((4, 56), (4, 28, 56)):  # a flood leaves some of them dry
        truth[:, row : row + 3, column : column + 3] = WATER[0]
        sar[:, row : row + 3, column : column + 3] = -13
    np.savez(folder / "a.npz", s1=sar, s2=truth.numpy().astype(np.uint16))

    def spill(s1: Tensor, opt_v2: Tensor) -> Tensor:
        wet = F.max_pool2d((s1[:, :1] < -14.5).float(), 2 * MARGIN - 3, 1, MARGIN - 2) > 0
        return torch.where(wet | (s1[:, :1] == -13), WATER, opt_v2)

    assert outcome(FakeModel(spill), folder)["outside"]["turned_to_water"] == 0


def test_measures() -> None:
    opt_v2 = LAND.expand(4, 4, 4).clone()
    opt_v3 = opt_v2.clone()
    opt_v3[:, 0] = WATER[0, :, 0]
    opt_v3[3, 1] = 1600.0  # NIR fell, but to no water
    opt_v3[:, 2] = torch.nan
    figures = measure_flood(opt_v2, opt_v3, torch.ones(1, 4, 4, dtype=torch.bool))
    assert figures["turned_to_water"] == pytest.approx(1 / 3)
    assert figures["nir_fell"] == pytest.approx(2 / 3)
    assert figures["nir_change"] == pytest.approx((-2900 - 1400) / 3 / 10_000)
    nothing = measure_flood(opt_v2, opt_v3, torch.zeros(1, 4, 4, dtype=torch.bool))
    assert all(np.isnan(value) for value in nothing.values())
    assert ndwi(opt_v3)[0, 0, 0] == pytest.approx((400 - 100) / 500)


def test_dry_land() -> None:
    truth = LAND.expand(4, 10, 10).clone()
    truth[:, 0, :2] = WATER[0, :, :, 0]
    assert is_dry(truth)
    truth[:, 0, :3] = WATER[0, :, :, 0]
    assert not is_dry(truth)
    assert not is_dry(torch.full((4, 8, 8), torch.nan))
