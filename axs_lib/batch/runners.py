"""What is run on each item: Stage 3 on a pair, or the pipeline on a SAR image, and with which weights.

In: a ``Job``. Out: a function from an item to its output file, holding the model; one function an item kind. Imports
the models only where they are built, so that the process that hands out the work stays small.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axs_lib.batch.items import Item
from axs_lib.batch.work import Job, Runner
from axs_lib.errors import WeightsError

if TYPE_CHECKING:
    from axs_lib.pipeline import Pipeline
    from axs_lib.stage3_tm_ground import Stage3GroundingModel

GROUND_TIMESTEPS = 10


def find_weights(settings: Mapping[str, Any], checkpoints: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of every weights file that a job loads, by stage and file name; fetched from the Hub where need be.

    Args:
        settings: of the job: its stage and variant.
        checkpoints: of the job.

    Raises:
        InputError: unknown variant.
        WeightsError: weights that cannot be had.
    """
    from axs_lib.grounding.load import corrector_files
    from axs_lib.prithvi.variants import DEFAULT_VARIANT as DEFAULT_PRITHVI
    from axs_lib.prithvi.variants import NANO, PRITHVI_VARIANTS
    from axs_lib.terramind.weights import find_variant, resolve, sha256_file

    variant = find_variant(settings["variant"])
    files = resolve(variant, checkpoints.get("checkpoint"))
    found = {"stage3": dict(files.info.sha256)}
    found["stage3"] |= corrector_files(files.info).info.sha256
    if settings["stage"] == "pipeline":
        if "stage1_checkpoint" in checkpoints:
            found["stage1"] = dict(resolve(variant, checkpoints["stage1_checkpoint"]).info.sha256)
        prithvi = PRITHVI_VARIANTS[NANO if variant.packaged else DEFAULT_PRITHVI]
        found["stage2"] = dict(resolve(prithvi, checkpoints.get("stage2_checkpoint")).info.sha256)
    if "adapter" in checkpoints:
        from axs_lib.adapters import adapter_files

        found["adapter"] = {file.name: sha256_file(file) for file in adapter_files(checkpoints["adapter"])}
    return {f"{stage}/{name}": value for stage, names in found.items() for name, value in names.items()}


def build_runner(job: Job) -> Runner:
    """Build the model of a job in this process.

    Raises:
        WeightsError: weights that cannot be had, or other weights than the job was started with.
        InputError: settings that there are not.
    """
    import torch

    from axs_lib.adapters import load_adapter

    torch.set_num_threads(job.threads)
    settings = job.settings
    if find_weights(settings, job.checkpoints) != job.weights:
        raise WeightsError(
            "the weights here are not those that the job was started with; put the same files on every machine, leave"
            " them alone while a job runs, and start it again"
        )
    common: dict[str, Any] = {"variant": settings["variant"], "s1_product": settings["s1_product"]}
    common |= {"device": job.device, **job.checkpoints}
    adapter = common.pop("adapter", None)
    dtype = getattr(torch, settings["dtype"]) if "dtype" in settings else None
    if settings["stage"] == "ground":
        from axs_lib import stage3_tm_ground

        model = stage3_tm_ground.build_stage3_model(**common)
        if adapter is not None:
            load_adapter(model, adapter)
        if dtype is not None:
            model.use_precision(dtype)
        return functools.partial(ground_item, model, job)
    from axs_lib import pipeline

    stages = pipeline.build_pipeline(**common)
    if adapter is not None:
        load_adapter(stages, adapter)
    if dtype is not None:
        stages.use_precision(dtype)
    return functools.partial(run_item, stages, job)


def ground_item(model: Stage3GroundingModel, job: Job, item: Item, output: Path) -> None:
    """Ground the estimate of an item in its SAR image; an ``.npz`` holds the inputs, too.

    Raises:
        InputError: the inputs cannot be read or are not what they should be.
        OutputError: the disk refuses.
    """
    from axs_lib.scenes.api import ground_scene

    timesteps = job.settings["timesteps"] or GROUND_TIMESTEPS
    ground_scene(model, item.s1, item.opt_v2, output, timesteps=timesteps, **_options(job))


def run_item(pipeline: Pipeline, job: Job, item: Item, output: Path) -> None:
    """Run the three stages on the SAR image of an item: ``.npz`` with all images, or ``.tif`` with the last.

    Raises:
        InputError: the input cannot be read or is not what it should be.
        OutputError: the disk refuses.
    """
    from axs_lib.scenes.api import run_scene

    timesteps = job.settings["timesteps"]
    run_scene(pipeline, item.s1, output, metadata=item.metadata, timesteps=timesteps, **_options(job))


def _options(job: Job) -> dict[str, Any]:
    """One tile at a time, so that the pixels do not depend on how many fit the device; no addresses out of a manifest."""
    settings = job.settings
    tags = {"AXS_S1_PRODUCT": str(settings["s1_product"]), "AXS_DTYPE": settings.get("dtype", "float32")}
    return {
        "seed": settings["seed"],
        "tags": tags,
        "deterministic": True,
        "force": job.force,
        "addresses": False,
    }
