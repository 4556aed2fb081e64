"""``axs train``: train from a configuration and options over it; a stopped run goes on."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints

from axs_lib.errors import InputError, meant

Config = TypeVar("Config")
PACKAGED = Path(__file__).resolve().parents[1] / "configs"
MAX_CONFIG_BYTES = 1_000_000


def main(arguments: Sequence[str]) -> None:
    """Train what the first argument names, with the options that follow."""
    from rich.console import Console

    kind, *options = arguments
    if kind == "head":
        from axs_lib.train.head import HeadConfig, train_head

        head, restart, quiet = parse(HeadConfig, options, f"axs train {kind}")
        train: Callable[..., Path] = partial(train_head, head)
    else:
        from axs_lib.train.config import CONFIGS

        run, restart, quiet = parse(CONFIGS[kind], options, f"axs train {kind}")
        from axs_lib.train.tasks import train_stage  # loads Lightning, which --help does not need

        train = partial(train_stage, run)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its banners; warnings still come
    Console().print(f"weights: {train(resume=not restart, progress=not quiet)}")


def parse(configuration: type[Config], arguments: Sequence[str], program: str) -> tuple[Config, bool, bool]:
    """A configuration, a dataclass of plain values or of such, from options; whether to start anew; to be quiet."""
    from jsonargparse import ArgumentError, ArgumentParser
    from typer import echo

    parser = ArgumentParser(prog=program, description=configuration.__doc__, exit_on_error=False)
    parser.print_help = lambda file=None: echo(parser.format_help())  # type: ignore[method-assign]  # fails aloud
    parser.add_argument(
        "-c", "--config", action="config", help="packaged name, or YAML file with any of the options below"
    )
    parser.add_argument("--restart", action="store_true", help="start anew instead of resuming --out")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_class_arguments(configuration)
    hints = get_type_hints(configuration)
    groups = {name for name, hint in hints.items() if any(map(is_dataclass, (hint, *get_args(hint))))}
    written = _spelled_out(arguments, groups)
    try:
        settings = vars(parser.instantiate_classes(parser.parse_args(written)))
    except (ArgumentError, ValueError, RecursionError) as error:
        raise InputError(_readable(error, parser.get_defaults().keys(), program)) from None
    settings.pop("config")
    restart, quiet = settings.pop("restart"), settings.pop("quiet")
    return configuration(**settings), restart, quiet


def _spelled_out(arguments: Sequence[str], groups: Collection[str]) -> list[str]:
    """Arguments with a configuration's content for its name, and ``--data DIR`` as ``--data.folder DIR``."""
    written: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if written[-1:] in (["-c"], ["--config"]):
            written.append(read_config(argument, groups))
        elif option == "--config" and equals:
            written.append(f"{option}={read_config(value, groups)}")
        elif option == "--data" and "data" in groups:
            written.append(f"--data.folder{equals}{value}")
        else:
            written.append(argument)
    return written


def read_config(name: str, groups: Collection[str] = ()) -> str:
    """A packaged configuration, or a YAML file, as JSON; ``InputError`` for what is none, or names a class."""
    import yaml  # type: ignore[import-untyped]
    from jsonargparse import get_loader

    packaged = {file.stem: file for file in sorted(PACKAGED.glob("*.yaml"))}
    path = Path(name) if Path(name).is_file() else packaged.get(name)
    if path is None:
        raise InputError(
            f"{name} is neither a file nor a packaged configuration; expected a YAML file or one of"
            f" {', '.join(packaged)}"
        )
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, more than {MAX_CONFIG_BYTES}")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has an alias (*name); write the value itself")
        content = get_loader("yaml")(text)
        written = json.dumps(content)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is no readable YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected fields with values")
    # jsonargparse would import what is named in place of a dataclass's fields.
    wrong = [key for key, value in content.items() if key in groups and not isinstance(value, dict | None)]
    if wrong or re.search(r"class_path|init_args", written):
        raise InputError(
            f"{path} names a class or a file{f' as {wrong[0]}' if wrong else ''}; expected fields with plain values"
        )
    return written


def _readable(error: Exception, known: Iterable[str], program: str) -> str:
    """What jsonargparse has to say, in one line, with the name that was probably meant."""
    text = " ".join(str(error).split())
    if missing := re.search("arguments are required: (.*)", text):
        examples = {"out": f"a run folder: --out runs/{program.split()[-1]}", "data": "a data folder: --data pairs"}
        names = [name.removesuffix(".folder") for name in missing[1].split(", ")]
        return "; ".join(f"--{name} is missing; give {examples.get(name, 'it')}" for name in names)
    unknown = re.search(r"[Oo]ption '([\w.]+)'|unrecognized arguments: --([\w.]+)", text)
    group = re.search(r"Group '([\w.]+)'", text)
    name = (f"{group[1]}." if group else "") + (unknown[1] or unknown[2]) if unknown else ""
    return f"{text.rstrip('.')}.{meant(name, known) or f' {program} --help lists the options'}"
