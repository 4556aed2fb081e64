"""Find saved results and read them to be looked at: what ``axs ground``, ``run``, ``batch`` and ``demo`` wrote."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError, listed
from axs_lib.io.files import PathLike
from axs_lib.io.formats import FloatArray, open_npz, open_raster
from axs_lib.io.grid import SceneGrid, checked_grid, grid_of
from axs_lib.io.raster import TIFF_SUFFIXES, TRUTH_KEYS, Raster, band_name

MAIN = "opt_v3"
LAYERS = {
    "s1": SAR_BANDS,
    **dict.fromkeys(("opt_v1", "opt_v2", MAIN, "truth", "uncertainty"), OPTICAL_BANDS),
    **{name: (name,) for name in ("gate", "trust")},
}
KEYS = {layer: TRUTH_KEYS if layer == "truth" else (layer,) for layer in LAYERS}  # names in files
LONGEST = 1024  # px
NOT_SHOWN = "not shown"  # tag of a result that says what its file holds and cannot be shown
_TOGETHER = {"tile", "result"}  # names of .npz files that hold what the GeoTIFFs beside them do


@dataclass(frozen=True)
class Result:
    """One tile or scene.

    Layers are float32 (bands,h,w) by the names of ``LAYERS``, NaN where there is no data, all of one size, and always
    ``opt_v3``. Optical images and their uncertainty are DN, SAR is dB, gate and trust 0 to 1.
    """

    name: str  # for people
    source: str  # the file
    layers: Mapping[str, FloatArray]
    size: tuple[int, int]  # of the file in pixels; ``layers`` may be smaller
    grid: SceneGrid  # of the layers' pixels
    tags: Mapping[str, str]  # what made it

    @property
    def reduction(self) -> float:
        """Pixels of the file along one pixel of the layers; 1 for a tile."""
        return self.size[1] / self.layers[MAIN].shape[-1]


def find_results(paths: Sequence[PathLike]) -> list[tuple[str, Path]]:
    """Names and paths of the results in folders, and of files; two that would have one name have their paths.

    A file that several paths lead to is one result, of the first of them.
    In a folder and those below it a result is an .npz with ``opt_v3``, or a GeoTIFF named ``opt_v3.tif`` (unless a
    ``result.npz`` or ``tile.npz`` lies beside it, the same result) or ``NAME_opt_v3.tif``, or an optical one of any
    other name that this library wrote and that is not named as another layer. A file given itself may have any name.
    Raises InputError: a path does not exist, or there is no result at all.
    """
    found: dict[str, tuple[str, Path]] = {}  # by where all links lead
    for path in map(Path, paths):
        if path.is_dir():
            folder = path.resolve().name
            for file in _results_below(path):
                inside = file.relative_to(path)
                name = _name(inside if len(paths) == 1 else folder / inside, folder)
                found.setdefault(os.path.realpath(file), (name, file))
        elif path.exists():
            name = _name(Path(path.name), path.resolve().parent.name)
            found.setdefault(os.path.realpath(path), (name, path))
        else:
            raise InputError(f"{path} does not exist; expected a folder with results, .npz or .tif files")
    if not found:
        raise InputError(
            f"{listed(paths)} holds no results; expected .npz files with opt_v3, or GeoTIFFs, as axs ground, axs run,"
            " axs batch and axs demo write them"
        )
    count = Counter(name for name, _ in found.values())
    return [(name if count[name] == 1 else path.as_posix(), path) for name, path in found.values()]


def read_results(
    path: PathLike, name: str | None = None, *, companions: Mapping[str, PathLike | Sequence[PathLike]] | None = None
) -> Iterator[Result]:
    """Read the results of one file: one, or the tiles of a batch.

    Layers that the file does not hold are taken from the GeoTIFFs beside it, such as ``s1.tif`` beside ``opt_v3.tif``
    or the only .npz of a folder, and ``NAME_s1.tif`` beside ``NAME_opt_v3.tif``; ``companions``, layers by their name,
    a stack or one file a band each, go before those. Large GeoTIFFs are averaged until no side is over ``LONGEST``,
    arrays thinned. Raises InputError: a file cannot be read, is not what it should be, or lies elsewhere.
    """
    path = Path(path)
    name = name or _name(Path(path.name), path.resolve().parent.name)
    given = {layer: [f] if isinstance(f, str | os.PathLike) else f for layer, f in (companions or {}).items()}
    if unknown := [layer for layer in given if layer not in LAYERS or layer == MAIN]:
        raise InputError(f"{listed(unknown)} is no layer of a result; expected some of {listed(LAYERS)}")
    beside = _companions(path) | {layer: [Path(file) for file in files] for layer, files in given.items()}
    if path.suffix.lower() in TIFF_SUFFIXES:
        main = _read_reduced(path, OPTICAL_BANDS)
        layers = {MAIN: main.data} | _read_beside(beside, main)
        ordered = {layer: layers[layer] for layer in LAYERS if layer in layers}
        yield Result(name, str(path), ordered, SceneGrid.like(path).size, main.grid, main.tags)
    else:
        yield from _read_npz(path, name, beside)


def _results_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        here = [Path(parent, file) for file in sorted(files) if not file.startswith(".")]
        archives = [file for file in here if file.suffix.lower() == ".npz" and _holds_result(file)]
        yield from archives
        for file in (file for file in here if file.suffix.lower() in TIFF_SUFFIXES):
            known = (name for names in KEYS.values() for name in names)
            layer = next((name for name in known if f"_{file.stem}".endswith(f"_{name}")), None)
            same = file.stem == MAIN and any(archive.stem in _TOGETHER for archive in archives)
            if (layer == MAIN and not same) or (layer is None and _holds_result(file)):
                yield file


def _holds_result(path: Path) -> bool:
    try:
        if path.suffix.lower() in TIFF_SUFFIXES:
            with open_raster(path) as image:
                ours = "AXS_VERSION" in image.tags() and image.descriptions == OPTICAL_BANDS
                return ours and image.dtypes[0] == "uint16"  # an uncertainty is a float
        with open_npz(path) as arrays:
            return MAIN in arrays
    except InputError:
        return False


def _name(path: Path, folder: str) -> str:
    stem = path.stem.removesuffix(f"_{MAIN}")
    if stem not in {MAIN, *_TOGETHER}:  # which say less than the folder's name
        return path.with_name(stem).as_posix()
    return folder if path.parent == Path() else path.parent.as_posix()


def _companions(path: Path) -> dict[str, list[Path]]:
    """GeoTIFFs beside a result that hold layers of it, by the layers' names."""
    prefix = ""
    if path.suffix.lower() in TIFF_SUFFIXES:
        if not path.stem.endswith(MAIN):
            return {}
        prefix = path.stem.removesuffix(MAIN)
    elif sum(file.suffix.lower() == ".npz" for file in path.parent.iterdir()) > 1:
        return {}
    found = {}
    for layer, names in KEYS.items():
        stems = dict.fromkeys((layer, *names))
        files = (path.parent / f"{prefix}{stem}{suffix}" for stem in stems for suffix in TIFF_SUFFIXES)
        file = next((file for file in files if file.is_file()), None)
        if file is not None and layer != MAIN:
            found[layer] = [file]
    return found


def _read_npz(path: Path, name: str, beside: Mapping[str, Sequence[Path]]) -> Iterator[Result]:
    with open_npz(path) as arrays:
        stacks: dict[str, FloatArray] = {}
        for layer, names in KEYS.items():
            key = next((key for key in names if key in arrays), None)
            if key is not None or layer == MAIN:
                stacks[layer] = arrays.numbers(key or MAIN, f"{MAIN} (4,H,W) or (N,4,H,W)", boolean=layer == "trust")
        crs, transform = arrays.georeference()
        tags = _tags(arrays.text("provenance"))
        if "s1" not in stacks and "s1_vv" in arrays and "s1_vh" in arrays:
            vv, vh = arrays.shape("s1_vv"), arrays.shape("s1_vh")
            if vv == vh:
                stacks["s1"] = arrays.sar()
            else:
                tags[NOT_SHOWN] = f"SAR, since s1_vv has shape {vv} and s1_vh {vh}"
    main = stacks[MAIN]
    if main.ndim not in (3, 4) or main.shape[-3] != len(OPTICAL_BANDS) or main.size == 0:
        raise InputError(f"{path}: {MAIN} has shape {main.shape}; expected (4,H,W) or (N,4,H,W)")
    count, (height, width) = (len(main) if main.ndim == 4 else 1), main.shape[-2:]
    for layer, data in stacks.items():
        wanted = (count, len(LAYERS[layer]), height, width)
        if layer == "uncertainty" and data.size == count * height * width:  # one map for all the bands
            data = np.repeat(data.reshape(count, 1, height, width), len(OPTICAL_BANDS), axis=1)
        if data.size != np.prod(wanted) or data.shape[-2:] != wanted[-2:]:
            raise InputError(f"{path}: {layer} has shape {data.shape}; expected {wanted} as {MAIN} has")
        stacks[layer] = data.reshape(wanted)
    step = -(-max(height, width) // LONGEST)
    if transform is not None:
        a, b, c, d, e, f = transform
        transform = (a * step, b * step, c, d * step, e * step, f)
    for index in range(count):
        thinned = {layer: data[index, :, ::step, ::step] for layer, data in stacks.items()}
        layers = {layer: np.where(np.isfinite(data), data, np.nan) for layer, data in thinned.items()}
        rows, columns = layers[MAIN].shape[1:]
        grid = checked_grid(str(path), rows, columns, crs, transform)
        if count == 1 and step == 1:
            lacking = {layer: file for layer, file in beside.items() if layer not in layers}
            layers |= _read_beside(lacking, Raster(layers[MAIN], OPTICAL_BANDS, grid, source=str(path)))
        if "s1" in layers:  # of a file beside it
            tags.pop(NOT_SHOWN, None)
        title = name if count == 1 else f"{name} #{index + 1}"
        ordered = {layer: layers[layer] for layer in LAYERS if layer in layers}
        yield Result(title, str(path), ordered, (height, width), grid, tags)


def _read_reduced(path: Path, wanted: tuple[str, ...]) -> Raster:
    """A GeoTIFF of this library, averaged until no side is longer than ``LONGEST``; overviews are used."""
    with open_raster(path) as dataset:
        shrink = max(1.0, max(dataset.height, dataset.width) / LONGEST)
        height, width = max(1, round(dataset.height / shrink)), max(1, round(dataset.width / shrink))
        if dataset.count < len(wanted):
            raise InputError(f"{path} has {dataset.count} band(s); expected {listed(wanted)}")
        names = list(dataset.descriptions)
        named = [names.index(band) + 1 for band in wanted if band in names]
        indexes = named if len(named) == len(wanted) else list(dataset.indexes[: len(wanted)])
        shape = (len(indexes), height, width)
        try:
            raw = dataset.read(indexes, masked=True, out_shape=shape, resampling=Resampling.average)
        except (RasterioError, OSError) as error:
            raise InputError(f"{path} cannot be read; expected a complete GeoTIFF: {error}") from error
        data = raw.astype(np.float32).filled(np.nan)
        data[~np.isfinite(data)] = np.nan
        grid = grid_of(dataset)
        transform = grid.transform
        if transform is not None:
            transform = tuple(grid.affine * grid.affine.scale(dataset.width / width, dataset.height / height))[:6]
        tags = {key: str(value) for key, value in dataset.tags().items() if key != "AREA_OR_POINT"}
    return Raster(data, wanted, SceneGrid(height, width, grid.crs, transform), tags, str(path))


def _read_beside(beside: Mapping[str, Sequence[Path]], main: Raster) -> dict[str, FloatArray]:
    layers = {}
    for layer, files in beside.items():
        parts = {files[0]: LAYERS[layer]}
        if len(files) > 1:
            named = {band_name(file.stem): file for file in files}
            if len(files) != len(LAYERS[layer]) or not named.keys() >= set(LAYERS[layer]):
                raise InputError(f"{listed(files)}: expected one stack, or files named {listed(LAYERS[layer])}")
            parts = {named[band]: (band,) for band in LAYERS[layer]}
        layers[layer] = np.concatenate([_onto(_read_reduced(*part), main) for part in parts.items()])
    return layers


def _onto(raster: Raster, main: Raster) -> FloatArray:
    """The pixels on the grid of another raster; resampled where both say where they lie and that differs."""
    if raster.grid.same_as(main.grid):
        return raster.data
    if not (raster.grid.located and main.grid.located):
        raise InputError(
            f"the grids of {raster.source} and {main.source} differ: {raster.grid} against {main.grid}; expected the"
            " same size, CRS and transform"
        )
    data: FloatArray = np.full((len(raster.bands), *main.grid.size), np.nan, dtype=np.float32)
    source = {"src_transform": raster.grid.affine, "src_crs": raster.grid.crs, "src_nodata": np.nan}
    target = {"dst_transform": main.grid.affine, "dst_crs": main.grid.crs, "dst_nodata": np.nan}
    reproject(raster.data, data, **source, **target, resampling=Resampling.bilinear)
    if not np.isfinite(data).any():
        raise InputError(f"{raster.source} and {main.source} do not overlap; expected layers of one place")
    return data


def _tags(text: str | None) -> dict[str, str]:
    try:
        stored = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return {str(key): str(value) for key, value in stored.items()} if isinstance(stored, dict) else {}
