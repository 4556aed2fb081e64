"""Train a stage: its data, its task and the training loop put together."""

from __future__ import annotations

import json
from pathlib import Path

from axs_lib.errors import InputError
from axs_lib.train.colour import fit_colour
from axs_lib.train.config import CONFIGS, RunConfig, Stage2Config
from axs_lib.train.readers import Split, list_samples, split_samples
from axs_lib.train.readers.batches import CropDataset, validation_batches
from axs_lib.train.tasks import build_task
from axs_lib.train.trainer import LAST, check_run, fit

STAGES = {kind: stage for stage, kind in CONFIGS.items()}
ESTIMATES = {"stage2": ("opt_v1", "stage1"), "stage3": ("opt_v2", "stage2")}  # and the stage that makes it


def train_stage(config: RunConfig, *, resume: bool = True, progress: bool = True) -> Path:
    """Train a stage, or with ``resume`` go on where a stopped run left off, and return the folder of the weights.

    Raises InputError: data that cannot be used, or a configuration that makes no sense; WeightsError: weights to start
    from that cannot be had, or a checkpoint of another stage or variant; OutputError: the disk refuses; the previous
    checkpoint is intact.
    """
    data = config.data
    if data.batch_size < 1 or not 0.0 <= data.validation_share < 1.0:
        raise InputError(
            f"data.batch_size is {data.batch_size} and data.validation_share {data.validation_share}; expected at least"
            " 1, and 0 to below 1"
        )
    if resume:
        check_run(config, STAGES[type(config)])  # before weights are loaded
    split = split_samples(list_samples(data), data, config.seed)
    source = estimate_source(config, split)
    groups = {
        f"{name}_groups": json.dumps(sorted({sample.group for sample in samples}))
        for name, samples in (("train", split.train), ("validation", split.validation))
    }
    task = build_task(config, estimate_source=source, notes=groups)
    resumed = resume and (Path(config.out) / LAST).is_file()
    if isinstance(config, Stage2Config) and config.fit_colour and source == "file" and not resumed:
        fit_colour(task.model, split.train, progress=progress)
    estimates = [task.estimate_key] if source == "file" and task.estimate_key else []
    crops = CropDataset(split.train, data, estimates, config.seed)
    tiles = validation_batches(split.validation, data, estimates)
    return fit(task, crops, tiles, workers=data.workers, resume=resume, progress=progress)


def estimate_source(config: RunConfig, split: Split) -> str:
    """Where the stage's estimate comes from: ``file``, or ``degraded`` where it is simulated from the truth.

    Raises InputError: pairs lack the estimate that the configuration wants from their files, or only some have it.
    """
    wanted = getattr(config, "estimate", "degraded")
    if wanted == "degraded":
        return "degraded"
    key, previous = ESTIMATES[STAGES[type(config)]]
    samples = [*split.train, *split.validation]
    count = sum(key in sample.estimates for sample in samples)
    if count == len(samples):
        return "file"
    if count == 0 and wanted == "auto":
        return "degraded"
    raise InputError(
        f"{count} of {len(samples)} pairs in {config.data.folder} carry {key}; expected all of them: make them with"
        f" `axs precompute --stage {previous}`, or simulate {key} from the truth with estimate: degraded"
    )
