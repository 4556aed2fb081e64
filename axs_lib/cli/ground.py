"""``axs ground``: ground a tile, a batch of tiles or a scene of any size in its SAR image, or fill its gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from axs_lib.cli import options
from axs_lib.cli.options import option


@options.with_shared
def ground(
    *,
    s1: options.S1Option,
    out: Annotated[Path, option("Grounded image: .tif (a COG), .npz or .pt.", metavar="FILE")],
    opt_v2: Annotated[
        list[str] | None,
        option(
            "B02, B03, B04, B08 in DN (reflectance x 10000): one stack, one file a band, or a Sentinel-2 L2A"
            " product (.SAFE, .zip or R10m). Left out where the .npz given as --s1 holds opt_v2 too.",
            metavar="FILE [FILE ...]",
        ),
    ] = None,
    estimate: options.EstimateOptions,
    scene: options.SceneOptions,
    deterministic: options.DeterministicOption = False,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Ground an optical estimate in its SAR image, or fill the gaps of an optical image from SAR and context."""
    from axs_lib.scenes.api import ground_scene

    how: dict[str, Any] = {"trust": estimate.mask_file(estimate.mask), "date": scene.date, "overwrite": overwrite}
    how |= {"boa_offset": estimate.boa_offset, "strength": estimate.strength, "deterministic": deterministic}
    scene.carry_out("ground", ground_scene, s1, opt_v2, out, model={"correction_mode": estimate.correction_mode}, **how)
