"""``axs run``: the whole pipeline on one SAR tile, one batch of tiles, or a scene of any size.

In: GeoTIFF, COG, JPEG 2000, .npz or .pt files with VV and VH. Out: a folder with the images of the three stages and the
uncertainty as GeoTIFFs, and for one tile also an .npz with everything (a batch gives the .npz alone).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from axs_lib.cli import options
from axs_lib.cli.options import Precision, Product, S1Unit


def run(
    s1: options.S1Option,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")],
    date: options.DateOption = None,
    lat: Annotated[
        float | None, typer.Option(help="Latitude in degrees; by default of the middle of the file.")
    ] = None,
    lon: Annotated[
        float | None, typer.Option(help="Longitude in degrees; by default of the middle of the file.")
    ] = None,
    biome: Annotated[str | None, typer.Option(help="WWF biome, a number from 1 to 14 or its name.")] = None,
    timesteps: options.TimestepsOption = None,
    seed: options.SeedOption = 0,
    variant: options.VariantOption = None,
    checkpoint: options.CheckpointOption = None,
    adapter: options.AdapterOption = None,
    stage1_checkpoint: options.Stage1CheckpointOption = None,
    stage2_checkpoint: options.Stage2CheckpointOption = None,
    s1_product: options.S1ProductOption = Product.S1GRD,
    s1_unit: options.S1UnitOption = S1Unit.auto,
    bands: options.BandsOption = None,
    same_grid: options.SameGridOption = False,
    hold_colour: options.HoldColourOption = False,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = Precision.float32,
    ensemble_size: options.EnsembleOption = None,
    uncertainty: options.UncertaintyOption = None,
    gate: options.GateOption = None,
    sar_contribution: options.SarContributionOption = None,
    like: options.LikeOption = None,
    crs: options.CrsOption = None,
    res: options.ResOption = None,
    bounds: options.BoundsOption = None,
    stac: options.StacOption = None,
    deterministic: options.DeterministicOption = False,
    overwrite: options.OverwriteOption = False,
    force: options.ForceOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Draw, refine and ground an optical image from SAR alone."""
    from axs_lib.errors import OutputError
    from axs_lib.io.raster import parse_bands
    from axs_lib.prithvi.metadata import parse_metadata
    from axs_lib.terramind.sampler import check_timesteps
    from axs_lib.terramind.weights import find_variant

    # 1. What can be refused without reading anything.
    number = biome is not None and biome.strip().isdigit()
    metadata = {"date": date, "lat": lat, "lon": lon, "biome": int(biome or 0) if number else biome}
    parse_metadata(metadata, "the command line")
    if variant is not None:
        find_variant(variant)
    steps = check_timesteps(options.recommended_timesteps(variant) if timesteps is None else timesteps)
    order, grid = parse_bands(bands), options.grid_from(like, crs, res, bounds)
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; expected the name of a folder: choose another --out")
    if date is None and not quiet:
        typer.echo("no --date: Stage 2 does not know the season, and may not improve on Stage 1", err=True)

    # 2. How the pipeline is built, once the input was found good.
    import torch

    from axs_lib import pipeline as stages
    from axs_lib.adapters import load_adapter
    from axs_lib.scenes.api import run_scene

    target = options.torch_device(device)
    build: dict[str, Any] = {
        "variant": variant,
        "checkpoint": checkpoint,
        "stage1_checkpoint": stage1_checkpoint,
        "stage2_checkpoint": stage2_checkpoint,
    }
    given = {key: value for key, value in build.items() if value is not None}
    pipelines: list[Any] = []

    def build_stages() -> Any:
        pipeline = stages.build_pipeline(device=str(target), s1_product=s1_product.value, **given)
        if adapter is not None:
            load_adapter(pipeline, adapter)
        if dtype != Precision.float32:
            pipeline.use_precision(getattr(torch, dtype))
        pipelines.append(pipeline)
        return pipeline

    # 3. Run it.
    settings: dict[str, Any] = {"hold_colour": True} if hold_colour else {}
    with options.memory_errors(str(target)):
        result = run_scene(
            build_stages,
            s1,
            out,
            grid,
            metadata=metadata,
            timesteps=steps,
            seed=seed,
            ensemble_size=ensemble_size or options.DEFAULT_ENSEMBLE,
            uncertainty=uncertainty or False,
            gate=gate or False,
            sar_contribution=sar_contribution or False,
            stac=stac,
            bands=order,
            s1_unit=s1_unit.value,
            same_grid=same_grid,
            deterministic=deterministic,
            tags={"AXS_S1_PRODUCT": s1_product.value, "AXS_DTYPE": dtype.value},
            overwrite=overwrite,
            force=force,
            progress=not quiet,
            **settings,
        )
    if not quiet:
        known = options.shown({key: value for key, value in result.metadata.items() if value is not None})
        options.report(result, pipelines[0].variant, known or ["no date and place"])
