"""The packaged head beside generators of other qualities than nano's: worthless ones and good ones, on real tiles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from axs_lib.checks import Trust
from axs_lib.data.proposals import informed_proposal
from axs_lib.data.samples import load_sample, sample_names
from axs_lib.evaluate.gaps import simulated_trust
from axs_lib.evaluate.sources import simulated_estimate
from axs_lib.grounding.large import GroundingControls
from axs_lib.metrics import compute_metrics
from axs_lib.nodata import fill_nodata
from axs_lib.stage3_tm_ground import build_stage3_model
from tests.models import random_nano

Figure = Callable[[str], float]


@pytest.fixture(scope="module", params=["estimates", "gaps"])
def mean_error(request: pytest.FixtureRequest) -> Figure:
    """The mean squared error over the packaged tiles beside a kind of proposal; of what comes in for ``input``."""
    nano, random = build_stage3_model(1, variant="nano"), random_nano(1, timesteps=1)
    random.corrector = nano.corrector
    names = sample_names()
    tiles = [tuple(torch.from_numpy(image.batch) for image in load_sample(name)) for name in names]

    def one(index: int, kind: str) -> float:
        s1, truth = tiles[index]
        estimate, trust = simulated_estimate(truth[0], names[index])[None], torch.full_like(s1[:, :1], Trust.ESTIMATE)
        if request.param == "gaps":
            trust = simulated_trust(truth[0], names[index])[None]
            estimate = fill_nodata(truth, trust > 0)
        proposals: dict[str, Tensor] = {
            "none": estimate,
            "one grey": torch.full_like(truth, 1500.0),
            "another place": tiles[index - 1][1],
            "good": informed_proposal(truth, generator=torch.Generator().manual_seed(index)),
        }
        model, controls = random if kind == "random weights" else nano, GroundingControls(proposal=proposals.get(kind))
        image = estimate if kind == "input" else model.ground(s1, estimate, trust=trust, controls=controls).image
        return compute_metrics(image, truth, mask=trust < 1)["mse"]

    return lambda kind: sum(one(index, kind) for index in range(len(tiles))) / len(tiles)


@pytest.mark.parametrize("kind", ["random weights", "one grey", "another place"])
def test_a_worthless_generator_does_no_harm(mean_error: Figure, kind: str) -> None:
    """What comes in, an estimate or a gap filled smoothly, becomes better, and nearly as good as with no proposal."""
    assert mean_error(kind) < min(mean_error("input"), 1.12 * mean_error("none"))


def test_a_good_generator_is_used(mean_error: Figure, request: pytest.FixtureRequest) -> None:
    share = 0.7 if "gaps" in request.node.name else 0.95
    assert mean_error("good") < share * mean_error("none")
