"""Make one head of several that were trained from the same start, and give it its floors.

Usage: python -m experiments.nano.finish_head HEAD [HEAD ...] --gate-floor F --filter-floor F --out FILE

In: files that ``axs train head`` wrote. Out: their mean, weight by weight (Wortsman et al. 2022, arXiv:2203.05482),
with the floors below which the gate stays closed and the tile's filter changes nothing. Choose both on the validation
groups (``axs evaluate --damages --gaps --flood --checkpoint FOLDER``); calibrate then (``experiments/calibrate.py``).
The header is the first head's without a calibration; ``head_mean`` names all of them by their SHA-256.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from axs_lib.terramind.weights import read_metadata, read_state, sha256_file, write_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", nargs="+", type=Path)
    parser.add_argument("--gate-floor", type=float, required=True)
    parser.add_argument("--filter-floor", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    headers = [read_metadata(path) for path in arguments.heads]
    for key in ("head_start", "train_groups", "validation_groups"):
        if len({header.get(key) for header in headers}) > 1:
            parser.error(f"the heads differ in {key}; expected runs from one start on the same groups")
    states = [read_state(path) for path in arguments.heads]
    state = {name: torch.stack([each[name].double() for each in states]).mean(0).float() for name in states[0]}
    for name in ("gate_floor", "filter_floor"):
        state[f"head.{name}"] = torch.tensor(getattr(arguments, name))
    header = {key: text for key, text in headers[0].items() if not key.startswith("calibration")}
    if len(states) > 1:
        header["head_mean"] = json.dumps([sha256_file(path) for path in arguments.heads])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_state(arguments.out, state, header, half=True)


if __name__ == "__main__":
    main()
