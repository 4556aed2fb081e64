"""Random weights that leave everybody's random state alone.

Modules draw their first weights from PyTorch's global generator, which belongs to the user's program and to all its
threads. Inside ``fresh_weights`` they draw from a generator of their own instead. Nothing global is changed, not even
for a moment: the redirection holds for the thread that asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

RANDOM = frozenset({"uniform_", "normal_", "kaiming_uniform_", "rand", "randn"})


class OwnGenerator(TorchFunctionMode):
    """Let random functions that are given no generator draw from this one.

    Args:
        generator: on the CPU, where modules are built.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func.__name__ in RANDOM and options.get("generator") is None:
            options["generator"] = self.generator
        return func(*args, **options)


@contextmanager
def fresh_weights() -> Iterator[None]:
    """Build modules with random weights on the CPU; also a decorator.

    The weights follow the seed of the last ``torch.manual_seed`` and are the same at every call.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())
    with torch.device("cpu"), OwnGenerator(generator):
        yield
