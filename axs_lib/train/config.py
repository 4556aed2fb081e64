"""What a training run is: plain values from YAML and the command line, whose help these docstrings are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from axs_lib.checks import MIN_SIDE
from axs_lib.errors import InputError
from axs_lib.train.readers import DataConfig


@dataclass(frozen=True)
class TrainerConfig:
    """Arguments of Lightning's ``Trainer``, by its own names.

    Attributes:
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        devices: how many, or ``auto``.
        num_nodes: machines.
        strategy: by name, such as ``ddp``.
        precision: bf16-mixed and 16-mixed take less memory on a GPU.
        accumulate_grad_batches: batches of an optimiser step.
        gradient_clip_val: norm to which gradients are clipped.
        log_every_n_steps: steps between two points of the logged curves.
    """

    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float = 1.0
    log_every_n_steps: int = 25


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every training shares.

    Attributes:
        out: run folder: checkpoints, logs and, at the end, the weights.
        steps: optimiser steps.
        learning_rate: peak, after ``warmup`` steps, before the cosine to zero.
        weight_decay: of AdamW.
        ema: decay of the averaged weights, which are those validated and written out.
        check_every: steps between checkpoints, each with a validation where something is held out.
        seed: of data order, crops and every other draw.
        threads: CPU threads; null leaves them.
        trainer: arguments of Lightning's Trainer.
    """

    out: str
    steps: int = 3000
    learning_rate: float = 3e-4
    weight_decay: float = 0.02
    warmup: int = 200
    ema: float = 0.998
    check_every: int = 250
    seed: int = 0
    threads: int | None = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        ranges = {"seed": (0, 2**32 - 1), "threads": (1, 2**15), "learning_rate": (0, 1e3), "warmup": (0, 10**9)}
        ranges |= {"weight_decay": (0, 1e3), "accumulate_grad_batches": (1, 10**6), "steps": (1, 10**9)}
        ranges |= {"check_every": (1, 10**9), "ema": (0, 1 - 1e-9)}
        check_ranges(vars(self) | {"accumulate_grad_batches": self.trainer.accumulate_grad_batches}, ranges)


def check_ranges(given: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise InputError for a setting that is not in its range; None is."""
    for name, (low, high) in ranges.items():
        if given[name] is not None and not low <= given[name] <= high:
            raise InputError(f"{name} is {given[name]}; expected from {low} to {high}")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters in place of full training.

    Attributes:
        rank: of the update matrices.
        alpha: their scale is alpha / rank.
        target_modules: attention layers that get one; see ``axs_lib.adapters.apply_lora_to_linear``.
    """

    rank: int = 8
    alpha: float = 16.0
    target_modules: tuple[str, ...] = ("proj", "q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, kw_only=True)
class RunConfig(LoopConfig):
    """What the stages share.

    Attributes:
        data: the data folder and how it is split and cropped.
        variant: architecture.
        pretrained: start from weights; False starts from random ones.
        checkpoint: weights to start from instead of the variant's own: a file or folder.
        revision: Hub revision of the variant's own weights.
        lora: train adapters; null trains all weights.
        patience: validations without a better one after which training stops; 0 never stops early.
        sar_jitter: standard deviation in dB of a random calibration error of each training crop's bands.
        loss: weights of ``Stage2Loss``, or for stages 1 and 3 of ``Stage3Loss``; token cross-entropy comes in where
            variant and weights hold a tokenizer's encoder, which nano's do.
    """

    data: DataConfig
    variant: str = "nano"
    pretrained: bool = True
    checkpoint: str | None = None
    revision: str | None = None
    lora: LoraSettings | None = None
    patience: int = 10
    sar_jitter: float = 0.5
    loss: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = vars(self) | {f"data.{name}": value for name, value in vars(self.data).items()}
        ranges = {"data.validation_share": (0, 1 - 1e-9), "data.batch_size": (1, 2**20), "data.workers": (0, 2**15)}
        ranges |= {"data.validation_tiles": (0, 10**9), "patience": (0, 10**9), "sar_jitter": (0, 100)}
        ranges |= {"data.crop_sizes": (MIN_SIDE, 2**20)}
        for side in self.data.crop_sizes or (0,):
            check_ranges(given | {"data.crop_sizes": side}, ranges)


@dataclass(frozen=True, kw_only=True)
class Stage1Config(RunConfig):
    """Stage 1, SAR to optical; variants nano and terramind_v1_tiny, _small, _base, _large.

    Attributes:
        s1_product: ``S1GRD`` or ``S1RTC``.
    """

    s1_product: Literal["S1GRD", "S1RTC"] = "S1GRD"


@dataclass(frozen=True, kw_only=True)
class Stage2Config(RunConfig):
    """Stage 2, the Prithvi refiner; variants nano and prithvi_eo_v2_300_tl, prithvi_eo_v2_600_tl and such.

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


@dataclass(frozen=True, kw_only=True)
class Stage3Config(RunConfig):
    """Stage 3, grounding in the SAR; variants nano and terramind_v1_tiny, _small, _base, _large.

    The grounding head starts as the packaged one, or as the one beside ``checkpoint``.

    Attributes:
        s1_product: ``S1GRD`` or ``S1RTC``.
        estimate: where opt_v2 comes from: ``file`` (``axs precompute --stage stage2``), ``degraded`` or ``auto``.
    """

    s1_product: Literal["S1GRD", "S1RTC"] = "S1GRD"
    estimate: Literal["auto", "file", "degraded"] = "auto"


MADE = {"stage1": "opt_v1", "stage2": "opt_v2"}  # by a stage, for the next one's training
CONFIGS: dict[str, type[RunConfig]] = {"stage1": Stage1Config, "stage2": Stage2Config, "stage3": Stage3Config}
