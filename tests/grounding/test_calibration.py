"""Calibration: scales that make deviations match errors, and their place in a header."""

from __future__ import annotations

import pytest
import torch

from axs_lib.errors import InputError, WeightsError
from axs_lib.grounding.calibration import HEADER_KEY, Calibration
from experiments.calibrate import fit_scale

ONE, TEN = (1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)


def test_a_fit_finds_each_bands_factor() -> None:
    random = torch.Generator().manual_seed(0)
    truth = torch.tensor([0.01, 0.02, 0.005, 0.1])
    error = truth * torch.randn(50_000, 4, generator=random)
    predicted = torch.full((50_000, 4), 0.001)
    assert torch.tensor(fit_scale(predicted, error)) == pytest.approx(truth / 0.001, rel=0.02)
    scaled = predicted * torch.tensor(fit_scale(predicted, error))
    assert scaled.square().mean(0).sqrt() == pytest.approx(error.square().mean(0).sqrt())


@pytest.mark.parametrize(("nfe", "scales"), [(0, ONE), (2, ONE), (6, ONE), (7, TEN), (10, TEN), (1000, TEN)])
def test_the_nearest_number_of_evaluations_counts(nfe: int, scales: tuple[float, ...]) -> None:
    assert tuple(Calibration({10: TEN, 2: ONE}).scale(nfe).tolist()) == scales


def test_a_header_keeps_it_by_band_name() -> None:
    calibration = Calibration({10: TEN, 1: ONE})
    header = calibration.to_header()
    assert set(header) == {HEADER_KEY} == {"calibration"}
    assert header[HEADER_KEY].startswith('{"1": {"B02": 1.0, "B03": 2.0, "B04": 3.0, "B08": 4.0}')
    assert Calibration.from_header(header | {"steps": "5"}) == calibration
    assert Calibration.from_header({"steps": "5"}) is None


@pytest.mark.parametrize("entry", ["", "[]", "3", '{"1": [1, 2, 3, 4]}', '{"1": {"B02": 1}}', '{"a": {}}', "{}"])
def test_a_broken_header_names_the_tool(entry: str) -> None:
    with pytest.raises(WeightsError, match=r"experiments/calibrate\.py"):
        Calibration.from_header({HEADER_KEY: entry})


@pytest.mark.parametrize("scales", [{}, {1: (1.0, 1.0)}, {1: (0.0, 1.0, 1.0, 1.0)}, {-1: ONE}])
def test_impossible_scales_are_refused(scales: dict[int, tuple[float, ...]]) -> None:
    with pytest.raises(InputError, match="expected"):
        Calibration(scales)
