"""The packaged head beside generators of other qualities than nano's: worthless ones and good ones, on real tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from axs_lib.checks import Trust
from axs_lib.data.samples import load_sample, sample_names
from axs_lib.evaluate.gaps import simulated_proposal, simulated_trust
from axs_lib.evaluate.sources import simulated_estimate
from axs_lib.grounding.large import GroundingControls
from axs_lib.metrics import compute_metrics
from axs_lib.nodata import fill_nodata
from axs_lib.stage3_tm_ground import Stage3GroundingModel, build_stage3_model
from tests.published import redraw_zero_parameters

WORTHLESS = ("random weights", "one grey", "another place")
MARGIN = 1.12  # of the error with no proposal: what a worthless one may cost


@pytest.fixture(scope="module")
def nano() -> Stage3GroundingModel:
    return build_stage3_model(1, variant="nano")


@pytest.fixture(scope="module")
def random_generator(nano: Stage3GroundingModel) -> Stage3GroundingModel:
    """The packaged head beside a generator of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build_stage3_model(1, pretrained=False, variant="nano", correction_mode="learned")
    redraw_zero_parameters(model, 1)
    model.corrector = nano.corrector
    return model.requires_grad_(False).eval()


class Figures:
    """Mean squared errors over the packaged tiles, of estimates or of filled gaps, beside one kind of proposal."""

    def __init__(self, nano: Stage3GroundingModel, random_generator: Stage3GroundingModel, gaps: bool) -> None:
        self.nano, self.random_generator, self.gaps = nano, random_generator, gaps
        self.tiles = {
            name: tuple(torch.from_numpy(image.batch) for image in load_sample(name)) for name in sample_names()
        }

    def mean(self, kind: str) -> float:
        return sum(self._error(name, kind) for name in self.tiles) / len(self.tiles)

    def _error(self, name: str, kind: str) -> float:
        s1, truth = self.tiles[name]
        trust = torch.full_like(truth[:, :1], Trust.ESTIMATE)
        opt_v2 = simulated_estimate(truth[0], name)[None]
        if self.gaps:
            trust = simulated_trust(truth[0], name)[None]
            opt_v2 = fill_nodata(truth, trust > 0)
        model = self.random_generator if kind == "random weights" else self.nano
        controls = GroundingControls(proposal=self._proposal(name, kind, opt_v2))
        if kind == "input":
            return compute_metrics(opt_v2, truth, mask=trust == 0 if self.gaps else None)["mse"]
        opt_v3 = model.ground(s1, opt_v2, trust=trust, controls=controls).image
        return compute_metrics(opt_v3, truth, mask=trust == 0 if self.gaps else None)["mse"]

    def _proposal(self, name: str, kind: str, opt_v2: Tensor) -> Tensor | None:
        truth = self.tiles[name][1]
        if kind == "none":
            return opt_v2
        if kind == "one grey":
            return torch.full_like(truth, 1500.0)
        if kind == "another place":
            names = list(self.tiles)
            return self.tiles[names[names.index(name) - 1]][1]
        if kind == "good":
            return simulated_proposal(truth[0], name)[None]
        return None  # the model's own


@pytest.fixture(scope="module", params=[False, True], ids=["estimates", "gaps"])
def figures(
    request: pytest.FixtureRequest, nano: Stage3GroundingModel, random_generator: Stage3GroundingModel
) -> Figures:
    return Figures(nano, random_generator, request.param)


@pytest.mark.parametrize("kind", WORTHLESS)
def test_a_worthless_generator_does_no_harm(figures: Figures, kind: str) -> None:
    """What comes in (an estimate, or a gap filled smoothly) becomes better, and nearly as good as with no proposal."""
    assert figures.mean(kind) < min(figures.mean("input"), MARGIN * figures.mean("none"))


def test_a_good_generator_is_used(figures: Figures) -> None:
    share = 0.7 if figures.gaps else 0.95  # of the error with no proposal
    assert figures.mean("good") < share * figures.mean("none")
