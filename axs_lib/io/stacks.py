"""Which band is which in a stack of a raster file, and its pixels in the library's units: what tiles and scenes share.

In: an open rasterio dataset, or the names of its bands, and the bands wanted. Out: positions of the bands, and float32
arrays in dB or DN with the file's scale and offset applied, NaN where there is no data; for the whole file, a window of
it, or averaged to a smaller shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.errors import InputError
from axs_lib.io.raster import FloatArray, band_name, listed

Window = tuple[tuple[int, int], tuple[int, int]]  # (first row, last row + 1), (first column, last column + 1)


def stack_names(dataset: Any, wanted: tuple[str, ...], path: Path) -> Sequence[str]:
    """Names of a stack's bands: from its descriptions, else its colours, else the library's order.

    Raises:
        InputError: a wanted band is named twice, or nothing is named and the count is another.
    """
    names = [band_name(text) for text in dataset.descriptions]
    if not any(names):
        names = [band_name(colour.name) for colour in dataset.colorinterp]
    if not any(names):
        return unnamed_bands(dataset.count, wanted, path)
    twice = [b for b in wanted if names.count(b) > 1]
    if twice:
        raise InputError(
            f"{path} names more than one band {listed(twice)}; name every band in the order of the stack:"
            " --bands"
        )
    return [name or "(unnamed)" for name in names]


def read_bands(
    dataset: Any,
    indexes: list[int],
    path: Path,
    wanted: tuple[str, ...],
    shape: tuple[int, int] | None = None,
    window: Window | None = None,
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Bands (C,H,W) in the library's units (the file's scale and offset applied), NaN where masked.

    Args:
        dataset: an open rasterio dataset.
        indexes: of the bands, from 1.
        path: of the file, for messages.
        wanted: what the bands are.
        shape: height and width to average the bands to.
        window: the part to read; default all of it.

    Returns:
        The bands, and an array (H,W) that is true where an optical image of integers without declared nodata is 0 in
        all bands read: 0 is nodata in Sentinel-2 products, declared or not, but one band alone may be dark.

    Raises:
        InputError: the file is damaged, or holds complex numbers.
    """
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError

    part: dict[str, Any] = {} if window is None else {"window": window}
    if shape is not None:
        part |= {"out_shape": (len(indexes), *shape), "resampling": Resampling.average}
    try:
        raw = dataset.read(indexes, **part)
        valid = dataset.read_masks(indexes, **part) != 0
    except (RasterioError, OSError) as error:
        raise InputError(unreadable(path, "a complete GeoTIFF", error)) from error
    if np.iscomplexobj(raw):
        raise InputError(f"{path} holds complex numbers; expected backscatter in dB, or reflectance in DN")
    optical = wanted == OPTICAL_BANDS
    undeclared = optical and dataset.nodata is None and raw.dtype.kind in "iu"
    blank: NDArray[np.bool_] = (raw == 0).all(axis=0) & undeclared
    with np.errstate(over="ignore"):
        data: FloatArray = raw.astype(np.float32)
    unit = DN_PER_REFLECTANCE if optical else 1.0
    for position, index in enumerate(indexes):
        scale, offset = dataset.scales[index - 1], dataset.offsets[index - 1]
        if (scale, offset) != (1.0, 0.0):
            data[position] = raw[position].astype(np.float64) * (scale * unit) + offset * unit
    data[~valid] = np.nan
    return data, blank


def ordered_bands(order: tuple[str, ...], count: int, path: Path) -> tuple[str, ...]:
    """The order that a user gives to the ``count`` bands of a stack.

    Raises:
        InputError: it names more or fewer.
    """
    if len(order) != count:
        raise InputError(
            f"{path} has {count} band(s) and --bands names {len(order)} ({listed(order)}); expected a name"
            " for every"
            " band of the stack, in its order"
        )
    return order


def unnamed_bands(count: int, wanted: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """The library's order for the ``count`` bands of a stack without names.

    Raises:
        InputError: there are more or fewer than that.
    """
    if count != len(wanted):
        raise InputError(
            f"{path} has {count} band(s) without names; expected the {len(wanted)} bands {listed(wanted)} in"
            " this order,"
            " or a name for every band in the order of the stack: --bands NAME,NAME,..."
        )
    return wanted


def band_positions(names: Sequence[str], wanted: tuple[str, ...], path: Path) -> list[int]:
    """Where the wanted bands stand among the names, from 0.

    Raises:
        InputError: one is missing.
    """
    missing = [b for b in wanted if b not in names]
    if missing:
        raise InputError(
            f"{path} holds the bands {listed(names)} and lacks {listed(missing)}; expected {listed(wanted)}."
            " Where its"
            " band descriptions are wrong or incomplete, name every band in the order of the stack, for"
            " example"
            f" --bands {','.join(reversed(wanted))}"
        )
    return [names.index(b) for b in wanted]


def unreadable(path: Path, expected: str, error: Exception) -> str:
    """What to say of a file that a library cannot read."""
    reason = (str(error).splitlines() or [""])[0].strip()[:160] or type(error).__name__
    return (
        f"{path} cannot be read; expected {expected}: it is damaged, truncated or of another kind ({reason})"
    )
