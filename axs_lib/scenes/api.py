"""Ground an image of any size, or run the whole pipeline on one, with a model that is handed in.

In: paths, NumPy arrays or ``xarray`` objects. Out: Cloud Optimized GeoTIFFs (and a STAC Item), .npz or .pt files, or
arrays. A tile is a scene of one window, and the tiles of a batch lie one under another. The result depends on the
pixels, the settings and the place; not on windows, threads or, within 1 DN, batches.
"""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.checks import MIN_SIDE, RangeWarning, Trust, check_count, check_type
from axs_lib.errors import InputError, listed
from axs_lib.grounding.large import GroundingControls
from axs_lib.io.arrays import ArrayPixels, times
from axs_lib.io.atomic import atomic_writes, check_output, temporary_folder
from axs_lib.io.files import PathLike, check_kept, paths_of, same_file
from axs_lib.io.formats import FloatArray, open_npz
from axs_lib.io.grid import TILE_SIDE, SceneGrid
from axs_lib.io.masks import MaskFile, MaskSource, gap_share
from axs_lib.io.pixels import TRUST, MemoryPixels, Reading
from axs_lib.io.products import Source, as_raster, open_source, pair_file, read_truth
from axs_lib.io.raster import TIFF_SUFFIXES
from axs_lib.io.results import CALIBRATE, MAPS, UNCERTAINTY, CogWriter, Layer, check_suffix, optical_layer, write_arrays
from axs_lib.io.safe import open_safe
from axs_lib.io.stac import parse_date, stac_item
from axs_lib.io.warp import DerivedSource, Readable, to_grid
from axs_lib.progress import bar
from axs_lib.scenes.stream import Rows, RowsFunction, TileFunction, prefetch, stream_stack, stream_tiles, tile_count
from axs_lib.tilegrid import Tile, TileGrid

if TYPE_CHECKING:
    from xarray import DataArray, Dataset

    from axs_lib.pipeline import Pipeline
    from axs_lib.stage3_tm_ground import Stage3GroundingModel

    SceneInput = PathLike | Sequence[PathLike] | NDArray[Any] | DataArray | Dataset

GROUND_OPTIONS = ("strength", "tokens", "temperature", "ensemble_size", "hold_colour", "correction_mode", "scheduler")
PIPELINE_OPTIONS = ("tokens", "temperature", "hold_colour")
GDAL_CACHE_BYTES = 256 * 1024**2
KINDS: Mapping[str, tuple[Any, str]] = {  # of arguments, where they are not None
    "grid": (TileGrid, "an axs_lib.tilegrid.TileGrid"),
    "scene_grid": (SceneGrid, "an axs_lib.io.grid.SceneGrid"),
    "bands": ((list, tuple), "a list of names, as ['B04', 'B03', 'B02', 'B08']"),
    "kept": ((list, tuple), "a list of paths"),
    "seed": (SupportsIndex, "an integer"),  # a generator would go on from tile to tile
    **dict.fromkeys(("metadata", "tags"), (Mapping, "a mapping of names to values")),
    **dict.fromkeys(("s1_unit", "boa_offset"), (str, "a name")),
    **dict.fromkeys(("same_grid", "deterministic", "overwrite", "force"), (bool, "True or False")),
    **dict.fromkeys([layer.name for layer in MAPS], (bool | str | os.PathLike, "a path, True or False")),
}
STAGES = ("opt_v1", "opt_v2", "opt_v3")
ARRAYS = "result.npz"  # of the pipeline, beside the GeoTIFFs of an image of one tile


@dataclass(frozen=True)
class SceneResult:
    """What was made of an image; of a batch, whose tiles lie one under another."""

    grid: SceneGrid
    tiles: int  # model tiles
    nfe: Any  # network evaluations of each denoising run; of Stage 1 and Stage 3 for the pipeline
    seconds: float  # all of it
    files: dict[Path, str] = field(default_factory=dict)  # the outputs and what each holds
    arrays: dict[str, DataArray] = field(default_factory=dict)  # layers (band, y, x), where no file was asked for
    notes: tuple[str, ...] = ()  # what was assumed of the inputs, and what was found in them that is no measurement
    # Pixels ``kept`` (observed), ``filled`` (unknown before), ``corrected`` (an estimate before), ``empty``.
    counts: Mapping[str, int] = field(default_factory=dict)
    image: Any = None  # grounded, in the form of opt_v2: a NumPy array, a DataArray or a Dataset; None for files
    metadata: Mapping[str, Any] = field(default_factory=dict)  # what the pipeline was told of time and place


def _each_time(ground: Callable[..., SceneResult]) -> Callable[..., SceneResult]:
    """Let a function take arrays with an axis ``time``, one step after the other."""

    @functools.wraps(ground)
    def mapped(model: Any, s1: Any, opt_v2: Any = None, out: Any = None, **options: Any) -> SceneResult:
        inputs = {"opt_v2": opt_v2, "s1": s1, "trust": options.pop("trust", None)}
        timed = {name: each for name, each in inputs.items() if (times(each) or 1) > 1}
        if not timed:
            return ground(model, out=out, **inputs, **options)
        steps = sorted({times(each) or 1 for each in timed.values()})
        if len(steps) > 1 or out is not None:
            raise InputError(
                f"the inputs have axes of {listed(steps)} times and out is {out}; expected one length for all, and"
                " out=None, which gives arrays with the same axis"
            )
        import xarray

        moments = ({name: each.isel(time=index) for name, each in timed.items()} for index in range(steps[0]))
        results = [ground(model, **(inputs | moment), **options) for moment in moments]
        first: Any = next(iter(timed.values()))
        along = first["time"] if "time" in first.coords else "time"
        undated = [{name: a.drop_vars("time", errors="ignore") for name, a in r.arrays.items()} for r in results]
        arrays = {name: xarray.concat([each[name] for each in undated], along) for name in undated[0]}
        image = arrays["opt_v3"].to_dataset("band") if hasattr(opt_v2, "data_vars") else arrays["opt_v3"]
        sums: dict[str, Any] = {"tiles": sum(r.tiles for r in results), "seconds": sum(r.seconds for r in results)}
        notes = tuple(dict.fromkeys(note for r in results for note in r.notes))
        counts = sum((Counter(r.counts) for r in results), Counter())
        return replace(results[0], **sums, arrays=arrays, notes=notes, counts=counts, image=image)

    return mapped


@_each_time
def ground_scene(
    model: Stage3GroundingModel | Callable[[], Stage3GroundingModel],
    s1: SceneInput,
    opt_v2: SceneInput | None = None,
    out: PathLike | None = None,
    *,
    timesteps: int | None = None,
    seed: int = 0,
    trust: SceneInput | MaskFile | None = None,
    uncertainty: PathLike | bool = False,
    gate: PathLike | bool = False,
    sar_contribution: PathLike | bool = False,
    stac: PathLike | None = None,
    date: str | None = None,
    bands: Sequence[str] | None = None,
    s1_unit: str = "auto",
    boa_offset: str = "auto",
    same_grid: bool = False,
    grid: TileGrid | None = None,
    batch_size: int = 8,
    deterministic: bool = False,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
    kept: Sequence[PathLike | None] = (),
    force: bool = False,
    addresses: bool = True,
    progress: bool = False,
    **options: Any,
) -> SceneResult:
    """Ground the optical estimate of an image of any size in its SAR image.

    Args:
        model: from ``build_stage3_model``, or a function that builds it, called when the inputs were found good.
        s1: VV and VH, (2, H, W): a path, one path a band, a NumPy array, a DataArray (band, y, x) or a Dataset of
            bands; .npz and .pt may hold a batch (N, 2, H, W). In dB, or in linear power or amplitude, see ``s1_unit``.
            Where it lies on another grid it is warped onto that of ``opt_v2``, in linear power.
        opt_v2: B02, B03, B04, B08 in DN (reflectance x 10000), (4, H, W), as ``s1``, or a Sentinel-2 L2A product; its
            grid is that of the result. None where the .npz of ``s1`` holds it, too. Arrays with an axis ``time`` are
            taken one step after the other.
        out: the grounded image: .tif (a COG), .npz or .pt; None gives arrays and needs an array as ``opt_v2``.
        timesteps, seed: network evaluations, default the model's; and the seed of the noise.
        trust: one band on the grid of ``opt_v2``, 1 where it was observed and 0 (or nodata) where it is unknown; or
            a ``MaskFile``, such as a scene classification at 20 m.
        uncertainty: also the standard deviation of the error to expect, in DN; a model that does not predict its
            error needs an ``ensemble_size`` from 2 on. A file, or True for an array, as for the next two.
        gate: also how much of the correction was let through, 0 to 1.
        sar_contribution: also the change that the SAR makes, in DN (a second run).
        stac, date: also write a STAC Item, which needs the day or moment that the image stands for, in ISO form.
        bands: order of the bands, where the files do not say it or say it wrong.
        s1_unit: ``"auto"``, ``"db"``, ``"power"`` or ``"amplitude"``.
        boa_offset: ``"auto"`` (by the product's metadata), ``"0"`` or ``"1000"``: what the DN hold too much.
        same_grid: lay images of one size on each other although one does not say where it lies.
        grid: model tiles; default 256 px overlapping by 64.
        batch_size: tiles the network sees at once.
        deterministic: show the network one tile at a time, whatever ``batch_size``: with the same number of torch
            threads the result is then the same to the last DN, else to within 1 DN.
        tags, overwrite: further tags for the files; replace existing ones.
        kept: further files and folders that no output may replace, such as those of the weights.
        force: accept values that do not look like dB and DN.
        addresses: open addresses among the paths.
        **options: ``strength``, ``tokens``, ``temperature``, ``ensemble_size``, ``hold_colour``, ``correction_mode`` or
            ``scheduler`` of ``Stage3GroundingModel.ground``.

    Gives the files, or the arrays ``opt_v3``, ``uncertainty``, ``gate`` and ``sar_contribution``.

    Raises InputError: an input that cannot be read, warped or used, values that look like another unit, no pixel that
    has both SAR and estimate, or an output that would replace an input, but for ``out`` in place of ``opt_v2``; or
    OutputError: an output exists, or the disk refuses. Nothing is then left under any output's name.
    """
    # 1. What can be refused without reading anything.
    _check_options(locals(), GROUND_OPTIONS)
    reading = Reading(tuple(bands or ()) or None, s1_unit, boa_offset, same_grid, force, addresses)
    outputs = _Outputs({optical_layer("opt_v3"): out}, (uncertainty, gate, sar_contribution), stac, date, overwrite)
    estimate: Any = opt_v2
    if opt_v2 is None or (isinstance(opt_v2, Sequence) and len(opt_v2) == 0):
        paths = paths_of(s1)
        if paths is None:
            raise InputError("no opt_v2 is given; expected an array or paths beside s1")
        estimate = pair_file(paths)

    with _opened() as stack:
        # 2. Open the inputs on one grid, and look at a sample of them.
        optical = open_source(estimate, OPTICAL_BANDS, stack, reading)
        if out is None and not (isinstance(optical.pixels, ArrayPixels) or isinstance(estimate, np.ndarray)):
            raise InputError("no output is named and opt_v2 is a file; give out=FILE, or opt_v2 as an array")
        in_place = out is not None and all(same_file(out, path) for path in paths_of(opt_v2) or [])
        inputs = (s1, getattr(trust, "path", trust), None if in_place else opt_v2, *kept)
        outputs.prepare(inputs, optical, optical.grid, grid or TileGrid(), stack)
        sar = open_source(s1, SAR_BANDS, stack, reading)
        if sar.pixels.tiles != optical.pixels.tiles:
            raise InputError(
                f"{sar.label} holds {sar.pixels.tiles} tile(s) and {optical.label} {optical.pixels.tiles}; expected one"
                " SAR tile for every optical tile: give files of one batch"
            )
        sar.look()
        loose = same_grid or not (sar.pixels.may_lie and optical.pixels.may_lie)
        warped = to_grid(sar, optical.grid, stack, outputs.work, same_grid=loose)
        certainty = _trust(trust, estimate, optical, stack, reading)
        optical.look(None if certainty is None else lambda tile: certainty.read(tile)[0] > Trust.UNKNOWN)

        # 3. The network.
        grounder = _built(model, "ground", "build_stage3_model")
        mode = options.get("correction_mode") or grounder.provenance.get("AXS_CORRECTION_MODE")
        predicted = mode == "learned" and options.get("strength") != 0
        if uncertainty and options.get("ensemble_size", 1) < 2 and not predicted:
            raise InputError(
                "no error is predicted by this model with these options, so that --uncertainty is the spread of an"
                " ensemble, and --ensemble-size is 1; expected 2 or more"
            )
        # By place, so that a part of a scene has the noise of the whole; for one tile as in the model's ``ground``.
        corner = (0, 0) if outputs.whole and warped is sar else optical.grid.noise_origin
        settings = {"timesteps": timesteps, "seed": seed, **options}
        network = _Network(outputs, grounder, settings, corner)

        # 4. Run, and give the outputs their names.
        sources = [warped, optical, *([] if certainty is None else [certainty])]
        outputs.stream(sources, network.ground, network.grounded, 1 if deterministic else batch_size, progress)
        mask = certainty if isinstance(certainty, MaskSource) else None
        if mask is not None and not outputs.counts["kept"]:
            raise InputError(mask.nothing_clear())
        if options.get("strength") == 0 and outputs.counts["unknown"]:
            raise InputError("strength 0 changes nothing, so that the gaps would stay empty; give more")
        _check_read(outputs.counts, sar, optical)
        provenance = network.tags(sar, optical)
        if mask is not None:
            share = outputs.counts["unknown"] / (optical.grid.height * optical.grid.width)
            provenance |= mask.provenance | {"AXS_UNKNOWN_PERCENT": f"{100 * share:.2f}"}
        # What was said of opt_v2 alone is not said of the result.
        earlier = {k.replace("AXS_", "AXS_OPT_V2_", 1): v for k, v in optical.tags.items() if k not in provenance}
        earlier = {k.replace("AXS_OPT_V2_OPT_V2_", "AXS_OPT_V2_"): v for k, v in earlier.items()}
        outputs.finish(earlier | provenance | dict(tags or {}), lambda: _companions(outputs.inputs, optical, estimate))
        notes, unknown = [*sar.report(), *optical.report()], outputs.counts["unknown"]
        if mask is not None:
            notes += mask.notes(unknown)
        elif certainty is not None:
            place_note = certainty.grid.missing_place_note(optical.grid)
            notes.append(f"trust map: 0 is a gap and 1 clear: {gap_share(unknown, optical.grid)}{place_note}")
        by_head = uncertainty and mode != "difference"
        notes += [CALIBRATE] if by_head and "AXS_CALIBRATION" not in grounder.provenance else []
        return outputs.result(network.nfe, notes)


def fill_gaps(
    model: Stage3GroundingModel | Callable[[], Stage3GroundingModel],
    s1: SceneInput,
    opt_v2: SceneInput | None,
    mask: SceneInput | MaskFile,
    out: PathLike | None = None,
    **options: Any,
) -> SceneResult:
    """Fill the gaps of an optical image, such as clouds, from SAR and context; what the mask calls clear is kept.

    All is as for ``ground_scene``, but for the mask: 1 where the image was observed clear, 0 where it is unknown;
    ``"scl"`` is the scene classification of the Sentinel-2 product given as ``opt_v2``.
    """
    trust = MaskFile(mask) if isinstance(mask, str | os.PathLike) else mask
    return ground_scene(model, s1, opt_v2, out, trust=trust, **options)


def run_scene(
    pipeline: Pipeline | Callable[[], Pipeline],
    s1: SceneInput,
    out: PathLike | None = None,
    scene_grid: SceneGrid | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    timesteps: int | None = None,
    seed: int = 0,
    ensemble_size: int = 1,
    uncertainty: PathLike | bool = False,
    gate: PathLike | bool = False,
    sar_contribution: PathLike | bool = False,
    stac: PathLike | None = None,
    bands: Sequence[str] | None = None,
    s1_unit: str = "auto",
    same_grid: bool = False,
    grid: TileGrid | None = None,
    batch_size: int = 8,
    deterministic: bool = False,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
    kept: Sequence[PathLike | None] = (),
    force: bool = False,
    addresses: bool = True,
    progress: bool = False,
    **options: Any,
) -> SceneResult:
    """Run the three stages on a SAR image of any size.

    Args:
        pipeline: from ``build_pipeline``, or a function that builds it, called when the input was found good.
        s1: VV and VH, as for ``ground_scene``; so is everything that is not named here.
        out: folder for ``opt_v1.tif``, ``opt_v2.tif``, ``opt_v3.tif`` and, with an ensemble, ``uncertainty.tif``, and
            of an image of one tile ``result.npz`` with all of them (a batch gives that alone); or a file: an .npz with
            all, or a .tif with the last. None gives arrays.
        scene_grid: of the results: ``SceneGrid.like(file)`` or ``SceneGrid.of(crs, resolution, bounds)``; default
            that of ``s1``.
        metadata: what is known of time and place; where it has no ``lat`` and ``lon`` each tile has its own.
        timesteps, ensemble_size: as for ``Pipeline.forward``.
        uncertainty: where its map goes; default into the folder.
        stac: also write a STAC Item, which needs a ``date`` in ``metadata``.
        **options: ``tokens``, ``temperature`` or ``hold_colour`` of ``Pipeline.forward``.

    Raises InputError: as for ``ground_scene``, and so is the OutputError.
    """
    # 1. What can be refused without reading anything.
    _check_options(locals(), PIPELINE_OPTIONS)
    known = {key: value for key, value in (metadata or {}).items() if value is not None}
    date = str(known["date"]) if "date" in known else None
    if uncertainty and ensemble_size < 2:
        raise InputError("the uncertainty of the pipeline is that of an ensemble; expected --ensemble-size 2 or more")
    layers = [optical_layer(name) for name in reversed(STAGES)] + list(MAPS[:1] if ensemble_size > 1 else [])
    reading = Reading(tuple(bands or ()) or None, s1_unit, same_grid=same_grid, force=force, addresses=addresses)

    with _opened() as stack:
        # 2. Open the SAR on the grid; what it is says which files there are.
        sar = open_source(s1, SAR_BANDS, stack, reading)
        place, tiles = scene_grid or sar.grid, grid or TileGrid()
        small = tile_count(tiles, *place.size) == 1 and max(place.size) <= TILE_SIDE
        wanted, together = _pipeline_outputs(out, layers, sar.pixels.tiles, small)
        outputs = _Outputs(wanted, (uncertainty, gate, sar_contribution), stac, date, overwrite, together)
        outputs.prepare([s1, *kept], sar, place, tiles, stack)
        sar.look()
        warped = to_grid(sar, place, stack, outputs.work, same_grid=same_grid)

        # 3. The network.
        stages = _built(pipeline, "provenance", "build_pipeline")
        corner = (0, 0) if outputs.whole and scene_grid is None else place.noise_origin
        if outputs.whole:
            known = _located(known, place, place.whole, digits=5)
        settings = {"timesteps": timesteps, "seed": seed, "ensemble_size": ensemble_size, **options}
        network = _Network(outputs, stages, settings, corner, known)

        # 4. Run, and give the outputs their names.
        outputs.stream([warped], network.draw, network.drawn, 1 if deterministic else batch_size, progress)
        _check_read(outputs.counts, sar)
        provenance = network.tags(sar) | dict(tags or {})
        outputs.finish(provenance, lambda: _sar_arrays(as_raster(sar, outputs.inputs[0]).data))
        return replace(outputs.result(network.nfe, sar.report()), metadata=known)


def _opened() -> ExitStack:
    """What a run opens, closed at its end; GDAL's cache, by default 5 % of the machine's memory, is bounded."""
    stack = ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore", NotGeoreferencedWarning)  # an image may lie nowhere, and so does its result
    if "GDAL_CACHEMAX" not in os.environ:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES))
    return stack


class _Outputs:
    """What one run makes: temporary files and arrays while it runs, final names at its end.

    ``wanted`` and ``maps``, those of ``MAPS`` in their order, say where each layer goes; no path is an array, which is
    then true of all. ``together`` is an .npz of all.
    """

    def __init__(
        self, wanted: Mapping[Layer, PathLike | None], maps: Sequence[PathLike | bool], stac: PathLike | None,
        date: str | None, overwrite: bool, together: Path | None = None,
    ) -> None:  # fmt: skip
        layers = {**wanted, **{layer: path for layer, path in zip(MAPS, maps, strict=True) if path}}
        named = [path for path in (*layers.values(), stac, together) if path is not None and not isinstance(path, bool)]
        files: dict[Any, Path] = {path: check_output(path, overwrite) for path in named}
        if len({*files.values()}) < len(named):
            raise InputError(f"{listed(named)} name one file twice; give the outputs different names")
        out = next(iter(wanted.values()))
        self.names = {layer.name for layer in layers}
        self.targets: dict[Layer, Path | None] = {}
        for layer, path in layers.items():
            file = files.get(path)
            if (out is None) != (file is None) and (together is None or file is None):
                raise InputError(
                    f"{layer.name} is {path!r} and out is {out!r}; expected a file for both, or out=None and True"
                )
            if file is not None:
                check_suffix(file)
            self.targets[layer] = file
        if stac is not None and date is None:
            raise InputError("a STAC Item needs the day the image stands for; give --date 2021-07-14 (date=)")
        if date is not None:
            parse_date(date)
        self._stac, self._date, self._overwrite, self._together = stac, date, overwrite, together
        self.counts: Counter[str] = Counter()
        self.inputs: list[FloatArray] = []  # kept where an .npz is made
        self._started = time.monotonic()
        self._cogs: dict[Layer, CogWriter] = {}
        self._memory: dict[Layer, FloatArray] = {}  # of what does not go to a GeoTIFF row by row
        self._files: dict[Path, str] = {}

    def prepare(self, inputs: Any, like: Source, place: SceneGrid, grid: TileGrid, stack: ExitStack) -> None:
        """Check the outputs against the inputs and the grid; keep the reference image, the grid and the exit stack."""
        count = like.pixels.tiles
        self.grid, self.place, self._like, self._stack = grid, place, like, stack
        self.total = count if count > 1 else tile_count(grid, *place.size)
        self.whole = count > 1 or self.total == 1  # the network sees a tile as a whole
        paths = self.targets.values()
        check_kept((*paths, self._stac, self._together), *inputs)
        for path in paths:
            if path is not None:
                check_suffix(path, count)
        height, width = like.shape
        if min(height, width) < MIN_SIDE:
            raise InputError(f"{like.label} is {height}x{width} px; expected at least {MIN_SIDE} px a side")
        if self._stac is not None:
            if not place.located:
                raise InputError("the scene has no georeference, which a STAC Item needs; give one with a CRS")
            if any(path is None or path.suffix.lower() not in TIFF_SUFFIXES for path in paths):
                raise InputError("a STAC Item links to GeoTIFFs; expected one tile or scene, and outputs named .tif")

    def work(self) -> Path:
        """A folder for the warped SAR, which is as large as the output: beside it, and not on a small /tmp."""
        paths = [path for path in (*self.targets.values(), self._together) if path is not None]
        return self._stack.enter_context(temporary_folder(paths[0].parent if paths else None))

    def to_blend(self, layers: Mapping[str, Any]) -> Tensor:
        """The layers wanted of (B, C, h, w) each, in one; tiles blend their variances, not standard deviations."""
        wanted = {layer: layers[layer.name].float().cpu() for layer in self.targets}
        return torch.cat([part.square() if layer is UNCERTAINTY else part for layer, part in wanted.items()], dim=1)

    def stream(
        self, sources: Sequence[Readable], network: TileFunction, finish: RowsFunction, batch_size: int, progress: bool
    ) -> None:
        """Stream the tiles through a network, and write the rows that ``finish`` makes of its output."""
        for layer, path in self.targets.items():
            if path is not None and path.suffix.lower() in TIFF_SUFFIXES:
                self._cogs[layer] = CogWriter(layer, self.place, path, self._stack)
            if layer not in self._cogs or self._together is not None:
                self._memory[layer] = np.empty((len(layer.bands), *self.place.size), np.float32)
        if self._memory:
            self.inputs = [np.empty((len(source.bands), *self.place.size), np.float32) for source in sources]
        ends = np.cumsum([len(layer.bands) for layer in self.targets])

        def write(rows: Rows) -> None:
            part = slice(rows.top, rows.top + rows.layers.shape[1])
            for kept, given in zip(self.inputs, rows.inputs, strict=bool(self.inputs)):
                kept[:, part] = given
            for layer, data in zip(self.targets, np.split(finish(rows), ends[:-1]), strict=True):
                data = np.sqrt(data) if layer is UNCERTAINTY else data
                if layer in self._cogs:
                    self._cogs[layer].write(rows.top, data)
                if layer in self._memory:
                    self._memory[layer][:, part] = data

        with ExitStack() as stack:
            # Values were checked once for the whole image; a tile of dark water would warn for nothing.
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", RangeWarning)
            stack.enter_context(torch.no_grad())
            advance = stack.enter_context(bar("Tiles", self.total, enabled=progress and self.total > 1, unit="tiles"))
            count = self._like.pixels.tiles
            how: dict[str, Any] = {"batch_size": batch_size, "advance": advance}
            if count > 1:
                rows = stream_stack(sources, network, count, **how)
            else:
                how["wanted"] = lambda images: not bool(_nodata(images).all())
                rows = stream_tiles(sources, network, int(ends[-1]), self.grid, **how)
            stack.enter_context(closing(rows))
            for _ in stack.enter_context(closing(prefetch("axs-write", write, rows))):
                pass

    def finish(self, tags: Mapping[str, str], companions: Callable[[], Mapping[str, NDArray[Any]]]) -> None:
        """Make every file, then give all their names, the first output last; an .npz holds the companions, too."""
        arrays = {layer: as_raster(self._like, data).data for layer, data in self._memory.items()}
        given = companions() if self.inputs else {}
        tile = replace(self.place, height=self.place.height // self._like.pixels.tiles)
        links = {path: layer for layer, path in self.targets.items() if path is not None}
        self._files |= {path: layer.name for path, layer in links.items()}
        with atomic_writes(self._overwrite) as place:
            for path, layer in links.items():
                if layer in self._cogs:
                    self._cogs[layer].finish(tags, place(path))
                else:
                    write_arrays(place(path), {layer.name: arrays[layer], **given}, tile, tags)
            if self._stac is not None and self._date is not None:
                item = stac_item(Path(self._stac), self.place, links, self._date, tags)
                place(self._stac).write_text(item, encoding="utf-8")
            if self._together is not None:
                stored = {layer.name: data for layer, data in arrays.items()} | {**given}
                write_arrays(place(self._together), stored, tile, tags)
                self._files[self._together] = "all of them, with the SAR"

    def result(self, nfe: Any, notes: Sequence[str]) -> SceneResult:
        """The report, with arrays made like the input where there are any."""
        arrays: dict[str, DataArray] = {}
        image: Any = None
        if self._together is None and all(path is None for path in self.targets.values()):
            arrays = {layer.name: _array(data, layer, self._like) for layer, data in self._memory.items()}
            main = next(iter(arrays.values()))
            image = main.values if isinstance(self._like.pixels, MemoryPixels) else main
            if getattr(self._like.pixels, "is_dataset", False):
                image = main.to_dataset("band")
        counts = {key: self.counts[key] for key in ("kept", "filled", "corrected", "empty")}
        seconds = time.monotonic() - self._started
        return SceneResult(self.place, self.total, nfe, seconds, self._files, arrays, tuple(notes), counts, image)


@dataclass
class _Network:
    """The network's part of a run: what it makes of tiles, and of that finished rows, whose pixels it counts."""

    outputs: _Outputs
    model: Any
    settings: Mapping[str, Any]
    corner: tuple[int, int]  # (row, column) of the upper left pixel for the noise
    known: Mapping[str, Any] = field(default_factory=dict)  # of time and place, by the pipeline
    nfe: Any = 0

    def base(self, optical: FloatArray, trust: FloatArray | None = None) -> FloatArray:
        """What changes are added to: the estimate, 0 where it is missing or not looked at, or there is one tile."""
        unknown = np.isnan(optical) if trust is None else np.isnan(optical) | (trust == Trust.UNKNOWN)
        return np.where(unknown | self.outputs.whole, np.float32(0), optical)

    def origins(self, tiles: list[Tile]) -> Tensor:
        row, column = self.corner
        return torch.tensor([[row + tile.top, column + tile.left] for tile in tiles], dtype=torch.int64)

    def ground(self, images: list[Tensor], tiles: list[Tile]) -> Tensor:
        """Stage 3: changes to the estimate, so that what it leaves alone stays bit for bit."""
        given = [image.to(self.model.device) for image in images]
        how = {**self.settings, "trust": given[2] if len(given) > 2 else None, "batch_size": len(tiles)}
        controls = GroundingControls(origin=self.origins(tiles), ranges_checked=True)
        output = self.model.ground(*given[:2], controls=controls, **how)
        self.nfe = output.nfe
        change = output.image.cpu() - torch.from_numpy(self.base(*(image.numpy() for image in images[1:])))
        layers = {"opt_v3": change, "uncertainty": output.uncertainty, "gate": output.gate}
        if "sar_contribution" in self.outputs.names:
            without = self.model.ground(*given[:2], controls=replace(controls, use_sar=False), **how)
            layers["sar_contribution"] = output.image - without.image
        return self.outputs.to_blend(layers)

    def grounded(self, rows: Rows) -> FloatArray:
        """The estimate with its changes; what was observed clear stays, also where there is no SAR."""
        sar, optical, *trust = rows.inputs
        certain = trust[0][0] if trust else np.full(sar.shape[1:], Trust.ESTIMATE)
        observed = (certain == Trust.OBSERVED) & ~np.isnan(optical).any(axis=0)
        missing = _nodata(rows.inputs) | np.isnan(rows.layers[:4]).any(axis=0)
        rows.layers[:, missing] = np.nan
        rows.layers[4:, missing & observed] = 0
        rows.layers[:4] += self.base(optical, *trust)
        rows.layers[:4, observed] = optical[:, observed]
        missing &= ~observed
        unknown = certain == Trust.UNKNOWN
        kinds = {"kept": observed, "unknown": unknown, "filled": unknown & ~missing, "empty": missing}
        kinds["corrected"] = ~unknown & ~missing & ~observed
        kinds["sar"] = ~np.isnan(sar).any(axis=0)
        self.outputs.counts.update({kind: int(pixels.sum()) for kind, pixels in kinds.items()})
        return rows.layers

    def draw(self, images: list[Tensor], tiles: list[Tile]) -> Tensor:
        """The three stages."""
        about = [self.known if self.outputs.whole else _located(self.known, self.outputs.place, tile) for tile in tiles]
        how = {**self.settings, "origin": self.origins(tiles), "batch_size": len(tiles)}
        asked = {"sar_contribution": True} if "sar_contribution" in self.outputs.names else {}
        output = self.model(images[0].to(self.model.device), about, **how, **asked)
        self.nfe = output.nfe
        return self.outputs.to_blend(vars(output))

    def drawn(self, rows: Rows) -> FloatArray:
        """Nothing where there is no SAR."""
        missing = _nodata(rows.inputs)
        rows.layers[:, missing] = np.nan
        seen = int((~missing).sum())
        self.outputs.counts.update(filled=seen, empty=int(missing.sum()), sar=seen)
        return rows.layers

    def tags(self, *sources: Source) -> dict[str, str]:
        """How the result was made, and from what."""
        about = {f"metadata_{key}": value for key, value in self.known.items()}
        tiles = {"tile_side": self.outputs.grid.side, "tile_overlap": self.outputs.grid.overlap}
        place = {"noise_origin": f"{self.corner[0]} {self.corner[1]}"}
        described = {**self.settings, **about, "nfe": " ".join(map(str, np.atleast_1d(self.nfe))), **tiles, **place}
        own = {f"AXS_{key.upper()}": str(value) for key, value in described.items() if value is not None}
        return self.model.provenance | own | {k: v for source in sources for k, v in source.provenance.items()}


def _pipeline_outputs(
    out: PathLike | None, layers: Sequence[Layer], count: int, small: bool
) -> tuple[dict[Layer, Any], Path | None]:
    """Which layer goes to which GeoTIFF, and the .npz with all of them, if there is one."""
    nothing: dict[Layer, Any] = dict.fromkeys(layers)
    path = None if out is None else Path(out)
    if path is None or path.suffix.lower() == ".npz":
        return nothing, path
    if path.suffix.lower() in TIFF_SUFFIXES:
        return {layers[0]: path}, None
    if count > 1:
        return nothing, path / ARRAYS
    return {layer: path / f"{layer.name}.tif" for layer in layers}, path / ARRAYS if small else None


def _check_options(given: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Refuse arguments of another type than ``KINDS`` says, and options that there are not."""
    options = given["options"]
    check_count("batch_size", given["batch_size"])
    check_count("ensemble_size", {"ensemble_size": 1, **options, **given}["ensemble_size"])
    for name, (kind, expected) in KINDS.items():
        if given.get(name) is not None:
            check_type(name, given[name], kind, expected)
    if unknown := sorted(set(options) - set(allowed)):
        raise TypeError(f"unknown option(s) {', '.join(unknown)}; expected any of {', '.join(allowed)}")


def _built(model: Any, what: str, builder: str) -> Any:
    """The model, which is known by an attribute, or what a function builds."""
    builds = callable(model) and not hasattr(model, what) and not isinstance(model, torch.nn.Module)
    built = model() if builds else model
    if isinstance(built, type) or not hasattr(built, what):
        kind = "a class" if isinstance(built, type) else f"of type {type(built).__name__}"
        raise InputError(f"the model is {kind}; expected one of {builder}, or a function that builds it")
    return built


def _check_read(counts: Mapping[str, int], *sources: Source) -> None:
    """Refuse, before anything gets its name, an input that was mostly impossible, and a result that is empty."""
    for each in sources:
        each.check_counts()
        if not each.counts["valid"]:
            raise InputError(f"{each.label} holds no valid pixel, all of it is nodata; expected {listed(each.bands)}")
    if not counts["sar"]:
        raise InputError(
            f"{sources[0].label} has no valid pixel where the optical image lies; expected SAR of the same place"
        )
    if not (counts["kept"] or counts["filled"] or counts["corrected"]):
        raise InputError(
            f"no pixel is valid in {' and '.join(source.label for source in sources)} at once; expected one place"
        )


def _trust(what: Any, estimate: Any, optical: Source, stack: ExitStack, reading: Reading) -> Readable | None:
    """The trust map on the optical grid: of a mask, of a map, or of the .npz that holds the estimate."""
    if isinstance(what, MaskFile):
        mask, tiles = _product_mask(what, estimate), optical.pixels.tiles
        return MaskSource(mask, optical.grid, stack, tiles=tiles, addresses=reading.addresses)
    if what is None:
        what = _one_file(estimate)
        if what is None or Path(what).suffix.lower() != ".npz":
            return None
        with open_npz(what) as arrays:
            if TRUST[0] not in arrays:
                return None
    source = open_source(what, TRUST, stack, reading)
    lies = source.pixels.may_lie
    if not (source.grid.same_as(optical.grid) if lies else source.grid.size == optical.grid.size):
        raise InputError(
            f"the trust map {source.label} is {source.grid} and opt_v2 {optical.grid}; expected one grid: resample it,"
            " or give MaskFile(path)"
        )
    parts = map(source.read, source.grid.strips())
    ends = [(np.nanmin(part, initial=np.inf), np.nanmax(part, initial=-np.inf)) for part in parts]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"the trust map {source.label} holds {f'{low:g} to {high:g}' if low <= high else 'no data'}; expected 1"
            " where opt_v2 was observed, 0 where it is unknown, between where partly"
        )
    grid = source.grid if lies else optical.grid
    return DerivedSource(grid, TRUST, source.label, lambda window: np.nan_to_num(source.read(window), nan=0.0))


def _one_file(estimate: Any) -> PathLike | None:
    paths = paths_of(estimate) or []
    return paths[0] if len(paths) == 1 else None


def _product_mask(mask: MaskFile, estimate: Any) -> MaskFile:
    """``--mask scl``: the scene classification of the product that is given as the image."""
    if os.fspath(mask.path).lower() != "scl" or Path(mask.path).exists():
        return mask
    path = _one_file(estimate)
    product = None if path is None else open_safe(path)
    if product is None or product.classification is None:
        raise InputError(
            "--mask scl is the scene classification of a Sentinel-2 product, and opt_v2 is none that has one (SCL at"
            " 20 m); give the .SAFE folder or .zip as opt_v2, or the file of the classification as --mask"
        )
    return replace(mask, path=product.classification, kind="scl")


def _companions(inputs: Sequence[FloatArray], optical: Source, estimate: Any) -> dict[str, NDArray[Any]]:
    """The inputs of an image in memory, on the grid of the estimate, as they go into an .npz."""
    estimates = as_raster(optical, inputs[1])
    arrays: dict[str, NDArray[Any]] = {"opt_v2": estimates.data, **_sar_arrays(as_raster(optical, inputs[0]).data)}
    if len(inputs) > 2:
        arrays["trust"] = inputs[2].reshape(len(estimates.batch), 1, *estimates.grid.size)
    truth = read_truth(_one_file(estimate), estimates)
    return arrays if truth is None else arrays | {"s2_real": truth.data}


def _sar_arrays(data: FloatArray) -> dict[str, NDArray[Any]]:
    return {"s1": data} if data.ndim == 4 else {"s1_vv": data[0], "s1_vh": data[1]}


def _array(data: FloatArray, layer: Layer, like: Source) -> DataArray:
    """A layer (C, N*H, W) as a DataArray: like the input where that was one, else with the names of the bands."""
    if isinstance(like.pixels, ArrayPixels):
        return like.pixels.as_input(data, layer)
    import xarray

    tiles, bands = as_raster(like, data).data, list(layer.bands)
    dims = ("tile", "band", "y", "x")[4 - tiles.ndim :]
    return xarray.DataArray(tiles, {"band": bands}, dims, layer.name, {"units": layer.unit})


def _nodata(inputs: Sequence[FloatArray]) -> Any:
    """(h, w): where there is nothing to draw: no SAR, or no estimate and no trust map that may ask for one."""
    missing = np.isnan(inputs[0]).any(axis=0)
    return missing | np.isnan(inputs[1]).any(axis=0) if len(inputs) == 2 else missing


def _located(metadata: Mapping[str, Any], grid: SceneGrid, tile: Tile, digits: int | None = None) -> dict[str, Any]:
    """Metadata of a tile: its own place, as far as that of the scene is not given."""
    place = grid.centre_lat_lon(tile)
    if place is None:
        return dict(metadata)
    lat, lon = place if digits is None else (round(place[0], digits), round(place[1], digits))
    return {"lat": lat, "lon": lon, **metadata}
