"""The real tiles that ship with the package, pairs of BigEarthNet; source and licence: ``samples/README.md``."""

from __future__ import annotations

from pathlib import Path

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError
from axs_lib.io.products import read_raster
from axs_lib.io.raster import Raster

FOLDER = Path(__file__).parent / "samples"

# Day of the Sentinel-2 image, from the patch names in samples/README.md; the SAR is of that day or the next.
DATES = {"finland_lake": "2017-09-24", "ireland_fields": "2017-06-17", "portugal_hills": "2017-12-21"}


def sample_names() -> tuple[str, ...]:
    """Names of the packaged tiles, in alphabetical order."""
    return tuple(sorted(path.stem.removesuffix("_s1") for path in FOLDER.glob("*_s1.tif")))


def sample_paths(name: str) -> tuple[Path, Path]:
    """Paths of a packaged tile's SAR file and optical file; ``InputError`` where there is no tile of that name."""
    if name not in sample_names():
        raise InputError(f"there is no sample tile {name!r}; expected one of {', '.join(sample_names())}")
    return FOLDER / f"{name}_s1.tif", FOLDER / f"{name}_s2.tif"


def load_sample(name: str) -> tuple[Raster, Raster]:
    """One packaged tile: Sentinel-1 (2,120,120) in dB and Sentinel-2 (4,120,120) in DN, both float32."""
    s1, s2 = sample_paths(name)
    return read_raster(s1, SAR_BANDS), read_raster(s2, OPTICAL_BANDS)


def sample_metadata(name: str) -> dict[str, str | float]:
    """What Stage 2 may know of a packaged tile: ``date`` of the optical image, ``lat`` and ``lon`` of its centre."""
    place = load_sample(name)[1].grid.centre_lat_lon()
    assert place is not None
    return {"date": DATES[name], "lat": round(place[0], 5), "lon": round(place[1], 5)}
