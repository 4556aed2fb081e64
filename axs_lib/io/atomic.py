"""Atomic output files: a reader sees the whole new file or none of it; nothing is overwritten by accident.

In: the path of an output and whether it may replace an existing file. Out: a temporary path in the same folder
to write to, which becomes the output only when the block ends without an exception.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from axs_lib.errors import AxionError, OutputError

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
    errno.EACCES: "permission denied: choose a folder you may write to",
    errno.EPERM: "permission denied: choose a folder you may write to",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of its path is a file, not a folder: choose another folder",
    errno.EEXIST: "a part of its path is a file, not a folder: choose another folder",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EIO: "the disk reported an input/output error",
    errno.EFBIG: "the file is too large for this file system",
}


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Check, before any long computation, that an output may be written.

    Args:
        path: where the output will go.
        overwrite: whether an existing regular file may be replaced.

    Returns:
        The path with symbolic links resolved.

    Raises:
        OutputError: the path exists already and ``overwrite`` is false, or it is a folder or a special file.
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file to write")
    if target.exists() and not target.is_file():
        raise OutputError(f"{path} is not a regular file: give the name of a file to write")
    if target.exists() and not overwrite:
        raise OutputError(_exists(path))
    return target


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; put it in place when the block succeeds.

    The temporary file has the same suffix. It is flushed to disk before it takes the output's name, and
    removed when the block raises. Without ``overwrite`` a file that appears at ``path`` in the meantime is
    kept.

    Args:
        path: the output; its folder is created.
        overwrite: whether an existing file may be replaced.

    Yields:
        The path of an empty temporary file.

    Raises:
        OutputError: the output exists, or the disk refuses (full, no permission, read-only).
    """
    target = check_output(path, overwrite)
    temporary = target.with_name(f".{target.stem[:100]}.{secrets.token_hex(6)}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise _refused(path, error) from error
    try:
        yield temporary
        _flush(temporary)
        _put_in_place(temporary, target, overwrite)
    except AxionError:
        raise
    except OSError as error:
        if error.errno in _REASONS:
            raise _refused(path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _put_in_place(temporary: Path, target: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            target.hardlink_to(temporary)  # fails where the target exists, so no other writer's file is lost
            return
        except FileExistsError as error:
            raise OutputError(_exists(target)) from error
        except OSError:  # a file system without hard links
            check_output(target)
    temporary.replace(target)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(path: str | os.PathLike[str]) -> str:
    return f"{path} exists already: choose another name, or pass --overwrite (overwrite=True in Python)"


def _refused(path: str | os.PathLike[str], error: OSError) -> OutputError:
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return OutputError(f"cannot write {path}: {reason}")
