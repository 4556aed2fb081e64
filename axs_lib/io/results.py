"""Write results: Cloud Optimized GeoTIFFs row by row, .npz and .pt at once, atomically and with provenance.

In: rows or whole arrays with NaN for nodata, the grid, and tags. Rows of a GeoTIFF go to a plain tiled one in a folder
beside the output, which GDAL then copies with all cores; the folder is removed whatever happens.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS, SAR_BANDS, VALID_DN
from axs_lib.errors import InputError, OutputError, listed
from axs_lib.io.atomic import atomic_write, temporary_folder, write_torch
from axs_lib.io.files import PathLike
from axs_lib.io.formats import FloatArray
from axs_lib.io.grid import SceneGrid
from axs_lib.io.raster import SUFFIXES, TIFF_SUFFIXES

Tags = Mapping[str, str]
BLOCK = 512
_COLOURS = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir", "VV": "gray"}
_COG = {
    "COMPRESS": "DEFLATE", "LEVEL": 1,  # measured: a third less time than the default for no larger a file
    "PREDICTOR": "YES", "OVERVIEWS": "AUTO", "OVERVIEW_RESAMPLING": "AVERAGE", "NUM_THREADS": "ALL_CPUS",
    "BIGTIFF": "IF_SAFER",
}  # fmt: skip
_LITTLE_SPACE = 2**24  # bytes left, below which a refusal means that the disk is full


@dataclass(frozen=True)
class Layer:
    """How a kind of image is stored."""

    name: str
    bands: tuple[str, ...]
    dtype: str  # "uint16", where valid DN are 1..65535, or "float32"
    nodata: float  # 0 or NaN
    unit: str
    scale: float | None = None  # factor to the physical quantity

    def encode(self, data: FloatArray) -> Any:
        """Values (C, h, w) with NaN for nodata, as stored."""
        return to_uint16(data) if self.dtype == "uint16" else data.astype(np.float32)


def optical_layer(name: str) -> Layer:
    """An optical image in DN."""
    return Layer(name, OPTICAL_BANDS, "uint16", 0, "DN", 1 / DN_PER_REFLECTANCE)


UNCERTAINTY = Layer("uncertainty", OPTICAL_BANDS, "float32", np.nan, "DN")
GATE = Layer("gate", ("gate",), "float32", np.nan, "1")
SAR_CONTRIBUTION = Layer("sar_contribution", OPTICAL_BANDS, "float32", np.nan, "DN")
MAPS = (UNCERTAINTY, GATE, SAR_CONTRIBUTION)
CALIBRATE = "the uncertainty of this head is not calibrated; experiments/calibrate.py does it"
SAR = Layer("s1", SAR_BANDS, "float32", np.nan, "dB")


class CogWriter:
    """Rows of one layer on their way to a COG at ``target``, whose folder must be there; the stack tidies up."""

    def __init__(self, layer: Layer, grid: SceneGrid, target: Path, stack: ExitStack) -> None:
        self.layer, self.grid, self.target = layer, grid, target
        self._folder = stack.enter_context(temporary_folder(target.parent))
        count = len(layer.bands)
        rows = grid.new_tiff(self._folder / "rows.tif", count, layer.dtype, layer.nodata, BLOCK)
        self._rows = stack.enter_context(rows)
        self._rows.descriptions = layer.bands
        self._rows.units = (layer.unit,) * count
        colours = ["gray"] if count == 1 else [_COLOURS.get(band, "undefined") for band in layer.bands]
        # "nir" is a colour of GDAL 3.10 and later
        self._rows.colorinterp = [getattr(ColorInterp, colour, ColorInterp.undefined) for colour in colours]
        if layer.scale is not None:
            self._rows.scales, self._rows.offsets = (layer.scale,) * count, (0.0,) * count

    def write(self, top: int, data: FloatArray) -> None:
        """Add rows (C, n, W) from row ``top`` on; ``OutputError`` where the disk refuses."""
        window = ((top, top + data.shape[1]), (0, self.grid.width))
        try:
            self._rows.write(self.layer.encode(data), window=window)
        except (RasterioError, OSError) as error:
            self._refuse(error)

    def finish(self, tags: Tags, path: Path) -> None:
        """Make the COG at a path on the output's file system; ``OutputError`` where the disk refuses."""
        cog = self._folder / "cog.tif"
        try:
            self._rows.update_tags(**tags)
            self._rows.close()
            rasterio.shutil.copy(self._rows.name, cog, driver="COG", BLOCKSIZE=BLOCK, **_COG)
            _check_whole(cog)
        except Exception as error:  # GDAL's own errors have no public class
            self._refuse(error)
        cog.replace(path)

    def _refuse(self, error: Exception) -> NoReturn:
        """GDAL does not tell a full disk from another fault, so the space left has to."""
        full = shutil.disk_usage(self.target.parent).free < _LITTLE_SPACE
        raise OutputError(
            f"cannot write {self.target}: the disk is full or refuses ({error}); free some space (a scene needs up to"
            " twice its uncompressed size for a while) or choose another folder"
        ) from (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else error)


def _check_whole(cog: Path) -> None:
    """Raises OSError where GDAL closed a file cut short without a word; the last block is written last."""
    with rasterio.open(cog) as dataset:
        rows, columns = dataset.block_shapes[0]
        last = f"{(dataset.width - 1) // columns}_{(dataset.height - 1) // rows}"
        start = dataset.get_tag_item(f"BLOCK_OFFSET_{last}", "TIFF", bidx=1)
        size = dataset.get_tag_item(f"BLOCK_SIZE_{last}", "TIFF", bidx=1)
    if start is None or size is None or int(start) + int(size) > cog.stat().st_size:
        raise OSError(f"{cog.stat().st_size} bytes were written, which is not all")


def check_suffix(path: PathLike, batch: int = 1) -> None:
    """InputError where an output's suffix is none of ``SUFFIXES``, or a batch is to go into one GeoTIFF."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path} ends in {suffix or 'no suffix'}; expected an output named {listed(SUFFIXES)}")
    if suffix in TIFF_SUFFIXES and batch != 1:
        raise InputError(f"{path}: a GeoTIFF holds one tile and the input holds {batch}; name it .npz or .pt")


def write_layer(
    path: PathLike, layer: Layer, data: NDArray[Any], grid: SceneGrid, tags: Tags, *, overwrite: bool = False
) -> None:
    """Write one image (C,H,W) as a COG. Raises OutputError: the file exists, or the disk refuses."""
    with ExitStack() as stack, atomic_write(path, overwrite) as temporary:
        writer = CogWriter(layer, grid, temporary, stack)
        writer.write(0, np.asarray(data, dtype=np.float32))
        writer.finish(tags, temporary)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], grid: SceneGrid, tags: Tags) -> None:
    """Write arrays, georeference and tags (JSON) as an .npz, or the first array as a .pt, by ``atomic_write``."""
    made = json.dumps(dict(tags), sort_keys=True) if tags else None
    about = {"crs": grid.crs, "transform": grid.transform, "provenance": made}
    stored: dict[str, Any] = {**arrays, **{key: np.array(value) for key, value in about.items() if value is not None}}
    if path.suffix.lower() == ".npz":
        with path.open("wb") as file:
            np.savez_compressed(file, **stored)
    else:
        import torch

        write_torch(path, torch.from_numpy(np.ascontiguousarray(next(iter(arrays.values())))))


def to_uint16(data: NDArray[Any]) -> NDArray[np.uint16]:
    """DN as stored: rounded, clipped to 1..65535 so that dark water never becomes nodata, 0 where NaN."""
    nodata = np.isnan(data)
    return np.where(nodata, 0, np.clip(np.rint(np.where(nodata, 1, data)), *VALID_DN)).astype(np.uint16)
