"""The season's colour: local, silent without a date, and half a turn ahead in the south."""

from __future__ import annotations

import pytest
import torch

from axs_lib.prithvi.colour import SeasonalColour, season
from axs_lib.prithvi.metadata import encode_metadata


@torch.no_grad()
def test_summer_and_winter_differ_and_december_meets_january() -> None:
    colour = SeasonalColour()
    torch.nn.init.normal_(colour.weight)
    image = torch.randn(1, 4, 8, 8).expand(4, -1, -1, -1)
    dates = ["2021-12-31", "2021-01-01", "2021-06-21", "2021-12-21"]
    last, first, june, december = colour(image, encode_metadata([{"date": date} for date in dates], 4))
    assert (last - first).norm() < 0.05 * (june - december).norm()


@torch.no_grad()
def test_the_south_runs_half_a_turn_ahead() -> None:
    places = [{"date": "2021-07-01", "lat": 48.0}, {"date": "2021-12-31", "lat": -35.0}]
    _, cosine, sine = season(encode_metadata(places, 2))
    assert cosine[0].item() == pytest.approx(cosine[1].item(), abs=0.02)
    assert sine[0].item() == pytest.approx(sine[1].item(), abs=0.02)
