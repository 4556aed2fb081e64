"""A pool that cannot work ends the job, and no output replaces an input (what else ends: test_faults.py)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from axs_lib.batch.items import Item
from axs_lib.batch.local import LocalPool
from axs_lib.batch.supervise import EXITS_IN_A_ROW, WorkerExit, run_batch, supervise
from axs_lib.batch.work import Job, Outcome, Task
from axs_lib.errors import AxionError, InputError

from .fakes import FAKE_WEIGHTS, make_runner


class FailingPool:
    """Two workers that end whatever they are given."""

    def __init__(self) -> None:
        self.given: dict[int, Task] = {}
        self.shut_down = 0

    def open(self) -> int:
        return 2

    def start(self, slot: int) -> None:
        pass

    def submit(self, slot: int, task: Task) -> None:
        assert slot not in self.given
        self.given[slot] = task

    def wait(self, slots: Collection[int]) -> list[tuple[int, Outcome | WorkerExit]]:
        assert set(slots) == self.given.keys() and slots
        self.given.clear()
        return [(slot, WorkerExit("killed by SIGKILL")) for slot in slots]

    def shutdown(self) -> None:
        self.shut_down += 1


def test_workers_that_keep_ending_end_the_job(tmp_path: Path) -> None:
    pool = FailingPool()
    tasks = [Task(Item(f"t{number}", f"/in/{number}.npz"), 0) for number in range(100)]
    with pytest.raises(AxionError, match=f"{EXITS_IN_A_ROW} workers ended one after the other"):
        list(supervise(job(tmp_path), pool, iter(tasks), 100))
    assert pool.shut_down == 1


def job(out: Path) -> Job:
    return Job(make_runner, {"stage": "ground", "variant": "fake", "seed": 0}, FAKE_WEIGHTS, str(out))


def test_what_was_assumed_of_items_is_in_the_summary_also_where_they_were_done_before(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("ok")
    made = replace(job(tmp_path / "out"), checkpoints={"checkpoint": str(tmp_path)})  # outputs may lie below weights
    for _ in range(2):
        summary = run_batch(made, [Item("a", str(tmp_path / "a.npz"))], LocalPool(made, 1))
        assert summary.notes == {"the unit is assumed"}


def test_an_output_never_replaces_an_input(tmp_path: Path) -> None:
    """Nor does one that the input, or the weights, are a link to."""
    (tmp_path / "link.npz").symlink_to(tmp_path / "b.npz")
    for name, weights in (("a", {}), ("link", {}), ("c", {"checkpoint": str(tmp_path / "link.npz")})):
        item = Item("a" if name == "a" else "b", str(tmp_path / f"{name}.npz"))
        with pytest.raises(InputError, match="would replace the input"):
            run_batch(replace(job(tmp_path), checkpoints=weights), [item], FailingPool())
    assert [path.name for path in tmp_path.iterdir()] == ["link.npz"]
