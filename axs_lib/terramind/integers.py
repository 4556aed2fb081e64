"""TerraMind's products and wide convolutions in 8- or 16-bit integers on a CPU: faster than in float32.

Weights are rounded once, by a scale for each output channel; activations at every call, by a scale for each token of
the encoder and decoder and for each image of the detokenizer, so that a layer's result depends on nothing else in the
batch. Sums of products of integers are exact, so what is lost is the rounding: with 8 bits about one part in a hundred
of a layer's output (RMS), with 16 about one in ten thousand.

A number of 16 bits is written by two digits of 8, each from -128 to 127: ``256 a + b``. The product of two such numbers
is ``65536 a c + 256 (a d + b c) + b d``. The last term is left out, which is where 16 bits lose more than their
rounding; the middle one is a single convolution with both digits as channels. That is the scheme of Ozaki et al. (2012)
and Ootomo, Ozaki and Yokota (2024) for matrix products of high precision by units of low precision.

A processor that multiplies bytes (``avx512_vnni`` or ``avx_vnni``) does four such products in the time of one in
float32, one with ``amx_int8`` a dozen. There oneDNN's layers are used, whose operators PyTorch registers for its
own quantized models. Elsewhere linear layers of 8 bits take PyTorch's product of integers, and the others stay as they
are, as those of 16 bits do without ``amx_int8``: three products of bytes would take longer than float32.

The float32 layers between differ with the batch in their last digit, which tips roundings: through the forty layers of
a published detokenizer an image differs with its batch by as much as by the rounding itself. What that makes of
an image is measured in ``docs/performance.md``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from axs_lib.errors import InputError
from axs_lib.terramind.kept import KeptByWeight
from axs_lib.terramind.rooms import Rooms
from axs_lib.terramind.winograd import MIN_CHANNELS

BYTE, WORD = 127, 127 * 256 + 127  # largest magnitude of a rounded number of one and of two bytes
SMALLEST = 1e-12  # of a scale: nothing but zeros has a smaller one
MIDDLE = 128  # the byte that stands for 0 where values have either sign; of words, each of both
SILU_ZERO = 16  # the byte that stands for 0 after a SiLU, which falls
SILU_LOWEST = 0.2785  # no further below 0 than this
CACHED = 2**18  # numbers rounded at once


@cache
def multiplies_bytes() -> bool:
    """Whether the processor multiplies bytes, and PyTorch here has oneDNN's layers for it and they are exact."""
    row = torch.full((1, 64), 255, dtype=torch.uint8)
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        given = (
            row,
            torch.full((1, 64), BYTE, dtype=torch.int8),
            torch.ones(1),
            torch.zeros(1, dtype=torch.int32),
        )
        once = _byte_product(*given)
        more = _byte_product(*given, once.clone())
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


class _Rounded(nn.Module):
    """What both layers share: rounded weights, which are not saved, and the rounding of what comes in.

    Args:
        weight: (K, C, ...), rounded by a scale for each output channel.
        bias: (K,), kept, or ``None``.
        bytes_: of a number, 1 or 2.
        zero: the byte that stands for 0 in what comes in, where a number has one byte.
        lowest: of what comes in, where it is known.
    """

    leading: Tensor  # (K, C, ...) int8
    mixed: Tensor | None  # (K, 2 C, ...) int8: both digits, as they meet those of what comes in
    scale: Tensor
    zeros: Tensor  # what the weights' scales count from
    bias: Tensor
    middle: Tensor

    # Changes of weights made in inference mode could not be noticed, and they would be packed at every call.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        bytes_: int,
        zero: int = MIDDLE,
        lowest: float | None = None,
    ) -> None:
        super().__init__()
        levels, scale = _round_weight(weight, bytes_)
        leading, mixed, middle = levels.to(torch.int8), None, zero
        if bytes_ == 2:
            leading, second = _weight_digits(levels)
            # A processor lays the lower byte of a word first, and it meets the weight's leading digit.
            mixed = torch.stack([leading, second], 2).flatten(1, 2)
            middle = 257 * MIDDLE
            scale = 256 * scale  # the sums are 256 times the leading digits' products, and the mixed ones
        self.zero = zero
        self.lowest = lowest
        self.register_buffer("leading", leading)
        self.register_buffer("mixed", mixed)
        self.register_buffer("scale", scale)
        self.register_buffer("zeros", torch.zeros(len(scale), dtype=torch.int32))
        self.register_buffer("bias", torch.zeros(len(scale)) if bias is None else bias.float().clone())
        self.register_buffer("middle", torch.full((weight.shape[1],), middle + 0.5))

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes of the whole numbers nearest to x (N, ..., C) in units of a step, and the step of each N."""
        if x.device.type != "cpu":
            raise InputError(
                f"layers in integers are for a CPU and the image is on {x.device}; build the model anew, move it there,"
                " then call use_precision(torch.bfloat16)"
            )
        over = tuple(range(1, x.ndim))
        if self.mixed is None:
            step = _step(x, over, 255 - self.zero, self.zero, self.lowest)
            return _to_bytes(x, step, self.middle), step
        step = _step(x, over, WORD, WORD, self.lowest)
        return _to_digits(x, step, self.middle), step

    def _save_to_state_dict(self, *args: Any) -> None:
        raise InputError(
            "rounded weights are for inference alone; save the model before use_precision with integers"
        )


class IntegerLinear(_Rounded):
    """A linear layer of rounded weights, for inference.

    Args:
        linear: the layer whose weights are rounded, or a convolution of one tap; its bias is kept.
        bytes_: of a number: 1, or 2 where ``multiplies_bytes``.
    """

    def __init__(self, linear: nn.Linear | nn.Conv1d, bytes_: int = 1) -> None:
        super().__init__(linear.weight.flatten(1), linear.bias, bytes_)
        self.by_bytes = multiplies_bytes()

    @classmethod
    def fits(cls, layer: nn.Module, narrowest: int = MIN_CHANNELS) -> bool:
        """Whether a layer is a convolution of one tap over tokens, and wide enough to gain."""
        return (
            type(layer) is nn.Conv1d
            and layer.kernel_size == (1,)
            and min(layer.weight.shape[:2]) >= narrowest
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).float()
        if self.by_bytes:
            levels, step = self._rounded(rows)
            multiply = compiled_product if torch.compiler.is_compiling() else _product
            out = multiply(levels, self.leading, self.mixed, self.scale, self.zeros)
        else:
            step = rows.abs().amax(1, keepdim=True).clamp_min(SMALLEST) / BYTE
            transposed = _packed.get(self.leading, None, lambda: self.leading.T.contiguous())
            out = torch._int_mm((rows / step).round_().to(torch.int8), transposed).float().mul_(self.scale)
        torch.addcmul(self.bias, out, step, out=out)  # fresh memory would cost more than the arithmetic
        return out.view(*x.shape[:-1], -1)


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
        super().__init__(conv.weight, conv.bias, bytes_, zero, lowest)
        self.after_silu = after_silu
        self.geometry = [*conv.stride, *conv.padding, *conv.dilation]

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
        levels, step = self._rounded(x.float().permute(0, 2, 3, 1).contiguous())
        convolve = compiled_convolution if torch.compiler.is_compiling() else _convolution
        out = convolve(levels, self.leading, self.mixed, self.scale, self.zeros, self.zero, self.geometry)
        bias = self.bias if shift is None else self.bias + shift
        image = torch.addcmul(bias, out, step, out=out).permute(0, 3, 1, 2)
        return image if onto is None else image.add_(onto)


def round_linears(module: nn.Module, bytes_: int = 1) -> int:
    """Replace the linear layers below a module by rounded ones; returns how many."""
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, IntegerLinear(child, bytes_))
                count += 1
    return count


def round_convolutions(
    unet: Any, bytes_: int = 1, narrowest: int = MIN_CHANNELS, *, finest_only: bool = False
) -> int:
    """Replace the wide convolutions of terratorch's U-Net and the projections of its attention; returns how many.

    The last convolution writes the image, and its rounding would be the image's. The first reads the noised image and
    is left alone with one byte a number.

    Args:
        unet: changed in place.
        bytes_: of a number, 1 or 2.
        narrowest: channels, in and out, from which on a convolution counts as wide.
        finest_only: only those of the finest grid (``finest_blocks``).
    """
    if not multiplies_bytes():
        return 0
    kept = {*unet.out.modules(), *(unet.input_blocks[0].modules() if bytes_ == 1 else ())}
    count = 0
    for parent in [m for part in (finest_blocks(unet) if finest_only else [unet]) for m in part.modules()]:
        after_silu = False
        for name, child in list(parent.named_children()):
            if IntegerConv2d.fits(child, narrowest) and child not in kept:
                setattr(parent, name, IntegerConv2d(child, bytes_, after_silu=after_silu))
                count += 1
            elif IntegerLinear.fits(child, narrowest):
                setattr(parent, name, IntegerLinear(child, bytes_))
                count += 1
            in_order = isinstance(parent, nn.Sequential)
            after_silu = in_order and (
                isinstance(child, nn.SiLU) or (after_silu and isinstance(child, nn.Dropout))
            )
    return count


def finest_blocks(unet: Any) -> list[nn.Module]:
    """The blocks of terratorch's U-Net that read or write its finest grid, where nine tenths of bfloat16's error arise.

    They are those up to the first downsampling and those after the last upsampling, two fifths of the work.
    """
    from terratorch.models.backbones.terramind.tokenizer.models.unet.unet import Downsample, Upsample

    def holding(blocks: nn.ModuleList, kind: type) -> list[int]:
        return [
            i for i, block in enumerate(blocks) if any(isinstance(part, kind) for part in block.modules())
        ]

    down, up = holding(unet.input_blocks, Downsample), holding(unet.output_blocks, Upsample)
    return [
        *unet.input_blocks[: down[0] + 1 if down else None],
        *unet.output_blocks[up[-1] + 1 if up else 0 :],
    ]


# oneDNN's operators, on weights in its own order, which are kept for the latest size of input.

_packed = KeptByWeight()
_rooms = Rooms()
# Nothing rounds the result and nothing follows it; or it is added to what is there.
_FLOAT_OUT: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
_FLOAT_ONTO: tuple[Any, ...] = (1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "")


def _product(levels: Tensor, leading: Tensor, mixed: Tensor | None, scale: Tensor, zeros: Tensor) -> Tensor:
    """Rows of rounded numbers (N, C or 2 C) times rounded weights, (N, K) float32, in units of the rows' steps."""
    if mixed is None:
        return _byte_product(levels, leading, scale, zeros)
    sums = _byte_product(levels, mixed, scale, zeros)
    return _byte_product(levels[:, 1::2].contiguous(), leading, scale, zeros, sums)


def _byte_product(
    levels: Tensor, weight: Tensor, scale: Tensor, zeros: Tensor, onto: Tensor | None = None
) -> Tensor:
    """Rows of bytes times a weight; with ``onto``, 256 times that are added to it."""
    packed = _packed.get(weight, levels.shape, lambda: _packed_matrix(weight, levels))
    op = torch.ops.onednn.qlinear_pointwise
    if onto is None:
        out: Tensor = op(levels, 1.0, MIDDLE, packed, scale, zeros, None, *_FLOAT_OUT)
    else:
        out = op.binary(levels, 256.0, MIDDLE, packed, scale, zeros, onto, None, *_FLOAT_ONTO)
    return out


def _packed_matrix(weight: Tensor, levels: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, list(levels.shape))
    return packed


def _convolution(
    levels: Tensor,
    leading: Tensor,
    mixed: Tensor | None,
    scale: Tensor,
    zeros: Tensor,
    zero: int,
    geometry: list[int],
) -> Tensor:
    """Images of rounded numbers (N, H, W, C or 2 C), convolved with rounded weights; (N, H', W', K) float32."""
    if mixed is None:
        return _byte_convolution(levels, leading, scale, zeros, zero, geometry)
    sums = _byte_convolution(levels, mixed, scale, zeros, zero, geometry)
    high = levels[..., 1::2].contiguous()
    return _byte_convolution(high, leading, scale, zeros, zero, geometry, sums)


def _byte_convolution(
    levels: Tensor,
    weight: Tensor,
    scale: Tensor,
    zeros: Tensor,
    zero: int,
    geometry: list[int],
    onto: Tensor | None = None,
) -> Tensor:
    """Images of bytes convolved with a weight; with ``onto``, 256 times that are added to it."""
    image, place = levels.permute(0, 3, 1, 2), (geometry[:2], geometry[2:4], geometry[4:], 1)
    packed = _packed.get(weight, levels.shape, lambda: _packed_kernel(weight, image, zero, place))
    op = torch.ops.onednn.qconv2d_pointwise
    if onto is None:
        out = op(image, 1.0, zero, packed, scale, zeros, None, *place, *_FLOAT_OUT)
        return out.permute(0, 2, 3, 1)
    sums = onto.permute(0, 3, 1, 2)
    op.binary(image, 256.0, zero, packed, scale, zeros, sums, None, *place, *_FLOAT_ONTO)
    return onto


def _packed_kernel(weight: Tensor, image: Tensor, zero: int, place: tuple[Any, ...]) -> Tensor:
    ones = torch.ones(len(weight))
    packed: Tensor = torch.ops.onednn.qconv_prepack(weight, ones, 1.0, zero, *place, list(image.shape))
    return packed


# What torch.compile calls: it sees no inside, so that packed weights stay out of the compiled graph.


@torch.library.custom_op("axs::integer_product", mutates_args=())
def compiled_product(
    levels: Tensor, leading: Tensor, mixed: Tensor | None, scale: Tensor, zeros: Tensor
) -> Tensor:
    """``_product``."""
    return _product(levels, leading, mixed, scale, zeros)


@compiled_product.register_fake
def _(levels: Tensor, leading: Tensor, mixed: Tensor | None, scale: Tensor, zeros: Tensor) -> Tensor:
    return scale.new_empty(len(levels), len(leading))


@torch.library.custom_op("axs::integer_convolution", mutates_args=())
def compiled_convolution(
    levels: Tensor,
    leading: Tensor,
    mixed: Tensor | None,
    scale: Tensor,
    zeros: Tensor,
    zero: int,
    geometry: list[int],
) -> Tensor:
    """``_convolution``."""
    return _convolution(levels, leading, mixed, scale, zeros, zero, geometry).contiguous()


@compiled_convolution.register_fake
def _(
    levels: Tensor,
    leading: Tensor,
    mixed: Tensor | None,
    scale: Tensor,
    zeros: Tensor,
    zero: int,
    geometry: list[int],
) -> Tensor:
    sides = [
        (levels.shape[1 + i] + 2 * geometry[2 + i] - geometry[4 + i] * (leading.shape[2 + i] - 1) - 1)
        // geometry[i]
        + 1
        for i in range(2)
    ]
    return scale.new_empty(len(levels), *sides, len(leading))


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
    return _shifted(x, step, middle, torch.uint8)


def _to_digits(x: Tensor, step: Tensor, middle: Tensor) -> Tensor:
    """Both bytes of the nearest words, (N, ..., 2 C) uint8: of each channel the lower one first."""
    return _shifted(x, step, middle, torch.uint16).view(torch.uint8)


def _shifted(x: Tensor, step: Tensor, middle: Tensor, dtype: torch.dtype) -> Tensor:
    """``x / step + middle``, rounded down."""
    if torch.compiler.is_compiling():
        return torch.addcmul(middle, x, step.reciprocal()).to(dtype)
    out = torch.empty(x.shape, dtype=dtype)
    at_once = max(
        1, CACHED // x[0].numel()
    )  # of a few N, so that what lies between stays in the processor's cache
    for part in zip(x.split(at_once), step.reciprocal().split(at_once), out.split(at_once), strict=True):
        numbers, factor, rounded = part
        rounded.copy_(torch.addcmul(middle, numbers, factor, out=_rooms.take(0, *numbers.shape)))
    return out
