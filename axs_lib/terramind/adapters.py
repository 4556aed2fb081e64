"""Adapters between physical units and what a TerraMind network was trained on.

``SarAdapter`` z-scores VV, VH in dB. ``OpticalAdapter`` z-scores B02, B03, B04, B08 in DN; for IBM's weights it also
adds the +1000 offset their statistics carry and lifts the four known bands to the twelve of TerraMind's S2L2A
modality with a fixed least-squares spectral lift, because zero-filled bands are far outside what the network has
seen. Everything is a buffer, so it follows ``.to()``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from axs_lib.bands import (
    SPECTRAL_LIFT_BIAS,
    SPECTRAL_LIFT_MATRIX,
    TERRAMIND_BOA_OFFSET,
    TERRAMIND_OPTICAL_INDEX,
    TERRAMIND_S2_MEAN,
    TERRAMIND_S2_STD,
)
from axs_lib.precision import exact_matmul


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[None, :, None, None]


class SarAdapter(nn.Module):
    """dB -> z-units for VV, VH. Shapes (B, 2, H, W) in and out."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", _column(mean), persistent=False)
        self.register_buffer("std", _column(std), persistent=False)

    def to_z(self, decibel: Tensor) -> Tensor:
        """z-units of backscatter in dB."""
        return (decibel - self.mean) / self.std

    def from_z(self, z: Tensor) -> Tensor:
        """Backscatter in dB of z-units."""
        return z * self.std + self.mean


class OpticalAdapter(nn.Module):
    """DN <-> z-units of the four bands, and four bands <-> the network's channels.

    Args:
        mean: statistics of the four bands in DN as the network saw them (offset included).
        std: their standard deviations.
        boa_offset: DN added before z-scoring and taken off after.
        lift: ``(weight (C, 4), bias (C,), index)`` in z-units of the network's C channels, where ``index`` are the
            channels of B02, B03, B04, B08; ``None`` for a network that is four-band throughout.
    """

    mean: Tensor
    std: Tensor
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
        super().__init__()
        self.boa_offset = float(boa_offset)
        self.register_buffer("mean", _column(mean), persistent=False)
        self.register_buffer("std", _column(std), persistent=False)
        self.lifts = lift is not None
        weight, bias, index = lift if lift is not None else (torch.eye(4), torch.zeros(4), range(4))
        self.index = list(index)
        self.register_buffer("lift_weight", weight.float(), persistent=False)
        self.register_buffer("lift_bias", bias.float(), persistent=False)

    @property
    def channels(self) -> int:
        """Channels of the network's optical modality."""
        return self.lift_weight.shape[0]

    def to_z(self, dn: Tensor) -> Tensor:
        """z-units (B, 4, H, W) of DN."""
        return (dn + self.boa_offset - self.mean) / self.std

    def from_z(self, z: Tensor) -> Tensor:
        """DN (B, 4, H, W) of z-units."""
        return z * self.std + self.mean - self.boa_offset

    def expand_bands(self, z: Tensor) -> Tensor:
        """Network channels (B, C, H, W) from the four bands in z-units; known bands pass unchanged."""
        if not self.lifts:
            return z
        z = z.float()
        lifted = exact_matmul(self.lift_weight, z.flatten(2)).unflatten(2, z.shape[2:])
        lifted = lifted + self.lift_bias[:, None, None]
        lifted[:, self.index] = z
        return lifted

    def select(self, channels: Tensor) -> Tensor:
        """The four bands (B, 4, H, W) among the network's channels."""
        return channels[:, self.index] if self.lifts else channels


def terramind_spectral_lift() -> tuple[Tensor, Tensor, Sequence[int]]:
    """The fixed 4 -> 12 band lift in z-units of TerraMind's S2L2A statistics.

    Fitted in DN without offset by ``experiments/fit_spectral_lift.py``; unmeasured with IBM's weights.
    """
    index = list(TERRAMIND_OPTICAL_INDEX)
    matrix = torch.tensor(SPECTRAL_LIFT_MATRIX, dtype=torch.float64)  # (12, 4), DN per DN
    bias = torch.tensor(SPECTRAL_LIFT_BIAS, dtype=torch.float64)  # (12,), DN
    mean = torch.tensor(TERRAMIND_S2_MEAN, dtype=torch.float64)
    std = torch.tensor(TERRAMIND_S2_STD, dtype=torch.float64)
    # DN_out + offset = matrix (z std_in + mean_in - offset) + bias + offset, then z-score.
    weight_z = matrix * std[index] / std[:, None]
    bias_z = (matrix @ (mean[index] - TERRAMIND_BOA_OFFSET) + bias + TERRAMIND_BOA_OFFSET - mean) / std
    return weight_z, bias_z, index
