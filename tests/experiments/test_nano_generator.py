"""Fine-tuning the generator changes the generator alone, goes on where it was stopped, and brings its image nearer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from axs_lib.terramind.build import load_generator
from axs_lib.terramind.weights import read_metadata, read_state
from axs_lib.train.trainer import LAST
from experiments.nano.generator import GeneratorConfig, train_generator
from tests.models import plausible_pair
from tests.train.conftest import write_pairs


def config(folder: Path, weights: Path, **options: Any) -> GeneratorConfig:
    data = str(write_pairs(folder / "pairs", 3, 64))
    settings = {"steps": 4, "warmup": 0, "crop_sizes": (64,), "batch_pixels": 64 * 64, "check_every": 2} | options
    return GeneratorConfig(data=data, out=str(folder / "run"), checkpoint=str(weights), **settings)


def test_only_the_generator_is_trained_and_a_stopped_run_goes_on(nano_weights: Path, tmp_path: Path) -> None:
    run = config(tmp_path, nano_weights)
    straight, before = read_state(train_generator(run, progress=False)), read_state(nano_weights)
    for part in ("core", "detokenizer"):
        assert any(not torch.equal(straight[name], before[name]) for name in before if name.startswith(part))
    for name, value in before.items():
        if name.startswith("tokenizer."):
            assert torch.equal(straight[name], value), name

    # The same run, cut off after two of its four steps, goes on from there.
    other = dataclasses.replace(run, out=str(tmp_path / "other"))
    train_generator(dataclasses.replace(other, steps=2), progress=False)
    assert torch.load(tmp_path / "other" / LAST, weights_only=True)["global_step"] == 2
    weights = train_generator(other, progress=False)
    assert torch.load(tmp_path / "other" / LAST, weights_only=True)["global_step"] == 4
    assert read_metadata(weights)["generator_steps"] == "4"


def test_the_image_from_sar_alone_comes_nearer(nano_weights: Path, tmp_path: Path) -> None:
    run = config(tmp_path, nano_weights, steps=24, ema=0.5, learning_rate=2e-3)
    weights = train_generator(run, progress=False)

    def error(path: Path) -> float:
        generator = load_generator("nano", checkpoint=str(path))
        s1, truth = plausible_pair(1, 64, 64, seed=0)  # one of the tiles of the folder
        noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = generator.logits({"s1": generator.sar.to_z(s1)})
            image = generator.denoise_once(noise, torch.tensor([999]), generator.codes(logits, (64, 64)))
        return float((image - generator.optical.to_z(truth)).square().mean())

    assert error(weights) < 0.7 * error(nano_weights)
