"""The fit finds the season that the pairs hold, from the files alone, and leaves undated pairs out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from axs_lib.stage2_prithvi_refine import PrithviRefiner, build_prithvi_refiner
from axs_lib.train.colour import fit_colour
from axs_lib.train.readers import DataConfig, list_samples
from tests.models import plausible_pair
from tests.train.test_fit import config, fit

MONTHS = range(1, 13)


@pytest.fixture
def seasonal_pairs(tmp_path: Path) -> Path:
    """Twelve months of one true difference: B08 is 600 DN brighter in June than opt_v1 says, 600 darker in December."""
    lines = ["source,id,group,month"]
    (tmp_path / "pairs" / "src").mkdir(parents=True)
    for month in MONTHS:
        s1, s2 = (image[0].numpy() for image in plausible_pair(1, 64, 64, seed=month))
        before = np.clip(s2, 900, 6000).round().astype(np.uint16)
        truth = before.astype(float)
        truth[3] -= 600 * np.cos(2 * np.pi * (month - 0.5) / 12)
        stored = {"s1": s1, "s2": truth.round().astype(np.uint16), "opt_v1": before}
        np.savez(tmp_path / "pairs" / "src" / f"t{month}.npz", **stored)
        lines.append(f"src,t{month},g{month},{month}")
    (tmp_path / "index.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@torch.no_grad()
def test_it_finds_the_season(seasonal_pairs: Path) -> None:
    refiner = build_prithvi_refiner(variant="nano", pretrained=False)
    assert fit_colour(refiner, list_samples(DataConfig(str(seasonal_pairs)))) == len(MONTHS)
    _, before = plausible_pair(1, 64, 64, seed=50)
    before = before.clamp(1500, 6000)
    june, december = (refiner(before, {"date": date}) - before for date in ("2021-06-22", "2021-12-22"))
    assert june[0, 3].mean() == pytest.approx(600, abs=100)
    assert december[0, 3].mean() == pytest.approx(-600, abs=100) and june[0, :3].abs().mean() < 60


def test_undated_pairs_change_nothing(seasonal_pairs: Path) -> None:
    index = seasonal_pairs / "index.csv"
    index.write_text("\n".join(line.rpartition(",")[0] for line in index.read_text().splitlines()) + "\n")
    refiner = build_prithvi_refiner(variant="nano", pretrained=False)
    assert fit_colour(refiner, list_samples(DataConfig(str(seasonal_pairs)))) == 0 and refiner.colour.untrained


def trained(pairs: Path, out: Path, **options: Any) -> PrithviRefiner:
    data = DataConfig(str(pairs), crop_sizes=(64,), batch_size=1)
    run = replace(config("stage2", pairs, out, **options), data=data)
    return build_prithvi_refiner(variant="nano", checkpoint=next(fit(run).glob("*.safetensors")))


@pytest.mark.parametrize("wanted", [True, False])
def test_training_starts_from_the_fit(seasonal_pairs: Path, tmp_path: Path, wanted: bool) -> None:
    refiner = trained(seasonal_pairs, tmp_path / "run", steps=1, learning_rate=0.0, fit_colour=wanted)
    assert refiner.colour.untrained is not wanted


def test_what_is_trained_to_need_the_season_is_written_so(seasonal_pairs: Path, tmp_path: Path) -> None:
    refiner = trained(seasonal_pairs, tmp_path / "run", learning_rate=1e-3, needs_season=True)
    assert refiner.needs_season and not refiner.head.untrained
    _, opt_v1 = plausible_pair(1, 64, 64, seed=50)
    assert torch.equal(refiner(opt_v1), opt_v1)
