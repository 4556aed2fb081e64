"""The pixels of raster files and arrays as they declare them: which band is which, nodata, scale, offset, unit."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS, SAR_BANDS
from axs_lib.checks import check_choice
from axs_lib.errors import InputError, listed
from axs_lib.io.files import PathLike
from axs_lib.io.formats import FloatArray, open_npz, open_raster, unreadable
from axs_lib.io.grid import SceneGrid, checked_grid, grid_of
from axs_lib.io.raster import band_name
from axs_lib.io.safe import GEOCODING, Offset, metadata_offset
from axs_lib.tilegrid import Tile

TRUST = ("trust",)  # the band of a trust map
S1_UNITS = ("auto", "db", "power", "amplitude")
BOA_OFFSETS = ("auto", "0", "1000")
KEYS = {SAR_BANDS: "s1_vv and s1_vh (H,W), or s1 (2,H,W) or (N,2,H,W)", OPTICAL_BANDS: "opt_v2 (4,H,W) or (N,4,H,W)"}

Order = tuple[str, ...] | None
Part = tuple[Any, list[int], str]  # of an input: dataset, indexes of bands in it, and path
Place = tuple[str | None, tuple[float, ...] | None]  # CRS as WKT, and transform


@dataclass(frozen=True)
class Reading:
    """How inputs are read."""

    bands: Order = None  # names in their order, where the files do not say it or say it wrong
    s1_unit: str = "auto"
    boa_offset: str = "auto"  # a number is what the file's DN hold too much
    same_grid: bool = False  # lay images of one size on each other, although one of them does not say where it lies
    force: bool = False  # accept values that look like another unit
    addresses: bool = True  # open addresses (https://, /vsi...), because the user wrote the paths

    def ignores_offset(self, bands: tuple[str, ...]) -> bool:
        """Whether the user says what is to be taken off, in place of an offset that the input declares."""
        return self.boa_offset != "auto" and bands == OPTICAL_BANDS

    def __post_init__(self) -> None:
        check_choice("--s1-unit", self.s1_unit, S1_UNITS)
        check_choice("--boa-offset", self.boa_offset, BOA_OFFSETS)


AS_DECLARED = Reading()


class Pixels(ABC):
    """The pixels of one kind of input, as it declares them."""

    grid: SceneGrid  # tiles of a batch lie one under another
    dtype: np.dtype[Any]  # as stored
    tiles: int = 1  # how many lie one under another
    batched: bool = False  # whether the input has an axis for tiles
    offset: Offset | None = None  # the BOA offset by the metadata of a product
    offset_declared: bool = False  # whether the file gives an additive offset of its own
    may_lie: bool = True  # whether this kind of input can say where it lies

    def __init__(self, bands: tuple[str, ...], label: str) -> None:
        self.bands, self.label = bands, label  # in the order of what ``read`` returns; for messages
        self.notes: list[str] = []  # what was assumed of the bands
        self.tags: Mapping[str, str] = {}  # metadata of the file
        self.texts: Sequence[str] = []  # names of file and bands, which may tell the unit

    @abstractmethod
    def read(self, window: Tile) -> tuple[FloatArray, NDArray[np.bool_]]:
        """(C, h, w) with the file's scale applied, NaN where it declares no data; and (h, w): 0 in all bands."""

    def positions(self, names: Sequence[str | None], order: Order, count: int) -> list[int]:
        """Where the bands stand in a stack of ``count``, from 0; InputError where one is missing or stands twice.

        ``names`` are what the stack calls its bands; where there are none, the library's order is assumed and noted.
        ``order`` is what the user calls them, which goes before.
        """
        if order is not None:
            if len(order) != count:
                raise InputError(
                    f"{self.label} has {count} band(s) and --bands names {len(order)} ({listed(order)}); expected a"
                    " name for every band of the stack, in its order"
                )
            said = ((band_name(name), own) for name, own in zip(names, order, strict=False))
            if against := [f"{name} for {own}" for name, own in said if name not in (None, own)]:
                self.notes.append(f"{self.label}: --bands takes {listed(against)}, against the names in the file")
            names = order
        elif not any(names):
            if count != len(self.bands):
                raise InputError(
                    f"{self.label} has {count} band(s) without names; expected the {len(self.bands)} bands"
                    f" {listed(self.bands)} in this order, or a name for every band in the order of the stack:"
                    " --bands NAME,NAME,..."
                )
            names = self.bands
            self.notes.append(
                f"{self.label}: names no bands; taken for {listed(names)} in this order, --bands says it otherwise"
            )
        if twice := [band for band in self.bands if names.count(band) > 1]:
            raise InputError(f"{self.label} names more than one band {listed(twice)}; name each in order: --bands")
        if missing := [band for band in self.bands if band not in names]:
            hint = " HH and HV are backscatter of another polarisation, which the networks do not know."
            polar = hint if any(re.search(r"\bH[HV]\b|_H[HV]_", f"{name}") for name in names) else ""
            left = iter(missing)
            example = ",".join([*(name if name in self.bands else next(left, "NAME") for name in names), *left])
            raise InputError(
                f"{self.label} holds the bands {listed(name or '(unnamed)' for name in names)} and lacks"
                f" {listed(missing)}; expected {listed(self.bands)}.{polar} Where its band descriptions are wrong or"
                f" incomplete, name every band in the order of the stack, for example --bands {example}"
            )
        return [names.index(band) for band in self.bands]

    def scaled(self, raw: NDArray[Any], scale: float, offset: float, *, ignore_offset: bool) -> FloatArray:
        """Raw numbers in DN or dB, by a declared scale and offset: of reflectance, or of DN where the scale is 1."""
        if (scale, offset) == (1.0, 0.0):
            with np.errstate(over="ignore"):
                return raw.astype(np.float32)
        in_dn = self.bands != OPTICAL_BANDS or (scale == 1.0 and abs(offset) >= 1.0)
        unit = 1.0 if in_dn else DN_PER_REFLECTANCE
        shift = 0.0 if ignore_offset else offset * unit
        return (raw.astype(np.float64) * (scale * unit) + shift).astype(np.float32)


class FilePixels(Pixels):
    """A stack of bands, or one file a band, that GDAL opens."""

    def __init__(
        self, paths: Sequence[PathLike], wanted: tuple[str, ...], order: Order, stack: ExitStack, reading: Reading
    ) -> None:
        super().__init__(wanted, os.fspath(paths[0]) + (f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""))
        datasets = [stack.enter_context(open_raster(path, addresses=reading.addresses)) for path in paths]
        first = datasets[0]
        self.grid = grid_of(first)
        types = [dtype for dataset in datasets for dtype in dataset.dtypes]
        if any(dtype.startswith("complex") for dtype in types):  # of which NumPy does not know all
            raise InputError(f"{self.label} is complex; expected backscatter in dB or power, or reflectance in DN")
        self.dtype = np.result_type(*types)
        self.tags = {k: str(v) for k, v in first.tags().items() if k != "AREA_OR_POINT"}
        if len(paths) == 1:
            self._parts = [(first, self._stack_indexes(first, order), self.label)]
        else:
            self._parts = self._band_parts(datasets, paths, order)
        for dataset, _, path in self._parts:
            if not grid_of(dataset).same_as(self.grid):
                raise InputError(
                    f"the grids of {paths[0]} and {path} differ: {self.grid} against {grid_of(dataset)}; expected one"
                    " grid for all bands (B02, B03, B04 and B08 of 10 m): resample them first, as by rio warp --like"
                )
        if self.grid.transform is None and first.gcps[0] and not reading.same_grid:
            fix = f"lies in radar geometry; {GEOCODING}" if wanted == SAR_BANDS else "no grid: gdalwarp it to a map"
            raise InputError(f"{self.label} has ground control points only and {fix}")
        if self.grid.transform is None and (first.gcps[0] or first.rpcs):
            self.notes.append(f"{self.label}: what is made on its grid has none of its ground control points or RPCs")
        self.offset_declared = any(d.offsets[i - 1] != 0 for d, indexes, _ in self._parts for i in indexes)
        if wanted == OPTICAL_BANDS and not self.offset_declared and not {"AXS_VERSION", "AXS_DATE"} & self.tags.keys():
            self.offset = metadata_offset(paths[0])
        units = [d.units[i - 1] for d, indexes, _ in self._parts for i in indexes]
        self.texts = [text for text in (*(Path(p).stem for p in paths), *units, *first.descriptions) if text]
        self._ignore_offset = reading.ignores_offset(wanted)

    def read(self, window: Tile) -> tuple[FloatArray, NDArray[np.bool_]]:
        part = (window.top, window.bottom), (window.left, window.right)
        data = np.empty((len(self.bands), *window.shape), dtype=np.float32)
        zero = np.ones(window.shape, dtype=bool)
        at = 0
        for dataset, indexes, path in self._parts:
            try:
                raw = dataset.read(indexes, window=part)
                valid = dataset.read_masks(indexes, window=part) != 0
                if dataset.count in indexes and any(f.name == "alpha" for f in dataset.mask_flag_enums[indexes[0] - 1]):
                    valid[:] = True  # the last band, which GDAL takes for alpha, is one of the image
                for alpha in {*_alpha_bands(dataset)} - {*indexes}:
                    valid &= dataset.read(alpha, window=part) != 0
            except (RasterioError, OSError) as error:
                raise InputError(unreadable(path, "a complete image", error)) from error
            zero &= (raw == 0).all(axis=0)
            for band, index in enumerate(indexes):
                scaling = dataset.scales[index - 1], dataset.offsets[index - 1]
                data[at] = self.scaled(raw[band], *scaling, ignore_offset=self._ignore_offset)
                data[at][~valid[band]] = np.nan
                at += 1
        return data, zero

    def _stack_indexes(self, dataset: Any, order: Order) -> list[int]:
        if self.bands == TRUST:
            if dataset.count != 1:
                raise InputError(f"{self.label} has {dataset.count} bands; expected a trust map of one band, 0 to 1")
            return [1]
        alpha = _alpha_bands(dataset) if order is None or len(order) != dataset.count else []  # else it is named
        there = [index for index in dataset.indexes if index not in alpha]
        if len(there) == 1:
            name = Path(self.label).name
            own = next((band for band in self.bands if band in name), name)
            files = " ".join(name.replace(own, band) if own != name else f"{band}.tif" for band in self.bands)
            raise InputError(
                f"{self.label} holds one band; expected {listed(self.bands)}: give one stack, or one file a band:"
                f" {'--s1' if self.bands == SAR_BANDS else '--opt-v2'} {files}"
            )
        texts = [dataset.descriptions[index - 1] or "" for index in there]
        if len(texts) > 8 and [text.lower() for text in texts] == [f"b{n}" for n in range(1, len(texts) + 1)]:
            texts = [""] * len(texts)  # these are numbers: between B08 and B09 lies B8A
        names = [band_name(text) for text in texts]
        foreign = len(there) != len(self.bands) or any(map(_other_band, texts))
        if any(names) or (foreign and any(texts)):
            names = [name or text or None for name, text in zip(names, texts, strict=True)]
        else:  # no descriptions, or mere numbers as "Band 1"
            names = [band_name(dataset.colorinterp[index - 1].name) for index in there]
        return [there[at] for at in self.positions(names, order, len(there))]

    def _band_parts(self, datasets: Sequence[Any], paths: Sequence[PathLike], order: Order) -> list[Part]:
        """One file a band, in the order of ``bands``."""
        if order is not None and len(order) != len(paths):
            raise InputError(
                f"{len(paths)} files are given and --bands names {len(order)} ({listed(order)}); expected one name a"
                " file"
            )
        found: dict[str, Part] = {}
        for position, (dataset, path) in enumerate(zip(datasets, paths, strict=True)):
            if dataset.count - len(_alpha_bands(dataset)) != 1:
                raise InputError(
                    f"{path} is one of {len(paths)} files and has {dataset.count} bands; expected one band in each"
                    " file, or one stack alone"
                )
            stem = Path(path).stem
            own = band_name(dataset.descriptions[0]) or band_name(stem) or _other_band(stem)
            name = order[position] if order else own
            if name is None:
                raise InputError(
                    f"neither the name of {path} nor its band description says which band it is; expected for example"
                    f" tile_{self.bands[0]}.tif, or the names in the order of the files: --bands {','.join(self.bands)}"
                )
            if name in found:
                raise InputError(f"{found[name][2]} and {path} both hold {name}; expected one file a band")
            found[name] = (dataset, [1], os.fspath(path))
        if missing := [band for band in self.bands if band not in found]:
            coarse = " B8A is the band of 20 m." if "B8A" in found and "B08" in missing else ""
            raise InputError(
                f"{listed(paths)} hold {listed(found)} and lack {listed(missing)}; expected one file for each of"
                f" {listed(self.bands)}, named for example tile_{missing[0]}.tif.{coarse}"
            )
        return [found[band] for band in self.bands]


class MemoryPixels(Pixels):
    """An array (C,H,W), or a batch of tiles (N,C,H,W), which lie one under another."""

    def __init__(
        self, data: NDArray[Any], wanted: tuple[str, ...], order: Order, label: str, place: Place = (None, None)
    ) -> None:
        super().__init__(wanted, label)
        if wanted == TRUST and data.ndim in (2, 3) and (data.ndim == 2 or len(data) > 1):
            data = data[..., None, :, :]
        if data.dtype.kind not in ("fiub" if wanted == TRUST else "fiu") or data.ndim not in (3, 4) or data.size == 0:
            raise InputError(
                f"{label}: the array is {data.dtype} of shape {data.shape}; expected real numbers"
                f" ({len(wanted)},H,W), or (N,{len(wanted)},H,W) for a batch, not empty"
            )
        count = data.shape[-3]
        if count != len(wanted) and data.shape[-1] == len(wanted):
            raise InputError(
                f"{label} has shape {data.shape}, bands last; expected bands first, ({len(wanted)},H,W):"
                " np.moveaxis(array, -1, -3)"
            )
        self.dtype, self.texts, self.may_lie = data.dtype, [Path(label).stem], place != (None, None)
        self.batched, self.tiles = data.ndim == 4, len(data) if data.ndim == 4 else 1
        stacked = np.take(data, self.positions([None], order, count), axis=-3)
        self._data = np.concatenate(list(stacked), axis=1) if self.batched else stacked
        self.grid = checked_grid(label, self._data.shape[1], self._data.shape[2], *place)

    def read(self, window: Tile) -> tuple[FloatArray, NDArray[np.bool_]]:
        raw = window.of(self._data)
        return self.scaled(raw, 1.0, 0.0, ignore_offset=False), (raw == 0).all(axis=0)


def read_npz(path: Path, wanted: tuple[str, ...], order: Order = None) -> MemoryPixels:
    """The SAR (``s1``, or ``s1_vv`` and ``s1_vh``), ``opt_v2`` or ``trust`` of an .npz; InputError: it is not there."""
    with open_npz(path) as arrays:
        if wanted == SAR_BANDS and "s1" not in arrays:
            data = arrays.sar(KEYS[wanted])
        else:
            key = {SAR_BANDS: "s1", OPTICAL_BANDS: "opt_v2", TRUST: "trust"}[wanted]
            data = arrays.numbers(key, KEYS.get(wanted), boolean=wanted == TRUST)
            if wanted == TRUST and data.ndim == 2 and "opt_v2" in arrays:  # for every tile of a batch
                data = np.broadcast_to(data, (*arrays.shape("opt_v2")[:-3], 1, *data.shape))
            if wanted != TRUST and (data.ndim not in (3, 4) or data.shape[-3] != len(order or wanted)):
                raise InputError(
                    f"{path}: {key} has shape {data.shape}; expected ({len(wanted)},H,W), or (N,{len(wanted)},H,W) for"
                    " a batch; or name every band in its order: --bands NAME,NAME,..."
                )
        pixels = MemoryPixels(data, wanted, order, str(path), arrays.georeference())
        pixels.notes = []  # the names of the arrays, or this library's format, give the order
        if arrays.text("provenance"):
            pixels.tags = {"AXS_VERSION": "npz"}
        return pixels


def _other_band(text: str) -> str | None:
    """HH or HV, which a text names and this library does not use."""
    match = re.search(r"(?:^|[^A-Za-z])(HH|HV)(?:[^A-Za-z]|$)", text, re.IGNORECASE)
    return match[1].upper() if match else None


def _alpha_bands(dataset: Any) -> list[int]:
    bands = zip(dataset.indexes, dataset.colorinterp, dataset.descriptions, strict=True)
    return [index for index, colour, text in bands if colour.name == "alpha" and not band_name(text)]
