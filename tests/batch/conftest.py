"""What the tests of batches share: a folder of small inputs, and the command line in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from axs_lib.batch.manifest import Record, read_manifest
from tests.batch.fakes import result_of

TIMEOUT = 60


@dataclass
class Batch:
    """A folder of inputs, a folder of outputs, and the jobs that were started on them."""

    inputs: Path
    out: Path
    repository: Path
    jobs: list[subprocess.Popen[str]] = field(default_factory=list)

    def write(self, **items: str) -> None:
        self.inputs.mkdir(exist_ok=True)
        for name, text in items.items():
            (self.inputs / f"{name}.npz").write_text(text)

    def start(self, *options: object, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.batch.fakes", "batch", self.inputs, "--out", self.out, "-q", *options]
        job = subprocess.Popen(
            [str(part) for part in command],
            cwd=self.repository,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_ctrl_c,
        )
        self.jobs.append(job)
        return job

    def run(self, *options: object, **environment: str) -> subprocess.CompletedProcess[str]:
        job = self.start(*options, **environment)
        output, errors = job.communicate(timeout=TIMEOUT)
        if job.returncode == 0 and "--seed" not in options:
            self.check_outputs()
        return subprocess.CompletedProcess(job.args, job.returncode, output, errors)

    def records(self) -> Mapping[str, Record]:
        return {record.id: record for record in read_manifest(self.out)}

    def statuses(self) -> dict[str, str]:
        return {name: record.status for name, record in self.records().items()}

    def runs(self, name: str) -> int:
        """How often a worker began on an item."""
        log = self.inputs / f"{name}.npz.runs"
        return len(log.read_text().split()) if log.exists() else 0

    def begun(self, name: str) -> int:
        """Wait until an item of the word ``wait`` is in the middle of writing; the id of its worker's process."""

        def process() -> str:
            if self.jobs[-1].poll() is not None:
                raise AssertionError(f"the job has ended: {self.jobs[-1].communicate()}")
            return (self.inputs / f"{name}.npz.begun").read_text()

        return int(until(process))

    def allow(self, *names: str) -> None:
        """Let items of the word ``wait`` go on."""
        for name in names:
            (self.inputs / f"{name}.npz.go").touch()

    def check_outputs(self, seed: int = 0) -> None:
        """Every output is whole and on record as done; nothing else is there, no temporary file either."""
        done = {name for name, record in self.records().items() if record.status == "done"}
        for name in done:
            text = (self.inputs / f"{name}.npz").read_text()
            size = int(text.split()[1]) if text.startswith("big") else 0
            assert (self.out / f"{name}.npz").read_bytes() == result_of(text, seed, size)
        assert sorted(p.name for p in self.out.iterdir()) == sorted(
            [".axs-batch.lock", "manifest.jsonl", "manifest.parquet", *(f"{name}.npz" for name in done)]
        )


def _hear_ctrl_c() -> None:
    """A shell's background job, which a test run may be, ignores Ctrl-C and hands that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(ask: Callable[[], str]) -> str:
    """The answer, as soon as there is one."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        try:
            if answer := ask():
                return answer
        except FileNotFoundError:
            pass
        time.sleep(0.01)
    raise TimeoutError("nothing happened")


@pytest.fixture
def batch(tmp_path: Path, repository: Path) -> Iterator[Batch]:
    made = Batch(tmp_path / "in", tmp_path / "out", repository)
    yield made
    for job in made.jobs:
        if job.poll() is None:
            job.kill()
        job.communicate()
