"""Memory for what lies between the steps of a layer, used again: fresh memory can cost more than the arithmetic.

A large tensor that is freed goes back to the system, and the next one of its size is paid for page by page.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor


class Rooms(threading.local):
    """Room for float32 numbers, kept by each thread; a room is as large as the largest that was asked of it."""

    def __init__(self) -> None:
        self._rooms: dict[int, Tensor] = {}

    def take(self, room: int, *shape: int) -> Tensor:
        """A float32 tensor of the shape in one of the rooms, with whatever was left there."""
        count = math.prod(shape)
        if room not in self._rooms or self._rooms[room].numel() < count:
            with torch.inference_mode(False):  # what is kept must serve outside of inference mode, too
                self._rooms[room] = torch.empty(count)
        return self._rooms[room][:count].view(shape)
