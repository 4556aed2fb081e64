"""Ground a scene of any size, or run the whole pipeline on one, with a model that is handed in.

In: paths that GDAL opens, or ``xarray.DataArray``, and a model that grounds tiles. Out: Cloud Optimized GeoTIFFs (and
a STAC Item), or DataArrays. Everything here is wiring: ``source`` and ``warp`` give the pixels, ``stream`` runs the
tiles and blends, ``cog`` writes. The result depends on the pixels, the settings and the place; not on windows,
threads or, within 1 DN, batches.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.checks import RangeWarning, check_pair, check_sar
from axs_lib.errors import InputError
from axs_lib.grounding.large import GroundingControls
from axs_lib.io.atomic import atomic_write, check_output
from axs_lib.io.cog import COG_SUFFIXES, GATE, UNCERTAINTY, CogWriter, Layer, optical_layer
from axs_lib.io.grid import SceneGrid
from axs_lib.io.raster import FloatArray
from axs_lib.io.scene_masks import MaskFile, MaskSource
from axs_lib.io.source import TRUST, ArraySource, PathLike, Source, open_source
from axs_lib.io.stac import check_located, parse_date, write_item
from axs_lib.io.warp import to_grid
from axs_lib.scenes.stream import AHEAD, WINDOW_ROWS, OneThread, Rows, stream_tiles, tile_count
from axs_lib.tilegrid import Tile, TileGrid

if TYPE_CHECKING:
    from xarray import DataArray

    SceneInput = PathLike | Sequence[PathLike] | DataArray

GROUND_OPTIONS = (
    "strength",
    "tokens",
    "temperature",
    "ensemble_size",
    "hold_colour",
    "correction_mode",
    "scheduler",
)
PIPELINE_OPTIONS = ("tokens", "temperature")
GDAL_CACHE_BYTES = 256 * 1024**2
STAGES = ("opt_v1", "opt_v2", "opt_v3")


class Grounder(Protocol):
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
    """What was made of a scene.

    Attributes:
        grid: of the scene.
        tiles: model tiles of the scene.
        nfe: network evaluations of each denoising run; of Stage 1 and Stage 3 for the pipeline.
        seconds: from opening the inputs to the finished outputs.
        files: the outputs and what each holds.
        arrays: the layers by name, where no output file was asked for.
    """

    grid: SceneGrid
    tiles: int
    nfe: Any
    seconds: float
    files: dict[Path, str] = field(default_factory=dict)
    arrays: dict[str, DataArray] = field(default_factory=dict)


def ground_scene(
    model: Grounder,
    s1: SceneInput,
    opt_v2: SceneInput,
    out: PathLike | None = None,
    *,
    timesteps: int | None = None,
    seed: int = 0,
    trust: SceneInput | MaskFile | None = None,
    uncertainty: PathLike | bool = False,
    gate: PathLike | bool = False,
    stac: PathLike | None = None,
    date: str | None = None,
    bands: Sequence[str] | None = None,
    grid: TileGrid | None = None,
    origin: tuple[int, int] | None = None,
    batch_size: int = 8,
    deterministic: bool = False,
    window_rows: int = WINDOW_ROWS,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
    force: bool = False,
    progress: bool = False,
    **options: Any,
) -> SceneResult:
    """Ground the optical estimate of a scene in its SAR image.

    Args:
        model: from ``build_stage3_model``.
        s1: VV and VH in dB: a path, one path a band, or a DataArray. Where it lies on another grid it is warped onto
            that of ``opt_v2``, in linear power.
        opt_v2: B02, B03, B04, B08 in DN, as ``s1``; its grid is that of the result.
        out: the grounded image, a COG; None gives DataArrays and needs a DataArray as ``opt_v2``.
        timesteps: network evaluations; default the model's.
        seed: of the noise.
        trust: one band on the grid of ``opt_v2``, 1 where it was observed and 0 (or nodata) where it is unknown; or
            a ``MaskFile``, such as a scene classification at 20 m.
        uncertainty: also write the standard deviation of the error to expect, in DN; a model that says nothing of its
            error needs an ``ensemble_size`` from 2 on.
        gate: also write how much of the correction was let through, 0 to 1.
        stac: also write a STAC Item, which needs ``date``.
        date: day or moment that the image stands for, in ISO form.
        bands: order of the bands, where the files do not say it or say it wrong.
        grid: model tiles; default 256 px overlapping by 64.
        origin: (row, column) of the upper left pixel in the noise field; default by the georeference, so that a part
            of a scene has the noise of the whole.
        batch_size: tiles the network sees at once.
        deterministic: show the network one tile at a time, whatever ``batch_size``: with the same number of torch
            threads the result is then the same to the last DN, else to within 1 DN.
        window_rows: rows read at once; no pixel depends on it.
        tags: further tags for the files.
        overwrite: whether existing files may be replaced.
        force: accept values that do not look like dB and DN.
        progress: show a progress bar.
        **options: ``strength``, ``tokens``, ``temperature``, ``ensemble_size``, ``hold_colour``, ``correction_mode`` or
            ``scheduler`` of ``Stage3GroundingModel.ground``.

    Returns:
        The files, or the arrays ``opt_v3``, ``uncertainty`` and ``gate``.

    Raises:
        InputError: an input that cannot be read, warped or used.
        OutputError: an output exists, or the disk refuses. Nothing is then left under any output's name.
    """
    # 1. What can be refused without reading anything.
    _check_options(options, GROUND_OPTIONS)
    if uncertainty and options.get("ensemble_size", 1) < 2 and not getattr(model, "estimates_error", False):
        raise InputError(
            "this model says nothing of its error, so that the uncertainty is the spread of an ensemble, and"
            " ensemble_size is 1; expected 2 or more"
        )
    wanted: dict[Layer, PathLike | bool | None] = {optical_layer("opt_v3"): out}
    wanted |= {layer: path for layer, path in ((UNCERTAINTY, uncertainty), (GATE, gate)) if path}
    targets = _targets(wanted, stac, date, overwrite)

    with _Scene(targets, overwrite, progress) as scene:
        # 2. Open the inputs on one grid, and look at a sample of them.
        optical = open_source(opt_v2, OPTICAL_BANDS, scene.stack, bands)
        if out is None and not isinstance(optical, ArraySource):
            raise InputError(
                "no output is named and opt_v2 is a file; give out=FILE, or opt_v2 as a DataArray"
            )
        if stac is not None:
            check_located(optical.grid)
        sar = to_grid(open_source(s1, SAR_BANDS, scene.stack, bands), optical.grid, scene.stack, scene.work)
        sources = [sar, optical] if trust is None else [sar, optical, _trust(trust, optical, scene.stack)]
        _check_sample(sources, force)
        corner = optical.grid.noise_origin if origin is None else origin
        nfe = 0

        # 3. The network's part: changes to the estimate, so that what it leaves alone stays bit for bit.
        def ground(images: list[Tensor], tiles: list[Tile]) -> Tensor:
            nonlocal nfe
            given = [image.to(model.device) for image in images]
            output = model.ground(
                given[0],
                given[1],
                timesteps=timesteps,
                seed=seed,
                trust=given[2] if trust is not None else None,
                controls=GroundingControls(origin=_origins(corner, tiles)),
                batch_size=len(tiles),
                **options,
            )
            nfe = output.nfe
            layers = [output.image.cpu() - torch.from_numpy(_base(*(image.numpy() for image in images[1:])))]
            layers += [output.uncertainty.cpu()] if uncertainty else []
            layers += [output.gate.cpu()] if gate else []
            return torch.cat([layer.float() for layer in layers], dim=1)

        def finish(rows: Rows) -> list[FloatArray]:
            nodata = _nodata(rows.inputs) | np.isnan(rows.layers[:4]).any(axis=0)
            rows.layers[:, nodata] = np.nan
            image = _base(*rows.inputs[1:]) + rows.layers[:4]
            return [image, *_split(rows.layers[4:], [layer for layer in targets if layer.name != "opt_v3"])]

        # 4. Run, and give the outputs their names.
        tiles = grid or TileGrid()
        channels = sum(len(layer.bands) for layer in targets)
        scene.run(sources, ground, channels, finish, tiles, 1 if deterministic else batch_size, window_rows)
        settings = {"timesteps": timesteps, "seed": seed, **options, "nfe": nfe}
        provenance = model.provenance | _tags(settings, tiles, corner) | dict(tags or {})
        if isinstance(sources[-1], MaskSource):
            provenance |= sources[-1].provenance
        scene.finish({**optical.tags, **provenance}, stac, date)
        return scene.result(optical, tile_count(tiles, *optical.grid.size), nfe)


def run_scene(
    pipeline: ScenePipeline,
    s1: SceneInput,
    out: PathLike,
    scene_grid: SceneGrid | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    timesteps: int | None = None,
    seed: int = 0,
    ensemble_size: int = 1,
    stac: PathLike | None = None,
    bands: Sequence[str] | None = None,
    grid: TileGrid | None = None,
    origin: tuple[int, int] | None = None,
    batch_size: int = 8,
    deterministic: bool = False,
    window_rows: int = WINDOW_ROWS,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
    force: bool = False,
    progress: bool = False,
    **options: Any,
) -> SceneResult:
    """Run the three stages on the SAR image of a scene.

    Args:
        pipeline: from ``build_pipeline``.
        s1: VV and VH in dB, as for ``ground_scene``.
        out: folder for ``opt_v1.tif``, ``opt_v2.tif``, ``opt_v3.tif`` and, with an ensemble, ``uncertainty.tif``.
        scene_grid: of the results: ``SceneGrid.like(file)`` or ``SceneGrid.of(crs, resolution, bounds)``; default
            that of ``s1``.
        metadata: what is known of time and place; where it has no ``lat`` and ``lon`` each tile has its own.
        timesteps: network evaluations of Stage 1 and of Stage 3; default each model's own.
        seed: of the noise.
        ensemble_size: runs averaged; from 2 on their spread is the uncertainty.
        stac: also write a STAC Item, which needs a ``date`` in ``metadata``.
        bands: as for ``ground_scene``, and so are all that follow.
        grid: model tiles.
        origin: (row, column) in the noise field.
        batch_size: tiles the network sees at once.
        deterministic: show the network one tile at a time.
        window_rows: rows read at once.
        tags: further tags for the files.
        overwrite: whether existing files may be replaced.
        force: accept values that do not look like dB.
        progress: show a progress bar.
        **options: ``tokens`` or ``temperature`` of ``Pipeline.forward``.

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
    folder = Path(out)
    wanted: dict[Layer, PathLike | bool | None] = {
        optical_layer(name): folder / f"{name}.tif" for name in reversed(STAGES)
    }
    if ensemble_size > 1:
        wanted[UNCERTAINTY] = folder / f"{UNCERTAINTY.name}.tif"
    targets = _targets(wanted, stac, date, overwrite)

    with _Scene(targets, overwrite, progress) as scene:
        # 2. Open the SAR on the grid.
        given = open_source(s1, SAR_BANDS, scene.stack, bands)
        place = scene_grid or given.grid
        if stac is not None:
            check_located(place)
        sar = to_grid(given, place, scene.stack, scene.work)
        _check_sample([sar], force)
        corner = place.noise_origin if origin is None else origin
        nfe = (0, 0)

        # 3. The network's part.
        def draw(images: list[Tensor], tiles: list[Tile]) -> Tensor:
            nonlocal nfe
            output = pipeline(
                images[0].to(pipeline.device),
                [_located(known, place, tile) for tile in tiles],
                timesteps=timesteps,
                seed=seed,
                ensemble_size=ensemble_size,
                origin=_origins(corner, tiles),
                batch_size=len(tiles),
                **options,
            )
            nfe = output.nfe
            return torch.cat([getattr(output, layer.name).float().cpu() for layer in targets], dim=1)

        def finish(rows: Rows) -> list[FloatArray]:
            rows.layers[:, _nodata(rows.inputs)] = np.nan
            return _split(rows.layers, list(targets))

        # 4. Run, and give the outputs their names.
        tiles = grid or TileGrid()
        channels = sum(len(layer.bands) for layer in targets)
        scene.run([sar], draw, channels, finish, tiles, 1 if deterministic else batch_size, window_rows)
        settings = {"timesteps": timesteps, "seed": seed, "ensemble_size": ensemble_size, **options}
        settings |= {f"metadata_{key}": value for key, value in known.items()}
        provenance = pipeline.provenance | _tags(settings | {"nfe": " ".join(map(str, nfe))}, tiles, corner)
        scene.finish(provenance | dict(tags or {}), stac, date)
        return scene.result(sar, tile_count(tiles, *place.size), nfe)


class _Scene:
    """The life of one scene: open files, two threads, temporary outputs, final names."""

    def __init__(self, targets: Mapping[Layer, Path | None], overwrite: bool, progress: bool) -> None:
        self.stack = ExitStack()
        self._targets, self._overwrite, self._progress = targets, overwrite, progress
        self._started = time.monotonic()
        self._files: dict[Path, Layer] = {}
        self._writers: dict[Layer, CogWriter | _ArrayWriter] = {}

    def __enter__(self) -> _Scene:
        import rasterio

        with ExitStack() as undo:
            undo.push(self.stack)
            if "GDAL_CACHEMAX" not in os.environ:  # GDAL's own default is 5 % of the machine's memory
                self.stack.enter_context(rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES))
            near = next((path.parent for path in self._targets.values() if path is not None), None)
            for path in self._targets.values():
                if path is not None:
                    _make_folder(path.parent)
            # The warped SAR is as large as the output, so it goes beside it and not to a small /tmp.
            folder = tempfile.TemporaryDirectory(prefix=".axs-scene.", dir=near)
            self.work = Path(self.stack.enter_context(folder))
            undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def run(
        self,
        sources: Sequence[Source],
        network: Callable[[list[Tensor], list[Tile]], Tensor],
        channels: int,
        finish: Callable[[Rows], list[FloatArray]],
        grid: TileGrid,
        batch_size: int,
        window_rows: int,
    ) -> None:
        """Stream the tiles; ``finish`` turns rows of layers into the rows of each output, in their order."""
        if batch_size < 1 or window_rows < 1:
            raise InputError(f"batch_size is {batch_size} and window_rows {window_rows}; expected at least 1")
        scene = sources[0].grid
        self._writers = {
            layer: _ArrayWriter(layer, scene) if path is None else CogWriter(layer, scene, path, self.stack)
            for layer, path in self._targets.items()
        }

        def write(rows: Rows) -> None:
            for writer, data in zip(self._writers.values(), finish(rows), strict=True):
                writer.write(rows.top, data)

        total = tile_count(grid, *scene.size)
        with ExitStack() as stack:
            # Values were checked once for the scene; a tile of dark water would warn for nothing.
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", RangeWarning)
            stack.enter_context(torch.no_grad())
            advance = stack.enter_context(tile_bar("Tiles", total, self._progress))
            thread = stack.enter_context(OneThread("axs-write"))
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

    def finish(self, tags: Mapping[str, str], stac: PathLike | None, date: str | None) -> None:
        """Make every COG, then give all their names, the first output last."""
        with ExitStack() as stack:
            for layer, writer in self._writers.items():
                if isinstance(writer, CogWriter):
                    temporary = stack.enter_context(atomic_write(writer.target, self._overwrite))
                    writer.finish(tags).replace(temporary)
                    self._files[writer.target] = layer
        if stac is not None and date is not None:
            scene = next(iter(self._writers.values())).grid
            write_item(stac, scene, self._files, date, tags, overwrite=self._overwrite)

    def result(self, like: Source, tiles: int, nfe: Any) -> SceneResult:
        """The report, with arrays made like the source where there are any."""
        arrays = {
            layer.name: writer.array(like)
            for layer, writer in self._writers.items()
            if isinstance(writer, _ArrayWriter) and isinstance(like, ArraySource)
        }
        seconds = time.monotonic() - self._started
        files = {path: layer.name for path, layer in self._files.items()}
        return SceneResult(like.grid, tiles, nfe, seconds, files, arrays)


class _ArrayWriter:
    """Rows of one layer on their way to a DataArray."""

    def __init__(self, layer: Layer, grid: SceneGrid) -> None:
        self.layer, self.grid = layer, grid
        self._data = np.empty((len(layer.bands), *grid.size), dtype=np.float32)

    def write(self, top: int, data: FloatArray) -> None:
        self._data[:, top : top + data.shape[1]] = data

    def array(self, like: ArraySource) -> DataArray:
        return like.dressed(self._data, self.layer)


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

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeLeft(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda tiles: progress.advance(task, tiles)


def _targets(
    wanted: Mapping[Layer, PathLike | bool | None], stac: PathLike | None, date: str | None, overwrite: bool
) -> dict[Layer, Path | None]:
    """Paths of the outputs, resolved and writable; None for arrays."""
    named = [path for path in (*wanted.values(), stac) if path is not None and not isinstance(path, bool)]
    paths = [check_output(path, overwrite) for path in named]
    if len(set(paths)) < len(paths):
        raise InputError(
            f"{', '.join(map(str, named))} name one file twice; give the outputs different names"
        )
    out = next(iter(wanted.values()))
    targets: dict[Layer, Path | None] = {}
    for layer, path in wanted.items():
        if (out is None) != (path is None or isinstance(path, bool)):
            raise InputError(
                f"{layer.name} is {path!r} and out is {out!r}; expected a file for both, or out=None and True"
            )
        targets[layer] = None if path is None or isinstance(path, bool) else Path(path).resolve()
        file = targets[layer]
        if file is not None and file.suffix.lower() not in COG_SUFFIXES:
            raise InputError(
                f"{path} ends in {file.suffix or 'no suffix'}; expected a scene's output named .tif"
            )
    if stac is not None:
        if date is None:
            raise InputError("a STAC Item needs the day the image stands for; give date='2021-07-14'")
        if out is None:
            raise InputError("a STAC Item links to a file; give out=FILE")
        parse_date(date)
    return targets


def _check_options(options: Mapping[str, Any], allowed: Sequence[str]) -> None:
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise TypeError(f"unknown option(s) {', '.join(unknown)}; expected any of {', '.join(allowed)}")


def _trust(what: SceneInput | MaskFile, optical: Source, stack: ExitStack) -> Source:
    if isinstance(what, MaskFile):
        return MaskSource(what, optical.grid, stack)
    source = open_source(what, TRUST, stack)
    if not source.grid.same_as(optical.grid):
        raise InputError(
            f"the trust map {source.label} is {source.grid} and opt_v2 {optical.grid}; expected one grid: resample it,"
            " or give MaskFile(path)"
        )
    return _TrustSource(source)


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


def _check_sample(sources: Sequence[Source], force: bool) -> None:
    """Check units on sixteen parts spread over the scene, which costs nothing beside reading all of it.

    Raises:
        InputError: values that do not look like dB and DN, or a scene of less than 8 px.
    """
    height, width = sources[0].grid.size
    side = 128
    rows, columns = (
        sorted({round(part * max(length - side, 0) / 3) for part in range(4)}) for length in (height, width)
    )
    sample = [Tile(r, c, min(r + side, height), min(c + side, width)) for r in rows for c in columns]
    read = [
        torch.from_numpy(np.concatenate([source.read(tile) for tile in sample], axis=2))[None]
        for source in sources
    ]
    if len(read) == 1:
        check_sar(read[0], source="file", force=force)
        return
    if len(read) == 3:  # what is not trusted is never looked at
        read[1] = read[1].masked_fill(read[2] == 0, torch.nan)
    check_pair(read[0], read[1], source="file", force=force)


def _base(optical: FloatArray, trust: FloatArray | None = None) -> FloatArray:
    """What changes are added to, (..., 4, h, w): the estimate, 0 where it is missing or not to be looked at."""
    unknown = np.isnan(optical) if trust is None else np.isnan(optical) | (trust == 0)
    return np.where(unknown, np.float32(0), optical)


def _nodata(inputs: Sequence[FloatArray]) -> Any:
    """(h, w): where the result has no data: no SAR, or no estimate and no trust map that may ask for one."""
    missing = np.isnan(inputs[0]).any(axis=0)
    return missing | np.isnan(inputs[1]).any(axis=0) if len(inputs) == 2 else missing


def _split(layers: FloatArray, kinds: Sequence[Layer]) -> list[FloatArray]:
    ends = np.cumsum([len(layer.bands) for layer in kinds])[:-1]
    return np.split(layers, ends.tolist()) if kinds else []


def _origins(corner: tuple[int, int], tiles: Sequence[Tile]) -> Tensor:
    return torch.tensor([[corner[0] + tile.top, corner[1] + tile.left] for tile in tiles], dtype=torch.int64)


def _located(metadata: Mapping[str, Any], grid: SceneGrid, tile: Tile) -> dict[str, Any]:
    """Metadata of a tile: its own place, unless that of the scene is given."""
    if "lat" in metadata or "lon" in metadata:
        return dict(metadata)
    place = grid.centre_lat_lon(tile)
    return {**metadata, **({} if place is None else {"lat": place[0], "lon": place[1]})}


def _tags(settings: Mapping[str, Any], grid: TileGrid, corner: tuple[int, int]) -> dict[str, str]:
    named = {
        **settings,
        "tile_side": grid.side,
        "tile_overlap": grid.overlap,
        "noise_origin": f"{corner[0]} {corner[1]}",
    }
    return {f"AXS_{key.upper()}": str(value) for key, value in named.items() if value is not None}


def _make_folder(folder: Path) -> None:
    from axs_lib.errors import OutputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {os.fspath(folder)}: {error.strerror}") from error
