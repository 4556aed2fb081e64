"""Open SAR and optical images of any kind as named bands in dB and DN, read by windows: what is right is decided once.

``Source`` applies the same rules to all kinds of ``Pixels``, and counts what it takes for nodata (``_COUNT_NOTES``).
Linear power and amplitude become dB, the BOA offset of DN is taken off, and values slightly below 0 DN, which are
legitimate over water, become 1. Values that look like another unit are refused, with the unit's name.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError, listed
from axs_lib.io.arrays import ArrayPixels, is_xarray
from axs_lib.io.files import PathLike, paths_of
from axs_lib.io.formats import FloatArray, open_npz, read_pt
from axs_lib.io.grid import SceneGrid
from axs_lib.io.pixels import AS_DECLARED, TRUST, FilePixels, MemoryPixels, Order, Pixels, Reading, read_npz
from axs_lib.io.raster import TRUTH_KEYS, Raster
from axs_lib.io.safe import Offset, ReadingWarning, dark_level, open_safe, refuse_radar_geometry, warn_of_offset
from axs_lib.tilegrid import Tile

POSSIBLE_DB = (-60.0, 40.0)  # both excluded
POSSIBLE_DN = (-1000.0, 30_000.0)
FORCED = 1e6  # beyond it no number is accepted, with --force neither
BRIGHTEST_DN = 20_000.0  # few pixels of an image are brighter
MANY, MOST = (0.005, 0.05)  # share of impossible pixels from which an image is refused: by its sample, by all of it
BORDER_PIXELS = 6  # of one number side by side along an edge, from which they are a border
SAMPLE_SIDE = 128
_UNIT_WORDS = {"db": "dB", "power": "linear power", "amplitude": "amplitude"}
_UNIT_NAMES = {  # as names of files and bands say it
    "db": {"db", "decibel", "decibels"}, "amplitude": {"amplitude", "amp"}, "power": {"power", "linear"},
}  # fmt: skip
_COUNT_NOTES = {  # of what is counted
    "border": "pixels of a border of one number are taken for nodata",
    "impossible": "pixels hold what cannot be {quantity} and are taken for nodata",
    "unlit": "pixels of power 0 or less are taken for nodata",
    "zero": "pixels of exactly 0 dB, or stored as 0, are taken for nodata",
    "infinite": "pixels are infinite and are taken for nodata",
    "negative": "values below 0 DN are clipped to 1",
}


class Source:
    """Bands in dB or DN on a grid, read by windows, by one thread at a time."""

    def __init__(self, pixels: Pixels, reading: Reading) -> None:
        self.pixels, self.reading = pixels, reading
        self.grid, self.bands, self.tags, self.label = pixels.grid, pixels.bands, pixels.tags, pixels.label
        self.notes = list(pixels.notes)  # what was assumed, for the user
        self.facts: dict[str, str] = {}  # what was decided, for file tags
        self.counts: Counter[str] = Counter()  # pixels by what became of them, of what was read so far
        self._border: set[float] = set()
        self._unit = "db"
        self._offset: NDArray[np.float32] | None = None
        self._partly = False
        self._possible = POSSIBLE_DB if self.bands == SAR_BANDS else POSSIBLE_DN

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of one tile."""
        return self.grid.height // self.pixels.tiles, self.grid.width

    def read(self, window: Tile) -> FloatArray:
        """(C, h, w) of a window that lies inside the grid, NaN where there is no data."""
        data, blank = self.pixels.read(window)
        if self.bands == TRUST:
            return data
        with np.errstate(invalid="ignore"):
            self._drop(data, self._on_border(data) & ~blank, "border")
            if self.bands == SAR_BANDS:
                data = self._in_db(data, blank)
            else:
                data[:, blank] = np.nan
                data = data if self._offset is None else data - self._offset[:, None, None]
            low, high = (-FORCED, FORCED) if self.reading.force else self._possible
            outside = (data <= low) | (data >= high) if self.bands == SAR_BANDS else (data < low) | (data > high)
            self._drop(data, outside.any(axis=0), "impossible")
            if self.bands == OPTICAL_BANDS:
                self.counts["negative"] += int((data < 0).sum())
                data[data < 0] = 1
        self.counts["valid"] += int(np.isfinite(data).all(axis=0).sum())
        return data

    def look(self, looked_at: Callable[[Tile], NDArray[np.bool_]] | None = None) -> None:
        """Decide on unit, offset and border by the edges and sixteen parts of the image.

        ``looked_at`` gives (h, w) bool of a window: where to look. Raises InputError: another unit, or no valid pixel.
        """
        if self.bands == TRUST:
            return
        if (side := self.grid.pixel_metres) is not None and not 5 < side < 15:
            self.notes.append(f"{self.label}: its pixels are of {side:g} m, and the networks know those of 10 m")
        if self.grid.transform is not None and self.grid.crs is None:
            self.notes.append(f"{self.label}: names no CRS; what is made on its grid has its transform alone")
        self._border, self._partly = _border(self.pixels, self.bands), looked_at is not None
        seen = []
        for tile in _sample(self.grid):
            raw, blank = self.pixels.read(tile)
            blank = blank | np.isnan(raw).any(axis=0) | self._on_border(raw)
            if looked_at is not None:
                blank |= ~looked_at(tile)
            seen.append(raw[:, ~blank])
        values = np.concatenate(seen, axis=1)
        (self._look_at_sar if self.bands == SAR_BANDS else self._look_at_optical)(values)

    def check_counts(self) -> None:
        """Refuse an image of which too much was impossible, once all of it was read. Raises InputError: it is."""
        wrong, seen = self.counts["impossible"], self.counts["valid"] + self.counts["impossible"]
        # What is not looked at, as under a cloud, was counted, too.
        if wrong > MOST * seen and not self._partly and not self.reading.force:
            raise InputError(self._many(wrong / max(seen, 1)))

    def report(self) -> list[str]:
        """What to say of the image once all of it was read: what was assumed and what was counted."""
        quantity = "backscatter" if self.bands == SAR_BANDS else "reflectance"
        found = {key: text.format(quantity=quantity) for key, text in _COUNT_NOTES.items() if self.counts[key]}
        return self.notes + [f"{self.label}: {self.counts[key]:,} {text}" for key, text in found.items()]

    @property
    def provenance(self) -> dict[str, str]:
        """What was decided, and what is said once all of it was read, for file tags."""
        notes = "; ".join(note.removeprefix(f"{self.label}: ") for note in self.report())
        key = "AXS_S1_NOTES" if self.bands == SAR_BANDS else "AXS_OPT_V2_NOTES"
        return self.facts | ({key: notes} if notes else {})

    def _drop(self, data: FloatArray, where: Any, reason: str) -> None:
        self.counts[reason] += int(where.sum())
        data[:, where] = np.nan

    def _in_db(self, data: FloatArray, blank: NDArray[np.bool_]) -> FloatArray:
        """What is nodata in one band is nodata in that band alone."""
        if self._unit != "db":
            unlit = data <= 0
            self.counts["unlit"] += int((unlit.any(axis=0) & ~blank).sum())
            data[unlit] = np.nan
            return np.float32(20 if self._unit == "amplitude" else 10) * np.log10(data)
        infinite = np.isinf(data)
        self.counts["infinite"] += int(infinite.any(axis=0).sum())
        data[infinite] = np.nan
        # Measured backscatter is never exactly 0; numbers of few digits are, in one band.
        exact = data == 0
        kind = self.pixels.dtype.kind
        zero = exact.any(axis=0) if kind == "f" else exact.all(axis=0) | (blank & (kind == "u"))
        self.counts["zero"] += int((zero & ~np.isnan(data).any(axis=0)).sum())
        data[:, zero] = np.nan
        return data

    def _on_border(self, data: FloatArray) -> NDArray[np.bool_]:
        return (data == data[:1]).all(axis=0) & np.isin(data[0], list(self._border))

    def _look_at_sar(self, values: FloatArray) -> None:
        wanted, declared = self.reading.s1_unit, _declared_unit(self.pixels.texts)
        values = values[:, np.isfinite(values).all(axis=0) & (values != 0).any(axis=0)]
        positive = bool(values.size and (values > 0).mean() >= 0.8)  # backscatter in dB is mostly negative
        if wanted != "auto":
            self._unit, why = wanted, "as --s1-unit says"
        elif values.size == 0:
            self._unit, why = declared or "db", "by its name" if declared else "for want of valid values"
        elif declared is not None and (declared == "db") != positive:
            self._unit, why = declared, "by its name or description"
        else:
            self._unit, why = "power" if positive else "db", "by its values; --s1-unit says it otherwise"
        self.facts["AXS_S1_UNIT"] = self._unit
        self.notes.append(f"{self.label}: taken for {_UNIT_WORDS[self._unit]}, {why}")
        if values.size and not self.reading.force:
            self._check_sar(values, positive)
        if values.size and self.pixels.notes and values[1].mean() > values[0].mean():
            _warn(
                f"{self.label} names no bands, and what is taken for VH is brighter than VV; if the order is VH, VV,"
                " give --bands VH,VV"
            )

    def _check_sar(self, values: FloatArray, positive: bool) -> None:
        middle, share, wrong = float(np.median(values)), 0.0, ""
        if self._unit != "db":
            if middle > 5:
                wrong = (
                    f"half of it is above {middle:.4g}, as of the uncalibrated digital numbers of a GRD product or of a"
                    " picture of 8 bits; calibrate it to sigma0 or gamma0 first"
                )
            elif (values > 0).mean() < 0.5:
                wrong = f"most values are not above 0, as of dB (median {middle:.4g}); --s1-unit db takes it so"
        else:
            possible = values[(values > POSSIBLE_DB[0]) & (values < POSSIBLE_DB[1])]
            mean = float(possible.mean()) if possible.size else middle
            share = 1 - possible.size / values.size
            if positive:
                wrong = (
                    f"most values are above 0, as of linear power or amplitude (median {middle:.4g});"
                    " --s1-unit power converts it"
                )
            elif np.quantile(np.abs(values), 0.98) < 2 and mean > -2:
                wrong = (
                    f"values around {middle:.4g} look like linear power with negative pixels, or like z-scores;"
                    " expected dB. --s1-unit power takes power of 0 or less for nodata"
                )
            elif not -45 <= mean <= -2:
                wrong = f"the mean is {mean:.4g} dB, and backscatter in dB has one between -45 and -2"
        if wrong:
            raise InputError(
                f"{self.label} does not look like {_UNIT_WORDS[self._unit]}: {wrong}. If the values are right, pass"
                " --force (force=True)"
            )
        if share > MANY:
            raise InputError(self._many(share))

    def _look_at_optical(self, values: FloatArray) -> None:
        offset = self._find_offset()
        sizes = sorted(set(offset.dn.values()))
        # Fill numbers that the file does not declare, a few, are no evidence of the unit.
        seen = values[:, (np.abs(values) < FORCED).all(axis=0)]
        gone = values.shape[1] - seen.shape[1]
        if gone > MANY * values.shape[1] and not self.reading.force:
            raise InputError(self._many(gone / values.shape[1]))
        if any(sizes):
            self._offset = np.array([offset.dn[band] for band in self.bands], dtype=np.float32)
            seen = seen - self._offset[:, None]
            below = float((seen < 0).any(axis=0).mean()) if seen.size else 0.0
            if below > 0.25 and not self.reading.force:
                raise InputError(
                    f"{self.label}: the BOA offset of {listed(sizes)} DN ({offset.source}) would leave"
                    f" {100 * below:.0f} % of the pixels below 0, so that it seems to have been taken off already: give"
                    " --boa-offset 0, or --boa-offset 1000 if it is in the values"
                )
        self.facts["AXS_BOA_OFFSET_REMOVED"] = removed = " ".join(f"{value:g}" for value in sizes)
        if offset.source:
            self.notes.append(f"{self.label}: BOA offset taken off: {removed} DN, {offset.source}")
        if seen.size and not self.reading.force:
            self._check_optical(seen)
        if not offset.source and self.reading.boa_offset == "auto":
            warn_of_offset({self.label: dark_level(seen)}, "--boa-offset 1000", stacklevel=4)

    def _find_offset(self) -> Offset:
        """The BOA offset in the values; its source is empty where it is not known."""
        pixels, given = self.pixels, self.reading.boa_offset
        if given != "auto":
            return Offset.of_all(float(given), "as --boa-offset says")
        if pixels.offset is not None:
            return pixels.offset
        if "AXS_VERSION" in pixels.tags or "AXS_DATE" in pixels.tags:
            return Offset.of_all(0.0, "as this library wrote it")
        return Offset.of_all(0.0, "the file's own offset is applied" if pixels.offset_declared else "")

    def _check_optical(self, values: FloatArray) -> None:
        usual = values[:, (values > POSSIBLE_DN[0]).all(axis=0) & (values <= POSSIBLE_DN[1]).all(axis=0)]
        low, high, middle = float(values.min()), float(values.max()), float(np.median(values))
        share = 1 - usual.size / values.size
        top = float(np.quantile(usual, 0.999)) if usual.size else np.inf
        kind, wrong = self.pixels.dtype, ""
        if low >= -0.5 and top <= 2:
            wrong = "reflectance in 0-1; multiply by 10000"
        elif top <= 20:
            wrong = "no DN: nearly no value is above 20; z-scores and other units are not read"
        elif top <= 150 and kind.kind == "f" and (usual % 1 != 0).mean() > 0.5:
            wrong = "reflectance in percent; multiply by 100"
        elif kind.itemsize == 1:
            wrong = "a picture of 8 bits (0-255)"
        elif (values > 60_000).any(axis=0).mean() > 0.01 and middle < BRIGHTEST_DN:
            wrong = (
                "DN that wrapped around 65536 when an offset was taken off; give the file as it was, and"
                " --boa-offset 1000"
            )
        elif middle > BRIGHTEST_DN:
            wrong = "damaged or otherwise scaled numbers: no surface has reflectances above 2"
        elif share <= MANY and (usual > BRIGHTEST_DN).any(axis=0).mean() > MOST:
            wrong = "another scale than reflectance x 10000: too much of it is above 20,000"
        elif usual.size and (usual < 0).any(axis=0).mean() > 0.25:
            wrong = "DN from which the BOA offset was taken off twice: over a quarter of the pixels are below 0"
        if wrong:
            raise InputError(
                f"{self.label} does not look like DN (reflectance x 10000) but like {wrong} [seen {low:.4g} to"
                f" {high:.4g}]. If the values are right, pass --force (force=True)"
            )
        if share > MANY:
            raise InputError(self._many(share))
        if top <= 255:
            self.facts["AXS_OPT_V2_DARK"] = dark = f"nearly no value is above {top:.0f} DN, as of dark water"
            hint = "; for a picture of 8 bits, give the reflectance x 10000 that it was made from"
            _warn(f"{self.label}: {dark}{hint}")

    def _many(self, share: float) -> str:
        low, high = self._possible
        unit = "dB" if self.bands == SAR_BANDS else "DN"
        return (
            f"{100 * share:.1f} % of the pixels of {self.label} are outside of {low:g} to {high:g} {unit}, too many for"
            " a few fill numbers; if they are nodata, say so in the file (as gdal_edit.py -a_nodata -9999)"
        )


def open_source(what: Any, wanted: tuple[str, ...], stack: ExitStack, reading: Reading = AS_DECLARED) -> Source:
    """Open a path, paths, NumPy array (C,H,W) or (N,C,H,W), or ``xarray`` object; ``Source.look`` looks at its values.

    ``wanted`` are ``SAR_BANDS``, ``OPTICAL_BANDS`` or ``TRUST``; names in ``reading`` of bands of another kind are left
    out. Raises InputError: it cannot be read, or lacks a band.
    """
    named = [] if wanted == TRUST else [b for b in reading.bands or () if (b in SAR_BANDS) == (wanted == SAR_BANDS)]
    order, paths = tuple(named) or None, paths_of(what)
    if paths is not None:
        return Source(_open_paths(paths, wanted, order, stack, reading), reading)
    if isinstance(what, np.ma.MaskedArray):
        what = np.ma.filled(what.astype(np.result_type(what, np.float32)), np.nan)
    if isinstance(what, np.ndarray):
        return Source(MemoryPixels(what, wanted, order, "the NumPy array"), reading)
    if is_xarray(what):
        return Source(ArrayPixels(what, wanted, order, reading), reading)
    raise InputError(
        f"{listed(wanted)} is given as {type(what).__module__}.{type(what).__qualname__}; expected a path, paths, a"
        " NumPy array (C,H,W), or an xarray DataArray or Dataset: for a tensor give tensor.numpy()"
    )


def _open_paths(
    paths: Sequence[PathLike], wanted: tuple[str, ...], order: Order, stack: ExitStack, reading: Reading
) -> Pixels:
    if not paths:
        raise InputError(f"no file is given for {listed(wanted)}; expected one stack, or one file a band")
    for path in paths:
        refuse_radar_geometry(path)
    suffixes = {Path(path).suffix.lower() for path in paths}
    if len(paths) > 1:
        if suffixes & {".npz", ".pt"}:
            raise InputError(f"{listed(paths)} are several files; expected GeoTIFFs, one a band, or one .npz or .pt")
    elif ".npz" in suffixes:
        return read_npz(Path(paths[0]), wanted, order)
    elif ".pt" in suffixes:
        return MemoryPixels(read_pt(paths[0]), wanted, order, os.fspath(paths[0]))
    elif wanted == OPTICAL_BANDS and (product := open_safe(paths[0])) is not None:
        # Its bands may lie in a .zip, at addresses that are ours.
        files = FilePixels(product.bands, wanted, OPTICAL_BANDS, stack, replace(reading, addresses=True))
        files.offset, files.label = product.offset, os.fspath(paths[0])
        return files
    return FilePixels(paths, wanted, order, stack, reading)


def pair_file(s1_paths: Sequence[PathLike]) -> Sequence[PathLike]:
    """The .npz of ``--s1`` as the file that holds the estimate, too. Raises InputError: it is none."""
    if [Path(path).suffix.lower() for path in s1_paths] != [".npz"]:
        raise InputError(
            f"no optical file is given and {listed(s1_paths) or 'no SAR file'} holds SAR alone; expected --opt-v2 FILE,"
            " or one .npz that holds s1_vv, s1_vh and opt_v2"
        )
    return s1_paths


def read_raster(paths: PathLike | Sequence[PathLike], wanted: tuple[str, ...], *, order: Order = None) -> Raster:
    """Read the wanted bands from one stack or from one file a band, SAR in dB; no unit is refused.

    ``order`` names the bands (or the files) in place of what the files say. Raises InputError: as ``open_source``.
    """
    with ExitStack() as stack:
        source = open_source(paths, wanted, stack, Reading(bands=order, s1_unit="db", force=True))
        source.look()
        return as_raster(source, source.read(source.grid.whole))


def as_raster(source: Source, data: FloatArray) -> Raster:
    """Data (C, N*H, W) of a source as a raster (C,H,W), or (N,C,H,W) where the input has an axis for tiles."""
    if source.pixels.batched:
        data = np.stack(np.split(data, source.pixels.tiles, axis=1))
    grid = SceneGrid(data.shape[-2], data.shape[-1], source.grid.crs, source.grid.transform)
    return Raster(data, source.bands, grid, source.tags, source.label)


def read_truth(path: PathLike | None, opt_v2: Raster) -> Raster | None:
    """The truth that an .npz may hold beside opt_v2, of its shape or else InputError."""
    if path is None or Path(path).suffix.lower() != ".npz":
        return None
    with open_npz(path) as arrays:
        key = next((k for k in TRUTH_KEYS if k in arrays), None)
        data = opt_v2.data if key is None else arrays.numbers(key)
    if data.size != opt_v2.data.size or data.shape[-3:] != opt_v2.data.shape[-3:]:
        raise InputError(f"{path}: {key} has shape {data.shape}; expected that of opt_v2, {opt_v2.data.shape}")
    return None if key is None else replace(opt_v2, data=data.reshape(opt_v2.data.shape))


def _warn(message: str) -> None:
    warnings.warn(message, ReadingWarning, stacklevel=5)


def _declared_unit(texts: Iterable[str]) -> str | None:
    """The unit of backscatter that names of files and bands, or units, tell."""
    for text in texts:
        lower = text.lower()
        if match := re.search(r"_rtc\d+_[a-z]_[gs]([pda])[uw][nf][ec][dm]_", lower):  # as ASF HyP3 names its products
            return {"p": "power", "d": "db", "a": "amplitude"}[match[1]]
        words = set(re.findall(r"[a-z]+", lower))
        for unit, known in _UNIT_NAMES.items():
            if words & known:
                return unit
    return None


def _border(pixels: Pixels, bands: tuple[str, ...]) -> set[float]:
    """Numbers that stand along the edges, equal in all bands, and are no measurement."""
    height, width = pixels.grid.height // pixels.tiles, pixels.grid.width
    top, bottom = Tile(0, 0, 1, width), Tile(height - 1, 0, height, width)
    left, right = Tile(0, 0, height, 1), Tile(0, width - 1, height, width)
    numbers: set[float] = set()
    for edge in (top, bottom, left, right):
        values = pixels.read(edge)[0].reshape(len(bands), -1)
        same = (values == values[:1]).all(axis=0) & np.isfinite(values[0]) & (values[0] != 0)
        run = np.where(same, values[0], np.nan)
        starts = np.flatnonzero(np.r_[True, run[1:] != run[:-1]])  # NaN is a run of its own
        lengths = np.diff(np.r_[starts, len(run)])
        numbers |= {float(value) for value in run[starts[lengths >= BORDER_PIXELS]] if not np.isnan(value)}
    return {value for value in numbers if bands == SAR_BANDS or not 0 < value <= BRIGHTEST_DN}


def _sample(grid: SceneGrid) -> list[Tile]:
    """Sixteen parts spread over the image, which cost nothing beside reading all of it."""
    side, (height, width) = SAMPLE_SIDE, grid.size
    rows, columns = (sorted({round(part * max(size - side, 0) / 3) for part in range(4)}) for size in (height, width))
    return [Tile(r, c, min(r + side, height), min(c + side, width)) for r in rows for c in columns]
