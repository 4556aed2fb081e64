"""The loop that trains one module of nano: averaged weights, warm-up and cosine, checkpoints, resume.

In go a configuration, the module and what a step costs; out comes what the caller packages of the averaged weights.
Lightning's own loop is for whole stages (``axs_lib.train.fit``); here the module alone is saved and resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from axs_lib.data.pairs import PairRecord, list_pairs
from axs_lib.io.atomic import atomic_write
from axs_lib.progress import track
from axs_lib.train.plain import warmup_cosine


class LoopConfig(Protocol):
    """What the loop needs of a configuration."""

    @property
    def data(self) -> str:
        """Folder of pairs."""

    @property
    def test_groups(self) -> tuple[str, ...]:
        """Groups never seen."""

    @property
    def validation_groups(self) -> tuple[str, ...]:
        """Groups kept out for choices."""

    @property
    def qualities(self) -> tuple[str, ...]:
        """Tiles that are trained on."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""

    @property
    def learning_rate(self) -> float:
        """Peak, after warm-up, before the cosine to zero."""

    @property
    def weight_decay(self) -> float:
        """Of AdamW."""

    @property
    def warmup(self) -> int:
        """Steps."""

    @property
    def ema(self) -> float:
        """Decay of the averaged weights."""

    @property
    def checkpoint_every(self) -> int:
        """Steps."""


def training_records(config: LoopConfig) -> list[PairRecord]:
    """The pairs of the folder that may be trained on."""
    held_out = {*config.test_groups, *config.validation_groups}
    return [
        record
        for record in list_pairs(config.data, quality="all")
        if record.quality in config.qualities and record.group not in held_out
    ]


def fit_module(
    config: LoopConfig,
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    package: Callable[[nn.Module, int], Path],
    *,
    checkpoint: Path,
    resume: bool,
    progress: bool,
) -> Path:
    """Train a module, or go on from its last checkpoint.

    Args:
        config: the run.
        module: trained in place.
        loss_of: the loss of a step, a function of nothing but the step and the module.
        package: writes the weights from the averaged module and the steps made; called at every checkpoint.
        checkpoint: where the run is kept.
        resume: go on from ``checkpoint`` where it exists.
        progress: show a bar.

    Returns:
        What ``package`` returned last.
    """
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
    )
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    first = 0
    if resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved["module"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    steps = track(range(first, config.steps), checkpoint.stem, enabled=progress, total=config.steps - first)
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup_cosine(step, config.warmup, config.steps)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update_parameters(module)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            state = {"module": module.state_dict(), "average": average.state_dict(), "step": step + 1}
            with atomic_write(checkpoint, overwrite=True) as temporary:
                torch.save(state | {"optimizer": optimizer.state_dict()}, temporary)
            package(average.module, step + 1)
    return package(average.module, config.steps)
