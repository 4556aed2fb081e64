"""3 x 3 convolutions with a quarter to a half of the multiplications: Winograd's minimal filtering, for the CPU.

A tile of m x m output pixels needs 9 m^2 multiplications per pair of channels done directly, and (m + 2)^2 after tile
and kernel were taken to the values of polynomials at m + 1 points and infinity (Winograd 1980; Lavin and Gray 2016,
arXiv:1509.09308). With the points used here the largest error of an output of order 1 stays under 2e-5 in float32. In
bfloat16 the transforms of 2 x 2 tiles, which only add, double a layer's rounding; those of 4 x 4 make it five times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from numpy.polynomial.polynomial import polyfromroots
from torch import Tensor, nn
from torch.nn import functional as F

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.7, -0.7, 1.4, -1.4)}
LARGE_PIXELS = 144  # from here on tiles of 4 x 4, below tiles of 2 x 2
FEW_TILES = 32  # of 4 x 4 in a batch; fewer do not pay for reading kernels of twice the size
SMALL_PIXELS = 16  # below, the kernels would be read for too few tiles
TILES_AT_ONCE = 256  # rows of the matrix products; more would only fall out of the processor's cache
PROBE = 20  # side of a product that PyTorch would round; it never rounds those of up to 16
MIN_CHANNELS = 192  # in and out; below, moving the tiles costs more than is saved
MIN_CHANNELS_BFLOAT16 = 512


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution with padding 1, by Winograd's filtering where that is faster and exact, else the direct one.

    Parameters, names and results are those of ``nn.Conv2d``. The transformed kernel, (m + 2)^2 / 9 times the size of
    the weight, is kept and neither saved nor copied. It is made anew when the weight's place in memory or checksum
    changes; within ``checked_once`` that is looked at once.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)
        self.direct = False  # whether the direct convolution is always taken
        self.checked: bool | None = None  # within ``checked_once``, whether this layer has been
        self._kept: tuple[Any, Tensor] | None = None  # what the transformed kernel was made of, and itself

    @classmethod
    def gains(cls, channels: int, out_channels: int) -> bool:
        """Whether convolutions between so many channels are faster this way."""
        return min(channels, out_channels) >= MIN_CHANNELS

    def use_winograd(self, use: bool) -> None:
        """Allow Winograd's filtering, or forbid it and free the transformed kernel."""
        self.direct = not use
        self._kept = None

    def forward(self, x: Tensor) -> Tensor:
        m = self.tile_side(x)
        return super().forward(x) if m == 0 else winograd(x, self.kernel(m), self.bias, m)

    def tile_side(self, x: Tensor) -> int:
        """Side m of the tiles that an image (B, C, H, W) is cut into; 0 where the direct convolution is taken."""
        height, width = x.shape[-2:]
        if (
            self.direct
            or height * width < SMALL_PIXELS
            or x.device.type != "cpu"
            or x.dtype != self.weight.dtype
            or x.dtype not in (torch.float32, torch.bfloat16)
            or (x.dtype == torch.float32 and torch.is_autocast_enabled("cpu"))
            or torch.compiler.is_compiling()
            or (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            or (x.dtype == torch.bfloat16 and min(self.weight.shape[:2]) < MIN_CHANNELS_BFLOAT16)
            or not (self.checked or x.dtype == torch.bfloat16 or products_are_full())
        ):
            return 0
        tiles = x.shape[0] * math.ceil(height / 4) * math.ceil(width / 4)
        return 4 if x.dtype == torch.float32 and height * width >= LARGE_PIXELS and tiles >= FEW_TILES else 2

    def kernel(self, m: int) -> Tensor:
        """The transformed kernel ((m + 2)^2, C, K) of the weight as it is now."""
        place = (m, self.weight.data_ptr())
        if self.checked and self._kept is not None and self._kept[0][0] == place:
            return self._kept[1]
        with torch.autocast("cpu", enabled=False):  # it would round the checksum
            made_of = (place, checksum(self.weight.detach()))
            if self._kept is None or self._kept[0] != made_of:
                self._kept = (made_of, transform_kernel(self.weight.detach(), m))
        if self.checked is not None:
            self.checked = True
        return self._kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None, "checked": None}


@contextmanager
def checked_once(network: nn.Module) -> Iterator[None]:
    """Within it the layers of a network look once whether their weights and the process's precision have changed."""
    layers = [module for module in network.modules() if isinstance(module, WinogradConv2d)]
    for layer in layers:
        layer.checked = False
    try:
        yield
    finally:
        for layer in layers:
            layer.checked = None


def products_are_full() -> bool:
    """Whether float32 matrices are multiplied in full float32 here and now."""
    value = torch.full((PROBE, PROBE), 1.0 + 2.0**-20)  # which rounding would change
    return torch.equal(value @ torch.eye(PROBE), value)


def checksum(weight: Tensor) -> list[float]:
    """A number for each filter of a weight (K, C, 3, 3), which changes with its taps and with their places."""
    taps = (weight if weight.is_contiguous() else weight.permute(0, 2, 3, 1)).flatten(1).float()  # as they lie
    factors = 2.0 + torch.arange(taps.shape[1], dtype=torch.float32).cos()  # of about one size, and all different
    return (taps @ factors).tolist()


@cache
@torch.inference_mode(False)  # kept, so they must serve outside of inference mode as well
def transforms(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two-dimensional transforms for tiles of m x m output pixels, by the Cook-Toom construction in float64.

    With n = m + 2: of a tile's pixels (n*n, n*n), of a kernel (n*n, 9), and back to pixels (m*m, n*n); float32.
    """
    points = POINTS[m]
    result = [[p**power for p in points] + [float(power == m - 1)] for power in range(m)]
    image, kernel = [], []
    for i, p in enumerate(points):
        others = [q for j, q in enumerate(points) if j != i]
        image.append([*polyfromroots(others), 0.0])
        kernel.append([p**power / math.prod(p - q for q in others) for power in range(3)])
    image.append([*polyfromroots(points)])
    kernel.append([0.0, 0.0, 1.0])
    square = (torch.tensor(matrix, dtype=torch.float64) for matrix in (image, kernel, result))
    of_image, of_kernel, back = (torch.kron(matrix, matrix).float() for matrix in square)
    return of_image, of_kernel, back


def transform_kernel(weight: Tensor, m: int) -> Tensor:
    """((m + 2)^2, C, K) of a weight (K, C, 3, 3)."""
    taps = weight.permute(2, 3, 1, 0).reshape(9, -1).float()
    return (transforms(m)[1] @ taps).view(-1, weight.shape[1], weight.shape[0]).to(weight.dtype)


@torch.no_grad()
def winograd(x: Tensor, kernel: Tensor, bias: Tensor | None, m: int) -> Tensor:
    """A 3 x 3 convolution with padding 1, fastest channels last, with the kernel that ``transform_kernel`` made."""
    (batch, channels, height, width), out_channels = x.shape, kernel.shape[-1]
    n, rows, cols = m + 2, math.ceil(height / m), math.ceil(width / m)
    padded = F.pad(x, (1, 1 + cols * m - width, 1, 1 + rows * m - height)).permute(0, 2, 3, 1).contiguous()
    out = x.new_empty(batch, rows, m, cols, m, out_channels)
    at_once = max(1, TILES_AT_ONCE // (rows * cols))  # images
    most = min(at_once, batch) * rows * cols  # tiles
    # Scratch memory for the steps, in turn: fresh memory for each would cost as much as the arithmetic.
    first = x.new_empty(n * n * most * max(channels, out_channels))
    second = x.new_empty(most * max(n * n * channels, m * m * out_channels))
    of_image, _, back = (matrix.to(x.dtype) for matrix in transforms(m))
    for images, results in zip(padded.split(at_once), out.split(at_once), strict=True):
        tiles = len(images) * rows * cols
        overlapping = images.unfold(1, n, m).unfold(2, n, m).permute(4, 5, 0, 1, 2, 3)  # (n, n, B, rows, cols, C)
        pixels = first[: n * n * tiles * channels].view(overlapping.shape).copy_(overlapping).view(n * n, -1)
        values = torch.mm(of_image, pixels, out=second[: pixels.numel()].view(n * n, -1))
        products = first[: n * n * tiles * out_channels].view(n * n, tiles, out_channels)
        torch.bmm(values.view(n * n, tiles, channels), kernel, out=products)
        sums = second[: m * m * tiles * out_channels].view(m * m, -1)
        torch.mm(back, products.view(n * n, -1), out=sums)
        results.copy_(sums.view(m, m, len(images), rows, cols, out_channels).permute(2, 3, 0, 4, 1, 5))
        if bias is not None:
            results += bias
    return out.view(batch, rows * m, cols * m, out_channels)[:, :height, :width].permute(0, 3, 1, 2)
