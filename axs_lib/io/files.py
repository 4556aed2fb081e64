"""Files to read: only regular ones are opened, so that no pipe or device makes a command wait for ever."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from axs_lib.errors import AxionError, InputError

PathLike = str | os.PathLike[str]


def paths_of(what: Any) -> list[PathLike] | None:
    """The paths of an input that is a path or several, or None where it is something else."""
    if isinstance(what, str | os.PathLike):
        return [what]
    several = isinstance(what, Sequence) and all(isinstance(each, str | os.PathLike) for each in what)
    return list(what) if several else None


def same_file(one: PathLike, other: PathLike) -> bool:
    """Whether two paths lead to one file that is there."""
    with contextlib.suppress(OSError, ValueError):
        return Path(one).samefile(other)
    return False


def check_kept(outputs: Iterable[Any], *inputs: Any) -> None:
    """InputError where an output is an input, or a file of a folder that is one; images beside weights may be."""
    written = [Path(path) for path in outputs if isinstance(path, str | os.PathLike)]
    for given in (path for each in inputs for path in paths_of(each) or []):
        for path in written:
            beside = [] if path.suffix in (".tif", ".tiff", ".npz") else [path.parent]
            folders = path.absolute().parents if Path(given).suffix == ".SAFE" else beside
            inside = path.is_file() and any(same_file(folder, given) for folder in folders)
            if inside or same_file(given, path):
                where = f"{path}, a file of the input" if inside else "the input"
                raise InputError(f"an output would replace {where} {given}; give the output another name")


_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def check_regular(path: PathLike, what: str = "the file", error: type[AxionError] = InputError) -> Path:
    """Check that a path names a regular file, directly or through links; ``what`` it is called in an ``error``."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        raise error(f"{what} {path} does not exist; check the path") from None
    except (OSError, ValueError) as reason:  # ValueError: a NUL in the name
        words = getattr(reason, "strerror", None) or reason
        raise error(f"{what} {str(path)!r} cannot be read: {words}") from None
    _check_mode(mode, path, what, error)
    return Path(path)


def open_regular(path: PathLike, what: str = "the file", error: type[AxionError] = InputError) -> io.BufferedReader:
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


def read_csv(path: PathLike, what: str) -> tuple[list[str], list[dict[Any, Any]]]:
    """Columns and rows below a header line; bytes that are no UTF-8 are kept, since a file may be called so."""
    try:
        with open_regular(path, what) as file:
            text = file.read().decode("utf-8-sig", "surrogateescape")
        if "\0" in text:
            raise csv.Error("it holds NUL characters")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows: list[dict[Any, Any]] = list(reader)
    except (OSError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV ({error}); expected UTF-8 with a header line") from error
    return list(reader.fieldnames or ()), rows


def check_utf8(path: PathLike, what: str = "the file", error: type[AxionError] = InputError) -> None:
    """Raise ``error`` where the path is no UTF-8, as GDAL and safetensors need it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise error(f"{what} has the path {str(path)!r}, which is no UTF-8; rename the file or its folder") from None


def _check_mode(mode: int, path: PathLike, what: str, error: type[AxionError]) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise error(f"{what} {path} is {kind}; expected a regular file")
