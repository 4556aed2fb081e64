"""TerraMind's products and wide convolutions in 8-bit integers on a CPU: faster, in a quarter of the memory.

Weights are rounded once, by a scale for each output channel; activations at every call, by a scale for each token of
the encoder and decoder and for each image of the detokenizer, so that a layer's result depends on nothing else in the
batch. Products of integers are exact, so what is lost is the two roundings: of a layer's output about one part in a
hundred (RMS). The float32 layers between differ with the batch in their last digit, which tips roundings: through the
forty layers of a published variant's detokenizer an image differs with its batch by as much as by the rounding itself.
What that makes of an image is measured in ``docs/performance.md``.

A processor that multiplies bytes (``avx512_vnni`` or ``avx_vnni``) does four such products in the time of one in
float32. There oneDNN's layers are used, whose operators PyTorch registers for its own quantized models; elsewhere
linear layers take PyTorch's product of integers, and convolutions stay as they are.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from axs_lib.errors import InputError
from axs_lib.terramind.winograd import MIN_CHANNELS

LEVELS = 127
SMALLEST = 1e-12  # of a scale: nothing but zeros has a smaller one
MIDDLE = 128  # the byte that stands for 0 where values have either sign
SILU_ZERO = 16  # the byte that stands for 0 after a SiLU, which falls
SILU_LOWEST = 0.2785  # no further below 0 than this


@cache
def multiplies_bytes() -> bool:
    """Whether the processor multiplies bytes, and PyTorch here has oneDNN's layers for it and they are exact."""
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        row = torch.full((1, 64), 255, dtype=torch.uint8)
        exact = _linear(row, _packed_linear(torch.full((1, 64), LEVELS, dtype=torch.int8)), torch.ones(1))
    except (AttributeError, RuntimeError):  # another processor, or a PyTorch without them
        return False
    return float(exact) == 64 * (255 - MIDDLE) * LEVELS


class Packed:
    """Rounded weights in oneDNN's own order, which copies of a layer share: nothing changes them."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return self

    def __reduce__(self) -> Any:
        raise _not_to_be_saved()


class _Rounded(nn.Module):
    """What both layers share: no weights to save, one scale for each output channel."""

    scale: Tensor
    bias: Tensor

    def _save_to_state_dict(self, *args: Any) -> None:
        raise _not_to_be_saved()


class Int8Linear(_Rounded):
    """A linear layer of rounded weights, for inference.

    Args:
        linear: the layer whose weights are rounded; its bias is kept.
    """

    weight: Tensor  # (in, out) int8, as PyTorch's own product wants it; None where it is packed
    middle: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rounded, scale = _round_weight(linear.weight)
        bias = torch.zeros(len(scale)) if linear.bias is None else linear.bias.detach().float().clone()
        packed = multiplies_bytes()
        self.packed = Packed(_packed_linear(rounded)) if packed else None
        self.register_buffer("weight", None if packed else rounded.T.contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.register_buffer("middle", torch.full((linear.in_features,), MIDDLE + 0.5))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).float()
        if self.packed is not None:
            step = _step(rows, (1,), MIDDLE)
            out = _linear(_to_bytes(rows, step, self.middle), self.packed.weight, self.scale)
        else:
            step = rows.abs().amax(1, keepdim=True).clamp_min(SMALLEST) / LEVELS
            out = torch._int_mm((rows / step).round_().to(torch.int8), self.weight).float().mul_(self.scale)
        torch.addcmul(self.bias, out, step, out=out)  # fresh memory would cost more than the arithmetic
        return out.view(*x.shape[:-1], -1)


class Int8Conv2d(_Rounded):
    """A convolution of rounded weights, for inference; only where ``multiplies_bytes``.

    Args:
        conv: the layer whose weights are rounded, of one group and padded with zeros; its bias is kept.
        after_silu: whether its input comes from a SiLU, whose values below 0 need few of the bytes.
    """

    middle: Tensor

    def __init__(self, conv: nn.Conv2d, *, after_silu: bool = False) -> None:
        super().__init__()
        rounded, scale = _round_weight(conv.weight)
        bias = torch.zeros(len(scale)) if conv.bias is None else conv.bias.detach().float().clone()
        self.after_silu = after_silu
        self.zero = SILU_ZERO if after_silu else MIDDLE
        self.geometry = (list(conv.stride), list(conv.padding), list(conv.dilation), 1)
        self.packed = Packed(
            torch.ops.onednn.qconv_prepack(rounded, scale, 1.0, self.zero, *self.geometry, None)
        )
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias[:, None, None])
        self.register_buffer("middle", torch.full((conv.in_channels, 1, 1), self.zero + 0.5))

    @classmethod
    def fits(cls, layer: nn.Module, narrowest: int = MIN_CHANNELS) -> bool:
        """Whether a layer is a convolution that can be rounded, and wide enough to gain."""
        return (
            isinstance(layer, nn.Conv2d)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
            and min(layer.in_channels, layer.out_channels) >= narrowest
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = x.float().contiguous(memory_format=torch.channels_last)
        step = _step(x, (1, 2, 3), self.zero, SILU_LOWEST if self.after_silu else None)
        out = torch.ops.onednn.qconv2d_pointwise(
            _to_bytes(x, step, self.middle),
            1.0,
            self.zero,
            self.packed.weight,
            self.scale,
            _no_zeros(len(self.scale)),
            None,
            *self.geometry,
            *_FLOAT_OUT,
        )
        return torch.addcmul(self.bias, out, step, out=out)


def round_linears(module: nn.Module) -> int:
    """Replace the linear layers below a module by rounded ones; returns how many."""
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
                count += 1
    return count


def round_convolutions(unet: Any, narrowest: int = MIN_CHANNELS) -> int:
    """Replace the wide convolutions of terratorch's U-Net but the first and the last; returns how many.

    The first reads the noised image itself and the last writes the image: their rounding would be the image's.

    Args:
        unet: changed in place.
        narrowest: channels, in and out, from which on a convolution counts as wide.
    """
    if not multiplies_bytes():
        return 0
    kept = {*unet.input_blocks[0].modules(), *unet.out.modules()}
    count = 0
    for parent in list(unet.modules()):
        after_silu = False
        for name, child in list(parent.named_children()):
            if Int8Conv2d.fits(child, narrowest) and child not in kept:
                setattr(parent, name, Int8Conv2d(child, after_silu=after_silu))
                count += 1
            in_order = isinstance(parent, nn.Sequential)
            after_silu = in_order and (
                isinstance(child, nn.SiLU) or (after_silu and isinstance(child, nn.Dropout))
            )
    return count


# To oneDNN: nothing rounds the result, nothing follows it.
_FLOAT_OUT: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")


def _packed_linear(rounded: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(rounded, None)
    return packed


def _linear(levels: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """Rows of bytes times packed weights, (N, out) float32; in units of the rows' steps."""
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        levels, 1.0, MIDDLE, packed, scale, _no_zeros(len(scale)), None, *_FLOAT_OUT
    )
    return out


def _no_zeros(channels: int) -> Tensor:
    return torch.zeros(channels, dtype=torch.int32)  # bytes that stand for 0, of weights


def _round_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of a weight, and what a step of each output channel is worth."""
    weight = weight.detach().float()
    scale = weight.flatten(1).abs().amax(1).clamp_min(SMALLEST) / LEVELS
    return (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8), scale


def _step(x: Tensor, over: tuple[int, ...], zero: int, lowest: float | None = None) -> Tensor:
    """What a byte's step is worth so that all values fit, kept for the dimensions not in ``over``."""
    high = x.amax(over, keepdim=True) / (255 - zero)
    if lowest is not None:
        return high.clamp_min(lowest / zero)
    return torch.maximum(high, x.amin(over, keepdim=True) / -zero).clamp_min(SMALLEST)


def _to_bytes(x: Tensor, step: Tensor, middle: Tensor) -> Tensor:
    """Nearest bytes; ``middle`` is half a step above the byte that stands for 0."""
    return torch.addcmul(middle, x, step.reciprocal()).to(torch.uint8)


def _not_to_be_saved() -> InputError:
    return InputError(
        "weights in 8-bit integers are for inference alone; save the model before use_precision(torch.int8)"
    )
