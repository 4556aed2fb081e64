"""Run a stage's training: data, Lightning, averaged weights, checkpoints that survive a kill, and the final weights.

In: a stage's configuration and Lightning's own Trainer flags. Out: ``<out>/weights/`` in the layout that the stage's
builder loads by ``checkpoint=``. A run that was stopped or killed goes on from ``<out>/last.ckpt`` as if nothing had
happened: data order and every draw are functions of (seed, step), and everything else is in the checkpoint.
"""

from __future__ import annotations

import errno
import io
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from axs_lib.errors import InputError, OutputError, WeightsError
from axs_lib.io.atomic import atomic_write
from axs_lib.train.colour import fit_colour
from axs_lib.train.config import RunConfig, Stage2Config
from axs_lib.train.export import export_weights
from axs_lib.train.readers import Split, list_samples, split_samples
from axs_lib.train.readers.batches import Batch, CropDataset, Indices, TileDataset
from axs_lib.train.tasks import StageTask, build_task

CHECKPOINT = "last.ckpt"
BEST = "best.safetensors"
# Settings that may differ between a run and its continuation without changing the result.
FREE = ("out", "threads", "data.folder", "data.workers", "data.on_bad")


def fit(
    config: RunConfig, flags: Mapping[str, Any] | None = None, *, resume: bool = True, progress: bool = True
) -> Path:
    """Train a stage, or go on where a stopped run left off.

    Args:
        config: the stage's configuration.
        flags: arguments of Lightning's ``Trainer`` (devices, precision, accumulate_grad_batches, ...).
        resume: continue from the run folder's checkpoint where there is one.
        progress: show Lightning's bar.

    Returns:
        The folder of the final weights.

    Raises:
        InputError: data that cannot be used, or a configuration that makes no sense.
        WeightsError: weights to start from that cannot be had, or a checkpoint of another stage or variant.
        OutputError: the disk refuses; the previous checkpoint is intact.
    """
    flags = dict(flags or {})
    _check(config)
    out = Path(config.out)
    if config.threads:
        torch.set_num_threads(config.threads)
    split = split_samples(list_samples(config.data), config.data, config.seed)
    source = _estimate_source(config, split)
    last = out / CHECKPOINT
    resumed = last if resume and last.is_file() else None
    if resumed:
        _check_checkpoint(resumed, config)
    task = build_task(config, estimate_source=source)
    if isinstance(config, Stage2Config) and config.fit_colour and source == "file" and not resumed:
        fit_colour(task.model, split.train, progress=progress)
    _remove_leftovers(out)
    data = StageData(config, split, [task.estimate_key] if source == "file" and task.estimate_key else [])
    keeper = Keeper(out, config, watched=bool(split.validation))
    trainer = lightning.Trainer(
        **({"gradient_clip_val": 1.0, "log_every_n_steps": 25} | flags),
        max_steps=config.steps,
        default_root_dir=out,
        logger=TensorBoardLogger(str(out), name="log", version=""),
        plugins=[AtomicCheckpoints()],
        callbacks=[*_callbacks(config, split, progress), keeper],
        val_check_interval=config.check_every * flags.get("accumulate_grad_batches", 1)
        if split.validation
        else None,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if split.validation else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*(num_workers|dataloader is not resumable|LeafSpec|in eval mode).*"
            )
            trainer.fit(task, datamodule=data, ckpt_path=resumed, weights_only=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, OutputError):
            raise
        raise OutputError(
            f"cannot write below {out}: the disk is full: free some space and run again"
        ) from error
    folder = out / "weights"
    if trainer.is_global_zero:
        keeper.load_final(task)
        export_weights(task, folder, _header(task, split, keeper))
    trainer.strategy.barrier("weights are written")
    return folder


# -- data ---------------------------------------------------------------------------------------------------------


class StageData(lightning.LightningDataModule):
    """Loaders of a run; each device takes its own batches, from the step that the trainer stands at."""

    def __init__(self, config: RunConfig, split: Split, estimates: list[str]) -> None:
        super().__init__()
        self.run, self.workers = config, config.data.workers
        skip_bad = config.data.on_bad == "skip"
        self.crops = CropDataset(
            split.train,
            crop_sizes=config.data.crop_sizes,
            batch_size=config.data.batch_size,
            estimates=estimates,
            seed=config.seed,
            skip_bad=skip_bad,
        )
        self.tiles = TileDataset(
            split.validation, config.data.validation_tiles, estimates=estimates, skip_bad=skip_bad
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        trainer = self.trainer
        assert trainer is not None
        start = trainer.global_step * trainer.accumulate_grad_batches
        order = Indices(start, trainer.global_rank, trainer.world_size)
        return DataLoader(
            self.crops,
            batch_size=None,
            sampler=order,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # else the loader draws a seed from the caller's
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        trainer = self.trainer
        assert trainer is not None
        count, world = len(self.tiles), trainer.world_size
        mine = (
            [(trainer.global_rank + turn * world) % count for turn in range(-(-count // world))]
            if count
            else []
        )
        return DataLoader(self.tiles, batch_size=None, sampler=mine, generator=torch.Generator())


def _estimate_source(config: RunConfig, split: Split) -> str:
    """``file`` or ``degraded``."""
    wanted = getattr(config, "estimate", "degraded")
    key = {"Stage2Config": "opt_v1", "Stage3Config": "opt_v2"}.get(type(config).__name__)
    if key is None or wanted == "degraded":
        return "degraded"
    samples = [*split.train, *split.validation]
    count = sum(key in sample.estimates for sample in samples)
    if count == len(samples):
        return "file"
    if count == 0 and wanted == "auto":
        return "degraded"
    previous = "stage1" if key == "opt_v1" else "stage2"
    raise InputError(
        f"{count} of {len(samples)} pairs in {config.data.folder} carry {key}; expected all of them: make them with"
        f" `axs precompute --stage {previous}`, or simulate {key} from the truth with estimate: degraded"
    )


# -- checkpoints --------------------------------------------------------------------------------------------------


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints so that a reader, or the next run after a kill, sees a whole one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            with atomic_write(path, overwrite=True) as temporary:
                temporary.write_bytes(buffer.getbuffer())
        except OutputError as error:
            kept = (
                "the previous checkpoint is intact" if Path(path).exists() else "there is no checkpoint yet"
            )
            raise OutputError(
                f"{error}; {kept}: run the same command again to go on from it, once there is space"
            ) from error


class AverageWeights(lightning.Callback):
    """Exponential moving average of what is trained; validation sees the average.

    The decay warms up, so that the first hundred steps are not remembered for a thousand.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._steps = 0
        self._aside: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trained = dict(_trained(pl_module))
        start = self.average or trained
        self.average = {name: start[name].detach().clone().to(p.device) for name, p in trained.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any
    ) -> None:
        if trainer.global_step == self._steps:  # gradients are still being accumulated
            return
        self._steps = trainer.global_step
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        for name, parameter in _trained(pl_module):
            self.average[name].lerp_(parameter.detach(), 1 - decay)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._aside = {name: p.detach().clone() for name, p in _trained(pl_module)}
        _assign(pl_module, self.average)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        _assign(pl_module, self._aside)
        self._aside = {}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self._steps = state_dict["average"], state_dict["steps"]


class Keeper(lightning.Callback):
    """Writes ``last.ckpt`` every ``check_every`` steps and keeps the averaged weights of the best validation.

    Args:
        out: run folder.
        config: the run.
        watched: whether there is anything held out to judge by.
    """

    def __init__(self, out: Path, config: RunConfig, *, watched: bool) -> None:
        self.out, self.config, self.watched = out, config, watched
        self.best, self.best_step, self._saved = math.inf, 0, -1

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any
    ) -> None:
        step = trainer.global_step
        if not self.watched and step != self._saved and step % self.config.check_every == 0 and step > 0:
            self._save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        error = float(trainer.callback_metrics["val_mse"])
        if error < self.best:
            self.best, self.best_step = error, trainer.global_step
            if trainer.is_global_zero:
                _save_tensors(self.out / BEST, _average(trainer), {"step": str(self.best_step)})
        self._save(trainer)

    def load_final(self, task: StageTask) -> None:
        """Put the best averaged weights (the last ones, where nothing was held out) into the task."""
        if math.isfinite(self.best):
            from axs_lib.terramind.weights import read_state

            _assign(task, read_state(self.out / BEST))
        else:
            _assign(task, _average(task.trainer))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def _save(self, trainer: lightning.Trainer) -> None:
        self._saved = trainer.global_step
        trainer.save_checkpoint(self.out / CHECKPOINT)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, StageTask)
        checkpoint["axs"] = {"stage": pl_module.stage, "config": json.dumps(asdict(self.config))}


def _check_checkpoint(path: Path, config: RunConfig) -> None:
    """Refuse to continue another stage's or variant's run; say which other settings have changed."""
    from axs_lib.train.config import CONFIGS

    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["axs"]
        before = json.loads(saved["config"])
    except Exception as error:  # torch raises half a dozen kinds for a damaged archive
        raise WeightsError(
            f"{path} is no checkpoint of `axs train` ({type(error).__name__}): it is damaged or of another kind; move"
            " it away, or start anew with --restart"
        ) from error
    stage = next(name for name, kind in CONFIGS.items() if kind is type(config))
    old, new = _flat(before), _flat(json.loads(json.dumps(asdict(config))))
    for name, was, now in (
        ("stage", saved["stage"], stage),
        *((k, old.get(k), new[k]) for k in ("variant", "lora")),
    ):
        if was != now:
            raise WeightsError(
                f"{path} is a checkpoint with {name} {was}, and this run has {name} {now}; give another --out, or start"
                " anew with --restart"
            )
    changed = [key for key in new if key not in FREE and old.get(key) != new[key]]
    if changed:
        listed = ", ".join(f"{key} {old.get(key)} -> {new[key]}" for key in changed)
        warnings.warn(
            f"{path} was made with other settings ({listed}); the run goes on with the new ones", stacklevel=3
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names; ``lora`` stays whole."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "data":
            flat |= _flat(value, "data.")
        else:
            flat[prefix + key] = value
    return flat


# -- helpers ------------------------------------------------------------------------------------------------------


class StepBar(TQDMProgressBar):
    """Lightning's bar over the optimiser steps of an endless loader."""

    @property
    def total_train_batches(self) -> int:
        """Batches of the whole run."""
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.train_progress_bar.total = self.total_train_batches  # a resumed run starts in the middle


def _callbacks(config: RunConfig, split: Split, progress: bool) -> list[lightning.Callback]:
    callbacks: list[lightning.Callback] = [AverageWeights(config.ema), LearningRateMonitor("step")]
    if split.validation and config.patience:
        callbacks.append(EarlyStopping("val_mse", patience=config.patience, mode="min", check_finite=True))
    return [*callbacks, StepBar()] if progress else callbacks


def _check(config: RunConfig) -> None:
    if config.steps < 1 or config.check_every < 1 or config.data.batch_size < 1:
        raise InputError(
            f"steps is {config.steps}, check_every {config.check_every}, data.batch_size {config.data.batch_size};"
            " expected at least 1"
        )
    if not 0.0 <= config.data.validation_share < 1.0 or not 0.0 <= config.ema < 1.0:
        raise InputError(
            f"data.validation_share is {config.data.validation_share} and ema {config.ema}; expected 0 to below 1"
        )


def _trained(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


@torch.no_grad()
def _assign(module: torch.nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, parameter in _trained(module):
        parameter.copy_(values[name])


def _average(trainer: lightning.Trainer) -> dict[str, Tensor]:
    return next(c.average for c in trainer.callbacks if isinstance(c, AverageWeights))


def _save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with atomic_write(path, overwrite=True) as temporary:
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, str(temporary), metadata=metadata
        )


def _remove_leftovers(out: Path) -> None:
    """Temporary files of a run that was killed while writing."""
    for path in out.glob(".*.tmp.*"):
        path.unlink(missing_ok=True)


def _header(task: StageTask, split: Split, keeper: Keeper) -> dict[str, str]:
    """What the weights are, for their file's header."""
    from axs_lib import __version__

    settings = {key: value for key, value in asdict(task.config).items() if key not in ("data", "out")}
    header = {
        "variant": task.config.variant,
        "stage": task.stage.removeprefix("stage"),
        "steps": str(keeper.best_step or task.trainer.global_step),
        "config": json.dumps(settings),
        "train_groups": json.dumps(sorted({sample.group for sample in split.train})),
        "validation_groups": json.dumps(sorted({sample.group for sample in split.validation})),
        "axs_version": __version__,
        "torch_version": torch.__version__,
    }
    if task.estimate_key:
        header["estimate_source"] = task.estimate_source
    if math.isfinite(keeper.best):
        header["val_mse"] = f"{keeper.best:.6g}"
    return header
