"""Files to read: only regular ones are opened, so that no pipe or device makes a command wait for ever.

In: the path of an input. Out: the path, checked, or the open file. Every reader of the library asks here first.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from axs_lib.errors import AxionError, InputError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: str | os.PathLike[str], what: str = "the file", error: type[AxionError] = InputError) -> Path:
    """Check that a path names a regular file, directly or through symbolic links.

    Args:
        path: the file; nothing is opened.
        what: how to call it in an error.
        error: the kind of error to raise.

    Returns:
        The path.

    Raises:
        AxionError: of the kind ``error``: there is no such file, or it is a folder, a named pipe, a device or a socket.
    """
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        raise error(f"{what} {path} does not exist; check the path") from None
    except (OSError, ValueError) as reason:  # ValueError: a NUL in the name
        words = getattr(reason, "strerror", None) or reason
        raise error(f"{what} {str(path)!r} cannot be read: {words}") from None
    _check_mode(mode, path, what, error)
    return Path(path)


def open_regular(
    path: str | os.PathLike[str], what: str = "the file", error: type[AxionError] = InputError
) -> io.BufferedReader:
    """Open a regular file for reading bytes; see ``check_regular``. The check holds for the file that was opened."""
    check_regular(path, what, error)
    try:
        # Without O_NONBLOCK, a pipe that has taken the file's place since would be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as reason:
        raise error(f"{what} {path} cannot be read: {reason.strerror or reason}") from None
    file = os.fdopen(descriptor, "rb")
    try:
        _check_mode(os.fstat(descriptor).st_mode, path, what, error)
    except BaseException:
        file.close()
        raise
    return file


def _check_mode(mode: int, path: str | os.PathLike[str], what: str, error: type[AxionError]) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise error(f"{what} {path} is {kind}; expected a regular file")
