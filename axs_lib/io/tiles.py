"""Read whole images at once, and what an .npz may hold beside the estimate; the rules are those of ``products``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from axs_lib.errors import InputError, listed
from axs_lib.io.files import PathLike
from axs_lib.io.formats import FloatArray, open_npz
from axs_lib.io.grid import SceneGrid
from axs_lib.io.pixels import Order, Reading
from axs_lib.io.products import Source, open_source
from axs_lib.io.raster import Raster

TRUTH_KEYS = ("s2_real", "s2_truth", "s2")


def pair_file(s1_paths: Sequence[PathLike]) -> Sequence[PathLike]:
    """The .npz of ``--s1`` as the file that holds the estimate, too. Raises InputError: it is none."""
    if [Path(path).suffix.lower() for path in s1_paths] != [".npz"]:
        raise InputError(
            f"no optical file is given and {listed(s1_paths) or 'no SAR file'} holds SAR alone; expected --opt-v2 FILE,"
            " or one .npz that holds s1_vv, s1_vh and opt_v2"
        )
    return s1_paths


def read_raster(paths: PathLike | Sequence[PathLike], wanted: tuple[str, ...], *, order: Order = None) -> Raster:
    """Read the wanted bands from one stack or from one file a band, SAR in dB; no unit is refused.

    ``order`` names the stack's bands (or the files) in their order and overrides what the files say. Raises InputError:
    a file is missing, unreadable, of the wrong kind or band count, or the grids differ.
    """
    with ExitStack() as stack:
        source = open_source(paths, wanted, stack, Reading(bands=order, s1_unit="db", force=True))
        source.look()
        return as_raster(source, source.read(source.grid.whole))


def as_raster(source: Source, data: FloatArray) -> Raster:
    """Data (C, N*H, W) of a source as a raster (C,H,W), or (N,C,H,W) where the input has an axis for tiles."""
    if source.pixels.batched:
        data = np.stack(np.split(data, source.pixels.tiles, axis=1))
    grid = SceneGrid(data.shape[-2], data.shape[-1], source.grid.crs, source.grid.transform)
    return Raster(data, source.bands, grid, source.tags, source.label)


def read_companions(path: PathLike, opt_v2: Raster) -> tuple[Raster | None, FloatArray | None]:
    """Truth and trust map (N,1,H,W) that an .npz may hold beside opt_v2, of its shape or else InputError."""
    if Path(path).suffix.lower() != ".npz":
        return None, None
    truth, trust = None, None
    count, (height, width) = len(opt_v2.batch), opt_v2.grid.size
    with open_npz(path) as arrays:
        key = next((k for k in TRUTH_KEYS if k in arrays), None)
        if key is not None:
            data = arrays.numbers(key)
            if data.size != opt_v2.data.size or data.shape[-3:] != opt_v2.data.shape[-3:]:
                raise InputError(f"{path}: {key} has shape {data.shape}; expected that of opt_v2, {opt_v2.data.shape}")
            truth = replace(opt_v2, data=data.reshape(opt_v2.data.shape))
        if "trust" in arrays:
            data = arrays.numbers("trust")
            if data.size != count * height * width or data.shape[-2:] != (height, width):
                raise InputError(
                    f"{path}: trust has shape {data.shape}; expected ({count},1,{height},{width}) or"
                    f" ({height},{width}), 1 where opt_v2 was observed and 0 where it is unknown"
                )
            trust = data.reshape(count, 1, height, width)
    return truth, trust
