"""Gaps are measured inside and at their border only, models never see what is in them, and every rival is beside."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from axs_lib.data.pairs import list_pairs, load_pair
from axs_lib.errors import InputError
from axs_lib.evaluate.gaps import BORDER, CLOUDY, SIMULATED, STAGE3, evaluate_gaps, simulated_trust
from tests.models import plausible_pair

SIZE = 48
RIVALS = ["smooth", "telea", "mean"]


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


@dataclass
class Oracle:
    """Knows the truth of every tile by its SAR; errs by ``error`` DN in the gaps and ``change`` elsewhere."""

    folder: Path
    error: float = 0.0
    change: float = 0.0
    unfilled: bool = False
    provenance: dict[str, str] = field(default_factory=lambda: {"AXS_VARIANT": "oracle"})
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timesteps: int = 10
    calls: list[dict[str, Any]] = field(default_factory=list)

    def ground(
        self, s1: Tensor, opt_v2: Tensor, timesteps: int | None = None, *, seed: int = 0,
        proposal: Tensor | None = None, trust: Tensor | None = None,
    ) -> Any:  # fmt: skip
        assert trust is not None
        self.calls.append({"s1": s1, "opt_v2": opt_v2, "trust": trust, "timesteps": timesteps, "seed": seed})
        truths = {}
        for record in list_pairs(self.folder):
            pair = load_pair(record)
            truths[float(pair.s1[0, -1, -1])] = torch.from_numpy(pair.s2)
        truth = torch.stack([truths[float(tile[0, -1, -1])] for tile in s1])
        fill = torch.full_like(truth, torch.nan) if self.unfilled else truth + self.error
        return SimpleNamespace(image=torch.where(trust == 1, opt_v2 + self.change, fill), nfe=timesteps)


@dataclass
class Flat:
    """A plain network that answers with one colour and keeps what is clear."""

    value: float = 1500.0
    inputs: str = "optical"
    seen: list[Tensor] = field(default_factory=list)

    def predict(self, s1: Tensor, opt_v2: Tensor | None = None, trust: Tensor | None = None) -> Tensor:
        assert opt_v2 is not None and trust is not None
        self.seen.append(s1)
        return torch.where(trust == 1, opt_v2, torch.full_like(opt_v2, self.value))


def test_a_known_error_inside_is_measured_as_such(folder: Path) -> None:
    report = evaluate_gaps(Oracle(folder, error=100.0), folder)
    for tile in report.tiles:
        figures = tile.methods[STAGE3]
        assert figures["mse"] == pytest.approx(1e-4, rel=1e-4)
        assert figures["mae"] == pytest.approx(1e-2, rel=1e-4)
        assert figures["mse_border"] == pytest.approx(1e-4, rel=1e-4)
        assert figures["mae_border"] == pytest.approx(1e-2, rel=1e-4)
        assert figures["changed"] == 0
        assert list(tile.methods) == [STAGE3, *RIVALS]
    assert [(tile.record.id, tile.gaps) for tile in report.tiles] == [
        ("t0", SIMULATED), ("t1", SIMULATED), ("t2", SIMULATED), ("t2", CLOUDY),
    ]  # fmt: skip


def test_rivals_are_what_they_say(folder: Path) -> None:
    report = evaluate_gaps(Oracle(folder), folder)
    tile = report.tiles[1]
    truth = torch.from_numpy(load_pair(tile.record).s2)
    trust = simulated_trust(truth, tile.record.name)[0]
    valid = truth.isfinite().all(0)
    inside, clear = valid & (trust == 0), valid & (trust == 1)
    assert tile.unknown == pytest.approx(float(inside.float().mean()))
    colour = truth[:, clear].mean(1, keepdim=True)
    expected = ((truth[:, inside] - colour) / 1e4).square().mean()
    assert tile.methods["mean"]["mse"] == pytest.approx(float(expected), rel=1e-4)
    for name in RIVALS:
        assert tile.methods[name]["changed"] == 0
    for tile in report.tiles:
        assert tile.methods["smooth"]["mse_border"] < tile.methods["mean"]["mse_border"]
        assert tile.methods["telea"]["mse_border"] < tile.methods["mean"]["mse_border"]


def test_the_border_is_the_outermost_pixels_of_the_gap(folder: Path) -> None:
    """A model that errs deep inside only has no error at the border."""

    class DeepError(Oracle):
        def ground(self, s1: Tensor, opt_v2: Tensor, *args: Any, **options: Any) -> Any:
            output = super().ground(s1, opt_v2, *args, **options)
            near = torch.nn.functional.max_pool2d(options["trust"], 2 * BORDER + 1, 1, BORDER) > 0
            return SimpleNamespace(image=torch.where(near, output.image, output.image + 500), nfe=1)

    figures = evaluate_gaps(DeepError(folder), folder).tiles[-1].methods[STAGE3]
    assert figures["mse_border"] < 1e-12 < figures["mse"]


def test_a_model_never_sees_what_is_in_the_gap(folder: Path) -> None:
    oracle = Oracle(folder)
    evaluate_gaps(oracle, folder, timesteps=3, seed=5)
    assert len(oracle.calls) == 1 and oracle.calls[0]["timesteps"] == 3 and oracle.calls[0]["seed"] == 5
    image, trust = oracle.calls[0]["opt_v2"], oracle.calls[0]["trust"]
    assert trust.shape == (4, 1, SIZE, SIZE)
    assert image[(trust == 0).expand_as(image)].isnan().all()


def test_the_real_gap_is_the_cloud_of_the_cloudy_image(folder: Path) -> None:
    oracle = Oracle(folder)
    report = evaluate_gaps(oracle, folder, groups=["g1"])
    tile = report.tiles[-1]
    assert tile.gaps == CLOUDY and 0.5 < tile.unknown < 0.65
    image = oracle.calls[0]["opt_v2"][-1]
    assert image[:, :, : SIZE // 2].isnan().all()
    assert report.summary()[CLOUDY]["tiles"] == 1 and report.summary()[SIMULATED]["tiles"] == 1


def test_a_changed_clear_pixel_is_told(folder: Path) -> None:
    report = evaluate_gaps(Oracle(folder, change=7.0), folder)
    assert report.summary()[SIMULATED]["changed_where_clear"] == pytest.approx(7, abs=1e-3)
    assert "by Stage 3: 7" in str(report.tables()[0].caption)


def test_a_gap_left_unfilled_is_no_good_figure(folder: Path) -> None:
    report = evaluate_gaps(Oracle(folder, unfilled=True), folder)
    figures = report.summary()[SIMULATED]
    assert figures["mean"][STAGE3]["mse"] == np.inf and figures["wins"]["mean"] == 0
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["summary"][SIMULATED]["mean"][STAGE3]["mse"] is None


def test_wins_and_improvement_beside_each_rival(folder: Path) -> None:
    good = evaluate_gaps(Oracle(folder, error=1.0), folder).summary()[SIMULATED]
    assert set(good["wins"]) == set(RIVALS) == set(good["improvement_of_mean_%"])
    for name in RIVALS:
        assert good["wins"][name] == 1
        expected = 100 * (1 - good["mean"][STAGE3]["mse"] / good["mean"][name]["mse"])
        assert good["improvement_of_mean_%"][name]["mse"] == pytest.approx(expected)
    bad = evaluate_gaps(Oracle(folder, error=5000.0), folder).summary()[SIMULATED]
    assert all(share == 0 for share in bad["wins"].values())
    assert all(better["mae_border"] < 0 for better in bad["improvement_of_mean_%"].values())


def test_plain_networks_with_and_without_sar_stand_beside(folder: Path) -> None:
    plain, blind = Flat(1500.0, "sar+optical"), Flat(900.0)
    report = evaluate_gaps(Oracle(folder), folder, plain=plain, no_sar=blind)
    assert list(report.tiles[0].methods) == [STAGE3, "no_sar", "plain", *RIVALS]
    assert report.tiles[0].methods["plain"]["mse"] != report.tiles[0].methods["no_sar"]["mse"]
    assert [row for row in report.tables()[0].columns[0].cells][1:3] == ["without SAR", "plain U-Net"]


def test_a_stage3_model_without_sar_meets_mean_backscatter(folder: Path) -> None:
    class Blind(Oracle):
        terramind_generator = SimpleNamespace(
            sar=SimpleNamespace(mean=torch.tensor([-12.0, -19.0])[None, :, None, None])
        )

        def ground(self, s1: Tensor, opt_v2: Tensor, *args: Any, **options: Any) -> Any:
            self.calls.append({"s1": s1})
            return SimpleNamespace(image=opt_v2.nan_to_num(1000.0), nfe=1)

    blind = Blind(folder)
    evaluate_gaps(Oracle(folder), folder, no_sar=blind)  # type: ignore[arg-type]
    s1 = blind.calls[0]["s1"]
    assert (s1[:, 0] == -12).all() and (s1[:, 1] == -19).all()


def test_the_clouds_of_a_tile_are_always_the_same_and_leave_something_clear(folder: Path) -> None:
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
    report = evaluate_gaps(Oracle(folder), folder)
    assert report.skipped == ["a/t3 (cloudy): no clear pixels"]
    assert list(report.summary()) == [SIMULATED]


def test_the_json_holds_everything(folder: Path) -> None:
    report = evaluate_gaps(Oracle(folder), folder, quality="all", groups=["g1"])
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["model"] == {"AXS_VARIANT": "oracle"} and written["timesteps"] == 1
    assert written["border_px"] == BORDER and written["quality"] == "all"
    assert [tile["gaps"] for tile in written["tiles"]] == [SIMULATED, CLOUDY]
    assert set(written["tiles"][0]["methods"]) == {STAGE3, *RIVALS}
    assert len(report.tables()) == 2


def test_another_unit_is_refused_with_the_file(folder: Path) -> None:
    path = folder / "pairs" / "a" / "t0.npz"
    with np.load(path) as arrays:
        np.savez(path, s1=-arrays["s1"], s2=arrays["s2"])
    with pytest.raises(InputError, match=r"t0\.npz"):
        evaluate_gaps(Oracle(folder), folder)
