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
    """Ground the estimate of an item in its SAR image; ``.npz`` holds the inputs too, a scene is streamed to ``.tif``.

    Raises:
        InputError: the inputs cannot be read or are not what they should be.
        OutputError: the disk refuses.
    """
    import torch

    from axs_lib.checks import check_pair
    from axs_lib.io.grid import is_scene
    from axs_lib.io.results import check_suffix, write_image
    from axs_lib.io.tiles import read_tile

    timesteps = job.settings["timesteps"] or GROUND_TIMESTEPS
    if item.opt_v2 is not None and is_scene([item.s1], [item.opt_v2], output):
        from axs_lib.scenes.api import ground_scene

        settings = {"timesteps": timesteps, "seed": job.settings["seed"], "tags": _tags(job)}
        ground_scene(model, item.s1, item.opt_v2, output, **settings, **_scene_options(job))
        return
    tile = read_tile([item.s1], [item.opt_v2] if item.opt_v2 else ())
    check_suffix(output, len(tile.opt_v2.batch))
    s1, opt_v2 = (torch.from_numpy(raster.batch).to(job.device) for raster in (tile.s1, tile.opt_v2))
    trust = None if tile.trust is None else torch.from_numpy(tile.trust).to(job.device)
    check_pair(s1, opt_v2, trust=trust, source="file", force=job.force)
    with torch.no_grad():
        result = model.ground(s1, opt_v2, timesteps, seed=job.settings["seed"], trust=trust)
    tags = model.provenance | _tags(job) | {"AXS_TIMESTEPS": str(timesteps), "AXS_NFE": str(result.nfe)}
    write_image(output, result.image.float().cpu().numpy(), tile, tags=tags)


def run_item(pipeline: Pipeline, job: Job, item: Item, output: Path) -> None:
    """Run the three stages on the SAR image of an item: ``.npz`` with all images, or ``.tif`` with the last.

    A scene is streamed to ``.tif``.

    Raises:
        InputError: the input cannot be read or is not what it should be.
        OutputError: the disk refuses.
    """
    from dataclasses import replace

    import torch

    from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
    from axs_lib.checks import check_sar
    from axs_lib.io.grid import is_scene
    from axs_lib.io.raster import centre_lat_lon
    from axs_lib.io.results import check_suffix, write_arrays, write_tiff
    from axs_lib.io.tiles import read_raster

    if is_scene([item.s1], out=output):
        _run_scene(pipeline, job, item, output)
        return
    raster = read_raster(item.s1, SAR_BANDS)
    check_suffix(output, len(raster.batch))
    s1 = torch.from_numpy(raster.batch).to(job.device)
    check_sar(s1, source="file", force=job.force)
    place = centre_lat_lon(raster)
    located = {} if place is None else {"lat": round(place[0], 5), "lon": round(place[1], 5)}
    metadata = located | dict(item.metadata)
    result = pipeline(s1, metadata, job.settings["timesteps"], seed=job.settings["seed"])
    tags = pipeline.provenance | _tags(job) | {"AXS_NFE": " ".join(map(str, result.nfe))}
    tags |= {f"AXS_METADATA_{key.upper()}": str(value) for key, value in metadata.items()}
    if job.format == "tif":
        image = result.opt_v3[0].float().cpu().numpy()
        like = replace(raster, data=image, bands=OPTICAL_BANDS, nodata=None, tags={**raster.tags, **tags})
        write_tiff(output, image, like)
        return
    names = ("opt_v1", "opt_v2", "opt_v3")
    batches = {name: getattr(result, name).float().cpu().numpy() for name in names}
    arrays = batches if raster.batched else {name: batch[0] for name, batch in batches.items()}
    sar = {"s1": raster.data} if raster.batched else dict(zip(("s1_vv", "s1_vh"), raster.data, strict=True))
    write_arrays(output, arrays | sar, raster, tags=tags)


def _run_scene(pipeline: Pipeline, job: Job, item: Item, output: Path) -> None:
    """The pipeline on a scene, of whose files the last is kept."""
    import shutil

    from axs_lib.scenes.api import STAGES, run_scene

    folder = output.with_name("stages")
    run_scene(
        pipeline,
        item.s1,
        folder,
        metadata=item.metadata,
        timesteps=job.settings["timesteps"],
        seed=job.settings["seed"],
        tags=_tags(job),
        **_scene_options(job),
    )
    (folder / f"{STAGES[-1]}.tif").replace(output)
    shutil.rmtree(folder)


def _scene_options(job: Job) -> dict[str, Any]:
    """One tile at a time, so that the pixels do not depend on how many fit the device."""
    return {"deterministic": True, "force": job.force}


def _tags(job: Job) -> dict[str, str]:
    settings = job.settings
    return {
        "AXS_SEED": str(settings["seed"]),
        "AXS_S1_PRODUCT": str(settings["s1_product"]),
        "AXS_DTYPE": settings.get("dtype", "float32"),
    }
