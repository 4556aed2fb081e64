"""What is computed from a layer's weight and kept beside it: as long as the weight, and made anew when it changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class KeptByWeight:
    """One tensor for each weight, of the latest key asked for."""

    def __init__(self) -> None:
        self._kept = WeakTensorKeyDictionary()  # by weight: the state it was in, and what was made of it

    def get(self, weight: Tensor, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` returns for a weight and a key, called only where either has changed since.

        Args:
            weight: whose object and values count.
            key: what else the result depends on; the result of another key is let go.
            make: computes the result; called without gradients.
        """
        if weight.is_inference():  # changes of it could not be noticed
            return make()
        state = (key, weight.data_ptr(), weight._version)
        kept = self._kept.get(weight)
        if kept is None or kept[0] != state:
            with torch.no_grad():
                self._kept[weight] = kept = (state, make())
        made: Tensor = kept[1]
        return made

    def forget(self, weight: Tensor) -> None:
        """Free what is kept of a weight."""
        self._kept.pop(weight, None)

    def __contains__(self, weight: Tensor) -> bool:
        return weight in self._kept

    def __len__(self) -> int:
        return len(self._kept)
