"""Read a folder of co-registered Sentinel-1 / Sentinel-2 pairs for training and evaluation.

Each NPZ holds ``s1`` (2,H,W) backscatter in dB and ``s2`` (4,H,W) DN (reflectance x 10000), and optionally ``opt_v1``,
``opt_v2`` and ``s2_cloudy`` (4,H,W) DN; with an ``index.csv`` (columns source, id and optionally group, quality, level,
h, w, split, date or year and month, lat, lon, note) the files lie at ``pairs/<source>/<id>.npz``, without one every
``*.npz`` below the folder is a pair.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from axs_lib.bands import MOST_REFLECTANCE, VALID_DN
from axs_lib.errors import InputError, listed
from axs_lib.io.files import read_csv
from axs_lib.io.formats import Arrays, FloatArray, open_npz

Quality = Literal["ok", "all"]

QUALITY_OK = "ok"
QUALITY_BAD = "bad"
SHOWN = 10  # names in a message

# How the ``dates`` and ``place`` columns of published indices say when and where.
_DAY = re.compile(r"S2 (\d{4})-?(\d\d)-?(\d\d)")
_MONTH = re.compile(r"monthly composite (\d{4})-(\d\d)")
_COUNTED_MONTH = re.compile(r"month (\d+) \(0=Sep\)")
_DEGREES = r"(-?\d+(?:\.\d+)?)"
_PLACE = re.compile(rf"\({_DEGREES},\s*{_DEGREES}\)")
_PLACE_BY_SIDE = re.compile(rf"\({_DEGREES}([NS]) {_DEGREES}([EW])\)")


@dataclass(frozen=True, kw_only=True)
class ListedPair:
    """One pair of any data set, not yet read."""

    source: str  # data set it comes from (without an index, the folders the file lies in)
    id: str  # name in it
    group: str  # place or date that pairs share; pairs of a group never lie on both sides of a split
    height: int  # rows of the optical grid
    width: int
    split: str = ""  # ``train``, ``validation`` or ``test`` where the data set says so
    quality: str = "ok"  # also where nobody judged it, or why not (``cloud``, ``snow_or_haze``, ...)

    @property
    def name(self) -> str:
        """``source/id``, unique in a folder."""
        return f"{self.source}/{self.id}"

    @property
    def pixels(self) -> int:
        """Size in pixels, nodata included."""
        return self.height * self.width


@dataclass(frozen=True, kw_only=True)
class PairRecord(ListedPair):
    """One pair of a folder of NPZ files."""

    path: Path
    level: str = ""  # ``L2A`` or ``L1C`` where it is known
    note: str = ""
    metadata: Mapping[str, str | float] = field(default_factory=dict)  # date (ISO) or month and year, lat and lon

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width


@dataclass(frozen=True)
class Pair:
    """One pair in memory, NaN is nodata: ``s1`` (2,H,W) VV, VH in dB, the others, ``s2`` the truth, (4,H,W) in DN."""

    record: PairRecord
    s1: FloatArray
    s2: FloatArray
    opt_v1: FloatArray | None = None
    opt_v2: FloatArray | None = None
    s2_cloudy: FloatArray | None = None


G = TypeVar("G", bound=ListedPair)


def list_pairs(folder: str | Path, quality: Quality = "ok", *, bad: list[str] | None = None) -> list[PairRecord]:
    """List the pairs of a folder, sorted by source and id.

    ``quality`` ``"ok"`` keeps pairs marked ok (or not judged), ``"all"`` also clouds, snow, haze and open water; pairs
    marked ``bad`` are never listed. Where ``bad`` is given, what is wrong with a missing or unreadable file is appended
    to it and the file left out. Raises InputError: no such folder, no pairs in it, a broken index, a file that is
    missing or is no NPZ pair.
    """
    folder = Path(folder)
    if quality not in ("ok", "all"):
        raise InputError(f"quality is {quality!r}; expected 'ok' or 'all'.")
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected a folder of NPZ pairs with s1 and s2.")
    index = folder / "index.csv"
    if index.is_file():
        makers = [partial(_listed, index, row) for row in _rows(index)]
    else:
        files = sorted(path for path in folder.rglob("*.npz") if not path.name.startswith("."))
        makers = [partial(_record_of, path, folder) for path in files]
    records: list[PairRecord] = []
    for make in makers:
        try:
            records.append(make())
        except InputError as error:
            if bad is None:
                raise
            bad.append(str(error))
    kept = [r for r in records if r.quality != QUALITY_BAD and (quality == "all" or r.quality == QUALITY_OK)]
    if not kept:
        found = f"{len(records)} pairs, none of quality {quality!r}" if records else "no *.npz file"
        raise InputError(f"{folder} has {found}; expected NPZ pairs with s1 (2,H,W) dB and s2 (4,H,W) DN.")
    return sorted(kept, key=lambda record: (record.source, record.id))


def load_pair(record: PairRecord | str | Path) -> Pair:
    """Read one pair; ``InputError`` where the file cannot be read or holds no pair as the module describes it.

    NaN is nodata, as is DN 0 in all four bands; 0 in some bands only is a dark pixel and becomes 1. 0 dB is a valid
    backscatter. ``s1_vv`` and ``s1_vh`` (H,W), and ``s2_real``, are read, too.
    """
    if not isinstance(record, PairRecord):
        record = _record_of(Path(record), Path(record).parent)
    path = record.path
    with open_npz(path) as arrays:
        sar = _sar(path, arrays)
        size = sar.shape[1:]
        truth = _optical(path, arrays, "s2_real" if "s2" not in arrays and "s2_real" in arrays else "s2", size)
        extra = {key: _optical(path, arrays, key, size) for key in ("opt_v1", "opt_v2", "s2_cloudy") if key in arrays}
    check_valid(path, s1=sar, s2=truth)
    return Pair(record, sar, truth, **extra)


def check_valid(path: Path, **images: Any) -> None:
    """Raise ``InputError`` where no pixel (C,H,W) of a pair holds data in all bands of all of these images."""
    nodata = {key: np.isnan(image).any(0) for key, image in images.items()}
    if np.logical_or.reduce(list(nodata.values())).all():
        empty = [key for key, image in nodata.items() if image.all()]
        raise InputError(
            f"{path}: no pixel holds data in {' and '.join(empty or images)} (all is NaN, or 0 in all bands); write the"
            " file again, remove it, or mark it bad in the column quality of index.csv"
        )


def check_groups(folder: str | Path, pairs: Iterable[ListedPair], groups: Iterable[str]) -> None:
    """Raise ``InputError`` for a group that none of a folder's pairs is of."""
    known = sorted({pair.group for pair in pairs})
    if unknown := [group for group in groups if group not in known]:
        more = ", ..." if len(known) > SHOWN else ""
        raise InputError(
            f"{folder} has no group {listed(unknown[:SHOWN])}; its groups are {listed(known[:SHOWN])}{more}"
        )


def split_groups(records: Sequence[G], folds: int, seed: int = 0) -> list[list[G]]:
    """Split pairs into folds by group, balanced by pixels, the same for a seed; ``InputError`` where that cannot be."""
    groups: dict[str, list[G]] = {}
    for record in sorted(records, key=lambda record: (record.group, record.source, record.id)):
        groups.setdefault(record.group, []).append(record)
    if not 2 <= folds <= len(groups):
        raise InputError(f"cannot split {len(groups)} groups into {folds} folds; expected 2 to {len(groups)} folds.")
    if seed < 0:
        raise InputError(f"seed is {seed}; expected 0 or more")
    names = list(groups)
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    sizes = {name: sum(record.pixels for record in groups[name]) for name in names}
    result: list[list[G]] = [[] for _ in range(folds)]
    filled = [0] * folds
    for name in sorted(shuffled, key=lambda name: -sizes[name]):
        fold = filled.index(min(filled))
        result[fold].extend(groups[name])
        filled[fold] += sizes[name]
    return result


def _rows(index: Path) -> list[dict[str, str]]:
    columns, rows = read_csv(index, "the index")
    if any("\udc80" <= letter <= "\udcff" for row in rows for letter in row.get("group") or ""):
        raise InputError(f"{index} names groups in another encoding; expected UTF-8")
    if missing := [column for column in ("source", "id") if column not in columns]:
        raise InputError(f"{index} has the columns {', '.join(columns)}; {' and '.join(missing)} missing.")
    return rows


def _listed(index: Path, row: Mapping[str, str]) -> PairRecord:
    """The record of a row of ``index.csv``, whose file must exist."""
    source, tile = row["source"], row["id"]
    path = index.parent / "pairs" / f"{source}" / f"{tile}.npz"
    if not (source and tile) or any(part in ("", "..") for part in f"{source}/{tile}".split("/")):
        raise InputError(f"{index} lists {source}/{tile}; expected names below {path.parents[1]}: pairs/SOURCE/ID.npz")
    if not os.path.isfile(path):  # noqa: PTH113  # no error for a name that is too long
        raise InputError(f"{index} lists {source}/{tile}, but {path} does not exist; complete the folder or the index.")
    given: dict[str, Any] = {key: row.get(key) or "" for key in ("level", "note", "split")}
    given |= {"group": row.get("group") or f"{source}/{tile}", "quality": row.get("quality") or QUALITY_OK}
    sides = [row.get(key) or "" for key in ("h", "w")]
    try:
        given["height"], given["width"] = map(int, sides) if all(map(str.isdigit, sides)) else _size(path)
        return PairRecord(path=path, source=source, id=tile, metadata=_metadata(row), **given)
    except ValueError as error:
        raise InputError(f"{index}, {source}/{tile}: {error}") from error


def _metadata(row: Mapping[str, str]) -> dict[str, str | float]:
    """When and where of a row: columns date, year, month, lat, lon, or else what dates and place say in words."""
    metadata: dict[str, str | float] = {}
    dates, place = row.get("dates") or "", row.get("place") or ""
    if date := re.search(r"(\d{4})-?(\d\d)-?(\d\d)", row.get("date") or ""):
        metadata["date"] = "-".join(date.groups())
    elif row.get("month"):
        metadata |= {key: int(row[key]) for key in ("year", "month") if row.get(key)}
    elif day := _DAY.search(dates):
        metadata["date"] = "-".join(day.groups())
    elif month := _MONTH.search(dates):
        metadata |= {"year": int(month[1]), "month": int(month[2])}
    elif counted := _COUNTED_MONTH.search(dates):
        metadata["month"] = (8 + int(counted[1])) % 12 + 1
    if row.get("lat") or row.get("lon"):
        metadata |= {key: float(row[key]) for key in ("lat", "lon") if row.get(key)}
    elif point := _PLACE.search(place):
        metadata |= {"lat": float(point[1]), "lon": float(point[2])}
    elif point := _PLACE_BY_SIDE.search(place):
        south, west = point[2] == "S", point[4] == "W"
        metadata |= {"lat": float(point[1]) * (-1) ** south, "lon": float(point[3]) * (-1) ** west}
    return metadata


def _record_of(path: Path, folder: Path) -> PairRecord:
    """The record of a file without an index: the folders it lies in are its source."""
    height, width = _size(path)
    parent = path.parent.relative_to(folder)
    source = parent.as_posix() if parent.parts else folder.resolve().name
    return PairRecord(path=path, source=source, id=path.stem, group=f"{source}/{path.stem}", height=height, width=width)


def _size(path: Path) -> tuple[int, int]:
    """Rows and columns of a pair, from its SAR."""
    with open_npz(path) as arrays:
        height, width = _sar(path, arrays).shape[1:]
    return height, width


def _sar(path: Path, arrays: Arrays) -> FloatArray:
    """(2,H,W) VV, VH in dB from ``s1``, or from ``s1_vv`` and ``s1_vh``."""
    return _checked(path, "s1", arrays.sar(expected="s1 (2,H,W), or s1_vv and s1_vh (H,W), in dB"), 2)


def _optical(path: Path, arrays: Arrays, key: str, size: tuple[int, ...]) -> FloatArray:
    """(4,H,W) DN with nodata as NaN and valid values from 1 up."""
    values = _checked(path, key, arrays.numbers(key, expected="s2, the clear optical truth (4,H,W) in DN"), 4)
    if values.shape[1:] != size:
        raise InputError(f"{path}: {key} is {values.shape[1:]} px and s1 {size}; expected one grid for both.")
    low, high = VALID_DN
    if np.nanmax(values, initial=low) > high or np.nanmin(values, initial=low) < 0:
        raise InputError(
            f"{path}: {key} runs from {np.nanmin(values):g} to {np.nanmax(values):g};"
            f" expected DN (reflectance x 10000) in 0..{high:g}."
        )
    lowest = low if np.nanmax(values, initial=0) > MOST_REFLECTANCE else 0  # reflectance is told as it is
    return np.where((values == 0).all(axis=0), np.float32(np.nan), np.maximum(values, np.float32(lowest)))


def _checked(path: Path, key: str, image: FloatArray, bands: int) -> FloatArray:
    if image.ndim != 3 or image.shape[0] != bands or image.size == 0:
        raise InputError(f"{path}: {key} has shape {image.shape}; expected ({bands},H,W), not empty.")
    if np.isinf(image).any():
        raise InputError(f"{path}: {key} holds {int(np.isinf(image).sum())} infinite values; mark nodata as NaN.")
    return image
