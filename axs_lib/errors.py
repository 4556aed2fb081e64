"""The errors Axion-Sat raises on purpose: each says what was seen, what was expected and how to fix it.

Everything the command line should report in one line, without a traceback and with exit code 2, derives from
``AxionError``; anything else that escapes is a bug.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class AxionError(Exception):
    """Base of every deliberate error of the library; one line, apart from lists, whose lines are indented."""

    def __str__(self) -> str:
        """In place of a line break out of a file's name or a value stands a space."""
        return re.sub(r"\n(?!  )", " ", super().__str__())


class InputError(AxionError, ValueError):
    """An input has the wrong shape, bands, units, range or file layout."""


class WeightsError(AxionError, RuntimeError):
    """Model weights cannot be found, read, verified or matched to the model."""


class OutputError(AxionError, OSError):
    """An output cannot be written: it exists already, or the disk refuses."""


class UntrainedHeadWarning(UserWarning):
    """A correcting head was never trained: its output is its input unchanged."""


def meant(word: object, names: Iterable[str], cutoff: float = 0.6) -> str:
    """A question with the one of the names that a word is nearest to, for messages; empty where it is near to none."""
    close = difflib.get_close_matches(str(word), list(names), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[object]) -> str:
    """Names joined by commas, for messages."""
    return ", ".join(str(name) for name in names)


def first_line(error: BaseException) -> str:
    """What another library's error says, for messages: its first line, cut to a readable length."""
    line = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
    return line if len(line) <= 200 else f"{line[:197]}..."


def counted(number: int | str, noun: str) -> str:
    """A number and its noun, for messages: 1 tile, 2 tiles."""
    return f"{number} {noun}{'' if str(number) == '1' else 's'}"
