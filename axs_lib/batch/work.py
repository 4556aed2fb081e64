"""What one worker of a batch does: hash an item's inputs, run the model on it unless that is done, write the output.

The output is whole or not there; whatever goes wrong with an item ends in its ``Outcome`` and not in the worker.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from axs_lib import __version__
from axs_lib.batch.items import Item
from axs_lib.batch.manifest import OVERWRITE, RESERVED, Record, Status, lock_inode
from axs_lib.errors import AxionError, InputError, OutputError
from axs_lib.io.atomic import atomic_write, temporary_folder
from axs_lib.io.files import check_regular, open_regular

_LONGEST_ERROR = 1000

Runner = Callable[[Item, Mapping[str, Path]], Sequence[str]]  # item and paths to write to; what was assumed of it
IMAGE = "image"


@dataclass(frozen=True)
class Job:
    """What all workers of a batch have in common; paths are absolute."""

    # Builds, in the worker, the function that reads an item and writes its outputs to paths where nothing is. It is
    # importable by name, since it travels to the worker.
    make_runner: Callable[[Job], Runner]
    settings: Mapping[str, Any]  # everything but weights and inputs that decides the pixels; plain values
    weights: Mapping[str, str]  # SHA-256 of each weights file
    out: str  # folder of the outputs
    maps: Mapping[str, str] = field(default_factory=dict)  # folders of uncertainty, gate, sar_contribution and stac
    checkpoints: Mapping[str, str] = field(default_factory=dict)  # by the argument of ``build_model`` that takes them
    force: bool = False  # accept values that look like another unit
    format: Literal["npz", "tif"] = "npz"  # of the outputs
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1  # of each worker's CPU arithmetic; the last digits of a result depend on it

    def outputs(self, item: Item) -> dict[str, Path]:
        """Where each of an item's outputs goes, by its name; the image first."""
        folders = {IMAGE: self.out, **self.maps}
        endings = {name: "json" if name == "stac" else self.format for name in folders}
        return {name: Path(folder, f"{item.id}.{endings[name]}") for name, folder in folders.items()}

    def key(self, item: Item, hashes: Mapping[str, str]) -> str:
        """What an output is made from, in one hash."""
        whole = [dict(hashes), dict(item.metadata), dict(self.weights), dict(self.settings), self.format]
        return hashlib.sha256(_json(whole).encode()).hexdigest()


@dataclass(frozen=True)
class Task:
    """One item to do."""

    item: Item
    lock: int  # inode of the folder's lock, by which the worker knows that the folder is still the one of its job
    ours: frozenset[str] = frozenset()  # paths of outputs that are this batch's own, and may be replaced
    done_as: str = ""  # key under which the manifest has it as done
    # What each output then held: a job of other settings may have replaced it and been killed before it could take
    # note, so that the key alone proves nothing.
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    id: str  # of the item
    record: Record | None = None  # for the manifest; None where the item was done already, or the job cannot go on
    stop: str = ""  # why the whole job cannot go on


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
        files = item.files
        made: dict[str, Any] = {}  # what the record says of it

        def record(status: Status, error: str = "") -> Record:
            return make_record(job, task, status, error, seconds=time.perf_counter() - start, **made)

        if lock_inode(job.out) != task.lock:
            return Outcome(item.id, stop=f"{job.out} was removed or replaced while the job ran")
        try:
            stamps = [_stamp(path) for path in files.values()]
            made["hashes"] = hashes = {role: _sha256(path) for role, path in files.items()}
            if task.done_as and task.done_as == job.key(item, hashes):
                with contextlib.suppress(InputError):  # an output that cannot be read is made again
                    if {path: _sha256(path) for path in task.sha256} == task.sha256:
                        return Outcome(item.id)
            _check_places(job, task)
            if self._runner is None:
                try:
                    self._runner = job.make_runner(job)
                except Exception as error:  # no item is at fault, and the next one would find the same
                    return Outcome(item.id, stop=f"the model cannot be built: {_in_words(error)}")
            with temporary_folder(job.out) as folder:
                # A tree like that of the outputs, so that a STAC Item links to its files.
                outputs = job.outputs(item)
                places = {name: folder / path.relative_to(path.anchor) for name, path in outputs.items()}
                for path in places.values():
                    path.parent.mkdir(parents=True, exist_ok=True)
                made["notes"] = self._runner(item, places)
                if [_stamp(path) for path in files.values()] != stamps:
                    raise InputError(f"{' or '.join(files.values())} changed while it was read; run the batch again")
                size = places[IMAGE].stat().st_size
                written = {str(path): _sha256(str(places[name])) for name, path in outputs.items()}
                if lock_inode(job.out) != task.lock:  # nothing is written to a folder that is another job's
                    raise OutputError(f"{job.out} was removed or replaced while the job ran")
                for name, path in reversed(outputs.items()):  # the image last
                    with atomic_write(path, overwrite=str(path) in task.ours) as temporary:
                        shutil.move(places[name], temporary)
        except Exception as error:
            made.pop("notes", None)
            words = _in_words(error)
            return Outcome(item.id, record("failed", words), stop=words if _disk_full(error) else "")
        made |= {"written": written, "size": size}
        return Outcome(item.id, record("done"))


def make_record(
    job: Job,
    task: Task,
    status: Status,
    error: str = "",
    *,
    seconds: float = 0.0,
    hashes: Mapping[str, str] | None = None,  # of the inputs, by their role
    worker: str | None = None,
    written: Mapping[str, str] | None = None,
    size: int = 0,
    notes: Sequence[str] = (),
) -> Record:
    """The row of the manifest for an item that is finished, one way or the other."""
    item, hashes = task.item, hashes or {}
    outputs = {name: str(path) for name, path in job.outputs(item).items()}
    if status not in ("started", "done"):  # what is there of an earlier run is still this batch's own
        outputs = {name: path for name, path in outputs.items() if path in task.ours and os.path.lexists(path)}
    maps = {name: {"path": path, "sha256": (written or {}).get(path, "")} for name, path in outputs.items()}
    image = maps.pop(IMAGE, None)
    return Record(
        id=item.id,
        s1=item.s1,
        opt_v2=item.opt_v2,
        mask=item.mask,
        metadata=_json(dict(item.metadata)),
        **{f"{role}_sha256": hashes.get(role, "") for role in ("s1", "opt_v2", "mask")},
        weights=_json(dict(job.weights)),
        settings=_json(dict(job.settings)),
        key=job.key(item, hashes) if status == "done" else "",
        status=status,
        error=error,
        notes="; ".join(notes),
        seconds=round(seconds, 3),
        worker=worker or f"{socket.gethostname()}:{os.getpid()}",
        device=job.device,
        output=f"{item.id}.{job.format}" if image else "",
        output_sha256=image["sha256"] if image else "",
        output_bytes=size,
        maps=_json(maps),
        version=__version__,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    )


def _check_places(job: Job, task: Task) -> None:
    """Check that the outputs stay in their folders and replace nothing that is not the batch's own."""
    if task.item.id.partition("/")[0] in RESERVED:
        raise InputError(f"the id {task.item.id!r} stands for a file of the manifest; rename the tile")
    for name, output in job.outputs(task.item).items():
        root = Path(job.maps.get(name, job.out))
        if Path(os.path.realpath(output.parent)) != Path(os.path.realpath(root)) / output.parent.relative_to(root):
            raise OutputError(f"{output.parent} leads through a symbolic link, which is never written through")
        if os.path.lexists(output) and str(output) not in task.ours:
            raise OutputError(
                f"{output} exists already and the manifest does not account for it; move it away, or add {OVERWRITE} if"
                " it may be replaced"
            )


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _stamp(path: str) -> tuple[int, ...]:
    status = check_regular(path).stat()
    if status.st_size == 0:  # also the files of /proc, some of which are waited for
        raise InputError(f"{path} is empty (0 bytes); write it again")
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
