"""Write a layer of a scene row by row into a Cloud Optimized GeoTIFF that takes its name when it is whole.

In: finished rows, from top to bottom, in DN with NaN for nodata. Out: a COG with named bands, nodata, units, scale,
colours, overviews and tags. Rows go to a plain tiled GeoTIFF in a folder beside the output, which GDAL then copies
with all cores; the folder is removed whatever happens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.errors import OutputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.raster import FloatArray
from axs_lib.io.results import to_uint16

COG_SUFFIXES = (".tif", ".tiff")
BLOCK = 512
_COLOURS = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}


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
        self._folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix=".axs-cog.", dir=target.parent))
        )
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
        colours = (
            ("gray",) if len(layer.bands) == 1 else tuple(_COLOURS.get(b, "undefined") for b in layer.bands)
        )
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
        from rasterio._err import CPLE_BaseError
        from rasterio.errors import RasterioError
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
        except (RasterioError, CPLE_BaseError, OSError) as error:
            raise self._refused(error) from error
        return cog

    def _refused(self, error: Exception) -> OutputError:
        return OutputError(
            f"cannot write {self.target}: the disk is full or refuses ({error}); free some space (a scene needs up to"
            " twice its uncompressed size for a while) or choose another folder"
        )


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
