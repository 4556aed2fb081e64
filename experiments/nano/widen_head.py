"""Bring the weights of an earlier grounding head (20 + 5 input channels, no tile context) to today's shape.

    python experiments/nano/widen_head.py OLD.safetensors NEW.safetensors

What the earlier head lacked starts at zero, so that the result computes the same. OLD holds ``head.*`` (nano's file up to
release 0.2, or a corrector's).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from axs_lib.grounding.corrector import GroundingCorrector
from axs_lib.grounding.head import GroundingHead
from axs_lib.terramind.weights import read_metadata, read_state, write_state

FULL, HALF = 4 * 20, 5  # channels of the earlier stem: folded full resolution, half resolution
NEW_HALF = 9


def widen(old: Path, new: Path) -> None:
    """Write the widened weights."""
    state = {name: value for name, value in read_state(old).items() if name.startswith("head.")}
    own = GroundingCorrector(GroundingHead()).state_dict()
    stem = state["head.body.stem.weight"]
    wider = torch.zeros_like(own["head.body.stem.weight"])
    wider[:, :FULL] = stem[:, :FULL]
    wider[:, -NEW_HALF : -NEW_HALF + HALF] = stem[:, FULL:]
    write_state(new, own | state | {"head.body.stem.weight": wider}, read_metadata(old), half=True, overwrite=True)


if __name__ == "__main__":
    widen(Path(sys.argv[1]), Path(sys.argv[2]))
