"""Products of matrices in full float32, whatever the process allows elsewhere.

PyTorch multiplies float32 matrices in bfloat16 or TF32 where the process says that it may, and ``import terratorch``
says so (``torch.set_float32_matmul_precision("medium")``): on a processor with bfloat16 units as on a GPU. A network
bears the rounding. What subtracts nearly equal numbers does not: Winograd's transforms, blurs and what is left after
them, regressions in DN. Those run inside ``full_float32``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

FULL = "ieee"


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 matrices in float32 in this block; also a decorator.

    The setting is the process's, so other threads meet it meanwhile; afterwards it is as it was.
    """
    parts = _parts()
    before = [part.fp32_precision for part in parts]
    legacy = None if parts else torch.get_float32_matmul_precision()
    try:
        if legacy is not None:
            torch.set_float32_matmul_precision("highest")
        for part in parts:
            part.fp32_precision = FULL
        yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


def _parts() -> tuple[Any, ...]:
    """What has a setting of its own; none before torch 2.9, where there is one setting for all."""
    parts = (getattr(backend, "matmul", None) for backend in (torch.backends.mkldnn, torch.backends.cuda))
    return tuple(part for part in parts if hasattr(part, "fp32_precision"))
