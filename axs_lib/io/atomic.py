"""Atomic output files: a reader sees the whole new file or none of it; nothing is overwritten by accident.

In: the path of an output and whether it may replace an existing file. Out: a temporary path in the same folder
to write to, which becomes the output only when the block ends without an exception. Nothing is written through links.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from axs_lib.errors import AxionError, OutputError

try:
    import fcntl
except ImportError:  # Windows, where leftovers stay
    fcntl = None  # type: ignore[assignment]

_PREFIX, _FOLDER = ".axs-tmp.", ".d"
_CLEANED: set[Path] = set()

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


def check_output(
    path: str | os.PathLike[str], overwrite: bool = False, *, within: str | os.PathLike[str] | None = None
) -> Path:
    """Check, before any long computation, that an output may be written.

    Args:
        path: where the output will go.
        overwrite: whether an existing regular file may be replaced.
        within: a folder; no folder below it on the way to the output may be a link.

    Returns:
        The absolute path.

    Raises:
        OutputError: the path is a symbolic link, a folder or a special file, exists already and ``overwrite`` is false,
            or leads through a link below ``within``.
    """
    try:
        target = Path(path).parent.resolve() / Path(path).name
        linked, there, regular = target.is_symlink(), target.exists(), target.is_file()
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {os.fspath(path)!r}: {error}") from error
    if linked:
        raise OutputError(
            f"{path} is a symbolic link, through which nothing is written: remove it, or name another file"
        )
    if there and not regular:
        kind = "a folder" if target.is_dir() else "not a regular file"
        raise OutputError(f"{path} is {kind}: give the name of a file to write")
    if within is not None and not target.is_relative_to(Path(within).resolve()):
        raise OutputError(f"{path} leads out of {within} through a symbolic link; remove the link")
    if there and not overwrite:
        raise OutputError(_exists(path))
    return target


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], overwrite: bool = False, *, within: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; put it in place when the block succeeds.

    The temporary file has the same suffix and a name that nobody can foresee. It is flushed to disk before it takes the
    output's name, and removed when the block raises; what a killed process left is removed by the next one that writes
    to the folder. Without ``overwrite`` a file that appears at ``path`` in the meantime is kept.

    Args:
        path: the output; its folder is created.
        overwrite: whether an existing file may be replaced.
        within: as for ``check_output``.

    Yields:
        The path of an empty temporary file.

    Raises:
        OutputError: the output exists or is a link, or the disk refuses (full, no permission, read-only).
    """
    target = check_output(path, overwrite, within=within)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent)
        owner = _own_file(target.parent, target.suffix)
    except OSError as error:
        raise _refused(path, error) from error
    temporary, descriptor = owner
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
        os.close(descriptor)


@contextlib.contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """A folder for temporary files, in the folder ``beside`` (default: the system's); removed at the end.

    What a killed process left there is removed by the next one.

    Raises:
        OutputError: the disk refuses.
    """
    parent = Path(tempfile.gettempdir()) if beside is None else beside
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(parent)
        owner, descriptor = _own_file(parent, "")
        folder = owner.with_name(owner.name + _FOLDER)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise _refused(parent, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        owner.unlink(missing_ok=True)
        os.close(descriptor)


def _own_file(folder: Path, suffix: str) -> tuple[Path, int]:
    """A new file of this process alone, locked as long as the descriptor is open."""
    while True:
        path = folder / f"{_PREFIX}{secrets.token_hex(8)}{suffix}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if _lock(descriptor) is not False and path.exists():  # else another process took it for a leftover
            return path, descriptor
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of processes that are gone, once a folder and process."""
    if fcntl is None or folder in _CLEANED:
        return
    _CLEANED.add(folder)
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.startswith(_PREFIX) and e.is_file(follow_symlinks=False)]
    for name in names:
        path = folder / name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if _lock(descriptor) is True:
                shutil.rmtree(folder / (name + _FOLDER), ignore_errors=True)
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether a lock could be had, which ends with its process; None on a file system without locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


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
