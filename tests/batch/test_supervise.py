"""Every task has one outcome, whoever dies; a crew that cannot work ends the job."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from axs_lib.batch.items import Item
from axs_lib.batch.supervise import DEATHS_IN_A_ROW, Death, run_batch, supervise
from axs_lib.batch.work import Job, Outcome, Task
from axs_lib.errors import AxionError, InputError

from .fakes import FAKE_WEIGHTS, make_runner


class ScriptedCrew:
    """Workers whose tasks end as a script says: by item, the ends of its attempts (``ok`` or ``death``)."""

    def __init__(
        self, seats: int, script: dict[str, Sequence[str]] | None = None, default: str = "ok"
    ) -> None:
        self.seats, self.script, self.default = seats, dict(script or {}), default
        self.hired: list[int] = []
        self.given: dict[int, Task] = {}
        self.order: list[str] = []
        self.dismissed = 0

    def start(self) -> int:
        return self.seats

    def hire(self, seat: int) -> None:
        self.hired.append(seat)

    def give(self, seat: int, task: Task) -> None:
        assert seat not in self.given and seat in self.hired
        self.given[seat] = task
        self.order.append(task.item.id)

    def wait(self, seats: Collection[int]) -> list[tuple[int, Outcome | Death]]:
        assert set(seats) == self.given.keys() and seats
        results: list[tuple[int, Outcome | Death]] = []
        for seat, task in list(self.given.items()):
            del self.given[seat]
            ends = self.script.get(task.item.id, ())
            end, self.script[task.item.id] = (ends[0], ends[1:]) if ends else (self.default, ())
            results.append((seat, Outcome(task.item.id) if end == "ok" else Death("killed by SIGKILL")))
        return results

    def dismiss(self) -> None:
        self.dismissed += 1


def job(out: Path) -> Job:
    return Job(make_runner, {"stage": "ground", "variant": "fake", "seed": 0}, FAKE_WEIGHTS, str(out))


def tasks(count: int) -> list[Task]:
    return [Task(Item(f"t{number}", f"/in/{number}.npz")) for number in range(count)]


def test_every_task_has_one_outcome_and_few_tasks_need_few_workers(tmp_path: Path) -> None:
    crew = ScriptedCrew(3)
    outcomes = list(supervise(job(tmp_path), crew, tasks(7)))
    assert sorted(outcome.id for outcome in outcomes) == [f"t{number}" for number in range(7)]
    assert crew.hired == [0, 1, 2] and crew.dismissed == 1
    crew = ScriptedCrew(3)
    assert len(list(supervise(job(tmp_path), crew, tasks(2)))) == 2 and crew.hired == [0, 1]
    assert list(supervise(job(tmp_path), ScriptedCrew(3), [])) == []


def test_an_item_is_tried_once_more_at_once_on_a_fresh_worker(tmp_path: Path) -> None:
    crew = ScriptedCrew(1, {"t1": ["death", "ok"], "t2": ["death", "death"]})
    outcomes = {outcome.id: outcome for outcome in supervise(job(tmp_path), crew, tasks(4))}
    assert crew.order == ["t0", "t1", "t1", "t2", "t2", "t3"]
    assert crew.hired == [0, 0, 0, 0]
    assert [name for name, outcome in outcomes.items() if outcome.record] == ["t2"]
    crashed = outcomes["t2"].record
    assert crashed is not None and crashed.status == "crashed" and "killed by SIGKILL" in crashed.error


def test_workers_that_keep_dying_end_the_job(tmp_path: Path) -> None:
    crew = ScriptedCrew(2, default="death")
    with pytest.raises(AxionError, match=f"{DEATHS_IN_A_ROW} workers died one after the other"):
        list(supervise(job(tmp_path), crew, tasks(100)))
    assert crew.dismissed == 1


def test_closing_dismisses_the_crew(tmp_path: Path) -> None:
    crew = ScriptedCrew(2)
    outcomes = supervise(job(tmp_path), crew, tasks(5))
    next(outcomes)
    outcomes.close()
    assert crew.dismissed == 1


def test_an_output_never_replaces_an_input(tmp_path: Path) -> None:
    item = Item("a", str(tmp_path / "a.npz"))
    with pytest.raises(InputError, match="would replace the input"):
        run_batch(job(tmp_path), [item], ScriptedCrew(1))
    assert list(tmp_path.iterdir()) == []
