"""``axs train`` and ``axs precompute``: one command, configurations checked to the field."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from axs_lib.adapters import load_adapter
from axs_lib.cli.train import PACKAGED, parse, read_config
from axs_lib.errors import InputError
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.train import precompute, tasks
from axs_lib.train.config import CONFIGS
from tests.models import plausible_pair
from tests.train.conftest import write_pairs


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What training was asked for, in place of training."""
    seen: list[dict[str, Any]] = []

    def stub(config: Any, **options: Any) -> Path:
        seen.append({"config": config} | options)
        return Path("weights")

    monkeypatch.setattr(tasks, "train_stage", stub)
    return seen


@pytest.mark.parametrize("name", sorted(path.stem for path in PACKAGED.glob("*.yaml")))
def test_every_packaged_configuration_is_found_by_name(name: str) -> None:
    run, _, _ = parse(CONFIGS[name.split("_")[0]], ["-c", name, "--data", "DIR"], "axs train")
    assert run.data.folder == "DIR" and run.out == f"runs/{name}"
    assert (run.lora is not None) == ("lora" in name)
    assert run.trainer.precision == ("bf16-mixed" if "lora" in name else "32-true")


def test_a_name_that_there_is_not_gets_the_list_of_those_that_there_are(axs: Any, tmp_path: Path) -> None:
    result = axs("train", "stage3", "-c", "stage3_lora_bse", "--data", "DIR", code=2)
    assert "stage1_nano" in result.stderr and "stage3_lora_base" in result.stderr
    # It has no held-out tiles to be patient with.
    assert "patience" in axs("train", "head", "--data", "DIR", "--patience", 3, code=2).stderr
    with pytest.raises(InputError, match="neither a file nor"):
        read_config(str(tmp_path))


def test_options_go_over_the_file_and_lightning_gets_its_flags(axs: Any, trained: list[dict[str, Any]]) -> None:
    result = axs(
        "train", "stage3", "--config=stage3_nano", "--data", "DIR", "--steps", 7, "--data.crop_sizes", "[64]",
        "--loss.sar", 0.5, "--trainer.devices", 2, "--trainer.strategy", "ddp", "--restart", "--quiet",
    )  # fmt: skip
    assert "weights" in result.stdout, result.output
    (run,) = trained
    assert run["config"].steps == 7 and run["config"].data.crop_sizes == (64,)
    assert run["config"].loss == {"sar": 0.5} and run["config"].variant == "nano"
    assert run["config"].trainer.devices == 2 and run["config"].trainer.strategy == "ddp"
    assert run["resume"] is False and run["progress"] is False


def test_what_axs_train_writes_with_lora_loads(axs: Any, tmp_path: Path) -> None:
    """From ``axs train stage3 --lora.rank`` to the adapter in a model: LoRA and the head that was trained beside it."""
    axs(
        "train", "stage3", "--data", write_pairs(tmp_path / "data", count=2), "--out", tmp_path / "run", "--quiet",
        "--lora.rank", 2, "--steps", 2, "--warmup", 0, "--learning_rate", 0.01, "--data.crop_sizes", "[64]",
        "--data.batch_size", 1, "--data.validation_share", 0, "--trainer.accelerator", "cpu",
    )  # fmt: skip
    assert not logging.getLogger("lightning.pytorch").isEnabledFor(logging.INFO)  # its banners
    model, generator_alone = (build_stage3_model(variant="nano") for _ in range(2))
    s1, opt_v2 = plausible_pair(1)
    before = model.ground(s1, opt_v2, 1).image
    adapter = tmp_path / "run" / "weights" / "adapter"
    assert load_adapter(model, adapter) == load_adapter(generator_alone.terramind_generator, adapter) > 0
    images = [each.ground(s1, opt_v2, 1).image for each in (model, generator_alone)]
    assert not torch.equal(images[0], before) and not torch.equal(images[0], images[1])
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["r"] == 2 and settings["base_model_name_or_path"] == "nano"

    # Through the commands' --adapter, alone and in a batch, and not without it.
    (tmp_path / "tiles").mkdir()
    np.savez(tile := tmp_path / "tiles" / "t.npz", s1_vv=s1[0, 0], s1_vh=s1[0, 1], opt_v2=opt_v2[0])
    common = ("--variant", "nano", "--timesteps", 1, "--quiet")
    for name, extra in (("with", ("--adapter", adapter)), ("without", ())):
        axs("ground", "--s1", tile, "--out", tmp_path / f"{name}.npz", *common, *extra)
        image = np.load(tmp_path / f"{name}.npz")["opt_v3"]
        assert np.abs(image - (images[0] if extra else before).numpy()).max() <= 1.0
    out = tmp_path / "batch"
    axs("batch", tmp_path / "tiles", "--out", out, "--workers", 1, *common, "--adapter", adapter)
    assert np.abs(np.load(out / "t.npz")["opt_v3"].reshape(4, 64, 64) - images[0][0].numpy()).max() <= 1.0
    result = axs("ground", "--s1", tile, "--out", tmp_path / "no.npz", *common, "--adapter", tmp_path / "tiles", code=2)
    assert "holds no adapter" in result.stderr


IMPORTS = [
    "class_path: evil.Thing",
    "data: {class_path: evil.Thing}",
    "data: evil.Thing",
    "data: {class_path: evil.Thing, init_args: {folder: x}}",
    "data.class_path: evil.Thing",
    "lora: evil.Thing",
    "trainer: evil.Thing",
    "lora: {class_path: evil.Thing}",
    "trainer: {class_path: evil.Thing}",
    "trainer: {strategy: {class_path: evil.Thing}}",
    "trainer: {callbacks: [{class_path: evil.Thing}]}",
    "loss: {charbonnier: {class_path: evil.Thing}}",
    "variant: {class_path: evil.Thing}",
    "steps: !!python/object/apply:evil.call []",
    "steps: !!python/name:evil.call",
]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "^error: ") for text in IMPORTS),
        ("learning_rat: 1", "learning_rat'? is not accepted. Did you mean 'learning_rate'"),
        ("data: {batchsize: 4}", "batchsize.*Did you mean 'data.batch_size'"),
        ("lora: {rnk: 4}", "rnk"),
        ("trainer: {precison: 16}", "precison"),
        ("steps: many", "steps.*many"),
        ("data: {format: zip}", "format.*zip"),
        ("variant: [", "expected|parse|while"),
        ("steps: &a [*a]", "alias"),
        ("steps: " + "[" * 5000, "no readable YAML"),
        ("steps: \0", "no readable YAML"),
        ("learning_rate: 1e-5\nsteps: 2020-01-01", "no readable YAML|steps"),
    ],
)
def test_no_configuration_can_import(
    axs: Any, tmp_path: Path, trained: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nThing = call = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text(f"out: run\n{text}\n")
    result = axs("train", "stage3", "-c", file, "--data", "DIR", code=2)
    assert re.search(message, result.stderr) and "Traceback" not in result.output, result.stderr
    assert result.stderr.startswith("error: ") and not trained
    assert "evil" not in sys.modules and not (tmp_path / "ran").exists()


def test_precompute_passes_on_what_it_is_told(axs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(precompute, "precompute", lambda config, progress: seen.append(config) or Path("pairs"))
    axs(
        "precompute", "--stage", "stage1", "--data", "DIR", "--out", tmp_path, "--folds", 2, "--quiet",
        "--checkpoint", "a.safetensors", "b.safetensors", "--variant", "nano",
    )  # fmt: skip
    assert seen[0].checkpoints == ("a.safetensors", "b.safetensors") and seen[0].train is None
    result = axs("precompute", "--stage", "stage2", "--data", "DIR", "--out", tmp_path, "-c", "stage2_nano", "-q")
    assert result.output == ""
    assert seen[1].train.variant == "nano" and seen[1].data.folder == "DIR" and seen[1].data.batch_size == 8


def test_a_folder_without_data_is_an_error_of_one_line(axs: Any, tmp_path: Path) -> None:
    result = axs("train", "stage2", "-c", "stage2_nano", "--data", tmp_path, "--out", tmp_path / "run", code=2)
    assert "no *.npz file" in result.stderr and "Traceback" not in result.output
    missing = "error: --out is missing; give a run folder: --out runs/stage2\n"
    assert axs("train", "stage2", "--data", tmp_path, code=2).stderr == missing
