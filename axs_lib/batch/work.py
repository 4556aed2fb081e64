"""What one worker of a batch does: hash an item's inputs, run the model on it unless that is done, write the output.

In: a ``Job`` (what to run, with which weights, where to write) once, then one ``Task`` at a time. Out: an output file
that is whole or not there, and an ``Outcome``. Whatever goes wrong with an item ends in its outcome and not in the
worker. Both engines use the same worker, so the pixels are the same.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from axs_lib import __version__
from axs_lib.batch.items import Item
from axs_lib.batch.manifest import REBUILD, RESERVED, Record, Status, lock_inode
from axs_lib.errors import AxionError, InputError, OutputError
from axs_lib.io.atomic import atomic_write
from axs_lib.io.files import check_regular, open_regular

_LONGEST_ERROR = 1000

Format = Literal["npz", "tif"]
Device = Literal["cpu", "cuda"]
Runner = Callable[[Item, Path], None]


@dataclass(frozen=True)
class Job:
    """What all workers of a batch have in common.

    Attributes:
        make_runner: builds, in the worker, the function that reads an item and writes its output to a path where
            nothing is; importable by name, since it travels to the worker.
        settings: everything but weights and inputs that decides the pixels; plain values.
        weights: SHA-256 of each weights file.
        checkpoints: files or folders of weights, by the argument of ``build_pipeline`` that takes them; ``adapter``.
        out: absolute folder of the outputs.
        force: whether values that look like another unit are accepted.
        format: of the outputs, ``"npz"`` or ``"tif"``.
        device: ``"cpu"`` or ``"cuda"``.
        threads: of each worker's CPU arithmetic; the last digits of a result depend on it.
    """

    make_runner: Callable[[Job], Runner]
    settings: Mapping[str, Any]
    weights: Mapping[str, str]
    out: str
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    force: bool = False
    format: Format = "npz"
    device: Device = "cpu"
    threads: int = 1

    def output_name(self, item: Item) -> str:
        """An item's output, relative to the folder."""
        return f"{item.id}.{self.format}"

    def output(self, item: Item) -> Path:
        """Where an item's output goes."""
        return Path(self.out, self.output_name(item))

    def key(self, item: Item, hashes: Mapping[str, str]) -> str:
        """What an output is made from, in one hash."""
        whole = [dict(hashes), dict(item.metadata), dict(self.weights), dict(self.settings), self.format]
        return hashlib.sha256(_json(whole).encode()).hexdigest()


@dataclass(frozen=True)
class Task:
    """One item to do.

    Attributes:
        item: the item.
        lock: inode of the folder's lock, by which the worker knows that the folder is still the one of its job.
        replace: whether an output that is there is this batch's own, and may be replaced.
        done_as: key under which the manifest has it as done; empty where it has not.
        output_sha256: what the output then held. A job of other settings may have replaced it and died before it could
            take note, so that the key alone proves nothing.
    """

    item: Item
    lock: int
    replace: bool = False
    done_as: str = ""
    output_sha256: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        id: of the item.
        record: for the manifest; ``None`` where the item was done already, or the job cannot go on.
        stop: why the whole job cannot go on, else empty.
    """

    id: str
    record: Record | None = None
    stop: str = ""


class Worker:
    """Does one task after the other with one model, which is built when the first item needs it."""

    def __init__(self, job: Job) -> None:
        # Before torch is imported: workers that share the cores get in each other's way with more threads.
        os.environ["OMP_NUM_THREADS"] = str(job.threads)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._job = job
        self._runner: Runner | None = None

    def run(self, task: Task) -> Outcome:
        """Do a task; every failure is an outcome."""
        item, job, start = task.item, self._job, time.perf_counter()
        hashes: dict[str, str] = {}
        if lock_inode(job.out) != task.lock:
            return Outcome(item.id, stop=f"{job.out} was removed or replaced while the job ran")
        try:
            stamps = [_stamp(path) for path in item.paths]
            hashes = {path: _sha256(path) for path in item.paths}
            if task.done_as and task.done_as == job.key(item, _named(item, hashes)):
                with contextlib.suppress(InputError):  # an output that cannot be read is made again
                    if _sha256(str(job.output(item))) == task.output_sha256:
                        return Outcome(item.id)
            _check_place(job, task)
            if self._runner is None:
                try:
                    self._runner = job.make_runner(job)
                except Exception as error:  # no item is at fault, and the next one would find the same
                    return Outcome(item.id, stop=f"the model cannot be built: {_in_words(error)}")
            with atomic_write(job.output(item), overwrite=task.replace) as temporary:
                self._runner(item, temporary)
                if [_stamp(path) for path in item.paths] != stamps:
                    raise InputError(
                        f"{' or '.join(item.paths)} changed while it was read; run the batch again"
                    )
                written, size = _sha256(str(temporary)), temporary.stat().st_size
                if lock_inode(job.out) != task.lock:  # nothing is written to a folder that is another job's
                    raise OutputError(f"{job.out} was removed or replaced while the job ran")
        except Exception as error:
            seconds = time.perf_counter() - start
            record = make_record(job, task, "failed", _in_words(error), seconds=seconds, hashes=hashes)
            return Outcome(item.id, record, stop=_in_words(error) if _disk_full(error) else "")
        seconds = time.perf_counter() - start
        record = make_record(
            job, task, "done", seconds=seconds, hashes=hashes, output_sha256=written, output_bytes=size
        )
        return Outcome(item.id, record)


def make_record(
    job: Job,
    task: Task,
    status: Status,
    error: str = "",
    *,
    seconds: float = 0.0,
    hashes: Mapping[str, str] | None = None,
    worker: str | None = None,
    output_sha256: str = "",
    output_bytes: int = 0,
) -> Record:
    """The row of the manifest for an item that is finished, one way or the other."""
    item = task.item
    named = _named(item, hashes or {})
    ours = status in ("started", "done") or (task.replace and os.path.lexists(job.output(item)))
    return Record(
        id=item.id,
        s1=item.s1,
        opt_v2=item.opt_v2,
        metadata=_json(dict(item.metadata)),
        s1_sha256=named.get("s1", ""),
        opt_v2_sha256=named.get("opt_v2", ""),
        weights=_json(dict(job.weights)),
        settings=_json(dict(job.settings)),
        key=job.key(item, named) if status == "done" else "",
        status=status,
        error=error,
        seconds=round(seconds, 3),
        worker=worker or f"{socket.gethostname()}:{os.getpid()}",
        device=job.device,
        output=job.output_name(item) if ours else "",
        output_sha256=output_sha256,
        output_bytes=output_bytes,
        version=__version__,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    )


def _check_place(job: Job, task: Task) -> None:
    """Check that an output stays in the folder and replaces nothing that is not the batch's own."""
    output = job.output(task.item)
    if task.item.id.partition("/")[0] in RESERVED:
        raise InputError(f"the id {task.item.id!r} stands for a file of the manifest; rename the tile")
    if (
        Path(os.path.realpath(output.parent))
        != Path(os.path.realpath(job.out), job.output_name(task.item)).parent
    ):
        raise OutputError(f"{output.parent} leads through a symbolic link, which is never written through")
    if os.path.lexists(output) and not task.replace:
        raise OutputError(
            f"{output} exists already and the manifest does not account for it; move it away, or add {REBUILD} if it"
            " is an output of this batch"
        )


def _named(item: Item, hashes: Mapping[str, str]) -> dict[str, str]:
    """Hashes by the role of the file."""
    roles = {"s1": item.s1, "opt_v2": item.opt_v2}
    return {role: hashes[path] for role, path in roles.items() if path is not None and path in hashes}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _stamp(path: str) -> tuple[int, ...]:
    status = check_regular(path).stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _sha256(path: str) -> str:
    with open_regular(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _in_words(error: Exception) -> str:
    words = str(error) if isinstance(error, AxionError) else f"{type(error).__name__}: {error}"
    return words[:_LONGEST_ERROR]


def _disk_full(error: BaseException | None) -> bool:
    """Whether the reason is one that every further item would meet, too."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
