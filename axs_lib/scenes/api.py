"""Ground an image of any size, or run the whole pipeline on one, with a model that is handed in.

In: paths, NumPy arrays or ``xarray`` objects, and a model that grounds tiles. Out: Cloud Optimized GeoTIFFs (and a STAC
Item), .npz or .pt files, or arrays. Everything here is wiring: ``axs_lib.io`` gives the pixels on one grid and writes,
``stream`` runs the tiles and blends. A tile is a scene of one window, and a batch of tiles lie one under another. The
result depends on the pixels, the settings and the place; not on windows, threads or, within 1 DN, batches.
"""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.checks import MIN_SIDE, RangeWarning, Trust
from axs_lib.errors import InputError, OutputError
from axs_lib.grounding.large import GroundingControls
from axs_lib.io.arrays import ArrayPixels, times
from axs_lib.io.atomic import atomic_write, check_output, temporary_folder
from axs_lib.io.formats import PathLike
from axs_lib.io.grid import TILE_SIDE, SceneGrid
from axs_lib.io.masks import MaskFile, MaskSource
from axs_lib.io.pixels import TRUST, MemoryPixels, Reading
from axs_lib.io.products import Source, open_source
from axs_lib.io.raster import TIFF_SUFFIXES, FloatArray, Raster, TilePair, listed
from axs_lib.io.results import (
    GATE,
    SAR_CONTRIBUTION,
    UNCERTAINTY,
    ArrayWriter,
    CogWriter,
    Layer,
    check_suffix,
    optical_layer,
    write_arrays,
    write_result,
)
from axs_lib.io.safe import open_safe
from axs_lib.io.stac import check_located, parse_date, write_item
from axs_lib.io.tiles import as_raster, pair_file, read_companions
from axs_lib.io.warp import Readable, to_grid
from axs_lib.scenes.stream import AHEAD, WINDOW_ROWS, OneThread, Rows, stream_stack, stream_tiles, tile_count
from axs_lib.tilegrid import Tile, TileGrid

if TYPE_CHECKING:
    from xarray import DataArray, Dataset

    SceneInput = PathLike | Sequence[PathLike] | NDArray[Any] | DataArray | Dataset

GROUND_OPTIONS = ("strength", "tokens", "temperature", "ensemble_size", "hold_colour", "correction_mode", "scheduler")
PIPELINE_OPTIONS = ("tokens", "temperature", "hold_colour")
GDAL_CACHE_BYTES = 256 * 1024**2
MAPS = (UNCERTAINTY, GATE, SAR_CONTRIBUTION)
STAGES = ("opt_v1", "opt_v2", "opt_v3")
ARRAYS = "result.npz"  # of the pipeline, beside the GeoTIFFs of an image of one tile


class SceneGrounder(Protocol):
    """What ``ground_scene`` needs of a model; ``Stage3GroundingModel`` is one."""

    @property
    def device(self) -> torch.device:
        """Where its inputs have to be."""
        ...

    @property
    def provenance(self) -> dict[str, str]:
        """What made an output, for file tags."""
        ...

    @property
    def ground(self) -> Callable[..., Any]:
        """``Stage3GroundingModel.ground``."""
        ...


class ScenePipeline(Protocol):
    """What ``run_scene`` needs of a pipeline; ``axs_lib.pipeline.Pipeline`` is one."""

    @property
    def device(self) -> torch.device:
        """Where its inputs have to be."""
        ...

    @property
    def provenance(self) -> dict[str, str]:
        """What made an output, for file tags."""
        ...

    def __call__(self, s1: Tensor, metadata: Any, **options: Any) -> Any:
        """``Pipeline.forward``."""
        ...


@dataclass(frozen=True)
class SceneResult:
    """What was made of an image.

    Attributes:
        grid: of the image; of one tile, where the input is a batch.
        tiles: model tiles.
        nfe: network evaluations of each denoising run; of Stage 1 and Stage 3 for the pipeline.
        seconds: from opening the inputs to the finished outputs.
        files: the outputs and what each holds.
        arrays: the layers by name as DataArrays (band, y, x), where no output file was asked for.
        notes: what was assumed of the inputs, and what was found in them that is no measurement.
        counts: pixels that were ``kept`` (observed), ``filled`` (unknown before), ``corrected`` (an estimate before)
            and left ``empty``.
        image: the grounded image in the form of opt_v2: a NumPy array, a DataArray or a Dataset; None for files.
        metadata: what the pipeline was told of time and place.
    """

    grid: SceneGrid
    tiles: int
    nfe: Any
    seconds: float
    files: dict[Path, str] = field(default_factory=dict)
    arrays: dict[str, DataArray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    image: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def _each_time(ground: Callable[..., SceneResult]) -> Callable[..., SceneResult]:
    """Let a function take arrays with an axis ``time``, one step after the other."""

    @functools.wraps(ground)
    def mapped(
        model: SceneGrounder, s1: SceneInput, opt_v2: SceneInput | None = None, out: Any = None, **options: Any
    ) -> SceneResult:
        steps = {length for each in (s1, opt_v2, options.get("trust")) if (length := times(each) or 1) > 1}
        if not steps:
            return ground(model, s1, opt_v2, out, **options)
        if len(steps) > 1 or out is not None:
            raise InputError(
                f"the inputs have axes of {listed(sorted(steps))} times and out is {out}; expected one length for all,"
                " and out=None, which gives arrays with the same axis"
            )
        import xarray

        def step(each: Any, index: int) -> Any:
            return each.isel(time=index) if (times(each) or 1) > 1 else each

        results = []
        for index in range(steps.pop()):
            trust = {"trust": step(options["trust"], index)} if "trust" in options else {}
            results.append(ground(model, step(s1, index), step(opt_v2, index), None, **options | trust))
        timed: Any = next(each for each in (opt_v2, s1, options.get("trust")) if (times(each) or 1) > 1)
        along = timed["time"] if "time" in timed.coords else "time"
        arrays = {
            name: xarray.concat([r.arrays[name].drop_vars("time", errors="ignore") for r in results], along)
            for name in results[0].arrays
        }
        image = arrays["opt_v3"].to_dataset("band") if hasattr(opt_v2, "data_vars") else arrays["opt_v3"]
        return replace(
            results[0],
            tiles=sum(r.tiles for r in results),
            seconds=sum(r.seconds for r in results),
            arrays=arrays,
            notes=tuple(dict.fromkeys(note for r in results for note in r.notes)),
            counts=sum((Counter(r.counts) for r in results), Counter()),
            image=image,
        )

    return mapped


@_each_time
def ground_scene(
    model: SceneGrounder | Callable[[], SceneGrounder],
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
    origin: tuple[int, int] | None = None,
    batch_size: int = 8,
    deterministic: bool = False,
    window_rows: int = WINDOW_ROWS,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
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
            Where
            it lies on another grid it is warped onto that of ``opt_v2``, in linear power.
        opt_v2: B02, B03, B04, B08 in DN (reflectance x 10000), (4, H, W), as ``s1``, or a Sentinel-2 L2A product; its
            grid is that of the result. None where the .npz of ``s1`` holds it, too. Arrays with an axis ``time`` are
            taken
            one step after the other.
        out: the grounded image: .tif (a COG), .npz or .pt; None gives arrays and needs an array as ``opt_v2``.
        timesteps: network evaluations; default the model's.
        seed: of the noise.
        trust: one band on the grid of ``opt_v2``, 1 where it was observed and 0 (or nodata) where it is unknown; or
            a ``MaskFile``, such as a scene classification at 20 m.
        uncertainty: also the standard deviation of the error to expect, in DN; a model that does not predict its
            error needs an ``ensemble_size`` from 2 on.
        gate: also how much of the correction was let through, 0 to 1.
        sar_contribution: also the change that the SAR makes, in DN (a second run).
        stac: also write a STAC Item, which needs ``date``.
        date: day or moment that the image stands for, in ISO form.
        bands: order of the bands, where the files do not say it or say it wrong.
        s1_unit: ``"auto"``, ``"db"``, ``"power"`` or ``"amplitude"``.
        boa_offset: ``"auto"`` (by the product's metadata), ``"0"`` or ``"1000"``: what the DN hold too much.
        same_grid: lay images of one size on each other although one does not say where it lies.
        grid: model tiles; default 256 px overlapping by 64.
        origin: (row, column) of the upper left pixel in the noise field; default by the georeference, so that a part
            of a scene has the noise of the whole, and (0, 0) for an image of one tile, as in
            ``Stage3GroundingModel.ground``.
        batch_size: tiles the network sees at once.
        deterministic: show the network one tile at a time, whatever ``batch_size``: with the same number of torch
            threads the result is then the same to the last DN, else to within 1 DN.
        window_rows: rows read at once; no pixel depends on it.
        tags: further tags for the files.
        overwrite: whether existing files may be replaced.
        force: accept values that do not look like dB and DN.
        addresses: open addresses among the paths.
        progress: show a progress bar.
        **options: ``strength``, ``tokens``, ``temperature``, ``ensemble_size``, ``hold_colour``, ``correction_mode`` or
            ``scheduler`` of ``Stage3GroundingModel.ground``.

    Returns:
        The files, or the arrays ``opt_v3``, ``uncertainty``, ``gate`` and ``sar_contribution``.

    Raises:
        InputError: an input that cannot be read, warped or used, values that look like another unit, or no pixel that
            has both SAR and estimate.
        OutputError: an output exists, or the disk refuses. Nothing is then left under any output's name.
    """
    # 1. What can be refused without reading anything.
    _check_options(options, GROUND_OPTIONS)
    reading = Reading(tuple(bands or ()) or None, s1_unit, boa_offset, same_grid, force, addresses)
    maps = zip(MAPS, (uncertainty, gate, sar_contribution), strict=True)
    wanted: dict[Layer, PathLike | bool | None] = {optical_layer("opt_v3"): out}
    wanted |= {layer: path for layer, path in maps if path}
    targets = _targets(wanted, stac, date, overwrite)
    estimate = _estimate(s1, opt_v2)

    with _Scene(targets, overwrite, progress) as scene:
        # 2. Open the inputs on one grid, and look at a sample of them.
        optical = open_source(estimate, OPTICAL_BANDS, scene.stack, reading)
        if out is None and not (isinstance(optical.pixels, ArrayPixels) or isinstance(estimate, np.ndarray)):
            raise InputError(
                "no output is named and opt_v2 is a file; give out=FILE, or opt_v2 as an array or DataArray"
            )
        count = optical.pixels.tiles
        scene.check(optical, stac)
        sar = open_source(s1, SAR_BANDS, scene.stack, reading)
        if sar.pixels.tiles != count:
            raise InputError(
                f"{sar.label} holds {sar.pixels.tiles} tile(s) and {optical.label} {count}; expected one SAR tile for"
                " every optical tile: give files of one batch"
            )
        sar.look()
        loose = same_grid or not (sar.pixels.may_lie and optical.pixels.may_lie)
        warped = to_grid(sar, optical.grid, scene.stack, scene.work, same_grid=loose)
        certainty = _trust(trust, estimate, optical, scene.stack, reading)
        optical.look(None if certainty is None else lambda tile: certainty.read(tile)[0] > Trust.UNKNOWN)
        sources: list[Readable] = [warped, optical, *([] if certainty is None else [certainty])]
        tiles = grid or TileGrid()
        whole = count > 1 or tile_count(tiles, *optical.grid.size) == 1
        grounder: Any = model if hasattr(model, "ground") else model()
        if uncertainty and options.get("ensemble_size", 1) < 2 and not getattr(grounder, "estimates_error", False):
            raise InputError(
                "this model does not predict its error, so that --uncertainty is the spread of an ensemble, and"
                " --ensemble-size is 1; expected 2 or more"
            )
        corner = _corner(origin, optical.grid, whole and warped is sar)
        nfe = 0

        # 3. The network's part: changes to the estimate, so that what it leaves alone stays bit for bit.
        def base(optical: FloatArray, trust: FloatArray | None = None) -> FloatArray:
            """What changes are added to: the estimate, 0 where it is missing or not looked at, or there is one tile."""
            unknown = np.isnan(optical) if trust is None else np.isnan(optical) | (trust == Trust.UNKNOWN)
            return np.where(unknown | whole, np.float32(0), optical)

        def ground(images: list[Tensor], tiles: list[Tile]) -> Tensor:
            nonlocal nfe
            given = [image.to(grounder.device) for image in images]
            controls = GroundingControls(origin=_origins(corner, tiles), ranges_checked=True)
            settings = {
                "timesteps": timesteps,
                "seed": seed,
                "trust": given[2] if certainty is not None else None,
                "batch_size": len(tiles),
                **options,
            }
            output = grounder.ground(given[0], given[1], controls=controls, **settings)
            nfe = output.nfe
            layers = {
                "opt_v3": output.image.cpu() - torch.from_numpy(base(*(image.numpy() for image in images[1:]))),
                "uncertainty": output.uncertainty,
                "gate": output.gate,
            }
            if sar_contribution:
                plain = replace(controls, use_sar=False)
                without = grounder.ground(given[0], given[1], controls=plain, **settings)
                layers["sar_contribution"] = output.image - without.image
            return torch.cat([layers[layer.name].float().cpu() for layer in targets], dim=1)

        def finish(rows: Rows) -> list[FloatArray]:
            certain = rows.inputs[2][0] if certainty is not None else None
            observed = _kept(rows.inputs[1], certain)
            missing = _nodata(rows.inputs) | np.isnan(rows.layers[:4]).any(axis=0)
            rows.layers[:, missing] = np.nan
            rows.layers[4:, missing & observed] = 0
            image = base(*rows.inputs[1:]) + rows.layers[:4]
            # What was observed clear stays where there is no SAR.
            image[:, observed] = rows.inputs[1][:, observed]
            unknown = np.zeros_like(missing) if certain is None else certain == Trust.UNKNOWN
            missing &= ~observed
            scene.counts.update(
                kept=int(observed.sum()),
                filled=int((unknown & ~missing).sum()),
                corrected=int((~unknown & ~missing & ~observed).sum()),
                empty=int(missing.sum()),
                sar=int((~np.isnan(rows.inputs[0]).any(axis=0)).sum()),
            )
            return [image, *_split(rows.layers[4:], [layer for layer in targets if layer.name != "opt_v3"])]

        # 4. Run, and give the outputs their names.
        scene.run(sources, ground, finish, tiles, count, 1 if deterministic else batch_size, window_rows)
        if isinstance(certainty, MaskSource) and not scene.counts["kept"]:
            raise InputError(certainty.nothing_clear())
        _check_read(scene.counts, sar, optical)
        settings = {"timesteps": timesteps, "seed": seed, **options, "nfe": nfe}
        provenance = grounder.provenance | _tags(settings, tiles, corner) | sar.facts | optical.facts
        if isinstance(certainty, MaskSource):
            share = scene.counts["filled"] / (optical.grid.height * optical.grid.width)
            provenance |= certainty.provenance | {"AXS_UNKNOWN_PERCENT": f"{100 * share:.2f}"}
        provenance |= dict(tags or {})
        scene.finish({**optical.tags, **provenance}, stac, date, lambda: _inputs(scene, sar, optical, estimate))
        return scene.result(optical, count if whole else tile_count(tiles, *optical.grid.size), nfe, [sar, optical])


def fill_gaps(
    model: SceneGrounder,
    s1: SceneInput,
    opt_v2: SceneInput,
    mask: SceneInput | MaskFile,
    out: PathLike | None = None,
    **options: Any,
) -> SceneResult:
    """Fill the gaps of an optical image, such as clouds, from SAR and context; what the mask calls clear is kept.

    Args:
        model: from ``build_stage3_model``.
        s1: VV and VH, as for ``ground_scene``.
        opt_v2: the clouded image, B02, B03, B04, B08 in DN.
        mask: 1 where it was observed clear, 0 where it is unknown: a path, an array, or a ``MaskFile``; ``"scl"`` is
            the scene classification of the Sentinel-2 product given as ``opt_v2``.
        out: as for ``ground_scene``.
        **options: any keyword of ``ground_scene``.

    Raises:
        InputError: as for ``ground_scene``, or nothing is clear.
        OutputError: as for ``ground_scene``.
    """
    trust = MaskFile(mask) if isinstance(mask, str | os.PathLike) else mask
    return ground_scene(model, s1, opt_v2, out, trust=trust, **options)


def run_scene(
    pipeline: ScenePipeline | Callable[[], ScenePipeline],
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
    origin: tuple[int, int] | None = None,
    batch_size: int = 8,
    deterministic: bool = False,
    window_rows: int = WINDOW_ROWS,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
    force: bool = False,
    addresses: bool = True,
    progress: bool = False,
    **options: Any,
) -> SceneResult:
    """Run the three stages on a SAR image of any size.

    Args:
        pipeline: from ``build_pipeline``, or a function that builds it, called when the input was found good.
        s1: VV and VH, as for ``ground_scene``.
        out: folder for ``opt_v1.tif``, ``opt_v2.tif``, ``opt_v3.tif`` and, with an ensemble, ``uncertainty.tif``, and
            of an image of one tile ``result.npz`` with all of them (a batch gives that alone); or a file: an .npz with
            all, or a .tif with the last. None gives arrays.
        scene_grid: of the results: ``SceneGrid.like(file)`` or ``SceneGrid.of(crs, resolution, bounds)``; default
            that of ``s1``.
        metadata: what is known of time and place; where it has no ``lat`` and ``lon`` each tile has its own.
        timesteps: network evaluations of Stage 1 and of Stage 3; default each model's own.
        seed: of the noise.
        ensemble_size: runs averaged; from 2 on their spread is the uncertainty.
        uncertainty: where its map goes; default into the folder.
        gate: also how much of Stage 3's correction was let through, 0 to 1: a file, or True for an array.
        sar_contribution: also the change that the SAR makes in Stage 3, in DN: a file, or True for an array.
        stac: also write a STAC Item, which needs a ``date`` in ``metadata``.
        bands: as for ``ground_scene``, and so are all that follow.
        s1_unit: unit of the SAR.
        same_grid: take a SAR of the grid's size for one on it, although it does not say where it lies.
        grid: model tiles.
        origin: (row, column) in the noise field.
        batch_size: tiles the network sees at once.
        deterministic: show the network one tile at a time.
        window_rows: rows read at once.
        tags: further tags for the files.
        overwrite: whether existing files may be replaced.
        force: accept values that do not look like dB.
        addresses: open addresses among the paths.
        progress: show a progress bar.
        **options: ``tokens``, ``temperature`` or ``hold_colour`` of ``Pipeline.forward``.

    Returns:
        The files.

    Raises:
        InputError: an input that cannot be read, warped or used.
        OutputError: an output exists, or the disk refuses. Nothing is then left under any output's name.
    """
    # 1. What can be refused without reading anything.
    _check_options(options, PIPELINE_OPTIONS)
    known = {key: value for key, value in (metadata or {}).items() if value is not None}
    date = str(known["date"]) if "date" in known else None
    if uncertainty and ensemble_size < 2:
        raise InputError("the uncertainty of the pipeline is that of an ensemble; expected --ensemble-size 2 or more")
    layers = [optical_layer(name) for name in reversed(STAGES)] + ([UNCERTAINTY] if ensemble_size > 1 else [])
    maps = {layer: path for layer, path in zip(MAPS, (uncertainty, gate, sar_contribution), strict=True) if path}
    reading = Reading(tuple(bands or ()) or None, s1_unit, same_grid=same_grid, force=force, addresses=addresses)

    with ExitStack() as files:
        # 2. Open the SAR on the grid; what it is says which files there are.
        given = open_source(s1, SAR_BANDS, files, reading)
        count = given.pixels.tiles
        place = scene_grid or given.grid
        tiles = grid or TileGrid()
        whole = count > 1 or tile_count(tiles, *place.size) == 1
        wanted, together = _pipeline_outputs(out, layers, count, whole and max(place.size) <= TILE_SIDE)
        wanted |= maps
        targets = _targets(wanted, stac, date, overwrite, together)
        asked = {"sar_contribution": True} if sar_contribution else {}
        scene = files.enter_context(_Scene(targets, overwrite, progress, together))
        scene.check(given, stac, place)
        given.look()
        sar = to_grid(given, place, scene.stack, scene.work, same_grid=same_grid)
        stages: Any = pipeline if hasattr(pipeline, "provenance") else pipeline()
        corner = _corner(origin, place, whole and scene_grid is None)
        if whole:
            known = _located(known, place, place.whole, digits=5)
        nfe = (0, 0)

        # 3. The network's part.
        def draw(images: list[Tensor], tiles: list[Tile]) -> Tensor:
            nonlocal nfe
            output = stages(
                images[0].to(stages.device),
                [known if whole else _located(known, place, tile) for tile in tiles],
                timesteps=timesteps,
                seed=seed,
                ensemble_size=ensemble_size,
                origin=_origins(corner, tiles),
                batch_size=len(tiles),
                **asked,
                **options,
            )
            nfe = output.nfe
            return torch.cat([getattr(output, layer.name).float().cpu() for layer in targets], dim=1)

        def finish(rows: Rows) -> list[FloatArray]:
            missing = _nodata(rows.inputs)
            rows.layers[:, missing] = np.nan
            seen = int((~missing).sum())
            scene.counts.update(filled=seen, empty=int(missing.sum()), sar=seen)
            return _split(rows.layers, list(targets))

        # 4. Run, and give the outputs their names.
        scene.run([sar], draw, finish, tiles, count, 1 if deterministic else batch_size, window_rows)
        _check_read(scene.counts, given)
        settings = {"timesteps": timesteps, "seed": seed, "ensemble_size": ensemble_size, **options}
        settings |= {f"metadata_{key}": value for key, value in known.items()}
        provenance = stages.provenance | _tags(settings | {"nfe": " ".join(map(str, nfe))}, tiles, corner)
        provenance |= given.facts | dict(tags or {})
        scene.finish(provenance, stac, date)
        if together is not None:
            arrays = {layer.name: as_raster(given, scene.memory[layer].data).data for layer in targets}
            raster = as_raster(given, scene.inputs[0].data)
            names = {"s1": raster.data} if raster.batched else dict(zip(("s1_vv", "s1_vh"), raster.data, strict=True))
            like = replace(raster, crs=place.crs, transform=place.transform)
            write_arrays(together, arrays | names, like, tags=provenance, overwrite=overwrite)
            scene.files[together] = "all of them, with the SAR"
        made = scene.result(given, count if whole else tile_count(tiles, *place.size), nfe, [given], place)
        return replace(made, metadata=known)


class _Scene:
    """The life of one run: open files, two threads, temporary outputs, final names."""

    def __init__(
        self, targets: Mapping[Layer, Path | None], overwrite: bool, progress: bool, together: Path | None = None
    ) -> None:
        self.stack = ExitStack()
        self.counts: Counter[str] = Counter()
        self.files: dict[Path, str] = {}
        self.inputs: list[ArrayWriter] = []
        self.memory: dict[Layer, ArrayWriter] = {}  # of what does not go to a GeoTIFF row by row
        self._targets, self._overwrite, self._progress, self._together = (targets, overwrite, progress, together)
        self._started = time.monotonic()
        self._cogs: dict[Layer, CogWriter] = {}

    def __enter__(self) -> _Scene:
        import rasterio

        with ExitStack() as undo:
            undo.push(self.stack)
            if "GDAL_CACHEMAX" not in os.environ:  # GDAL's own default is 5 % of the machine's memory
                self.stack.enter_context(rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES))
            undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def work(self) -> Path:
        """A folder for the warped SAR, which is as large as the output: beside it, and not on a small /tmp."""
        paths = [path for path in (*self._targets.values(), self._together) if path is not None]
        return self.stack.enter_context(temporary_folder(paths[0].parent if paths else None))

    def check(self, source: Source, stac: PathLike | None, place: SceneGrid | None = None) -> None:
        """Check that the outputs can hold what the input is.

        Raises:
            InputError: a batch is to go into one GeoTIFF, the image is too small, or a STAC Item has no place.
        """
        for path in self._targets.values():
            if path is not None:
                check_suffix(path, source.pixels.tiles)
        height, width = source.shape
        if min(height, width) < MIN_SIDE:
            raise InputError(f"{source.label} is {height}x{width} px; expected at least {MIN_SIDE} px a side")
        if stac is not None:
            check_located(place or source.grid)
            if any(path is None or path.suffix.lower() not in TIFF_SUFFIXES for path in self._targets.values()):
                raise InputError("a STAC Item links to GeoTIFFs; give the outputs names that end in .tif")

    def run(
        self,
        sources: Sequence[Readable],
        network: Callable[[list[Tensor], list[Tile]], Tensor],
        finish: Callable[[Rows], list[FloatArray]],
        grid: TileGrid,
        count: int,
        batch_size: int,
        window_rows: int,
    ) -> None:
        """Stream the tiles; ``finish`` turns rows of layers into the rows of each output, in their order."""
        if batch_size < 1 or window_rows < 1:
            raise InputError(f"batch_size is {batch_size} and window_rows {window_rows}; expected at least 1")
        scene = sources[0].grid
        for layer, path in self._targets.items():
            if path is not None and path.suffix.lower() in TIFF_SUFFIXES:
                self._cogs[layer] = CogWriter(layer, scene, path, self.stack)
            if layer not in self._cogs or self._together is not None:
                self.memory[layer] = ArrayWriter(len(layer.bands), scene)
        if self.memory:
            self.inputs = [ArrayWriter(len(source.bands), scene) for source in sources]

        def write(rows: Rows) -> None:
            for kept, given in zip(self.inputs, rows.inputs, strict=bool(self.inputs)):
                kept.write(rows.top, given)
            for layer, data in zip(self._targets, finish(rows), strict=True):
                for writer in (self._cogs.get(layer), self.memory.get(layer)):
                    if writer is not None:
                        writer.write(rows.top, data)

        channels = sum(len(layer.bands) for layer in self._targets)
        total = count if count > 1 else tile_count(grid, *scene.size)
        with ExitStack() as stack:
            # Values were checked once for the whole image; a tile of dark water would warn for nothing.
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", RangeWarning)
            stack.enter_context(torch.no_grad())
            advance = stack.enter_context(tile_bar("Tiles", total, self._progress and total > 1))
            thread = stack.enter_context(OneThread("axs-write"))
            if count > 1:
                rows = stream_stack(sources, network, count, batch_size=batch_size, advance=advance)
            else:
                rows = stream_tiles(
                    sources,
                    network,
                    channels,
                    grid,
                    batch_size=batch_size,
                    window_rows=window_rows,
                    wanted=lambda images: not bool(_nodata(images).all()),
                    advance=advance,
                )
            for done in stack.enter_context(closing(rows)):
                thread.hand(write, done)
                if thread.waiting > AHEAD:
                    thread.oldest()
            while thread.waiting:
                thread.oldest()

    def finish(
        self,
        tags: Mapping[str, str],
        stac: PathLike | None,
        date: str | None,
        inputs: Callable[[], TilePair] | None = None,
    ) -> None:
        """Make every file, then give all their names, the first output last."""
        links: dict[Path, Layer] = {}
        given = None if inputs is None or not self.inputs else inputs()
        for layer, path in self._targets.items():
            if path is not None and layer in self.memory and layer not in self._cogs and given is not None:
                values = self.memory[layer].data.reshape(len(layer.bands), len(given.opt_v2.batch), *given.opt_v2.size)
                write_result(path, layer, values.swapaxes(0, 1), given, tags=tags, overwrite=self._overwrite)
                self.files[path] = layer.name
        with ExitStack() as stack:
            for layer, writer in self._cogs.items():
                temporary = stack.enter_context(atomic_write(writer.target, self._overwrite))
                writer.finish(tags).replace(temporary)
                links[writer.target] = layer
        self.files |= {path: layer.name for path, layer in links.items()}
        if stac is not None and date is not None:
            grid = next(iter(self._cogs.values())).grid
            write_item(stac, grid, links, date, tags, overwrite=self._overwrite)

    def result(
        self, like: Source, tiles: int, nfe: Any, sources: Sequence[Source], place: SceneGrid | None = None
    ) -> SceneResult:
        """The report, with arrays made like the source where there are any."""
        arrays: dict[str, DataArray] = {}
        image: Any = None
        if self._together is None and all(path is None for path in self._targets.values()):
            for layer, writer in self.memory.items():
                arrays[layer.name] = _array(writer.data, layer, like)
            main = next(iter(arrays.values()))
            image = main.values if isinstance(like.pixels, MemoryPixels) else main
            if getattr(like.pixels, "is_dataset", False):
                image = main.to_dataset("band")
        notes = tuple(note for source in sources for note in source.report())
        counts = {key: self.counts[key] for key in ("kept", "filled", "corrected", "empty")}
        seconds = time.monotonic() - self._started
        return SceneResult(place or like.grid, tiles, nfe, seconds, self.files, arrays, notes, counts, image)


@contextmanager
def tile_bar(description: str, total: int, enabled: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with tiles done, tiles a second and time left; gives a function to be told of tiles done."""
    if not enabled:
        yield lambda tiles: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f} tiles/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeLeft())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda tiles: progress.advance(task, tiles)


def _estimate(s1: Any, opt_v2: Any) -> Any:
    """opt_v2, or the .npz of ``s1`` that holds it, too."""
    if opt_v2 is not None and not (isinstance(opt_v2, Sequence) and len(opt_v2) == 0):
        return opt_v2
    paths = [s1] if isinstance(s1, str | os.PathLike) else s1
    if not isinstance(paths, Sequence):
        raise InputError("no opt_v2 is given; expected an array or paths beside s1")
    return pair_file(paths)


def _pipeline_outputs(
    out: PathLike | None, layers: Sequence[Layer], count: int, small: bool
) -> tuple[dict[Layer, PathLike | bool | None], Path | None]:
    """Which layer goes to which GeoTIFF, and the .npz with all of them, if there is one."""
    nothing: dict[Layer, PathLike | bool | None] = dict.fromkeys(layers)
    if out is None:
        return nothing, None
    path = Path(out)
    if path.suffix.lower() == ".npz":
        return nothing, path
    if path.suffix.lower() in TIFF_SUFFIXES:
        return {layers[0]: path}, None
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; expected the name of a folder: choose another --out")
    if count > 1:
        return nothing, path / ARRAYS
    return {layer: path / f"{layer.name}.tif" for layer in layers}, path / ARRAYS if small else None


def _targets(
    wanted: Mapping[Layer, PathLike | bool | None],
    stac: PathLike | None,
    date: str | None,
    overwrite: bool,
    together: Path | None = None,
) -> dict[Layer, Path | None]:
    """Paths of the outputs, absolute and writable; None for arrays."""
    named = [path for path in (*wanted.values(), stac, together) if path is not None and not isinstance(path, bool)]
    paths = [check_output(path, overwrite) for path in named]
    if len(set(paths)) < len(paths):
        raise InputError(f"{listed(named)} name one file twice; give the outputs different names")
    out = next(iter(wanted.values()))
    targets: dict[Layer, Path | None] = {}
    for layer, path in wanted.items():
        if (out is None) != (path is None or isinstance(path, bool)):
            raise InputError(
                f"{layer.name} is {path!r} and out is {out!r}; expected a file for both, or out=None and True"
            )
        if path is None or isinstance(path, bool):
            targets[layer] = None
            continue
        targets[layer] = check_output(path, overwrite)
        check_suffix(path)
    if stac is not None:
        if date is None:
            raise InputError("a STAC Item needs the day the image stands for; give --date 2021-07-14 (date=)")
        if out is None:
            raise InputError("a STAC Item links to GeoTIFFs; give out=FILE")
    if date is not None:
        parse_date(date)
    return targets


def _check_options(options: Mapping[str, Any], allowed: Sequence[str]) -> None:
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise TypeError(f"unknown option(s) {', '.join(unknown)}; expected any of {', '.join(allowed)}")


def _check_read(counts: Mapping[str, int], *sources: Source) -> None:
    """Refuse, before anything gets its name, an input that was mostly impossible, and a result that is empty."""
    for source in sources:
        source.check_counts()
        if not source.counts["valid"]:
            raise InputError(
                f"{source.label} holds no valid pixel, all of it is nodata; expected {listed(source.bands)}"
            )
    if not counts["sar"]:
        raise InputError(
            f"{sources[0].label} has no valid pixel where the optical image lies; expected SAR of the same place"
        )
    if not (counts["kept"] or counts["filled"] or counts["corrected"]):
        raise InputError(
            f"no pixel is valid in {' and '.join(source.label for source in sources)} at once; expected images of"
            " one place"
        )


def _trust(what: Any, estimate: Any, optical: Source, stack: ExitStack, reading: Reading) -> Readable | None:
    """The trust map on the optical grid: of a mask, of a map, or of the .npz that holds the estimate."""
    count = optical.pixels.tiles
    if what is None:
        paths = [estimate] if isinstance(estimate, str | os.PathLike) else estimate
        if not (isinstance(paths, Sequence) and len(paths) == 1 and Path(paths[0]).suffix.lower() == ".npz"):
            return None
        # The file's own trust map; the truth that it may hold, too, goes to the result.
        shape = np.broadcast_to(np.float32(0), (count, len(OPTICAL_BANDS), *optical.shape))
        _, trust = read_companions(paths[0], Raster(shape, OPTICAL_BANDS))
        if trust is None:
            return None
        what = trust if count > 1 else trust[0]
    if isinstance(what, MaskFile):
        return MaskSource(_product_mask(what, estimate), optical.grid, stack, tiles=count, addresses=reading.addresses)
    if isinstance(what, np.ndarray) and what.ndim == 2:
        what = what[None]
    source = open_source(what, TRUST, stack, reading)
    fits = source.grid.same_as(optical.grid) if source.pixels.may_lie else source.grid.size == optical.grid.size
    if not fits:
        raise InputError(
            f"the trust map {source.label} is {source.grid} and opt_v2 {optical.grid}; expected one grid: resample it,"
            " or give MaskFile(path)"
        )
    return _TrustSource(source)


def _product_mask(mask: MaskFile, estimate: Any) -> MaskFile:
    """``--mask scl``: the scene classification of the product that is given as the image."""
    if os.fspath(mask.path).lower() != "scl" or Path(mask.path).exists():
        return mask
    paths = [estimate] if isinstance(estimate, str | os.PathLike) else estimate
    product = open_safe(paths[0]) if isinstance(paths, Sequence) and len(paths) == 1 else None
    if product is None or product.classification is None:
        raise InputError(
            "--mask scl is the scene classification of a Sentinel-2 product, and opt_v2 is none that has one (SCL at"
            " 20 m);"
            " give the .SAFE folder or .zip as opt_v2, or the file of the classification as --mask"
        )
    return replace(mask, path=product.classification, kind="scl")


class _TrustSource:
    """A trust map in [0, 1], 0 where it has no data."""

    def __init__(self, source: Source) -> None:
        self.grid, self.bands, self.tags, self.label = source.grid, source.bands, source.tags, source.label
        self._source = source

    def read(self, window: Tile) -> FloatArray:
        trust = np.nan_to_num(self._source.read(window), nan=0.0)
        low, high = float(trust.min()), float(trust.max())
        if low < 0 or high > 1:
            raise InputError(
                f"the trust map {self.label} holds {low:g} to {high:g}; expected 1 where opt_v2 was observed, 0 where"
                " it is unknown, between where partly"
            )
        return trust


def _inputs(scene: _Scene, sar: Source, optical: Source, estimate: Any) -> TilePair:
    """The inputs of an image in memory, on the grid of the estimate, as they go into an .npz."""
    estimates = as_raster(optical, scene.inputs[1].data)
    s1 = replace(estimates, data=as_raster(optical, scene.inputs[0].data).data, bands=SAR_BANDS, tags=sar.tags)
    trust = None
    if len(scene.inputs) > 2:
        trust = scene.inputs[2].data.reshape(len(estimates.batch), 1, *estimates.size)
    paths = [estimate] if isinstance(estimate, str | os.PathLike) else estimate
    one_file = isinstance(paths, Sequence) and len(paths) == 1
    truth, _ = read_companions(paths[0], estimates) if one_file else (None, None)
    return TilePair(s1, estimates, truth, trust)


def _array(data: FloatArray, layer: Layer, like: Source) -> DataArray:
    """A layer (C, N*H, W) as a DataArray: like the input where that was one, else with the names of the bands."""
    if isinstance(like.pixels, ArrayPixels):
        return like.pixels.dressed(data, layer)
    import xarray

    tiles = as_raster(like, data).data
    dims = ("tile", "band", "y", "x")[4 - tiles.ndim :]
    return xarray.DataArray(
        tiles, dims=dims, coords={"band": list(layer.bands)}, name=layer.name, attrs={"units": layer.unit}
    )


def _kept(optical: FloatArray, trust: FloatArray | None) -> NDArray[np.bool_]:
    """(h, w): what was observed, and comes back as it was."""
    if trust is None:
        return np.zeros(optical.shape[1:], dtype=bool)
    return (trust == Trust.OBSERVED) & ~np.isnan(optical).any(axis=0)


def _nodata(inputs: Sequence[FloatArray]) -> Any:
    """(h, w): where there is nothing to draw: no SAR, or no estimate and no trust map that may ask for one."""
    missing = np.isnan(inputs[0]).any(axis=0)
    return missing | np.isnan(inputs[1]).any(axis=0) if len(inputs) == 2 else missing


def _split(layers: FloatArray, kinds: Sequence[Layer]) -> list[FloatArray]:
    ends = np.cumsum([len(layer.bands) for layer in kinds])[:-1]
    return np.split(layers, ends.tolist()) if kinds else []


def _corner(origin: tuple[int, int] | None, grid: SceneGrid, tile: bool) -> tuple[int, int]:
    """Where the noise of an image begins."""
    if origin is not None:
        return origin
    return (0, 0) if tile else grid.noise_origin


def _origins(corner: tuple[int, int], tiles: Sequence[Tile]) -> Tensor:
    return torch.tensor([[corner[0] + tile.top, corner[1] + tile.left] for tile in tiles], dtype=torch.int64)


def _located(metadata: Mapping[str, Any], grid: SceneGrid, tile: Tile, digits: int | None = None) -> dict[str, Any]:
    """Metadata of a tile: its own place, as far as that of the scene is not given."""
    place = grid.centre_lat_lon(tile)
    if place is not None and digits is not None:
        place = round(place[0], digits), round(place[1], digits)
    return {**({} if place is None else {"lat": place[0], "lon": place[1]}), **metadata}


def _tags(settings: Mapping[str, Any], grid: TileGrid, corner: tuple[int, int]) -> dict[str, str]:
    named = {
        **settings,
        "tile_side": grid.side,
        "tile_overlap": grid.overlap,
        "noise_origin": f"{corner[0]} {corner[1]}",
    }
    return {f"AXS_{key.upper()}": str(value) for key, value in named.items() if value is not None}
