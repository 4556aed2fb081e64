"""Train the plain U-Net of ``axs_lib.evaluate.plain``: the baseline of Stage 3, and the ruler of what data can give.

Crops of real pairs in, a U-Net out; the examples are those of Stage 3's own training. Batches are a function of (seed,
step). ``experiments/ceiling.py`` calls it over folds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from axs_lib.data.pairs import PairRecord
from axs_lib.evaluate.plain import Inputs, PlainModel
from axs_lib.progress import track
from axs_lib.train.crops import CropBatches
from axs_lib.train.examples import Kind, augment, make_examples
from axs_lib.train.export import save_state
from axs_lib.train.tasks import own_random


@dataclass(frozen=True)
class PlainConfig:
    """One run.

    Attributes:
        inputs: what the net is given.
        kinds: kinds of examples, taken in turn; for ``sar`` alone they do not matter.
        steps: optimiser steps.
        learning_rate: peak, after warm-up, before the cosine to zero.
        regularised: illumination and SAR augmentation, weight decay and averaged weights.
        crop_sizes: sides of the crops in pixels.
        batch_pixels: pixels of a batch.
        seed: of every draw.
    """

    inputs: Inputs = "sar+optical"
    kinds: tuple[Kind, ...] = ("degraded",)
    steps: int = 300
    learning_rate: float = 2e-3
    regularised: bool = True
    crop_sizes: tuple[int, ...] = (96, 128)
    batch_pixels: int = 8 * 96 * 96
    weight_decay: float = 0.02
    warmup: int = 30
    ema: float = 0.99
    seed: int = 0


def train_plain(config: PlainConfig, records: Sequence[PairRecord], *, progress: bool = False) -> PlainModel:
    """Train on the given pairs and return the model in ``eval()`` mode."""
    with own_random(config.seed):
        model = PlainModel(config.inputs)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
    )
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay if config.regularised else 0.0,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, config.warmup, config.steps)
    )
    batches = CropBatches(
        records, crop_sizes=config.crop_sizes, batch_pixels=config.batch_pixels, seed=config.seed
    )
    for step in track(range(config.steps), "plain U-Net", enabled=progress, total=config.steps):
        batch = batches.batch(step)
        random = torch.Generator().manual_seed(config.seed * 7_368_787 + step)
        s1, truth = batch["s1"], batch["truth"]
        if config.regularised:
            s1, truth = augment(s1, truth, random)
        kind = config.kinds[step % len(config.kinds)]
        if config.inputs == "sar":
            estimate = model.mean.expand_as(truth)
            loss = balanced_loss(model(s1), estimate, truth)
        else:
            made = make_examples(kind, s1, truth, random)
            image = model(made.s1, made.estimate, made.trust)
            unknown = made.trust < 1
            loss = balanced_loss(torch.where(unknown, image, made.truth), made.estimate, made.truth)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
    if config.regularised:
        model.load_state_dict(average.module.state_dict())
    return model.eval()


def save_plain(model: PlainModel, path: Path, notes: dict[str, str] | None = None) -> None:
    """Write a plain model as float16 safetensors."""
    header = {"kind": "plain", "inputs": model.inputs, "widths": ",".join(map(str, model.widths))}
    save_state(path, dict(model.state_dict()), header | (notes or {}))


def balanced_loss(image: Tensor, before: Tensor, truth: Tensor) -> Tensor:
    """Squared and absolute error, each tile's weighed by the root of what its estimate began with.

    A plain mean would be ruled by the few tiles of highest contrast, a mean of ratios by those that are nearly right.

    Args:
        image: the answer (B, 4, H, W) in DN.
        before: the estimate it started from.
        truth: what it should be.
    """
    scale = 1000.0
    error = (image - truth) / scale
    with torch.no_grad():
        began = ((before - truth) / scale).square().mean((1, 2, 3)).clamp_min(1e-4)
        weight = (began * began.mean()).rsqrt()
    squared = (error.square().mean((1, 2, 3)) * weight).mean()
    absolute = (error.abs().mean((1, 2, 3)) * weight.sqrt()).mean()
    return squared + 0.3 * absolute


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
