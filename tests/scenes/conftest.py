"""What the tests of scenes share: a grounder that answers at once, and synthetic scenes as files and arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine
from torch import Tensor
from torch.nn import functional as F

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.nodata import fill_nodata, valid_pixels
from axs_lib.stage3_tm_ground import Stage3Output
from axs_lib.terramind.noise import gaussian_field, sample_seeds, scene_origins
from axs_lib.tilegrid import Tile, TileGrid

GRID = TileGrid(side=64, overlap=16)
CRS = "EPSG:32633"
CORNER = (500_000.0, 6_000_000.0)
PLACE = Affine(10, 0, CORNER[0], 0, -10, CORNER[1])


@dataclass
class BoxGrounder:
    """Stands in for Stage 3: looks at neighbours, at the whole tile and at the noise, as the network does."""

    calls: list[int] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    provenance: dict[str, str] = field(default_factory=lambda: {"AXS_VERSION": "9.9", "AXS_WEIGHTS_SHA256": "abc"})
    before: Callable[[], None] = lambda: None

    def ground(self, s1: Tensor, opt_v2: Tensor, timesteps: int | None = None, **settings: Any) -> Stage3Output:
        self.before()
        self.calls.append(len(s1))
        trust, many = settings["trust"], settings.get("ensemble_size", 1) > 1
        trusted = torch.ones_like(s1[:, :1]) if trust is None else trust
        valid = valid_pixels(s1) if trust is not None else valid_pixels(s1, opt_v2)
        known = valid & (trusted > 0) & valid_pixels(opt_v2)
        estimate = fill_nodata(opt_v2, known, fallback=1000.0)
        sar = fill_nodata(s1, valid_pixels(s1), fallback=-15.0)
        origin = settings["controls"].origin if "controls" in settings else settings["origin"]
        seeds, origins = sample_seeds(settings["seed"], len(s1)), scene_origins(origin, len(s1), s1.device)
        noise = gaussian_field(seeds, (4, *s1.shape[-2:]), origins=origins)
        around = F.avg_pool2d(F.pad(sar.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        whole = estimate.mean(dim=(1, 2, 3), keepdim=True)
        image = estimate + (1 - trusted if trust is not None else 1) * (5 * around + 3 * noise + 0.01 * whole)
        image = torch.where(known & (trusted == 1) & (trust is not None), opt_v2, image.clamp(1, 65535))
        spread = noise.abs().masked_fill(~valid, torch.nan) if many else None
        return Stage3Output(image.masked_fill(~valid, torch.nan), image, torch.sigmoid(around), spread, timesteps or 10)


@pytest.fixture
def grounder() -> BoxGrounder:
    return BoxGrounder()


def scene_arrays(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth SAR (2,H,W) in dB and optical (4,H,W) in whole DN, with nodata of their own at places."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width].astype("float32")
    wave = np.sin(rows / 17) + np.cos(columns / 23)
    s1 = np.stack([-12 + 3 * wave, -19 + 2 * wave]) + rng.normal(0, 1, (2, height, width))
    level = np.array([500, 700, 800, 2400])[:, None, None]
    opt = level * (1 + 0.2 * wave) + rng.normal(0, 30, (4, height, width))
    return s1.astype("float32"), np.rint(opt.clip(1)).astype("float32")


def blend(grid: TileGrid, size: tuple[int, int], network: Callable[[Tile], Tensor]) -> Tensor:
    """What a network makes of every tile (C, h, w), blended with everything in memory."""
    made = {tile: network(tile) for tile in grid.tiles(*size)}
    total, weight = torch.zeros(len(next(iter(made.values()))), *size), torch.zeros(size)
    for tile, values in made.items():
        ramp = grid.weights(tile, *size)
        tile.of(total).add_(values * ramp)
        tile.of(weight).add_(ramp)
    return total / weight


def write_tiff(path: Path, data: np.ndarray, names: Sequence[str | None] | None = None, **more: Any) -> Path:
    """A GeoTIFF (C,H,W) on the lattice of ``CORNER``; ``more`` is of rasterio, or tags, scale, colours and gcps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tags, scale, colours, gcps = (more.pop(key, None) for key in ("tags", "scale", "colours", "gcps"))
    place = {} if gcps else {"crs": CRS, "transform": PLACE}
    profile = {"driver": "GTiff", "count": len(data), "height": data.shape[1], "width": data.shape[2]}
    with rasterio.open(path, "w", **(profile | {"dtype": data.dtype} | place | more)) as file:
        file.write(data)
        if names:
            file.descriptions = tuple(names)
        if colours:
            file.colorinterp = colours
        if tags:
            file.update_tags(**tags)
        if scale:
            file.scales, file.offsets = ((value,) * len(data) for value in scale)
        if gcps:
            file.gcps = gcps
    return path


def write_scene(
    path: Path,
    data: np.ndarray,
    bands: tuple[str | None, ...] | None = None,
    *,
    dtype: str | None = None,
    nodata: float | None = None,
    **more: Any,
) -> Path:
    """A GeoTIFF of a scene with names of its bands; NaN becomes ``nodata``."""
    names = bands or (SAR_BANDS if len(data) == 2 else OPTICAL_BANDS)
    dtype = dtype or ("uint16" if len(data) == 4 else "float32")
    nodata = nodata if nodata is not None else (0 if dtype == "uint16" else np.nan)
    return write_tiff(path, np.where(np.isnan(data), nodata, data).astype(dtype), names, nodata=nodata, **more)


def read_tiff(path: Path) -> np.ndarray:
    """All bands of a file."""
    with rasterio.open(path) as file:
        return file.read()


@dataclass(frozen=True)
class SceneFiles:
    """A scene on disk and in memory."""

    s1: Path
    opt_v2: Path
    sar: np.ndarray
    optical: np.ndarray


@pytest.fixture
def scene(tmp_path: Path) -> SceneFiles:
    """200x150 px with holes in the SAR, in the optical image and where whole tiles have no data."""
    sar, optical = scene_arrays(200, 150)
    sar[:, 20:30, 40:60] = np.nan
    sar[0, 100, 100] = np.nan
    optical[:, 50:54, 0:10] = np.nan
    optical[:, 120:, 90:] = np.nan
    folder = tmp_path / "in"
    return SceneFiles(write_scene(folder / "s1.tif", sar), write_scene(folder / "opt.tif", optical), sar, optical)
