"""Prithvi-EO-2.0 as Stage 2 uses it: four bands and metadata in, token features from several depths out.

The network is terratorch's ``PrithviViT`` with the published weights; added are a vector for "unknown" in place of each
coordinate that was not given and an embedding of the biome, zero at first, as Prithvi's pretraining put where it
dropped the metadata. What terratorch 1.2.11 does, and what is done here (``tests/prithvi`` guards it):

- B08 is not among the pretrained bands: it takes kernel and statistics of B8A (``NIR_NARROW``).
- ``ckpt_path=`` loads with ``strict=False``: the file's encoder is loaded strictly, its decoder left out.
- The registry's ``forward`` is closed over the original: ``PrithviViT`` is built directly; copies run their own.
- ``forward`` is the masked autoencoder's and drops three quarters of the tokens: ``forward_features`` is called.
- The grid's height is taken as the square root of the token count: tokens are folded by height and width here.
- Sides that are not whole patches lose their border: padded by reflection, cropped back.
- Only the last depth is normalised: the head normalises each depth.
- Time is (year, day of year), day counted from 1 as in the model card; place (latitude, longitude). Coordinates stay
  float32; in bfloat16 the year 2021 is 2024. Each may be unknown, sample by sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from axs_lib.bands import OPTICAL_BANDS, OPTICAL_MEAN, OPTICAL_STD
from axs_lib.errors import WeightsError
from axs_lib.fresh import fresh_weights, zeroed
from axs_lib.prithvi.metadata import BIOMES, EncodedMetadata
from axs_lib.terramind.adapters import OpticalAdapter
from axs_lib.terramind.weights import NANO, PRITHVI_VARIANTS, load_strict, substate

MAX_SIDE = 256  # larger images are tiled
TAPS = 4  # depths from which features are taken


@dataclass(frozen=True)
class BackboneLayout:
    """What Prithvi's sizes differ in."""

    variant: str
    image: int  # side in pixels of the images it was trained on
    patch: int  # side of a token in pixels
    dim: int  # channels of a token
    depth: int  # blocks
    heads: int  # of the attention

    @property
    def taps(self) -> list[int]:
        """Blocks whose output is used, counted from 0."""
        return [self.depth * (tap + 1) // TAPS - 1 for tap in range(TAPS)]

    def side(self, height: int, width: int) -> int:
        """Side in pixels of the square the network sees: whole patches, and whole quarters for the head."""
        multiple = math.lcm(self.patch, 4)
        return -(-max(height, width, 8 * self.patch) // multiple) * multiple


# nano has patches of 8 px, so that a 128 px tile has 16 x 16 tokens as Prithvi has of its 224 px. The others as
# published; a test compares them with terratorch's.
LAYOUTS = {
    layout.variant: layout
    for layout in (
        BackboneLayout(NANO, 128, 8, 144, 4, 3),
        BackboneLayout("prithvi_eo_v2_tiny_tl", 224, 16, 192, 12, 3),
        BackboneLayout("prithvi_eo_v2_300_tl", 224, 16, 1024, 24, 16),
        BackboneLayout("prithvi_eo_v2_600_tl", 224, 14, 1280, 32, 16),
    )
}

# The bands that Prithvi-EO-2.0 was trained on, in its order, with their means and standard deviations in DN.
PRITHVI_BANDS = ("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2")
PRITHVI_MEAN = (1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0)
PRITHVI_STD = (2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0)

# Where B02, B03, B04 and B08 stand among them. Its near infrared is the narrow B8A of HLS; B08 is the wide one around
# the same wavelength.
PRITHVI_INDEX = [PRITHVI_BANDS.index(name) for name in ("BLUE", "GREEN", "RED", "NIR_NARROW")]


class CoordinateEncoder(nn.Module):
    """Prithvi's encoding of two coordinates, by terratorch's ``encoder``, with a learned vector where one is NaN."""

    def __init__(self, encoder: nn.Module, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.unknown = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, coordinates: Tensor, tokens_per_frame: int | None = None) -> Tensor:
        """(B, 1, D) for coordinates (B, 1, 2) or (B, 2); the same for every token of the one frame."""
        with torch.autocast(coordinates.device.type, enabled=False):
            known = coordinates.float().isfinite().reshape(len(coordinates), 1, 2)
            embedding = self.encoder(coordinates.float().nan_to_num())
        return torch.where(known.repeat_interleave(embedding.shape[-1] // 2, dim=-1), embedding, self.unknown)


class PlaceEncoder(CoordinateEncoder):
    """Latitude, longitude and biome: (B, 3) with NaN for an unknown coordinate and 0 for an unknown biome."""

    def __init__(self, encoder: nn.Module, dim: int) -> None:
        super().__init__(encoder, dim)
        self.biome = zeroed(nn.Embedding(1 + len(BIOMES), dim))

    def forward(self, coordinates: Tensor, tokens_per_frame: int | None = None) -> Tensor:
        return super().forward(coordinates[:, :2]) + self.biome(coordinates[:, 2].long())[:, None]


class PrithviBackbone(nn.Module):
    """Token features of an image, by terratorch's ``PrithviViT`` for one frame of four bands, with time and place."""

    def __init__(self, vit: nn.Module, layout: BackboneLayout, optical: OpticalAdapter) -> None:
        super().__init__()
        self.vit: Any = vit
        self.layout = layout
        self.optical = optical
        self.adapter: str | None = None  # the LoRA adapter in the weights, in words

    def forward(self, image: Tensor, metadata: EncodedMetadata) -> list[Tensor]:
        """Features (B, D, h, w) of each depth of the layout; the image (B, 4, H, W) is in z-units, of whole patches."""
        height, width = (size // self.layout.patch for size in image.shape[-2:])
        place = torch.cat([metadata.location, metadata.biome[:, None].float()], dim=1)
        tokens = self.vit.forward_features(image, metadata.temporal[:, None], place)
        # The class token comes first.
        return [tokens[depth][:, 1:].mT.unflatten(-1, (height, width)) for depth in self.layout.taps]


@fresh_weights()
def build_backbone(
    variant: str, state: Mapping[str, Tensor] | None = None, *, what: str = "the checkpoint"
) -> PrithviBackbone:
    """A backbone with random weights or the encoder of a published file, which a WeightsError calls ``what``."""
    from axs_lib.networks.prithvi_mae import PrithviViT  # imports timm, half a second that Stage 3 does without

    layout, optical = LAYOUTS[variant], OpticalAdapter(OPTICAL_MEAN, OPTICAL_STD)
    if variant != NANO:
        optical = OpticalAdapter([PRITHVI_MEAN[i] for i in PRITHVI_INDEX], [PRITHVI_STD[i] for i in PRITHVI_INDEX])
    size = {"img_size": layout.image, "embed_dim": layout.dim, "depth": layout.depth, "num_heads": layout.heads}
    vit = PrithviViT(
        **size,
        patch_size=(1, layout.patch, layout.patch),
        mlp_ratio=4.0,
        num_frames=1,
        in_chans=len(OPTICAL_BANDS),
        coords_encoding=["time", "location"],
        coords_scale_learn=True,
    )
    if state is not None:
        _load_published(vit, state, what)
    vit.temporal_embed_enc = CoordinateEncoder(vit.temporal_embed_enc, layout.dim)
    vit.location_embed_enc = PlaceEncoder(vit.location_embed_enc, layout.dim)
    return PrithviBackbone(vit, layout, optical)


def _load_published(vit: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load the encoder of a published masked autoencoder, strictly, with our four of its six bands."""
    kernel, token = "encoder.patch_embed.proj.weight", "encoder.cls_token"
    if kernel not in state or token not in state:
        raise WeightsError(
            f"{what} has no {kernel} or no {token}; expected a published Prithvi-EO-2.0 file (masked autoencoder), or a"
            " refiner saved by this package"
        )
    dim, wanted = state[token].shape[-1], int(vit.get_parameter("cls_token").shape[-1])
    if dim != wanted:
        known = [v.name for v in PRITHVI_VARIANTS.values() if v.dim == dim and not v.packaged]
        raise WeightsError(
            f"{what} has tokens of {dim} channels, expected {wanted}: it looks like"
            f" {known[0] if known else 'another variant'}; pass the variant that the file belongs to"
        )
    if state[kernel].ndim != 5 or state[kernel].shape[1] <= max(PRITHVI_INDEX):
        raise WeightsError(f"{what}: {kernel} is {tuple(state[kernel].shape)}; expected kernels of six bands")
    encoder = substate(state, "encoder.")
    encoder["patch_embed.proj.weight"] = state[kernel][:, PRITHVI_INDEX]
    # Positions are sines and cosines, fixed by the grid; the file's are for its own number of frames.
    encoder["pos_embed"] = vit.get_buffer("pos_embed")
    foreign = {name: value for name, value in state.items() if not name.startswith(("encoder.", "decoder."))}
    load_strict(vit, encoder | foreign, what=what)
