"""What a training run is: one dataclass a stage, filled from YAML and the command line, written into every checkpoint.

Lightning's own settings (devices, precision, accumulation, clipping) are not repeated here; they go to its Trainer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from axs_lib.train.readers import DataConfig


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters in place of full training.

    Attributes:
        rank: of the update matrices.
        alpha: their scale is alpha / rank.
        target_modules: attention layers that get one; see ``train_stage1.apply_lora_to_linear``.
    """

    rank: int = 8
    alpha: float = 16.0
    target_modules: tuple[str, ...] = ("proj", "q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class RunConfig:
    """What all stages share.

    Attributes:
        data: the data folder and how it is split and cropped.
        out: run folder: checkpoint, logs and, at the end, ``weights/``.
        variant: architecture.
        pretrained: start from weights; False starts from random ones.
        checkpoint: weights to start from instead of the variant's own: a file or folder.
        revision: Hub revision of the variant's own weights.
        lora: train adapters; null trains all weights.
        steps: optimiser steps.
        learning_rate: peak, after ``warmup`` steps, before the cosine to zero.
        weight_decay: of AdamW.
        ema: decay of the averaged weights, which are those validated and written out.
        check_every: steps between checkpoints, each with a validation.
        patience: validations without a better one after which training stops; 0 never stops early.
        sar_jitter: standard deviation in dB of a random calibration error of each training crop's bands.
        loss: weights and other arguments of ``Stage2Loss``, or for stages 1 and 3 of ``Stage3Loss``; token
            cross-entropy comes in where variant and weights hold a tokenizer's encoder, which nano's do.
        seed: of data order, crops and every other draw.
        threads: CPU threads; null leaves them.
    """

    data: DataConfig
    out: str
    variant: str = "nano"
    pretrained: bool = True
    checkpoint: str | None = None
    revision: str | None = None
    lora: LoraConfig | None = None
    steps: int = 3000
    learning_rate: float = 3e-4
    weight_decay: float = 0.02
    warmup: int = 200
    ema: float = 0.998
    check_every: int = 250
    patience: int = 10
    sar_jitter: float = 0.5
    loss: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class Stage1Config(RunConfig):
    """Stage 1, SAR to optical.

    Attributes:
        s1_product: ``S1GRD`` or ``S1RTC``.
    """

    s1_product: Literal["S1GRD", "S1RTC"] = "S1GRD"


@dataclass(frozen=True)
class Stage2Config(RunConfig):
    """Stage 2, the Prithvi refiner.

    Attributes:
        estimate: where opt_v1 comes from: ``file`` (``axs precompute --stage stage1``), ``degraded`` (simulated from
            the truth), or ``auto``: file where all pairs have one, degraded where none has.
        metadata_dropout: how often date, place and biome are withheld, each by itself, so that "unknown" is learned.
        brightness_jitter: standard deviation of the logarithm of a gain that both images of a crop share, each band its
            own: with it Stage 2 learns structure, and not the colours of the places it was trained on.
        fit_colour: fit the season's colour in closed form before the first step, where the pairs carry opt_v1.
        needs_season: leave images alone whose season is unknown, in training and ever after: for data too small to
            teach what to do with them. ``None`` does what the checkpoint says.
    """

    estimate: Literal["auto", "file", "degraded"] = "auto"
    metadata_dropout: float = 0.1
    brightness_jitter: float = 0.0
    fit_colour: bool = True
    needs_season: bool | None = None


@dataclass(frozen=True)
class Stage3Config(RunConfig):
    """Stage 3, grounding in the SAR.

    Attributes:
        s1_product: ``S1GRD`` or ``S1RTC``.
        estimate: where opt_v2 comes from: ``file`` (``axs precompute --stage stage2``), ``degraded`` or ``auto``.
    """

    s1_product: Literal["S1GRD", "S1RTC"] = "S1GRD"
    estimate: Literal["auto", "file", "degraded"] = "auto"


CONFIGS: dict[str, type[RunConfig]] = {"stage1": Stage1Config, "stage2": Stage2Config, "stage3": Stage3Config}
