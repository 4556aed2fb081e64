"""Whether the tiles of a scene show: the jump of a model's change across tile borders, against the jump inside tiles.

Usage: python -m benchmarks.seams PAIR.npz [PAIR.npz ...] [--variant nano] [--checkpoint FILE] [--mirror 3]

A pair has ``s1`` in dB and ``s2`` in DN; what is grounded is ``s2`` with the simulated errors of preset ``test``. Give
pairs that the model was not trained on. Each is mirrored ``--mirror`` times down and across, so that it is larger than
a tile, and grounded twice: with the tile grid of scenes, and with tiles side by side, which shows what a seam is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import xarray

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.data.degrade import degrade
from axs_lib.scenes.api import ground_scene
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.tilegrid import TileGrid
from benchmarks.seam_jumps import seam_jumps

GRIDS = {"overlap of 64 px": TileGrid(), "no overlap": TileGrid(overlap=0)}


def mirrored(image: np.ndarray, times: int) -> np.ndarray:
    """A mosaic of an image and its mirror images, which meet without a jump."""
    wide = np.concatenate([image[:, :, :: 1 - 2 * (number % 2)] for number in range(times)], axis=2)
    return np.concatenate([wide[:, :: 1 - 2 * (number % 2)] for number in range(times)], axis=1)


def array(image: np.ndarray, bands: tuple[str, ...]) -> xarray.DataArray:
    return xarray.DataArray(image, dims=("band", "y", "x"), coords={"band": list(bands)})


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, nargs="+")
    parser.add_argument("--variant", default="nano")
    parser.add_argument("--checkpoint", type=str)
    parser.add_argument("--timesteps", type=int, default=1)
    parser.add_argument("--mirror", type=int, default=3)
    arguments = parser.parse_args()
    model = build_stage3_model(variant=arguments.variant, checkpoint=arguments.checkpoint)
    for path in arguments.pairs:
        with np.load(path, allow_pickle=False) as pair:
            s1, truth = pair["s1"].astype(np.float32), torch.from_numpy(pair["s2"].astype(np.float32))
        opt_v2 = degrade(truth, seed=0, preset="test").numpy()
        inputs = [mirrored(image, arguments.mirror) for image in (s1, opt_v2)]
        for name, grid in GRIDS.items():
            result = ground_scene(
                model,
                array(inputs[0], SAR_BANDS),
                array(inputs[1], OPTICAL_BANDS),
                timesteps=arguments.timesteps,
                grid=grid,
                deterministic=True,
                force=True,
            )
            jumps = seam_jumps(result.arrays["opt_v3"].values - inputs[1], grid)
            print(
                f"{path.stem}, {inputs[1].shape[1]}x{inputs[1].shape[2]} px, {result.tiles} tiles, {name}:"
                f" across borders {jumps.across:.2f} DN, inside {jumps.inside:.2f} DN, ratio {jumps.ratio:.3f};"
                f" between tokens inside {jumps.inside_tokens:.2f} DN, ratio {jumps.ratio_tokens:.3f};"
                f" worst border {jumps.worst_across:.2f}, worst line inside {jumps.worst_inside:.2f}"
            )


if __name__ == "__main__":
    main()
