"""The head's training changes the head alone, resumes where it was stopped, and learns to repair."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from axs_lib.adapters import load_adapter
from axs_lib.bands import OPTICAL_MEAN, OPTICAL_STD
from axs_lib.data.pairs import list_pairs
from axs_lib.errors import InputError
from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.terramind.adapters import OpticalAdapter
from axs_lib.terramind.weights import read_metadata, read_state, sha256_file
from axs_lib.train.examples import make_examples
from axs_lib.train.head import (
    LAYERS,
    HeadConfig,
    HeadKind,
    draw_examples,
    train_head,
    vary,
)
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
        draws={"degraded": 1, "gaps": 1},
        kinds=("degraded", "gaps"),
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

    # A pool that was drawn with other settings is not taken for this run's.
    with pytest.raises(InputError, match="other settings"):
        train_head(dataclasses.replace(other, use_sar=False), progress=False)

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
        draws={"degraded": 1},
        kinds=("degraded",),
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


def crops(side: int = 32) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {name: torch.randn(3, channels, side, side, generator=random) for name, channels in LAYERS.items()}


def test_every_crop_has_a_sar_and_a_brightness_of_its_own() -> None:
    before = crops()
    optical = OpticalAdapter(OPTICAL_MEAN, OPTICAL_STD)
    after = vary(before, optical, torch.Generator().manual_seed(0), guess=False)
    for name in ("trust", "sar_inconsistency"):
        assert torch.equal(after[name], before[name])
    shift = (after["s1"] - before["s1"]).mean((2, 3))
    assert shift.unique().numel() == 6 and 0.01 < float(shift.abs().mean()) < 0.5
    # Estimate, proposal and truth become brighter by one factor: nothing is to be corrected that was not before.
    gains = {
        name: optical.from_z(after[name]) / optical.from_z(before[name])
        for name in ("estimate", "truth", "proposal")
    }
    for gain in gains.values():
        torch.testing.assert_close(gain, gains["truth"][:, :, :1, :1].expand_as(gain), rtol=1e-3, atol=1e-3)
    assert float((gains["truth"] - 1).abs().max()) > 0.01


def test_a_guess_is_brighter_or_darker_than_the_truth() -> None:
    before = crops()
    optical = OpticalAdapter(OPTICAL_MEAN, OPTICAL_STD)
    after = vary(before, optical, torch.Generator().manual_seed(0), guess=True)
    assert torch.equal(after["truth"], before["truth"])
    assert not torch.equal(after["estimate"], before["estimate"])


def test_no_sar_stays_no_sar() -> None:
    before = crops() | {"s1": torch.zeros(3, 2, 32, 32)}
    optical = OpticalAdapter(OPTICAL_MEAN, OPTICAL_STD)
    assert not vary(before, optical, torch.Generator().manual_seed(0), guess=False)["s1"].any()


def test_examples_beside_another_tiles_sar_and_without_any(nano_weights: Path, tmp_path: Path) -> None:
    model = build_stage3_model(variant="nano", checkpoint=str(nano_weights))
    record = next(iter(list_pairs(folder_of_pairs(tmp_path), quality="all")))
    donor = torch.full((2, 64, 64), -3.0)

    def drawn(kind: HeadKind) -> dict[str, torch.Tensor]:
        random = torch.Generator().manual_seed(0)
        example = draw_examples(model, record, kind, 1, random, donors=[donor])[0]
        return dict(zip(LAYERS, example.split(list(LAYERS.values())), strict=True))

    plain, swapped, blind = drawn("degraded"), drawn("swapped"), drawn("blind")
    for other in (swapped, blind):  # one truth, one damage
        assert torch.equal(other["truth"], plain["truth"]) and torch.equal(
            other["estimate"], plain["estimate"]
        )
        assert not torch.equal(other["proposal"], plain["proposal"])
    assert float(swapped["s1"].std((1, 2)).max()) < 1e-5  # the donor is flat
    assert float(swapped["s1"].mean()) > float(plain["s1"].mean())
    assert not blind["s1"].any() and not blind["sar_inconsistency"].any()

    # The control without SAR meets nobody's.
    random = torch.Generator().manual_seed(0)
    control = draw_examples(model, record, "swapped", 1, random, donors=[donor], use_sar=False)[0]
    assert float(control[:2].abs().max()) < 1e-5
