"""Images larger than a tile, and batches larger than memory: cut, ground each tile, blend.

``in_tiles`` wraps ``Stage3GroundingModel.ground``. Tiles lie on a grid anchored to the image's upper left pixel, and
their noise is that of the scene, so the same pixels come out however an image is cut along that grid.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ParamSpec

import torch
from torch import Tensor

from axs_lib.checks import check_pair
from axs_lib.terramind.noise import sample_seeds
from axs_lib.terramind.tiles import unbatch
from axs_lib.tilegrid import Mosaic, TileBatch

if TYPE_CHECKING:
    from axs_lib.stage3_tm_ground import Stage3GroundingModel, Stage3Output

P = ParamSpec("P")


@dataclass(frozen=True)
class GroundingControls:
    """What only scenes, tests and controls set.

    Attributes:
        origin: scene (row, column) of the image's upper left pixel, one for all or (B, 2) int64, which fixes the noise.
        orientation: how the tile is turned for the grounding head, 0 to 7; the members of an ensemble take it and those
            that follow.
        proposal: (B, 4, H, W) in opt_v2's unit, in place of TerraMind's own; nothing is then drawn (``nfe`` 0).
        use_sar: False leaves the SAR's content out: the change that remains is repair that needs no SAR.
        ranges_checked: the images are parts of larger ones whose ranges were checked as a whole.
    """

    origin: tuple[int, int] | Tensor = (0, 0)
    orientation: int = 0
    proposal: Tensor | None = None
    use_sar: bool = True
    ranges_checked: bool = False

    def origins(self, batch: int, device: torch.device) -> Tensor:
        """The origin of every sample, (B, 2) int64."""
        return torch.as_tensor(self.origin, dtype=torch.int64, device=device).expand(batch, 2)

    def of(self, tiles: TileBatch) -> GroundingControls:
        """The controls of a batch of tiles."""
        return replace(
            self,
            origin=tiles.origins(self.origin),
            proposal=None if self.proposal is None else tiles.of(self.proposal),
            ranges_checked=True,
        )


NO_CONTROLS = GroundingControls()


def in_tiles(ground: Callable[P, Stage3Output]) -> Callable[P, Stage3Output]:
    """``ground`` for images of any size and batches of any length."""

    @functools.wraps(ground)
    def wrapper(*args: P.args, **options: P.kwargs) -> Stage3Output:
        model, s1, opt_v2 = args[:3] if len(args) >= 3 else (args[0], None, None)
        if not _is_large(model, opt_v2, options):
            return ground(*args, **options)
        return _ground_large(ground, model, s1, opt_v2, *args[3:], **options)  # type: ignore[arg-type]

    return wrapper


def _is_large(model: Any, opt_v2: object, options: dict[str, Any]) -> bool:
    """Whether an image is larger than a tile, or the batch longer than ``batch_size``."""
    shape = opt_v2.shape if isinstance(opt_v2, Tensor) else ()
    batch_size = options.get("batch_size", 8)
    if len(shape) not in (3, 4) or not isinstance(batch_size, int) or batch_size < 1:
        return False  # an error, which ``ground`` words
    long = len(shape) == 4 and shape[0] > batch_size
    return long or max(shape[-2:]) > model.terramind_generator.layout.max_side


def _ground_large(
    ground: Callable[..., Stage3Output],
    model: Stage3GroundingModel,
    s1: Tensor,
    opt_v2: Tensor,
    timesteps: int | None = None,
    *,
    seed: Any = 0,
    trust: Tensor | None = None,
    batch_size: int = 8,
    controls: GroundingControls = NO_CONTROLS,
    **options: Any,
) -> Stage3Output:
    """``ground`` tile by tile."""
    pair = check_pair(s1, opt_v2, trust=trust, standardize=model.standardize, force=controls.ranges_checked)
    batch, _, height, width = pair.opt_v2.shape
    seeds = sample_seeds(seed, batch, device=pair.s1.device)
    if pair.unbatched and controls.proposal is not None and controls.proposal.ndim == 3:
        controls = replace(controls, proposal=controls.proposal[None])
    mosaic = Mosaic(
        batch,
        height,
        width,
        side=model.terramind_generator.layout.max_side,
        batch_size=batch_size,
        device=pair.s1.device,
    )
    # The change is blended, not the image: where no tile changes a pixel it stays bit for bit.
    unknown = (pair.trust == 0) | ~torch.isfinite(pair.opt_v2)
    base = torch.where(unknown, torch.zeros_like(pair.opt_v2), pair.opt_v2)
    nodata = torch.zeros_like(pair.opt_v2, dtype=torch.bool)
    for tiles in mosaic.batches():
        output = ground(
            model,
            tiles.of(pair.s1),
            tiles.of(pair.opt_v2),
            timesteps,
            seed=seeds[tiles.samples],
            trust=tiles.of(pair.trust),
            batch_size=batch_size,
            controls=controls.of(tiles),
            **options,
        )
        layers = {"change": output.image - tiles.of(base), "gate": output.gate, "proposal": output.proposal}
        if output.uncertainty is not None:
            layers["variance"] = output.uncertainty.square()
        mosaic.add(tiles, **{name: layer.nan_to_num() for name, layer in layers.items()})
        for sample, tile, image in zip(tiles.samples.tolist(), tiles.tiles, output.image, strict=True):
            tile.of(nodata[sample]).copy_(torch.isnan(image))
    blended = mosaic.result()
    deviation = blended["variance"].sqrt().masked_fill(nodata, torch.nan) if "variance" in blended else None
    whole = replace(
        output,
        image=(base + blended["change"]).masked_fill(nodata, torch.nan),
        proposal=blended["proposal"].masked_fill(nodata, torch.nan),
        gate=blended["gate"],
        uncertainty=deviation,
    )
    return unbatch(whole) if pair.unbatched else whole
