"""The one training loop, Lightning's: averaged weights, warm-up and cosine, checkpoints that survive a kill, resume.

In: a task (what a batch costs) and its batches by step. Out: what the task exports of the averaged weights. A run that
was killed goes on from ``<out>/last.ckpt`` as if nothing had happened: data order and draws are functions of (seed,
step), everything else is in the checkpoint, which is read without running anything in it.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import itertools
import json
import math
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from axs_lib.errors import InputError, OutputError, WeightsError, first_line
from axs_lib.io.atomic import atomic_write, locked_folder, write_torch
from axs_lib.progress import bar
from axs_lib.train.config import LoopConfig

__all__ = ["LAST", "SEED_STRIDE", "ByStep", "ModuleTask", "TrainingTask", "check_start", "fit", "own_random"]

LAST, BEST, LOCK = "last.ckpt", "best.ckpt", ".axs-train.lock"
SEED_STRIDE = 7_368_787
# Settings that may differ between a run and its continuation without changing the result; and those that may as long as
# there is something left to train: how far it goes, and on what machine.
FREE = ("out", "threads", "data", "data.folder", "data.workers", "data.on_bad")
MACHINE = ("accelerator", "devices", "num_nodes", "strategy", "precision", "log_every_n_steps")
OPEN = ("steps", "check_every", *(f"trainer.{name}" for name in MACHINE))


@contextlib.contextmanager
def own_random(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators for a block and put them back as they were."""
    device = torch.device(device)
    index = device.index or 0
    with torch.random.fork_rng(devices=[index] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed % 2**63)
        if device.type == "cuda":
            torch.cuda.default_generators[index].manual_seed(seed % 2**63)
        yield


class TrainingWarning(UserWarning):
    """A step is left out, or a run goes on with other settings."""


class TrainingTask(lightning.LightningModule, ABC):
    """What all trainings share: optimiser, schedule, small checkpoints.

    A subclass sets ``requires_grad`` of what is trained and defines Lightning's ``training_step``, ``export``, and
    where something is held out ``validation_step``, which logs ``val_mse``. A checkpoint of another ``kind`` is
    refused. Frozen weights are not in a checkpoint: they come with the model, and the averaged copy shares them.
    """

    def __init__(self, config: LoopConfig, kind: str) -> None:
        super().__init__()
        self.config, self.kind = config, kind

    @abstractmethod
    def export(self, step: int, error: float | None) -> Path:
        """Write the task's weights, which have so many steps behind them and this ``val_mse``, and say where."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """A step whose gradients are not numbers is left out: it would spoil every weight."""
        if not all(p.grad.isfinite().all() for p in self.parameters() if p.grad is not None):
            optimizer.zero_grad()
            warnings.warn(f"step {self.global_step} is left out: gradients not finite", TrainingWarning, stacklevel=2)

    def configure_optimizers(self) -> Any:
        config = self.config
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, config.learning_rate, (0.9, 0.98), weight_decay=config.weight_decay)

        def share_of_peak(step: int) -> float:
            if step < config.warmup:
                return (step + 1) / (config.warmup + 1)
            done = (step - config.warmup) / max(1, config.steps - config.warmup)
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def frozen(self) -> dict[str, nn.Parameter]:
        """The parameters that are not trained, by name."""
        return {name: p for name, p in self.named_parameters() if not p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = self.frozen()
        for key in checkpoint.keys() & {"state_dict", "current_model_state"}:
            checkpoint[key] = {name: value for name, value in checkpoint[key].items() if name not in frozen}
        checkpoint["axs"] = {"kind": self.kind, "config": json.dumps(asdict(self.config))}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for key in checkpoint.keys() & {"state_dict", "current_model_state"}:
            checkpoint[key] = self.frozen() | checkpoint[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingTask:
        memo.update((id(parameter), parameter) for parameter in self.frozen().values())
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin


class ModuleTask(TrainingTask):
    """The training of a single module by a batch's ``loss``; ``write`` takes the steps, writes weights, says where."""

    def __init__(
        self, config: LoopConfig, kind: str, net: nn.Module, loss: Callable[[Any], Tensor], write: Callable[[int], Path]
    ) -> None:
        super().__init__(config, kind)
        self.module, self.loss, self.write = net, loss, write

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=1)
        return loss

    def export(self, step: int, error: float | None) -> Path:
        return self.write(step)


@dataclass(frozen=True)
class ByStep(Dataset[Any]):
    """Training batches made by a function of the step."""

    make: Callable[[int], Any]

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


class Batches(lightning.LightningDataModule):
    """Loaders of a run; each device takes every so many-th batch, from the step that the trainer stands at."""

    trainer: lightning.Trainer

    def __init__(self, training: Dataset[Any], held_out: Any, workers: int) -> None:
        super().__init__()
        self.training, self.held_out, self.workers = training, held_out, workers

    def train_dataloader(self) -> DataLoader[Any]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        start = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return DataLoader(
            self.training,
            batch_size=None,
            sampler=itertools.count(start * world + rank, world),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # else the loader draws a seed from the caller's
        )

    def val_dataloader(self) -> DataLoader[Any]:
        rank, world, count = self.trainer.global_rank, self.trainer.world_size, len(self.held_out)
        mine = [(rank + turn * world) % count for turn in range(-(-count // world))]
        return DataLoader(self.held_out, batch_size=None, sampler=mine, generator=torch.Generator())


def fit(
    task: TrainingTask,
    training: Dataset[Any],
    held_out: Any = (),
    *,
    workers: int = 0,
    patience: int = 0,
    resume: bool = True,
    progress: bool = True,
) -> Path:
    """Train a task, or with ``resume`` go on where a stopped run left off, and export its weights.

    The task's ``config`` is the run. An item of ``training`` is a whole batch, for any index, and is read by so many
    ``workers``; where there are ``held_out`` batches, the best validation's weights are exported, and ``patience``
    validations without a better one end the run. Returns what the task's ``export`` returned; on all but the first
    device the run folder. Raises InputError or WeightsError: no such trainer, the run would replace the weights that it
    starts from, or as ``check_run``; OutputError: another run is in the folder, or the disk refuses; the previous
    checkpoint is intact.
    """
    config = task.config
    out = Path(config.out)
    last = out / LAST
    check_start(config)
    changed = check_run(config, task.kind) if resume else []
    if changed:
        warnings.warn(
            f"{last} was made with other settings ({', '.join(changed)}); the run goes on with the new ones",
            TrainingWarning,
            stacklevel=2,
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    called: list[Any] = [Average(config.ema), callbacks.LearningRateMonitor("step"), StepBar(progress)]
    best = None
    if held_out:
        if patience:
            called.append(callbacks.EarlyStopping("val_mse", patience=patience, mode="min"))
        best = callbacks.ModelCheckpoint(out, "best", monitor="val_mse", enable_version_counter=False)
        called.append(best)
    called.append(SaveLast(last, config.check_every, watched=bool(held_out), logged=progress))
    try:
        trainer = lightning.Trainer(
            **asdict(config.trainer),
            max_steps=config.steps,
            default_root_dir=out,
            logger=TensorBoardLogger(str(out), name="log", version=""),
            plugins=[AtomicCheckpoints()],
            callbacks=called,
            val_check_interval=config.check_every * config.trainer.accumulate_grad_batches if held_out else None,
            check_val_every_n_epoch=None,
            limit_val_batches=1.0 if held_out else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise InputError(f"Lightning refuses --trainer.*: {first_line(error)}; correct that option") from error
    ckpt_path = last if resume and last.is_file() else None
    with contextlib.ExitStack() as stack:
        if trainer.is_global_zero:
            stack.enter_context(locked_folder(out, LOCK, "axs train"))
        return _fit(trainer, task, Batches(training, held_out, workers), ckpt_path, best)


def _fit(trainer: lightning.Trainer, task: TrainingTask, batches: Batches, ckpt_path: Path | None, best: Any) -> Path:
    """``fit`` in the folder that this run holds; ``best`` is the callback that keeps the best validation's weights."""
    out = Path(task.config.out)
    try:
        with warnings.catch_warnings():
            noise = "num_workers|is not resumable|LeafSpec|in eval mode|is not empty|no `validation_step`"
            warnings.filterwarnings("ignore", message=f".*({noise}).*")
            trainer.fit(task, datamodule=batches, ckpt_path=ckpt_path, weights_only=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write below {out}: the disk is full: free some space and run again") from error

    # Export the averaged weights of the best validation, or else of the last step.
    score = None if best is None or best.best_model_score is None else float(best.best_model_score)
    saved = torch.load(out / (LAST if score is None else BEST), map_location="cpu", weights_only=True, mmap=True)
    task.load_state_dict(task.frozen() | saved["state_dict"])
    weights = task.export(int(saved["global_step"]), score) if trainer.is_global_zero else out
    trainer.strategy.barrier("weights are written")
    return weights


def check_start(config: LoopConfig) -> None:
    """Raise InputError where the weights of a run would replace those that it starts from."""
    for given in (getattr(config, name, None) for name in ("checkpoint", "start")):
        if given is not None and Path(given).resolve().is_relative_to((Path(config.out) / "weights").resolve()):
            raise InputError(f"the weights of the run would replace {given}, which it starts from; give another --out")


def check_run(config: LoopConfig, kind: str) -> list[str]:
    """Settings that differ from those of the run folder's checkpoint, in words; empty where there is none.

    Raises WeightsError: the checkpoint is damaged, or of another kind of run, or of other settings than those in
    ``OPEN``, or than any where nothing is left to train: the weights' header would tell what is not so.
    """
    path = Path(config.out) / LAST
    if not path.is_file():
        return []
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        old = {"kind": saved["axs"]["kind"]} | _flat(json.loads(saved["axs"]["config"]))
        finished = int(saved["global_step"]) >= config.steps
    except Exception as error:  # torch raises half a dozen kinds for a damaged archive
        raise WeightsError(
            f"{path} is no checkpoint of `axs train` ({type(error).__name__}): it is damaged or of another kind; move"
            " it away, or start anew with --restart"
        ) from error
    new = {"kind": kind} | _flat(json.loads(json.dumps(asdict(config))))
    changed = [key for key in old.keys() & new.keys() - {*FREE} if old[key] != new[key]]
    if refused := sorted(key for key in changed if finished or key not in OPEN):
        was, now = (", ".join(f"{key} {each[key]}" for key in refused) for each in (old, new))
        raise WeightsError(
            f"{path} is of a{' finished' * finished} run with {was}, and this run has {now}; give another --out, or"
            " start anew with --restart"
        )
    return sorted(f"{key} {old[key]} -> {new[key]}" for key in changed)


class Average(callbacks.WeightAveraging):
    """Exponential moving average of what is trained, with a warm-up: what is validated and saved."""

    def __init__(self, decay: float) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
            share = 1.0 - min(decay, float((1 + count) / (10 + count)))
            for mean, value in zip(averaged, current, strict=True):
                mean.lerp_(value, share)

        super().__init__(use_buffers=False, multi_avg_fn=torch.no_grad()(average))

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        pl_module.to(trainer.strategy.root_device)  # where the average is made, too
        super().setup(trainer, pl_module, stage)


class SaveLast(callbacks.Checkpoint):
    """Writes ``last.ckpt`` every so many steps, after a validation, and at the end; ``logged`` says so on stderr."""

    def __init__(self, path: Path, every: int, *, watched: bool, logged: bool) -> None:
        self.path, self.every, self.watched, self.logged, self.saved = path, every, watched, logged, 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.saved = trainer.global_step
        if self.saved == 0:  # else a run that starts anew and is killed early would resume the one before
            self.path.unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        due = trainer.global_step % self.every == 0
        if (due and not self.watched) or (trainer.global_step == trainer.max_steps and not due):
            self._save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        if trainer.global_step != self.saved:  # the same while gradients are being accumulated
            self.saved = trainer.global_step
            trainer.save_checkpoint(self.path)
            if self.logged and trainer.is_global_zero:
                figures = "  ".join(f"{key} {float(value):.4g}" for key, value in trainer.callback_metrics.items())
                print(f"step {self.saved} of {trainer.max_steps}: {figures}", file=sys.stderr)  # noqa: T201


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints so that a reader, or the next run after a kill, sees a whole one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with atomic_write(path, overwrite=True) as temporary:
                write_torch(temporary, checkpoint)
        except OutputError as error:
            kept = "the previous checkpoint is intact" if Path(path).exists() else "there is no checkpoint yet"
            raise OutputError(f"{error}; {kept}: run the same command again once there is space") from error


class StepBar(callbacks.Callback):
    """A bar over the optimiser steps."""

    def __init__(self, enabled: bool) -> None:
        self.enabled, self.done, self.stack = enabled, 0, contextlib.ExitStack()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        shown = self.enabled and trainer.is_global_zero
        self.advance = self.stack.enter_context(bar("train", trainer.max_steps, enabled=shown, unit="steps"))
        self.on_train_batch_end(trainer)  # a resumed run starts in the middle

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.advance(trainer.global_step - self.done)
        self.done = trainer.global_step

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self.stack.close()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names; ``lora`` stays whole."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and key in ("data", "trainer")
        flat |= _flat(value, f"{key}.") if nested else {prefix + key: value}
    return flat
