"""TerraMind's products and wide convolutions in 8- or 16-bit integers on a CPU: faster than in float32.

Weights are rounded once, by a scale for each output channel; activations at every call, by a scale for each token of
the encoder and decoder and for each image of the detokenizer, so that a layer's result depends on nothing else in the
batch. Sums of products of integers are exact, so what is lost is the rounding: with 8 bits about one part in a hundred
of a layer's output (RMS), with 16 about one in five thousand.

A number of 16 bits is written by two digits of 8, each from -128 to 127: ``256 a + b``. The product of two such numbers
is ``65536 a c + 256 (a d + b c) + b d``. The last term is left out, which is where 16 bits lose more than their
rounding; the middle one is a single convolution with both digits as channels. That is the scheme of Ozaki et al. (2012)
and Ootomo, Ozaki and Yokota (2024) for matrix products of high precision by units of low precision.

A processor that multiplies bytes (``avx512_vnni`` or ``avx_vnni``) does four such products in the time of one in
float32, one with ``amx_int8`` up to sixteen. There oneDNN's layers are used, whose operators PyTorch registers for its
own quantized models. Elsewhere linear layers of 8 bits take PyTorch's product of integers, and the others stay as they
are, as those of 16 bits do without ``amx_int8``: three products of bytes would take longer than float32.

The float32 layers between differ with the batch in their last digit, which tips roundings: through the forty layers of
a published detokenizer an image differs with its batch by as much as by the rounding itself. What that makes of
an image is measured in ``docs/performance.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from axs_lib.errors import InputError
from axs_lib.terramind.winograd import MIN_CHANNELS

BYTE, WORD = 127, 127 * 256 + 127  # largest magnitude of a rounded number of one and of two bytes
SMALLEST = 1e-12  # of a scale: nothing but zeros has a smaller one
MIDDLE = 128  # the byte that stands for 0 where values have either sign; of words, each of both
SILU_ZERO = 16  # the byte that stands for 0 after a SiLU, which falls
SILU_LOWEST = 0.2785  # no further below 0 than this

Pack = Callable[
    [Tensor, "tuple[int, ...]"], Tensor
]  # (weight, shape of the input) -> the weight as oneDNN wants it


@cache
def multiplies_bytes() -> bool:
    """Whether the processor multiplies bytes, and PyTorch here has oneDNN's layers for it and they are exact."""
    row = torch.full((1, 64), 255, dtype=torch.uint8)
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        packed = _pack_matrix(torch.full((1, 64), BYTE, dtype=torch.int8), (1, 64))
        once = _linear(row, packed, torch.ones(1))
        more = _linear(row, packed, torch.ones(1), onto=once.clone())
    except (AttributeError, RuntimeError):  # another processor, or a PyTorch without them
        return False
    expected = 64 * (255 - MIDDLE) * BYTE
    return float(once) == expected and float(more) == (256 + 1) * expected


@cache
def gains_by_words() -> bool:
    """Whether 16-bit integers are faster than float32: the processor multiplies matrices of bytes."""
    try:
        return multiplies_bytes() and torch.cpu._is_amx_tile_supported()
    except AttributeError:
        return False


class Digits:
    """8-bit weights in the order that oneDNN's layers want. Copies of a layer share them: nothing changes them.

    Args:
        weight: (K, C, ...) int8.
        pack: brings it into that order.
    """

    def __init__(self, weight: Tensor, pack: Pack) -> None:
        self._weight = weight
        self._pack = pack
        self._latest: tuple[tuple[int, ...], Tensor] | None = None

    @torch.compiler.assume_constant_result
    def packed(self, shape: tuple[int, ...]) -> Tensor:
        """The weight for inputs of a shape; what was packed for another one is let go."""
        latest = self._latest
        if latest is None or latest[0] != shape:
            self._latest = latest = (shape, self._pack(self._weight, shape))
        return latest[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> Digits:
        return self

    def __reduce__(self) -> Any:
        raise _not_to_be_saved()


class _Rounded(nn.Module):
    """What both layers share: rounded weights, which are not saved, and sums of products of rounded numbers.

    Args:
        weight: (K, C, ...), rounded by a scale for each output channel.
        bias: (K,), kept, or ``None``.
        bytes_: of a number, 1 or 2.
        pack: of ``Digits``.
        zero: the byte that stands for 0 in what comes in, where a number has one byte.
        lowest: of what comes in, where it is known.
    """

    scale: Tensor
    bias: Tensor
    middle: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        bytes_: int,
        pack: Pack,
        zero: int = MIDDLE,
        lowest: float | None = None,
    ) -> None:
        super().__init__()
        levels, scale = _round_weight(weight, bytes_)
        first, second, middle = levels.to(torch.int8), None, zero
        if bytes_ == 2:
            first, second = _weight_digits(levels)
            middle = 257 * MIDDLE
            scale = (
                256 * scale
            )  # what is summed is 256 times the leading digits' products, and the mixed ones
        self.zero = zero
        self.lowest = lowest
        self.leading = Digits(first, pack)
        # A processor lays the lower byte of a word first, and it meets the weight's leading digit.
        self.mixed = None if second is None else Digits(torch.stack([first, second], 2).flatten(1, 2), pack)
        self.register_buffer("scale", scale)
        self.register_buffer(
            "bias", torch.zeros(len(scale)) if bias is None else bias.detach().float().clone()
        )
        self.register_buffer("middle", torch.full((weight.shape[1],), middle + 0.5))

    def _sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of products of x (N, ..., C) and the weights, (N, ..., K), in steps, and each N's step."""
        over = tuple(range(1, x.ndim))
        if self.mixed is None:
            step = _step(x, over, 255 - self.zero, self.zero, self.lowest)
            return self._multiply(_to_bytes(x, step, self.middle), self.leading), step
        step = _step(x, over, WORD, WORD, self.lowest)
        digits = _to_digits(x, step, self.middle)
        sums = self._multiply(digits, self.mixed)
        return self._multiply(digits[..., 1::2].contiguous(), self.leading, onto=sums), step

    def _multiply(self, levels: Tensor, weight: Digits, onto: Tensor | None = None) -> Tensor:
        """Bytes (N, ..., C) times a weight, (N, ..., K); with ``onto``, that and 256 times the product."""
        raise AssertionError("each layer has its own")

    def _save_to_state_dict(self, *args: Any) -> None:
        raise _not_to_be_saved()


class IntegerLinear(_Rounded):
    """A linear layer of rounded weights, for inference.

    Args:
        linear: the layer whose weights are rounded, or a convolution of one tap; its bias is kept.
        bytes_: of a number: 1, or 2 where ``multiplies_bytes``.
    """

    def __init__(self, linear: nn.Linear | nn.Conv1d, bytes_: int = 1) -> None:
        by_bytes = multiplies_bytes()
        pack = _pack_matrix if by_bytes else _as_pytorch_wants
        super().__init__(linear.weight.flatten(1), linear.bias, bytes_, pack)
        self._by_bytes = by_bytes

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).float()
        if self._by_bytes:
            out, step = self._sums(rows)
        else:
            step = rows.abs().amax(1, keepdim=True).clamp_min(SMALLEST) / BYTE
            levels = (rows / step).round_().to(torch.int8)
            out = torch._int_mm(levels, self.leading.packed(())).float().mul_(self.scale)
        torch.addcmul(self.bias, out, step, out=out)  # fresh memory would cost more than the arithmetic
        return out.view(*x.shape[:-1], -1)

    def _multiply(self, levels: Tensor, weight: Digits, onto: Tensor | None = None) -> Tensor:
        return _linear(levels, weight.packed(tuple(levels.shape)), self.scale, onto)


class IntegerConv2d(_Rounded):
    """A convolution of rounded weights, for inference; only where ``multiplies_bytes``.

    Args:
        conv: the layer whose weights are rounded, of one group and padded with zeros; its bias is kept.
        bytes_: of a number, 1 or 2.
        after_silu: whether its input comes from a SiLU, whose values below 0 need few levels of a byte.
    """

    def __init__(self, conv: nn.Conv2d, bytes_: int = 1, *, after_silu: bool = False) -> None:
        zero = SILU_ZERO if after_silu and bytes_ == 1 else MIDDLE
        lowest = -SILU_LOWEST if after_silu else None
        geometry = (list(conv.stride), list(conv.padding), list(conv.dilation), 1)
        pack = partial(_pack_kernel, zero=zero, geometry=geometry)
        super().__init__(conv.weight, conv.bias, bytes_, pack, zero, lowest)
        self.after_silu = after_silu
        self.geometry = geometry

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
    def forward(self, x: Tensor, shift: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        """As ``PackedConv2d.forward``."""
        out, step = self._sums(x.float().permute(0, 2, 3, 1).contiguous())
        bias = self.bias if shift is None else self.bias + shift
        image = torch.addcmul(bias, out, step, out=out).permute(0, 3, 1, 2)
        return image if onto is None else image.add_(onto)

    def _multiply(self, levels: Tensor, weight: Digits, onto: Tensor | None = None) -> Tensor:
        image = levels.permute(0, 3, 1, 2)
        packed = weight.packed(tuple(image.shape))
        given = (packed, self.scale, _no_zeros(len(self.scale)))
        if onto is None:
            out = torch.ops.onednn.qconv2d_pointwise(
                image, 1.0, self.zero, *given, None, *self.geometry, *_FLOAT_OUT
            )
            return out.permute(0, 2, 3, 1)
        torch.ops.onednn.qconv2d_pointwise.binary(
            image, 256.0, self.zero, *given, onto.permute(0, 3, 1, 2), None, *self.geometry, *_FLOAT_ONTO
        )
        return onto


def round_linears(module: nn.Module, bytes_: int = 1) -> int:
    """Replace the linear layers below a module by rounded ones; returns how many."""
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, IntegerLinear(child, bytes_))
                count += 1
    return count


def round_convolutions(unet: Any, bytes_: int = 1, narrowest: int = MIN_CHANNELS) -> int:
    """Replace the wide convolutions of terratorch's U-Net but the first and the last; returns how many.

    The first reads the noised image itself and the last writes the image: their rounding would be the image's. The
    projections of its attention, convolutions of one tap, are replaced too.

    Args:
        unet: changed in place.
        bytes_: of a number, 1 or 2.
        narrowest: channels, in and out, from which on a convolution counts as wide.
    """
    if not multiplies_bytes():
        return 0
    kept = {*unet.input_blocks[0].modules(), *unet.out.modules()}
    count = 0
    for parent in list(unet.modules()):
        after_silu = False
        for name, child in list(parent.named_children()):
            if IntegerConv2d.fits(child, narrowest) and child not in kept:
                setattr(parent, name, IntegerConv2d(child, bytes_, after_silu=after_silu))
                count += 1
            elif (
                type(child) is nn.Conv1d
                and child.kernel_size == (1,)
                and min(child.weight.shape[:2]) >= narrowest
            ):
                setattr(parent, name, IntegerLinear(child, bytes_))
                count += 1
            in_order = isinstance(parent, nn.Sequential)
            after_silu = in_order and (
                isinstance(child, nn.SiLU) or (after_silu and isinstance(child, nn.Dropout))
            )
    return count


# To oneDNN: nothing rounds the result, nothing follows it; or it is added to what is there.
_FLOAT_OUT: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
_FLOAT_ONTO: tuple[Any, ...] = (1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "")


def _pack_matrix(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, list(shape))
    return packed


def _as_pytorch_wants(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    return weight.T.contiguous()


def _pack_kernel(weight: Tensor, shape: tuple[int, ...], *, zero: int, geometry: tuple[Any, ...]) -> Tensor:
    scale = torch.ones(len(weight))
    packed: Tensor = torch.ops.onednn.qconv_prepack(weight, scale, 1.0, zero, *geometry, list(shape))
    return packed


def _linear(levels: Tensor, packed: Tensor, scale: Tensor, onto: Tensor | None = None) -> Tensor:
    """Rows of bytes times packed weights, (N, K) float32; with ``onto``, that and 256 times the product."""
    given = (levels, 256.0 if onto is not None else 1.0, MIDDLE, packed, scale, _no_zeros(len(scale)))
    if onto is None:
        out: Tensor = torch.ops.onednn.qlinear_pointwise(*given, None, *_FLOAT_OUT)
    else:
        out = torch.ops.onednn.qlinear_pointwise.binary(*given, onto, None, *_FLOAT_ONTO)
    return out


def _no_zeros(channels: int) -> Tensor:
    return torch.zeros(channels, dtype=torch.int32)  # bytes that stand for 0, of weights


def _round_weight(weight: Tensor, bytes_: int) -> tuple[Tensor, Tensor]:
    """Whole numbers nearest to a weight, int32, and what a step of each output channel is worth."""
    weight = weight.detach().float()
    largest = BYTE if bytes_ == 1 else WORD
    scale = weight.flatten(1).abs().amax(1).clamp_min(SMALLEST) / largest
    return (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round().to(torch.int32), scale


def _weight_digits(levels: Tensor) -> tuple[Tensor, Tensor]:
    """The leading and the second digit of two-byte numbers, int8."""
    leading = (levels + 128) >> 8
    return leading.to(torch.int8), (levels - 256 * leading).to(torch.int8)


def _step(x: Tensor, over: tuple[int, ...], above: int, below: int, lowest: float | None = None) -> Tensor:
    """What a step is worth so that all values fit into the levels above and below 0; one for each N."""
    high = x.amax(over, keepdim=True) / above
    if lowest is not None:
        return high.clamp_min(-lowest / below)
    return torch.maximum(high, x.amin(over, keepdim=True) / -below).clamp_min(SMALLEST)


def _to_bytes(x: Tensor, step: Tensor, middle: Tensor) -> Tensor:
    """Nearest bytes; ``middle`` is half a step above what stands for 0."""
    return torch.addcmul(middle, x, step.reciprocal()).to(torch.uint8)


def _to_digits(x: Tensor, step: Tensor, middle: Tensor) -> Tensor:
    """Both bytes of the nearest words, (N, ..., 2 C) uint8: of each channel the lower one first."""
    return torch.addcmul(middle, x, step.reciprocal()).to(torch.uint16).view(torch.uint8)


def _not_to_be_saved() -> InputError:
    return InputError(
        "rounded weights are for inference alone; save the model before use_precision with integers"
    )
