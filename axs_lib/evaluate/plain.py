"""The plain U-Net that Stage 3 is measured against: no TerraMind, no gate, no low-frequency constraint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from axs_lib.bands import OPTICAL_MEAN, OPTICAL_STD, VALID_DN, sar_stats
from axs_lib.checks import Trust, check_choice
from axs_lib.errors import InputError, WeightsError
from axs_lib.grounding.unet import UNet, fine_detail
from axs_lib.nodata import pad_square, valid_pixels
from axs_lib.terramind.adapters import Adapter
from axs_lib.terramind.tiles import to_network
from axs_lib.terramind.weights import load_strict, read_metadata, read_state

Inputs = Literal["sar", "optical", "sar+optical"]
INPUTS: tuple[Inputs, ...] = ("sar", "optical", "sar+optical")
MULTIPLE = 16


class PlainModel(nn.Module):
    """A U-Net from ``inputs``, SAR, estimate or both, to the image; ``widths`` are the channels of its levels."""

    def __init__(self, inputs: Inputs = "sar+optical", widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        check_choice("inputs", inputs, INPUTS)
        self.inputs, self.widths = inputs, tuple(widths)
        channels = 2 * ("sar" in inputs) + (4 + 1 + 8) * ("optical" in inputs)
        self.body = UNet(channels, 4, self.widths)
        self.sar, self.optical = Adapter(*sar_stats("S1GRD")), Adapter(OPTICAL_MEAN, OPTICAL_STD)

    def forward(self, s1: Tensor, opt_v2: Tensor | None = None, trust: Tensor | None = None) -> Tensor:
        """The image in DN, not clipped, of inputs as in ``predict`` without nodata, with sides of multiples of 16."""
        parts, base = [], torch.zeros_like(s1[:, :1])
        if "sar" in self.inputs:
            parts.append(self.sar.to_z(s1))
        if "optical" in self.inputs:
            if opt_v2 is None:
                raise InputError(f"this plain model needs opt_v2 (its inputs are {self.inputs})")
            base = self.optical.to_z(opt_v2)
            known = torch.full_like(base[:, :1], Trust.ESTIMATE) if trust is None else trust
            parts += [base, known, *fine_detail(base)]
        return self.optical.from_z(base + self.body(torch.cat(parts, dim=1)))

    @torch.no_grad()
    def predict(self, s1: Tensor, opt_v2: Tensor | None = None, trust: Tensor | None = None) -> Tensor:
        """The image (B, 4, H, W) in DN of tiles of any size, nodata filled on entry and nodata again on exit.

        ``s1`` (B, 2, H, W) is in dB and ``opt_v2`` (B, 4, H, W) in DN, where the model needs it; where ``trust``
        (B, 1, H, W) is 0 opt_v2 is filled from observed neighbours, where it is 1 the image is opt_v2 itself.
        """
        height, width = s1.shape[-2:]
        side = -(-max(height, width) // MULTIPLE) * MULTIPLE
        sar_valid = valid_pixels(s1)
        filled = to_network(s1.float(), sar_valid, side, self.sar, standardize=True)
        optical = padded_trust = None
        if opt_v2 is not None and "optical" in self.inputs:
            known = valid_pixels(opt_v2)
            if trust is not None:
                known = known & (trust > 0)
                padded_trust = pad_square(trust * known, side)
            optical = to_network(opt_v2.float(), known, side, self.optical, standardize=True)
        image = self(filled, optical, padded_trust)[..., :height, :width].clamp(*VALID_DN)
        if trust is not None and opt_v2 is not None:
            image = torch.where(trust == 1, opt_v2.float(), image)
        return image.masked_fill(~sar_valid, torch.nan)


def load_plain(path: str | Path) -> PlainModel:
    """Read a plain model; ``WeightsError`` for a file of another kind, or one that does not fit."""
    header = read_metadata(Path(path))
    if header.get("kind") != "plain" or header.get("inputs") not in INPUTS:
        raise WeightsError(f"{path} is no plain U-Net; expected a file of experiments/nano/plain.py")
    inputs: Inputs = next(known for known in INPUTS if known == header["inputs"])
    model = PlainModel(inputs, tuple(int(width) for width in header["widths"].split(",")))
    load_strict(model, read_state(Path(path)), what=f"the plain U-Net ({path})")
    return model.eval()
