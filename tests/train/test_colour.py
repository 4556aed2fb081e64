"""The fit finds the season that the pairs hold, from the files alone, and leaves undated pairs out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from axs_lib.stage2_prithvi_refine import build_prithvi_refiner
from axs_lib.train.colour import fit_colour
from axs_lib.train.readers import DataConfig, list_samples
from tests.models import plausible_pair
from tests.train.test_fit import config, fit

MONTHS = range(1, 13)


@pytest.fixture
def seasonal_pairs(tmp_path: Path) -> Path:
    """Twelve months of one true difference: B08 is 600 DN brighter in June than opt_v1 says, 600 darker in December."""
    target = tmp_path / "data" / "pairs" / "src"
    target.mkdir(parents=True)
    lines = ["source,id,group,quality,h,w,month"]
    for month in MONTHS:
        s1, s2 = (image[0].numpy() for image in plausible_pair(1, 64, 64, seed=month))
        before = np.clip(s2, 1500, 6000)
        truth = before.copy()
        truth[3] -= 600 * np.cos(2 * np.pi * (month - 0.5) / 12)
        stored = {"s2": truth.round().astype(np.uint16), "opt_v1": before.round().astype(np.uint16)}
        np.savez(target / f"t{month}.npz", s1=s1, **stored)
        lines.append(f"src,t{month},g{month},ok,64,64,{month}")
    (tmp_path / "data" / "index.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


@torch.no_grad()
def test_it_finds_the_season(seasonal_pairs: Path) -> None:
    refiner = build_prithvi_refiner(variant="nano", pretrained=False)
    assert fit_colour(refiner, list_samples(DataConfig(str(seasonal_pairs)))) == len(MONTHS)
    _, before = plausible_pair(1, 64, 64, seed=50)
    before = before.clamp(1500, 6000)
    june, december = (refiner(before, {"date": date}) - before for date in ("2021-06-22", "2021-12-22"))
    assert june[0, 3].mean() == pytest.approx(600, abs=100)
    assert december[0, 3].mean() == pytest.approx(-600, abs=100)
    assert june[0, :3].abs().mean() < 60


def test_undated_pairs_change_nothing(seasonal_pairs: Path) -> None:
    index = seasonal_pairs / "index.csv"
    index.write_text("\n".join(line.rpartition(",")[0] for line in index.read_text().splitlines()) + "\n")
    refiner = build_prithvi_refiner(variant="nano", pretrained=False)
    assert fit_colour(refiner, list_samples(DataConfig(str(seasonal_pairs)))) == 0
    assert refiner.colour.untrained


@pytest.mark.parametrize("wanted", [True, False])
def test_training_starts_from_the_fit(seasonal_pairs: Path, tmp_path: Path, wanted: bool) -> None:
    run = config("stage2", seasonal_pairs, tmp_path / "run", steps=1, learning_rate=0.0, fit_colour=wanted)
    run = type(run)(**{**vars(run), "data": DataConfig(str(seasonal_pairs), crop_sizes=(64,), batch_size=1)})
    weights = fit(run)
    refiner = build_prithvi_refiner(variant="nano", checkpoint=next(weights.glob("*.safetensors")))
    assert refiner.colour.untrained is not wanted


def test_what_is_trained_to_need_the_season_is_written_so(seasonal_pairs: Path, tmp_path: Path) -> None:
    run = config("stage2", seasonal_pairs, tmp_path / "run", steps=2, learning_rate=1e-3, needs_season=True)
    run = type(run)(**{**vars(run), "data": DataConfig(str(seasonal_pairs), crop_sizes=(64,), batch_size=1)})
    refiner = build_prithvi_refiner(variant="nano", checkpoint=next(fit(run).glob("*.safetensors")))
    assert refiner.needs_season and not refiner.head.untrained
    _, opt_v1 = plausible_pair(1, 64, 64, seed=50)
    assert torch.equal(refiner(opt_v1), opt_v1)
