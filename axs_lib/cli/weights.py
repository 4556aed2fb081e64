"""``axs weights``: fetch published weights (TerraMind, Prithvi) and list what there is."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from axs_lib.cli.options import option

app = typer.Typer(help="Fetch published weights and list the variants.", no_args_is_help=True)


@app.command()
def download(
    variant: Annotated[str, typer.Argument(help="A name that `axs weights list` shows.")],
    revision: Annotated[
        str | None, option("Branch, tag or commit of the generator's repository; GENERATOR:TOKENIZER pins both.")
    ] = None,
    to: Annotated[Path | None, option("Folder for the files; the Hub's cache when left out.")] = None,
) -> None:
    """Fetch the files of a variant from the Hugging Face Hub."""
    from rich.console import Console

    from axs_lib.terramind.weights import PRITHVI_VARIANTS, VARIANTS, WEIGHTS_VARIABLE, download, find_variant

    console = Console(soft_wrap=True, highlight=False)
    spec = find_variant(variant, VARIANTS | PRITHVI_VARIANTS)
    if spec.packaged:
        console.print(f"{variant} ships with this package: nothing to download.")
        return
    files = download(spec, revision, to, refresh=True)
    for path in files.paths.values():
        console.print(f"{path}", markup=False)
        console.print(f"  sha256 {files.sha256[path.name]}")
        if path.name in files.commit:
            console.print(f"  commit {files.commit[path.name]}")
    if to is None:
        console.print("They are in the Hub's cache and found from now on.")
    else:
        console.print("To use them:")
        console.print(f"  export {WEIGHTS_VARIABLE}={shlex.quote(str(to.resolve()))}", markup=False)


@app.command("list")
def list_variants() -> None:
    """List the variants and where their weights come from."""
    from rich.console import Console

    from axs_lib.terramind.weights import PRITHVI_VARIANTS, VARIANTS

    console = Console(soft_wrap=True, highlight=False)
    for spec in (VARIANTS | PRITHVI_VARIANTS).values():
        files = [f"{file.repo}/{file.name}" for file in spec.published]
        console.print(spec.name, style="bold")
        for source in files or ["in this package"]:
            console.print(f"  {source}", markup=False)
