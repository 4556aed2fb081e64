"""Sentinel-2 L2A products as ESA delivers them: a ``.SAFE`` folder, its ``.zip``, or the folder ``R10m`` alone.

Where the 10 m bands and the scene classification lie, and the BOA offsets that ``MTD_MSIL2A.xml`` gives, also for a
file that merely lies beside such metadata. Sentinel-1 products in radar geometry are refused.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import ArrayLike

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.errors import InputError, counted, listed
from axs_lib.io.files import PathLike, open_regular
from axs_lib.io.formats import LARGEST_XML, check_file, is_address, parse_xml

METADATA = "MTD_MSIL2A.xml"
OFFSET_BASELINE, OFFSET_DN = 400, 1000.0  # processing baseline 04.00, from which products hold DN + 1000
MOST_PARENTS = 5  # from the bands of a product up to its metadata
_BAND_IDS = {"1": "B02", "2": "B03", "3": "B04", "7": "B08"}
_BAND_FILE = re.compile(r"_(B02|B03|B04|B08)_10m\.(jp2|tif|tiff)$", re.IGNORECASE)
_CLASS_FILE = re.compile(r"_SCL_20m\.(jp2|tif|tiff)$", re.IGNORECASE)
_BASELINE = re.compile(r"_N(\d{4})_R\d{3}_T\d{2}[A-Z]{3}")  # as products are named; N4510 alone may be a latitude
_RAW_SAR = re.compile(r"^S1[A-D]_(IW|EW|S\d|WV)_(GRD|SLC|RAW|OCN).*\.(SAFE|ZIP)$", re.IGNORECASE)
GEOCODING = (
    "geocode it first, in one of the three usual ways: ESA SNAP (Apply-Orbit-File, Calibration, Terrain-Correction),"
    " an RTC order at ASF HyP3, or the ready gamma0 of Planetary Computer's collection sentinel-1-rtc"
)


@dataclass(frozen=True)
class Offset:
    """DN to take off each band, and where that was read."""

    dn: Mapping[str, float]
    source: str = ""

    @classmethod
    def of_all(cls, dn: float, source: str = "") -> Offset:
        """One number for all bands."""
        return cls(dict.fromkeys(OPTICAL_BANDS, dn), source)


@dataclass(frozen=True)
class Safe:
    """The parts of a product."""

    bands: list[str]  # paths for rasterio, in the order of ``OPTICAL_BANDS``
    classification: str | None  # path of the scene classification
    offset: Offset | None  # what the metadata say of the BOA offset


class ReadingWarning(UserWarning):
    """What an image is taken for is likely, but neither the file nor the user says it."""


def dark_level(image: ArrayLike) -> float:
    """DN of the darkest pixels of an image (4, ...), in the darkest band; 0 where there are none, NaN is nodata."""
    values = np.asarray(image).reshape(len(OPTICAL_BANDS), -1)
    values = values[:, np.isfinite(values).all(axis=0)]
    return float(np.quantile(values, 0.005, axis=1).min()) if values.size else 0.0


def warn_of_offset(levels: Mapping[str, float], remedy: str, stacklevel: int = 2) -> None:
    """Warn once of all images whose ``dark_level``, by their labels, is as if nobody had taken the BOA offset off."""
    found = {label: level for label, level in levels.items() if 950 <= level <= 1300}
    if not found:
        return
    (label, dark), others = next(iter(found.items())), [*found][1:]
    more = f" (also in {counted(len(others), 'other image')}: {listed(others[:10])})" if others else ""
    warnings.warn(
        f"{label}: the darkest pixels are near {dark:.0f} DN{more} and nothing says whether the BOA offset of 1000 DN"
        " (processing baseline 04.00 and later) was taken off. It is taken for removed, so that they are"
        f" {dark / DN_PER_REFLECTANCE:.2f} reflectance; with {remedy} they are"
        f" {max(dark - OFFSET_DN, 0) / DN_PER_REFLECTANCE:.2f}",
        ReadingWarning,
        stacklevel=stacklevel + 1,
    )


def open_safe(path: PathLike) -> Safe | None:
    """The product at a path; None for other files, InputError for a folder or .zip without one granule's 10 m bands."""
    if is_address(path):
        return None
    place = Path(path)
    if place.is_dir():
        files = {file: file for file in _folder_files(place)}
        offset = metadata_offset(place)
    elif place.suffix.lower() == ".zip":
        files, offset = _zip_files(check_file(place, "the .zip"))
    else:
        return None
    found: dict[str, list[str]] = {band: [] for band in OPTICAL_BANDS}
    for name, where in files.items():
        if match := _BAND_FILE.search(name):
            found[match[1].upper()].append(where)
    if missing := [band for band, paths in found.items() if not paths]:
        other = ""
        if "MSIL1C" in str(path).upper():
            other = " It is a Level-1C product, of reflectance above the atmosphere."
        if re.search(r"R[26]0m", str(path)):
            other += " It holds pixels of 20 or 60 m."
        raise InputError(
            f"{path} holds no 10 m image of {listed(missing)}.{other} Expected a Sentinel-2 L2A product: its .SAFE"
            " folder, its .zip, or its folder R10m"
        )
    if any(len(each) > 1 for each in found.values()):
        raise InputError(f"{path} holds several granules; expected one: give the folder R10m of one of them")
    classes = [where for name, where in files.items() if _CLASS_FILE.search(name)]
    return Safe([paths[0] for paths in found.values()], min(classes, default=None), offset)


def metadata_offset(path: PathLike) -> Offset | None:
    """The BOA offset of a product's file or folder: by metadata there or above, else by the baseline in its name."""
    if is_address(path):
        return None
    place = Path(path).resolve()
    folders = [place, *place.parents][: MOST_PARENTS + 1]
    for folder in folders:
        file = folder / METADATA
        if file.is_file():
            with open_regular(file) as stream:
                return _read_offset(stream.read(LARGEST_XML + 1), str(file))
    baseline = next((match[1] for folder in folders if (match := _BASELINE.search(folder.name))), None)
    if baseline is None:
        return None
    dn = OFFSET_DN if int(baseline) >= OFFSET_BASELINE else 0.0
    return Offset.of_all(dn, f"processing baseline N{baseline} in its name")


def _read_offset(text: bytes, source: str) -> Offset:
    """The offsets in an ``MTD_MSIL2A.xml``; a product that names none has none."""
    dn = dict.fromkeys(OPTICAL_BANDS, 0.0)
    for element in parse_xml(text, source).iter():
        band = _BAND_IDS.get(element.get("band_id", ""))
        if element.tag.rpartition("}")[2] == "BOA_ADD_OFFSET" and band:
            try:
                dn[band] = -float(element.text or "")
            except ValueError as error:
                raise InputError(f"{source} gives the BOA offset {element.text!r}; expected a number") from error
    return Offset(dn, Path(source).name)


def refuse_radar_geometry(path: PathLike) -> None:
    """Refuse a Sentinel-1 product as ESA delivers it, in the geometry of the radar. Raises InputError: it is one."""
    if any(_RAW_SAR.match(part) for part in Path(path).parts):
        raise InputError(f"{path} is a Sentinel-1 product in radar geometry (ground control points only); {GEOCODING}")


def _folder_files(folder: Path) -> list[str]:
    places = [folder, folder / "R10m", folder / "R20m"]
    for image_data in (folder / "IMG_DATA", *sorted(folder.glob("GRANULE/*/IMG_DATA"))):
        places += [image_data / "R10m", image_data / "R20m"]
    if folder.name == "R10m":
        places.append(folder.parent / "R20m")
    return [str(file) for place in places if place.is_dir() for file in sorted(place.iterdir()) if file.is_file()]


def _zip_files(path: Path) -> tuple[dict[str, str], Offset | None]:
    """Names in the archive with their paths for GDAL, and the BOA offset."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if ".." not in PurePosixPath(name).parts and name[:1] != "/"]
            metadata = min((name for name in names if PurePosixPath(name).name == METADATA), key=len, default=None)
            offset = metadata_offset(path)
            if metadata is not None:
                with archive.open(metadata) as stream:
                    offset = _read_offset(stream.read(LARGEST_XML + 1), f"{path}/{metadata}")
    except InputError:
        raise
    except Exception as error:  # zipfile and the decompressors raise what the damage happens to hit
        raise InputError(f"{path} cannot be read as a .zip of a Sentinel-2 product: {error}") from error
    return {name: f"/vsizip/{{{path.resolve()}}}/{name}" for name in names}, offset
