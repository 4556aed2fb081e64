"""Hand out the items of a batch to workers, see to it that none is lost, and keep the manifest.

In: a job, its items, and a crew of workers (``LocalCrew`` or ``RayCrew``). Out: outputs, the manifest, and a
``Summary`` of what became of the items. An item whose worker dies goes to a new worker once; if that one dies, too, it
is recorded as crashed and the batch goes on.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from axs_lib.batch.items import Item
from axs_lib.batch.manifest import Manifest, Record, open_manifest
from axs_lib.batch.work import Job, Outcome, Task, make_record
from axs_lib.errors import AxionError, InputError, OutputError
from axs_lib.progress import track

ATTEMPTS = 2  # of an item whose worker dies
DEATHS_IN_A_ROW = 20  # without an item done between them: then it is not the items


@dataclass(frozen=True)
class Death:
    """A worker is gone.

    Attributes:
        cause: what is known of why.
    """

    cause: str


class Crew(Protocol):
    """Workers on numbered seats; each seat has one worker at a time, who does one task at a time."""

    def start(self) -> int:
        """Make ready; the number of seats."""

    def hire(self, seat: int) -> None:
        """Put a fresh worker on a seat that has none, or whose worker is dead."""

    def give(self, seat: int, task: Task) -> None:
        """Let the worker begin a task; one that is dead already is reported by ``wait``."""

    def wait(self, seats: Collection[int]) -> list[tuple[int, Outcome | Death]]:
        """Wait until something happened on at least one of these seats, and say what."""

    def dismiss(self) -> None:
        """End all workers at once, also in the middle of a task."""


@dataclass
class Summary:
    """What became of the items.

    Attributes:
        total: number of items.
        done: done in this run.
        kept: done before, from the same inputs, weights and settings.
        failed: records of the items that failed or crashed in this run.
    """

    total: int
    done: int = 0
    kept: int = 0
    failed: list[Record] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Items that the run did not come to."""
        return self.total - self.done - self.kept - len(self.failed)


def run_batch(
    job: Job, items: Sequence[Item], crew: Crew, *, fail_fast: bool = False, progress: bool = False
) -> Summary:
    """Do what is missing or changed.

    Args:
        job: what to run, and the folder of the outputs.
        items: what to run it on, each id once.
        crew: who does it; dismissed when the call ends.
        fail_fast: stop at the first item that fails.
        progress: show a bar on stderr.

    Returns:
        Counts, and the records of what failed.

    Raises:
        OutputError: the folder is another job's or not empty, or the disk is full; the manifest is kept.
        InputError: an output would replace an input.
        AxionError: the model cannot be built, or the workers keep dying.
        KeyboardInterrupt: the user's; workers are ended and the manifest is kept.
    """
    _check_outputs(job, items)
    summary = Summary(len(items))
    with open_manifest(Path(job.out)) as manifest:
        manifest.claim(job.output(item) for item in items)
        tasks = [_task(job, item, manifest.records.get(item.id)) for item in items]
        with contextlib.closing(supervise(job, crew, tasks)) as outcomes:
            for outcome in track(outcomes, "batch", enabled=progress, total=len(tasks)):
                if outcome.stop:
                    with contextlib.suppress(OutputError):  # a full disk may refuse the record, too
                        _take_note(outcome, manifest, summary)
                    raise _stopped(outcome, summary, job)
                _take_note(outcome, manifest, summary)
                if fail_fast and summary.failed:
                    break
    return summary


def supervise(job: Job, crew: Crew, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
    """Let a crew do tasks; outcomes come as they are ready, exactly one a task. Closing the iterator ends the crew.

    Raises:
        AxionError: the workers keep dying.
    """
    waiting, busy = deque(tasks), dict[int, Task]()
    deaths, in_a_row = Counter[str](), 0

    def occupy(seat: int) -> None:
        if waiting:
            busy[seat] = waiting.popleft()
            crew.give(seat, busy[seat])

    try:
        for seat in range(min(crew.start(), len(waiting))):
            crew.hire(seat)
            occupy(seat)
        while busy:
            for seat, result in crew.wait(busy.keys()):
                task = busy.pop(seat)
                if isinstance(result, Outcome):
                    in_a_row = 0
                    yield result  # and is on record before the worker gets another
                    occupy(seat)
                    continue
                in_a_row += 1
                if in_a_row >= DEATHS_IN_A_ROW:
                    raise AxionError(
                        f"{in_a_row} workers died one after the other ({result.cause}); the machine's memory may be too"
                        " small: use fewer --workers or a smaller --variant, and run the batch again"
                    )
                deaths[task.item.id] += 1
                crashed = deaths[task.item.id] >= ATTEMPTS
                if not crashed:
                    waiting.appendleft(task)
                if waiting:
                    crew.hire(seat)
                    occupy(seat)
                if crashed:
                    error = f"its worker died {ATTEMPTS} times: {result.cause}"
                    yield Outcome(task.item.id, make_record(job, task.item, "crashed", error, worker=""))
    finally:
        crew.dismiss()


def _take_note(outcome: Outcome, manifest: Manifest, summary: Summary) -> None:
    record = outcome.record
    if record is not None:
        manifest.append(record)
        if record.status == "done":
            summary.done += 1
        else:
            summary.failed.append(record)
    elif not outcome.stop:
        summary.kept += 1


def _stopped(outcome: Outcome, summary: Summary, job: Job) -> AxionError:
    finished = f"{summary.done + summary.kept} of {summary.total} items are done and recorded in {job.out}"
    kind = AxionError if outcome.record is None else OutputError
    return kind(f"{outcome.stop}; {finished}, run the same command again to go on")


def _task(job: Job, item: Item, record: Record | None) -> Task:
    """What there is to do; the worker finds out whether what is on record as done still holds."""
    output = job.output(item).relative_to(job.out).as_posix()
    if record is None or record.status != "done" or record.output != output:
        return Task(item)
    return Task(item, record.key, record.output_sha256)


def _check_outputs(job: Job, items: Sequence[Item]) -> None:
    inputs = {path for item in items for path in item.paths}
    for item in items:
        output = str(job.output(item).resolve())
        if output in inputs:
            raise InputError(
                f"the output of {item.id} would replace the input {output}; choose another --out"
            )
