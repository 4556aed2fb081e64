"""Train the plain U-Net of ``axs_lib.evaluate.plain``: the baseline of Stage 3, and the ruler of what data can give.

Usage: python -m experiments.nano.plain --data DIR --test_groups [A,B] --out runs/plain

Crops of real pairs in, a U-Net out (``plain.safetensors``, for ``axs evaluate --plain-checkpoint``); the examples are
those of Stage 3's own training. Batches are a function of (seed, step).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from axs_lib.evaluate.plain import Inputs, PlainModel
from axs_lib.terramind.weights import write_state
from axs_lib.train.trainer import SEED_STRIDE, ModuleTask, fit, own_random
from experiments.nano.examples import Kind, augment, make_examples
from experiments.nano.joint import DN_SCALE, PairsConfig, main


@dataclass(frozen=True, kw_only=True)
class PlainConfig(PairsConfig):
    """One run. Without regularisation: ``augmented`` false, ``weight_decay`` 0, ``ema`` 0.

    Attributes:
        inputs: what the net is given.
        kinds: kinds of examples, taken in turn; for ``sar`` alone they do not matter.
        augmented: vary illumination and SAR calibration.
    """

    out: str = "runs/plain"
    inputs: Inputs = "sar+optical"
    kinds: tuple[Kind, ...] = ("degraded",)
    steps: int = 300
    learning_rate: float = 2e-3
    warmup: int = 30
    ema: float = 0.99
    crop_sizes: tuple[int, ...] = (96, 128)
    augmented: bool = True


def train_plain(config: PlainConfig, *, resume: bool = True, progress: bool = True) -> Path:
    """Run (or resume) a training and write ``plain.safetensors`` into the run folder."""
    with own_random(config.seed):
        model = PlainModel(config.inputs)
    task = ModuleTask(config, "plain", model, partial(_loss, config, model), partial(_write, config, model))
    return fit(task, config.batches(), resume=resume, progress=progress)


def _loss(config: PlainConfig, model: PlainModel, batch: Mapping[str, Tensor]) -> Tensor:
    s1, truth, step = batch["s1"], batch["truth"], int(batch["step"])
    random = torch.Generator().manual_seed(config.seed * SEED_STRIDE + step)
    if config.augmented:
        s1, truth = augment(s1, truth, random)
    if config.inputs == "sar":
        return balanced_loss(model(s1), model.optical.mean.expand_as(truth), truth)
    made = make_examples(config.kinds[step % len(config.kinds)], s1, truth, random)
    image = model(made.s1, made.estimate, made.trust)
    return balanced_loss(torch.where(made.trust < 1, image, made.truth), made.estimate, made.truth)


def balanced_loss(image: Tensor, before: Tensor, truth: Tensor) -> Tensor:
    """Squared and absolute error of images (B, 4, H, W) in DN, weighed by the root of what each estimate began with.

    A plain mean would be ruled by the few tiles of highest contrast, a mean of ratios by those that are nearly right.
    """
    error = (image - truth) / DN_SCALE
    with torch.no_grad():
        began = ((before - truth) / DN_SCALE).square().mean((1, 2, 3)).clamp_min(1e-4)
        weight = (began * began.mean()).rsqrt()
    squared = (error.square().mean((1, 2, 3)) * weight).mean()
    absolute = (error.abs().mean((1, 2, 3)) * weight.sqrt()).mean()
    return squared + 0.3 * absolute


def _write(config: PlainConfig, model: PlainModel, step: int) -> Path:
    target = Path(config.out) / "plain.safetensors"
    save_plain(model, target, steps=str(step))
    return target


def save_plain(model: PlainModel, path: Path, **notes: str) -> None:
    """Write a plain model as float16 safetensors, which ``axs_lib.evaluate.plain.load_plain`` reads."""
    header = {"kind": "plain", "inputs": model.inputs, "widths": ",".join(map(str, model.widths)), **notes}
    write_state(path, model.state_dict(), header, half=True, overwrite=True)


if __name__ == "__main__":
    main(train_plain, PlainConfig, sys.argv[1:])
