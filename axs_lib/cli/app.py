"""The ``axs`` command line: puts the commands together; importing this loads neither torch nor rasterio."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated

import typer

from axs_lib import __version__
from axs_lib.cli.batch import batch
from axs_lib.cli.command import USER_ERROR, MultiValueCommand, command_line
from axs_lib.cli.demo import demo
from axs_lib.cli.evaluate import evaluate
from axs_lib.cli.fetch import fetch
from axs_lib.cli.ground import ground
from axs_lib.cli.info import info
from axs_lib.cli.precompute import precompute
from axs_lib.cli.report import report
from axs_lib.cli.run import run
from axs_lib.cli.weights import app as weights
from axs_lib.progress import show_log

# PyTorch's threads otherwise spin while they wait for each other, and on a machine that does other work, too, that
# made two threads 20 times slower than one. It must be said before torch is imported; the user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = command_line(name="axs", no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"axs {__version__}")
        raise typer.Exit


@app.callback()
def axs(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say what is read, loaded and written.")] = False,
) -> None:
    """Ground an optical satellite estimate in real Sentinel-1 radar with TerraMind."""
    if verbose:
        show_log()


for _command in (batch, demo, evaluate, fetch, ground, info, precompute, report, run):
    app.command(cls=MultiValueCommand)(_command)
app.add_typer(weights, name="weights")

train = typer.Typer(help="Train models; a stopped run goes on where it was.", no_args_is_help=True)
app.add_typer(train, name="train")

TRAINABLE = {
    "head": "Train the grounding head beside a frozen generator, on pairs of your own; any variant.",
    "stage1": "Train Stage 1, SAR to optical; any TerraMind variant.",
    "stage2": "Train Stage 2, the Prithvi refiner; any Prithvi variant.",
    "stage3": "Train Stage 3, generator and grounding head together; any TerraMind variant.",
}


def _train(context: typer.Context) -> None:
    from axs_lib.cli.train import main as train_main

    train_main([str(context.info_name), *context.args])


# The options are those of the stage's configuration, which only loads when it is asked for.
_ANY_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}
for _name, _help in TRAINABLE.items():
    train.command(_name, help=_help, add_help_option=False, context_settings=_ANY_OPTIONS)(_train)


def main() -> None:
    """Entry point of the ``axs`` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal's encoding lacks
    try:
        app(prog_name="axs")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            raise
        # Standard output refuses: what is left in its buffer is not tried again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"error: cannot write to standard output: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(USER_ERROR)
