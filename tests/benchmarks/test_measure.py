"""The benchmarks' own arithmetic: ratios, operations, tables, and figures with all their keys on a random nano."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from axs_lib.pipeline import Pipeline
from axs_lib.stage1_tm_s2o import Stage1Model
from axs_lib.stage2_prithvi_refine import build_prithvi_refiner
from benchmarks import generation, measure, nano
from tests.models import random_nano


def test_the_ratio_is_the_median_within_rounds() -> None:
    times = {"slow": [2.0, 40.0, 6.0], "fast": [1.0, 10.0, 2.0]}  # a busy second round slows both
    assert measure.speed_ups(times, "slow") == {"slow": 1.0, "fast": 3.0}
    assert measure.median_milliseconds(times, tiles=2) == {"slow": 3000.0, "fast": 1000.0}


def test_runs_alternate_after_a_warm_up() -> None:
    order: list[str] = []
    times = measure.alternate({name: lambda n=name: order.append(n) for name in "ab"}, rounds=2)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2}


def test_operations_are_counted() -> None:
    a = torch.ones(10, 20)
    assert measure.gflop(lambda: a @ a.T) * 1e9 == pytest.approx(2 * 10 * 20 * 10)


def test_a_table_is_markdown() -> None:
    text = measure.table([{"a": 1.23456, "b": None}], ["a", "b"])
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| 1.235 |  |"]


def test_generations_figures() -> None:
    model = random_nano()
    case = generation.Case("nano", side=64, timesteps=2, batch=2, device="cpu")
    seen: list[int] = []

    def reference(s1: Tensor, optical: Tensor, timesteps: int) -> Tensor:
        seen.append(timesteps)
        return optical

    ways = ["terratorch", "float32", "direct", "float32_one", "bfloat16"]
    generators = generation.generators_of(model.terramind_generator, ways)
    assert generators.keys() == {"float32", "direct", "bfloat16"}
    peaks = {"float32": 100.0, "bfloat16": 200.0}
    record = generation.measure_case(case, generators, reference, ways, 2, peaks)
    record |= generation.difference_of_precision(generators, case)
    assert set(seen) == {2}
    assert record["speed_up"].keys() == record["ms_a_tile"].keys() == set(ways)
    assert record["speed_up"]["terratorch"] == 1.0 and record["gflop_a_tile"] > 0.1
    assert {"memory_mb", "share_of_peak_%", "rounds"} <= record.keys()
    assert 0 < record["bfloat16_rms"] < record["bfloat16_largest"]
    assert [row["way"] for row in generation.rows_of([record])] == ways
    assert "bfloat16" in record["share_of_peak_%"] and "float32_one" not in record["share_of_peak_%"]
    (row,) = generation.precision_rows_of([record])
    assert row["build"] == "bfloat16" and row["rms"] == record["bfloat16_rms"]


def test_nanos_figures(tmp_path: Path) -> None:
    model = random_nano()
    stage2 = build_prithvi_refiner(variant="nano", pretrained=False)
    torch.nn.init.normal_(stage2.head.out.weight, std=0.01)
    pipeline = Pipeline(Stage1Model(model.terramind_generator).eval(), stage2, model)
    threads = torch.get_num_threads()
    arguments = argparse.Namespace(
        only=["memory", "throughput", "growth", "work", "levers", "precision"],
        threads=[1],
        timesteps=[1],
        batches=[1],
        rounds=1,
        quick=True,
    )
    try:
        with torch.inference_mode():
            figures = nano.measure(pipeline, arguments)
    finally:
        torch.set_num_threads(threads)
    assert figures.keys() == set(arguments.only)
    assert figures["throughput"][0].keys() == {"threads", "timesteps", "batch", "stage3", "pipeline"}
    assert {row["changed"] for row in figures["growth"]} == {"timesteps", "batch", "side", "ensemble"}
    assert all(row["gflop_a_tile"] > 0 and row["share_of_peak_%"] > 0 for row in figures["work"])
    assert all(row["times_faster"] > 0 for row in figures["levers"])
    exact, *rounded = figures["precision"]
    assert exact["proposal_dn"] == 0
    changed = {row["precision"]: row["proposal_dn"] for row in rounded}
    assert changed["bfloat16"] > 0 and 0 < changed["int8"] <= changed["int8, narrow convolutions too"]
    assert changed["int16, narrow convolutions too"] < 0.1 * changed["int8, narrow convolutions too"]
    assert figures["memory"][-1]["tiles"] == 4
    measure.write_json(tmp_path / "f.json", {"machine": measure.machine()} | figures)
    assert json.loads((tmp_path / "f.json").read_text())["machine"]["torch"] == torch.__version__
