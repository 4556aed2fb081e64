"""Uncertainty figures against closed forms, and a folder through models whose uncertainty is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.errors import InputError
from axs_lib.evaluate import Uncertainty, evaluate
from axs_lib.evaluate.uncertainty import (
    CALIBRATED,
    DROPPED,
    auce,
    gaussian_crps,
    reliability_bins,
    retention_curve,
    spread_skill,
    uncertainty_figures,
)
from tests.evaluate import fakes
from tests.evaluate.fakes import FakeModel, FakePipeline

COUNT = 200_000


def gaussian(seed: int = 0, count: int = COUNT) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_a_calibrated_gaussian_has_the_closed_forms() -> None:
    sigma = 0.01 + 0.04 * torch.rand(COUNT, generator=torch.Generator().manual_seed(9), dtype=torch.double)
    error = sigma * gaussian()
    assert spread_skill(sigma, error) == pytest.approx(1, abs=0.01)
    assert auce(sigma, error) < 0.005
    assert gaussian_crps(sigma, error) == pytest.approx(float(sigma.mean()) / math.sqrt(math.pi), rel=0.01)
    bins = reliability_bins(sigma, error)
    assert [count for count, _, _ in bins] == pytest.approx([COUNT / 10] * 10, abs=2)
    for _, predicted, observed in bins:
        assert observed == pytest.approx(predicted, rel=0.03)


@pytest.mark.parametrize("factor", [0.25, 2.0])
def test_a_wrong_scale_shows_by_its_size(factor: float) -> None:
    sigma, error = torch.full((COUNT,), 0.02 * factor, dtype=torch.double), 0.02 * gaussian()
    assert spread_skill(sigma, error) == pytest.approx(factor, rel=0.01)
    figures = uncertainty_figures(sigma[:, None].expand(-1, 4), error[:, None].expand(-1, 4))
    assert set(figures) == {"spread_skill", "uce", "auce", "retention", "crps", "reliability"}
    assert tuple(figures["uce"]) == OPTICAL_BANDS and json.loads(json.dumps(figures)) == figures
    assert figures["uce"]["B03"] == pytest.approx(0.02 * abs(factor - 1), rel=0.02)
    assert spread_skill(sigma, error, members=4) == pytest.approx(factor * math.sqrt(5 / 4), rel=0.01)
    # Of a Gaussian, the share of errors inside the interval of level p is erf(factor * erfinv(p)).
    level = torch.linspace(0.01, 0.99, 99, dtype=torch.double)
    inside = torch.special.erf(factor * torch.erfinv(level))
    assert auce(sigma, error) == pytest.approx(float((inside - level).abs().mean()), abs=0.005)
    # Mean CRPS of N(0, s^2) against errors N(0, e^2): sqrt(2 (s^2 + e^2) / pi) - s / sqrt(pi).
    s, e = 0.02 * factor, 0.02
    expected = math.sqrt(2 * (s * s + e * e) / math.pi) - s / math.sqrt(math.pi)
    assert gaussian_crps(sigma, error) == pytest.approx(expected, rel=0.01)


def test_extremes_are_defined() -> None:
    zero, one = torch.zeros(10, dtype=torch.double), torch.ones(10, dtype=torch.double)
    assert auce(zero, one) == pytest.approx(0.5) == auce(1e12 * one, one)
    assert gaussian_crps(zero, -3 * one) == pytest.approx(3)
    assert gaussian_crps(one, zero) == pytest.approx((math.sqrt(2) - 1) / math.sqrt(math.pi))
    assert spread_skill(zero, one) == 0
    assert spread_skill(one, zero) == math.inf
    assert reliability_bins(one, 2 * one) == [(10, 1.0, 2.0)]


def test_the_retention_curve_of_known_errors() -> None:
    sigma = torch.arange(1.0, 11.0)[:, None].expand(-1, 4)
    error = sigma.clone()
    curve = dict(retention_curve(sigma, error))
    assert list(curve) == list(DROPPED) == pytest.approx([0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert curve[0.0] == pytest.approx(38.5)  # mean of 1, 4, ..., 100
    assert curve[0.05] == pytest.approx((385 - 50) / 9.5)  # half of the worst pixel
    assert curve[0.2] == pytest.approx((385 - 181) / 8)
    assert curve[0.9] == pytest.approx(1)
    assert dict(retention_curve(sigma, error.flip(0)))[0.2] == pytest.approx((385 - 5) / 8)
    says_nothing = retention_curve(torch.ones(10, 4), error)
    assert [mse for _, mse in says_nothing] == pytest.approx([38.5] * len(DROPPED))


@pytest.mark.parametrize(
    ("predicted", "error"),
    [
        (torch.ones(5, 4), torch.ones(4, 4)),
        (torch.ones(5), torch.ones(5)),
        (torch.ones(0, 4), torch.ones(0, 4)),
        (torch.full((5, 4), -1.0), torch.ones(5, 4)),
        (torch.ones(5, 4), torch.full((5, 4), math.nan)),
    ],
)
def test_what_cannot_be_measured_is_refused(predicted: Tensor, error: Tensor) -> None:
    with pytest.raises(InputError, match="expected"):
        uncertainty_figures(predicted, error)


@pytest.fixture
def bright(tmp_path: Path) -> Path:
    """Two tiles whose opt_v2 is 200 DN too bright, with a nodata pixel each."""
    for name, side in (("a", 16), ("b", 24)):
        s2 = np.full((4, side, side), 1000, np.uint16)
        s2[:, 0, 0] = 0
        s1 = np.full((2, side, side), -12.0, np.float32)
        np.savez(tmp_path / f"{name}.npz", s1=s1, s2=s2, opt_v2=np.full((4, side, side), 1200, np.uint16))
    return tmp_path


def outcome(model: Any, folder: Path, ensemble_size: int = 4, **options: Any) -> dict[str, Any]:
    return fakes.outcome(model, folder, Uncertainty(ensemble_size), **options)


def test_a_folder_is_pooled_without_nodata(bright: Path) -> None:
    model = FakeModel(uncertainty=100.0)
    figures = outcome(model, bright)
    assert (figures["tiles"], figures["pixels"]) == (2, 16 * 16 + 24 * 24 - 2)
    assert [call.ensemble_size for call in model.calls] == [4, 4]
    assert figures["spread_skill"]["B02"] == pytest.approx(0.5 * math.sqrt(5 / 4))
    assert figures["uce"]["B02"] == pytest.approx(0.01, rel=1e-5)
    assert figures["reliability"]["B04"] == [pytest.approx([0.01, 0.02])]
    assert figures["retention"][3] == pytest.approx([0.2, 4e-4], rel=1e-5)
    assert "spread of the ensemble alone" in str(evaluate(model, bright, [Uncertainty()]).tables()[0].title)
    with pytest.raises(InputError, match="--uncertainty-members 4"):  # a model without uncertainty is told what to do
        outcome(FakeModel(), bright)


def test_calibrated_deviations_are_taken_as_they_are(bright: Path) -> None:
    model = FakeModel(uncertainty=100.0, provenance={CALIBRATED: "nfe 1, 10"})
    for size in (1, 4):
        figures = outcome(model, bright, size)
        assert figures["calibrated"] and figures["spread_skill"]["B08"] == pytest.approx(0.5)
    assert outcome(FakeModel(uncertainty=100.0), bright, 1)["calibrated"], "the head's own, of one run"


def test_the_pipelines_own_estimate_is_measured(bright: Path) -> None:
    """Its spread is over whole runs, which Stage 3's calibration does not cover."""
    pipeline = FakePipeline(uncertainty=30.0, provenance={CALIBRATED: "yes"})
    tiles = next(iter(evaluate(pipeline, bright, [Uncertainty(2)], source="stage2").tiles.values()))
    assert tiles[0].facts["members"] == 2 and tiles[0].facts["nfe"] == 22
    predicted, error = (torch.cat([tile.facts[key] for tile in tiles]) for key in ("predicted", "error"))
    assert error[:, :3].unique().tolist() == pytest.approx([0.1])
    assert predicted.unique().tolist() == pytest.approx([0.003])
