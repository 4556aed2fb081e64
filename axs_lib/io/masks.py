"""Read masks: what says where an optical image was observed clear, as GeoTIFF, JPEG 2000, PNG or .npz.

In: a path, what its values mean, and the image the mask is for. Out: a ``Mask`` with the trust map that Stage 3 takes,
1 where the image was observed and 0 where it is unknown. Understood are boolean masks, trust maps in 0..1 and the
scene classification (SCL) of Sentinel-2 L2A, of which these classes are dropped unless others are named:

====== ======================= ======== ==========================================================
number name                    dropped  what it is
====== ======================= ======== ==========================================================
0      no_data                 yes      outside the swath
1      saturated_or_defective  yes
2      dark_area               no       topographic shadow and other dark ground
3      cloud_shadow            yes
4      vegetation              no
5      not_vegetated           no       bare ground, built-up land
6      water                   no
7      unclassified            no       often thin cloud at the rim of a cloud; drop it to be strict
8      cloud_medium            yes      cloud, medium probability
9      cloud_high              yes      cloud, high probability
10     thin_cirrus             yes
11     snow                    no       snow or ice is what was there to be seen
====== ======================= ======== ==========================================================
"""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axs_lib.errors import InputError
from axs_lib.io.raster import FloatArray, Raster, listed

SCL_CLASSES: tuple[str, ...] = (
    "no_data",
    "saturated_or_defective",
    "dark_area",
    "cloud_shadow",
    "vegetation",
    "not_vegetated",
    "water",
    "unclassified",
    "cloud_medium",
    "cloud_high",
    "thin_cirrus",
    "snow",
)
SCL_DROPPED: tuple[str, ...] = (
    "no_data",
    "saturated_or_defective",
    "cloud_shadow",
    "cloud_medium",
    "cloud_high",
    "thin_cirrus",
)
MASK_SUFFIXES = (".tif", ".tiff", ".jp2", ".png", ".npz")
MASK_KEYS = ("trust", "mask", "scl")
MASK_KINDS = ("auto", "boolean", "trust", "scl")
_DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG", ".png": "PNG"}


@dataclass(frozen=True)
class Mask:
    """A mask on the grid of its image.

    Attributes:
        trust: float32 (N,1,H,W) in 0..1, 1 where the image was observed clear and 0 where it is unknown.
        kind: what the file's values were taken for: ``boolean``, ``trust`` or ``scl``.
    """

    trust: FloatArray
    kind: str

    @property
    def unknown(self) -> float:
        """Share of the pixels that are unknown."""
        return float((self.trust == 0).mean())


def read_mask(
    path: str | Path,
    like: Raster,
    *,
    kind: str = "auto",
    invert: bool = False,
    drop: Iterable[str | int] | None = None,
    buffer: int = 0,
) -> Mask:
    """Read the mask of an image.

    A georeferenced mask on another grid, such as SCL at 20 m, is brought to the image's by nearest neighbour; without
    georeference it must have the image's size. Pixels that the mask's own nodata value marks are unknown.

    Args:
        path: GeoTIFF, JPEG 2000 or PNG of one band, or .npz with ``trust``, ``mask`` or ``scl`` (or one array),
            (H,W) or (N,H,W) for a batch.
        like: the image.
        kind: ``boolean`` (0 is unknown, everything else clear), ``trust`` (numbers in 0..1), ``scl``, or ``auto``: SCL
            where name or band description say so, boolean where all values are 0 and 1 or 0 and 255, SCL where they
            are whole numbers in 0..11, trust where they lie in 0..1.
        invert: 1 means unknown, as in a cloud mask; for boolean masks and trust maps.
        drop: SCL classes that count as unknown, by name or number; default ``SCL_DROPPED``.
        buffer: pixels by which what is unknown grows in every direction, diagonals included.

    Raises:
        InputError: the file cannot be read, lies on another grid or does not cover the image, its values are not what
            ``kind`` says, a class is unknown, an option does not fit the kind, or nothing is clear.
    """
    path = Path(path)
    if buffer < 0:
        raise InputError(f"the buffer of a mask is {buffer} px; expected 0 or more")
    values, named = _read(path, like)
    if values.shape != like.batch[:, 0].shape:
        count, height, width = values.shape
        raise InputError(
            f"{path} holds {count} mask(s) of {height}x{width} px and {like.source} {len(like.batch)} tile(s) of"
            f" {like.size[0]}x{like.size[1]} px (height x width); expected one grid for both. A mask with a CRS and a"
            " transform is resampled to an image that has them too"
        )
    if kind not in MASK_KINDS:
        raise InputError(f"the kind of mask is {kind!r}; expected one of {listed(MASK_KINDS)}")
    found = mask_kind(values, named, path) if kind == "auto" else kind
    if found == "scl":
        if invert:
            raise InputError(
                f"{path} is a scene classification, which has no inverse; name the classes to drop with --drop"
            )
        trust = scl_trust(values, SCL_DROPPED if drop is None else drop, source=str(path))
    else:
        if drop is not None:
            raise InputError(
                f"{path} was taken for a {found} mask, which has no classes to drop; leave --drop out, or say"
                " --mask-kind scl"
            )
        trust = mask_trust(values, found, invert, path)
    trust = grow_unknown(trust[:, None], buffer)
    if not trust.any():
        hint = "drop fewer classes" if found == "scl" else "if 1 means cloud in it, give --mask-invert"
        after = f" after a buffer of {buffer} px" if buffer else ""
        raise InputError(
            f"{path} leaves nothing clear in {like.source}{after}; expected 1 where the image was observed:"
            f" {hint}. To draw an image from SAR alone use axs run"
        )
    return Mask(trust, found)


def scl_numbers(classes: Iterable[str | int]) -> list[int]:
    """The numbers of SCL classes given by name or number, sorted.

    Raises:
        InputError: there is no such class, or none is given.
    """
    numbers, unknown = set(), []
    for each in classes:
        word = re.sub(r"[ -]+", "_", str(each).strip().lower())
        number = int(word) if word.isdecimal() else SCL_CLASSES.index(word) if word in SCL_CLASSES else -1
        if 0 <= number < len(SCL_CLASSES):
            numbers.add(number)
        else:
            unknown.append(str(each))
    if unknown or not numbers:
        table = ", ".join(f"{number} {name}" for number, name in enumerate(SCL_CLASSES))
        raise InputError(
            f"--drop names {listed(unknown) or 'nothing'}; expected classes of the scene classification by name or"
            f" number: {table}"
        )
    return sorted(numbers)


def scl_trust(
    values: NDArray[Any], drop: Iterable[str | int] = SCL_DROPPED, *, source: str = "the mask"
) -> FloatArray:
    """The trust map of a scene classification of any shape: 0 where a dropped class is, or NaN, 1 elsewhere.

    Raises:
        InputError: a value that is no class, or a class to drop that there is not.
    """
    dropped = scl_numbers(drop)
    classes = np.nan_to_num(values, nan=0)
    wrong = np.unique(classes[~np.isin(classes, range(len(SCL_CLASSES)))])
    if wrong.size:
        raise InputError(
            f"{source} holds {listed(f'{value:g}' for value in wrong[:5])}; expected the classes 0 to"
            f" {len(SCL_CLASSES) - 1} of a Sentinel-2 scene classification (SCL)"
        )
    kept = ~np.isin(classes, dropped) & ~np.isnan(values)
    return kept.astype(np.float32)


def grow_unknown(trust: FloatArray, pixels: int) -> FloatArray:
    """Trust maps (N,1,H,W) in which each pixel has the least trust within a square of this radius."""
    if pixels == 0:
        return trust
    import torch

    from axs_lib.data.clouds import spread

    return np.abs(spread(-torch.from_numpy(trust), pixels).numpy())


def mask_trust(values: FloatArray, kind: str, invert: bool, path: Path) -> FloatArray:
    """Trust of boolean masks and trust maps of any shape; NaN is unknown, inverted or not.

    Raises:
        InputError: a trust map leaves 0..1.
    """
    unknown = np.isnan(values)
    if kind == "boolean":
        values = (values != 0).astype(np.float32)
    else:
        low, high = float(np.nanmin(values, initial=0)), float(np.nanmax(values, initial=0))
        if low < 0 or high > 1:
            raise InputError(
                f"{path} runs from {low:g} to {high:g}; expected trust in 0..1, 1 where the image was observed and 0"
                " where it is unknown: divide percentages by 100"
            )
    return np.where(unknown, 0, 1 - values if invert else values).astype(np.float32)


def mask_kind(values: FloatArray, named: str, path: Path) -> str:
    """What the values look like, helped by the name of file, key or band.

    Raises:
        InputError: like nothing that a mask holds.
    """
    known = set(np.unique(values[~np.isnan(values)]).tolist())
    whole = all(value.is_integer() for value in known)
    if whole and "scl" in re.findall(r"[a-z]+", named.lower()) and known <= set(range(len(SCL_CLASSES))):
        return "scl"
    if known <= {0.0, 1.0} or known <= {0.0, 255.0}:
        return "boolean"
    if whole and known <= set(range(len(SCL_CLASSES))):
        return "scl"
    if min(known) >= 0 and max(known) <= 1:
        return "trust"
    raise InputError(
        f"{path} holds {len(known)} values from {min(known):g} to {max(known):g}, which look neither like a boolean"
        " mask (0 and 1, or 0 and 255), a trust map (0..1) nor a scene classification (0 to 11); say which it is:"
        " --mask-kind boolean, trust or scl"
    )


def _read(path: Path, like: Raster) -> tuple[FloatArray, str]:
    """The values (N,H,W) as float32 on the grid of ``like`` where that can be told, NaN for nodata, and names."""
    suffix = path.suffix.lower()
    if suffix not in MASK_SUFFIXES:
        raise InputError(
            f"the mask {path} ends in {suffix or 'no suffix'}; expected one of {listed(MASK_SUFFIXES)}"
        )
    if not path.is_file():
        raise InputError(f"the mask {path} does not exist or is no file; check the path")
    return _read_npz(path) if suffix == ".npz" else _read_image(path, like)


def _read_npz(path: Path) -> tuple[FloatArray, str]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            key = next((key for key in MASK_KEYS if key in archive.files), None)
            if key is None and len(archive.files) == 1:
                key = archive.files[0]
            if key is None:
                raise InputError(
                    f"{path} holds {listed(archive.files) or 'no arrays'}; expected one of {listed(MASK_KEYS)}:"
                    " np.savez(path, mask=array)"
                )
            values = np.asarray(archive[key])
    except InputError:
        raise
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read; expected an .npz of plain numbers written by np.savez (a pickled file is not"
            f" loaded because it can run code): {error}"
        ) from error
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype.kind not in "biuf" or values.ndim not in (2, 3) or values.size == 0:
        raise InputError(
            f"{path}: {key} is {values.dtype} of shape {values.shape}; expected numbers (H,W), or (N,H,W) for a batch"
        )
    return values.reshape(-1, *values.shape[-2:]).astype(np.float32), key


def _read_image(path: Path, like: Raster) -> tuple[FloatArray, str]:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, driver=_DRIVERS[path.suffix.lower()]) as dataset:
                if dataset.count != 1:
                    raise InputError(f"the mask {path} has {dataset.count} bands; expected one")
                values = dataset.read(1).astype(np.float32)
                if dataset.nodata not in (None, 0):  # 0 is unknown already, or clear in an inverted mask
                    values[dataset.read_masks(1) == 0] = np.nan
                named = f"{path.stem} {dataset.descriptions[0] or ''}".replace("_", " ")
                crs, transform = dataset.crs, dataset.transform
    except (RasterioError, OSError) as error:
        raise InputError(
            f"the mask {path} cannot be read; expected a GeoTIFF, JPEG 2000 or PNG: {error}"
        ) from error
    if crs is not None and like.crs is not None and like.transform is not None:
        values = _on_grid(values, (crs, transform), (like.crs, like.transform), like, path)
    return values[None], named


def _on_grid(
    values: FloatArray,
    grid: tuple[Any, Any],
    target: tuple[str, tuple[float, ...]],
    like: Raster,
    path: Path,
) -> FloatArray:
    """The values (h,w) at the pixel centres of an image, by nearest neighbour; grids are CRS and transform."""
    from rasterio.crs import CRS
    from rasterio.transform import Affine
    from rasterio.warp import Resampling, reproject

    crs, transform = CRS.from_wkt(target[0]), Affine(*target[1])
    if (crs, like.size) == (grid[0], values.shape) and transform.almost_equals(grid[1]):
        return values

    def warp(source: FloatArray) -> FloatArray:
        result = np.full(like.size, np.nan, dtype=np.float32)
        reproject(
            source, result, src_crs=grid[0], src_transform=grid[1], dst_crs=crs, dst_transform=transform,
            dst_nodata=np.nan, resampling=Resampling.nearest,
        )  # fmt: skip
        return result

    covered = ~np.isnan(warp(np.ones_like(values)))
    if not covered.all():
        raise InputError(
            f"the mask {path} covers {100 * covered.mean():.0f} % of {like.source}; expected a mask of the same place"
            " that covers it all"
        )
    return warp(values)
