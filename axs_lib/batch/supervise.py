"""Hand out the items of a batch to workers, see to it that none is lost, and keep the manifest.

An item whose worker process ends goes to a new worker once; if that one ends, too, it is recorded as crashed and the
batch goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from axs_lib.batch.items import Item
from axs_lib.batch.manifest import Manifest, Record, open_manifest
from axs_lib.batch.work import IMAGE, Job, Outcome, Task, make_record
from axs_lib.errors import AxionError, InputError, OutputError
from axs_lib.progress import track

ATTEMPTS = 2  # of an item whose worker ends
EXITS_IN_A_ROW = 20  # without an item done between them: then it is not the items


@dataclass(frozen=True)
class WorkerExit:
    """A worker process has ended in the middle of a task, for this cause as far as it is known."""

    cause: str


class WorkerPool(Protocol):
    """Numbered slots; each has one worker at a time, which does one task at a time."""

    def open(self) -> int:
        """Make ready; the number of slots."""

    def start(self, slot: int) -> None:
        """Start a worker on a slot that has none, or whose worker has ended."""

    def submit(self, slot: int, task: Task) -> None:
        """Let the worker begin a task; one that has ended already is reported by ``wait``."""

    def wait(self, slots: Collection[int]) -> list[tuple[int, Outcome | WorkerExit]]:
        """Wait until something happened on at least one of these slots, and say what."""

    def shutdown(self) -> None:
        """End all workers at once, also in the middle of a task."""


@dataclass
class Summary:
    """What became of the items."""

    total: int
    done: int = 0  # in this run
    kept: int = 0  # done before, from the same inputs, weights and settings
    failed: list[Record] = field(default_factory=list)  # or crashed, in this run
    notes: set[str] = field(default_factory=set)  # the manifest's, of its items


def run_batch(
    job: Job,
    items: Sequence[Item],
    pool: WorkerPool,
    *,
    fail_fast: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Do what is missing or changed of ``items``, each id once; each output that is then counted as done is there.

    The ``pool`` is shut down when the call ends, also by Ctrl-C; ``fail_fast`` stops at the first item that fails;
    ``overwrite`` replaces outputs that the manifest does not account for, or where it cannot be read.

    Raises OutputError: the folder is another job's, holds files of others, was removed in the meantime, or the disk is
    full; the manifest is kept; or InputError: an output would replace an input, or the manifest is damaged; or
    AxionError: the model cannot be built, or the workers keep ending.
    """
    _check_outputs(job, items)
    summary = Summary(len(items))
    kept: set[str] = set()
    outputs = (path for item in items for path in job.outputs(item).values())
    with open_manifest(Path(job.out), outputs, overwrite=overwrite) as manifest:
        tasks = _tasks(job, items, manifest, overwrite)
        with contextlib.closing(supervise(job, pool, tasks, len(items))) as outcomes:
            for outcome in track(outcomes, "batch", enabled=progress, total=len(items)):
                if outcome.record is not None:
                    # Where the job cannot go on, a full disk may refuse the record, too.
                    with contextlib.suppress(OutputError) if outcome.stop else contextlib.nullcontext():
                        manifest.append(outcome.record)
                        if outcome.record.status == "done":
                            summary.done += 1
                        else:
                            summary.failed.append(outcome.record)
                elif not outcome.stop:
                    summary.kept += 1
                    kept.add(outcome.id)
                if outcome.stop:
                    finished = f"{summary.done + summary.kept} of {summary.total} items are done"
                    kind = AxionError if outcome.record is None else OutputError
                    raise kind(f"{outcome.stop}; {finished} and recorded in {job.out}, run the command again to go on")
                if fail_fast and summary.failed:
                    break
        manifest.check_lock()
        for item in items:
            record = manifest.records.get(item.id)
            if record is None or record.status != "done" or _is_there(job, item, record):
                continue
            error = "its output was removed or changed after it was written; run the batch again"
            lost = make_record(job, Task(item, manifest.lock, frozenset(record.outputs(job.out))), "failed", error)
            manifest.append(lost)
            summary.failed.append(lost)
            summary.kept -= item.id in kept
            summary.done -= item.id not in kept
        summary.notes = {manifest.records[item.id].notes for item in items if item.id in manifest.records}
    return summary


def supervise(job: Job, pool: WorkerPool, tasks: Iterator[Task], count: int) -> Generator[Outcome, None, None]:
    """Let a pool do ``count`` tasks; outcomes come as they are ready, exactly one a task. Closing it ends the pool."""
    again: list[Task] = []
    busy: dict[int, Task] = {}
    exits, in_a_row = Counter[str](), 0

    def occupy(slot: int, *, fresh: bool) -> None:
        task = again.pop() if again else next(tasks, None)
        if task is not None:
            if fresh:
                pool.start(slot)
            pool.submit(slot, task)
            busy[slot] = task

    try:
        for slot in range(min(pool.open(), count)):
            occupy(slot, fresh=True)
        while busy:
            for slot, result in pool.wait(busy.keys()):
                task = busy.pop(slot)
                if isinstance(result, Outcome):
                    in_a_row = 0
                    yield result  # and is on record before the worker gets another
                    occupy(slot, fresh=False)
                    continue
                in_a_row += 1
                if in_a_row >= EXITS_IN_A_ROW:
                    raise AxionError(
                        f"{in_a_row} workers ended one after the other ({result.cause}); the machine's memory may be"
                        " too small: use fewer --workers or a smaller --variant, and run the batch again"
                    )
                exits[task.item.id] += 1
                crashed = exits[task.item.id] >= ATTEMPTS
                if not crashed:
                    again.append(task)
                occupy(slot, fresh=True)
                if crashed:
                    error = f"its worker ended {ATTEMPTS} times: {result.cause}"
                    yield Outcome(task.item.id, make_record(job, task, "crashed", error, worker=""))
    finally:
        pool.shutdown()


def _tasks(job: Job, items: Iterable[Item], manifest: Manifest, overwrite: bool) -> Iterator[Task]:
    """What there is to do; a first output is on record before it is begun, so that a kill leaves it the batch's."""
    for item in items:
        wanted = {str(path) for path in job.outputs(item).values()}
        record = manifest.records.get(item.id)
        known = {} if record is None else record.outputs(job.out)
        if record is not None and record.status == "done" and known.keys() == wanted:
            yield Task(item, manifest.lock, frozenset(wanted), record.key, known)
            continue
        task = Task(item, manifest.lock, frozenset(wanted) if overwrite else frozenset(known) & wanted)
        foreign = [path for path in wanted - task.ours if os.path.lexists(path)]
        if not foreign and not wanted <= known.keys():
            manifest.append(make_record(job, task, "started", worker=""), durable=False)
        yield task


def _check_outputs(job: Job, items: Sequence[Item]) -> None:
    weights = [str(file) for path in map(Path, job.checkpoints.values()) for file in (path, *path.glob("*.json"))]
    images = [path for item in items for path in item.files.values()]
    inputs = set(map(os.path.realpath, images + weights))
    for item in items:
        outputs = [os.path.realpath(path) for path in job.outputs(item).values()]
        if len(set(outputs)) < len(outputs):
            raise InputError(f"two outputs of {item.id} have one name; give each map a folder of its own")
        for output in inputs.intersection(outputs):
            raise InputError(f"the output of {item.id} would replace the input {output}; choose another --out")


def _is_there(job: Job, item: Item, record: Record) -> bool:
    """Whether the outputs that are on record as done are there."""
    try:
        size = job.outputs(item)[IMAGE].lstat().st_size
    except OSError:
        return False
    return size == record.output_bytes and all(map(os.path.lexists, record.outputs(job.out)))
