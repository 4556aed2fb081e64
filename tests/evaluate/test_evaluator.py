"""The loop: which tiles go by, in which batches, what is refused, and what is drawn by the tile's name alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from axs_lib.errors import InputError
from axs_lib.evaluate import Estimates, Floods, evaluate
from axs_lib.io.safe import ReadingWarning
from tests.evaluate.fakes import FakeModel, FakePipeline, follow_sar


def ids(folder: Path, **options: Any) -> list[str]:
    report = evaluate(FakeModel(), folder, [Estimates()], **options)
    return [tile["id"] for tile in report.to_json()["tiles"]]


def test_tiles_are_batched_by_size_and_arguments_passed_on(folder: Path) -> None:
    model = FakeModel()
    report = evaluate(model, folder, [Estimates()], quality="all", timesteps=3, seed=5, batch_size=2)
    calls = [(tuple(call.opt_v2.shape), call.timesteps, call.seed) for call in model.calls]
    assert calls == [((2, 4, 32, 32), 3, 5), ((1, 4, 32, 32), 3, 5), ((1, 4, 40, 40), 3, 5)]
    written = report.to_json()
    assert (written["timesteps"], written["nfe"], written["seed"]) == (3, 3, 5)
    assert evaluate(FakeModel(), folder, [Estimates()]).run["timesteps"] == 10, "the model's own"
    content = np.load(folder / "pairs" / "src" / "d.npz")
    np.savez(folder / "pairs" / "src" / "a.npz", **content)  # now a is larger than b and c
    assert ids(folder, quality="all") == ["a", "b", "c", "d"], "in the order of the folder"


def test_groups_select_and_unknown_ones_are_named(folder: Path) -> None:
    assert ids(folder, groups=["g1"]) == ["a", "b"]
    with pytest.raises(InputError, match=r"has no group g9; its groups are g1, g2"):
        ids(folder, groups=["g1", "g9"])
    with pytest.raises(InputError, match="none given"):
        ids(folder, groups=[])
    first = evaluate(FakeModel(), folder, [Estimates()], seed=1).to_json()
    second = evaluate(FakeModel(follow_sar), folder, [Estimates()], seed=2, groups=["g2"]).to_json()
    assert first["tiles"][2]["metrics"]["mse_v2"] == second["tiles"][0]["metrics"]["mse_v2"], "the same estimates"


def test_other_units_and_nodata_alone_are_refused_with_the_file_named(folder: Path) -> None:
    path = folder / "pairs" / "src" / "b.npz"
    content = dict(np.load(path))
    np.savez(path, **(content | {"s1": 10 ** (content["s1"] / 10)}))
    with pytest.raises(InputError, match=r"b\.npz: s1 .*linear power"):
        ids(folder)
    assert len(ids(folder, force=True)) == 3
    np.savez(path, **(content | {"opt_v2": content["s2"] / 10_000}))
    with pytest.raises(InputError, match=r"b\.npz: opt_v2 .*reflectance in 0-1"):
        ids(folder)
    np.savez(path, **(content | {"s2": content["s2"] / 10_000}))
    with pytest.raises(InputError, match=r"b\.npz: s2 .* in 0-1.* multiply by 10000 \[seen 0\.\d+ to 0\.\d+\]"):
        ids(folder)
    for name in ("s1", "s2", "opt_v2"):
        np.savez(path, **(content | {name: np.full_like(content["s1" if name == "s1" else "s2"], np.nan, float)}))
        with pytest.raises(InputError, match=rf"b\.npz: no pixel holds data in {name} "):
            ids(folder)
    np.savez(path, **(content | {"s2": content["s2"] - content["s2"].min() + 1000}))
    with pytest.warns(ReadingWarning, match=r"a\.npz: opt_v2: .* 1108 DN \(also in 1 .*b\.npz: s2\) .* in the file"):
        ids(folder)
    with pytest.raises(InputError, match="batch_size is 0"):
        ids(folder, batch_size=0)


def test_a_scenario_without_a_tile_says_what_it_needs(folder: Path) -> None:
    for path in (folder / "pairs" / "src").glob("*.npz"):
        content = dict(np.load(path))
        content["s2"][3] = 100  # water everywhere
        np.savez(path, **content)
    with pytest.raises(InputError, match=r"of 3 tiles .* none is a .* dry land .* --flood needs"):
        evaluate(FakeModel(), folder, [Estimates(), Floods()])


@pytest.mark.parametrize(
    ("model", "source"), [(FakePipeline(), "degraded"), (FakeModel(), "stage2"), (FakePipeline(), "file")]
)
def test_a_source_that_the_model_cannot_have_is_refused(folder: Path, model: Any, source: Any) -> None:
    with pytest.raises(InputError, match=f"opt_v2_source is '{source}'"):
        evaluate(model, folder, [Estimates()], source=source)
