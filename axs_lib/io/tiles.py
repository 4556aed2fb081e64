"""Read tiles: Sentinel-1 and optical rasters from .npz, .pt and .tif files, as one stack or one file a band.

In: paths, and optionally the order of the bands. Out: a ``Tile`` of named float32 rasters (NaN is nodata) on
one grid, with the georeference of the files. Units are those of ``axs_lib.bands``; whether the values are
plausible is the business of ``axs_lib.checks``. Nothing is unpickled, and the network is never used.
"""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError
from axs_lib.io.raster import (
    SUFFIXES,
    TIFF_SUFFIXES,
    FloatArray,
    Raster,
    Tile,
    band_name,
    check_same_grid,
    listed,
)
from axs_lib.io.stacks import (
    band_positions,
    ordered_bands,
    read_bands,
    stack_names,
    unnamed_bands,
    unreadable,
)

TRUTH_KEYS = ("s2_real", "s2_truth", "s2")
_S1_KEYS = "s1_vv and s1_vh (H,W), or s1 (2,H,W) or (N,2,H,W)"
_OPT_KEYS = "opt_v2 (4,H,W) or (N,4,H,W)"

Order = tuple[str, ...] | None
Paths = Sequence[str | os.PathLike[str]]


def read_tile(s1_paths: Paths, optical_paths: Paths = (), bands: Sequence[str] | None = None) -> Tile:
    """Read the SAR and optical inputs of Stage 3 and check that they lie on one grid.

    Args:
        s1_paths: one stack, or one file a band; an .npz that also holds ``opt_v2`` may stand alone.
        optical_paths: one stack, or one file a band; empty where the .npz of ``s1_paths`` holds it.
        bands: names of the stack's bands (or of the files) in their order, overriding what the files say;
            names of SAR bands apply to ``s1_paths``, all others to ``optical_paths``.

    Returns:
        The tile with bands in the library's order, plus truth and trust map where an .npz holds them.

    Raises:
        InputError: a file is missing, unreadable, of the wrong kind or band count, or the grids differ.
    """
    if not optical_paths and [Path(p).suffix.lower() for p in s1_paths] != [".npz"]:
        raise InputError(
            f"no optical file is given and {listed(s1_paths) or 'no SAR file'} holds SAR alone; expected"
            " --opt-v2 FILE,"
            " or one .npz that holds s1_vv, s1_vh and opt_v2"
        )
    optical_paths = optical_paths or s1_paths
    sar_order = tuple(b for b in bands or () if b in SAR_BANDS) or None
    optical_order = tuple(b for b in bands or () if b not in SAR_BANDS) or None
    s1 = read_raster(s1_paths, SAR_BANDS, order=sar_order)
    opt_v2 = read_raster(optical_paths, OPTICAL_BANDS, order=optical_order)
    check_same_grid(s1, opt_v2)
    if s1.batched != opt_v2.batched:  # (1,C,H,W) beside (C,H,W): one tile either way
        s1 = _replace_data(s1, s1.batch)
        opt_v2 = _replace_data(opt_v2, opt_v2.batch)
    truth, trust = _read_companions(Path(optical_paths[0]), opt_v2)
    return Tile(s1, opt_v2, truth, trust)


def read_raster(
    paths: str | os.PathLike[str] | Paths, wanted: tuple[str, ...], *, order: Order = None
) -> Raster:
    """Read the wanted bands from one stack or from one file a band.

    Args:
        paths: .npz, .pt or .tif files.
        wanted: ``SAR_BANDS`` or ``OPTICAL_BANDS``.
        order: names of the stack's bands (or of the files) in their order; overrides what the files say.

    Returns:
        The bands in the order of ``wanted``.

    Raises:
        InputError: as for ``read_tile``.
    """
    files = [Path(p) for p in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not files:
        raise InputError(f"no file is given for {listed(wanted)}; expected one stack, or one file a band")
    for file in files:
        _check_file(file)
    raster = (
        _read_stack(files[0], wanted, order) if len(files) == 1 else _read_band_files(files, wanted, order)
    )
    infinite = int(np.isinf(raster.data).sum())
    if infinite:
        raise InputError(
            f"{raster.source} holds {infinite} infinite value(s) in {listed(wanted)}; expected finite"
            " numbers, or NaN"
            " for nodata. In dB they come from log10(0): use 10 * np.log10(np.maximum(power, 1e-6))"
        )
    return raster


def read_overview(path: str | os.PathLike[str], wanted: tuple[str, ...], longest: int) -> Raster:
    """Read a GeoTIFF stack to be looked at, its pixels averaged until no side is longer than ``longest``.

    Overviews are used where the file has them. Infinite values count as nodata; tags, units and names of bands are as
    of ``read_raster``, and the transform is that of the larger pixels.

    Raises:
        InputError: as for ``read_tile``.
    """
    file = Path(path)
    _check_file(file)
    with _open_tiff(file) as dataset:
        shrink = max(1.0, max(dataset.height, dataset.width) / longest)
        shape = max(1, round(dataset.height / shrink)), max(1, round(dataset.width / shrink))
        names = stack_names(dataset, wanted, file)
        indexes = [i + 1 for i in band_positions(names, wanted, file)]
        data, blank = read_bands(dataset, indexes, file, wanted, shape)
        data[:, blank] = np.nan
        data[~np.isfinite(data)] = np.nan
        raster = _located(dataset, data, wanted, file)
        if raster.transform is not None:
            larger = dataset.transform.scale(dataset.width / shape[1], dataset.height / shape[0])
            raster = replace(raster, transform=tuple(dataset.transform * larger)[:6])
    return raster


def _read_stack(path: Path, wanted: tuple[str, ...], order: Order) -> Raster:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _read_npz(path, wanted, order)
    if suffix == ".pt":
        return Raster(_pick(_read_pt(path), order, wanted, path), wanted, source=str(path))
    return _read_tiff(path, wanted, order)


# NPZ


def _read_npz(path: Path, wanted: tuple[str, ...], order: Order) -> Raster:
    with open_npz(path) as arrays:
        data = _npz_sar(arrays, path) if wanted == SAR_BANDS else arrays.numbers("opt_v2", expected=_OPT_KEYS)
        crs, transform = arrays.georeference()
    return Raster(_pick(data, order, wanted, path), wanted, crs=crs, transform=transform, source=str(path))


def _npz_sar(arrays: Arrays, path: Path) -> FloatArray:
    if "s1" in arrays:
        return arrays.numbers("s1", expected=_S1_KEYS)
    vv, vh = arrays.numbers("s1_vv", expected=_S1_KEYS), arrays.numbers("s1_vh", expected=_S1_KEYS)
    if vv.shape != vh.shape or vv.ndim not in (2, 3):
        raise InputError(
            f"{path}: s1_vv has shape {vv.shape} and s1_vh {vh.shape}; expected one shape, (H,W), or (N,H,W)"
            " for a batch"
        )
    return np.stack([vv, vh], axis=-3)


def _read_companions(path: Path, opt_v2: Raster) -> tuple[Raster | None, FloatArray | None]:
    """Truth and trust map that an .npz may hold beside opt_v2."""
    if path.suffix.lower() != ".npz":
        return None, None
    truth, trust = None, None
    count, (height, width) = len(opt_v2.batch), opt_v2.size
    with open_npz(path) as arrays:
        key = next((k for k in TRUTH_KEYS if k in arrays), None)
        if key is not None:
            data = arrays.numbers(key)
            if data.size != opt_v2.data.size or data.shape[-3:] != opt_v2.data.shape[-3:]:
                raise InputError(
                    f"{path}: {key} has shape {data.shape}; expected that of opt_v2, {opt_v2.data.shape}"
                )
            truth = _replace_data(opt_v2, data.reshape(opt_v2.data.shape))
        if "trust" in arrays:
            data = arrays.numbers("trust")
            if data.size != count * height * width or data.shape[-2:] != (height, width):
                raise InputError(
                    f"{path}: trust has shape {data.shape}; expected ({count},1,{height},{width})"
                    f" or ({height},{width}), 1 where opt_v2 was observed and 0 where it is unknown"
                )
            trust = data.reshape(count, 1, height, width)
    return truth, trust


class Arrays:
    """The arrays of an open .npz, checked one by one as they are asked for."""

    def __init__(self, archive: Any, path: Path) -> None:
        self._archive = archive
        self._path = path

    def __contains__(self, key: str) -> bool:
        return key in self._archive.files

    def numbers(self, key: str, expected: str | None = None) -> FloatArray:
        """One array as float32; ``InputError`` where it is missing, pickled, damaged or not numeric."""
        if key not in self:
            keys = listed(self._archive.files) or "no arrays"
            raise InputError(
                f"{self._path} holds {keys}; expected {expected or key}: np.savez(path, {key}=array, ...)"
            )
        array = self._load(key)
        if array.dtype.kind not in "fiu":
            raise InputError(f"{self._path}: {key} holds {array.dtype}; expected real numbers")
        with np.errstate(over="ignore"):
            return array.astype(np.float32)

    def text(self, key: str) -> str | None:
        """A piece of text such as ``provenance``, or None where there is none."""
        value = self._load(key) if key in self else np.empty(0)
        return str(value) if value.dtype.kind == "U" and value.shape == () else None

    def georeference(self) -> tuple[str | None, tuple[float, ...] | None]:
        """CRS and transform as this library writes them into an .npz, where they are there."""
        crs = str(self._load("crs")) if "crs" in self else None
        transform = self._load("transform") if "transform" in self else np.empty(0)
        located = transform.dtype.kind == "f" and transform.shape == (6,)
        return crs, tuple(float(v) for v in transform) if located else None

    def _load(self, key: str) -> NDArray[Any]:
        try:
            return np.asarray(self._archive[key])
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            if isinstance(error, ValueError) and "pickle" in str(error).lower():
                raise InputError(
                    f"{self._path}: {key} is a pickled object array, which is not loaded because it can run"
                    " code; save"
                    " plain numeric arrays with np.savez"
                ) from error
            raise InputError(unreadable(self._path, "an .npz written by np.savez", error)) from error


@contextmanager
def open_npz(path: Path) -> Iterator[Arrays]:
    """Open an .npz without ever unpickling.

    Raises:
        InputError: it is no .npz.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not an .npz archive, or it is truncated; expected a file written by np.savez (a"
            " pickled file is"
            " not loaded because it can run code): write it again with np.savez"
        )
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(unreadable(path, "an .npz written by np.savez", error)) from error
    with archive:
        yield Arrays(archive, path)


# PT


def _read_pt(path: Path) -> FloatArray:
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged or holds pickled Python objects, which are not loaded because they can run"
            " code;"
            " expected one plain tensor: torch.save(tensor, path)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(unreadable(path, "a tensor saved by torch.save(tensor, path)", error)) from error
    if not isinstance(loaded, torch.Tensor):
        raise InputError(
            f"{path} holds a {type(loaded).__name__}; expected one tensor (C,H,W) or (N,C,H,W):"
            " torch.save(tensor, path)"
        )
    if loaded.is_complex() or loaded.dtype == torch.bool or loaded.layout != torch.strided:
        raise InputError(
            f"{path} holds a {loaded.layout} tensor of {loaded.dtype}; expected dense real numbers"
        )
    return np.asarray(loaded.detach().to(torch.float32).numpy())


# GeoTIFF


def _read_tiff(path: Path, wanted: tuple[str, ...], order: Order) -> Raster:
    with _open_tiff(path) as dataset:
        names = (
            stack_names(dataset, wanted, path) if order is None else ordered_bands(order, dataset.count, path)
        )
        indexes = [i + 1 for i in band_positions(names, wanted, path)]
        data, blank = read_bands(dataset, indexes, path, wanted)
        data[:, blank] = np.nan
        return _located(dataset, data, wanted, path)


def _read_band_files(files: Sequence[Path], wanted: tuple[str, ...], order: Order) -> Raster:
    if order is not None and len(order) != len(files):
        raise InputError(
            f"{len(files)} files are given and --bands names {len(order)} ({listed(order)}); expected one"
            " name a file"
        )
    found: dict[str, Raster] = {}
    blanks: list[NDArray[np.bool_]] = []
    for position, path in enumerate(files):
        if path.suffix.lower() not in TIFF_SUFFIXES:
            raise InputError(
                f"{path} is one of {len(files)} files; expected GeoTIFFs where there is one file a band,"
                " or one stack alone"
            )
        with _open_tiff(path) as dataset:
            if dataset.count != 1:
                raise InputError(
                    f"{path} is one of {len(files)} files and has {dataset.count} bands; expected one band"
                    " in each file,"
                    " or one stack alone"
                )
            name = order[position] if order else band_name(dataset.descriptions[0]) or band_name(path.stem)
            if name is None:
                raise InputError(
                    f"neither the name of {path} nor its band description says which band it is; expected"
                    " for example"
                    f" tile_{wanted[0]}.tif, or the names in the order of the files: --bands"
                    f" {','.join(wanted)}"
                )
            if name in found:
                raise InputError(
                    f"{found[name].source} and {path} both hold {name}; expected one file a band"
                )
            data, blank = read_bands(dataset, [1], path, wanted)
            blanks.append(blank)
            found[name] = _located(dataset, data, (name,), path)
    missing = [b for b in wanted if b not in found]
    if missing:
        raise InputError(
            f"{listed(files)} hold {listed(found)} and lack {listed(missing)}; expected one file for each of"
            f" {listed(wanted)}, named for example tile_{missing[0]}.tif"
        )
    first = found[wanted[0]]
    for name in wanted[1:]:
        check_same_grid(found[name], first)
    data = np.concatenate([found[b].data for b in wanted])
    data[:, np.logical_and.reduce(blanks)] = np.nan
    source = f"{first.source} (and {len(wanted) - 1} more)"
    return Raster(data, wanted, first.crs, first.transform, first.nodata, first.tags, source)


def _located(dataset: Any, data: FloatArray, bands: tuple[str, ...], path: Path) -> Raster:
    crs = dataset.crs.to_wkt() if dataset.crs else None
    transform = None if dataset.transform.is_identity else tuple(dataset.transform)[:6]
    tags = {key: str(value) for key, value in dataset.tags().items() if key != "AREA_OR_POINT"}
    return Raster(data, bands, crs, transform, dataset.nodata, tags, str(path))


@contextmanager
def _open_tiff(path: Path) -> Iterator[Any]:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            dataset = rasterio.open(path, driver="GTiff")
        except (RasterioError, OSError) as error:
            raise InputError(unreadable(path, "a GeoTIFF", error)) from error
        with dataset:
            yield dataset


# Shared


def _check_file(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix or 'no suffix'}; expected one of {listed(SUFFIXES)}")
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a tile file: check the path")
    if not path.is_file():
        raise InputError(f"{path} is not a file; expected an .npz, .pt or .tif tile")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} may not be read; expected a readable file: change its permissions")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); expected an .npz, .pt or .tif tile: write it again")


def _pick(data: FloatArray, order: Order, wanted: tuple[str, ...], path: Path) -> FloatArray:
    """The wanted bands of an array (C,H,W) or (N,C,H,W) whose bands are in ``order`` (or the library's)."""
    if data.ndim not in (3, 4):
        raise InputError(
            f"{path}: the array has shape {data.shape}; expected (C,H,W), or (N,C,H,W) for a batch"
        )
    if data.size == 0:
        raise InputError(
            f"{path}: the array of shape {data.shape} is empty; expected at least one tile with pixels"
        )
    count = data.shape[-3]
    names = unnamed_bands(count, wanted, path) if order is None else ordered_bands(order, count, path)
    return np.ascontiguousarray(np.take(data, band_positions(names, wanted, path), axis=-3))


def _replace_data(raster: Raster, data: FloatArray) -> Raster:
    return Raster(data, raster.bands, raster.crs, raster.transform, raster.nodata, raster.tags, raster.source)
