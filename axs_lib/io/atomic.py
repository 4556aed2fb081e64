"""Atomic output files: a reader sees the whole new file or none of it; nothing is overwritten by accident."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from axs_lib.errors import OutputError
from axs_lib.io.files import PathLike
from axs_lib.io.formats import ALONG
from axs_lib.progress import logger

if sys.platform != "win32":  # which has no flock; what a killed process left behind stays there
    import fcntl

_DENIED = "permission denied: choose a folder you may write to"
_NO_FOLDER = "a part of its path is a file, not a folder: choose another folder"
_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ELOOP: "it is a symbolic link, or leads through a circle of them: choose another folder",
    errno.EIO: "the disk reported an input/output error",
    errno.EFBIG: "the file is too large for this file system",
}
_SIDECARS = (".msk", ".aux.xml", ".ovr")  # of a GeoTIFF, which GDAL takes for parts of it
_TEMPORARY = re.compile(r"\.axs-[0-9a-f]{16}\.tmp")


@contextlib.contextmanager
def refusals(path: PathLike) -> Iterator[None]:
    """Make an OutputError of what the disk refuses about a path, in words that say what to do."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, RuntimeError) as error:
        raise _refused(path, error) from error


def check_output(path: PathLike, overwrite: bool = False) -> Path:
    """The path of an output, the links of its folder resolved, checked before any long computation.

    Raises OutputError: it is a symbolic link, a folder or a special file; it exists and ``overwrite`` is false; its
    folder, or the nearest one above that is there, cannot be written to; or it is no valid path.
    """
    mode = 0
    if os.fspath(path).lower().endswith(tuple(f".{end}" for end in ALONG)):
        raise OutputError(f"{path} has a name as of a file that GDAL reads along with an image: give it another ending")
    try:
        with refusals(path):
            target = Path(path)
            target = target.parent.resolve() / target.name
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                mode = target.lstat().st_mode
            folder = next(each for each in target.parents if each.exists())
            tempfile.TemporaryFile(dir=folder).close()
    except ValueError as error:
        raise OutputError(f"{str(path)!r} is no valid path ({error}): give the name of a file to write") from None
    if stat.S_ISLNK(mode):
        raise OutputError(f"{path} is a symbolic link, which is never written through: name its file, or remove it")
    if mode and not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise OutputError(f"{path} is {kind}: give the name of a file to write")
    old = next((f"{path}{end}" for end in ("", *_SIDECARS) if os.path.lexists(f"{target}{end}")), None)
    if old and not overwrite:
        raise OutputError(f"{old} exists already: choose another name, or pass --overwrite (overwrite=True in Python)")
    return target


@contextlib.contextmanager
def atomic_write(path: PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Give a path to write to, at which nothing is yet; put the file in the output's place when the block succeeds.

    It has the output's name and lies in a folder of its own beside the output, whose folder is created. File and folder
    are flushed to disk when the block ends. Without ``overwrite`` a file that appears in the meantime is kept. Raises
    OutputError: see ``check_output``; or the disk refuses (full, no permission, read-only).
    """
    with atomic_writes(overwrite) as place:
        yield place(path)


@contextlib.contextmanager
def atomic_writes(overwrite: bool = False) -> Iterator[Callable[[PathLike], Path]]:
    """As ``atomic_write`` for several outputs, one after the other: gives a function from output to path to write to.

    When the block succeeds and all files are on disk, they are put in their outputs' places, the first one last.
    """
    target, files = Path(), dict[Path, Path]()  # the output in hand, and where each is written
    with contextlib.ExitStack() as stack:

        def place(path: PathLike) -> Path:
            nonlocal target
            target = check_output(path, overwrite)
            files[target] = stack.enter_context(temporary_folder(target.parent)) / target.name
            return files[target]

        try:
            yield place
            for target in files:
                _flush(files[target], os.O_RDWR)
            for target in reversed(files):
                _put_in_place(files[target], target, overwrite)
                logger.info("wrote %s", target)
                with contextlib.suppress(OSError):  # not every file system can make the new name durable, too
                    _flush(target.parent, os.O_RDONLY)
        except OSError as error:
            if error.errno in _REASONS:  # an OutputError has none
                raise _refused(target, error) from error
            raise


def write_json(path: PathLike, value: object, overwrite: bool = False, **how: Any) -> None:
    """Write a value as JSON, as ``atomic_write`` does; ``how`` is for ``json.dumps``."""
    with atomic_write(path, overwrite) as temporary:
        temporary.write_text(json.dumps(value, indent=2, **how) + "\n", encoding="utf-8")


def write_torch(path: Path, value: object) -> None:
    """Write what ``torch.save`` does to a path of ``atomic_write``: of a full disk torch itself makes RuntimeErrors."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    path.write_bytes(buffer.getbuffer())


@contextlib.contextmanager
def locked_folder(folder: Path, name: str, job: str) -> Iterator[int]:
    """Hold a folder, made if need be, for a job by a file in it, whose inode it gives; OutputError: held already."""
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / name, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace") or "unknown"
            raise OutputError(
                f"{folder} is in use by another {job} ({owner}); wait until it ends, or choose another --out"
            ) from None
        # The name of the owner is a courtesy, which a full disk may refuse and a file of two names is not given: what
        # has the other one is not to be changed.
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_nlink == 1:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_folder(beside: PathLike | None = None) -> Iterator[Path]:
    """A folder of an unpredictable name that only this user may enter, by default in the system's; removed at the end.

    The lock of its process tells it from those of killed processes, which the first one of a process in a folder
    removes. Raises OutputError: the disk refuses.
    """
    parent = Path(tempfile.gettempdir() if beside is None else beside)
    with refusals(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers_once(parent.resolve())
        while True:
            folder = parent / f".axs-{secrets.token_hex(8)}.tmp"
            folder.mkdir(mode=0o700)
            lock = _lock(folder, wait=True)
            if folder.exists():  # else another process took it for a leftover before it was locked
                break
            _unlock(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def remove_leftovers(folder: PathLike) -> None:
    """Remove the temporary folders in a folder that no living process holds; where none can be locked, all stay."""
    try:
        names = [entry.path for entry in os.scandir(folder) if _TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return
    for name in names:
        lock = _lock(Path(name), wait=False)
        if lock is not None:
            shutil.rmtree(name, ignore_errors=True)
            _unlock(lock)


# A folder of many outputs is listed once a process.
_remove_leftovers_once = functools.lru_cache(maxsize=1000)(remove_leftovers)


def _lock(folder: Path, wait: bool) -> int | None:
    """A descriptor that locks a folder; ``None`` where another process has locked it, or it cannot be locked."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _put_in_place(temporary: Path, target: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            target.hardlink_to(temporary)  # fails where the target exists, so no other writer's file is lost
            return
        except OSError:  # it exists, or the file system has no hard links
            check_output(target)
    temporary.replace(target)
    for end in _SIDECARS:
        Path(f"{target}{end}").unlink(missing_ok=True)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: PathLike, error: OSError | RuntimeError) -> OutputError:
    number = getattr(error, "errno", None) or 0
    reason = _REASONS.get(number) or getattr(error, "strerror", None) or str(error)
    return OutputError(f"cannot write {path}: {reason}")
