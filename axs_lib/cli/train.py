"""``axs train nano|head|stage1|stage2|stage3``: train from a YAML file and options; a stopped run goes on.

In: ``-c FILE`` with any of the options, and options over it. Out: the run folder, and where its weights are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

# What the stages set themselves; every other argument of Lightning's Trainer is an option.
NOT_OPTIONS = {
    *("logger", "callbacks", "plugins", "default_root_dir", "barebones", "model_registry", "inference_mode"),
    *("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"),
    *("max_steps", "min_steps", "max_epochs", "min_epochs", "max_time", "fast_dev_run", "overfit_batches"),
    *("val_check_interval", "check_val_every_n_epoch", "reload_dataloaders_every_n_epochs"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    *("use_distributed_sampler", "enable_autolog_hparams"),
}
PACKAGED = ("nano", "generator", "head")  # all of nano together; then generator and head one after the other


def main(arguments: Sequence[str], program: str = "axs train") -> None:
    """Train what the first argument names (nano where it names nothing), with the options that follow."""
    from axs_lib.train.config import CONFIGS

    named = bool(arguments) and arguments[0] in (*CONFIGS, *PACKAGED)
    kind, options = (arguments[0], arguments[1:]) if named else ("nano", arguments)
    if kind in PACKAGED:
        _train_packaged(kind, options, f"{program} {kind}")
    elif program.endswith(".py"):
        _as_script(kind, options, program)
    else:
        train_stage(kind, options, f"{program} {kind}")


def _as_script(stage: str, arguments: Sequence[str], program: str) -> None:
    """``train_stage`` with errors as the ``axs`` command reports them."""
    import typer

    from axs_lib.cli.command import USER_ERROR
    from axs_lib.errors import AxionError

    try:
        train_stage(stage, arguments, program)
    except AxionError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(USER_ERROR) from None


def train_stage(stage: str, arguments: Sequence[str], program: str) -> None:
    """Parse a stage's configuration, train or resume, and say where the weights are."""
    from rich.console import Console

    from axs_lib.train.fit import fit

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its banners; warnings still come
    config, flags, parsed = parse_stage(stage, arguments, program)
    weights = fit(config, flags, resume=not parsed.restart, progress=not parsed.quiet)
    Console().print(f"weights: {weights}")


def parse_stage(
    stage: str, arguments: Sequence[str], program: str = "axs train"
) -> tuple[Any, dict[str, Any], Any]:
    """The stage's configuration, Lightning's flags, and everything parsed.

    Raises:
        InputError: an unknown field or a value that does not fit, in the file or on the command line.
    """
    import lightning
    from jsonargparse import ArgumentError, ArgumentParser

    from axs_lib.errors import InputError
    from axs_lib.train.config import CONFIGS

    kind = CONFIGS[stage]
    parser = ArgumentParser(prog=program, description=kind.__doc__, exit_on_error=False)
    parser.add_argument("-c", "--config", action="config", help="YAML file with any of the options below")
    parser.add_argument("--restart", action="store_true", help="start anew instead of resuming --out")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_class_arguments(kind)
    parser.add_class_arguments(lightning.Trainer, "trainer", skip=NOT_OPTIONS, instantiate=False)
    try:
        parsed = parser.parse_args(_folders(arguments))
        settings = parser.instantiate_classes(parsed)
    except ArgumentError as error:
        raise InputError(_readable(error, parser.get_defaults().keys(), program)) from None
    flags = vars(settings.pop("trainer"))
    options = {k: v for k, v in vars(settings).items() if k not in ("config", "restart", "quiet")}
    return kind(**options), {k: v for k, v in flags.items() if v is not None}, parsed


def _folders(arguments: Sequence[str]) -> list[str]:
    """``--data DIR`` is short for ``--data.folder DIR``."""
    return [
        "--data.folder" + a.removeprefix("--data") if a.partition("=")[0] == "--data" else a
        for a in arguments
    ]


def _readable(error: Exception, known: Iterable[str], program: str) -> str:
    """What jsonargparse has to say, in one line, with the name that was probably meant."""
    import difflib

    text = " ".join(str(error).split())
    unknown = re.search(r"[Oo]ption '([\w.]+)'|unrecognized arguments: --([\w.]+)", text)
    group = re.search(r"Group '([\w.]+)'", text)
    name = (f"{group[1]}." if group else "") + (unknown[1] or unknown[2]) if unknown else ""
    close = difflib.get_close_matches(name, known, n=1)
    return f"{text}; {f'did you mean {close[0]}?' if close else f'{program} --help lists the options'}"


def _train_packaged(kind: str, arguments: Sequence[str], program: str) -> None:
    """Train what is packaged, the same way for all kinds."""
    from jsonargparse import ArgumentParser
    from rich.console import Console

    from axs_lib.train.generator import GeneratorConfig, train_generator
    from axs_lib.train.head import HeadConfig, train_head
    from axs_lib.train.nano import NanoConfig, train_nano

    kinds: dict[str, tuple[Any, Any, str]] = {
        "nano": (NanoConfig, train_nano, "the packaged nano model"),
        "generator": (GeneratorConfig, train_generator, "nano's generator on the image it makes"),
        "head": (HeadConfig, train_head, "the grounding head of nano on its frozen generator"),
    }
    configuration, train, what = kinds[kind]
    description = f"Train {what} on a folder of pairs; resumes where it was stopped."
    parser = ArgumentParser(prog=program, description=description, exit_on_error=True)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_argument("--restart", action="store_true", help="start anew instead of resuming --out")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_class_arguments(configuration)
    parsed = parser.parse_args(list(arguments))
    config = parser.instantiate_classes(parsed)
    options = {key: value for key, value in vars(config).items() if key not in ("config", "restart", "quiet")}
    weights = train(configuration(**options), resume=not parsed.restart, progress=not parsed.quiet)
    Console().print(f"weights: {weights}")
