"""Ray workers do what local ones do: the same outputs, the same records, the same answer where a worker ends."""

from __future__ import annotations

import importlib.util
import os
import signal

import pytest

from tests.batch.conftest import Batch


@pytest.mark.slow
def test_ray_survives_a_killed_worker_and_local_goes_on_where_it_was(batch: Batch) -> None:
    if importlib.util.find_spec("ray") is None:
        batch.write(a="ok a")  # else there is nothing to do with or without it
        assert "pip install 'axion-sat[ray]'" in batch.run("--engine", "ray").stderr
        return
    batch.write(a="wait a", b="bad", c="crash", d="ok d")
    job = batch.start("--engine", "ray", "--workers", 2)
    os.kill(batch.begun("a"), signal.SIGKILL)
    batch.allow("a")
    output, errors = job.communicate(timeout=180)
    assert job.returncode == 1, errors
    assert "\n4 items: 2 done, 2 failed;" in f"\n{output}"
    assert batch.statuses() == {"a": "done", "b": "failed", "c": "crashed", "d": "done"}
    assert [batch.runs(name) for name in "abcd"] == [2, 1, 2, 1]
    batch.check_outputs()
    by_ray = {name: (r.key, r.output_sha256) for name, r in batch.records().items() if r.status == "done"}
    batch.write(b="ok b", c="ok c")
    assert batch.run().stdout.startswith("4 items: 2 done, 2 done before;")
    batch.check_outputs()
    assert by_ray.items() <= {name: (r.key, r.output_sha256) for name, r in batch.records().items()}.items()
