"""The runners give what the models give, with the provenance of both, and refuse other weights than the job's."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from axs_lib.batch import runners
from axs_lib.batch.items import Item
from axs_lib.batch.work import Job, Task, Worker
from axs_lib.data.samples import load_sample, sample_paths
from axs_lib.errors import InputError, OutputError, WeightsError
from axs_lib.pipeline import PipelineOutput
from axs_lib.stage3_tm_ground import DEFAULT_VARIANT, Stage3Output
from tests.scenes.conftest import BoxGrounder, scene_arrays, write_scene

NAME = "ireland_fields"
S1, S2 = map(str, sample_paths(NAME))


class FakeStage3:
    """Adds 100 DN."""

    provenance = {"AXS_VARIANT": "fake"}  # noqa: RUF012

    def ground(self, s1: torch.Tensor, opt_v2: torch.Tensor, timesteps: int, **options: Any) -> Stage3Output:
        self.options = {"timesteps": timesteps} | options
        return Stage3Output(opt_v2 + 100, opt_v2, opt_v2[:, :1], None, timesteps)


class FakePipeline:
    """Constant images."""

    device = torch.device("cpu")
    provenance = {"AXS_VARIANT": "fake"}  # noqa: RUF012

    def __call__(
        self, s1: torch.Tensor, metadata: Any, timesteps: int | None, **options: Any
    ) -> PipelineOutput:
        self.metadata, self.options = metadata, {"timesteps": timesteps} | options
        images = [torch.full((len(s1), 4, *s1.shape[-2:]), value) for value in (100.0, 200.0, 300.0)]
        return PipelineOutput(*images, None, (12, 10))


def job_of(out: Path, **options: Any) -> Job:
    settings = {"stage": "ground", "variant": "nano", "timesteps": None, "seed": 3, "s1_product": "S1GRD"}
    settings |= options.pop("settings", {})
    weights = options.pop("weights", {})
    return Job(runners.build_runner, settings, weights, str(out), **options)


def test_lower_precision_is_part_of_the_job(tmp_path: Path) -> None:
    item, plain = Item("a", S1, S2), job_of(tmp_path)
    assert (
        "dtype" not in plain.settings
    )  # so that outputs of jobs that knew of no precision are not made again
    settings = {"dtype": "bfloat16"}
    job = job_of(tmp_path, settings=settings, weights=runners.find_weights(plain.settings, {}))
    runner = runners.build_runner(job)
    assert isinstance(runner, functools.partial)
    assert runner.args[0].terramind_generator.precision == torch.bfloat16
    model = FakeStage3()
    runners.ground_item(model, job, item, job.output(item))  # type: ignore[arg-type]
    with np.load(tmp_path / "a.npz") as written:
        assert json.loads(str(written["provenance"]))["AXS_DTYPE"] == "bfloat16"


@pytest.mark.parametrize("format", ["npz", "tif"])
def test_a_pair_is_grounded(tmp_path: Path, format: Any) -> None:
    model, item, job = FakeStage3(), Item("a", S1, S2), job_of(tmp_path, format=format)
    runners.ground_item(model, job, item, job.output(item))  # type: ignore[arg-type]
    truth = load_sample(NAME)[1].data + 100
    assert model.options == {"timesteps": 10, "seed": 3, "trust": None}
    if format == "npz":
        with np.load(tmp_path / "a.npz") as written:
            np.testing.assert_array_equal(written["opt_v3"], truth)
            tags = json.loads(str(written["provenance"]))
    else:
        with rasterio.open(tmp_path / "a.tif") as dataset:
            np.testing.assert_array_equal(dataset.read(), truth)
            tags = dataset.tags()
    assert (tags["AXS_VARIANT"], tags["AXS_SEED"], tags["AXS_TIMESTEPS"]) == ("fake", "3", "10")


def test_a_scene_is_streamed_one_tile_at_a_time(tmp_path: Path) -> None:
    sar, optical = scene_arrays(300, 270)
    files = write_scene(tmp_path / "a_s1.tif", sar), write_scene(tmp_path / "a_opt_v2.tif", optical)
    item, job, grounder = (
        Item("sub/a", *map(str, files)),
        job_of(tmp_path / "out", format="tif"),
        BoxGrounder(),
    )
    runners.ground_item(grounder, job, item, job.output(item))  # type: ignore[arg-type]
    assert grounder.calls == [1] * 4
    with rasterio.open(job.output(item)) as dataset:
        assert dataset.shape == (300, 270) and dataset.overviews(1) == []
        assert dataset.tags()["AXS_TILE_OVERLAP"] == "64" and dataset.tags()["AXS_S1_PRODUCT"] == "S1GRD"
    assert [path.name for path in (tmp_path / "out" / "sub").iterdir()] == ["a.tif"]


def test_the_last_image_of_a_pipeline_on_a_scene_is_kept(tmp_path: Path) -> None:
    file = write_scene(tmp_path / "a.tif", scene_arrays(300, 270)[0])
    item = Item("a", str(file), metadata={"date": "2021-07-14"})
    job = job_of(tmp_path / "out", format="tif", settings={"stage": "pipeline", "timesteps": 2})
    runners.run_item(FakePipeline(), job, item, job.output(item))  # type: ignore[arg-type]
    with rasterio.open(job.output(item)) as dataset:
        assert (dataset.read() == 300).all() and dataset.tags()["AXS_METADATA_DATE"] == "2021-07-14"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.tif"]


@pytest.mark.parametrize("format", ["npz", "tif"])
def test_the_pipeline_gets_place_and_date(tmp_path: Path, format: Any) -> None:
    pipeline, item = FakePipeline(), Item("sub/a", S1, metadata={"date": "2021-07-14"})
    job = job_of(tmp_path, format=format, settings={"stage": "pipeline", "timesteps": 2})
    runners.run_item(pipeline, job, item, job.output(item))  # type: ignore[arg-type]
    assert pipeline.metadata.keys() == {"date", "lat", "lon"} and pipeline.options == {
        "timesteps": 2,
        "seed": 3,
    }
    if format == "npz":
        with np.load(tmp_path / "sub" / "a.npz") as written:
            assert [written[f"opt_v{stage}"].mean() for stage in (1, 2, 3)] == [100, 200, 300]
            assert written["s1_vv"].shape == (120, 120)
    else:
        with rasterio.open(tmp_path / "sub" / "a.tif") as dataset, rasterio.open(S1) as given:
            assert (dataset.crs, dataset.transform) == (given.crs, given.transform)
            assert (dataset.read() == 300).all() and dataset.tags()["AXS_METADATA_DATE"] == "2021-07-14"


def test_units_that_cannot_be_need_force(tmp_path: Path) -> None:
    s1, s2 = load_sample(NAME)
    np.savez(tmp_path / "a.npz", s1=10 ** (s1.data / 10), opt_v2=s2.data)
    item, out = Item("a", str(tmp_path / "a.npz")), tmp_path / "out"
    with pytest.raises(InputError, match="linear power"):
        runners.ground_item(FakeStage3(), job_of(out), item, out / "a.npz")  # type: ignore[arg-type]
    runners.ground_item(FakeStage3(), job_of(out, force=True), item, out / "a.npz")  # type: ignore[arg-type]


def test_the_weights_are_known_before_a_model_is_built(tmp_path: Path) -> None:
    ground = runners.find_weights({"stage": "ground", "variant": "nano"}, {})
    assert ground.keys() == {"stage3/nano.safetensors", "stage3/grounding.safetensors"}
    assert len(ground["stage3/nano.safetensors"]) == 64
    whole = runners.find_weights({"stage": "pipeline", "variant": "nano"}, {})
    assert whole.keys() == ground.keys() | {"stage2/nano_stage2.safetensors"}
    (tmp_path / "own.safetensors").write_bytes(b"other")
    other = runners.find_weights(
        {"stage": "pipeline", "variant": "nano"},
        {
            "stage1_checkpoint": str(tmp_path / "own.safetensors"),
            "checkpoint": str(tmp_path / "own.safetensors"),
        },
    )
    assert (
        other["stage1/own.safetensors"]
        == other["stage3/own.safetensors"]
        != ground["stage3/nano.safetensors"]
    )


def test_weights_that_changed_since_the_start_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not those that the job was started with"):
        runners.build_runner(job_of(tmp_path))


def test_the_commands_default_is_the_librarys() -> None:
    from axs_lib.cli.batch import DEFAULT_VARIANT as COMMANDS

    assert COMMANDS == DEFAULT_VARIANT


def test_a_full_disk_stops_the_job_and_another_failure_does_not(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"a")
    item = Item("a", str(tmp_path / "a.npz"))

    def full(job: Job) -> Any:
        def run(item: Item, output: Path) -> None:
            raise OutputError("cannot write: the disk is full") from OSError(job.settings["errno"], "")

        return run

    for errno, stops in ((28, True), (122, True), (27, False), (13, False)):
        job = Job(full, {"errno": errno}, {}, str(tmp_path / "out"))
        outcome = Worker(job).run(Task(item, 0))
        assert outcome.record is not None and outcome.record.status == "failed"
        assert bool(outcome.stop) == stops
