"""Training: what is trained, exact resume after a real kill, checkpoints that survive, weights that load."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from axs_lib.adapters import load_adapter
from axs_lib.cli.train import parse
from axs_lib.errors import InputError, OutputError, WeightsError
from axs_lib.io import atomic
from axs_lib.io.atomic import locked_folder
from axs_lib.models import build_terramind_generator
from axs_lib.stage1_tm_s2o import tm_sar2opt
from axs_lib.stage3_tm_ground import build_stage3_model, stage3_inference
from axs_lib.terramind.weights import read_metadata, read_state
from axs_lib.train.config import CONFIGS, LoraSettings, RunConfig, TrainerConfig
from axs_lib.train.readers import DataConfig, list_samples, split_samples
from axs_lib.train.tasks import Stage2Task, build_task, estimate_source, train_stage
from axs_lib.train.trainer import LOCK, TrainingWarning
from tests.models import plausible_pair


def config(stage: str, data: Path, out: Path, **options: Any) -> Any:
    reading = DataConfig(str(data), crop_sizes=(64,), batch_size=1, validation_groups=("g0",), test_groups=("g3",))
    settings = {"pretrained": False, "warmup": 1, "check_every": 2, "steps": 2} | options
    return CONFIGS[stage](data=reading, out=str(out), **settings)


def fit(run: RunConfig, flags: dict[str, Any] | None = None, **options: Any) -> Path:
    trainer = TrainerConfig(accelerator="cpu", **(flags or {}))
    return train_stage(replace(run, trainer=trainer), progress=False, **options)


def checkpoint(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(out / "last.ckpt", weights_only=True)
    return content


@pytest.mark.parametrize("wrong", ["seed=-1", "steps=0", "ema=1", "patience=-1", "sar_jitter=-1", "weight_decay=-1",
    "trainer.accumulate_grad_batches=0", "data.batch_size=0", "data.crop_sizes=[0]", "data.crop_sizes=[]"])  # fmt: skip
def test_settings_that_no_training_can_have_are_refused(wrong: str, tmp_path: Path) -> None:
    name, _, value = wrong.rpartition("=")
    expected = rf"{name.removeprefix('trainer.')} is {value.strip('[]') or 0}(\.0)?; expected from"
    with pytest.raises(InputError, match=expected):
        parse(CONFIGS["stage3"], [f"--{wrong}", "--out", str(tmp_path), "--data", "DIR"], "axs train stage3")


def test_a_run_does_not_replace_the_weights_it_starts_from(pairs: Path, tmp_path: Path, nano_weights: Path) -> None:
    first = shutil.copytree(nano_weights.parent, tmp_path / "run" / "weights") / nano_weights.name
    with pytest.raises(InputError, match=r"would replace .*, which it starts from"):
        fit(config("stage1", pairs, tmp_path / "run", pretrained=True, checkpoint=str(first)))


def test_a_killed_run_goes_on_as_if_it_had_not_been(pairs: Path, tmp_path: Path, repository: Path) -> None:
    """SIGKILL in mid-training; the resumed run ends with the weights of an uninterrupted one."""
    run = config("stage3", pairs, tmp_path / "whole", steps=4)
    fit(run, {"accumulate_grad_batches": 2})

    file = tmp_path / "run.yaml"
    file.write_text(
        "pretrained: false\nwarmup: 1\ncheck_every: 2\nsteps: 4\n"
        "data: {crop_sizes: [64], batch_size: 1, validation_groups: [g0], test_groups: [g3]}\n"
        "trainer: {accelerator: cpu, accumulate_grad_batches: 2}\n"
    )
    out = tmp_path / "killed"
    words = ["train", "stage3", "-c", str(file), "--data", str(pairs), "--out", str(out), "--quiet"]
    command = [sys.executable, "-m", "axs_lib", *words]
    process = subprocess.Popen(command, cwd=repository, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 240
    while not (out / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "weights").exists() and checkpoint(out)["global_step"] == 2

    fit(replace(run, out=str(out)), {"accumulate_grad_batches": 2})
    whole, killed = checkpoint(tmp_path / "whole"), checkpoint(out)
    assert whole["global_step"] == killed["global_step"] == 4
    for key in ("state_dict", "current_model_state"):  # the average, and what is being trained
        one, other = whole[key], killed[key]
        assert max(float((one[name] - other[name]).abs().max()) for name in one) <= 1e-6

    fresh = build_task(run).state_dict()
    assert any(not torch.equal(fresh[name], value) for name, value in whole["state_dict"].items())


def test_the_loss_falls_and_tensorboard_shows_it(pairs: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = config("stage2", pairs, tmp_path / "run", steps=30, check_every=30, learning_rate=3e-3)
    before = torch.get_rng_state()
    fit(run, {"log_every_n_steps": 1})
    assert torch.equal(before, torch.get_rng_state())
    events = EventAccumulator(str(tmp_path / "run" / "log")).Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert len(losses) == 30 and sum(losses[-10:]) < 0.9 * sum(losses[:10])
    rates = [event.value for event in events.Scalars("lr-AdamW")]
    assert rates[1] == max(rates) and rates[-1] < 0.01 * rates[1]  # warm-up of one step, then the cosine
    assert events.Scalars("val_ratio")


def test_training_stops_where_held_out_groups_get_no_better(pairs: Path, tmp_path: Path) -> None:
    fit(config("stage2", pairs, tmp_path, steps=50, check_every=1, patience=2, learning_rate=0.0))
    assert checkpoint(tmp_path)["global_step"] == 3


def test_stage3_weights_load_as_nano_and_say_their_source(pairs: Path, tmp_path: Path, nano_weights: Path) -> None:
    run = config("stage3", pairs, tmp_path / "run", pretrained=True, checkpoint=str(nano_weights), learning_rate=1e-3)
    weights = fit(run, {"precision": "bf16-mixed"})
    header = read_metadata(weights / "nano.safetensors")
    assert json.loads(header["train_groups"]) == ["g1", "g2"] and json.loads(header["validation_groups"]) == ["g0"]
    assert (header["variant"], header["stage"], header["estimate_source"]) == ("nano", "3", "degraded")
    assert str(tmp_path) not in header.get("data", "") + header["config"].replace(str(nano_weights), "")
    s1, opt_v2 = plausible_pair(1)
    before, after = (
        stage3_inference(
            build_stage3_model(variant="nano", checkpoint=str(file), correction_mode="learned"), s1, opt_v2, 1
        )
        for file in (nano_weights, weights)
    )
    assert torch.isfinite(after).all() and 0 < float((after - before).abs().max()) < 2000


def test_stage1_with_tokens_trains_and_its_weights_load(pairs: Path, tmp_path: Path, nano_weights: Path) -> None:
    run = config("stage1", pairs, tmp_path / "run", pretrained=True, checkpoint=str(nano_weights))
    task = build_task(run)
    assert task.model.training and not any(p.requires_grad for p in task.tokenizer.parameters())  # type: ignore[union-attr]
    weights = fit(run)
    s1, _ = plausible_pair(1)
    image = tm_sar2opt(build_terramind_generator(variant="nano", checkpoint=weights), s1, 1)
    assert image.shape == (1, 4, 64, 64) and float(image.std()) > 1


def test_lora_trains_adapters_and_head_and_writes_both(pairs: Path, tmp_path: Path, nano_weights: Path) -> None:
    start = {"pretrained": True, "checkpoint": str(nano_weights), "lora": LoraSettings(rank=2)}
    run = config("stage3", pairs, tmp_path / "run", learning_rate=1e-2, **start)
    trained = {name for name, p in build_task(run).named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name or ".corrector." in name for name in trained)
    weights = fit(run)
    assert not [n for n in checkpoint(tmp_path / "run")["state_dict"] if n.endswith("base_layer.weight")]
    before, after = read_state(nano_weights), read_state(weights / "nano.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and "core.encoder.0.attn.qkv.weight" in changed
    assert not {n for n in changed if n.startswith(("detokenizer.", "tokenizer.")) or ".mlp." in n}

    # The adapter on what it was trained on is the merged weights, but for their float16.
    s1, opt_v2 = plausible_pair(1)
    base, adapted = (build_stage3_model(variant="nano", checkpoint=str(nano_weights)) for _ in range(2))
    assert load_adapter(adapted, weights / "adapter") == 18
    merged = build_stage3_model(variant="nano", checkpoint=str(weights))
    images = [each.ground(s1, opt_v2, 1).image for each in (base, adapted, merged)]
    apart, moved = ((images[1] - images[index]).abs().mean() for index in (2, 0))
    assert apart < 0.1 * moved and "sha256" in adapted.provenance["AXS_ADAPTER"]
    # The packaged calibration was fitted to the head before.
    assert build_task(replace(run, checkpoint=None)).model.corrector.calibration is None


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config("stage2", pairs, tmp_path, trainer=TrainerConfig(accelerator="cpu"))
    with locked_folder(tmp_path, LOCK, "axs train"), pytest.raises(OutputError, match="in use by another axs train"):
        fit(run)
    train_stage(run)
    assert "step 2 of 2: loss " in capsys.readouterr().err, "what a log file keeps"
    made = {file: file.read_bytes() for file in (tmp_path / "weights").iterdir()}
    others = replace(run.data, test_groups=("g1",))
    for other, message in (
        (config("stage3", pairs, tmp_path), "finished run with kind stage2, and this run has kind stage3"),
        (replace(run, variant="prithvi_eo_v2_300_tl"), "variant nano, and this run has variant prithvi_eo_v2_300_tl"),
        (replace(run, lora=LoraSettings()), "lora None, and this run has lora"),
        (replace(run, data=others), r"data\.test_groups \['g3'\], and this run has data\.test_groups \['g1'\]"),
        (replace(run, seed=1, check_every=1), "check_every 2, seed 0, and .* check_every 1, seed 1; .* with --restart"),
        (replace(run, steps=3, learning_rate=0.1), "of a run with learning_rate 0.0003, and .* learning_rate 0.1;"),
    ):
        with pytest.raises(WeightsError, match=message):
            fit(other)
    fit(run)
    assert made == {file: file.read_bytes() for file in (tmp_path / "weights").iterdir()}, "bit for bit"
    with pytest.warns(TrainingWarning, match="check_every 2 -> 1, steps 2 -> 3"):
        fit(replace(run, steps=3, check_every=1))
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:1000])
    with pytest.raises(WeightsError, match="damaged or of another kind"):
        fit(run)
    with pytest.raises(InputError, match=r"Lightning refuses --trainer.*'nonsense'.*; correct that option"):
        fit(run, {"strategy": "nonsense"}, resume=False)
    assert (tmp_path / "last.ckpt").exists()
    monkeypatch.setattr(Stage2Task, "loss", None)  # as if killed in its first step
    with pytest.raises(TypeError):
        fit(run, resume=False)
    assert not (tmp_path / "last.ckpt").exists()


def test_a_full_disk_leaves_the_last_checkpoint(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config("stage2", pairs, tmp_path, steps=4, learning_rate=0.0)
    flush, written = atomic._flush, []

    def full_at_last(path: Path, flags: int) -> None:
        written.append(path.suffix)
        if written.count(".ckpt") == 3:  # best and last of step 2, then step 4's
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path, flags)

    monkeypatch.setattr(atomic, "_flush", full_at_last)
    with pytest.raises(OutputError, match=r"disk is full(.|\n)*previous checkpoint is intact"):
        fit(run)
    monkeypatch.undo()
    assert checkpoint(tmp_path)["global_step"] == 2 and not list(tmp_path.glob(".axs-*.tmp"))
    fit(run)
    assert checkpoint(tmp_path)["global_step"] == 4


def test_estimates_come_from_the_files_or_are_simulated_but_never_both(pairs: Path, tmp_path: Path) -> None:
    def source(estimate: str) -> str:
        run = config("stage3", pairs, tmp_path, estimate=estimate)
        return estimate_source(run, split_samples(list_samples(run.data), run.data))

    assert source("auto") == "degraded"
    with pytest.raises(InputError, match=r"0 of 3 pairs(.|\n)*axs precompute --stage stage2"):
        source("file")
    for number in range(4):
        file = pairs / "pairs" / "src" / f"t{number}.npz"
        stored = dict(np.load(file))
        np.savez(file, **stored, opt_v2=stored["s2"])
        if number == 1:
            with pytest.raises(InputError, match="2 of 3 pairs"):
                source("auto")
    assert source("auto") == source("file") == "file" and source("degraded") == "degraded"


@pytest.mark.slow
def test_a_published_variant_is_tuned_and_loads_with_its_head(pairs: Path, tmp_path: Path) -> None:
    run = config(
        "stage3", pairs, tmp_path, variant="terramind_v1_tiny", lora=LoraSettings(rank=2), steps=1, check_every=1
    )
    weights = fit(replace(run, warmup=0), {"precision": "bf16-mixed"})
    model = build_stage3_model(variant="terramind_v1_tiny", checkpoint=str(weights))
    assert model.correction_mode == "learned" and not model.corrector.head.untrained
