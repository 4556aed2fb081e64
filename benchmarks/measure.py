"""What the speed benchmarks share: alternating runs, ratios, memory, a profile, images, tables."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

Call = Callable[[], object]


def machine() -> dict[str, Any]:
    """Processor, cores in use, GPU and versions."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(names),
        "threads": torch.get_num_threads(),
        "bfloat16_instructions": bool(flags & {"avx512_bf16", "amx_bf16"}),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def seconds(call: Call, device: str = "cpu") -> float:
    """Wall time of one call, the GPU's work included."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(calls: Mapping[str, Call], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each call, run in turn ``rounds`` times after one warm-up, so that all meet the same machine."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return times


def ratio(times: Mapping[str, Sequence[float]], name: str, baseline: str) -> float:
    """How many times faster than the baseline it is: the median over the rounds of the ratio within a round."""
    return statistics.median(slow / fast for slow, fast in zip(times[baseline], times[name], strict=True))


def peak_memory_mb(device: str = "cpu") -> float:
    """Largest memory so far in MB: resident memory of the process, or what it allocated on the GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def profile_table(call: Call, rows: int = 20) -> str:
    """Where a call spends its time, operation by operation (torch.profiler)."""
    from torch.profiler import ProfilerActivity, profile

    call()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        call()
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=rows, max_name_column_width=48)


def redraw_zero_parameters(module: nn.Module, seed: int = 0) -> None:
    """Give every all-zero parameter random values: the output of a fresh diffusion U-Net is 0."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
                parameter.copy_(torch.randn(parameter.shape, generator=random) / fan_in**0.5)


def plausible_pair(
    batch: int = 2, height: int = 64, width: int = 64, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random (s1 in dB, opt_v2 in DN) of the given size."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 6, max(2, height // 8), max(2, width // 8), generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    level = torch.tensor([-11.0, -18.0, 500.0, 700.0, 800.0, 2400.0])[:, None, None]
    spread = torch.tensor([3.0, 3.0, 120.0, 150.0, 200.0, 500.0])[:, None, None]
    image = level + spread * smooth
    return image[:, :2].contiguous(), image[:, 2:].clamp_min(1.0).contiguous()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)

    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([cell(row[column]) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write the figures, where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n")
