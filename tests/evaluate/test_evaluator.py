"""The evaluation with models whose figures are known: a perfect one, a copy, one that only follows the SAR."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from axs_lib.bands import OPTICAL_MEAN
from axs_lib.checks import Trust
from axs_lib.data.pairs import list_pairs, load_pair
from axs_lib.errors import InputError
from axs_lib.evaluate.controls import ControlModels
from axs_lib.evaluate.evaluator import evaluate_folder
from axs_lib.evaluate.report import Report
from axs_lib.evaluate.sources import simulated_estimate
from axs_lib.metrics import METRIC_KEYS, compute_metrics, stage3_metrics


@dataclass
class Output:
    image: Tensor
    proposal: Tensor
    nfe: int


def copy(s1: Tensor, opt_v2: Tensor) -> Tensor:
    return opt_v2


@dataclass
class FakeModel:
    """Grounds with a function of (s1, opt_v2) and records how it was called.

    Its proposal is ``propose(s1)``; a proposal that it is given is added to what it returns.
    """

    correct: Callable[[Tensor, Tensor], Tensor] = copy
    propose: Callable[[Tensor], Tensor] = lambda s1: torch.zeros(len(s1), 4, *s1.shape[-2:])
    calls: list[tuple[tuple[int, ...], int | None, int]] = field(default_factory=list)
    timesteps: int = 10
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def provenance(self) -> dict[str, str]:
        return {"AXS_VARIANT": "fake"}

    def ground(
        self,
        s1: Tensor,
        opt_v2: Tensor,
        timesteps: int | None = None,
        *,
        seed: int = 0,
        proposal: Tensor | None = None,
        trust: Tensor | None = None,
    ) -> Output:
        assert not torch.is_grad_enabled()
        self.trust = trust
        self.calls.append((tuple(opt_v2.shape), timesteps, seed))
        image = self.correct(s1, opt_v2)
        if proposal is not None:
            assert bool(proposal.isfinite().all())
            return Output(image + proposal, proposal, 0)
        return Output(image, self.propose(s1), timesteps or self.timesteps)


@dataclass
class FakePlain:
    """Gives opt_v2 back, or 1000 DN where it is given none."""

    inputs: str

    def predict(self, s1: Tensor, opt_v2: Tensor | None = None) -> Tensor:
        assert (opt_v2 is not None) == ("optical" in self.inputs)
        return torch.full((len(s1), 4, *s1.shape[-2:]), 1000.0) if opt_v2 is None else opt_v2


@dataclass
class PipelineOutput:
    opt_v1: Tensor
    opt_v2: Tensor
    opt_v3: Tensor
    nfe: tuple[int, int]


@dataclass
class FakePipeline:
    """Draws 1000 DN, refines to 2000 DN, and grounds with ``follow_sar``."""

    stage3: FakeModel = field(default_factory=lambda: FakeModel(follow_sar))
    metadata: list[Mapping[str, object]] = field(default_factory=list)
    asked: list[tuple[int | None, int]] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    provenance: dict[str, str] = field(default_factory=lambda: {"AXS_STAGE2_VARIANT": "fake"})

    def __call__(
        self, s1: Tensor, metadata: Any = None, timesteps: int | None = None, *, seed: int = 0
    ) -> PipelineOutput:
        assert not torch.is_grad_enabled()
        self.metadata += metadata
        self.asked.append((timesteps, seed))
        drawn = torch.full((len(s1), 4, *s1.shape[-2:]), 1000.0)
        return PipelineOutput(drawn, drawn * 2, follow_sar(s1, drawn * 2), (12, 10))


def tile(rng: np.random.Generator, side: int) -> dict[str, np.ndarray]:
    """A tile whose SAR says what its NIR is: VV = 10 log10(B08 / 10000) - 5."""
    coarse = rng.integers(800, 4000, (4, side // 8, side // 8))
    s2 = coarse.repeat(8, 1).repeat(8, 2).astype(np.uint16)
    vv = 10 * np.log10(s2[3] / 10_000) - 5
    return {"s1": np.stack([vv, vv - 6]).astype(np.float32), "s2": s2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = ["source,id,group,quality"]
    tiles = (("a", "g1", "ok", 32), ("b", "g1", "ok", 32), ("c", "g2", "ok", 32), ("d", "g2", "cloud", 40))
    for name, group, quality, side in tiles:
        content = tile(rng, side)
        if name == "a":
            content["opt_v2"] = content["s2"].astype(np.float32) + 300
        (tmp_path / "pairs" / "src").mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / "pairs" / "src" / f"{name}.npz", **content)
        rows.append(f"src,{name},{group},{quality}")
    (tmp_path / "index.csv").write_text("\n".join(rows))
    return tmp_path


def follow_sar(s1: Tensor, opt_v2: Tensor) -> Tensor:
    """NIR as the SAR of ``tile`` has it."""
    image = opt_v2.clone()
    image[:, 3] = 10 ** ((s1[:, 0] + 5) / 10) * 10_000
    return image


def test_a_copy_changes_nothing_and_wins_nothing(folder: Path) -> None:
    report = evaluate_folder(FakeModel(), folder)
    summary = report.summary()
    assert list(summary) == ["ok"]
    figures = summary["ok"]
    assert (figures["tiles"], figures["wins"]) == (3, 0)
    assert figures["mean"]["copy_ratio"] == 0
    assert figures["improvement_of_mean_%"] == {"mse": 0, "mae": 0}
    for key in METRIC_KEYS:
        assert figures["mean"][f"{key}_v2"] == figures["mean"][f"{key}_v3"]


def test_figures_are_those_of_the_metrics(folder: Path) -> None:
    report = evaluate_folder(FakeModel(follow_sar), folder, quality="all")
    for result in report.tiles:
        pair = load_pair(result.record)
        s1, truth = torch.from_numpy(pair.s1), torch.from_numpy(pair.s2)
        opt_v2 = (
            simulated_estimate(truth, result.record.name)
            if pair.opt_v2 is None
            else torch.from_numpy(pair.opt_v2)
        )
        opt_v3 = follow_sar(s1[None], opt_v2[None])[0]
        assert result.metrics == pytest.approx(stage3_metrics(opt_v3, opt_v2, truth, s1=s1))
        assert result.win
    mean = report.summary()["all"]["mean"]
    assert mean["mse_v3"] == pytest.approx(np.mean([t.metrics["mse_v3"] for t in report.tiles]))
    median = report.summary()["ok"]["median"]
    clear = [t.metrics["sam_v2"] for t in report.tiles if t.record.quality == "ok"]
    assert median["sam_v2"] == pytest.approx(np.median(clear))
    gain = report.summary()["all"]["improvement_of_mean_%"]["mse"]
    assert gain == pytest.approx(100 * (1 - mean["mse_v3"] / mean["mse_v2"]))


def test_water_of_the_sar_on_land_of_the_truth_is_counted(tmp_path: Path) -> None:
    """A quarter of the tile is water to the SAR, less its shore; of that half is water in the truth, too."""
    s1 = np.full((2, 64, 64), -10, np.float32)
    s1[:, :32, :32] = np.array([-21, -28], np.float32)[:, None, None]
    s2 = np.broadcast_to(np.array([400, 600, 500, 2500], np.uint16)[:, None, None], (4, 64, 64)).copy()
    s2[:, :16, :32] = np.array([400, 600, 300, 150], np.uint16)[:, None, None]
    np.savez(tmp_path / "a.npz", s1=s1, s2=s2)
    only = evaluate_folder(FakeModel(copy), tmp_path, timesteps=1, opt_v2_source="degraded")
    assert 0.08 < only.tiles[0].sar_water_on_land < 1 / 8
    assert only.tiles[0].contradicted
    assert only.to_json()["tiles"][0]["sar_water_on_land"] > 0.08


def test_sources_of_the_estimate_are_named(folder: Path) -> None:
    report = evaluate_folder(FakeModel(), folder, quality="all")
    assert {t.record.id: t.opt_v2_source for t in report.tiles} == {
        "a": "file",
        "b": "degraded",
        "c": "degraded",
        "d": "degraded",
    }
    assert report.opt_v2_sources() == {"file": 1, "degraded": 3}
    assert report.tiles[0].metrics["mae_v2"] == pytest.approx(0.03, rel=1e-4)


def test_qualities_are_reported_apart(folder: Path) -> None:
    summary = evaluate_folder(FakeModel(), folder, quality="all").summary()
    assert {name: figures["tiles"] for name, figures in summary.items()} == {"ok": 3, "all": 4}


def test_the_same_estimates_for_every_model_and_seed(folder: Path) -> None:
    first = evaluate_folder(FakeModel(), folder, seed=1)
    second = evaluate_folder(FakeModel(follow_sar), folder, seed=2, groups=["g2"])
    assert first.tiles[2].metrics["mse_v2"] == second.tiles[0].metrics["mse_v2"]
    truth = torch.full((4, 16, 16), 1000.0)
    assert not torch.equal(simulated_estimate(truth, "one"), simulated_estimate(truth, "two"))


def test_an_ensembles_mean_is_measured_on_request(folder: Path) -> None:
    class Members(FakeModel):
        asked: ClassVar[list[int]] = []

        def ground(self, *arguments: Any, ensemble_size: int = 1, **options: Any) -> Any:
            self.asked.append(ensemble_size)
            return super().ground(*arguments, **options)

    report = evaluate_folder(Members(), folder, members=4, controls=True)
    assert set(Members.asked) == {1, 4}  # the controls are of one member
    assert report.to_json()["members"] == 4
    assert evaluate_folder(FakeModel(), folder).to_json()["members"] == 1


def test_tiles_are_batched_by_size_and_arguments_passed_on(folder: Path) -> None:
    model = FakeModel()
    report = evaluate_folder(model, folder, quality="all", timesteps=3, seed=5, batch_size=2)
    assert model.calls == [((2, 4, 32, 32), 3, 5), ((1, 4, 32, 32), 3, 5), ((1, 4, 40, 40), 3, 5)]
    assert (report.timesteps, report.nfe, report.seed) == (3, 3, 5)
    assert evaluate_folder(FakeModel(), folder).timesteps == 10


def test_swapped_sar_shows_what_the_sar_is_worth(folder: Path) -> None:
    report = evaluate_folder(FakeModel(follow_sar), folder, quality="all", controls=True)
    for result in report.tiles:
        assert result.controls["sar_swapped"]["donor"] != result.record.name
        assert float(result.controls["sar_swapped"]["mse"]) > result.metrics["mse_v3"]
    donors = {t.record.id: t.controls["sar_swapped"]["donor"] for t in report.tiles}
    assert donors == {"a": "src/c", "b": "src/c", "c": "src/a", "d": "src/a"}, (
        "another group, of one size if it can be"
    )
    control = report.summary()["all"]["sar_swapped"]
    assert control["wins_over"] == 1
    assert control["improvement_of_mean_%"]["mse"] < report.summary()["all"]["improvement_of_mean_%"]["mse"]
    pair = load_pair(report.tiles[0].record)
    donor = load_pair(next(r for r in list_pairs(folder) if r.id == "c"))
    swapped = follow_sar(torch.from_numpy(donor.s1)[None], torch.from_numpy(pair.opt_v2)[None])[0]
    expected = compute_metrics(swapped, torch.from_numpy(pair.s2), s1=torch.from_numpy(pair.s1))
    assert report.tiles[0].controls["sar_swapped"] == pytest.approx({**expected, "donor": "src/c"})
    assert evaluate_folder(FakeModel(), folder).tiles[0].controls == {}


def test_one_tile_has_no_control(folder: Path) -> None:
    for name in "abd":
        (folder / "pairs" / "src" / f"{name}.npz").unlink()
    (folder / "index.csv").unlink()
    report = evaluate_folder(FakeModel(), folder, controls=True)
    assert len(report.tiles) == 1
    assert "sar_swapped" not in report.summary()["ok"]
    assert "proposal_swapped" not in report.summary()["ok"]
    assert "mean_colour" in report.summary()["ok"], "a floor needs no other tile"


def test_another_tiles_proposal(folder: Path) -> None:
    """A model that adds the proposal it is given is worse by just that."""
    report = evaluate_folder(
        FakeModel(propose=lambda s1: s1[:, :1].expand(-1, 4, -1, -1)), folder, controls=True
    )
    for result in report.tiles:
        pair = load_pair(result.record)
        donor = str(result.controls["proposal_swapped"]["donor"])
        other = next(load_pair(record) for record in list_pairs(folder) if record.name == donor)
        s1, truth = torch.from_numpy(pair.s1), torch.from_numpy(pair.s2)
        opt_v2 = (
            simulated_estimate(truth, result.record.name)
            if pair.opt_v2 is None
            else torch.from_numpy(pair.opt_v2)
        )
        expected = compute_metrics(opt_v2 + torch.from_numpy(other.s1[:1]), truth, s1=s1)
        assert result.controls["proposal_swapped"] == pytest.approx({**expected, "donor": donor})
    assert report.summary()["ok"]["proposal_swapped"]["tiles"] == 3


def test_a_plain_network_that_needs_no_estimate_is_given_none(folder: Path) -> None:
    report = evaluate_folder(FakeModel(), folder, control_models=ControlModels(plain=FakePlain("sar")))
    pair = load_pair(report.tiles[0].record)
    truth = torch.from_numpy(pair.s2)
    constant = compute_metrics(torch.full_like(truth, 1000.0), truth, s1=torch.from_numpy(pair.s1))
    assert report.tiles[0].controls["plain"] == pytest.approx(constant)


def test_the_floors_are_constant_colours(folder: Path) -> None:
    report = evaluate_folder(FakeModel(), folder, controls=True)
    for result in report.tiles:
        truth = torch.from_numpy(load_pair(result.record).s2) / 10_000
        variance = truth.var((1, 2), correction=0).mean()
        assert result.controls["tile_mean"]["mse"] == pytest.approx(float(variance), rel=1e-4)
        nano = torch.tensor(OPTICAL_MEAN)[:, None, None] / 10_000
        assert result.controls["mean_colour"]["mse"] == pytest.approx(
            float((truth - nano).square().mean()), rel=1e-4
        )
        assert result.controls["tile_mean"]["mse"] < result.controls["mean_colour"]["mse"]


def test_groups_select_and_unknown_ones_are_named(folder: Path) -> None:
    assert [t.record.id for t in evaluate_folder(FakeModel(), folder, groups=["g1"]).tiles] == ["a", "b"]
    with pytest.raises(InputError, match=r"g9; there are g1, g2"):
        evaluate_folder(FakeModel(), folder, groups=["g1", "g9"])
    with pytest.raises(InputError, match="none given"):
        evaluate_folder(FakeModel(), folder, groups=[])


def test_nodata_is_left_out(folder: Path) -> None:
    path = folder / "pairs" / "src" / "b.npz"
    content = dict(np.load(path))
    content["s1"][:, :4] = np.nan
    content["s2"][:, :, :4] = 0
    np.savez(path, **content)
    report = evaluate_folder(FakeModel(follow_sar), folder, controls=True)
    assert all(np.isfinite(value) for value in report.tiles[1].metrics.values())


def test_other_units_are_refused_with_the_file_named(folder: Path) -> None:
    path = folder / "pairs" / "src" / "b.npz"
    content = dict(np.load(path))
    linear = content | {"s1": 10 ** (content["s1"] / 10)}
    np.savez(path, **linear)
    with pytest.raises(InputError, match=r"b\.npz: s1 .*linear power"):
        evaluate_folder(FakeModel(), folder)
    assert len(evaluate_folder(FakeModel(), folder, force=True).tiles) == 3
    np.savez(path, **(content | {"opt_v2": content["s2"] / 10_000}))
    with pytest.raises(InputError, match=r"b\.npz: .*reflectance in 0-1"):
        evaluate_folder(FakeModel(), folder)


def test_json_is_complete_and_strict(folder: Path) -> None:
    perfect: dict[tuple[float, ...], Tensor] = {}
    for record in list_pairs(folder, "all"):
        pair = load_pair(record)
        perfect[tuple(pair.s1[:, 0, :3].ravel().tolist())] = torch.from_numpy(pair.s2)

    def oracle(s1: Tensor, opt_v2: Tensor) -> Tensor:
        return torch.stack([perfect[tuple(sar[:, 0, :3].flatten().tolist())] for sar in s1])

    report = evaluate_folder(FakeModel(oracle), folder, quality="all")
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(written) == {
        "data", "quality", "opt_v2_source", "opt_v2_preset", "model", "control_models", "timesteps", "nfe", "seed",
        "members", "device", "seconds", "seconds_per_tile", "units", "summary", "tiles",
    }  # fmt: skip
    assert written["model"] == {"AXS_VARIANT": "fake"}
    assert written["opt_v2_source"] == {"file": 1, "degraded": 3}
    assert written["opt_v2_preset"] == "test"
    assert written["summary"]["all"]["wins"] == 1
    assert written["summary"]["all"]["improvement_of_mean_%"]["mse"] == 100
    assert written["tiles"][0]["metrics"]["psnr_v3"] is None
    assert written["tiles"][0]["metrics"]["mse_v3"] == 0
    assert [entry["id"] for entry in written["tiles"]] == ["a", "b", "c", "d"]
    assert {"group", "quality", "opt_v2_source", "seconds", "win", "height", "width"} <= set(
        written["tiles"][0]
    )


def rendered(report: Report) -> str:
    console = Console(file=io.StringIO(), width=160)
    for table in (*report.tables(), *report.control_tables(), report.tile_table()):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_tables_say_what_was_measured(folder: Path) -> None:
    report = evaluate_folder(FakeModel(follow_sar), folder, quality="all", controls=True)
    text = rendered(report)
    for word in (
        *(
            "3 tiles, quality ok",
            "4 tiles, quality all",
            "degraded (3)",
            "file (1)",
            "10 timesteps",
            "MSE",
            "SSIM",
        ),
        *("edges, with SAR", "smaller MSE on 100 %", "quartiles", "worst tile", "src/d", "cloud"),
        *("Controls: 3 tiles", "another tile's SAR", "another tile's proposal", "mean colour"),
    ):
        assert word in text, word
    assert [table.title for table in report.tables()] == ["3 tiles, quality ok", "4 tiles, quality all"]
    plain = rendered(evaluate_folder(FakeModel(), folder))
    assert "Controls" not in plain


def test_progress_goes_to_the_error_stream(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_folder(FakeModel(), folder, progress=True)
    assert capsys.readouterr().out == ""


def test_the_whole_pipeline_from_sar_alone(folder: Path) -> None:
    """Its own opt_v1 and opt_v2 are measured, also where a pair carries an opt_v2."""
    index = (folder / "index.csv").read_text().splitlines()
    dated = [f"{index[0]},date,lat", f"{index[1]},2021-07-14,48.2", *(f"{row},," for row in index[2:])]
    (folder / "index.csv").write_text("\n".join(dated))
    pipeline = FakePipeline()
    report = evaluate_folder(pipeline, folder, timesteps=3, seed=5)
    assert pipeline.metadata == [{"date": "2021-07-14", "lat": 48.2}, {}, {}]
    assert pipeline.asked == [(3, 5)] and (report.timesteps, report.nfe) == (3, 22)
    assert report.opt_v2_sources() == {"stage2": 3}
    for result in report.tiles:
        pair = load_pair(result.record)
        s1, truth = torch.from_numpy(pair.s1), torch.from_numpy(pair.s2)
        opt_v2 = torch.full_like(truth, 2000.0)
        expected = stage3_metrics(follow_sar(s1[None], opt_v2[None])[0], opt_v2, truth, s1=s1)
        first = compute_metrics(torch.full_like(truth, 1000.0), truth, s1=s1)
        assert result.metrics == pytest.approx(expected | {f"{key}_v1": v for key, v in first.items()})
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["opt_v2_source"] == {"stage2": 3} and written["opt_v2_preset"] is None
    assert written["model"] == {"AXS_STAGE2_VARIANT": "fake"}
    summary = written["summary"]["ok"]
    assert summary["mean"]["mse_v1"] == pytest.approx(np.mean([t.metrics["mse_v1"] for t in report.tiles]))
    assert set(written) == set(evaluate_folder(FakeModel(), folder).to_json())
    for word in ("opt_v1", "mean", "median", "MSE v1", "SSIM v1", "stage2 (3)"):
        assert word in rendered(report), word
    narrow = Console(file=io.StringIO(), width=80)
    narrow.print(report.tables()[0])
    assert "…" not in narrow.file.getvalue()  # type: ignore[attr-defined]
    assert "v1" not in rendered(evaluate_folder(FakeModel(), folder))


def test_the_pipelines_controls_keep_its_opt_v2(folder: Path) -> None:
    """Stages 1 and 2 run once; only Stage 3 sees another tile's SAR or proposal."""
    pipeline = FakePipeline()
    pipeline.stage3.propose = lambda s1: s1[:, :1].expand(-1, 4, -1, -1)
    report = evaluate_folder(pipeline, folder, controls=True)
    assert pipeline.asked == [(10, 0)]
    assert [call[1:] for call in pipeline.stage3.calls] == [(10, 0)] * 3
    assert (pipeline.stage3.trust == Trust.SAR_ONLY).all()  # as the pipeline itself runs it
    records = list_pairs(folder)
    for result, donor in zip(report.tiles, (records[2], records[2], records[0]), strict=True):
        pair, other = load_pair(result.record), torch.from_numpy(load_pair(donor).s1)
        s1, truth = torch.from_numpy(pair.s1), torch.from_numpy(pair.s2)
        opt_v2 = torch.full_like(truth, 2000.0)
        swapped = follow_sar(other[None], opt_v2[None])[0]
        assert result.controls["sar_swapped"] == pytest.approx(
            {**compute_metrics(swapped, truth, s1=s1), "donor": donor.name}
        )
        proposed = follow_sar(s1[None], opt_v2[None])[0] + other[:1]
        assert result.controls["proposal_swapped"] == pytest.approx(
            {**compute_metrics(proposed, truth, s1=s1), "donor": donor.name}
        )


def test_what_the_date_is_worth(folder: Path) -> None:
    """With dates in the index the pipeline runs again without them; without any it does not."""
    assert "no_date" not in evaluate_folder(FakePipeline(), folder, controls=True).summary()["ok"]
    index = (folder / "index.csv").read_text().splitlines()
    dated = [f"{index[0]},date", f"{index[1]},2021-07-14", *(f"{row}," for row in index[2:])]
    (folder / "index.csv").write_text("\n".join(dated))
    pipeline = FakePipeline()
    report = evaluate_folder(pipeline, folder, controls=True)
    assert pipeline.metadata == [{"date": "2021-07-14"}, {}, {}, {}, {}, {}]
    for result in report.tiles:  # this one's images do not depend on the date
        assert result.controls["no_date_v2"]["mse"] == pytest.approx(result.metrics["mse_v2"])
        assert result.controls["no_date"]["mse"] == pytest.approx(result.metrics["mse_v3"])
    assert "date and place withheld" in rendered(report)
    assert "no_date" not in evaluate_folder(FakePipeline(), folder).summary()["ok"]


@pytest.mark.parametrize(
    ("model", "source"), [(FakePipeline(), "degraded"), (FakeModel(), "stage2"), (FakePipeline(), "file")]
)
def test_a_source_that_the_model_cannot_have_is_refused(folder: Path, model: Any, source: Any) -> None:
    with pytest.raises(InputError, match=f"opt_v2_source is '{source}'"):
        evaluate_folder(model, folder, opt_v2_source=source)


def test_degraded_estimates_take_the_place_of_files(folder: Path) -> None:
    report = evaluate_folder(FakeModel(), folder, opt_v2_source="degraded")
    assert report.opt_v2_sources() == {"degraded": 3}
    truth = torch.from_numpy(load_pair(report.tiles[0].record).s2)
    expected = compute_metrics(simulated_estimate(truth, "src/a"), truth)["mse"]
    assert report.tiles[0].metrics["mse_v2"] == pytest.approx(expected)


def test_models_beside_the_model_are_measured_as_it_is(folder: Path) -> None:
    """Without the SAR nothing is gained here, so the SAR is worth the whole gain."""
    seen: list[Tensor] = []

    def note(s1: Tensor, opt_v2: Tensor) -> Tensor:
        seen.append(s1)
        return opt_v2

    blind = FakeModel(note)
    mean = torch.tensor([-12.0, -20.0]).view(1, 2, 1, 1)
    blind.terramind_generator = SimpleNamespace(sar=SimpleNamespace(mean=mean))  # type: ignore[attr-defined]
    plain = FakePlain("sar+optical")
    report = evaluate_folder(
        FakeModel(follow_sar),
        folder,
        control_models=ControlModels(blind, plain),  # type: ignore[arg-type]
    )
    assert len(seen) == 1 and torch.equal(seen[0], mean.expand_as(seen[0]))
    figures = report.summary()["ok"]
    assert set(figures) & {"sar_swapped", "mean_colour", "proposal_swapped"} == set()
    without, own = figures["no_sar"], figures["mean"]
    assert without["mean"]["mse"] == pytest.approx(own["mse_v2"])
    assert without["improvement_of_mean_%"]["mse"] == pytest.approx(0)
    gain = 100 * (own["mse_v2"] - own["mse_v3"]) / own["mse_v2"]
    assert without["sar_worth_%"] == pytest.approx(gain) == without["sar_worth_of_no_sar_%"]
    assert without["wins_over"] == 1
    assert figures["plain"]["mean"]["mse"] == pytest.approx(own["mse_v2"])
    assert report.to_json()["control_models"] == {
        "no_sar": {"AXS_VARIANT": "fake"},
        "plain": {"inputs": "sar+optical"},
    }
    assert {"no_sar", "plain"} <= set(report.to_json()["tiles"][0])


def test_real_pairs(shared_pairs: Path) -> None:
    """A copy of the simulated estimates: its figures are those of the simulation."""
    report = evaluate_folder(FakeModel(), shared_pairs, groups=["ben_20170906", "wct_b"])
    figures = report.summary()["ok"]["mean"]
    assert 1e-4 < figures["mse_v2"] < 3e-3
    assert 0.5 < figures["ssim_v2"] < 0.98
    assert report.opt_v2_sources() == {"degraded": len(report.tiles)}
