"""Images with named bands on a grid, and how people write the names of bands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from axs_lib.errors import InputError, listed
from axs_lib.io.formats import FloatArray
from axs_lib.io.grid import SceneGrid

TIFF_SUFFIXES = (".tif", ".tiff")
SUFFIXES = (".npz", ".pt", *TIFF_SUFFIXES)
TRUTH_KEYS = ("s2_real", "s2_truth", "s2")  # of an .npz

# Band codes outrank colour words, so that "red_field_B02.tif" is the blue band.
_CODES = {"vv": "VV", "vh": "VH", "b8a": "B8A"}
_CODES |= {f"b{n}": f"B{n:02d}" for n in range(1, 13)} | {f"b{n:02d}": f"B{n:02d}" for n in range(1, 10)}
_WORDS = {
    "coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "rededge": "B05", "rededge1": "B05",
    "rededge2": "B06", "rededge3": "B07", "nir": "B08", "nir08": "B8A", "nir09": "B09", "swir16": "B11",
    "swir22": "B12",
}  # fmt: skip


@dataclass(frozen=True)
class Raster:
    """Named bands of one tile, or of a batch of tiles."""

    data: FloatArray  # (C,H,W) or (N,C,H,W), NaN where there is no data
    bands: tuple[str, ...]  # in the order of ``data``
    grid: SceneGrid  # of one tile
    tags: Mapping[str, str] = field(default_factory=dict)  # the file's own
    source: str = "array"  # the file or files it came from, for messages

    @property
    def batch(self) -> FloatArray:
        """The data as (N,C,H,W), with N = 1 for a single tile."""
        return self.data if self.data.ndim == 4 else self.data[None]


def band_name(text: str | None) -> str | None:
    """The Sentinel band that a text names by code (``S2_B02``) or colour (``NIR``), or None for none or several."""
    tokens = re.findall(r"[a-z0-9]+", (text or "").lower())
    found = {_CODES[t] for t in tokens if t in _CODES}
    if not found:
        found = {_WORDS[t] for t in tokens if t in _WORDS}
        if "edge" in tokens:  # "red edge 1" is not red
            found.discard("B04")
        if "narrow" in tokens and "B08" in found:
            found = found - {"B08"} | {"B8A"}
    return found.pop() if len(found) == 1 else None


def parse_bands(text: str | None) -> tuple[str, ...] | None:
    """The band order in ``B04,B03,B02,B08`` (or ``red,green,blue,nir``); InputError for no band, or one twice."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    names = {word: band_name(word) for word in words}
    unknown = [word for word, name in names.items() if name is None]
    if unknown or not names:
        raise InputError(
            f"--bands names {listed(unknown) or 'nothing'}; expected Sentinel band names, for example"
            " --bands B04,B03,B02,B08"
        )
    known = tuple(name for name in names.values() if name is not None)
    if len(set(known)) != len(words):
        raise InputError(f"--bands {text} names a band twice; name every band of the stack once, in its order")
    return known
