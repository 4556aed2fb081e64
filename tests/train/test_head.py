"""The head's training changes the head alone, resumes where it was stopped, and learns to repair."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from axs_lib.adapters import load_adapter
from axs_lib.blur import gaussian_blur
from axs_lib.errors import InputError, WeightsError
from axs_lib.grounding.corrector import Correction, GroundingCorrector, GroundingTiles
from axs_lib.grounding.head import GroundingHead
from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.grounding.sar_inconsistency import ndwi
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.terramind.weights import groups_in, read_metadata, read_state, sha256_file
from axs_lib.train.head import ExampleSampler, HeadConfig, load_tiles, loss_of_batch, own_proposals, train_head
from axs_lib.train.trainer import LAST, TrainingWarning
from tests.train.conftest import write_pairs


def config_of(data: Path, out: Path, nano_weights: Path, **options: object) -> HeadConfig:
    settings = {"checkpoint": str(nano_weights), "start": "fresh", "steps": 4, "warmup": 0, "check_every": 2}
    settings |= {"crop_sizes": (64,), "batch_pixels": 2 * 64 * 64}
    return HeadConfig(data=str(write_pairs(data, 3, 64)), out=str(out), **(settings | options))  # type: ignore[arg-type]


def test_only_the_head_trains_and_resumes(nano_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trains: set[bool] = set()  # in eval() mode the mask would be sharpened, and flat
    monkeypatch.setattr(
        "axs_lib.train.head.loss_of_batch", lambda c, *a, **o: trains.add(c.training) or loss_of_batch(c, *a, **o)
    )
    config = config_of(tmp_path / "pairs", tmp_path / "a", nano_weights, validation_groups=("g2",))
    with pytest.raises(InputError, match="has no group tile2; its groups are g0"):
        train_head(dataclasses.replace(config, test_groups=("tile2",)), progress=False)
    folder = train_head(config, progress=False)
    straight = read_state(folder / CORRECTOR_FILE)
    assert straight["head.body.out.weight"].any() and straight["head.levelled"] == 1 and trains == {True}
    trained = torch.load(tmp_path / "a" / LAST, weights_only=True)["state_dict"]
    assert "module.corrector.head.body.out.weight" in trained and not [n for n in trained if n.endswith("qkv.weight")]

    # The same run, cut off after two of its four steps, goes on to its end.
    other = dataclasses.replace(config, out=str(tmp_path / "b"))
    train_head(dataclasses.replace(other, steps=2), progress=False)
    assert torch.load(tmp_path / "b" / LAST, weights_only=True)["global_step"] == 2
    with pytest.warns(UserWarning, match="steps 2 -> 4"):
        weights = train_head(other, progress=False)
    assert torch.load(tmp_path / "b" / LAST, weights_only=True)["global_step"] == 4
    assert read_metadata(weights / CORRECTOR_FILE)["head_steps"] == "4"

    # Another run may start from that head.
    further = dataclasses.replace(config, out=str(tmp_path / "c"), start=str(weights / CORRECTOR_FILE), steps=1)
    header = read_metadata(train_head(further, progress=False) / CORRECTOR_FILE)
    for use in ("train", "validation"):
        assert groups_in(header, [use]) == groups_in(read_metadata(weights / CORRECTOR_FILE), [use]) != set()
    assert header["head_steps"] == "5" and header["head_start"] == sha256_file(weights / CORRECTOR_FILE)

    # The folder is an adapter: it brings the head into a model.
    model = build_stage3_model(variant="nano", checkpoint=str(nano_weights))
    assert load_adapter(model, folder) == 0
    assert torch.equal(model.corrector.head.body.out.weight, straight["head.body.out.weight"].float())
    digest = sha256_file(folder / CORRECTOR_FILE)
    assert any(digest in value for value in model.provenance.values())


def test_steps_with_nan_are_left_out(nano_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter((1.0, math.nan, 1.0, 1.0))
    monkeypatch.setattr("axs_lib.train.head.loss_of_batch", lambda c, *a, **o: next(steps) * loss_of_batch(c, *a, **o))
    with pytest.warns(TrainingWarning, match="step 1 is left out: gradients not finite"):
        folder = train_head(config_of(tmp_path / "pairs", tmp_path / "a", nano_weights), progress=False)
    assert all(value.isfinite().all() for value in read_state(folder / CORRECTOR_FILE).values())


def test_a_run_starts_from_the_head_beside_the_weights(nano_weights: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "pairs", tmp_path / "a", nano_weights, start=None, steps=1, learning_rate=0.0)
    head = read_state(train_head(config, progress=False) / CORRECTOR_FILE)
    before = read_state(nano_weights.with_name(CORRECTOR_FILE))
    assert all(torch.equal(head[name], value) for name, value in before.items())


@pytest.fixture
def sampler(nano_weights: Path, tmp_path: Path) -> ExampleSampler:
    config = config_of(tmp_path / "pairs", tmp_path / "out", nano_weights, batch_pixels=32 * 64 * 64)
    model = build_stage3_model(variant="nano", checkpoint=str(nano_weights))
    return ExampleSampler(config, load_tiles(config, model.terramind_generator, tmp_path / "stage2.pt"))


def test_a_batch_is_a_function_of_its_step_and_holds_what_it_says(sampler: ExampleSampler) -> None:
    batch, again = (sampler.batch(torch.Generator().manual_seed(7)) for _ in range(2))
    for name, value in vars(batch).items():
        assert torch.equal(value, vars(again)[name]), name
    other = sampler.batch(torch.Generator().manual_seed(8))
    assert not torch.equal(batch.estimate, other.estimate)
    assert all(torch.isfinite(image).all() for image in (batch.s1, batch.estimate, batch.proposal, batch.truth))
    assert batch.estimate.min() >= 1 and batch.truth.min() >= 1
    assert {0.0, 0.25, 0.5, 1.0} >= set(batch.trust.unique().tolist())
    assert batch.own.any() and not batch.own.all()
    clear = (batch.trust == 1).expand_as(batch.truth)
    assert clear.any() and torch.equal(batch.estimate[clear], batch.truth[clear])


def test_a_missed_flood_is_water_or_dry_ground_that_is_as_dark(sampler: ExampleSampler) -> None:
    sampler.config = dataclasses.replace(sampler.config, modes=(0, 0, 0, 1))
    batch = sampler.batch(torch.Generator().manual_seed(7))
    dark = (gaussian_blur(batch.s1, 2.0).amax(1, keepdim=True) < -18).float().mean((1, 2, 3)) > 0.02
    water = (ndwi(batch.truth) > 0).float().mean((1, 2, 3)) > 0.02
    assert (dark & water).sum() >= 4 and (dark & ~water).sum() >= 4


def test_estimates_from_sar_are_stored_for_the_same_run_alone(
    nano_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "pairs", tmp_path / "out", nano_weights)
    generator = build_stage3_model(variant="nano", checkpoint=str(nano_weights)).terramind_generator
    stored = tmp_path / "stage2.pt"
    first = load_tiles(config, generator, stored)
    other = load_tiles(dataclasses.replace(config, seed=1), generator, stored)
    assert not torch.equal(first[0].offsets, other[0].offsets)
    monkeypatch.setattr("axs_lib.train.head.Stage1Model.generate", None)  # nothing is drawn again
    config, own = dataclasses.replace(config, seed=1), generator.weights
    again = load_tiles(config, generator, stored)
    assert torch.equal(again[0].stage2, other[0].stage2) and own is not None
    pair = tmp_path / "pairs" / "pairs" / "src" / "t0.npz"
    arrays = dict(np.load(pair))
    for hashes, darker in (({"nano.safetensors": "of others"}, 0), (own.sha256, 1)):  # other weights, other content
        generator.weights = dataclasses.replace(own, sha256=hashes)
        np.savez(pair, **arrays | {"s1": arrays["s1"] - darker})
        with pytest.raises(TypeError):
            load_tiles(config, generator, stored)
    stored.write_bytes(stored.read_bytes()[:-50])
    with pytest.raises(WeightsError, match=r"stage2\.pt.*delete it"):
        load_tiles(config, generator, stored)


def test_the_generator_draws_the_own_proposals_alone(sampler: ExampleSampler, nano_weights: Path) -> None:
    generator = build_stage3_model(variant="nano", checkpoint=str(nano_weights)).terramind_generator
    batch = sampler.batch(torch.Generator().manual_seed(7))
    changed = (own_proposals(batch, generator) != batch.proposal).flatten(1).any(1)
    assert torch.equal(changed, batch.own)


def test_harm_costs_more_than_the_same_gain_brings(sampler: ExampleSampler) -> None:
    batch = sampler.batch(torch.Generator().manual_seed(7))
    corrector = GroundingCorrector(GroundingHead())

    def loss(towards: float, seen: float = 0.01) -> float:
        change = towards * (batch.truth - batch.estimate)

        class Fixed(GroundingCorrector):
            def forward(self, tiles: GroundingTiles, proposal: torch.Tensor, **_: object) -> Correction:
                one = torch.ones_like(batch.truth)
                return Correction(change, change, one[:, :1], one[:, :1], 100 * one, 0 * one, seen * one[:, :1])

        return float(loss_of_batch(Fixed(corrector.head), batch, relative=0.1))

    nothing = loss(0.0)
    assert loss(0.2) < nothing < loss(-0.2) and loss(-0.2) - nothing > nothing - loss(0.2)
    assert loss(0.0, seen=0.3) > nothing, "water that there is none of"
    batch.truth[:] = torch.tensor([400.0, 600.0, 400.0, 150.0])[:, None, None]
    assert loss(0.0, seen=0.3) < loss(0.0)
