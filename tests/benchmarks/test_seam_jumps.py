"""Tiles of a scene meet without seams, and the measure sees them where they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from axs_lib.errors import InputError
from axs_lib.scenes.api import ground_scene
from axs_lib.stage3_tm_ground import Stage3Output
from axs_lib.tilegrid import TileGrid
from benchmarks.seam_jumps import SeamJumps, borders, seam_jumps
from tests.scenes.conftest import BoxGrounder, scene_arrays


def test_borders_are_where_tiles_begin_and_end() -> None:
    assert borders(TileGrid(64, 16), 64) == []
    assert borders(TileGrid(64, 16), 150) == [48, 64, 96, 112]
    assert borders(TileGrid(64, 0), 150) == [64, 128]


def test_a_step_at_a_border_is_seen_and_one_inside_is_not_taken_for_it() -> None:
    flat = np.random.default_rng(0).normal(0, 1, (4, 150, 150)).astype("float32")
    assert seam_jumps(flat, TileGrid(64, 16)).ratio == pytest.approx(1, abs=0.05)
    step = flat.copy()
    step[:, :, 48:] += 10
    jumps = seam_jumps(step, TileGrid(64, 16))
    assert jumps.ratio > 1.5 and jumps.worst_across > 5 * jumps.worst_inside
    inside = flat.copy()
    inside[:, 30:] += 10
    jumps = seam_jumps(inside, TileGrid(64, 16))
    assert jumps.ratio < 1 and jumps.worst_inside > 5 * jumps.worst_across
    with pytest.raises(InputError, match="one tile of 64 px"):
        seam_jumps(flat[:, :64, :64], TileGrid(64, 16))


def grounded(model: Any, s1: np.ndarray, opt_v2: np.ndarray, grid: TileGrid) -> SeamJumps:
    """Jumps of the change that a model makes."""
    with torch.no_grad():
        image = ground_scene(model, s1, opt_v2, timesteps=1, grid=grid, deterministic=True).image
    return seam_jumps(image - opt_v2, grid)


class LevelGrounder(BoxGrounder):
    """Lifts every second tile by 100 DN, as a model that sees whole tiles may."""

    def ground(self, s1: torch.Tensor, opt_v2: torch.Tensor, *args: Any, **settings: Any) -> Stage3Output:
        lift = 100 * (len(self.calls) % 2)
        output = super().ground(s1, opt_v2, *args, **settings)
        return dataclasses.replace(output, image=output.image + lift)


def test_steps_from_token_to_token_are_not_taken_for_seams() -> None:
    """A step every 16 px, on tile borders as anywhere: large against all lines, equal against lines of its kind."""
    image = np.tile((np.arange(192) // 16 % 2 * 10.0).astype(np.float32), (1, 192, 1))
    jumps = seam_jumps(image + image.transpose(0, 2, 1), TileGrid(64, 16))
    assert jumps.ratio > 5
    assert jumps.ratio_tokens == pytest.approx(1)


def test_blending_takes_a_step_away_that_tiles_side_by_side_show() -> None:
    sar, optical = scene_arrays(150, 150)
    butted = grounded(LevelGrounder(), sar, optical, TileGrid(64, 0))
    assert butted.ratio > 3 and butted.worst_across > 3 * butted.worst_inside
    blended = grounded(LevelGrounder(), sar, optical, TileGrid(64, 32))
    assert blended.ratio < 1.1 and blended.worst_across < 1.2 * blended.worst_inside
