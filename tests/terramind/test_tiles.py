"""What the stages share: the side of the network's square, and where a training pass starts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from axs_lib.terramind.sampler import TRAIN_TIMESTEPS
from axs_lib.terramind.tiles import network_side, training_start

LAYOUT = SimpleNamespace(multiple=32, min_side=64, max_side=256)


@pytest.mark.parametrize(
    ("height", "width", "side"), [(8, 8, 64), (64, 20, 64), (65, 20, 96), (120, 120, 128), (256, 1, 256)]
)
def test_the_network_sees_whole_multiples(height: int, width: int, side: int) -> None:
    assert network_side(LAYOUT, height, width) == side  # type: ignore[arg-type]


def test_where_a_differentiable_pass_starts() -> None:
    clean = torch.ones(64, 4, 16, 16)
    x_t, t = training_start(clean, training=False)
    assert (t == TRAIN_TIMESTEPS - 1).all()
    assert abs(float(x_t.mean())) < 0.15  # nothing of the clean image is left
    assert torch.equal(x_t, training_start(clean, training=False)[0])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        x_t, t = training_start(clean, training=True)
        pure, last = training_start(clean, training=True, noised=False)
    assert 16 < int((t == TRAIN_TIMESTEPS - 1).sum()) < 48
    assert t.unique().numel() > 16
    early = t < 200
    assert float(x_t[early].mean()) > 0.5  # an early step still shows the image
    assert (last == TRAIN_TIMESTEPS - 1).all() and abs(float(pure.mean())) < 0.05
