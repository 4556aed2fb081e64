"""Adapters between physical units and what a TerraMind network was trained on; everything is a buffer.

For IBM's weights, whose statistics carry the +1000 offset, the optical adapter takes it off them, and lifts the four
known bands to the twelve of TerraMind's S2L2A modality with a fixed least-squares spectral lift, because zero-filled
bands are far outside what the network has seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from axs_lib import bands
from axs_lib.precision import exact_matmul


class Adapter(nn.Module):
    """A physical unit <-> z-units, band by band (B, C, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[None, :, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[None, :, None, None], persistent=False)

    def to_z(self, values: Tensor) -> Tensor:
        """z-units of values in the physical unit."""
        return (values - self.mean) / self.std

    def from_z(self, z: Tensor) -> Tensor:
        """Values in the physical unit of z-units."""
        return z * self.std + self.mean


class OpticalAdapter(Adapter):
    """DN <-> z-units of the four bands (B, 4, H, W), and four bands <-> the network's channels (B, C, H, W).

    ``mean`` and ``std`` are those of the four bands in DN as the network saw them, still with ``boa_offset``. ``lift``
    is ``(weight (C, 4), bias (C,), index)`` in z-units of the network's C channels, where ``index`` are the channels of
    B02, B03, B04, B08; ``None`` for a network that is four-band throughout.
    """

    lift_weight: Tensor
    lift_bias: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        boa_offset: float = 0.0,
        lift: tuple[Tensor, Tensor, Sequence[int]] | None = None,
    ) -> None:
        super().__init__([value - boa_offset for value in mean], std)
        self.lifts = lift is not None
        weight, bias, index = lift if lift is not None else (torch.eye(4), torch.zeros(4), range(4))
        self.index = list(index)
        self.register_buffer("lift_weight", weight.float(), persistent=False)
        self.register_buffer("lift_bias", bias.float(), persistent=False)

    @property
    def channels(self) -> int:
        """Channels of the network's optical modality."""
        return self.lift_weight.shape[0]

    def expand_bands(self, z: Tensor) -> Tensor:
        """Network channels of the four bands in z-units; known bands pass unchanged."""
        if not self.lifts:
            return z
        z = z.float()
        lifted = exact_matmul(self.lift_weight, z.flatten(2)).unflatten(2, z.shape[2:]) + self.lift_bias[:, None, None]
        lifted[:, self.index] = z
        return lifted

    def select(self, channels: Tensor) -> Tensor:
        """The four bands among the network's channels."""
        return channels[:, self.index] if self.lifts else channels


def terramind_spectral_lift() -> tuple[Tensor, Tensor, Sequence[int]]:
    """The fixed 4 -> 12 band lift in z-units of TerraMind's S2L2A statistics; unmeasured with IBM's weights."""
    index, offset = list(bands.TERRAMIND_OPTICAL_INDEX), bands.TERRAMIND_BOA_OFFSET
    values = (bands.SPECTRAL_LIFT_MATRIX, bands.SPECTRAL_LIFT_BIAS, bands.TERRAMIND_S2_MEAN, bands.TERRAMIND_S2_STD)
    matrix, bias, mean, std = (torch.tensor(each, dtype=torch.float64) for each in values)  # (12, 4) and (12,) DN
    # DN_out + offset = matrix (z std_in + mean_in - offset) + bias + offset, then z-score.
    weight_z = matrix * std[index] / std[:, None]
    bias_z = (matrix @ (mean[index] - offset) + bias + offset - mean) / std
    return weight_z, bias_z, index
