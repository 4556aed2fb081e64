"""The head's training changes the head alone, resumes where it was stopped, and learns to repair."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from axs_lib.adapters import load_adapter
from axs_lib.data.pairs import PairRecord
from axs_lib.errors import InputError
from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.terramind.weights import read_metadata, read_state, sha256_file
from axs_lib.train.examples import make_examples
from axs_lib.train.head import HeadConfig, own_proposals, train_head, with_own_proposals
from axs_lib.train.head_examples import ExampleSampler, Shares, TrainingTile, shifted
from axs_lib.train.trainer import LAST
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
        start="fresh",
        qualities=("ok", ""),
        steps=4,
        warmup=0,
        crop_sizes=(64,),
        batch_pixels=64 * 64,
        check_every=2,
    )
    folder = train_head(config, progress=False)
    straight = read_state(folder / CORRECTOR_FILE)
    assert straight["head.body.out.weight"].any()
    trained = torch.load(tmp_path / "a" / LAST, weights_only=True)["state_dict"]
    assert "module.corrector.head.body.out.weight" in trained and not [
        n for n in trained if n.endswith("qkv.weight")
    ]

    # The same run, cut off after two of its four steps, goes on to the same weights.
    other = dataclasses.replace(config, out=str(tmp_path / "b"))
    train_head(dataclasses.replace(other, steps=2), progress=False)
    assert torch.load(tmp_path / "b" / LAST, weights_only=True)["global_step"] == 2
    with pytest.warns(UserWarning, match="steps 2 -> 4"):
        weights = train_head(other, progress=False)
    assert torch.load(tmp_path / "b" / LAST, weights_only=True)["global_step"] == 4
    assert read_metadata(weights / CORRECTOR_FILE)["head_steps"] == "4"

    # Another run may start from that head.
    further = dataclasses.replace(
        config, out=str(tmp_path / "c"), start=str(weights / CORRECTOR_FILE), steps=1
    )
    header = read_metadata(train_head(further, progress=False) / CORRECTOR_FILE)
    assert header["head_steps"] == "5" and header["head_start"] == sha256_file(weights / CORRECTOR_FILE)

    # The folder is an adapter: it brings the head into a model.
    model = build_stage3_model(variant="nano", checkpoint=str(nano_weights))
    assert load_adapter(model, folder) == 0
    assert torch.equal(model.corrector.head.body.out.weight, straight["head.body.out.weight"].float())
    digest = sha256_file(folder / CORRECTOR_FILE)
    assert any(digest in value for value in model.provenance.values())


def test_a_run_starts_from_the_head_beside_the_weights(nano_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    config = HeadConfig(
        data=folder_of_pairs(tmp_path / "pairs"),
        out=str(tmp_path / "a"),
        checkpoint=str(nano_weights),
        qualities=("ok", ""),
        steps=1,
        learning_rate=0.0,
        crop_sizes=(64,),
        batch_pixels=64 * 64,
    )
    head = read_state(train_head(config, progress=False) / CORRECTOR_FILE)
    before = read_state(nano_weights.with_name(CORRECTOR_FILE))
    assert all(torch.equal(head[name], value) for name, value in before.items())


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
    light = make_examples("light", s1, truth, random)
    assert torch.equal(light.truth, truth) and (light.trust == 0.5).all()
    error = ((light.estimate - truth).square().mean(), (degraded.estimate - truth).square().mean())
    assert 0 < error[0] < error[1]


def tile(number: int, side: int = 64, **known: str) -> TrainingTile:
    s1, truth = plausible_pair(1, side, side, seed=number)
    record = PairRecord(
        Path(f"{number}.npz"), str(number), f"g{number}", "ok", "src", "L2A", side, side, **known
    )
    stage2 = (truth + 50).round().to(torch.int16)
    return TrainingTile(record, s1[0], truth[0], stage2, torch.zeros(1, 2), 1.0, 1.0, False)


def sampler(shares: Shares) -> ExampleSampler:
    return ExampleSampler([tile(number) for number in range(3)], shares, (64,), 8 * 64 * 64)


def test_a_batch_is_a_function_of_its_generator() -> None:
    made = [sampler(Shares()).batch(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert made[0].names == made[1].names and torch.equal(made[0].estimate, made[1].estimate)
    assert torch.equal(made[0].proposal, made[1].proposal)
    assert not torch.equal(made[0].truth, made[2].truth)
    for batch in made:
        assert all(bool(image.isfinite().all()) for image in (batch.s1, batch.estimate, batch.proposal))


@pytest.mark.parametrize("mode", range(4))
def test_modes_have_their_trust(mode: int) -> None:
    modes = tuple(float(mode == each) for each in range(4))
    batch = sampler(Shares(modes=modes)).batch(torch.Generator().manual_seed(0))
    values = set(batch.trust.unique().tolist())
    assert values <= ({0.0, 1.0} if mode == 1 else {0.25} if mode == 2 else {0.5})


def test_proposals_of_every_quality() -> None:
    def batch(which: int) -> object:
        proposals = tuple(float(which == each) for each in range(4))
        only_truth = {name: float(name == "truth") for name in sampler(Shares()).kinds}
        shares = Shares(modes=(1.0, 0.0, 0.0, 0.0), kinds=only_truth, proposals=proposals)
        return sampler(shares).batch(torch.Generator().manual_seed(0))

    own, informed, foreign, none = (batch(which) for which in range(4))
    assert own.own.all() and not informed.own.any()
    assert torch.equal(none.proposal, none.estimate)
    near, far = ((each.proposal - each.truth).square().mean() for each in (informed, foreign))
    assert 0 < near < far


def test_own_proposals_are_drawn_in_the_step(nano_weights: Path) -> None:
    generator = build_stage3_model(variant="nano", checkpoint=str(nano_weights)).terramind_generator
    batch = sampler(Shares(proposals=(0.5, 0.5, 0.0, 0.0))).batch(torch.Generator().manual_seed(0))
    seeds = torch.arange(len(batch.own))
    layers = {key: value for key, value in vars(batch).items() if key != "names"} | {"seeds": seeds}
    drawn = with_own_proposals(generator, layers)
    assert torch.equal(drawn[~batch.own], batch.proposal[~batch.own])
    seeing = batch.own & ~batch.blind
    expected = own_proposals(generator, batch.s1[seeing], batch.estimate[seeing], seeds[seeing])
    torch.testing.assert_close(drawn[seeing], expected)


def test_likely_shifts_are_known_from_the_note() -> None:
    assert shifted("shift -1,4 c=0.30") and shifted("x | shift 3,5 c=0.21")
    assert not shifted("shift 1,-2 c=0.77") and not shifted("shift -6,-5 c=0.06") and not shifted("")


def test_tiles_smaller_than_a_crop_are_named() -> None:
    with pytest.raises(InputError, match="64 px"):
        ExampleSampler([tile(0)], Shares(), (96,), 96 * 96)
