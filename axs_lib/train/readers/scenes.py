"""Pairs of GeoTIFF scenes, ``<name>_s1.tif`` and ``<name>_s2.tif`` anywhere below a folder, read by window.

The optical image fixes the grid; a crop's SAR is warped onto it in linear power (mean backscatter, not mean dB), with
settings that make a pixel's value independent of the window it is read in. Scenes whose footprints overlap are one
group, whatever their dates.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS, SAR_BANDS, VALID_DN
from axs_lib.errors import InputError
from axs_lib.io.raster import Raster, band_name
from axs_lib.train.readers.bigearthnet import place
from axs_lib.train.readers.sample import Array, Crop, Listing, Sample, Window

MARGIN = 4  # px of SAR read around a crop, more than bilinear warping reaches
POWER_FLOOR = 1e-6  # -60 dB
Box = tuple[float, float, float, float]  # west, south, east, north


@dataclass(frozen=True, kw_only=True)
class SceneSample(Sample):
    """One pair of scenes.

    Attributes:
        s1: SAR GeoTIFF with bands VV and VH.
        s2: optical GeoTIFF with bands B02, B03, B04, B08.
        s1_unit: ``dB`` or ``power``.
        boa_offset: DN that the optical file carries on top of reflectance x 10000.
    """

    s1: Path
    s2: Path
    s1_unit: str = "dB"
    boa_offset: float = 0.0

    def read(self, window: Window | None = None) -> Crop:
        from rasterio.errors import RasterioError

        try:
            return self._read(window or Window(0, 0, self.height, self.width))
        except (RasterioError, OSError) as error:
            raise InputError(
                f"{self.s2} or {self.s1.name} cannot be read at {window} ({str(error)[:120]}): it is damaged or"
                " truncated; write it again"
            ) from error

    def _read(self, window: Window) -> Crop:
        import rasterio
        from rasterio.windows import Window as RasterWindow

        with rasterio.open(self.s2) as dataset:
            area = RasterWindow(window.left, window.top, window.width, window.height)
            indexes = _indexes(dataset, OPTICAL_BANDS)
            raw = dataset.read(indexes, window=area).astype(np.float32)
            valid = (dataset.read_masks(indexes, window=area) != 0) & np.isfinite(raw) & (raw != 0).any(0)
            for band, index in enumerate(indexes):
                scale, offset = dataset.scales[index - 1], dataset.offsets[index - 1]
                if (scale, offset) != (1.0, 0.0):
                    raw[band] = raw[band] * (scale * DN_PER_REFLECTANCE) + offset * DN_PER_REFLECTANCE
            truth = np.where(valid, np.clip(raw - self.boa_offset, *VALID_DN), np.nan).astype(np.float32)
            grid = Raster(
                truth, OPTICAL_BANDS, dataset.crs.to_wkt(), tuple(dataset.window_transform(area))[:6]
            )
        date = re.search(r"(?<!\d)((?:19|20)\d\d)-?([01]\d)-?([0-3]\d)(?!\d)", self.s2.stem)
        metadata = place(grid) | ({"date": "-".join(date.groups())} if date else {})
        return Crop(self._warp_sar(grid), truth, metadata=metadata)

    def _warp_sar(self, grid: Raster) -> Array:
        """(2, h, w) dB on the grid, NaN outside the SAR image."""
        import rasterio
        from rasterio import Affine
        from rasterio.transform import array_bounds
        from rasterio.warp import Resampling, reproject, transform_bounds
        from rasterio.windows import Window as RasterWindow
        from rasterio.windows import from_bounds

        assert grid.transform is not None
        transform = Affine(*grid.transform)
        power = np.full((len(SAR_BANDS), *grid.size), np.nan, dtype=np.float32)
        with rasterio.open(self.s1) as dataset:
            bounds = transform_bounds(grid.crs, dataset.crs, *array_bounds(*grid.size, transform))
            around = from_bounds(*bounds, transform=dataset.transform)
            top, left = max(0, int(around.row_off) - MARGIN), max(0, int(around.col_off) - MARGIN)
            bottom = min(dataset.height, int(around.row_off + around.height) + 1 + MARGIN)
            right = min(dataset.width, int(around.col_off + around.width) + 1 + MARGIN)
            if bottom <= top or right <= left:
                return power
            area = RasterWindow(left, top, right - left, bottom - top)
            indexes = _indexes(dataset, SAR_BANDS)
            source = dataset.read(indexes, window=area).astype(np.float32)
            valid = (dataset.read_masks(indexes, window=area) != 0) & np.isfinite(source)
            if self.s1_unit == "dB":
                source = np.power(10.0, source / 10.0, dtype=np.float32)
            else:
                valid &= source > 0
            source[~valid] = np.nan
            reproject(
                source,
                power,
                src_transform=dataset.window_transform(area),
                src_crs=dataset.crs,
                src_nodata=np.nan,
                dst_transform=transform,
                dst_crs=grid.crs,
                dst_nodata=np.nan,
                resampling=Resampling.bilinear,
                XSCALE=1,
                YSCALE=1,
                tolerance=1e-6,
            )
        with np.errstate(invalid="ignore"):
            return np.asarray(10.0 * np.log10(np.maximum(power, POWER_FLOOR)), dtype=np.float32)


def list_scenes(folder: Path, s1_unit: str = "dB", boa_offset: float = 0.0) -> Listing:
    """Pairs of scenes below a folder.

    Raises:
        InputError: no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected one with NAME_s1.tif and NAME_s2.tif in it")
    listing = Listing()
    found: dict[Path, dict[str, Path]] = {}
    for path in sorted(folder.rglob("*.tif*")):
        name = re.fullmatch(r"(.+)_(s1|s2)\.tiff?", path.name, re.IGNORECASE)
        if name and not path.name.startswith("."):
            found.setdefault(path.with_name(name[1]), {})[name[2].lower()] = path
    footprints: list[Box] = []
    for stem, files in found.items():
        lacking = {"s1", "s2"} - set(files)
        if lacking:
            listing.problems.append(
                f"{next(iter(files.values()))}: {stem.name}_{lacking.pop()}.tif is missing"
            )
            continue
        try:
            height, width, footprint = _check_scene(files["s1"], files["s2"])
        except InputError as error:
            listing.problems.append(str(error))
            continue
        where = stem.parent.relative_to(folder)
        sample = SceneSample(
            source=where.as_posix() if where.parts else "scenes",
            id=stem.name,
            group=stem.relative_to(folder).as_posix(),
            height=height,
            width=width,
            s1=files["s1"],
            s2=files["s2"],
            s1_unit=s1_unit,
            boa_offset=boa_offset,
        )
        listing.samples.append(sample)
        footprints.append(footprint)
    listing.samples = _grouped(listing.samples, footprints)
    return listing


def _check_scene(s1: Path, s2: Path) -> tuple[int, int, Box]:
    """Height, width and footprint (west, south, east, north in degrees) of the optical image."""
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_bounds

    boxes = {}
    size = (0, 0)
    for path, bands in ((s1, SAR_BANDS), (s2, OPTICAL_BANDS)):
        try:
            with rasterio.open(path, driver="GTiff") as dataset:
                if dataset.crs is None:
                    raise InputError(f"{path} has no CRS; expected a georeferenced GeoTIFF")
                _indexes(dataset, bands)
                boxes[path] = transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds)
                size = (dataset.height, dataset.width)
        except (RasterioError, OSError) as error:
            raise InputError(f"{path} is no readable GeoTIFF ({str(error)[:120]})") from error
    if not _overlap(boxes[s1], boxes[s2]):
        raise InputError(f"{s1} and {s2.name} show different places: their footprints do not meet")
    return *size, boxes[s2]


def _indexes(dataset: Any, wanted: tuple[str, ...]) -> list[int]:
    """1-based numbers of the wanted bands, by their descriptions; an undescribed stack is in the library's order."""
    names = [band_name(text) for text in dataset.descriptions]
    if not any(names) and dataset.count == len(wanted):
        return list(range(1, len(wanted) + 1))
    missing = [band for band in wanted if band not in names]
    if missing:
        raise InputError(
            f"{dataset.name} has {dataset.count} band(s), described as {', '.join(str(n) for n in names)}; lacks"
            f" {', '.join(missing)}: describe the bands as {', '.join(wanted)}, or store exactly these in this order"
        )
    return [names.index(band) + 1 for band in wanted]


def _grouped(samples: list[Sample], footprints: list[Box]) -> list[Sample]:
    """The scenes with one group for each set of scenes that hang together by overlapping footprints."""
    groups = [sample.group for sample in samples]
    for i, j in itertools.combinations(range(len(samples)), 2):
        if groups[i] != groups[j] and _overlap(footprints[i], footprints[j]):
            groups = [groups[i] if group == groups[j] else group for group in groups]
    return [replace(sample, group=group) for sample, group in zip(samples, groups, strict=True)]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
