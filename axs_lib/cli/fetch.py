"""``axs fetch``: Sentinel-1 and Sentinel-2 of one place from a STAC catalogue, as files for ``axs ground``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from axs_lib.cli import options
from axs_lib.cli.options import option


def fetch(
    catalog: Annotated[
        str, typer.Argument(metavar="CATALOG", help="Address of a STAC API, or path of a static catalogue.")
    ],
    bounds: options.BoundsOption,
    dates: Annotated[str, option("First and last day, as 2021-07-01/2021-07-31.")],
    out: Annotated[Path, option("Folder for s1.tif, s2.tif and trust.tif.", metavar="DIR")],
    sar_collection: Annotated[str, option("Collection of terrain-corrected Sentinel-1.")] = "sentinel-1-rtc",
    optical_collection: Annotated[str, option("Collection of Sentinel-2 L2A.")] = "sentinel-2-l2a",
    s1_unit: options.S1UnitOption = "auto",
    crs: options.CrsOption = None,
    res: options.ResOption = None,
    overwrite: options.OverwriteOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Fetch the clearest Sentinel-2 day of a place and the Sentinel-1 pass nearest to it."""
    from axs_lib.scenes.search import find_pair, load_pair, save_pair

    place = options.parse_edges(bounds or "", crs)
    pair = find_pair(catalog, place, dates, sar_collection=sar_collection, optical_collection=optical_collection)
    arrays = load_pair(pair, crs=crs, resolution=res, s1_unit=s1_unit)
    s1, s2, *trust = save_pair(arrays, out, overwrite=overwrite)
    if quiet:
        return
    typer.echo(f"Sentinel-2 of {pair.date}, {100 * pair.clear:.0f} % clear: {pair.tags['AXS_S2_ITEMS']}")
    typer.echo(f"Sentinel-1 of {pair.sar_date}: {pair.tags['AXS_S1_ITEMS']}")
    mask = f" --mask {trust[0]} --mask-buffer 5" if trust else ""
    product = " --s1-product S1RTC" if "rtc" in sar_collection.lower() else ""  # gamma0
    typer.echo(f"next: axs ground --s1 {s1}{product} --opt-v2 {s2}{mask} --out grounded.tif --variant nano")
