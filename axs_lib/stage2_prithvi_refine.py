"""Stage 2: refine the first optical estimate with Prithvi-EO-2.0, knowing when and where it is.

In go opt_v1 (B02, B03, B04, B08 in DN, from Stage 1) and metadata (date, place, biome, as far as known); out comes
opt_v2, opt_v1 plus a correction of every pixel: the season's colour, and what a ConvNeXt head makes of the image and of
Prithvi's features. The numbered steps of ``PrithviRefiner.forward`` are the method.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from axs_lib.bands import VALID_DN
from axs_lib.checks import (
    check_count,
    check_flag,
    check_model,
    check_number,
    check_optical,
    check_result,
    check_type,
    find_device,
)
from axs_lib.errors import UntrainedHeadWarning, WeightsError
from axs_lib.fresh import fresh_weights
from axs_lib.io.files import PathLike
from axs_lib.nodata import valid_pixels
from axs_lib.prithvi.backbone import MAX_SIDE, TAPS, PrithviBackbone, build_backbone
from axs_lib.prithvi.colour import SeasonalColour, season
from axs_lib.prithvi.head import RefinementHead
from axs_lib.prithvi.metadata import EncodedMetadata, MetadataLike, encode_metadata
from axs_lib.terramind import weights
from axs_lib.terramind.tiles import to_network
from axs_lib.tilegrid import Mosaic, TileGrid


class PrithviRefiner(nn.Module):
    """Prithvi with a ConvNeXt head: (opt_v1, metadata) -> opt_v2.

    ``build_prithvi_refiner`` builds it and says what the settings are. A fresh head changes nothing, and
    neither does the fresh season's colour beside it.
    """

    def __init__(
        self,
        backbone: PrithviBackbone,
        head: RefinementHead,
        *,
        standardize: bool = True,
        metadata_dropout: float = 0.1,
        needs_season: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.colour = SeasonalColour()
        self.standardize = check_flag("standardize", standardize)
        self.metadata_dropout = metadata_dropout
        self.needs_season = check_flag("needs_season", needs_season)
        self.weights: weights.WeightsInfo | None = None

    @property
    def variant(self) -> str:
        """Name of the backbone's architecture."""
        return self.backbone.layout.variant

    @property
    def untrained(self) -> bool:
        """Whether head and season's colour are fresh, so that opt_v2 equals opt_v1."""
        return self.head.untrained and self.colour.untrained

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.parameters()).device

    @property
    def provenance(self) -> dict[str, str]:
        """What made an output, for file tags: variant, weights and their hash, adapter."""
        tags = self.weights.tags() if self.weights else {"AXS_WEIGHTS": "random"}
        if self.backbone.adapter:
            tags["AXS_ADAPTER"] = self.backbone.adapter
        named = {name.replace("AXS_", "AXS_STAGE2_", 1): value for name, value in tags.items()}
        return {"AXS_STAGE2_VARIANT": self.variant} | named

    def forward(self, opt_v1: Tensor, metadata: MetadataLike = None, *, batch_size: int = 8) -> Tensor:
        """opt_v2 of opt_v1.

        Of a model that needs the season (nano) opt_v2 is opt_v1 where that is unknown: without a date, in the tropics.

        An image's result depends on its own pixels and metadata, not on its batch mates (within 1 DN). Images over 256
        px are cut on a grid anchored to their upper left pixel and blended. Differentiable where gradients are on and
        something is trainable; only then are the DN not clipped, since a clipped pixel has no gradient.

        opt_v1 is (B, 4, H, W) or (4, H, W), B02 B03 B04 B08 in DN, NaN = nodata, from 8 px; ``metadata`` is ``None``,
        one mapping for all samples, or one (or ``None``) a sample, with keys of ``axs_lib.prithvi.metadata``.
        opt_v2 has opt_v1's shape, float64 for float64 input, else float32, and is NaN where opt_v1 is; changed DN are
        clipped to 1..65535, unchanged ones stay bit for bit. Raises InputError: what does not fit.
        """
        # 1. Check what came in.
        checked = check_optical(opt_v1, "opt_v1", standardize=self.standardize)
        image = checked.image
        check_model(image, self)
        check_count("batch_size", batch_size)
        metadata_of = encode_metadata(metadata, len(image), image.device)
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        if self.training and self.metadata_dropout > 0:
            metadata_of = metadata_of.drop(self.metadata_dropout)
        if not learning and self.untrained:
            warnings.warn(
                "the head of Stage 2 is untrained, so opt_v2 equals opt_v1: load trained weights (variant='nano', or"
                " checkpoint= of a trained refiner), or train with `axs train stage2`",
                UntrainedHeadWarning,
                stacklevel=4,  # past nn.Module's own calls
            )

        # 2. Correct the tiles of a grid, most of them a whole image.
        mosaic = Mosaic(image, TileGrid(MAX_SIDE), batch_size)
        for tiles in mosaic.batches():
            mosaic.add(tiles, change=self._correct(tiles.of(image.float()), metadata_of[tiles.samples]))
        change = mosaic.result()["change"]  # (B, 4, H, W) in the caller's unit

        # 3. Apply the correction to the caller's own pixels, which stay bit for bit where nothing changes.
        refined = image + change.to(image.dtype)
        if self.standardize and not learning:
            refined = torch.where(change == 0, image, refined.clamp(*VALID_DN))
        nodata = ~valid_pixels(image)
        if not learning:
            check_result("opt_v2", refined, nodata)
        refined = refined.masked_fill(nodata, torch.nan)
        return refined[0] if checked.unbatched else refined

    def _correct(self, opt_v1: Tensor, metadata: EncodedMetadata) -> Tensor:
        """The correction (n, 4, h, w) of tiles, in the caller's unit."""
        height, width = opt_v1.shape[-2:]

        # 2a. Fill nodata from neighbours, pad to a square of whole patches, z-score.
        optical, side = self.backbone.optical, self.backbone.layout.side(height, width)
        filled = to_network(opt_v1, valid_pixels(opt_v1), side, optical, standardize=self.standardize)
        z = optical.to_z(filled)  # (n, 4, S, S)

        # 2b. The season's colour; nothing where date or season is unknown.
        colour = self.colour(z, metadata)  # (n, 4, S, S)
        z = z + colour

        # 2c. Prithvi reads image and metadata; the head turns its features and the image into a correction.
        change = (colour + self.head(z, self.backbone(z, metadata)))[..., :height, :width]
        if self.needs_season:
            change = change * season(metadata)[0][:, None, None, None]
        return change * optical.std if self.standardize else change


@fresh_weights()
def build_prithvi_refiner(
    variant: str = weights.DEFAULT_PRITHVI,
    *,
    pretrained: bool = True,
    checkpoint: PathLike | None = None,
    revision: str | None = None,
    device: torch.device | str | None = None,
    standardize: bool = True,
    metadata_dropout: float = 0.1,
    needs_season: bool | None = None,
) -> PrithviRefiner:
    """Build Stage 2, in ``eval()`` mode.

    Loaded weights come frozen. The published files hold Prithvi without a head: the head, the season's colour (and the
    vectors for unknown metadata and biomes) are then fresh and trainable, and until they are trained opt_v2 equals
    opt_v1.

    Args:
        variant: a name in ``PRITHVI_VARIANTS``; the weights of all but ``"nano"`` are those of NASA and IBM.
        pretrained, standardize, revision, device: as for ``build_stage3_model``.
        checkpoint: local weights: a published Prithvi file, a folder with it, or a refiner saved by ``save_refiner``.
        metadata_dropout: how often ``train()`` mode forgets date, place and biome (each by itself), so that
            "unknown" is learned.
        needs_season: leave images alone whose season is unknown, without a date or in the tropics; ``None`` does what
            the header of the weights tells, and corrects every image where it does not tell.

    Raises InputError: unknown variant, or a share out of range; or WeightsError: weights that cannot be had or matched.
    """
    spec, place = weights.find_variant(variant, weights.PRITHVI_VARIANTS), find_device(device)
    check_number("metadata_dropout", metadata_dropout, 0.0, math.nextafter(1.0, 0.0), "0 up to, not including, 1")
    state: dict[str, Tensor] | None = None
    files: weights.WeightsInfo | None = None
    what = variant
    if check_flag("pretrained", pretrained):
        files = weights.resolve(spec, checkpoint=checkpoint, revision=revision)
        header = _check_header(files.generator, variant)
        if needs_season is None:
            needs_season = header.get("needs_season") == "yes"
        state, what = weights.read_state(files.generator), f"{variant} ({files.generator})"
    whole = state is not None and (variant == weights.NANO or any(name.startswith("head.") for name in state))

    backbone = build_backbone(variant, None if whole else state, what=what)
    refiner = PrithviRefiner(
        backbone,
        RefinementHead(backbone.layout.dim, TAPS),
        standardize=standardize,
        metadata_dropout=metadata_dropout,
        needs_season=False if needs_season is None else needs_season,
    )
    if whole and state is not None:
        weights.load_strict(refiner, state, what=what)
        refiner.requires_grad_(False)
    elif state is not None:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name.endswith(("_enc.unknown", "_enc.biome.weight")))
    refiner.weights = files
    return refiner.eval().to(place)


def save_refiner(
    refiner: PrithviRefiner,
    path: PathLike,
    *,
    half: bool = False,
    notes: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a refiner as a ``.safetensors`` file for ``checkpoint=``, atomically, and return its path.

    ``half`` stores float16, read back as float32; ``notes`` go into the file's header. Raises OutputError: the file
    exists without ``overwrite``, or the disk refuses.
    """
    check_type("refiner", refiner, PrithviRefiner, "a PrithviRefiner")
    header = {"stage": "2", "variant": refiner.variant} | dict(notes or {})
    if refiner.needs_season:
        header["needs_season"] = "yes"
    weights.write_state(path, refiner.state_dict(), header, half=half, overwrite=overwrite)
    return Path(path)


def _check_header(path: Path, variant: str) -> Mapping[str, str]:
    """The header of a file; one that holds another variant is refused."""
    if path.suffix != ".safetensors":
        return {}
    header = weights.read_metadata(path)
    if header.get("stage", "2") != "2" or header.get("variant", variant) != variant:
        raise WeightsError(
            f"{path} holds the variant {header.get('variant')!r} of stage {header.get('stage', '2')}; expected"
            f" {variant!r} of stage 2: pass variant= of the file, or another file"
        )
    return header
