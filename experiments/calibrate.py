"""Calibrate the uncertainty of Stage 3 weights on places that no figure is reported of.

Usage: python experiments/calibrate.py DATA --checkpoint F --groups A,B --out NEW [--timesteps 1,10] [--variant nano]
       python experiments/calibrate.py DATA --adapter RUN/weights --groups A,B --out NEW ...

Grounds the pairs of DATA in the given groups (never the test groups, whose figures it would spoil), once
for each number of timesteps, fits one scale a band (``axs_lib/grounding/calibration.py``) and writes the weights to NEW
with the scales in their header. Every group counts alike, whatever its number of pixels: the next place will be one
more group, and a place of many tiles would otherwise speak for all. A calibration that F has already is replaced. F and
NEW are a .safetensors file: ``grounding.safetensors``, beside the generator's weights. A head that ``axs train`` wrote
by itself, or with LoRA, is given by its folder as ``--adapter``; ``--checkpoint`` is then the generator's, where it is
not the variant's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from axs_lib.adapters import load_adapter
from axs_lib.bands import OPTICAL_BANDS
from axs_lib.errors import InputError
from axs_lib.evaluate import Uncertainty, evaluate
from axs_lib.grounding.calibration import HEADER_KEY, Calibration
from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.io.atomic import atomic_write, check_output
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.terramind.weights import read_metadata


def fit_scale(predicted: Tensor, error: Tensor) -> tuple[float, ...]:
    """Scales that make the RMS of deviations (N,4) equal to that of errors (N,4), band by band.

    A row is a pixel, or the RMS of a group. Raises InputError: a band without any deviation or any error.
    """
    ratio = error.double().square().mean(0).sqrt() / predicted.double().square().mean(0).sqrt()
    if not bool(((ratio > 0) & ratio.isfinite()).all()):
        raise InputError(
            f"the errors over the deviations are {ratio.tolist()}; expected numbers above 0: a band without any"
            " deviation (an ensemble of one, without a head that predicts its error) cannot be calibrated"
        )
    return tuple(ratio.tolist())


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--groups", required=True, help="groups, with commas between")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--timesteps", default="1,10", help="with commas between")
    parser.add_argument("--ensemble-size", type=int, default=1)
    parser.add_argument("--opt-v2-source", default="file", choices=("file", "degraded", "cloudy"))
    parser.add_argument("--variant", default="nano")
    parser.add_argument("--overwrite", action="store_true")
    arguments = parser.parse_args(words)
    check_output(arguments.out, arguments.overwrite)
    head, adapter = arguments.checkpoint, arguments.adapter
    if adapter is None and head is None:
        parser.error("expected --checkpoint or --adapter: there is no head to calibrate")
    if head is not None and head.name != CORRECTOR_FILE:
        parser.error(f"--checkpoint is {head}; expected a {CORRECTOR_FILE}: it is loaded by that name")
    model = build_stage3_model(variant=arguments.variant, checkpoint=None if head is None else head.parent)
    if adapter is not None:
        load_adapter(model, adapter)
        head = adapter / CORRECTOR_FILE
    header = read_metadata(head)
    before = Calibration.from_header(header)
    scales: dict[int, tuple[float, ...]] = {}
    for timesteps in (int(part) for part in arguments.timesteps.split(",")):
        rows: list[list[Tensor]] = []
        tiles = 0
        for group in arguments.groups.split(","):
            scenario = Uncertainty(arguments.ensemble_size)
            measured = evaluate(
                model, arguments.data, [scenario], timesteps=timesteps, source=arguments.opt_v2_source, groups=[group]
            ).tiles[scenario]
            predicted, error = (torch.cat([tile.facts[key] for tile in measured]) for key in ("predicted", "error"))
            nfe = measured[0].facts["nfe"]
            # What is measured carries the scales that the weights came with, where the model has them.
            applied = torch.ones(len(OPTICAL_BANDS)) if before is None else before.scale(nfe)
            rows.append([pixels.double().square().mean(0).sqrt() for pixels in (predicted / applied, error)])
            tiles += len(measured)
        scales[nfe] = fit_scale(*(torch.stack(column) for column in zip(*rows, strict=True)))
        shown = ", ".join(f"{b} {s:.3f}" for b, s in zip(OPTICAL_BANDS, scales[nfe], strict=True))
        print(f"nfe {nfe}: {shown}  ({len(rows)} groups, {tiles} tiles)")
    header |= Calibration(scales).to_header() | {f"{HEADER_KEY}_groups": arguments.groups}
    with atomic_write(arguments.out, overwrite=arguments.overwrite) as temporary:
        temporary.write_bytes(save(load_file(head), metadata=header))


if __name__ == "__main__":
    main()
