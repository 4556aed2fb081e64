"""``axs train nano``: train the packaged nano model on a folder of pairs; resumes where it was stopped."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str], program: str = "axs train nano") -> None:
    """Parse the run's configuration (options and ``--config FILE``), train or resume, and say where the weights are."""
    from jsonargparse import ArgumentParser
    from rich.console import Console

    from axs_lib.train.nano import NanoConfig, train_nano

    parser = ArgumentParser(prog=program, description=__doc__, exit_on_error=True)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_argument("--restart", action="store_true", help="start anew instead of resuming --out")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_class_arguments(NanoConfig)
    parsed = parser.parse_args(list(arguments))
    config = parser.instantiate_classes(parsed)
    options = {key: value for key, value in vars(config).items() if key not in ("config", "restart", "quiet")}
    weights = train_nano(NanoConfig(**options), resume=not parsed.restart, progress=not parsed.quiet)
    Console().print(f"weights: {weights}")
