"""Workers on this machine: one process each, with a pipe to the supervisor, after whose end it does not go on."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from axs_lib.batch.supervise import WorkerExit
from axs_lib.batch.work import Job, Outcome, Task, Worker
from axs_lib.errors import InputError, UntrainedHeadWarning

_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks, and CUDA does not survive it


@dataclass
class _Slot:
    process: SpawnProcess
    pipe: Connection


class LocalPool:
    """Worker processes: ``workers``, by default as many as cores or GPUs have room for; InputError without a GPU."""

    def __init__(self, job: Job, workers: int | None = None, gpus_per_worker: float = 0.0) -> None:
        self._job = job
        self._share = gpus_per_worker
        self._gpus = _visible_gpus() if gpus_per_worker > 0 else []
        if gpus_per_worker > 0 and not self._gpus:
            raise InputError("--gpus-per-worker asks for GPU workers and there is no CUDA GPU here; leave it out")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        room = len(self._gpus) / gpus_per_worker if self._gpus else cores / job.threads
        self._size = workers or max(1, math.floor(room))
        self._slots: dict[int, _Slot] = {}

    def open(self) -> int:
        return self._size

    def start(self, slot: int) -> None:
        if slot in self._slots:
            _end(self._slots.pop(slot))
        ours, theirs = _SPAWN.Pipe()
        gpu = self._gpus[math.floor(slot * self._share) % len(self._gpus)] if self._gpus else None
        process = _SPAWN.Process(target=_work, args=(self._job, theirs, gpu), daemon=True)
        # Ctrl-C reaches every process of the terminal; the supervisor alone answers it. The mask is inherited.
        resource_tracker.ensure_running()  # which otherwise lifts the mask on its own first start
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
            self._slots[slot] = _Slot(process, ours)
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def submit(self, slot: int, task: Task) -> None:
        """A worker that has ended does not take the task, which ``wait`` reports."""
        with contextlib.suppress(OSError):
            self._slots[slot].pipe.send(task)

    def wait(self, slots: Collection[int]) -> list[tuple[int, Outcome | WorkerExit]]:
        there = {slot: self._slots[slot] for slot in slots}
        ready = set(wait([handle for each in there.values() for handle in (each.pipe, each.process.sentinel)]))
        return [(slot, _outcome(each)) for slot, each in there.items() if ready & {each.pipe, each.process.sentinel}]

    def shutdown(self) -> None:
        """Outputs are atomic, so this harms none."""
        while self._slots:
            _end(self._slots.popitem()[1])


def _outcome(slot: _Slot) -> Outcome | WorkerExit:
    """What a worker reports, or how it ended."""
    with contextlib.suppress(EOFError, OSError):
        if slot.pipe.poll():  # also what it sent before it ended
            return slot.pipe.recv()
    slot.process.join()
    code = slot.process.exitcode or 0
    if code >= 0:
        return WorkerExit(f"it ended with exit code {code}")
    name = signal.Signals(-code).name
    return WorkerExit(f"killed by {name}" + (", which is what a lack of memory does" if name == "SIGKILL" else ""))


def _end(slot: _Slot) -> None:
    slot.process.kill()
    slot.process.join()
    slot.process.close()
    slot.pipe.close()


def _work(job: Job, pipe: Connection, gpu: str | None) -> None:
    """What a worker process runs."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    warnings.simplefilter("ignore")  # what libraries say of themselves, once a worker
    warnings.simplefilter("default", UntrainedHeadWarning)
    worker = Worker(job)
    while True:
        try:
            pipe.send(worker.run(pipe.recv()))
        except (EOFError, OSError):  # no supervisor, no work
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls each GPU that this process may use."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]
