"""How every ``axs`` command behaves: errors in one line, exit code 2 for what the user can fix, several values."""

from __future__ import annotations

import functools
import itertools
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

USER_ERROR = 2
INTERRUPTED = 130


class AxsGroup(TyperGroup):
    """The top command: deliberate errors become one line on stderr; only the library's own warnings are shown."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; an empty value, as of a variable that a script did not set, would stand for the folder one is in."""
        for before, value in itertools.pairwise(["axs", *args]):
            if not value or (value.startswith("--") and value.endswith("=")):
                raise typer.BadParameter(f"the value after {value or before} is empty; give one")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; deliberate errors end with exit code 2, without a traceback."""
        from axs_lib.errors import AxionError

        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.showwarning = show_warning
            try:
                return super().invoke(ctx)
            except AxionError as error:
                typer.echo(f"error: {printable(str(error))}", err=True)
                raise typer.Exit(USER_ERROR) from None
            except OSError as error:  # of a path that no door looked at: its name is too long, or access denied
                if error.filename is None:
                    raise
                typer.echo(f"error: {printable(f'{error.filename}: {error.strerror}')}", err=True)
                raise typer.Exit(USER_ERROR) from None
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None


# A command line at its top; plain help comes twice as fast.
command_line = functools.partial(
    typer.Typer, cls=AxsGroup, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


class MultiValueCommand(TyperCommand):
    """A command whose repeatable options also take several values at once: ``--s1 VV.tif VH.tif``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse after writing ``--option A B`` as ``--option A --option B``."""
        repeatable = {o for p in self.params if getattr(p, "multiple", False) for o in p.opts}
        return super().parse_args(ctx, spread_values(args, repeatable))


def spread_values(args: list[str], repeatable: set[str]) -> list[str]:
    """Repeat a repeatable option's name before each of its values, up to the next option."""
    spread: list[str] = []
    option, filled = None, False
    for argument in args:
        if argument.startswith("-") and len(argument) > 1:
            name, equals, _ = argument.partition("=")
            option, filled = (name if name in repeatable else None), bool(equals)
        elif option is not None:
            if filled:
                spread.append(option)
            filled = True
        spread.append(argument)
    return spread


def printable(text: str) -> str:
    """Text that any terminal takes: control characters and bytes that are no UTF-8, as in file names, are escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """One line on stderr for a warning of ours, nothing for those of libraries."""
    if category.__module__.startswith("axs_lib"):
        typer.echo(f"warning: {printable(str(message))}", err=True)
