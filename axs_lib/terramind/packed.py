"""Convolutions and products in bfloat16 on a CPU whose weights lie as the processor's units want them.

oneDNN brings a weight into an order of its own before it multiplies, at every call; for an image of few pixels that
costs more than the multiplication. Here the weight is brought into that order once for a size of input and kept beside
it (``kept.py``). PyTorch registers the operators for what its compiler makes of a frozen model; where they are missing
or wrong, with gradients and in any other precision the usual way is taken.

In and out go the tensors of ``nn.Conv2d`` and ``nn.Linear``; weights, names and results stay.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.terramind.kept import KeptByWeight

_packed = KeptByWeight()


@torch.compiler.assume_constant_result
def packs() -> bool:
    """Whether PyTorch here has oneDNN's packed layers for bfloat16 and they are right."""
    return _probe()


@cache
def _probe() -> bool:
    ones = torch.ones(1, 32, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    kernel, matrix = (torch.ones(32, 32, *rest, dtype=torch.bfloat16) for rest in ((3, 3), ()))
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        image = _convolution(ones, _packed_kernel(kernel, ones, [1, 1], [1, 1]), None, ones, [1, 1], [1, 1])
        product = _linear(matrix, _packed_matrix(matrix, 32), None)
    except (AttributeError, RuntimeError):  # another processor, or a PyTorch without them
        return False
    return float(image[0, 0, 0, 0]) == 4 * 32 + 1 and float(product[0, 0]) == 32


def can_pack(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer's packed way may be taken."""
    return (
        weight.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and packs()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, by a packed weight where that may be.

    Args:
        x: (..., in).
        weight: (out, in), or (out, in, 1, ...) of a pointwise convolution: the parameter itself, to keep track of.
        bias: (out,) or ``None``.
    """
    if can_pack(x, weight):
        return (
            compiled_linear(x, weight, bias) if torch.compiler.is_compiling() else _by_packed(x, weight, bias)
        )
    return F.linear(x, weight.flatten(1), bias)


class PackedLinear(nn.Linear):
    """A linear layer by a packed weight. Made of an ``nn.Linear`` by setting its ``__class__``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class PackedConv2d(nn.Conv2d):
    """A convolution by a packed weight. Made of an ``nn.Conv2d`` by setting its ``__class__``."""

    @classmethod
    def fits(cls, layer: nn.Module) -> bool:
        """Whether a layer is a plain convolution: of one group, not dilated, padded with zeros."""
        return (
            type(layer) is nn.Conv2d
            and layer.groups == 1
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )

    def forward(self, x: Tensor, shift: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        """The convolution, and what else is to be added to its result.

        Args:
            x: (B, C, H, W).
            shift: (K,), added to every pixel.
            onto: (B, K, H', W').
        """
        if not can_pack(x, self.weight):
            return add(super().forward(x), shift, onto)
        convolve = compiled_convolution if torch.compiler.is_compiling() else _by_packed_kernel
        bias = shifted(self.bias, shift)
        return convolve(x, self.weight, bias, onto, list(self.stride), list(self.padding))  # type: ignore[arg-type]


def shifted(bias: Tensor | None, shift: Tensor | None) -> Tensor | None:
    """The sum of a layer's bias (K,) and a shift (K,), in float32 where there are two."""
    if bias is None or shift is None:
        return shift if bias is None else bias
    return bias.float() + shift.float()


def add(image: Tensor, shift: Tensor | None, onto: Tensor | None) -> Tensor:
    """An image (B, K, H, W) with a shift (K,) and another image, where they are given."""
    if shift is not None:
        image = image + shift[:, None, None].to(image.dtype)
    return image if onto is None else onto + image


def _by_packed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.numel() // x.shape[-1]
    packed = _packed.get(weight, rows, lambda: _packed_matrix(weight.flatten(1), rows))
    return _linear(x.to(weight.dtype), packed, bias)


def _by_packed_kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    x = x.to(weight.dtype).contiguous(memory_format=torch.channels_last)
    packed = _packed.get(weight, x.shape, lambda: _packed_kernel(weight, x, stride, padding))
    return _convolution(x, packed, bias, onto, stride, padding)


# What torch.compile calls: it sees no inside, so that packed weights stay out of the compiled graph.


@torch.library.custom_op("axs::packed_linear", mutates_args=())
def compiled_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``linear`` by a packed weight."""
    return _by_packed(x, weight, bias)


@compiled_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=weight.dtype)


@torch.library.custom_op("axs::packed_conv2d", mutates_args=())
def compiled_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    """A convolution by a packed weight."""
    return _by_packed_kernel(x, weight, bias, onto, stride, padding)


@compiled_convolution.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    sides = [
        (side + 2 * pad - kernel) // step + 1
        for side, pad, kernel, step in zip(x.shape[2:], padding, weight.shape[2:], stride, strict=True)
    ]
    out = x.new_empty((x.shape[0], weight.shape[0], *sides), dtype=weight.dtype)
    return out.contiguous(memory_format=torch.channels_last)


# oneDNN's operators.


def _packed_matrix(weight: Tensor, rows: int) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    return packed


def _linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


def _packed_kernel(weight: Tensor, x: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, padding, stride, [1, 1], 1, list(x.shape)
    )
    return packed


def _convolution(
    x: Tensor, packed: Tensor, bias: Tensor | None, onto: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    geometry = (padding, stride, [1, 1], 1)
    convolve = torch.ops.mkldnn._convolution_pointwise
    if onto is None:
        out: Tensor = convolve(x, packed, bias, *geometry, "none", [], "")
    else:
        onto = onto.to(x.dtype).contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else bias.to(x.dtype)  # this operator wants no other
        out = convolve.binary(x, onto, packed, bias, *geometry, "add", 1.0, None, [], "")
    return out
