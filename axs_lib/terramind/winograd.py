"""3 x 3 convolutions with a quarter of the multiplications: Winograd's minimal filtering, for the CPU.

Most of the time of a published variant on a CPU goes into the 3 x 3 convolutions of its detokenizer. A tile of m x m
output pixels needs 9 m^2 multiplications per pair of channels done directly, and (m + 2)^2 after both the tile and the
kernel have been taken to the values of polynomials at m + 1 points and infinity (Winograd 1980; Lavin and Gray 2016,
arXiv:1509.09308): 2.25 times fewer at m = 2, 4 times fewer at m = 4. What is left are (m + 2)^2 matrix products over
the channels, which a processor does near its peak.

The usual points 0, 1, -1, 2, -2 lose a digit at m = 4. Those used here, 0, 0.7, -0.7, 1.4, -1.4, keep it: of an output
of order 1 the largest error stays under 1e-5 at 192 channels and under 2e-5 at 512; directly it is 1e-5.

Transformed kernels are kept as long as their weights and are (m + 2)^2 / 9 times their size. Gradients, lower
precision, other devices and images of few pixels take the direct way.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from axs_lib.precision import full_float32
from axs_lib.terramind.kept import KeptByWeight
from axs_lib.terramind.packed import PackedConv2d, add, shifted
from axs_lib.terramind.rooms import Rooms

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.7, -0.7, 1.4, -1.4)}
LARGE_PIXELS = 144  # from here on tiles of 4 x 4, below tiles of 2 x 2
FEW_TILES = 32  # of 4 x 4 in a batch; fewer do not pay for reading kernels of twice the size
SMALL_PIXELS = 16  # below, the kernels would be read for too few tiles
TILES_AT_ONCE = 256  # rows of the matrix products; more would only fall out of the processor's cache
MIN_CHANNELS = 192  # in and out; below, moving the tiles costs more than is saved


class Transforms(NamedTuple):
    """Two-dimensional transforms of one tile size, n = m + 2; float32.

    Attributes:
        image: (n*n, n*n), of the pixels of a tile.
        kernel: (n*n, 9), of a kernel.
        result: (m*m, n*n), back to pixels.
    """

    image: Tensor
    kernel: Tensor
    result: Tensor


@cache
def transforms(m: int) -> Transforms:
    """The transforms for tiles of m x m output pixels, by the Cook-Toom construction in float64."""
    points = POINTS[m]
    result = [[p**power for p in points] + [float(power == m - 1)] for power in range(m)]
    image, kernel = [], []
    for i, p in enumerate(points):
        others = [q for j, q in enumerate(points) if j != i]
        image.append([*_polynomial(others), 0.0])
        kernel.append([p**power / math.prod(p - q for q in others) for power in range(3)])
    image.append(_polynomial(points))
    kernel.append([0.0, 0.0, 1.0])
    square = [torch.tensor(matrix, dtype=torch.float64) for matrix in (image, kernel, result)]
    return Transforms(*(torch.kron(matrix, matrix).float() for matrix in square))


def _polynomial(roots: Any) -> list[float]:
    """Coefficients of the product of (x - root), lowest power first."""
    coefficients = [1.0]
    for root in roots:
        shifted, scaled = [0.0, *coefficients], [*(-root * c for c in coefficients), 0.0]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


@full_float32()
def transform_kernel(weight: Tensor, m: int) -> Tensor:
    """((m + 2)^2, C, K) of a weight (K, C, 3, 3)."""
    taps = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (transforms(m).kernel @ taps).view(-1, weight.shape[1], weight.shape[0])


@full_float32()
def winograd(x: Tensor, kernel: Tensor, bias: Tensor | None, m: int) -> Tensor:
    """A 3 x 3 convolution with padding 1.

    Args:
        x: (B, C, H, W) float32; fastest with channels last in memory.
        kernel: of ``transform_kernel``.
        bias: (K,) or ``None``.
        m: side of the tiles.

    Returns:
        (B, K, H, W), channels last in memory.
    """
    batch, _, height, width = x.shape
    rows, cols, channels = math.ceil(height / m), math.ceil(width / m), kernel.shape[-1]
    images = x.permute(0, 2, 3, 1)
    out = x.new_empty(batch, rows, m, cols, m, channels)
    step = max(1, TILES_AT_ONCE // (rows * cols))
    for start in range(0, batch, step):
        part = slice(start, start + step)
        _winograd(images[part], kernel, bias, m, out[part])
    return out.view(batch, rows * m, cols * m, channels)[:, :height, :width].permute(0, 3, 1, 2)


def _winograd(x: Tensor, kernel: Tensor, bias: Tensor | None, m: int, out: Tensor) -> None:
    """The same with channels last, for a few images, into ``out`` (B, rows, m, cols, m, K)."""
    batch, height, width, channels = x.shape
    rows, cols, n = out.shape[1], out.shape[3], m + 2
    tiles, wanted = batch * rows * cols, out.shape[-1]
    padded = _rooms.take(0, batch, rows * m + 2, cols * m + 2, channels)
    padded[:, 0] = 0
    padded[:, 1 + height :] = 0
    padded[:, :, 0] = 0
    padded[:, :, 1 + width :] = 0
    padded[:, 1 : 1 + height, 1 : 1 + width] = x
    image, row, col, channel = padded.stride()
    overlapping = padded.as_strided(
        (n, n, batch, rows, cols, channels), (row, col, image, m * row, m * col, channel)
    )
    matrices = transforms(m)
    pixels = _rooms.take(1, n, n, batch, rows, cols, channels).copy_(overlapping).view(n * n, -1)
    values = torch.mm(matrices.image, pixels, out=_rooms.take(2, n * n, tiles * channels))
    values = values.view(n * n, tiles, channels)
    products = torch.bmm(values, kernel, out=_rooms.take(1, n * n, tiles, wanted)).view(n * n, -1)
    results = torch.mm(matrices.result, products, out=_rooms.take(2, m * m, tiles * wanted))
    results = results.view(m, m, batch, rows, cols, wanted).permute(2, 3, 0, 4, 1, 5)
    if bias is None:
        out.copy_(results)
    else:
        torch.add(results, bias, out=out)


_rooms = Rooms()  # at most about 100 MB for the published variants
_kernels = KeptByWeight()


def kept_kernel(weight: Tensor, m: int) -> Tensor:
    """The transformed kernel of a weight, made anew where the weight has changed."""
    return _kernels.get(weight, m, lambda: transform_kernel(weight, m))


@torch.library.custom_op("axs::winograd_conv2d", mutates_args=())
def compiled_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, m: int) -> Tensor:
    """What ``torch.compile`` calls: it sees no inside, so that the kept kernel stays out of the compiled graph."""
    return winograd(x, kept_kernel(weight, m), bias, m).contiguous(memory_format=torch.channels_last)


@compiled_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, m: int) -> Tensor:
    shape = (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    return x.new_empty(shape).contiguous(memory_format=torch.channels_last)


class WinogradConv2d(PackedConv2d):
    """A 3 x 3 convolution that takes the shorter way where there is one; weights, names and results stay.

    Made of an ``nn.Conv2d`` by setting its ``__class__``.
    """

    _direct = False  # whether the shorter way is forbidden

    @classmethod
    def fits(cls, layer: nn.Module) -> bool:
        """Whether a layer's convolution is one that this class computes faster."""
        return (
            PackedConv2d.fits(layer)
            and isinstance(layer, nn.Conv2d)
            and layer.kernel_size == (3, 3)
            and layer.stride == (1, 1)
            and layer.padding == (1, 1)
            and min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS
        )

    def use_winograd(self, use: bool) -> None:
        """Allow the shorter way, or forbid it and free the transformed kernel."""
        self._direct = not use
        _kernels.forget(self.weight)

    def forward(self, x: Tensor, shift: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        m = self._tile_side(x)
        if m == 0:
            return super().forward(x, shift, onto)
        bias = shifted(self.bias, shift)
        if torch.compiler.is_compiling():
            return add(compiled_convolution(x, self.weight, bias, m), None, onto)
        out = winograd(x, kept_kernel(self.weight, m), bias, m)
        return out if onto is None else out.add_(onto)

    def _tile_side(self, x: Tensor) -> int:
        """Side of the tiles to cut the image into; 0 for the direct way."""
        pixels = x.shape[-2] * x.shape[-1]
        weight = self.weight
        direct = (
            self._direct
            or pixels < SMALL_PIXELS
            or x.device.type != "cpu"
            or x.dtype != torch.float32
            or weight.dtype != torch.float32
            or torch.is_autocast_enabled("cpu")
            or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        )
        if direct:
            return 0
        tiles = x.shape[0] * math.ceil(x.shape[-2] / 4) * math.ceil(x.shape[-1] / 4)
        return 4 if pixels >= LARGE_PIXELS and tiles >= FEW_TILES else 2
