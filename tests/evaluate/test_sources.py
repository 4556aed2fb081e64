"""Which pairs are evaluated, and where their opt_v2 comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from axs_lib.data.pairs import list_pairs, load_pair
from axs_lib.errors import InputError
from axs_lib.evaluate.sources import (
    EvaluationTile,
    OptV2Source,
    batches_of_one_size,
    select_pairs,
    simulated_estimate,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tile a has an opt_v2 of its own, b a cloudy image, c neither."""
    rng = np.random.default_rng(0)
    for name, side in (("a", 16), ("b", 16), ("c", 24)):
        truth = rng.integers(500, 3000, (4, side, side)).astype(np.uint16)
        extra = {"a": {"opt_v2": truth + 100}, "b": {"s2_cloudy": truth + 4000}}.get(name, {})
        np.savez(tmp_path / f"{name}.npz", s1=rng.normal(-12, 3, (2, side, side)), s2=truth, **extra)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "expected"),
    [("file", ["file", "degraded", "degraded"]), ("degraded", ["degraded"] * 3), ("stage2", ["stage2"] * 3)],
)
def test_sources_of_the_estimate(folder: Path, source: OptV2Source, expected: list[str]) -> None:
    tiles = [EvaluationTile(load_pair(record), source) for record in select_pairs(folder, "ok", None, source)]
    assert [tile.opt_v2_source for tile in tiles] == expected
    for tile in tiles:
        if tile.opt_v2_source == "file":
            assert torch.equal(tile.opt_v2, tile.truth + 100)
        elif tile.opt_v2_source == "degraded":
            assert torch.equal(tile.opt_v2, simulated_estimate(tile.truth, tile.record.name))
        else:
            assert tile.opt_v2.isnan().all()


def test_cloudy_pairs_are_those_with_a_cloudy_image(folder: Path) -> None:
    records = select_pairs(folder, "ok", None, "cloudy")
    assert [record.id for record in records] == ["b"]
    tile = EvaluationTile(load_pair(records[0]), "cloudy")
    assert tile.opt_v2_source == "cloudy" and torch.equal(tile.opt_v2, tile.truth + 4000)
    (folder / "b.npz").unlink()
    with pytest.raises(InputError, match=r"none of the 2 pairs .* holds s2_cloudy"):
        select_pairs(folder, "ok", None, "cloudy")


def test_batches_hold_tiles_of_one_size(folder: Path) -> None:
    records = list_pairs(folder)
    assert [[record.id for record in batch] for batch in batches_of_one_size(records, 8)] == [
        ["a", "b"],
        ["c"],
    ]
    assert [len(batch) for batch in batches_of_one_size(records, 1)] == [1, 1, 1]
