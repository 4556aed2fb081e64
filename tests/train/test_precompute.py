"""Out-of-fold outputs: never by a model that has seen the group, resumable, read by the next stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from axs_lib.data.pairs import load_pair
from axs_lib.errors import InputError
from axs_lib.models import build_terramind_generator
from axs_lib.stage1_tm_s2o import tm_sar2opt
from axs_lib.terramind.weights import read_metadata, read_state, write_state
from axs_lib.train.config import Stage1Config, Stage2Config
from axs_lib.train.precompute import PrecomputeConfig, deal_folds, precompute
from axs_lib.train.readers import BadDataWarning, DataConfig, list_samples
from tests.train.conftest import write_pairs


def with_header(nano_weights: Path, path: Path, train_groups: list[str]) -> str:
    header = {"variant": "nano", "train_groups": json.dumps(train_groups), "validation_groups": "[]"}
    write_state(path, read_state(nano_weights), header)
    return str(path)


def settings(data: Path, out: Path, **options: Any) -> PrecomputeConfig:
    return PrecomputeConfig("stage1", DataConfig(str(data)), str(out), folds=2, device="cpu", **options)


def fold_groups(config: PrecomputeConfig) -> list[set[str]]:
    return [{s.group for s in fold} for fold in deal_folds(list_samples(config.data), config)]


@pytest.fixture
def fold_weights(pairs: Path, tmp_path: Path, nano_weights: Path) -> tuple[str, ...]:
    """One checkpoint a fold, each trained (it says) on the other fold's groups."""
    first, second = fold_groups(settings(pairs, tmp_path / "out"))
    return tuple(
        with_header(nano_weights, tmp_path / name / "nano.safetensors", sorted(groups))
        for name, groups in (("a", second), ("b", first))
    )


def test_outputs_are_out_of_fold_for_the_next_stage(pairs: Path, tmp_path: Path, fold_weights: tuple[str, ...]) -> None:
    (pairs / "pairs/src/t3.npz").rename(pairs / "pairs/src/t\udcff.npz")  # no UTF-8
    (pairs / "index.csv").write_bytes((pairs / "index.csv").read_bytes().replace(b"t3", b"t\xff"))
    config = settings(pairs, tmp_path / "out", checkpoints=fold_weights)
    out = precompute(config, progress=False)
    samples = list_samples(DataConfig(str(out)))
    found = {s.id: (s.group, s.estimates) for s in samples}
    assert found == {f"t{name}": (f"g{n}", ("opt_v1",)) for n, name in enumerate("012\udcff")}
    source, made = load_pair(pairs / "pairs/src/t2.npz"), samples[2].read()
    np.testing.assert_array_equal(made.s1, source.s1)
    np.testing.assert_array_equal(made.s2, source.s2)
    assert made.metadata == {"date": "2018-03-15", "lat": 48.2, "lon": 12.5}

    manifest = json.loads((out / "manifest.json").read_text())
    folds = [set(fold["groups"]) for fold in manifest["folds"]]
    assert folds == fold_groups(config) and set().union(*folds) == {"g0", "g1", "g2", "g3"}
    number = next(n for n, groups in enumerate(folds) if "g2" in groups)
    model = build_terramind_generator(timesteps=1, variant="nano", checkpoint=fold_weights[number])
    expected = tm_sar2opt(model, torch.from_numpy(source.s1)).numpy()
    assert np.abs(made.estimates["opt_v1"] - expected).max() <= 1.0
    assert "t2" in manifest["folds"][number]["files"] and manifest["folds"][number]["weights"]["sha256"]


def test_what_is_done_is_not_done_again(pairs: Path, tmp_path: Path, fold_weights: tuple[str, ...]) -> None:
    config = settings(pairs, tmp_path / "out", checkpoints=fold_weights)
    out = precompute(config, progress=False)
    files = sorted((out / "pairs" / "src").iterdir())
    files[1].unlink()
    files[3].write_bytes(files[3].read_bytes()[:200])
    kept = [files[n].stat().st_mtime_ns for n in (0, 2)]
    precompute(config, progress=False)
    assert [files[n].stat().st_mtime_ns for n in (0, 2)] == kept
    assert all(load_pair(file).opt_v1 is not None for file in files)
    precompute(replace(config, timesteps=2), progress=False)
    assert all(file.stat().st_mtime_ns not in kept for file in files)


def test_a_model_that_has_seen_the_groups_is_refused(
    pairs: Path, tmp_path: Path, fold_weights: tuple[str, ...], nano_weights: Path
) -> None:
    swapped = settings(pairs, tmp_path / "out", checkpoints=fold_weights[::-1])
    with pytest.raises(InputError, match=r"was trained on 2 of the 2 groups of fold 0(.|\n)*test_groups"):
        precompute(swapped, progress=False)
    with pytest.raises(InputError, match="1 checkpoints are given for 2 folds"):
        precompute(replace(swapped, checkpoints=fold_weights[:1]), progress=False)
    unknown = replace(swapped, checkpoints=(str(nano_weights),) * 2, variant="nano")
    with pytest.warns(BadDataWarning, match="does not say what it was trained on"):
        precompute(unknown, progress=False)
    for data in (pairs, pairs / "pairs"):
        with pytest.raises(InputError, match=r"would replace those of .*, the input"):
            precompute(replace(swapped, out=str(pairs), data=DataConfig(str(data))), progress=False)


def test_models_are_trained_on_the_other_folds_for_both_stages(pairs: Path, tmp_path: Path, nano_weights: Path) -> None:
    """Both stages from nothing but data and configuration; the second run trains nothing anew."""
    data = DataConfig(str(pairs), crop_sizes=(64,), batch_size=1, test_groups=("g3",), validation_share=0.0)
    short = {"steps": 1, "warmup": 0, "check_every": 1, "out": "unused"}
    first = Stage1Config(data=data, checkpoint=str(nano_weights), **short)  # type: ignore[arg-type]
    one = replace(settings(pairs, tmp_path / "v1", train=first), data=data)
    v1 = precompute(one, progress=False)
    for number, groups in enumerate(fold_groups(one)):
        header = read_metadata(v1 / "models" / f"fold{number}" / "weights" / "nano.safetensors")
        assert not set(json.loads(header["train_groups"])) & (groups | {"g3"})
    stamp = (v1 / "models/fold0/weights/nano.safetensors").stat().st_mtime_ns
    precompute(one, progress=False)
    assert (v1 / "models/fold0/weights/nano.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="trained with other settings"):
        precompute(replace(one, train=replace(first, steps=2)), progress=False)

    data = replace(data, folder=str(v1))
    second = Stage2Config(data=data, pretrained=False, estimate="file", **short)  # type: ignore[arg-type]
    two = replace(one, stage="stage2", data=data, train=second, out=str(tmp_path / "v2"))
    v2 = precompute(two, progress=False)
    (sample, *_) = list_samples(DataConfig(str(v2)))
    assert sample.estimates == ("opt_v1", "opt_v2")
    assert np.isfinite(sample.read().estimates["opt_v2"]).all()
    with pytest.raises(InputError, match=r"4 of 4 pairs(.|\n)*have no opt_v1"):
        precompute(replace(two, data=replace(data, folder=str(pairs))), progress=False)


def test_large_images_are_cut_and_bad_files_left_out(tmp_path: Path, nano_weights: Path) -> None:
    data = write_pairs(tmp_path / "data", count=3, side=100)
    twin = dict(np.load(data / "pairs/src/t2.npz"))  # a pair of the same id, a tile of which holds no data
    twin["s1"][:, :50, :50] = np.nan
    (data / "pairs/twin").mkdir()
    np.savez(data / "pairs/twin/t2.npz", **twin)
    (data / "index.csv").write_text((data / "index.csv").read_text() + "twin,t2,g2,ok,100,100,,,\n")
    (data / "pairs/src/t1.npz").write_bytes(b"damaged")
    config = settings(data, tmp_path / "out", checkpoints=(str(nano_weights),) * 2, variant="nano", tile=64)
    with pytest.raises(InputError, match=r"t1\.npz"):
        precompute(config, progress=False)
    with pytest.warns(BadDataWarning, match=r"t1\.npz|what it was trained on"):
        out = precompute(replace(config, data=replace(config.data, on_bad="skip")), progress=False)
    samples = list_samples(DataConfig(str(out)))
    assert {(s.height, s.width) for s in samples} == {(50, 50)}
    assert [s.id for s in samples[:4]] == ["t0_0_0", "t0_0_50", "t0_50_0", "t0_50_50"]
    assert {s.group for s in samples} == {"g0", "g2"} and [s.source for s in samples] == ["src"] * 8 + ["twin"] * 3
