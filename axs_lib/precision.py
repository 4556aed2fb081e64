"""Products of small matrices in float64, which no setting rounds.

PyTorch multiplies float32 matrices in bfloat16 or TF32 where the process or autocast says so. A network bears that;
filters and regressions in DN, which subtract nearly equal numbers, do not.
"""

from __future__ import annotations

from torch import Tensor


def exact_matmul(first: Tensor, second: Tensor) -> Tensor:
    """``first @ second``, computed in float64 and returned in the second's own type."""
    return (first.double() @ second.double()).to(second.dtype)
