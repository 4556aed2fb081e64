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

from axs_lib.bands import VALID_DN
from axs_lib.checks import CheckedPair, check_count, check_pair, check_tensor, check_type
from axs_lib.errors import InputError
from axs_lib.terramind.noise import sample_seeds, scene_origins
from axs_lib.terramind.tiles import unbatch
from axs_lib.tilegrid import Mosaic, TileGrid

if TYPE_CHECKING:
    from axs_lib.stage3_tm_ground import Stage3GroundingModel, Stage3Output

P = ParamSpec("P")


@dataclass(frozen=True)
class GroundingControls:
    """What only scenes, tests and controls set; members of an ensemble take ``orientation`` and those that follow."""

    origin: tuple[int, int] | Tensor = (0, 0)  # scene (row, column) of the upper left pixel, or (B, 2): fixes the noise
    orientation: int = 0  # how the tile is turned for the grounding head, 0 to 7
    proposal: Tensor | None = None  # (B, 4, H, W) in opt_v2's unit, in place of TerraMind's own
    use_sar: bool = True  # whether the SAR's content counts
    ranges_checked: bool = False  # whether the images are parts of larger ones whose ranges were checked

    def proposal_for(self, pair: CheckedPair) -> Tensor | None:
        """The proposal, batched, or ``None``. Raises InputError: its shape is not that of opt_v2."""
        if self.proposal is None:
            return None
        proposal = check_tensor("proposal", self.proposal)
        batched = proposal[None] if pair.unbatched and proposal.ndim == 3 else proposal
        if batched.shape != pair.opt_v2.shape:
            raise InputError(
                f"proposal has shape {tuple(proposal.shape)}; expected that of opt_v2, {tuple(pair.opt_v2.shape)}"
            )
        return batched


NO_CONTROLS = GroundingControls()


def in_tiles(ground: Callable[P, Stage3Output]) -> Callable[P, Stage3Output]:
    """``ground`` for images of any size and batches of any length."""
    plain: Any = ground

    @functools.wraps(ground)
    def wrapper(
        model: Any, s1: Any, opt_v2: Any, timesteps: Any = None, *, batch_size: Any = 8, **options: Any
    ) -> Stage3Output:
        batch_size = check_count("batch_size", batch_size)
        check_type("controls", options.get("controls", NO_CONTROLS), GroundingControls, "GroundingControls")
        run = functools.partial(plain, model, timesteps=timesteps, batch_size=batch_size)
        side = model.terramind_generator.layout.max_side
        shape: tuple[int, ...] = opt_v2.shape if isinstance(opt_v2, Tensor) and not opt_v2.is_nested else ()
        many = len(shape) == 4 and shape[0] > batch_size
        if len(shape) in (3, 4) and (many or max(shape[-2:]) > side):
            return _ground_large(run, model, s1, opt_v2, batch_size, **options)
        return run(s1, opt_v2, **options)  # also an error, in the words of ``ground``

    return wrapper  # type: ignore[return-value]


def _ground_large(
    ground: Callable[..., Stage3Output],
    model: Stage3GroundingModel,
    s1: Tensor,
    opt_v2: Tensor,
    batch_size: int,
    *,
    seed: Any = 0,
    trust: Tensor | None = None,
    controls: GroundingControls = NO_CONTROLS,
    **options: Any,
) -> Stage3Output:
    """``ground`` tile by tile."""
    pair = check_pair(s1, opt_v2, trust=trust, standardize=model.standardize, force=controls.ranges_checked)
    batch, device = len(pair.opt_v2), pair.s1.device
    seeds, corners = sample_seeds(seed, batch, device=device), scene_origins(controls.origin, batch, device)
    proposal = controls.proposal_for(pair)
    # The change is blended, not the image: where no tile changes a pixel it stays bit for bit.
    base = pair.opt_v2.masked_fill((pair.trust == 0) | ~torch.isfinite(pair.opt_v2), 0.0)
    mosaic = Mosaic(pair.opt_v2, TileGrid(model.terramind_generator.layout.max_side), batch_size)
    for tiles in mosaic.batches():
        given = None if proposal is None else tiles.of(proposal)
        here = replace(controls, origin=tiles.origins(corners), proposal=given, ranges_checked=True)
        how = {"seed": seeds[tiles.samples], "trust": tiles.of(pair.trust), "controls": here, **options}
        output = ground(tiles.of(pair.s1), tiles.of(pair.opt_v2), **how)
        layers = {
            "change": (output.image - tiles.of(base)).nan_to_num(),
            "nodata": output.image.isnan().float(),
            "gate": output.gate,
            "proposal": output.proposal.nan_to_num(),
        }
        if output.uncertainty is not None:
            layers["variance"] = output.uncertainty.square().nan_to_num()
        mosaic.add(tiles, **layers)
    blended = mosaic.result()
    nodata, gate = blended["nodata"] > 0, blended["gate"]
    image = changed(base, blended["change"], model.standardize)
    image, proposal = (each.masked_fill(nodata, torch.nan) for each in (image, blended["proposal"]))
    deviation = blended["variance"].sqrt().masked_fill(nodata, torch.nan) if "variance" in blended else None
    whole = replace(output, image=image, proposal=proposal, gate=gate, uncertainty=deviation)
    return unbatch(whole) if pair.unbatched else whole


def changed(image: Tensor, change: Tensor, standardize: bool) -> Tensor:
    """The image with its change, bit for bit the same where that is 0; where ``standardize`` (DN), valid DN."""
    result = image + change
    return torch.where(change == 0, image, result.clamp(*VALID_DN) if standardize else result)
