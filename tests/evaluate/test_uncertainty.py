"""Uncertainty figures against closed forms, and a folder through models whose uncertainty is known."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.errors import InputError
from axs_lib.evaluate.uncertainty import (
    CALIBRATED,
    DROPPED,
    auce,
    evaluate_uncertainty,
    gaussian_crps,
    measure_uncertainty,
    reliability_bins,
    retention_curve,
    spread_skill,
    uncertainty_figures,
)

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


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 4.0])
def test_a_wrong_scale_shows_by_its_size(factor: float) -> None:
    sigma, error = torch.full((COUNT,), 0.02 * factor, dtype=torch.double), 0.02 * gaussian()
    assert spread_skill(sigma, error) == pytest.approx(factor, rel=0.01)
    figures = uncertainty_figures(sigma[:, None].expand(-1, 4), error[:, None].expand(-1, 4))
    assert figures["uce"]["B03"] == pytest.approx(0.02 * abs(factor - 1), rel=0.02)
    # Of a Gaussian, the share of errors inside the interval of level p is erf(factor * erfinv(p)).
    level = torch.linspace(0.01, 0.99, 99, dtype=torch.double)
    inside = torch.special.erf(factor * torch.erfinv(level))
    assert auce(sigma, error) == pytest.approx(float((inside - level).abs().mean()), abs=0.005)
    # Mean CRPS of N(0, s^2) against errors N(0, e^2): sqrt(2 (s^2 + e^2) / pi) - s / sqrt(pi).
    s, e = 0.02 * factor, 0.02
    expected = math.sqrt(2 * (s * s + e * e) / math.pi) - s / math.sqrt(math.pi)
    assert gaussian_crps(sigma, error) == pytest.approx(expected, rel=0.01)


def test_a_bare_ensemble_is_given_its_finite_size() -> None:
    """Truth and members are draws of one distribution: only the factor makes the ratio 1."""
    random = torch.Generator().manual_seed(1)
    for size in (2, 4, 16):
        members = torch.randn(size, COUNT, generator=random, dtype=torch.double)
        error = members.mean(0) - torch.randn(COUNT, generator=random, dtype=torch.double)
        spread = members.std(0)
        assert spread_skill(spread, error, members=size) == pytest.approx(1, abs=0.01)
        assert spread_skill(spread, error) == pytest.approx(math.sqrt(size / (size + 1)), abs=0.01)


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
    assert (
        list(curve) == list(DROPPED) == pytest.approx([0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    )
    assert curve[0.0] == pytest.approx(38.5)  # mean of 1, 4, ..., 100
    assert curve[0.05] == pytest.approx((385 - 50) / 9.5)  # half of the worst pixel
    assert curve[0.2] == pytest.approx((385 - 181) / 8)
    assert curve[0.9] == pytest.approx(1)
    backwards = dict(retention_curve(sigma, error.flip(0)))
    assert backwards[0.2] == pytest.approx((385 - 5) / 8)


def test_a_deviation_that_says_nothing_drops_nothing_better() -> None:
    error = torch.arange(10.0)[:, None].expand(-1, 4)
    curve = retention_curve(torch.ones(10, 4), error)
    assert [mse for _, mse in curve] == pytest.approx([28.5] * len(DROPPED))


def test_the_dictionary_has_its_keys() -> None:
    error = torch.stack([gaussian(band, 500) for band in range(4)], 1)
    figures = uncertainty_figures(error.abs() + 0.1, error)
    assert set(figures) == {"spread_skill", "uce", "auce", "retention", "crps", "reliability"}
    for key in ("spread_skill", "uce", "auce", "crps", "reliability"):
        assert tuple(figures[key]) == OPTICAL_BANDS
    assert len(figures["reliability"]["B08"]) == 10
    assert json.loads(json.dumps(figures)) == figures
    halved = uncertainty_figures(error.abs() + 0.1, error * torch.tensor([1.0, 2.0, 1.0, 1.0]))
    changed = [b for b in OPTICAL_BANDS if halved["spread_skill"][b] != figures["spread_skill"][b]]
    assert changed == ["B03"]


@pytest.mark.parametrize(
    ("predicted", "error"),
    [
        (torch.ones(5, 4), torch.ones(4, 4)),
        (torch.ones(5), torch.ones(5)),
        (torch.ones(0, 4), torch.ones(0, 4)),
        (torch.full((5, 4), -1.0), torch.ones(5, 4)),
        (torch.full((5, 4), math.nan), torch.ones(5, 4)),
        (torch.ones(5, 4), torch.full((5, 4), math.nan)),
    ],
)
def test_what_cannot_be_measured_is_refused(predicted: Tensor, error: Tensor) -> None:
    with pytest.raises(InputError, match="expected"):
        uncertainty_figures(predicted, error)


# -- a folder -----------------------------------------------------------------------------------------------------


@dataclass
class Doubtful:
    """opt_v3 is opt_v2; it doubts by ``doubt`` DN, from an ensemble of two on (with ``head``, always)."""

    doubt: float = 100.0
    head: bool = False
    provenance: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[int | None, int]] = field(default_factory=list)
    timesteps: int = 3
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def ground(
        self,
        s1: Tensor,
        opt_v2: Tensor,
        timesteps: int | None = None,
        *,
        seed: int = 0,
        ensemble_size: int = 1,
    ) -> Any:
        self.asked.append((timesteps, ensemble_size))
        sure = ensemble_size < 2 and not self.head
        uncertainty = None if sure else torch.full_like(opt_v2, self.doubt)
        return SimpleNamespace(image=opt_v2, proposal=opt_v2, nfe=timesteps, uncertainty=uncertainty)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tiles whose opt_v2 is 200 DN too bright, with a nodata pixel each."""
    for name, side in (("a", 16), ("b", 24)):
        s2 = np.full((4, side, side), 1000, np.uint16)
        s2[:, 0, 0] = 0
        s1 = np.full((2, side, side), -12.0, np.float32)
        np.savez(tmp_path / f"{name}.npz", s1=s1, s2=s2, opt_v2=np.full((4, side, side), 1200, np.uint16))
    return tmp_path


def test_a_folder_is_pooled_without_nodata(folder: Path) -> None:
    model = Doubtful()
    report = evaluate_uncertainty(model, folder, ensemble_size=4)
    assert (report.tiles, report.pixels) == (2, 16 * 16 + 24 * 24 - 2)
    assert model.asked == [(3, 4), (3, 4)]
    figures = report.to_json()
    assert set(figures) == {"spread_skill", "uce", "auce", "retention", "crps", "reliability"}
    assert figures["spread_skill"]["B02"] == pytest.approx(0.5 * math.sqrt(5 / 4))
    assert figures["uce"]["B02"] == pytest.approx(0.01, rel=1e-5)
    assert figures["reliability"]["B04"] == [pytest.approx([0.01, 0.02])]
    assert figures["retention"][3] == pytest.approx([0.2, 4e-4], rel=1e-5)
    assert "spread of the ensemble alone" in str(report.tables()[0].title)


def test_calibrated_deviations_are_taken_as_they_are(folder: Path) -> None:
    model = Doubtful(head=True, provenance={CALIBRATED: "nfe 1, 10"})
    report = evaluate_uncertainty(model, folder, ensemble_size=1)
    assert report.calibrated
    assert report.figures["spread_skill"]["B08"] == pytest.approx(0.5)
    assert measure_uncertainty(model, folder, ensemble_size=4).members is None
    assert measure_uncertainty(Doubtful(head=True), folder, ensemble_size=1).members is None
    assert measure_uncertainty(Doubtful(), folder, ensemble_size=3, timesteps=7).nfe == 7


def test_a_model_without_uncertainty_is_told_what_to_do(folder: Path) -> None:
    with pytest.raises(InputError, match="--ensemble-size 4"):
        evaluate_uncertainty(Doubtful(), folder, ensemble_size=1)


def test_the_pipelines_own_estimate_is_measured(folder: Path) -> None:
    @dataclass
    class Whole:
        stage3: Doubtful = field(default_factory=lambda: Doubtful(provenance={CALIBRATED: "yes"}))
        device: torch.device = field(default_factory=lambda: torch.device("cpu"))
        provenance: dict[str, str] = field(default_factory=lambda: {CALIBRATED: "yes"})

        def __call__(
            self, s1: Tensor, metadata: Any, timesteps: int, *, seed: int = 0, ensemble_size: int = 1
        ) -> Any:
            image = torch.full((len(s1), 4, *s1.shape[-2:]), 1300.0)
            return SimpleNamespace(
                opt_v1=image, opt_v2=image, opt_v3=image, nfe=(1, 2), uncertainty=torch.full_like(image, 30.0)
            )

    measured = measure_uncertainty(Whole(), folder, opt_v2_source="stage2", ensemble_size=2)
    assert measured.members == 2  # the spread over whole runs, which Stage 3's calibration does not cover
    assert measured.nfe == 3
    assert measured.error.unique().tolist() == pytest.approx([0.03])
    assert measured.predicted.unique().tolist() == pytest.approx([0.003])
