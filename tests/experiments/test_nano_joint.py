"""nano's training runs, can be killed and resumed, and leaves weights that Stage 3 loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from axs_lib.data.pairs import list_pairs
from axs_lib.stage3_tm_ground import build_stage3_model
from experiments.nano.crops import Crops
from experiments.nano.joint import NanoConfig, train_nano
from tests.train.conftest import write_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), count=3, side=64)


def test_a_run_resumes_where_it_stopped_and_its_weights_load(pairs: Path, tmp_path: Path) -> None:
    config = NanoConfig(
        data=str(pairs), out=str(tmp_path), steps=2, warmup=1, crop_sizes=(64,), batch_pixels=2 * 64 * 64, check_every=1
    )
    train_nano(config, progress=False)
    first = torch.load(tmp_path / "last.ckpt", weights_only=True)
    weights = train_nano(dataclasses.replace(config, steps=4), progress=False)
    second = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (first["global_step"], second["global_step"]) == (2, 4)
    model = build_stage3_model(variant="nano", checkpoint=str(weights))
    assert model.correction_mode == "learned" and not model.corrector.head.untrained
    key = "model.corrector.head.body.out.weight"
    assert torch.allclose(model.corrector.head.body.out.weight, second["state_dict"][key].half().float())
    assert not torch.equal(second["state_dict"][key], second["current_model_state"][key])


def test_batches_are_functions_of_seed_and_step(pairs: Path) -> None:
    records = list_pairs(pairs, quality="all")
    crops = Crops(records, (32, 64), 4 * 64 * 64, seed=1)
    batches = [crops.batch(step) for step in range(4)]
    again = Crops(records, (32, 64), 4 * 64 * 64, seed=1).batch(3)
    assert torch.equal(again["s1"], batches[3]["s1"]) and torch.equal(again["truth"], batches[3]["truth"])
    other = Crops(records, (32, 64), 4 * 64 * 64, seed=2).batch(0)
    assert not torch.equal(other["s1"][..., :8, :8], batches[0]["s1"][..., :8, :8])
    for batch in batches:
        side = batch["s1"].shape[-1]
        assert side in (32, 64) and len(batch["s1"]) == 4 * 64 * 64 // side**2
