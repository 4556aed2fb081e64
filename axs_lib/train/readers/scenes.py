"""Pairs of GeoTIFF scenes, ``<name>_s1.tif`` and ``<name>_s2.tif`` anywhere below a folder, read by window.

The optical image fixes the grid, onto which SAR is warped. Scenes whose footprints overlap are one group.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.warp import transform_bounds

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS, VALID_DN
from axs_lib.errors import InputError
from axs_lib.io.formats import FloatArray
from axs_lib.io.grid import SceneGrid
from axs_lib.io.pixels import Reading
from axs_lib.io.products import Source, open_source
from axs_lib.io.warp import to_grid
from axs_lib.tilegrid import Tile
from axs_lib.train.readers.sample import Crop, Listing, TrainingSample, when_and_where

Box = tuple[float, float, float, float]  # west, south, east, north


@dataclass(frozen=True, kw_only=True)
class SceneSample(TrainingSample):
    """One pair of scenes."""

    s1: Path
    s2: Path
    reading: Reading  # unit of the SAR and offset of the DN

    def read(self, window: Tile | None = None) -> Crop:
        sar, optical, _ = _opened(self.s1, self.s2, self.reading, os.getpid())
        tile = window or optical.grid.whole
        truth = np.maximum(optical.read(tile), VALID_DN[0])  # NaN stays NaN
        grid = optical.grid.part(tile)
        return Crop(_warped(sar, grid), truth, metadata=when_and_where(self.s2.stem, optical.grid, tile))


@functools.lru_cache(maxsize=8)
def _opened(s1: Path, s2: Path, reading: Reading, process: int) -> tuple[Source, Source, ExitStack]:
    """The two images of a pair, kept open in this process: every crop would otherwise look at them anew."""
    stack = ExitStack()
    sar, optical = (open_source(path, bands, stack, reading) for path, bands in ((s1, SAR_BANDS), (s2, OPTICAL_BANDS)))
    for source in (sar, optical):
        if not source.grid.located:
            raise InputError(f"{source.label} has no CRS; expected a georeferenced GeoTIFF")
        source.look()
    return sar, optical, stack  # the files are closed with it


def _warped(sar: Source, part: SceneGrid) -> FloatArray:
    """(2, h, w) dB on a grid, NaN outside the SAR image."""
    with ExitStack() as stack:
        try:
            source = to_grid(sar, part, stack, lambda: Path(stack.enter_context(tempfile.TemporaryDirectory())))
        except InputError:  # the crop lies outside of the SAR image
            return np.full((len(SAR_BANDS), *part.size), np.nan, dtype=np.float32)
        return source.read(part.whole)


def list_scenes(folder: Path, reading: Reading) -> Listing:
    """Pairs of scenes below a folder; no such folder is an InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected one with NAME_s1.tif and NAME_s2.tif in it")
    listing = Listing()
    found: dict[Path, dict[str, Path]] = {}
    for path in sorted(folder.rglob("*.tif*")):
        name = re.fullmatch(r"(.+)_(s1|s2)\.tiff?", path.name, re.IGNORECASE)
        if name and not path.name.startswith("."):
            found.setdefault(path.with_name(name[1]), {})[name[2].lower()] = path
    footprints: list[Box] = []  # of the optical images, in degrees
    for stem, files in found.items():
        if lacking := {"s1", "s2"} - set(files):
            listing.problems.append(f"{next(iter(files.values()))}: {stem.name}_{lacking.pop()}.tif is missing")
            continue
        s1, s2 = files["s1"], files["s2"]
        try:
            sar, optical, _ = _opened(s1, s2, reading, os.getpid())
            boxes = [transform_bounds(s.grid.crs, "EPSG:4326", *s.grid.bounds()) for s in (sar, optical)]
            if not _overlap(*boxes):
                raise InputError(f"{s1} and {s2.name} show different places: their footprints do not meet")
        except InputError as error:
            listing.problems.append(str(error))
            continue
        where, (height, width) = stem.relative_to(folder), optical.grid.size
        source = where.parent.as_posix() if where.parent.parts else "scenes"
        named: dict[str, Any] = {"source": source, "id": stem.name, "group": where.as_posix()}
        listing.samples.append(SceneSample(**named, height=height, width=width, s1=s1, s2=s2, reading=reading))
        footprints.append(boxes[1])
    listing.samples = _grouped(listing.samples, footprints)
    return listing


def _grouped(samples: list[TrainingSample], footprints: list[Box]) -> list[TrainingSample]:
    """The scenes with one group for each set of scenes that hang together by overlapping footprints."""
    groups = [sample.group for sample in samples]
    for i, j in itertools.combinations(range(len(samples)), 2):
        if groups[i] != groups[j] and _overlap(footprints[i], footprints[j]):
            groups = [groups[i] if group == groups[j] else group for group in groups]
    return [replace(sample, group=group) for sample, group in zip(samples, groups, strict=True)]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
