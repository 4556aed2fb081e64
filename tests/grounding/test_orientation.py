"""A tile turned for the grounding head: the head's answer to the turned tile, turned back, member by member."""

from __future__ import annotations

import pytest
import torch

from axs_lib.grounding.orientation import ORIENTATIONS, turn, turn_back
from axs_lib.stage3_tm_ground import GroundingControls, Stage3GroundingModel, build_stage3_model
from axs_lib.terramind.noise import member_seeds
from tests.models import plausible_pair


@pytest.fixture(scope="module")
def nano() -> Stage3GroundingModel:
    model = build_stage3_model(variant="nano", timesteps=1)
    model.corrector.head.filter_floor.fill_(1e6)  # the filter and its statistics are those of the tile as it lies
    model.corrector.head.filter.scale.fill_(1e6)
    return model


def test_there_are_eight_and_each_is_undone() -> None:
    image = torch.randn(2, 3, 6, 6)
    turned = [turn(image, orientation) for orientation in range(8)]
    assert len(ORIENTATIONS) == len({tuple(each.flatten().tolist()) for each in turned}) == 8
    for orientation, each in enumerate(turned):
        assert torch.equal(turn_back(each, orientation), image)
    assert torch.equal(turned[0], image)
    assert torch.equal(turn(image, 9), turned[1])
    # Two members already see opposite sides, in which the SAR looks from the left and from the right.
    assert torch.equal(turned[1], image.flip(-1, -2))


@pytest.mark.parametrize("orientation", [1, 4, 7])
def test_it_is_the_answer_to_the_turned_tile(nano: Stage3GroundingModel, orientation: int) -> None:
    s1, opt_v2 = plausible_pair(1, 128, 128)
    proposal = opt_v2.flip(-1) + 50.0

    def seen(image: torch.Tensor) -> torch.Tensor:
        return turn(image, orientation)

    turned = nano.ground(s1, opt_v2, controls=GroundingControls(proposal=proposal, orientation=orientation)).image
    expected = turn_back(
        nano.ground(seen(s1), seen(opt_v2), controls=GroundingControls(proposal=seen(proposal))).image, orientation
    )
    torch.testing.assert_close(turned, expected, atol=0.5, rtol=0)
    straight = nano.ground(s1, opt_v2, controls=GroundingControls(proposal=proposal)).image
    assert (turned - straight).abs().max() > 2.0


def test_members_take_the_orientations_in_turn(nano: Stage3GroundingModel) -> None:
    s1, opt_v2 = plausible_pair(1, 96, 70)
    both = nano.ground(s1, opt_v2, ensemble_size=2, seed=3)
    seeds = torch.tensor([3])
    alone = [
        nano.ground(s1, opt_v2, seed=member_seeds(seeds, member), controls=GroundingControls(orientation=member))
        for member in (0, 1)
    ]
    inside = (alone[0].image > 1) & (alone[1].image > 1)  # a member by itself is clipped before the mean
    assert inside.float().mean() > 0.99
    mean = (alone[0].image + alone[1].image) / 2
    torch.testing.assert_close(both.image[inside], mean[inside], atol=0.05, rtol=0)
    other = nano.ground(s1, opt_v2, ensemble_size=2, seed=3, controls=GroundingControls(orientation=2))
    assert (other.image - both.image).abs().max() > 1.0
