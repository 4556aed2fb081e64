"""The whole command with the packaged model: one worker, two workers and Ray write the same bytes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from axs_lib.batch.manifest import Record, read_manifest
from axs_lib.stage3_tm_ground import build_stage3_model
from tests.models import plausible_pair


@pytest.mark.slow
def test_the_pixels_do_not_depend_on_engine_and_number_of_workers(tmp_path: Path, repository: Path) -> None:
    inputs = tmp_path / "in"
    model = build_stage3_model(variant="nano")
    inputs.mkdir()
    for number in range(4):
        s1, opt_v2 = plausible_pair(1, 40, 56, seed=number)
        np.savez(inputs / f"t{number}.npz", s1=s1[0].numpy(), opt_v2=opt_v2[0].numpy())
    (inputs / "t1.npz").write_bytes((inputs / "t1.npz").read_bytes()[:1000])

    def run(out: Path, *options: str) -> tuple[int, list[Record]]:
        command = [sys.executable, "-m", "axs_lib", "batch", str(inputs), "--out", str(out), "-q"]
        command += ["--variant", "nano", "--timesteps", "2", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}  # the command's own setting wins
        result = subprocess.run(
            command, cwd=repository, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert "Traceback" not in result.stderr, result.stderr
        return result.returncode, read_manifest(out)

    ways = [("--workers", "1"), ("--workers", "2")]
    ways += [("--workers", "2", "--engine", "ray")] if importlib.util.find_spec("ray") else []
    hashes = []
    for number, way in enumerate(ways):
        code, records = run(tmp_path / f"out{number}", *way)
        assert code == 1 and [record.status for record in records] == ["done", "failed", "done", "done"]
        assert "truncated" in records[1].error
        hashes.append([record.output_sha256 for record in records])
    assert all(each == hashes[0] for each in hashes)
    with np.load(tmp_path / "out0" / "t0.npz") as written:
        s1, opt_v2 = plausible_pair(1, 40, 56)
        expected = model.ground(s1, opt_v2, 2).image[0].numpy()
        np.testing.assert_allclose(written["opt_v3"], expected, atol=1)
        assert np.abs(written["opt_v3"] - opt_v2[0].numpy()).max() > 1
