"""The head's training changes the head alone, resumes where it was stopped, and learns to repair."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from axs_lib.errors import InputError
from axs_lib.terramind.weights import read_metadata, read_state
from axs_lib.train.examples import make_examples
from axs_lib.train.head import CHECKPOINT, HeadConfig, train_head
from tests.models import plausible_pair


def folder_of_pairs(folder: Path) -> str:
    for number in range(2):
        s1, s2 = plausible_pair(1, 64, 64, seed=number)
        np.savez(folder / f"tile{number}.npz", s1=s1[0].numpy(), s2=s2[0].round().numpy().astype(np.uint16))
    return str(folder)


def test_only_the_head_is_trained_and_a_stopped_run_goes_on(nano_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    config = HeadConfig(
        data=folder_of_pairs(tmp_path / "pairs"),
        out=str(tmp_path / "a"),
        checkpoint=str(nano_weights),
        qualities=("ok", ""),
        draws={"degraded": 1, "gaps": 1},
        kinds=("degraded", "gaps"),
        steps=4,
        warmup=0,
        crop_sizes=(64,),
        batch_pixels=64 * 64,
        checkpoint_every=2,
    )
    straight = read_state(train_head(config, progress=False))
    before = read_state(nano_weights)
    for name, value in straight.items():
        if not name.startswith("head."):
            assert torch.equal(value, before[name]), name
    assert straight["head.body.out.weight"].any()

    # The same run, cut off after two of its four steps: its checkpoint at step 2 goes on to the same weights.
    other = dataclasses.replace(config, out=str(tmp_path / "b"))
    train_head(dataclasses.replace(other, steps=2), progress=False)
    assert torch.load(tmp_path / "b" / CHECKPOINT, weights_only=True)["step"] == 2
    weights = train_head(other, progress=False)
    assert torch.load(tmp_path / "b" / CHECKPOINT, weights_only=True)["step"] == 4
    assert read_metadata(weights)["head_steps"] == "4"

    # A pool that was drawn with other settings is not taken for this run's.
    with pytest.raises(InputError, match="other settings"):
        train_head(dataclasses.replace(other, use_sar=False), progress=False)

    # Another run may start from that head: without a step it is what it started from.
    further = dataclasses.replace(config, out=str(tmp_path / "c"), start=str(weights), steps=0)
    assert torch.equal(
        read_state(train_head(further, progress=False))["head.body.out.weight"],
        read_state(weights)["head.body.out.weight"],
    )


def test_examples_say_what_is_known() -> None:
    s1, truth = plausible_pair(4, 64, 64)
    random = torch.Generator().manual_seed(0)
    gaps = make_examples("gaps", s1, truth, random)
    clear = (gaps.trust == 1).expand_as(truth)
    assert set(gaps.trust.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(gaps.estimate[clear], truth[clear]) and torch.isfinite(gaps.estimate).all()
    assert (gaps.estimate[~clear] - truth[~clear]).abs().max() > 1.0
    flood = make_examples("flood", s1, truth, random)
    water = (flood.truth != truth).any(1, keepdim=True)
    assert water.any() and not water.all()
    assert (flood.s1 != s1).any() and (flood.trust == 0.5).all()
    assert flood.truth[:, 3:][water].mean() < truth[:, 3:][water].mean()
    degraded = make_examples("degraded", s1, truth, random)
    assert torch.equal(degraded.truth, truth) and torch.equal(degraded.s1, s1)
