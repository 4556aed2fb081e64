"""Linear layers in 8-bit integers for TerraMind's encoder and decoder on a CPU: faster, in a quarter of the memory.

Weights are rounded once, by a scale for each output channel; activations at every call, by a scale for each token, so
that a token's result depends on no other token, nor on the batch. Products of integers are exact, so what is lost is
the two roundings: of a layer's output about one part in a hundred (RMS). What that makes of an image is measured in
``docs/performance.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from axs_lib.errors import InputError

LEVELS = 127
SMALLEST = 1e-12  # of a row's largest value: nothing but zeros has a smaller one


class Int8Linear(nn.Module):
    """A linear layer of rounded weights, for inference.

    Args:
        linear: the layer whose weights are rounded; its bias is kept.
    """

    weight: Tensor  # (in, out) int8: transposed as the product wants it
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = _scale(weight)
        bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("weight", (weight / scale).round().to(torch.int8).T.contiguous())
        self.register_buffer("scale", scale.flatten())
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).float()
        scale = _scale(rows)
        rounded = (rows / scale).round_().to(torch.int8)
        out = torch._int_mm(rounded, self.weight).float().mul_(scale)
        torch.addcmul(self.bias, out, self.scale, out=out)  # fresh memory would cost more than the arithmetic
        return out.view(*x.shape[:-1], -1)

    def _save_to_state_dict(self, *args: Any) -> None:
        raise InputError(
            "weights in 8-bit integers are for inference alone; save the model before use_precision(torch.int8)"
        )


def round_linears(module: nn.Module) -> int:
    """Replace the linear layers below a module by rounded ones; returns how many."""
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
                count += 1
    return count


def _scale(rows: Tensor) -> Tensor:
    """(N, 1): what one step of each row is worth."""
    return rows.abs().amax(1, keepdim=True).clamp_min(SMALLEST) / LEVELS
