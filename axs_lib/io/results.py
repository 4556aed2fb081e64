"""Write results: Cloud Optimized GeoTIFFs row by row, .npz and .pt at once, atomically and with provenance.

In: rows or whole arrays in DN with NaN for nodata, the grid, and tags. Out: files whose format is named by their
suffix, with named bands, georeference, nodata, units, scale, colours, overviews and tags. Rows of a GeoTIFF go to a
plain tiled
one in a folder beside the output, which GDAL then copies with all cores; the folder is removed whatever happens.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS, SAR_BANDS, VALID_DN
from axs_lib.errors import InputError, OutputError
from axs_lib.io.atomic import atomic_write, temporary_folder
from axs_lib.io.grid import SceneGrid
from axs_lib.io.raster import SUFFIXES, TIFF_SUFFIXES, FloatArray, Raster, TilePair, listed

PathLike = str | os.PathLike[str]
Tags = Mapping[str, str]
BLOCK = 512
_COLOURS = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir", "VV": "gray"}
_LITTLE_SPACE = 2**24  # bytes left, below which a refusal means that the disk is full


@dataclass(frozen=True)
class Layer:
    """How a kind of image is stored.

    Attributes:
        name: of the layer.
        bands: names.
        dtype: ``"uint16"``, where valid DN are 1..65535, or ``"float32"``.
        nodata: 0 or NaN.
        unit: of the values.
        scale: factor to the physical quantity, or None.
    """

    name: str
    bands: tuple[str, ...]
    dtype: str
    nodata: float
    unit: str
    scale: float | None = None

    def encode(self, data: FloatArray) -> Any:
        """Values (C, h, w) with NaN for nodata, as stored."""
        return to_uint16(data) if self.dtype == "uint16" else data.astype(np.float32)


def optical_layer(name: str) -> Layer:
    """An optical image in DN."""
    return Layer(name, OPTICAL_BANDS, "uint16", 0, "DN", 1 / DN_PER_REFLECTANCE)


UNCERTAINTY = Layer("uncertainty", OPTICAL_BANDS, "float32", np.nan, "DN")
GATE = Layer("gate", ("gate",), "float32", np.nan, "1")
SAR_CONTRIBUTION = Layer("sar_contribution", OPTICAL_BANDS, "float32", np.nan, "DN")
SAR = Layer("s1", SAR_BANDS, "float32", np.nan, "dB")


class CogWriter:
    """Rows of one layer on their way to a COG.

    Args:
        layer: how it is stored.
        grid: of the scene.
        target: the output; its folder must be there.
        stack: removes what is temporary.
    """

    def __init__(self, layer: Layer, grid: SceneGrid, target: Path, stack: ExitStack) -> None:
        import rasterio
        from rasterio.crs import CRS
        from rasterio.enums import ColorInterp
        from rasterio.transform import Affine

        self.layer, self.grid, self.target = layer, grid, target
        self._folder = stack.enter_context(temporary_folder(target.parent))
        profile: dict[str, Any] = {
            "driver": "GTiff",
            "count": len(layer.bands),
            "height": grid.height,
            "width": grid.width,
            "dtype": layer.dtype,
            "nodata": layer.nodata,
            "tiled": True,
            "blockxsize": BLOCK,
            "blockysize": BLOCK,
            "photometric": "minisblack",
            "BIGTIFF": "IF_SAFER",
        }
        if grid.crs is not None and grid.transform is not None:
            profile |= {"crs": CRS.from_wkt(grid.crs), "transform": Affine(*grid.transform)}
        self._rows = stack.enter_context(rasterio.open(self._folder / "rows.tif", "w", **profile))
        self._rows.descriptions = layer.bands
        self._rows.units = (layer.unit,) * len(layer.bands)
        colours = ["gray"] if len(layer.bands) == 1 else [_COLOURS.get(b, "undefined") for b in layer.bands]
        # "nir" is a colour of GDAL 3.10 and later
        self._rows.colorinterp = [getattr(ColorInterp, c, ColorInterp.undefined) for c in colours]
        if layer.scale is not None:
            self._rows.scales = (layer.scale,) * len(layer.bands)
            self._rows.offsets = (0.0,) * len(layer.bands)

    def write(self, top: int, data: FloatArray) -> None:
        """Add rows (C, n, W) from row ``top`` on.

        Raises:
            OutputError: the disk refuses.
        """
        from rasterio.errors import RasterioError

        window = ((top, top + data.shape[1]), (0, self.grid.width))
        try:
            self._rows.write(self.layer.encode(data), window=window)
        except (RasterioError, OSError) as error:
            raise self._refused(error) from error

    def finish(self, tags: Mapping[str, str]) -> Path:
        """Make the COG.

        Returns:
            Its temporary path, on the file system of the output.

        Raises:
            OutputError: the disk refuses.
        """
        from rasterio.shutil import copy

        cog = self._folder / "cog.tif"
        try:
            self._rows.update_tags(**tags)
            self._rows.close()
            copy(
                self._rows.name,
                cog,
                driver="COG",
                COMPRESS="DEFLATE",
                LEVEL=1,  # measured: a third less time than the default for no larger a file
                PREDICTOR="YES",
                BLOCKSIZE=BLOCK,
                OVERVIEWS="AUTO",
                OVERVIEW_RESAMPLING="AVERAGE",
                NUM_THREADS="ALL_CPUS",
                BIGTIFF="IF_SAFER",
            )
            _check_whole(cog)
        except Exception as error:  # GDAL's own errors have no public class
            raise self._refused(error) from error
        return cog

    def _refused(self, error: Exception) -> OutputError:
        refusal = OutputError(
            f"cannot write {self.target}: the disk is full or refuses ({error}); free some space (a scene needs up to"
            " twice its uncompressed size for a while) or choose another folder"
        )
        if shutil.disk_usage(self.target.parent).free < _LITTLE_SPACE:
            refusal.__context__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return refusal


class ArrayWriter:
    """Rows of one layer on their way to an array (C, H, W)."""

    def __init__(self, bands: int, grid: SceneGrid) -> None:
        self.data: FloatArray = np.empty((bands, *grid.size), dtype=np.float32)

    def write(self, top: int, data: FloatArray) -> None:
        """Add rows (C, n, W) from row ``top`` on."""
        self.data[:, top : top + data.shape[1]] = data


def _check_whole(cog: Path) -> None:
    """GDAL may close a file cut short by a full disk without a word; the last block is written last.

    Raises:
        OSError: the file ends before its last block does.
    """
    import rasterio

    with rasterio.open(cog) as dataset:
        rows, columns = dataset.block_shapes[0]
        last = f"{(dataset.width - 1) // columns}_{(dataset.height - 1) // rows}"
        start = dataset.get_tag_item(f"BLOCK_OFFSET_{last}", "TIFF", bidx=1)
        size = dataset.get_tag_item(f"BLOCK_SIZE_{last}", "TIFF", bidx=1)
    if start is None or size is None or int(start) + int(size) > cog.stat().st_size:
        raise OSError(f"{cog.stat().st_size} bytes were written, which is not all")


def check_suffix(path: PathLike, batch: int = 1) -> str:
    """The lower-case suffix of an output.

    Raises:
        InputError: it is not one of ``SUFFIXES``, or a batch is to go into one GeoTIFF.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path} ends in {suffix or 'no suffix'}; expected an output named {listed(SUFFIXES)}")
    if suffix in TIFF_SUFFIXES and batch != 1:
        raise InputError(f"{path}: a GeoTIFF holds one tile and the input holds {batch}; name it .npz or .pt")
    return suffix


def write_layer(
    path: PathLike, layer: Layer, data: FloatArray, grid: SceneGrid, tags: Tags, *, overwrite: bool = False
) -> None:
    """Write one image (C,H,W) as a COG.

    Raises:
        OutputError: the file exists, or the disk refuses.
    """
    with ExitStack() as stack, atomic_write(path, overwrite) as temporary:
        writer = CogWriter(layer, grid, temporary, stack)
        writer.write(0, data)
        writer.finish(tags).replace(temporary)


def write_image(
    path: PathLike, image: NDArray[Any], tile: TilePair, *, tags: Tags | None = None, overwrite: bool = False
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
    write_result(path, optical_layer("opt_v3"), image, tile, tags=tags, overwrite=overwrite)


def write_uncertainty(
    path: PathLike, spread: NDArray[Any], tile: TilePair, *, tags: Tags | None = None, overwrite: bool = False
) -> None:
    """Write an uncertainty map (N,4,H,W), standard deviation in DN, as float32; else as ``write_image``."""
    write_result(path, UNCERTAINTY, spread, tile, tags=tags, overwrite=overwrite)


def write_result(
    path: PathLike,
    layer: Layer,
    values: NDArray[Any],
    tile: TilePair,
    *,
    tags: Tags | None = None,
    overwrite: bool = False,
) -> None:
    """Write a layer (N,C,H,W) of a result in the format its suffix names; see ``write_image``."""
    values = np.asarray(values, dtype=np.float32)
    suffix = check_suffix(path, len(values))
    if suffix in TIFF_SUFFIXES:
        write_layer(
            path, layer, values[0], grid_like(tile.opt_v2), {**tile.opt_v2.tags, **(tags or {})}, overwrite=overwrite
        )
    elif suffix == ".npz":
        _write_bytes(path, _npz(layer.name, values, tile, tags or {}), overwrite)
    else:
        _write_bytes(path, _pt(values if tile.opt_v2.batched else values[0]), overwrite)


def write_tiff(path: PathLike, data: NDArray[Any], like: Raster, *, overwrite: bool = False) -> None:
    """Write one tile on the grid of ``like``: (4,H,W) DN as uint16, (2,H,W) dB as float32.

    Raises:
        OutputError: the file exists, or the disk refuses.
    """
    layer = SAR if len(data) == len(SAR_BANDS) else optical_layer("opt_v3")
    write_layer(path, layer, np.asarray(data, dtype=np.float32), grid_like(like), like.tags, overwrite=overwrite)


def grid_like(raster: Raster) -> SceneGrid:
    """The grid of a raster."""
    return SceneGrid(*raster.size, raster.crs, raster.transform)


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


def _npz(key: str, values: FloatArray, tile: TilePair, tags: Tags) -> bytes:
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
