"""The parts of the controls: the other tile, its image brought to size, SAR that says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from axs_lib.data.pairs import PairRecord
from axs_lib.evaluate.controls import find_donors, fitted, without_sar


def record(name: str, group: str, side: int) -> PairRecord:
    return PairRecord(Path(name), name, group, "ok", "src", "", side, side)


def test_the_other_tile_is_of_another_group_and_of_one_size_where_it_can_be() -> None:
    records = [record("a", "g1", 8), record("b", "g1", 8), record("c", "g2", 9), record("d", "g3", 8)]
    donors = {name: donor.id for name, donor in find_donors(records).items()}
    assert donors == {"src/a": "d", "src/b": "d", "src/c": "d", "src/d": "a"}
    assert find_donors(records[:1]) == {}
    assert [donor.id for donor in find_donors(records[:2]).values()] == ["b", "a"]


@pytest.mark.parametrize("have", [(8, 8), (20, 6), (5, 30), (40, 40)])
def test_another_tiles_image_fits(have: tuple[int, int]) -> None:
    image = torch.arange(2.0 * have[0] * have[1]).view(2, *have)
    image[:, 0, 0] = torch.nan
    result = fitted(image, (16, 12))
    assert result.shape == (2, 16, 12) and result.isfinite().all()
    rows, cols = min(16, have[0]), min(12, have[1])
    assert torch.equal(result[:, 1:rows, 1:cols], image[:, 1:rows, 1:cols])
    assert result[0, 0, 0] == pytest.approx(float(image[0].nanmean()))


def test_sar_that_says_nothing_keeps_nodata() -> None:
    s1 = torch.randn(2, 2, 8, 8)
    s1[0, :, 3] = torch.nan
    blind = without_sar(s1, torch.tensor([-12.0, -20.0]).view(1, 2, 1, 1))
    assert torch.equal(blind.isnan(), s1.isnan())
    assert blind[1, 0].unique().tolist() == [-12.0] and blind[1, 1].unique().tolist() == [-20.0]
