"""Where a training pass of a stage starts."""

from __future__ import annotations

import torch

from axs_lib.terramind.sampler import TRAIN_TIMESTEPS
from axs_lib.terramind.tiles import training_start


def test_where_a_differentiable_pass_starts() -> None:
    clean = torch.ones(64, 4, 16, 16)
    x_t, t = training_start(clean, training=False)
    assert (t == TRAIN_TIMESTEPS - 1).all()
    assert abs(float(x_t.mean())) < 0.15  # nothing of the clean image is left
    assert torch.equal(x_t, training_start(clean, training=False)[0])

    x_t, t = training_start(clean, training=True)
    pure, last = training_start(clean, training=True, noised=False)
    assert 16 < int((t == TRAIN_TIMESTEPS - 1).sum()) < 48
    assert t.unique().numel() > 16
    early = t < 200
    assert float(x_t[early].mean()) > 0.5  # an early step still shows the image
    assert (last == TRAIN_TIMESTEPS - 1).all() and abs(float(pure.mean())) < 0.05
