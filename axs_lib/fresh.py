"""Random weights that leave everybody's random state alone.

Modules draw from PyTorch's global generator, which all threads share; here from one of their own, in this thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Layer = TypeVar("Layer", bound=nn.Module)

RANDOM = frozenset({"uniform_", "normal_", "kaiming_uniform_", "rand", "randn"})


class OwnGenerator(TorchFunctionMode):
    """Let random functions that are given no generator draw from this one, on the CPU, where modules are built."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func.__name__ in RANDOM and options.get("generator") is None:
            options["generator"] = self.generator
        return func(*args, **options)


@contextmanager
def fresh_weights() -> Iterator[None]:
    """Build modules on the CPU with weights that follow the last ``torch.manual_seed`` alone; also a decorator."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    with torch.device("cpu"), OwnGenerator(generator):
        yield


def zeroed(layer: Layer) -> Layer:
    """The layer with all weights 0: a fresh block changes nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
