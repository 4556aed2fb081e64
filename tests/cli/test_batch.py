"""``axs batch`` says what became of the items, by words and by exit code (whole jobs: tests/batch/test_faults.py)."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from axs_lib.batch import runners, supervise
from axs_lib.batch.items import Item
from axs_lib.batch.supervise import Summary
from axs_lib.batch.work import Job, Task, make_record
from axs_lib.io.results import CALIBRATE

from .conftest import Run


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What ``run_batch`` was given, and what it shall answer."""
    made = SimpleNamespace(job=None, summary=Summary(1, done=1))

    def run_batch(job: Job, items: list[Item], pool: Any, **options: Any) -> Summary:
        vars(made).update(job=job, items=items, pool=pool, options=options)
        return made.summary

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.npz").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supervise, "run_batch", run_batch)
    monkeypatch.setattr(runners, "find_weights", lambda settings, checkpoints: {"w": "0"})
    return made


def test_the_options_reach_the_job(axs: Run, called: Any, tmp_path: Path) -> None:
    result = axs(
        "batch", "in", "--out", "out", "--stage", "pipeline", "--variant", "nano", "--timesteps", 3, "--seed", 5,
        "--s1-product", "S1RTC", "--format", "tif", "--stage2-checkpoint", "w.safetensors", "--threads", 2,
        "--workers", 3, "--force", "--fail-fast", "-q", "--dtype", "bfloat16",
    )  # fmt: skip
    assert result.output == "1 item: 1 done; out/manifest.parquet\n"
    job = called.job
    assert job is not None and called.items == [Item("a", str(tmp_path / "in" / "a.npz"))]
    wanted = {
        "stage": "pipeline", "variant": "nano", "timesteps": 3, "seed": 5, "s1_product": "S1RTC", "dtype": "bfloat16",
    }  # fmt: skip
    assert wanted.items() <= job.settings.items()
    assert job.checkpoints == {"stage2_checkpoint": str(tmp_path / "w.safetensors")}
    assert (job.out, job.format, job.force, job.threads) == (str(tmp_path / "out"), "tif", True, 2)
    assert (job.device, job.weights) == ("cpu", {"w": "0"})
    assert called.options == {"fail_fast": True, "overwrite": False, "progress": False} and called.pool.open() == 3


@pytest.mark.parametrize(("variant", "steps"), [("nano", 1), ("terramind_v1_base", 10)])
@pytest.mark.parametrize("stage", ["ground", "pipeline"])
def test_the_weights_recommend_the_timesteps(axs: Run, called: Any, stage: str, variant: str, steps: int) -> None:
    axs("batch", "in", "--out", "out", "--stage", stage, "--variant", variant)
    assert called.job.settings["timesteps"] == steps


def test_masks_and_maps_reach_the_job(axs: Run, called: Any, tmp_path: Path) -> None:
    (tmp_path / "m.tif").touch()
    arguments = ("--mask", "m.tif", "--mask-buffer", 2, "--uncertainty", "u", "--date", "2021-07-14")
    axs("batch", "in", "--out", "out", *arguments)
    job = called.job
    assert job is not None and called.items[0].mask == str(tmp_path / "m.tif")
    assert called.items[0].metadata == {"date": "2021-07-14"}
    assert job.settings["mask"]["buffer"] == 2 and job.settings["ensemble_size"] == 4
    assert job.maps == {"uncertainty": str(tmp_path / "u")}
    # Those of a manifest are read as the options say.
    (tmp_path / "list.csv").write_text("path,mask\nin/a.npz,m.tif\n")
    axs("batch", "list.csv", "--out", "out", "--mask-kind", "scl", "--drop", "3")
    assert called.items[0].mask == str(tmp_path / "m.tif")
    mask = {"path": None, "kind": "scl", "invert": False, "buffer": 0, "drop": (3,)}
    assert called.job.settings["mask"] == mask


def test_an_image_of_no_tile_is_named(axs: Run, called: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in/stray.tif").touch()
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(action="always"):
        assert "warning: 1 image of in belong to no tile" in axs("batch", "in", "--out", "out").stderr


def test_failures_are_named_and_counted(axs: Run, called: Any) -> None:
    job = Job(runners.build_runner, {}, {}, "/out")
    failed = [make_record(job, Task(Item(f"t{n}", f"/in/{n}.npz"), 0), "failed", "it is bad") for n in range(12)]
    called.summary = Summary(20, done=3, kept=4, failed=failed)
    result = axs("batch", "in", "--out", "out", code=1)
    assert result.stdout == "20 items: 3 done, 4 done before, 12 failed, 1 left; out/manifest.parquet\n"
    lines = result.stderr.splitlines()
    assert lines[0] == "failed: t0: it is bad" and len(lines) == 11
    assert lines[-1] == "... and 2 more in the manifest"
    called.summary = Summary(1, done=1, notes={f"the unit is assumed; {CALIBRATE}", CALIBRATE})
    assert axs("batch", "in", "--out", "out", "--uncertainty", "u").stderr == f"{CALIBRATE}\n"
    assert axs("batch", "in", "--out", "out", "--uncertainty", "u", "-q").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("in", "--address", "auto"), "add --engine ray"),
        (("in", "--stage2-checkpoint", "w"), "--stage ground has no --stage2-checkpoint"),
        (("in", "--stage", "pipeline", "--mask", "m.tif"), "--stage pipeline has no --mask;"),
        (("in", "--stage", "pipeline", "--strength", "0.5"), "--stage pipeline has no --strength;"),
        (("in", "--stage", "pipeline", "--boa-offset", "0"), "--stage pipeline has no --boa-offset;"),
        (("in", "--device", "cuda:1"), "choose GPUs by CUDA_VISIBLE_DEVICES"),
        (("in", "--mask-buffer", "3"), "add --mask FILE"),
        (("in", "--date", "notadate"), "the date is 'notadate'"),
        (("in", "--stac", "items"), "add --format tif"),
        (("in", "--stac", "items", "--format", "tif"), "give --date 2021-07-14, or a column date"),
        (("in", "--stage", "pipeline", "--uncertainty", "u", "--ensemble-size", "1"), "expected 2 or more"),
        (("in", "--gate", "."), "all tiles of in lie in a folder for outputs"),
        (("nowhere",), "holds no tile; expected tiles as NAME.npz"),
        (("in", "--stage", "stage9"), "stage9"),
    ],
)
def test_what_is_refused(axs: Run, called: Any, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = axs("batch", *arguments, "--out", "out", code=2)
    assert message in result.stderr and "Traceback" not in result.output
    assert called.job is None and not (tmp_path / "out").exists()


def test_without_ray_the_fix_is_named(axs: Run, called: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = axs("batch", "in", "--out", "out", "--engine", "ray", code=2)
    assert "pip install 'axion-sat[ray]', or use --engine local" in result.stderr
    assert called.job is None and not (tmp_path / "out").exists()
