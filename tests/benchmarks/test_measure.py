"""The benchmarks' own arithmetic: ratios, tables, and figures with all their keys on a random nano."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from axs_lib.pipeline import Pipeline
from axs_lib.stage1_tm_s2o import Stage1Model
from benchmarks import generation, measure, nano
from tests.models import random_nano, random_refiner


def test_the_ratio_is_the_median_within_rounds() -> None:
    times = {"slow": [2.0, 40.0, 6.0], "fast": [1.0, 10.0, 2.0]}  # a busy second round slows both
    assert measure.ratio(times, "fast", "slow") == 3.0
    assert measure.ratio(times, "slow", "slow") == 1.0


def test_runs_alternate_after_a_warm_up() -> None:
    order: list[str] = []
    times = measure.alternate({name: lambda n=name: order.append(n) for name in "ab"}, rounds=2)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2}


def test_generations_figures(capsys: pytest.CaptureFixture[str]) -> None:
    exact = random_nano().terramind_generator
    case = generation.Case("nano", side=64, timesteps=2, batch=2, device="cpu")
    seen: list[int] = []

    def reference(s1: Tensor, optical: Tensor, timesteps: int) -> Tensor:
        seen.append(timesteps)
        return optical

    ways = generation.build_ways(list(generation.WAYS), reference, exact)
    record = generation.measure_case(case, ways, rounds=1)
    record |= generation.difference_of_bfloat16(exact, case)
    assert record["ms_a_tile"].keys() == record["times_first"].keys() == set(generation.WAYS) and set(seen) == {2}
    assert record["times_first"]["terratorch"] == 1.0 and len(record["floors"]) == len(generation.FLOORS)
    assert 0 < record["bfloat16_rms"] < record["bfloat16_largest"]
    generation.show(record)
    assert "float32 against terratorch" in capsys.readouterr().out


def test_nanos_figures(tmp_path: Path) -> None:
    model = random_nano()
    pipeline = Pipeline(Stage1Model(model.terramind_generator).eval(), random_refiner(), model)
    arguments = argparse.Namespace(
        only=["memory", "throughput", "growth", "precision"], timesteps=[1], batches=[1], rounds=1, quick=True
    )
    with torch.inference_mode():
        figures = nano.measure(pipeline, arguments)
    assert figures.keys() == set(arguments.only)
    assert figures["throughput"][0].keys() == {"timesteps", "batch", "stage3", "pipeline"}
    assert {row["changed"] for row in figures["growth"]} == {"timesteps", "batch", "side", "ensemble"}
    assert figures["precision"][0]["proposal_dn"] > 0
    assert figures["memory"][-1]["tiles"] == 4
    measure.write_json(tmp_path / "f.json", {"machine": measure.machine()} | figures)
    assert json.loads((tmp_path / "f.json").read_text())["machine"]["torch"] == torch.__version__
