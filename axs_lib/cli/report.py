"""``axs report``: results of the other commands and their figures as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from axs_lib.cli.options import option
from axs_lib.errors import counted


def report(
    results: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR_OR_FILES]...", help="Folders with results; .npz with opt_v3; opt_v3 GeoTIFFs."),
    ] = None,
    out: Annotated[Path, option("The page.", metavar="FILE")] = Path("report.html"),
    evaluation: Annotated[Path | None, option("Also show this report of axs evaluate --json.", metavar="FILE")] = None,
    s1: Annotated[
        list[Path] | None, option("SAR of a single result: one stack, or VV and VH.", metavar="FILE [FILE]")
    ] = None,
    opt_v2: Annotated[Path | None, option("Its estimate.", metavar="FILE")] = None,
    truth: Annotated[Path | None, option("Its clear truth.", metavar="FILE")] = None,
    uncertainty: Annotated[Path | None, option("Its uncertainty.", metavar="FILE")] = None,
    gate: Annotated[Path | None, option("Its gate.", metavar="FILE")] = None,
    title: Annotated[str, option("Heading of the page.")] = "Report",
    most: Annotated[int, option("Results shown.", min=1)] = 50,
    overwrite: Annotated[bool, option("Replace an existing page.", "--overwrite")] = False,
    quiet: Annotated[bool, option("Print nothing but errors.", "--quiet", "-q")] = False,
) -> None:
    """Write one self-contained page to compare images and judge their figures in a browser."""
    from rich.filesize import decimal

    from axs_lib.evaluate.html.page import write_report
    from axs_lib.io.atomic import check_output

    check_output(out, overwrite)
    if s1 and not results:  # what follows --s1 is taken for more of it
        s1, results = (s1[:-1], s1[-1:]) if len(s1) > 1 else (s1, [])
    given = {"s1": s1, "opt_v2": opt_v2, "truth": truth, "uncertainty": uncertainty, "gate": gate}
    companions = {layer: path for layer, path in given.items() if path}
    count = write_report(
        out, results or [], evaluation=evaluation, companions=companions, title=title, most=most, overwrite=overwrite
    )
    if not quiet:
        typer.echo(f"{out}: {counted(count, 'result')}, {decimal(out.stat().st_size)}; open it in a browser")
