"""What is run on each item and with which weights; models are imported only where they are built."""

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
    """SHA-256 of every weights file that a job loads, by stage and file name; fetched from the Hub where need be."""
    from axs_lib.grounding.load import corrector_files
    from axs_lib.terramind.weights import DEFAULT_PRITHVI, NANO, PRITHVI_VARIANTS, find_variant, resolve, sha256_file

    variant = find_variant(settings["variant"])
    files = resolve(variant, checkpoints.get("checkpoint"))
    found = {"stage3": {**files.sha256, **corrector_files(files).sha256}}
    if settings["stage"] == "pipeline":
        if "stage1_checkpoint" in checkpoints:
            found["stage1"] = dict(resolve(variant, checkpoints["stage1_checkpoint"]).sha256)
        prithvi = PRITHVI_VARIANTS[NANO if variant.packaged else DEFAULT_PRITHVI]
        found["stage2"] = dict(resolve(prithvi, checkpoints.get("stage2_checkpoint")).sha256)
    if "adapter" in checkpoints:
        from axs_lib.adapters import adapter_files

        found["adapter"] = {file.name: sha256_file(file) for file in adapter_files(checkpoints["adapter"])}
    return {f"{stage}/{name}": value for stage, names in found.items() for name, value in names.items()}


def build_model(
    stage: str,
    timesteps: int,
    *,
    correction_mode: str | None = None,
    adapter: str | Path | None = None,
    dtype: str = "float32",
    **given: Any,
) -> Any:
    """Stage 3 (``stage`` is ``"ground"``) or all three; of ``given``, keywords of their builders, None is left out."""
    import torch

    from axs_lib import pipeline, stage3_tm_ground
    from axs_lib.adapters import load_adapter

    build: Any
    if stage == "ground":
        build = stage3_tm_ground.build_stage3_model
        given |= {"timesteps": timesteps, "correction_mode": correction_mode}
    else:
        build = pipeline.build_pipeline
        given |= {"stage1_timesteps": timesteps, "stage3_timesteps": timesteps}
    model = build(**{name: value for name, value in given.items() if value is not None})
    if stage == "pipeline" and correction_mode is not None:
        model.stage3.correction_mode = correction_mode
    if adapter is not None:
        load_adapter(model, adapter)
    if dtype != "float32":
        model.use_precision(getattr(torch, dtype))
    return model


def build_runner(job: Job) -> Runner:
    """Build the model of a job in this process; ``WeightsError`` for other weights than the job was started with."""
    import torch

    torch.set_num_threads(job.threads)
    if find_weights(job.settings, job.checkpoints) != job.weights:
        raise WeightsError(
            "the weights here are not those that the job was started with; put the same files on every machine, leave"
            " them alone while a job runs, and start it again"
        )
    names = ("stage", "timesteps", "variant", "s1_product", "correction_mode", "dtype")
    given: dict[str, Any] = {name: job.settings[name] for name in names} | dict(job.checkpoints)
    model = build_model(**given, device=job.device)
    return functools.partial(ground_item if job.settings["stage"] == "ground" else run_item, model, job)


def ground_item(model: Stage3GroundingModel, job: Job, item: Item, outputs: Mapping[str, Path]) -> Sequence[str]:
    """Ground the estimate of an item in its SAR image; an ``.npz`` holds the inputs too. Gives what was assumed."""
    from axs_lib.io.masks import MaskFile
    from axs_lib.scenes.api import ground_scene

    settings = job.settings
    how = {key: value for key, value in settings["mask"].items() if key != "path"}
    mask = item.mask or settings["mask"]["path"]
    options = _options(job, outputs) | {name: settings[name] for name in ("boa_offset", "strength")}
    options |= {"date": item.metadata.get("date"), "trust": MaskFile(mask, **how, may_be_clear=True) if mask else None}
    return ground_scene(model, item.s1, item.opt_v2, outputs[IMAGE], **options).notes


def run_item(pipeline: Pipeline, job: Job, item: Item, outputs: Mapping[str, Path]) -> Sequence[str]:
    """Run the three stages on the SAR of an item: ``.npz`` with all images, ``.tif`` with the last. Gives notes."""
    from axs_lib.scenes.api import run_scene

    return run_scene(pipeline, item.s1, outputs[IMAGE], metadata=item.metadata, **_options(job, outputs)).notes


def _options(job: Job, outputs: Mapping[str, Path]) -> dict[str, Any]:
    """One tile at a time, so that the pixels do not depend on how many fit the device; no addresses out of files."""
    settings = job.settings
    names = ("timesteps", "seed", "s1_unit", "same_grid", "ensemble_size", "bands")
    options: dict[str, Any] = {name: settings[name] for name in names}
    options |= {"hold_colour": True} if settings["hold_colour"] else {}
    options |= {name: path for name, path in outputs.items() if name != IMAGE}
    tags = {"AXS_S1_PRODUCT": str(settings["s1_product"]), "AXS_DTYPE": str(settings["dtype"])}
    return options | {"force": job.force, "deterministic": True, "addresses": False, "tags": tags}
