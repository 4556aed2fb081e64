"""The eight orientations of a square tile, over which an ensemble is averaged: a network errs differently in each."""

from __future__ import annotations

from torch import Tensor

# Quarter turns and whether to mirror, so that few members already see what is most different.
ORIENTATIONS = ((0, False), (2, False), (0, True), (2, True), (1, False), (3, False), (1, True), (3, True))


def turn(image: Tensor, orientation: int) -> Tensor:
    """(..., H, H) in the given orientation, 0 to 7 and on from the first; 0 is the image itself."""
    quarters, mirror = ORIENTATIONS[orientation % len(ORIENTATIONS)]
    turned = image.rot90(quarters, (-2, -1)) if quarters else image
    return turned.flip(-1) if mirror else turned


def turn_back(image: Tensor, orientation: int) -> Tensor:
    """What ``turn`` was given."""
    quarters, mirror = ORIENTATIONS[orientation % len(ORIENTATIONS)]
    straight = image.flip(-1) if mirror else image
    return straight.rot90(-quarters, (-2, -1)) if quarters else straight
