"""The damage test with models whose answer is known: one that copies, one that blurs, one that knows better."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from axs_lib.evaluate.damages import DAMAGES, damage, evaluate_damages
from axs_lib.grounding.low_freq import gaussian_blur
from tests.evaluate.test_flood import FakeModel

SIDES = {"a": 64, "b": 80}


def scene(side: int, seed: int = 0) -> Tensor:
    """Fields of 8 px, (4, side, side) in DN."""
    random = torch.Generator().manual_seed(seed)
    colours = 500 + 2500 * torch.rand(4, side // 8, side // 8, generator=random)
    return colours.repeat_interleave(8, 1).repeat_interleave(8, 2).round()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tiles, one of them with nodata."""
    for name, side in SIDES.items():
        sar = np.full((2, side, side), -10, np.float32)
        truth = scene(side).numpy().astype(np.uint16)
        if name == "b":
            truth[:, :10] = 0
        np.savez(tmp_path / f"{name}.npz", s1=sar, s2=truth)
    return tmp_path


def rows(model: FakeModel, folder: Path, **options: Any) -> dict[str, dict[str, Any]]:
    report = evaluate_damages(model, folder, **options)  # type: ignore[arg-type]
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["tiles"] == len(SIDES)
    return {row["damage"]: row for row in written["rows"]}


def test_a_copy_is_no_worse_and_no_better(folder: Path) -> None:
    model = FakeModel(lambda s1, opt_v2: opt_v2)
    found = rows(model, folder, timesteps=3, seed=5)
    assert list(found) == list(DAMAGES) and set(model.asked) == {(3, 5)}
    for name, row in found.items():
        assert row["rmse_v3"] == row["rmse_v2"] and row["rms_change"] == 0, name
    assert found["none"]["rmse_v2"] == 0 and found["none"]["wins"] is None
    assert found["100 DN brighter"]["rmse_v2"] == pytest.approx(0.01, rel=1e-3)
    assert found["noise 50 DN"]["rmse_v2"] == pytest.approx(0.005, rel=0.05)
    assert found["blur 100 m"]["rmse_v2"] > found["blur 30 m"]["rmse_v2"] > found["blur 10 m"]["rmse_v2"] > 0
    assert all(row["mse_improvement_of_mean_%"] == 0 for row in found.values() if row["wins"] is not None)


def test_a_good_image_that_is_blurred_is_seen(folder: Path) -> None:
    found = rows(FakeModel(lambda s1, opt_v2: gaussian_blur(opt_v2, 1.5)), folder)
    assert found["none"]["rmse_v3"] > 0.005 and found["none"]["rms_change"] == found["none"]["rmse_v3"]
    assert found["blur 10 m"]["wins"] == 0 and found["blur 10 m"]["worst_tile_%"] > 100


def test_a_model_that_takes_away_what_was_added(folder: Path) -> None:
    found = rows(FakeModel(lambda s1, opt_v2: opt_v2 - 100.0), folder)
    assert found["100 DN brighter"]["mse_improvement_of_mean_%"] == 100
    assert found["100 DN brighter"]["wins"] == 1 and found["100 DN brighter"]["worst_tile_%"] == -100
    assert found["none"]["rmse_v3"] == pytest.approx(0.01)


def test_nodata_says_nothing(folder: Path) -> None:
    def wild_in_nodata(s1: Tensor, opt_v2: Tensor) -> Tensor:
        changed = opt_v2.clone()
        if opt_v2.shape[-1] == SIDES["b"]:
            changed[:, :, :10] = 9000.0
        return changed

    assert rows(FakeModel(wild_in_nodata), folder)["none"]["rmse_v3"] == 0


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_whole_dn_and_depends_on_the_names_alone(name: str) -> None:
    truth = scene(50 // 8 * 8 + 16)[:, :61, :63]
    first, again = damage(truth, name, "one"), damage(truth, name, "one")
    assert first.shape == truth.shape and torch.equal(first, again) and torch.equal(first, first.round())
    assert torch.equal(first, truth) == (name == "none")
    if name.startswith(("noise", "stripes")):
        assert not torch.equal(first, damage(truth, name, "two"))
    assert damage(torch.full_like(truth, 1.0), name, "one").min() >= 1


def test_tiles_of_another_day_are_counted_and_left_out(folder: Path) -> None:
    sar = np.full((2, SIDES["a"], SIDES["a"]), -10, np.float32)
    sar[:, :20] = -27.0  # open water, on land of the truth
    np.savez(folder / "a.npz", s1=sar, s2=scene(SIDES["a"]).numpy().astype(np.uint16))

    def wrong_at_a(s1: Tensor, opt_v2: Tensor) -> Tensor:
        return opt_v2 - (100.0 if opt_v2.shape[-1] == SIDES["a"] else 0.0)

    report = evaluate_damages(FakeModel(wrong_at_a), folder)  # type: ignore[arg-type]
    assert [tile.contradicted for tile in report.tiles] == [True, False]
    written = report.to_json()
    assert written["rows"][0]["rmse_v3"] > 0 == written["without_contradicted"][0]["rmse_v3"]
    assert len(report.tables()) == 2
    (folder / "b.npz").unlink()
    assert len(evaluate_damages(FakeModel(wrong_at_a), folder).tables()) == 1  # type: ignore[arg-type]


def test_the_table_says_what_was_measured(folder: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    for table in evaluate_damages(FakeModel(lambda s1, opt_v2: opt_v2 - 100.0), folder).tables():  # type: ignore[arg-type]
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("2 tiles", "opt_v3", "none", "100 DN brighter", "-100 %", "RMSE in DN"):
        assert word in text, word
