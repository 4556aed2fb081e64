"""The scene way of ``axs ground`` and ``axs run``: files larger than a tile, or SAR on another grid, are streamed.

In: the options of the two commands. Out: Cloud Optimized GeoTIFFs, and what to say of them. Small files on one grid,
.npz and .pt stay with the commands themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from axs_lib.io.grid import SceneGrid
    from axs_lib.io.scene_masks import MaskFile
    from axs_lib.scenes.api import SceneResult

GateOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Scenes: also write how much of the correction was let through, 0 to 1."
    ),
]
StacOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Scenes: also write a STAC Item, which needs --date.")
]
DateOption = Annotated[str | None, typer.Option(help="Day the image stands for, as 2021-07-14.")]
DeterministicOption = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="Scenes: one tile at a time, so that runs agree to the last DN; slower."
    ),
]
LikeOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Scenes: draw on the grid of this raster.")
]
CrsOption = Annotated[
    str | None,
    typer.Option(help="Scenes: draw on a grid of this CRS, such as EPSG:32633, with --res and --bounds."),
]
ResOption = Annotated[float | None, typer.Option(help="Pixel side of that grid, in units of its CRS.")]
BoundsOption = Annotated[
    str | None,
    typer.Option(metavar="LEFT,BOTTOM,RIGHT,TOP", help="Extent of that grid, in units of its CRS."),
]


def refuse_for_tiles(options: Mapping[str, Any]) -> None:
    """Refuse options that only scenes have.

    Raises:
        InputError: one of them is given.
    """
    from axs_lib.errors import InputError
    from axs_lib.io.grid import TILE_SIDE

    given = [name for name, value in options.items() if value]
    if given:
        raise InputError(
            f"{', '.join(given)} is for scenes: GeoTIFFs larger than {TILE_SIDE} px or on two grids, to a .tif;"
            " leave it out for a tile"
        )


def grid_from(like: Path | None, crs: str | None, res: float | None, bounds: str | None) -> SceneGrid | None:
    """The grid that ``--like``, or ``--crs --res --bounds``, describe; None for none of them.

    Raises:
        InputError: both or only a part is given, or it is no grid.
    """
    from axs_lib.errors import InputError
    from axs_lib.io.grid import SceneGrid

    given = [value is not None for value in (crs, res, bounds)]
    if like is not None and not any(given):
        return SceneGrid.like(like)
    if like is None and not any(given):
        return None
    if like is not None or crs is None or res is None or bounds is None:
        raise InputError("expected --like FILE, or --crs, --res and --bounds together, to say where to draw")
    try:
        edges = [float(edge) for edge in bounds.split(",")]
    except ValueError as error:
        raise InputError(f"--bounds is {bounds!r}; expected four numbers LEFT,BOTTOM,RIGHT,TOP") from error
    return SceneGrid.of(crs, res, edges)


def ground_files(
    s1: Sequence[str],
    optical: Sequence[str],
    out: Path,
    *,
    mask: MaskFile | None,
    settings: Mapping[str, Any],
    build: Mapping[str, Any],
    s1_product: str,
    device: str | None,
    dtype: str,
    bands: tuple[str, ...] | None,
    uncertainty: Path | None,
    gate: Path | None,
    stac: Path | None,
    date: str | None,
    deterministic: bool,
    overwrite: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Ground a scene; ``settings`` are those of ``Stage3GroundingModel.ground``, ``build`` of its builder."""
    import torch

    from axs_lib import stage3_tm_ground
    from axs_lib.cli.ground import Precision, torch_device
    from axs_lib.scenes.api import ground_scene

    target = torch_device(device)
    given = {key: value for key, value in build.items() if value is not None}
    model = stage3_tm_ground.build_stage3_model(
        settings["timesteps"], device=str(target), s1_product=s1_product, **given
    )
    if dtype != Precision.float32:
        model.use_precision(getattr(torch, dtype))
    with _memory_errors(str(target)):
        result = ground_scene(
            model,
            s1,
            optical,
            out,
            trust=mask,
            uncertainty=uncertainty or False,
            gate=gate or False,
            stac=stac,
            date=date,
            bands=bands,
            deterministic=deterministic,
            tags={"AXS_S1_PRODUCT": s1_product, "AXS_DTYPE": dtype},
            overwrite=overwrite,
            force=force,
            progress=not quiet,
            **settings,
        )
    if not quiet:
        report(result, model.variant)


def run_files(
    s1: Sequence[str],
    out: Path,
    grid: SceneGrid | None,
    metadata: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    build: Mapping[str, Any],
    device: str | None,
    bands: tuple[str, ...] | None,
    dtype: str,
    stac: Path | None,
    deterministic: bool,
    overwrite: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Run the pipeline on a scene; ``settings`` are those of ``Pipeline.forward``, ``build`` of ``build_pipeline``."""
    import torch

    from axs_lib import pipeline as stages
    from axs_lib.cli.ground import Precision, torch_device
    from axs_lib.scenes.api import run_scene

    target = torch_device(device)
    pipeline = stages.build_pipeline(device=str(target), **build)
    if dtype != Precision.float32:
        pipeline.use_precision(getattr(torch, dtype))
    with _memory_errors(str(target)):
        result = run_scene(
            pipeline,
            s1,
            out,
            grid,
            metadata=metadata,
            stac=stac,
            bands=bands,
            deterministic=deterministic,
            tags={"AXS_S1_PRODUCT": str(build.get("s1_product", "S1GRD")), "AXS_DTYPE": dtype},
            overwrite=overwrite,
            force=force,
            progress=not quiet,
            **settings,
        )
    if not quiet:
        report(result, pipeline.variant)


def report(result: SceneResult, variant: str) -> None:
    """Say what was made of a scene."""
    height, width = result.grid.size
    speed = result.tiles / max(result.seconds, 1e-9)
    typer.echo(
        f"{height}x{width} px, {variant}, {result.tiles} tiles in {result.seconds:.0f} s ({speed:.1f} tiles/s)"
    )
    for path, what in result.files.items():
        typer.echo(f"{path}: {what}")


@contextmanager
def _memory_errors(device: str) -> Iterator[None]:
    import torch

    from axs_lib.errors import AxionError

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise AxionError(
            f"{device} has too little memory for a batch of tiles; use --deterministic (one tile at a time), --device"
            " cpu or a smaller --variant"
        ) from error
