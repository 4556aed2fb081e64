"""Read whole images at once: tiles and batches of tiles for training, batches and displays.

In: paths, and how to read them. Out: a ``TilePair`` of named float32 rasters (NaN is nodata) on one grid, with the
georeference of the files; the rules are those of ``axs_lib.io.products``. Nothing is unpickled, and the network is
never used unless a path is an address.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError
from axs_lib.io.formats import open_npz, open_raster
from axs_lib.io.grid import grid_of
from axs_lib.io.pixels import Reading
from axs_lib.io.products import Source, open_source
from axs_lib.io.raster import FloatArray, Raster, TilePair, check_same_grid, listed

TRUTH_KEYS = ("s2_real", "s2_truth", "s2")

Order = tuple[str, ...] | None
Paths = Sequence[str | os.PathLike[str]]


def read_tile(s1_paths: Paths, optical_paths: Paths = (), bands: Sequence[str] | None = None) -> TilePair:
    """Read the SAR and optical inputs of Stage 3 and check that they lie on one grid.

    Args:
        s1_paths: one stack, or one file a band; an .npz that also holds ``opt_v2`` may stand alone.
        optical_paths: one stack, or one file a band; empty where the .npz of ``s1_paths`` holds it.
        bands: names of the stack's bands (or of the files) in their order, overriding what the files say;
            names of SAR bands apply to ``s1_paths``, all others to ``optical_paths``.

    Returns:
        The tile with bands in the library's order, plus truth and trust map where an .npz holds them.

    Raises:
        InputError: a file is missing, unreadable, of the wrong kind or band count, or the grids differ.
    """
    optical_paths = optical_paths or pair_file(s1_paths)
    order = tuple(bands or ())
    s1 = read_raster(s1_paths, SAR_BANDS, order=tuple(b for b in order if b in SAR_BANDS) or None)
    opt_v2 = read_raster(optical_paths, OPTICAL_BANDS, order=tuple(b for b in order if b not in SAR_BANDS) or None)
    check_same_grid(s1, opt_v2)
    if s1.batched != opt_v2.batched:  # (1,C,H,W) beside (C,H,W): one tile either way
        s1, opt_v2 = replace(s1, data=s1.batch), replace(opt_v2, data=opt_v2.batch)
    truth, trust = read_companions(optical_paths[0], opt_v2)
    return TilePair(s1, opt_v2, truth, trust)


def pair_file(s1_paths: Paths) -> Paths:
    """The .npz of ``--s1`` as the file that holds the estimate, too.

    Raises:
        InputError: it is none.
    """
    if [Path(p).suffix.lower() for p in s1_paths] != [".npz"]:
        raise InputError(
            f"no optical file is given and {listed(s1_paths) or 'no SAR file'} holds SAR alone; expected --opt-v2"
            " FILE, or"
            " one .npz that holds s1_vv, s1_vh and opt_v2"
        )
    return s1_paths


def read_raster(paths: str | os.PathLike[str] | Paths, wanted: tuple[str, ...], *, order: Order = None) -> Raster:
    """Read the wanted bands from one stack or from one file a band, SAR in dB; no unit is refused.

    Args:
        paths: anything that ``open_source`` takes as paths.
        wanted: ``SAR_BANDS`` or ``OPTICAL_BANDS``.
        order: names of the stack's bands (or of the files) in their order; overrides what the files say.

    Returns:
        The bands in the order of ``wanted``.

    Raises:
        InputError: as for ``read_tile``.
    """
    with ExitStack() as stack:
        source = open_source(paths, wanted, stack, Reading(bands=order, s1_unit="db", force=True))
        source.look()
        return as_raster(source, source.read(source.grid.whole))


def as_raster(source: Source, data: FloatArray) -> Raster:
    """Data (C, N*H, W) of a source as a raster (C,H,W), or (N,C,H,W) where the input has an axis for tiles."""
    if source.pixels.batched:
        data = np.stack(np.split(data, source.pixels.tiles, axis=1))
    return Raster(data, source.bands, source.grid.crs, source.grid.transform, None, source.tags, source.label)


def read_overview(path: str | os.PathLike[str], wanted: tuple[str, ...], longest: int) -> Raster:
    """Read a result of this library, a GeoTIFF, to be looked at: averaged until no side is longer than ``longest``.

    Overviews are used where the file has them. Infinite values count as nodata, and the transform is that of the larger
    pixels.

    Raises:
        InputError: the file cannot be read, or its bands are not those wanted.
    """
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError
    from rasterio.transform import Affine

    with open_raster(path) as dataset:
        shrink = max(1.0, max(dataset.height, dataset.width) / longest)
        shape = max(1, round(dataset.height / shrink)), max(1, round(dataset.width / shrink))
        if dataset.count < len(wanted):
            raise InputError(f"{path} has {dataset.count} band(s); expected {listed(wanted)}")
        names = list(dataset.descriptions)
        named = [names.index(band) + 1 for band in wanted if band in names]
        indexes = named if len(named) == len(wanted) else list(dataset.indexes[: len(wanted)])
        how: dict[str, Any] = {"out_shape": (len(indexes), *shape), "resampling": Resampling.average}
        try:
            raw = dataset.read(indexes, masked=True, **how)
        except (RasterioError, OSError) as error:
            raise InputError(f"{path} cannot be read; expected a complete GeoTIFF: {error}") from error
        data = raw.astype(np.float32).filled(np.nan)
        data[~np.isfinite(data)] = np.nan
        grid = grid_of(dataset)
        transform = grid.transform
        if transform is not None:
            larger = Affine(*transform) * Affine.scale(dataset.width / shape[1], dataset.height / shape[0])
            transform = tuple(larger)[:6]
        tags = {key: str(value) for key, value in dataset.tags().items() if key != "AREA_OR_POINT"}
    return Raster(data, wanted, grid.crs, transform, None, tags, str(path))


def read_companions(path: str | os.PathLike[str], opt_v2: Raster) -> tuple[Raster | None, FloatArray | None]:
    """Truth and trust map (N,1,H,W) that an .npz may hold beside opt_v2.

    Raises:
        InputError: they are of another shape.
    """
    if Path(path).suffix.lower() != ".npz":
        return None, None
    truth, trust = None, None
    count, (height, width) = len(opt_v2.batch), opt_v2.size
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
                    f" ({height},{width}), 1"
                    " where opt_v2 was observed and 0 where it is unknown"
                )
            trust = data.reshape(count, 1, height, width)
    return truth, trust
