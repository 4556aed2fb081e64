"""What can be reached with this data and time: plain U-Nets, cross-validated over groups.

Usage: python -m experiments.nano.ceiling DATA --out ceiling.json [--exclude GROUP ...] [--steps N] [--folds 5]

Trains one plain U-Net (``axs_lib/evaluate/plain.py``) for each setting and fold and evaluates it on the fold's tiles of
quality ok: SAR to optical; a degraded estimate with and without SAR, regularised and not; gaps with and without SAR.
Results are appended to the JSON file after every run, and runs already in it are not repeated; the table is printed
at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import torch

from axs_lib.data.clouds import cloud_trust
from axs_lib.data.degrade import degrade
from axs_lib.data.pairs import PairRecord, list_pairs, load_pair, split_groups
from axs_lib.evaluate.plain import PlainModel, load_plain
from experiments.nano.plain import PlainConfig, train_plain

REFLECTANCE_SCALE = 10_000.0

SETTINGS: dict[str, dict[str, Any]] = {
    "SAR to optical": {"inputs": "sar"},
    "degraded, with SAR": {"inputs": "sar+optical"},
    "degraded, without SAR": {"inputs": "optical"},
    "degraded, with SAR, not regularised": {
        "inputs": "sar+optical",
        "augmented": False,
        "weight_decay": 0.0,
        "ema": 0.0,
    },
    "gaps, with SAR": {"inputs": "sar+optical", "kinds": ("gaps",)},
    "gaps, without SAR": {"inputs": "optical", "kinds": ("gaps",)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--exclude", nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folds", type=int, default=5)
    arguments = parser.parse_args()
    records = [
        r
        for r in list_pairs(arguments.data, quality="all")
        if r.quality in ("ok", "open_water") and r.group not in arguments.exclude
    ]
    folds = split_groups(records, arguments.folds)
    done = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for fold, held_out in enumerate(folds):
        train = [r for other in folds if other is not held_out for r in other]
        for name, options in SETTINGS.items():
            key = f"{name} | {fold} | {arguments.steps}"
            if key in done:
                continue
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as out:
                config = PlainConfig(out=out, steps=arguments.steps, seed=fold, **options)
                model = load_plain(train_plain(config, train, progress=False))
            seconds = time.perf_counter() - started
            tiles = [
                score(model, record, "gaps" if "gaps" in name else "degraded", train)
                for record in held_out
                if record.quality == "ok"
            ]
            done[key] = {"setting": name, "fold": fold, "seconds": seconds, "tiles": tiles}
            arguments.out.write_text(json.dumps(done, indent=1))
    report(done)


def score(model: PlainModel, record: PairRecord, task: str, train: list[PairRecord]) -> dict[str, Any]:
    """Mean squared error in reflectance of a tile: the model's, that of where it started, with another tile's SAR."""
    pair = load_pair(record)
    s1, truth = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
    seed = zlib.crc32(record.name.encode())
    other = load_pair(train[seed % len(train)])
    swapped = torch.as_tensor(other.s1)[None].float()
    repeats = [-(-size // have) for size, have in zip(s1.shape[-2:], swapped.shape[-2:], strict=True)]
    swapped = swapped.repeat(1, 1, *repeats)[..., : s1.shape[-2], : s1.shape[-1]]
    trust = None
    if model.inputs == "sar":
        before = model.optical.mean.expand_as(truth)
        where = torch.ones_like(truth)
    elif task == "gaps":
        trust = cloud_trust(1, *truth.shape[-2:], generator=torch.Generator().manual_seed(seed))
        trust = (trust == 1).float()
        clear = truth.masked_fill(trust < 1, torch.nan)
        before = clear.nanmean((2, 3), keepdim=True).nan_to_num(1000.0).expand_as(truth)
        where = (1 - trust).expand_as(truth)
    else:
        before, where = degrade(truth, seed=seed, preset="test"), torch.ones_like(truth)
    estimate = truth if task == "gaps" else before

    def mse(image: torch.Tensor) -> float:
        error = ((image - truth) / REFLECTANCE_SCALE).square() * where
        return float(error.nansum() / (where * torch.isfinite(error)).sum().clamp_min(1))

    result = {"id": record.name, "group": record.group, "before": mse(before)}
    result["after"] = mse(model.predict(s1, estimate, trust))
    if "sar" in model.inputs:
        result["other_sar"] = mse(model.predict(swapped, estimate, trust))
    if model.inputs == "sar":
        result["tile_mean"] = mse(truth.nanmean((2, 3), keepdim=True).expand_as(truth))
    return result


def report(done: dict[str, Any]) -> None:
    """Print the table in Markdown."""
    print("| setting | tiles | before | after | change | tiles better | with another tile's SAR | s a run |")
    print("|---|---|---|---|---|---|---|---|")
    for name in SETTINGS:
        runs = [run for run in done.values() if run["setting"] == name]
        tiles = [tile for run in runs for tile in run["tiles"]]
        if not tiles:
            continue

        def mean(key: str, tiles: list[dict[str, Any]] = tiles) -> float:
            return sum(tile[key] for tile in tiles) / len(tiles)

        before, after = mean("before"), mean("after")
        better = sum(tile["after"] < tile["before"] for tile in tiles) / len(tiles)
        other = f"{100 * (mean('other_sar') / before - 1):+.1f} %" if "other_sar" in tiles[0] else "-"
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        print(
            f"| {name} | {len(tiles)} | {1e4 * before:.2f} | {1e4 * after:.2f} | {100 * (after / before - 1):+.1f} % |"
            f" {100 * better:.0f} % | {other} | {seconds:.0f} |"
        )


if __name__ == "__main__":
    main()
