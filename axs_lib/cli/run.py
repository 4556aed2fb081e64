"""``axs run``: the whole pipeline on one SAR tile, one batch of tiles, or a scene of any size.

In: .npz, .pt or .tif files with VV and VH, and for scenes anything that GDAL opens. Out: a folder with the images of
the three stages and the uncertainty as GeoTIFFs with the georeference of the SAR, and one .npz with everything (a
batch gives the .npz alone, a scene the GeoTIFFs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axs_lib.cli.ground import DEFAULT_ENSEMBLE, DtypeOption, Precision, Product, torch_device
from axs_lib.cli.scene import (
    BoundsOption,
    CrsOption,
    DeterministicOption,
    LikeOption,
    ResOption,
    StacOption,
    grid_from,
    refuse_for_tiles,
    run_files,
)

if TYPE_CHECKING:
    from axs_lib.io.raster import Raster
    from axs_lib.pipeline import Pipeline, PipelineOutput

IMAGES = ("opt_v1", "opt_v2", "opt_v3")
ARRAYS = "result.npz"
UNCERTAINTY = "uncertainty"


def run(
    s1: Annotated[
        list[str],
        typer.Option(metavar="FILE [FILE]", help="VV and VH in dB: one stack, or one file a band."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")],
    date: Annotated[str | None, typer.Option(help="Day the image stands for, as 2021-07-14.")] = None,
    lat: Annotated[
        float | None, typer.Option(help="Latitude in degrees; by default of the middle of the file.")
    ] = None,
    lon: Annotated[
        float | None, typer.Option(help="Longitude in degrees; by default of the middle of the file.")
    ] = None,
    biome: Annotated[str | None, typer.Option(help="WWF biome, a number from 1 to 14 or its name.")] = None,
    timesteps: Annotated[
        int | None,
        typer.Option(
            help="Network evaluations of Stages 1 and 3, 1 to 1000: 1 is the most accurate, more are sharper;"
            " by default 12 and 10."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    variant: Annotated[
        str | None, typer.Option(help="nano, or terramind_v1_tiny, _small, _base (default) or _large.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="TerraMind weights from this file or folder.")
    ] = None,
    stage1_checkpoint: Annotated[
        Path | None, typer.Option(help="Stage 1 weights, where they are not those of Stage 3.")
    ] = None,
    stage2_checkpoint: Annotated[
        Path | None, typer.Option(help="Stage 2 weights from this file or folder.")
    ] = None,
    s1_product: Annotated[Product, typer.Option(help="Kind of Sentinel-1 image.")] = Product.S1GRD,
    bands: Annotated[
        str | None, typer.Option(help="Order of the bands, such as VH,VV, where the files do not say it.")
    ] = None,
    ensemble_size: Annotated[
        int, typer.Option(min=1, help="Runs averaged; their spread is the uncertainty, 1 gives none.")
    ] = DEFAULT_ENSEMBLE,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the GPU where there is one.")
    ] = None,
    dtype: DtypeOption = Precision.float32,
    like: LikeOption = None,
    crs: CrsOption = None,
    res: ResOption = None,
    bounds: BoundsOption = None,
    stac: StacOption = None,
    deterministic: DeterministicOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Accept values that do not look like dB.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Draw, refine and ground an optical image from SAR alone."""
    from axs_lib.bands import SAR_BANDS
    from axs_lib.io.grid import is_scene
    from axs_lib.io.raster import parse_bands
    from axs_lib.io.tiles import read_raster
    from axs_lib.prithvi.metadata import parse_metadata
    from axs_lib.terramind.sampler import check_timesteps
    from axs_lib.terramind.weights import find_variant

    # 1. What can be refused without reading anything.
    metadata: dict[str, Any] = {"date": date, "lat": lat, "lon": lon, "biome": _number_or_name(biome)}
    parse_metadata(metadata, "the command line")
    if variant is not None:
        find_variant(variant)
    if timesteps is not None:
        check_timesteps(timesteps)
    _check_outputs(out, ensemble_size, overwrite)
    if date is None and not quiet:
        typer.echo("no --date: Stage 2 does not know the season, and may not improve on Stage 1", err=True)

    settings = {"timesteps": timesteps, "seed": seed, "ensemble_size": ensemble_size}
    given = {
        "checkpoint": checkpoint,
        "stage1_checkpoint": stage1_checkpoint,
        "stage2_checkpoint": stage2_checkpoint,
    }
    build: dict[str, Any] = {"s1_product": s1_product.value} | ({"variant": variant} if variant else {})
    build |= {k: v for k, v in given.items() if v is not None}

    # Larger than a tile, or on a grid of its own: the scene way streams it.
    grid = grid_from(like, crs, res, bounds)
    if grid is not None or is_scene(s1):
        run_files(
            s1,
            out,
            grid,
            metadata,
            settings=settings,
            build=build,
            device=device,
            dtype=dtype.value,
            bands=parse_bands(bands),
            stac=stac,
            deterministic=deterministic,
            overwrite=overwrite,
            force=force,
            quiet=quiet,
        )
        return
    refuse_for_tiles({"--stac": stac, "--deterministic": deterministic})

    # 2. Read the SAR; where it is tells the place.
    raster = read_raster(s1, SAR_BANDS, order=parse_bands(bands))
    metadata = _place(raster) | {key: value for key, value in metadata.items() if value is not None}

    # 3. Run the pipeline.
    pipeline, output = _run(raster, metadata, settings, build, device, dtype.value, force)

    # 4. Write.
    tags = result_tags(pipeline, output, metadata, settings) | {
        "AXS_S1_PRODUCT": s1_product.value,
        "AXS_DTYPE": dtype.value,
    }
    written = write_results(out, raster, output, tags, overwrite)
    if not quiet:
        count, _, height, width = output.opt_v3.shape
        tiles = f"{count} tiles of " if raster.batched else ""
        known = ", ".join(f"{key} {shown(value)}" for key, value in metadata.items()) or "no date and place"
        typer.echo(f"{tiles}{height}x{width} px, {pipeline.variant}, {known}")
        for path, what in written.items():
            typer.echo(f"{path}: {what}")


def _number_or_name(biome: str | None) -> int | str | None:
    return int(biome) if biome is not None and biome.strip().isdigit() else biome


def _check_outputs(out: Path, ensemble_size: int, overwrite: bool) -> None:
    from axs_lib.errors import OutputError
    from axs_lib.io.atomic import check_output

    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; expected the name of a folder: choose another --out")
    names = [*(f"{name}.tif" for name in IMAGES), ARRAYS]
    for name in [*names, f"{UNCERTAINTY}.tif"] if ensemble_size > 1 else names:
        check_output(out / name, overwrite)


def _place(raster: Raster) -> dict[str, float]:
    from axs_lib.io.raster import centre_lat_lon

    place = centre_lat_lon(raster)
    return {} if place is None else {"lat": round(place[0], 5), "lon": round(place[1], 5)}


def _run(
    raster: Raster,
    metadata: Mapping[str, Any],
    settings: Mapping[str, Any],
    build: Mapping[str, Any],
    device: str | None,
    dtype: str,
    force: bool,
) -> tuple[Pipeline, PipelineOutput]:
    import torch

    from axs_lib import pipeline as stages
    from axs_lib.checks import check_sar
    from axs_lib.errors import AxionError

    target = torch_device(device)
    s1 = torch.from_numpy(raster.batch).to(target)
    check_sar(s1, source="file", force=force)
    pipeline = stages.build_pipeline(device=str(target), **build)
    if dtype != Precision.float32:
        pipeline.use_precision(getattr(torch, dtype))
    try:
        return pipeline, pipeline(s1, metadata, **settings)
    except torch.OutOfMemoryError as error:
        raise AxionError(
            f"{target} has too little memory for {len(s1)} tile(s) of {s1.shape[-2]}x{s1.shape[-1]} px with"
            f" {pipeline.variant}; use --dtype bfloat16, --device cpu or a smaller --variant"
        ) from error


def result_tags(
    pipeline: Pipeline, output: PipelineOutput, metadata: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, str]:
    """What made an output of the pipeline, for file tags."""
    tags = pipeline.provenance | {f"AXS_{k.upper()}": str(v) for k, v in settings.items() if v is not None}
    tags |= {f"AXS_METADATA_{key.upper()}": str(value) for key, value in metadata.items()}
    return tags | {"AXS_NFE": " ".join(map(str, output.nfe))}


def write_results(
    out: Path, s1: Raster, output: PipelineOutput, tags: Mapping[str, str], overwrite: bool
) -> dict[Path, str]:
    """Write a folder of results.

    Args:
        out: the folder.
        s1: the SAR, whose georeference the files get.
        output: of the pipeline for ``s1.batch``; without its uncertainty there is no file of it.
        tags: provenance for every file.
        overwrite: whether existing files may be replaced.

    Returns:
        The paths of the files and what they hold.

    Raises:
        OutputError: a file exists and ``overwrite`` is false, or the disk refuses.
    """
    from axs_lib.bands import OPTICAL_BANDS
    from axs_lib.io.raster import Tile
    from axs_lib.io.results import write_arrays, write_tiff, write_uncertainty

    layers = {name: getattr(output, name) for name in (*IMAGES, UNCERTAINTY)}
    batches = {name: layer.float().cpu().numpy() for name, layer in layers.items() if layer is not None}
    what = {"opt_v1": "Stage 1, drawn", "opt_v2": "Stage 2, refined", "opt_v3": "Stage 3, grounded"}
    what[UNCERTAINTY] = "standard deviation over the ensemble, in DN"
    written: dict[Path, str] = {}
    for name, batch in batches.items():
        if s1.batched:
            continue
        path = out / f"{name}.tif"
        like = replace(s1, data=batch[0], bands=OPTICAL_BANDS, nodata=None, tags=tags)
        if name == UNCERTAINTY:
            write_uncertainty(path, batch, Tile(s1, like), tags=tags, overwrite=overwrite)
        else:
            write_tiff(path, batch[0], like, overwrite=overwrite)
        written[path] = what[name]
    arrays = {name: batch if s1.batched else batch[0] for name, batch in batches.items()}
    sar = {"s1": s1.data} if s1.batched else dict(zip(("s1_vv", "s1_vh"), s1.data, strict=True))
    write_arrays(out / ARRAYS, arrays | sar, s1, tags=tags, overwrite=overwrite)
    written[out / ARRAYS] = "all of them, with the SAR"
    return written


def shown(value: object) -> str:
    """A value of the metadata, for people."""
    return f"{value:.2f}" if isinstance(value, float) else str(value)
