"""The ``axs`` command line: puts the commands together.

In: ``sys.argv``. Out: what the commands print and write. Importing this loads neither torch nor rasterio.
"""

from __future__ import annotations

from typing import Annotated

import typer

from axs_lib import __version__
from axs_lib.cli.command import AxsGroup, MultiValueCommand
from axs_lib.cli.demo import demo
from axs_lib.cli.evaluate import evaluate
from axs_lib.cli.ground import ground
from axs_lib.cli.info import info
from axs_lib.cli.weights import app as weights

app = typer.Typer(
    name="axs",
    cls=AxsGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, which comes twice as fast
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"axs {__version__}")
        raise typer.Exit


@app.callback()
def axs(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Ground an optical satellite estimate in real Sentinel-1 radar with TerraMind."""


app.command("demo")(demo)
app.command("evaluate")(evaluate)
app.command("ground", cls=MultiValueCommand)(ground)
app.command("info")(info)
app.add_typer(weights, name="weights")

train = typer.Typer(help="Train models.", no_args_is_help=True)
app.add_typer(train, name="train")


@train.command(
    "nano", add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def train_nano(context: typer.Context) -> None:
    """Train the packaged nano model on a folder of pairs; a stopped run resumes."""
    from axs_lib.cli.train import main as train_main

    train_main(context.args)


def main() -> None:
    """Entry point of the ``axs`` command."""
    app(prog_name="axs")


if __name__ == "__main__":
    main()
