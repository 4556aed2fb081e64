"""The runners give what the models give, with the provenance of both, and refuse other weights than the job's."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.errors import RasterioIOError

from axs_lib.batch import runners
from axs_lib.batch.items import Item
from axs_lib.batch.ray_engine import RayPool
from axs_lib.batch.work import Job, Outcome, Task, Worker
from axs_lib.data.samples import load_sample, sample_paths
from axs_lib.errors import AxionError, WeightsError
from axs_lib.io.results import CALIBRATE
from axs_lib.scenes.api import ground_scene
from tests.cli.conftest import FakePipeline
from tests.scenes.conftest import BoxGrounder

NAME = "ireland_fields"
S1, S2 = map(str, sample_paths(NAME))


SETTINGS: dict[str, Any] = {
    "stage": "ground", "variant": "nano", "timesteps": 2, "seed": 3, "s1_product": "S1GRD", "s1_unit": "auto",
    "boa_offset": "auto", "bands": None, "same_grid": False, "strength": 1.0, "ensemble_size": 1, "hold_colour": False,
    "correction_mode": None, "dtype": "float32",
    "mask": {"path": None, "kind": "auto", "invert": False, "drop": None, "buffer": 0},
}  # fmt: skip


def job_of(out: Path, settings: dict[str, Any] | None = None, **options: Any) -> Job:
    weights = options.pop("weights", {})
    return Job(runners.build_runner, SETTINGS | (settings or {}), weights, str(out), **options)


def ground(job: Job, item: Item) -> Outcome:
    """What a worker makes of an item, with a stand-in for the model."""
    worker = Worker(replace(job, make_runner=lambda job: partial(runners.ground_item, BoxGrounder(), job)))
    Path(job.out).mkdir(parents=True, exist_ok=True)
    return worker.run(Task(item, 0))


def test_the_runner_is_built_in_the_precision_and_of_the_weights_of_the_job(tmp_path: Path) -> None:
    job = job_of(tmp_path, {"dtype": "bfloat16"}, weights=runners.find_weights(SETTINGS, {}))
    runner = runners.build_runner(job)
    assert isinstance(runner, partial)
    assert any(p.dtype == torch.bfloat16 for p in runner.args[0].parameters())
    with pytest.raises(WeightsError, match="not those that the job was started with"):
        runners.build_runner(job_of(tmp_path))


def test_a_cluster_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(host: tuple[str, int], timeout: float) -> None:
        assert host == ("::1", 10001)
        raise TimeoutError("timed out")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=None))
    monkeypatch.setattr("socket.create_connection", tried)
    with pytest.raises(AxionError, match=r"Ray cannot be used at ray://\[::1\]:10001: timed out; check --address"):
        RayPool(SimpleNamespace(threads=1), 1, 0, "ray://[::1]:10001").open()  # type: ignore[arg-type]


def image_and_tags(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """opt_v3 of an output and the tags beside it."""
    if path.suffix == ".tif":
        with rasterio.open(path) as file:
            return file.read(), file.tags()
    with np.load(path) as file:
        return file["opt_v3"], json.loads(str(file["provenance"]))


@pytest.mark.parametrize("format", ["npz", "tif"])
def test_a_pair_is_grounded_as_the_command_does_it(tmp_path: Path, format: Any) -> None:
    outcome = ground(job_of(tmp_path / "out", format=format), Item("sub/a", S1, S2))
    assert outcome.record is not None and outcome.record.status == "done", outcome
    like, made = tmp_path / f"like.{format}", tmp_path / "out" / "sub" / f"a.{format}"
    ground_scene(BoxGrounder(), S1, S2, like, timesteps=2, seed=3, deterministic=True)  # type: ignore[arg-type]
    image, tags = image_and_tags(made)
    np.testing.assert_array_equal(image, image_and_tags(like)[0])
    assert (tags["AXS_SEED"], tags["AXS_TIMESTEPS"], tags["AXS_DTYPE"]) == ("3", "2", "float32")
    assert list(made.parent.iterdir()) == [made]
    maps = {"uncertainty": str(tmp_path / "maps")}
    mapped = ground(job_of(tmp_path / "more", {"ensemble_size": 2}, format=format, maps=maps), Item("a", S1, S2))
    assert mapped.record is not None and CALIBRATE in mapped.record.notes and CALIBRATE not in outcome.record.notes


def test_maps_go_to_their_folders_and_the_stac_item_links_to_the_image(tmp_path: Path) -> None:
    maps = {name: str(tmp_path / "maps" / name) for name in ("uncertainty", "gate", "stac")}
    job = job_of(tmp_path / "out", {"ensemble_size": 2}, format="tif", maps=maps)
    outcome = ground(job, Item("sub/a", S1, S2, {"date": "2021-07-14"}))
    assert outcome.record is not None and outcome.record.status == "done", outcome
    assert set(outcome.record.outputs(job.out)) == {str(path) for path in job.outputs(Item("sub/a", "")).values()}
    item = tmp_path / "maps" / "stac" / "sub" / "a.json"
    hrefs = [asset["href"] for asset in json.loads(item.read_text())["assets"].values()]
    assert (tmp_path / "out" / "sub" / "a.tif").resolve() in [(item.parent / href).resolve() for href in hrefs]
    assert all((item.parent / href).exists() for href in hrefs)


def test_a_mask_of_the_item_keeps_what_was_observed(tmp_path: Path) -> None:
    clear = np.ones((120, 120), dtype=np.uint8)
    clear[:40] = 0
    np.savez(tmp_path / "mask.npz", mask=clear)
    np.savez(tmp_path / "clear.npz", mask=np.ones_like(clear))
    job = job_of(tmp_path / "out")
    assert ground(job, Item("a", S1, S2, mask=str(tmp_path / "mask.npz"))).record.status == "done"  # type: ignore[union-attr]
    with np.load(tmp_path / "out" / "a.npz") as written:
        unchanged = (written["opt_v3"] == load_sample(NAME)[1].data).all(axis=0)
    assert unchanged[40:].all() and not unchanged[:40].all()
    record: Any = ground(job, Item("b", S1, S2, mask=str(tmp_path / "clear.npz"))).record
    assert record.status == "done" and "so that nothing is filled" in record.notes


def test_addresses_in_a_manifest_are_never_opened(tmp_path: Path) -> None:
    for address in ("/vsicurl/http://127.0.0.1:9/a.tif", "http://127.0.0.1:9/a.tif", "s3://bucket/a.tif"):
        for item in (Item("a", address, S2), Item("a", S1, address), Item("a", S1, S2, mask=address)):
            record = ground(job_of(tmp_path / "out"), item).record
            assert record is not None and record.status == "failed" and "does not exist" in record.error


@pytest.mark.parametrize("format", ["npz", "tif"])
def test_the_pipeline_gets_place_and_date(tmp_path: Path, format: Any) -> None:
    pipeline, item = FakePipeline(), Item("sub/a", S1, metadata={"date": "2021-07-14"})
    job = job_of(tmp_path, {"stage": "pipeline"}, format=format)
    outputs = job.outputs(item)
    outputs["image"].parent.mkdir()
    runners.run_item(pipeline, job, item, outputs)  # type: ignore[arg-type]
    assert pipeline.metadata[0].keys() == {"date", "lat", "lon"}
    assert (pipeline.settings["timesteps"], pipeline.settings["seed"]) == (2, 3)
    image, tags = image_and_tags(tmp_path / "sub" / f"a.{format}")
    assert (image == 300).all() and tags["AXS_METADATA_DATE"] == "2021-07-14"


def test_the_weights_are_known_before_a_model_is_built(tmp_path: Path) -> None:
    ground = runners.find_weights({"stage": "ground", "variant": "nano"}, {})
    assert ground.keys() == {"stage3/nano.safetensors", "stage3/grounding.safetensors"}
    assert len(ground["stage3/nano.safetensors"]) == 64
    stages = {"stage": "pipeline", "variant": "nano"}
    whole = runners.find_weights(stages, {})
    assert whole.keys() == ground.keys() | {"stage2/nano_stage2.safetensors"}
    own = tmp_path / "own.safetensors"
    own.write_bytes(b"other")
    other = runners.find_weights(stages, {"stage1_checkpoint": str(own), "checkpoint": str(own)})
    assert other["stage1/own.safetensors"] == other["stage3/own.safetensors"] != ground["stage3/nano.safetensors"]


def test_only_a_full_disk_stops_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GDAL does not say why it cannot write."""

    def refused(source: str, target: Path, **_: Any) -> None:
        raise RasterioIOError("write failed")

    monkeypatch.setattr("rasterio.shutil.copy", refused)
    for free, stops in ((0, True), (2**30, False)):
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        outcome = ground(job_of(tmp_path / "out", format="tif"), Item("a", S1, S2))
        assert outcome.record is not None and "the disk is full or refuses (write failed)" in outcome.record.error
        assert bool(outcome.stop) == stops
