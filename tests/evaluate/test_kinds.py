"""Estimates of every kind with models whose figures are known: one that copies, one that darkens, one in doubt."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from axs_lib.data.estimates import KINDS
from axs_lib.evaluate import evaluate, kinds
from axs_lib.evaluate.kinds import EstimateKinds, estimate_of, summary_of
from tests.evaluate import fakes
from tests.evaluate.fakes import FakeModel, follow_sar

SIMPLE = {"truth": "train", "brighter": "choose", "noisy": "report", "coarse": "report"}


@pytest.fixture
def simple(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four kinds whose errors are known."""

    def make_estimate(kind: str, truth: Tensor, *, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        if kind == "older":
            assert given is not None
            return given
        if kind == "noisy":
            return truth + 50 * torch.randn(truth.shape, generator=generator)
        if kind == "coarse":
            return torch.nn.functional.avg_pool2d(truth, 5, stride=1, padding=2, count_include_pad=False)
        return truth + (100.0 if kind == "brighter" else 0.0)

    table = {name: SimpleNamespace(split=split, make=True) for name, split in SIMPLE.items()}
    table |= {"older": SimpleNamespace(split="report", make=None)}
    monkeypatch.setattr(kinds, "KINDS", table)
    monkeypatch.setattr(kinds, "make_estimate", make_estimate)


def outcome(model: FakeModel, folder: Path, **options: Any) -> dict[str, Any]:
    return fakes.outcome(model, folder, EstimateKinds(), **options)


def rows_of(written: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["kind"]: row for row in written["all_tiles"]["rows"]}


@pytest.mark.usefixtures("simple")
def test_a_copy_is_no_worse_and_no_better(folder: Path) -> None:
    model = FakeModel()
    rows = rows_of(outcome(model, folder, timesteps=3, seed=5))
    assert {(call.timesteps, call.seed) for call in model.calls} == {(3, 5)}
    assert {kind: row["split"] for kind, row in rows.items()} == SIMPLE
    for row in rows.values():
        assert row["rmse_v3"] == row["rmse_v2"] and row["rms_change"] == 0
    assert rows["truth"]["rmse_v2"] == 0 and rows["truth"]["mse_change_%"] is None is rows["truth"]["wins"]
    assert rows["brighter"]["rmse_v2"] == pytest.approx(0.01)
    assert rows["noisy"]["rmse_v2"] == pytest.approx(0.005, rel=0.05)
    assert all(rows[kind]["mse_change_%"] == 0 == rows[kind]["wins"] for kind in ("brighter", "noisy", "coarse"))


@pytest.mark.usefixtures("simple")
def test_what_is_repaired_and_what_is_spoilt(folder: Path) -> None:
    model = FakeModel(lambda s1, opt_v2: opt_v2 - 100.0, uncertainty=50.0)
    written = outcome(model, folder)
    rows = rows_of(written)
    assert rows["brighter"]["mse_change_%"] == pytest.approx(-100) == rows["brighter"]["mae_change_%"]
    assert (rows["brighter"]["wins"], rows["brighter"]["worst_tile_%"]) == (1, pytest.approx(-100))
    assert rows["truth"]["rmse_v3"] == pytest.approx(0.01) == rows["truth"]["rms_change"]
    assert rows["noisy"]["mse_change_%"] == pytest.approx(400, rel=0.1)
    summary = written["all_tiles"]["summary"]
    assert summary["kinds"] == 2, "only those that had no part in training or in a choice"
    left_out = [rows[kind]["mse_change_%"] for kind in ("noisy", "coarse")]
    assert summary["median_mse_change_%"] == pytest.approx(sum(left_out) / 2)
    assert summary["worst_kind"] == "noisy" and summary["worst_kind_mse_change_%"] == max(left_out)
    assert summary["worst_tile_%"] == max(row["worst_tile_%"] for row in rows.values() if row["wins"] is not None)
    text = fakes.shown(evaluate(model, folder, [EstimateKinds()]).tables(), width=140)
    for word in ("3 tiles", "brighter", "-100.0 %", "2 kinds left out of training", "noisy", "used for choices"):
        assert word in text, word


@pytest.mark.usefixtures("simple")
def test_spread_skill_of_every_kind(folder: Path) -> None:
    rows = rows_of(outcome(FakeModel(uncertainty=50.0), folder))
    assert rows["brighter"]["spread_skill"]["B03"] == pytest.approx(0.5)
    assert rows["truth"]["spread_skill"]["B03"] is None, "no error"
    assert rows_of(outcome(FakeModel(), folder))["brighter"]["spread_skill"]["B03"] is None, "no uncertainty"


@pytest.mark.usefixtures("simple")
def test_tiles_of_another_day_are_counted_and_left_out(folder: Path) -> None:
    path = folder / "pairs" / "src" / "a.npz"
    content = dict(np.load(path))
    content["s1"][:] = np.array([-21, -28], np.float32)[:, None, None]  # open water,
    content["s2"][3] = 5000  # on land of the truth
    np.savez(path, **content)
    model = FakeModel(lambda s1, opt_v2: opt_v2 - 100.0 * (s1[:, :1] == -21))
    written = outcome(model, folder)
    assert (written["all_tiles"]["tiles"], written["sar_consistent"]["tiles"]) == (3, 2)
    assert written["all_tiles"]["rows"][0]["rmse_v3"] > 0 == written["sar_consistent"]["rows"][0]["rmse_v3"]
    assert len(evaluate(model, folder, [EstimateKinds()]).tables()) == 2


@pytest.mark.usefixtures("simple")
def test_another_date_of_the_place_is_a_kind_where_there_is_one(folder: Path) -> None:
    assert "older" not in rows_of(outcome(FakeModel(), folder))
    rows = (folder / "index.csv").read_text().splitlines()
    days = ("date", "2021-07-14", "2021-08-14", "2021-08-14", "")
    (folder / "index.csv").write_text("\n".join(f"{row},{day}" for row, day in zip(rows, days, strict=True)))
    written = outcome(FakeModel(), folder)
    assert rows_of(written)["older"]["tiles"] == 2
    truths = {name: np.load(folder / "pairs" / "src" / f"{name}.npz")["s2"] / 1e4 for name in "ab"}
    error = np.square(truths["a"] - truths["b"]).mean()
    assert rows_of(written)["older"]["rmse_v2"] == pytest.approx(error**0.5, rel=1e-4)


def test_an_estimate_depends_on_the_names_of_kind_and_tile_alone() -> None:
    truth = 500 + 2000 * torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(0))
    first, again, other = (estimate_of("white_noise", truth, name) for name in ("one", "one", "two"))
    assert first is not None and again is not None and other is not None
    assert torch.equal(first, again) and not torch.equal(first, other)
    written = summary_of([{"kind": "a", "split": "train", "mse_change_%": -3.0, "worst_tile_%": 2.0}])
    assert (written["kinds"], written["worst_kind"], written["worst_tile_kind"]) == (0, None, "a")


def test_every_kind_of_the_table_is_measured(folder: Path) -> None:
    path = folder / "pairs" / "src" / "b.npz"
    content = dict(np.load(path))
    content["s2"][:, :10] = 0
    np.savez(path, **content)

    def wild_in_nodata(s1: Tensor, opt_v2: Tensor) -> Tensor:
        changed = follow_sar(s1, opt_v2)
        changed[:, :, :10] = 9000.0
        return changed

    written = outcome(FakeModel(wild_in_nodata), folder, groups=["g1"])
    assert set(rows_of(written)) == {name for name, kind in KINDS.items() if kind.make}
    errors = {tile["id"]: tile["kinds"]["truth"]["mse_v3"] for tile in written["per_tile"]}
    assert errors["b"] < 1e-12 < errors["a"], "nodata does not count"
    left_out = sum(kind.split == "report" and bool(kind.make) for kind in KINDS.values())
    assert written["all_tiles"]["summary"]["kinds"] == left_out
