"""Every task has one outcome, whichever worker ends; a pool that cannot work ends the job."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from axs_lib.batch.items import Item
from axs_lib.batch.supervise import EXITS_IN_A_ROW, WorkerExit, run_batch, supervise
from axs_lib.batch.work import Job, Outcome, Task
from axs_lib.errors import AxionError, InputError

from .fakes import FAKE_WEIGHTS, make_runner


class ScriptedPool:
    """Workers whose tasks end as a script says: by item, the ends of its attempts (``ok`` or ``exit``)."""

    def __init__(self, slots: int, script: dict[str, Sequence[str]] | None = None, default: str = "ok") -> None:
        self.slots, self.script, self.default = slots, dict(script or {}), default
        self.started: list[int] = []
        self.given: dict[int, Task] = {}
        self.order: list[str] = []
        self.shut_down = 0

    def open(self) -> int:
        return self.slots

    def start(self, slot: int) -> None:
        self.started.append(slot)

    def submit(self, slot: int, task: Task) -> None:
        assert slot not in self.given and slot in self.started
        self.given[slot] = task
        self.order.append(task.item.id)

    def wait(self, slots: Collection[int]) -> list[tuple[int, Outcome | WorkerExit]]:
        assert set(slots) == self.given.keys() and slots
        results: list[tuple[int, Outcome | WorkerExit]] = []
        for slot, task in list(self.given.items()):
            del self.given[slot]
            ends = self.script.get(task.item.id, ())
            end, self.script[task.item.id] = (ends[0], ends[1:]) if ends else (self.default, ())
            results.append((slot, Outcome(task.item.id) if end == "ok" else WorkerExit("killed by SIGKILL")))
        return results

    def shutdown(self) -> None:
        self.shut_down += 1


def job(out: Path) -> Job:
    return Job(make_runner, {"stage": "ground", "variant": "fake", "seed": 0}, FAKE_WEIGHTS, str(out))


def tasks(count: int) -> list[Task]:
    return [Task(Item(f"t{number}", f"/in/{number}.npz"), 0) for number in range(count)]


def test_every_task_has_one_outcome_and_few_tasks_need_few_workers(tmp_path: Path) -> None:
    pool = ScriptedPool(3)
    outcomes = list(supervise(job(tmp_path), pool, iter(tasks(7)), 7))
    assert sorted(outcome.id for outcome in outcomes) == [f"t{number}" for number in range(7)]
    assert pool.started == [0, 1, 2] and pool.shut_down == 1
    pool = ScriptedPool(3)
    assert len(list(supervise(job(tmp_path), pool, iter(tasks(2)), 2))) == 2 and pool.started == [0, 1]
    assert list(supervise(job(tmp_path), ScriptedPool(3), iter([]), 0)) == []


def test_an_item_is_tried_once_more_at_once_on_a_fresh_worker(tmp_path: Path) -> None:
    pool = ScriptedPool(1, {"t1": ["exit", "ok"], "t2": ["exit", "exit"]})
    outcomes = {outcome.id: outcome for outcome in supervise(job(tmp_path), pool, iter(tasks(4)), 4)}
    assert pool.order == ["t0", "t1", "t1", "t2", "t2", "t3"]
    assert pool.started == [0, 0, 0, 0]
    assert [name for name, outcome in outcomes.items() if outcome.record] == ["t2"]
    crashed = outcomes["t2"].record
    assert crashed is not None and crashed.status == "crashed" and "killed by SIGKILL" in crashed.error


def test_workers_that_keep_ending_end_the_job(tmp_path: Path) -> None:
    pool = ScriptedPool(2, default="exit")
    with pytest.raises(AxionError, match=f"{EXITS_IN_A_ROW} workers ended one after the other"):
        list(supervise(job(tmp_path), pool, iter(tasks(100)), 100))
    assert pool.shut_down == 1


def test_an_output_never_replaces_an_input(tmp_path: Path) -> None:
    item = Item("a", str(tmp_path / "a.npz"))
    with pytest.raises(InputError, match="would replace the input"):
        run_batch(job(tmp_path), [item], ScriptedPool(1))
    assert list(tmp_path.iterdir()) == []
