"""Gaps are measured inside and at their border only, models never see what is in them, and every rival is beside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from axs_lib.data.pairs import list_pairs, load_pair
from axs_lib.evaluate import Gaps, Report, evaluate
from axs_lib.evaluate.evaluator import TileFigures
from axs_lib.evaluate.gaps import BORDER, CLOUDY, SIMULATED, STAGE3, simulated_trust
from tests.evaluate.fakes import FakeModel, FakePlain
from tests.models import plausible_pair

SIZE = 48
FLOORS = ["smooth", "relaxed", "mean"]
PROPOSALS = ["informed", "truth_proposal", "proposal_swapped", "no_proposal"]
RIVALS = [*PROPOSALS, "sar_withheld", *FLOORS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pairs of two groups, one with nodata, one with a cloudy image whose left half is cloud."""
    s1, s2 = plausible_pair(3, SIZE, SIZE)
    s2[1, :, :5] = torch.nan
    lines = ["source,id,group,quality,h,w"]
    (tmp_path / "pairs" / "a").mkdir(parents=True)
    for index in range(3):
        arrays = {"s1": s1[index].numpy(), "s2": s2[index].numpy()}
        if index == 2:
            cloudy = s2[index].clone()
            cloudy[:, :, : SIZE // 2] += 4000
            arrays["s2_cloudy"] = cloudy.numpy()
        np.savez(tmp_path / "pairs" / "a" / f"t{index}.npz", **arrays)
        lines.append(f"a,t{index},g{index // 2},ok,{SIZE},{SIZE}")
    (tmp_path / "index.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@dataclass(eq=False)
class Oracle(FakeModel):
    """Knows the truth of every tile by its SAR; errs by ``error`` DN in the gaps and ``change`` elsewhere."""

    folder: Path = Path()
    error: float = 0.0
    change: float = 0.0
    unfilled: bool = False

    def ground(self, s1: Tensor, opt_v2: Tensor, *arguments: Any, **options: Any) -> Any:
        output = super().ground(s1, opt_v2, *arguments, **options)
        pairs = map(load_pair, list_pairs(self.folder))
        truths = {float(pair.s1[0, -1, -1]): torch.from_numpy(pair.s2) for pair in pairs}
        truth = torch.stack([truths[float(tile[0, -1, -1])] for tile in s1])
        fill = torch.full_like(truth, torch.nan) if self.unfilled else truth + self.error
        output.image = torch.where(options["trust"] == 1, opt_v2 + self.change, fill)
        return output


def gaps(model: FakeModel, folder: Path, settings: Gaps | None = None, **options: Any) -> Report:
    return evaluate(model, folder, [settings or Gaps()], **options)


def tiles_of(model: FakeModel, folder: Path, settings: Gaps | None = None, **options: Any) -> list[TileFigures]:
    return next(iter(gaps(model, folder, settings, **options).tiles.values()))


def summary_of(model: FakeModel, folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = gaps(model, folder).to_json()["gaps"]["summary"]
    return summary


def test_a_known_error_inside_is_measured_as_such(folder: Path) -> None:
    tiles = tiles_of(Oracle(folder=folder, error=100.0), folder)
    for tile in tiles:
        figures = tile.figures[STAGE3]
        assert [figures["mse"], figures["mse_border"]] == pytest.approx([1e-4] * 2, rel=1e-4)
        assert [figures["mae"], figures["mae_border"]] == pytest.approx([1e-2] * 2, rel=1e-4)
        assert figures["changed"] == 0
        assert list(tile.figures) == [STAGE3, *RIVALS]
    written = gaps(Oracle(folder=folder), folder).to_json()["gaps"]["tiles"]
    assert [(tile["id"], tile["gaps"]) for tile in written] == [
        ("t0", SIMULATED), ("t1", SIMULATED), ("t2", SIMULATED), ("t2", CLOUDY),
    ]  # fmt: skip


def test_rivals_are_what_their_names_say(folder: Path) -> None:
    tiles = tiles_of(Oracle(folder=folder), folder)
    tile = tiles[1]
    truth = torch.from_numpy(load_pair(tile.record).s2)
    trust = simulated_trust(truth, tile.record.name)[0]
    valid = truth.isfinite().all(0)
    inside, clear = valid & (trust == 0), valid & (trust == 1)
    assert tile.facts["unknown"] == pytest.approx(float(inside.float().mean()))
    colour = truth[:, clear].mean(1, keepdim=True)
    expected = ((truth[:, inside] - colour) / 1e4).square().mean()
    assert tile.figures["mean"]["mse"] == pytest.approx(float(expected), rel=1e-4)
    for tile in tiles:
        assert all(tile.figures[name]["changed"] == 0 for name in FLOORS)
        assert tile.figures["smooth"]["mse_border"] < tile.figures["mean"]["mse_border"]


def test_every_proposal_is_given_in_its_row(folder: Path) -> None:
    """A model that fills with the proposal it is given."""

    class Trusting(FakeModel):
        def ground(self, s1: Tensor, opt_v2: Tensor, *arguments: Any, **options: Any) -> Any:
            output = super().ground(s1, opt_v2, *arguments, **options)
            output.image = torch.where(options["trust"] == 1, opt_v2, output.proposal)
            return output

    model = Trusting(propose=lambda s1: 1000 + 10 * s1[:, :1].nan_to_num().expand(-1, 4, -1, -1))
    figures = summary_of(model, folder)[SIMULATED]["mean"]
    assert figures["truth_proposal"]["mse"] < 1e-12
    assert figures["no_proposal"]["mse"] == pytest.approx(figures["relaxed"]["mse"], rel=1e-4)
    assert 0 < figures["informed"]["mse"] < figures["no_proposal"]["mse"]
    assert figures["proposal_swapped"]["mse"] != figures[STAGE3]["mse"]
    model.provenance["AXS_CORRECTION_MODE"] = "difference"
    assert not set(PROPOSALS) & set(summary_of(model, folder)[SIMULATED]["mean"])


def test_a_model_never_sees_what_is_in_the_gap(folder: Path) -> None:
    oracle = Oracle(folder=folder)
    gaps(oracle, folder, timesteps=3, seed=5)
    for call in oracle.calls:
        assert (call.timesteps, call.seed) == (3, 5)
        assert call.opt_v2[(call.trust == 0).expand_as(call.opt_v2)].isnan().all()


def test_the_real_gap_is_the_cloud_of_the_cloudy_image(folder: Path) -> None:
    oracle = Oracle(folder=folder)
    report = gaps(oracle, folder, groups=["g1"])
    tile = next(iter(report.tiles.values()))[-1]
    assert tile.facts["gaps"] == CLOUDY and 0.5 < tile.facts["unknown"] < 0.65
    assert oracle.calls[0].opt_v2[-1][:, :, : SIZE // 2].isnan().all()
    summary = report.to_json()["gaps"]["summary"]
    assert summary[CLOUDY]["tiles"] == 1 and summary[SIMULATED]["tiles"] == 1
    assert len(report.tables()) == 2


def test_wins_and_improvement_beside_each_floor(folder: Path) -> None:
    good = summary_of(Oracle(folder=folder, error=1.0), folder)[SIMULATED]
    assert set(good["wins"]) == set(RIVALS) == set(good["improvement_of_mean_%"])
    for name in FLOORS:
        assert good["wins"][name] == 1
        expected = 100 * (1 - good["mean"][STAGE3]["mse"] / good["mean"][name]["mse"])
        assert good["improvement_of_mean_%"][name]["mse"] == pytest.approx(expected)
    assert good["better_than_smooth_%"][STAGE3] == good["improvement_of_mean_%"]["smooth"]["mse"]
    bad = summary_of(Oracle(folder=folder, error=5000.0), folder)[SIMULATED]
    assert all(share == 0 for share in bad["wins"].values())


def test_models_beside_the_model(folder: Path) -> None:
    settings = Gaps(no_sar=FakePlain("optical", 900.0), plain=FakePlain("sar+optical", 1500.0))
    tile = tiles_of(Oracle(folder=folder), folder, settings)[0]
    assert list(tile.figures) == [STAGE3, *PROPOSALS, "sar_withheld", "no_sar", "plain", *FLOORS]
    assert tile.figures["plain"]["mse"] != tile.figures["no_sar"]["mse"]
    blind = FakeModel()
    gaps(Oracle(folder=folder), folder, Gaps(no_sar=blind))  # type: ignore[arg-type]
    mean = blind.terramind_generator.sar.mean
    assert torch.equal(blind.calls[0].s1, mean.expand_as(blind.calls[0].s1)), "mean backscatter everywhere"


def test_the_clouds_of_a_tile_are_always_the_same_and_leave_something_clear() -> None:
    truth = torch.zeros(4, SIZE, SIZE)
    first = simulated_trust(truth, "a/t0")
    assert torch.equal(first, simulated_trust(truth, "a/t0"))
    assert not torch.equal(first, simulated_trust(truth, "a/t1"))
    shares = [float(simulated_trust(truth, f"a/{index}").mean()) for index in range(200)]
    assert min(shares) > 0 and max(shares) < 1


def test_a_tile_without_clear_pixels_is_named(folder: Path) -> None:
    path = folder / "pairs" / "a" / "t2.npz"
    with np.load(path) as arrays:
        np.savez(path.with_name("t3.npz"), s1=arrays["s1"], s2=arrays["s2"], s2_cloudy=arrays["s2"] + 5000)
    (folder / "index.csv").write_text(f"source,id,h,w\na,t3,{SIZE},{SIZE}\n")
    written = gaps(Oracle(folder=folder), folder).to_json()["gaps"]
    assert written["skipped"] == ["a/t3: no clear pixels (cloudy)"]
    assert list(written["summary"]) == [SIMULATED]


def test_a_gap_left_unfilled_a_changed_clear_pixel_and_an_error_deep_inside(folder: Path) -> None:
    report = gaps(Oracle(folder=folder, unfilled=True, change=7.0), folder)
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))["gaps"]["summary"][SIMULATED]
    assert written["mean"][STAGE3]["mse"] is None and written["wins"]["mean"] == 0
    assert written["changed_where_clear"] == pytest.approx(7, abs=1e-3)
    assert "by Stage 3: 7" in str(report.tables()[0].caption)

    class DeepError(Oracle):
        def ground(self, *arguments: Any, **options: Any) -> Any:
            output = super().ground(*arguments, **options)
            near = torch.nn.functional.max_pool2d(options["trust"], 2 * BORDER + 1, 1, BORDER) > 0
            output.image = torch.where(near, output.image, output.image + 500)
            return output

    figures = tiles_of(DeepError(folder=folder), folder)[-1].figures[STAGE3]
    assert figures["mse_border"] < 1e-12 < figures["mse"]
