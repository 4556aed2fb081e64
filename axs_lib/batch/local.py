"""Workers on this machine: one process each, started fresh, with a pipe to the process that hands out the work.

In: a job and the number of workers. Out: outcomes, and the news that a process has died. A worker ends when its
supervisor does, however that ended, so no orphan writes into a folder that another job has taken over.
"""

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

from axs_lib.batch.supervise import Death
from axs_lib.batch.work import Job, Outcome, Task, Worker
from axs_lib.errors import InputError, UntrainedHeadWarning

_SPAWN = multiprocessing.get_context(
    "spawn"
)  # a fork would copy the threads' locks, and CUDA does not survive it


@dataclass
class _Seat:
    process: SpawnProcess
    pipe: Connection


class LocalCrew:
    """Worker processes on this machine.

    Args:
        job: what they do.
        workers: their number; by default as many as the cores or GPUs have room for.
        gpus_per_worker: share of a GPU that a worker takes, up to 1; 0 is CPU workers.

    Raises:
        InputError: GPU workers where there is no GPU.
    """

    def __init__(self, job: Job, workers: int | None = None, gpus_per_worker: float = 0.0) -> None:
        self._job = job
        self._share = gpus_per_worker
        self._gpus = visible_gpus() if gpus_per_worker > 0 else []
        if gpus_per_worker > 0 and not self._gpus:
            raise InputError(
                "--gpus-per-worker asks for GPU workers and there is no CUDA GPU here; leave it out"
            )
        room = math.floor(len(self._gpus) / gpus_per_worker) if self._gpus else cores() // job.threads
        self._size = workers or max(1, room)
        self._seats: dict[int, _Seat] = {}

    def start(self) -> int:
        """The number of seats."""
        return self._size

    def hire(self, seat: int) -> None:
        """Start a process; the one before it on this seat is dead."""
        if seat in self._seats:
            _end(self._seats.pop(seat))
        ours, theirs = _SPAWN.Pipe()
        gpu = self._gpus[math.floor(seat * self._share) % len(self._gpus)] if self._gpus else None
        process = _SPAWN.Process(target=_work, args=(self._job, theirs, gpu), daemon=True)
        # Ctrl-C reaches every process of the terminal; the supervisor alone answers it. The mask is inherited.
        resource_tracker.ensure_running()  # which otherwise lifts the mask on its own first start
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
            self._seats[seat] = _Seat(process, ours)
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def give(self, seat: int, task: Task) -> None:
        """Send a task; a dead worker does not take it, which ``wait`` reports."""
        with contextlib.suppress(OSError):
            self._seats[seat].pipe.send(task)

    def wait(self, seats: Collection[int]) -> list[tuple[int, Outcome | Death]]:
        """Outcomes and deaths, at least one."""
        there = {seat: self._seats[seat] for seat in seats}
        handles = [handle for each in there.values() for handle in (each.pipe, each.process.sentinel)]
        ready = set(wait(handles))
        return [
            (seat, _outcome(each))
            for seat, each in there.items()
            if ready & {each.pipe, each.process.sentinel}
        ]

    def dismiss(self) -> None:
        """End all processes; outputs are atomic, so this harms none."""
        while self._seats:
            _end(self._seats.popitem()[1])


def _outcome(seat: _Seat) -> Outcome | Death:
    """What a worker says, or how it died."""
    with contextlib.suppress(EOFError, OSError):
        if seat.pipe.poll():  # also what it said before it died
            outcome: Outcome = seat.pipe.recv()
            return outcome
    seat.process.join()
    code = seat.process.exitcode or 0
    if code >= 0:
        return Death(f"it ended with exit code {code}")
    name = signal.Signals(-code).name
    return Death(f"killed by {name}" + (", which is what a lack of memory does" if name == "SIGKILL" else ""))


def _end(seat: _Seat) -> None:
    seat.process.kill()
    seat.process.join()
    seat.process.close()
    seat.pipe.close()


def _work(job: Job, pipe: Connection, gpu: str | None) -> None:
    """The life of a worker process."""
    threading.Thread(target=_die_with_supervisor, daemon=True).start()
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


def _die_with_supervisor() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls each GPU that this process may use."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]
