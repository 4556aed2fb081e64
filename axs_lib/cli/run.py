"""``axs run``: the whole pipeline on one SAR tile, one batch of tiles, or a scene of any size."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from axs_lib.cli import options
from axs_lib.cli.options import option


@options.with_shared
def run(
    *,
    s1: options.S1Option,
    out: Annotated[Path, option("Folder for the results; or an .npz of all, or a .tif of opt_v3.", metavar="DIR")],
    lat: Annotated[float | None, option("Latitude in degrees; by default of the middle of the file.")] = None,
    lon: Annotated[float | None, option("Longitude in degrees; by default of the middle of the file.")] = None,
    biome: Annotated[str | None, option("WWF biome, a number from 1 to 14 or its name.")] = None,
    scene: options.SceneOptions,
    stages: options.StageOptions,
    like: Annotated[Path | None, option("Draw on the grid of this raster.", metavar="FILE")] = None,
    crs: options.CrsOption = None,
    res: options.ResOption = None,
    bounds: options.BoundsOption = None,
    deterministic: options.DeterministicOption = False,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Draw, refine and ground an optical image from SAR alone."""
    from axs_lib.prithvi.metadata import parse_metadata

    # 1. What can be refused without reading anything.
    number = biome is not None and biome.strip().isdecimal()
    metadata = {"date": scene.date, "lat": lat, "lon": lon, "biome": int(biome or 0) if number else biome}
    parse_metadata(metadata, "the command line")
    grid = options.grid_from(like, crs, res, bounds)
    if scene.date is None and not scene.quiet:
        typer.echo("no --date: Stage 2 does not know the season, and may not improve on Stage 1", err=True)

    # 2. Run it.
    from axs_lib.scenes.api import run_scene

    how = {"metadata": metadata, "deterministic": deterministic, "overwrite": overwrite}
    how["kept"] = (like, *asdict(stages).values())
    scene.carry_out("pipeline", run_scene, s1, out, grid, model=asdict(stages), **how)
