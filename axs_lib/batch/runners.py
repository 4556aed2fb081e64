"""What is run on each item: Stage 3 on a pair, or the pipeline on a SAR image, and with which weights.

In: a ``Job``. Out: a function from an item to its output files, holding the model; one function for each stage. Imports
the models only where they are built, so that the process that hands out the work stays small.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axs_lib.batch.items import Item
from axs_lib.batch.work import IMAGE, Job, Runner
from axs_lib.errors import WeightsError

if TYPE_CHECKING:
    from axs_lib.pipeline import Pipeline
    from axs_lib.stage3_tm_ground import Stage3GroundingModel


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
    found = {"stage3": dict(files.sha256)}
    found["stage3"] |= corrector_files(files).sha256
    if settings["stage"] == "pipeline":
        if "stage1_checkpoint" in checkpoints:
            found["stage1"] = dict(resolve(variant, checkpoints["stage1_checkpoint"]).sha256)
        prithvi = PRITHVI_VARIANTS[NANO if variant.packaged else DEFAULT_PRITHVI]
        found["stage2"] = dict(resolve(prithvi, checkpoints.get("stage2_checkpoint")).sha256)
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
    build: dict[str, Any] = {"variant": settings["variant"], "s1_product": settings["s1_product"]}
    build |= {"device": job.device, **job.checkpoints}
    adapter = build.pop("adapter", None)
    if settings.get("correction_mode"):
        build["correction_mode"] = settings["correction_mode"]
    model: Any
    if settings["stage"] == "ground":
        from axs_lib import stage3_tm_ground

        model = stage3_tm_ground.build_stage3_model(settings["timesteps"], **build)
    else:
        from axs_lib import pipeline

        model = pipeline.build_pipeline(**build)
    if adapter is not None:
        load_adapter(model, adapter)
    if settings["dtype"] != "float32":
        model.use_precision(getattr(torch, settings["dtype"]))
    return functools.partial(ground_item if settings["stage"] == "ground" else run_item, model, job)


def ground_item(model: Stage3GroundingModel, job: Job, item: Item, outputs: Mapping[str, Path]) -> Sequence[str]:
    """Ground the estimate of an item in its SAR image; an ``.npz`` holds the inputs too.

    Returns:
        What was assumed of the files.

    Raises:
        InputError: the inputs cannot be read or are not what they should be.
        OutputError: the disk refuses.
    """
    from axs_lib.io.masks import MaskFile
    from axs_lib.scenes.api import ground_scene

    settings = job.settings
    mask = item.mask or settings["mask"]["path"]
    how = {key: value for key, value in settings["mask"].items() if key != "path"}
    result = ground_scene(
        model,
        item.s1,
        item.opt_v2,
        outputs[IMAGE],
        trust=MaskFile(mask, **how) if mask else None,
        boa_offset=settings["boa_offset"],
        date=item.metadata.get("date"),
        strength=settings["strength"],
        **_options(job, outputs),
    )
    return result.notes


def run_item(pipeline: Pipeline, job: Job, item: Item, outputs: Mapping[str, Path]) -> Sequence[str]:
    """Run the three stages on the SAR image of an item: ``.npz`` with all images, or ``.tif`` with the last.

    Returns:
        What was assumed of the files.

    Raises:
        InputError: the input cannot be read or is not what it should be.
        OutputError: the disk refuses.
    """
    from axs_lib.scenes.api import run_scene

    return run_scene(pipeline, item.s1, outputs[IMAGE], metadata=item.metadata, **_options(job, outputs)).notes


def _options(job: Job, outputs: Mapping[str, Path]) -> dict[str, Any]:
    """One tile at a time, so that the pixels do not depend on how many fit the device; no addresses out of files."""
    settings = job.settings
    options: dict[str, Any] = {key: settings[key] for key in ("timesteps", "seed", "s1_unit", "same_grid")}
    options |= {"ensemble_size": settings["ensemble_size"], "bands": settings["bands"], "force": job.force}
    options |= {"hold_colour": True} if settings["hold_colour"] else {}
    options |= {name: path for name, path in outputs.items() if name != IMAGE}
    tags = {"AXS_S1_PRODUCT": str(settings["s1_product"]), "AXS_DTYPE": str(settings["dtype"])}
    return options | {"deterministic": True, "addresses": False, "tags": tags}
