"""Single bright and dark pixels go; ground as it is, and what is nodata or unknown, plays no part."""

from __future__ import annotations

import torch

from axs_lib.grounding.spikes import without_spikes
from tests.models import plausible_pair


def test_spikes_take_the_value_of_their_surroundings_and_nothing_else_changes() -> None:
    image = (plausible_pair(2)[1] - 1000.0) / 500.0
    known = torch.ones_like(image[:, :1], dtype=torch.bool)
    assert torch.equal(without_spikes(image, known), image)
    spiked, here = image.clone(), torch.zeros_like(known)
    for row, column, side, value in ((0, 0, 1, 40.0), (20, 30, 2, 25.0), (40, 10, 1, -30.0)):
        window = (slice(None), slice(None), slice(row, row + side), slice(column, column + side))
        spiked[window], here[window] = value, True
    levelled = without_spikes(spiked, known)
    assert torch.equal(levelled[~here.expand_as(image)], image[~here.expand_as(image)])
    assert (levelled - image).abs().max() < 1.0
    # What stands out is told by the known pixels: a gap's filling, however rough, hides no spike.
    rough = spiked.clone()
    rough[..., 48:, :] += 20.0 * torch.randn(2, 4, 16, 64, generator=torch.Generator().manual_seed(0)).round()
    known[..., 48:, :] = False
    assert torch.equal(without_spikes(rough, known)[..., :47, :], levelled[..., :47, :])
    flat = torch.zeros(1, 4, 32, 32)
    flat[..., 8, 8], flat[..., 20:23, 20:23] = torch.tensor([3.0, 5.0, -3.0, -5.0]), 5.0
    levelled = without_spikes(flat, torch.ones(1, 1, 32, 32, dtype=torch.bool))
    assert levelled[0, :, 8, 8].tolist() == [3.0, 0.0, -3.0, 0.0], "4 z-units is the least"
    assert (levelled[..., 20:23, 20:23] == 5.0).all(), "3 x 3 px are ground"
