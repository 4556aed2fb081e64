"""nano's training runs, can be killed and resumed, and leaves weights that Stage 3 loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.train.crops import CropBatches
from axs_lib.train.nano import NanoConfig, train_nano
from tests.models import plausible_pair


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(3):
        s1, s2 = plausible_pair(1, 64, 64, seed=number)
        np.savez(folder / f"tile{number}.npz", s1=s1[0].numpy(), s2=s2[0].round().numpy().astype(np.uint16))
    return folder


def test_a_run_resumes_where_it_stopped_and_its_weights_load(pairs: Path, tmp_path: Path) -> None:
    config = NanoConfig(
        data=str(pairs),
        out=str(tmp_path),
        qualities=("ok", ""),
        steps=2,
        warmup=1,
        crop_sizes=(64,),
        batch_pixels=2 * 64 * 64,
        checkpoint_every=1,
    )
    train_nano(config, progress=False)
    first = torch.load(tmp_path / "last.ckpt", weights_only=True)
    weights = train_nano(dataclasses.replace(config, steps=4), progress=False)
    second = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (first["global_step"], second["global_step"]) == (2, 4)
    assert not list(
        tmp_path.glob("last-*.ckpt")
    )  # a second file would leave the next resume with the older one
    model = build_stage3_model(variant="nano", checkpoint=str(weights))
    assert model.correction_mode == "learned" and not model.head.untrained
    key = "model.head.body.out.weight"
    averaged = second["state_dict"][key.replace("model.", "average.module.model.", 1)]
    assert torch.allclose(model.head.body.out.weight, averaged.half().float())
    assert not torch.equal(second["state_dict"][key], first["state_dict"][key])


def test_batches_are_functions_of_seed_and_step(pairs: Path) -> None:
    from axs_lib.data.pairs import list_pairs

    records = list_pairs(pairs, quality="all")
    options = {"crop_sizes": (32, 64), "batch_pixels": 4 * 64 * 64}
    straight = iter(CropBatches(records, seed=1, **options))  # type: ignore[arg-type]
    batches = [next(straight) for _ in range(4)]
    resumed = next(iter(CropBatches(records, start=3, seed=1, **options)))  # type: ignore[arg-type]
    assert torch.equal(resumed["s1"], batches[3]["s1"]) and torch.equal(resumed["truth"], batches[3]["truth"])
    assert not torch.equal(
        CropBatches(records, seed=2, **options).batch(0)["s1"][..., :8, :8],  # type: ignore[arg-type]
        batches[0]["s1"][..., :8, :8],
    )
    for batch in batches:
        side = batch["s1"].shape[-1]
        assert side in (32, 64) and len(batch["s1"]) == 4 * 64 * 64 // side**2
