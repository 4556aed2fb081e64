"""Which pairs are evaluated, where their opt_v2 comes from, and which tile lends its SAR."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from axs_lib.data.pairs import PairRecord
from axs_lib.errors import InputError
from axs_lib.evaluate.sources import find_other_dates, fitted, read_tile, select_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tile a has an opt_v2 of its own, b a cloudy image, c neither."""
    rng = np.random.default_rng(0)
    for name, side in (("a", 16), ("b", 16), ("c", 24)):
        truth = rng.integers(500, 3000, (4, side, side)).astype(np.uint16)
        extra = {"a": {"opt_v2": truth + 100}, "b": {"s2_cloudy": truth + 4000}}.get(name, {})
        np.savez(tmp_path / f"{name}.npz", s1=rng.normal(-12, 3, (2, side, side)), s2=truth, **extra)
    return tmp_path


def test_cloudy_pairs_are_those_with_a_cloudy_image(folder: Path) -> None:
    records = select_pairs(folder, "ok", None, "cloudy")
    assert [record.id for record in records] == ["b"]
    tile = read_tile(records[0])
    opt_v2, found = tile.estimate("cloudy")
    assert found == "cloudy" and torch.equal(opt_v2, tile.truth + 4000)
    (folder / "b.npz").unlink()
    with pytest.raises(InputError, match=r"of 2 pairs .* none holds s2_cloudy"):
        select_pairs(folder, "ok", None, "cloudy")


def record(name: str, group: str, side: int) -> PairRecord:
    return PairRecord(path=Path(name), source="src", id=name, group=group, height=side, width=side)


def test_the_same_place_at_another_date() -> None:
    def at(name: str, group: str, month: int | None, side: int = 8, lat: float | None = None) -> PairRecord:
        known = {"month": month} if month else {}
        return replace(record(name, group, side), metadata=known | ({} if lat is None else {"lat": lat}))

    records = [at("a", "g", 5), at("b", "g", 6), at("c", "g", 6)]
    records += [at("d", "g", 7, 9), at("e", "h", 8), at("f", "g", None)]
    found = {name: other.id for name, other in find_other_dates(records).items()}
    assert found == {"src/a": "b", "src/b": "a", "src/c": "a"}
    assert not find_other_dates([at("a", "g", 5, lat=1.0), at("b", "g", 6, lat=2.0)]), "another place"


@pytest.mark.parametrize("have", [(8, 8), (20, 6), (5, 30), (40, 40)])
def test_another_tiles_image_fits(have: tuple[int, int]) -> None:
    image = torch.arange(2.0 * have[0] * have[1]).view(2, *have)
    image[:, 0, 0] = torch.nan
    result = fitted(image, (16, 12))
    assert result.shape == (2, 16, 12) and result.isfinite().all()
    rows, cols = min(16, have[0]), min(12, have[1])
    assert torch.equal(result[:, 1:rows, 1:cols], image[:, 1:rows, 1:cols])
    assert result[0, 0, 0] == pytest.approx(float(image[0].nanmean()))
