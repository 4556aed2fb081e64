"""Write results: grounded images and uncertainty maps as .tif, .npz or .pt, atomically, with provenance.

In: arrays (N,4,H,W) in DN with NaN for nodata, the ``Tile`` they were made from, and tags. Out: a file whose
format is named by its suffix, with named bands, the georeference of the input and nodata where the input had none.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS, SAR_BANDS, VALID_DN
from axs_lib.errors import InputError
from axs_lib.io.atomic import atomic_write
from axs_lib.io.raster import SUFFIXES, TIFF_SUFFIXES, FloatArray, Raster, Tile, listed

PathLike = str | os.PathLike[str]
Tags = Mapping[str, str]


def check_suffix(path: PathLike, batch: int = 1) -> str:
    """The lower-case suffix of an output.

    Raises:
        InputError: it is not one of ``SUFFIXES``, or a batch is to go into one GeoTIFF.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path} ends in {suffix or 'no suffix'}; expected an output named {listed(SUFFIXES)}"
        )
    if suffix in TIFF_SUFFIXES and batch != 1:
        raise InputError(f"{path}: a GeoTIFF holds one tile and the input holds {batch}; name it .npz or .pt")
    return suffix


def write_image(
    path: PathLike, image: NDArray[Any], tile: Tile, *, tags: Tags | None = None, overwrite: bool = False
) -> None:
    """Write a grounded optical image in the format its suffix names.

    ``.tif``: uint16 DN in 1..65535, nodata 0, named bands, georeference and tags of opt_v2, and ``tags``.
    ``.npz``: ``opt_v3`` float32 with the inputs, truth, georeference and tags (``provenance``, JSON).
    ``.pt``: the tensor alone.

    Args:
        path: the output.
        image: (N,4,H,W) DN, NaN is nodata.
        tile: the inputs it was made from.
        tags: provenance for the file.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: the suffix cannot be written, or a batch is to go into one GeoTIFF.
        OutputError: the file exists, or the disk refuses.
    """
    _write("opt_v3", path, image, tile, tags or {}, overwrite)


def write_uncertainty(
    path: PathLike, spread: NDArray[Any], tile: Tile, *, tags: Tags | None = None, overwrite: bool = False
) -> None:
    """Write an uncertainty map (N,4,H,W), standard deviation in DN, as float32; else as ``write_image``."""
    _write("uncertainty", path, spread, tile, tags or {}, overwrite)


def write_sar_contribution(
    path: PathLike, change: NDArray[Any], tile: Tile, *, tags: Tags | None = None, overwrite: bool = False
) -> None:
    """Write the change that the SAR asked for (N,4,H,W), in DN, as float32; else as ``write_image``."""
    _write("sar_contribution", path, change, tile, tags or {}, overwrite)


def write_tiff(path: PathLike, data: NDArray[Any], like: Raster, *, overwrite: bool = False) -> None:
    """Write one tile on the grid of ``like``: (4,H,W) DN as uint16, (2,H,W) dB as float32.

    Raises:
        OutputError: the file exists, or the disk refuses.
    """
    payload = sar_tiff(data, like) if len(data) == len(SAR_BANDS) else optical_tiff(data, like, like.tags)
    _write_bytes(path, payload, overwrite)


def write_arrays(
    path: PathLike,
    arrays: Mapping[str, NDArray[Any]],
    like: Raster,
    *,
    tags: Tags | None = None,
    overwrite: bool = False,
) -> None:
    """Write named arrays as one .npz with the georeference of ``like`` and tags (``provenance``, JSON).

    Raises:
        OutputError: the file exists, or the disk refuses.
    """
    _write_bytes(path, _npz_bytes(arrays, like, tags or {}), overwrite)


def to_uint16(data: NDArray[Any]) -> NDArray[np.uint16]:
    """DN as stored: rounded, clipped to 1..65535 so that dark water never becomes nodata, 0 where NaN."""
    nodata = np.isnan(data)
    return np.where(nodata, 0, np.clip(np.rint(np.where(nodata, 1, data)), *VALID_DN)).astype(np.uint16)


def optical_tiff(data: NDArray[Any], like: Raster, tags: Tags) -> bytes:
    """A uint16 GeoTIFF of one optical tile (4,H,W) in DN, scale 0.0001, nodata 0."""
    return _tiff(
        to_uint16(data), OPTICAL_BANDS, like, tags, nodata=0, unit="DN", scale=1 / DN_PER_REFLECTANCE
    )


def spread_tiff(data: NDArray[Any], like: Raster, tags: Tags) -> bytes:
    """A float32 GeoTIFF of a per-band standard deviation (4,H,W) in DN, nodata NaN."""
    return _tiff(data.astype(np.float32), OPTICAL_BANDS, like, tags, nodata=np.nan, unit="DN")


def sar_tiff(data: NDArray[Any], like: Raster) -> bytes:
    """A float32 GeoTIFF of one SAR tile (2,H,W) in dB, nodata NaN."""
    return _tiff(data.astype(np.float32), SAR_BANDS, like, like.tags, nodata=np.nan, unit="dB")


def _write(key: str, path: PathLike, values: NDArray[Any], tile: Tile, tags: Tags, overwrite: bool) -> None:
    values = np.asarray(values, dtype=np.float32)
    suffix = check_suffix(path, len(values))
    if suffix in TIFF_SUFFIXES:
        encode = optical_tiff if key == "opt_v3" else spread_tiff
        payload = encode(values[0], tile.opt_v2, {**tile.opt_v2.tags, **tags})
    elif suffix == ".npz":
        payload = _npz(key, values, tile, tags)
    else:
        payload = _pt(values if tile.opt_v2.batched else values[0])
    _write_bytes(path, payload, overwrite)


def _tiff(
    data: NDArray[Any],
    bands: tuple[str, ...],
    like: Raster,
    tags: Tags,
    *,
    nodata: float,
    unit: str,
    scale: float | None = None,
) -> bytes:
    """Encode in memory, so that a full disk is an ordinary write error and not GDAL's silence on closing."""
    from rasterio.crs import CRS
    from rasterio.enums import ColorInterp
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile
    from rasterio.transform import Affine

    colours = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir", "VV": "gray", "VH": "undefined"}
    count, height, width = data.shape
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": count,
        "height": height,
        "width": width,
        "dtype": data.dtype.name,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": _block(width),
        "blockysize": _block(height),
        "compress": "deflate",
        "zlevel": 9,
        "predictor": 3 if data.dtype.kind == "f" else 2,
        "photometric": "minisblack",
    }
    if like.crs is not None:
        profile["crs"] = CRS.from_wkt(like.crs)
    if like.transform is not None:
        profile["transform"] = Affine(*like.transform)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with MemoryFile() as memory:
            with memory.open(**profile) as dataset:
                dataset.descriptions = bands
                dataset.units = (unit,) * count
                # "nir" is a colour of GDAL 3.10 and later
                dataset.colorinterp = [getattr(ColorInterp, colours[b], ColorInterp.undefined) for b in bands]
                if scale is not None:
                    dataset.scales = (scale,) * count
                    dataset.offsets = (0.0,) * count
                dataset.update_tags(**tags)
                dataset.write(data)
            return bytes(memory.read())


def _block(size: int) -> int:
    """Side of a TIFF block: the tile's own where it is small, a multiple of 16 as the format demands."""
    return min(256, -(-size // 16) * 16)


def _npz(key: str, values: FloatArray, tile: Tile, tags: Tags) -> bytes:
    one = not tile.opt_v2.batched
    arrays: dict[str, Any] = {key: values[0] if one else values, "opt_v2": tile.opt_v2.data}
    if one:
        arrays["s1_vv"], arrays["s1_vh"] = tile.s1.data
    else:
        arrays["s1"] = tile.s1.data
    if tile.truth is not None:
        arrays["s2_real"] = tile.truth.data
    if tile.trust is not None:
        arrays["trust"] = tile.trust
    return _npz_bytes(arrays, tile.opt_v2, tags)


def _npz_bytes(arrays: Mapping[str, NDArray[Any]], like: Raster, tags: Tags) -> bytes:
    located: dict[str, Any] = dict(arrays)
    if like.crs is not None:
        located["crs"] = np.array(like.crs)
    if like.transform is not None:
        located["transform"] = np.array(like.transform, dtype=np.float64)
    if tags:
        located["provenance"] = np.array(json.dumps(dict(tags), sort_keys=True))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **located)
    return buffer.getvalue()


def _pt(values: FloatArray) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(torch.from_numpy(np.ascontiguousarray(values)), buffer)
    return buffer.getvalue()


def _write_bytes(path: PathLike, payload: bytes, overwrite: bool) -> None:
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(payload)
