"""``axs batch``: work through a folder, a glob or a manifest of tiles, on this machine or on a Ray cluster.

In: paths of tiles. Out: a folder with one output a tile and ``manifest.parquet``. Run again, it does what is missing or
changed. Exit code 0 when every item is done, 1 when some failed, 2 when the job cannot go on, 130 after Ctrl-C.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axs_lib.cli import options
from axs_lib.cli.command import printable
from axs_lib.cli.options import BoaOffset, MaskKind, Precision, Product, S1Unit

if TYPE_CHECKING:
    from axs_lib.batch.supervise import Summary, WorkerPool
    from axs_lib.batch.work import Job

SOME_FAILED = 1
SHOWN_FAILURES = 10


class Engine(StrEnum):
    """What runs the workers."""

    local = "local"
    ray = "ray"


class BatchStage(StrEnum):
    """What is run on each item."""

    ground = "ground"
    pipeline = "pipeline"


class OutputFormat(StrEnum):
    """Output formats."""

    npz = "npz"
    tif = "tif"


def batch(
    inputs: Annotated[
        str,
        typer.Argument(
            metavar="INPUTS",
            help="Folder, quoted glob, or .csv or .parquet manifest with the columns path, or s1 and opt_v2; and as far"
            " as known id, mask, date, lat, lon, biome.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the outputs and the manifest.")],
    stage: Annotated[
        BatchStage, typer.Option(help="ground: Stage 3 on SAR and opt_v2; pipeline: all stages on SAR.")
    ] = BatchStage.ground,
    engine: Annotated[Engine, typer.Option(help="This machine's processes, or Ray.")] = Engine.local,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers, one model each; by default one a core, or as GPUs allow.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, such as auto; by default Ray is started here.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, max=1, help="GPU share of a worker, such as 1 or 0.5; 0 is the CPU.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each worker.")] = 1,
    mask: options.MaskOption = None,
    mask_kind: options.MaskKindOption = MaskKind.auto,
    mask_invert: options.MaskInvertOption = False,
    drop: options.DropOption = None,
    mask_buffer: options.MaskBufferOption = 0,
    timesteps: options.TimestepsOption = None,
    strength: options.StrengthOption = 1.0,
    seed: options.SeedOption = 0,
    variant: options.VariantOption = None,
    checkpoint: options.CheckpointOption = None,
    adapter: options.AdapterOption = None,
    stage1_checkpoint: options.Stage1CheckpointOption = None,
    stage2_checkpoint: options.Stage2CheckpointOption = None,
    s1_product: options.S1ProductOption = Product.S1GRD,
    s1_unit: options.S1UnitOption = S1Unit.auto,
    boa_offset: options.BoaOffsetOption = BoaOffset.auto,
    bands: options.BandsOption = None,
    same_grid: options.SameGridOption = False,
    correction_mode: options.CorrectionModeOption = None,
    hold_colour: options.HoldColourOption = False,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = Precision.float32,
    ensemble_size: options.EnsembleOption = None,
    uncertainty: options.UncertaintyOption = None,
    gate: options.GateOption = None,
    sar_contribution: options.SarContributionOption = None,
    stac: options.StacOption = None,
    date: options.DateOption = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="One tile at a time: what axs batch always does.")
    ] = True,
    format: Annotated[
        OutputFormat, typer.Option(help="Of the outputs; a .tif holds the last image alone.")
    ] = OutputFormat.npz,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first item that fails.")] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace outputs that the manifest does not account for, or where it cannot be read."
        ),
    ] = False,
    force: options.ForceOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Ground many tiles with many workers; run again, it does only what is missing or changed."""
    from dataclasses import replace

    from axs_lib.batch import runners
    from axs_lib.batch.items import list_items
    from axs_lib.batch.supervise import run_batch
    from axs_lib.batch.work import Job
    from axs_lib.errors import InputError
    from axs_lib.io.raster import parse_bands
    from axs_lib.terramind.weights import DEFAULT_VARIANT

    # 1. What can be refused without reading anything.
    pipeline = stage is BatchStage.pipeline
    name = variant or DEFAULT_VARIANT
    steps = options.recommended_timesteps(name) if timesteps is None and not pipeline else timesteps
    # Torch, which the stages' own checks bring, is left to the workers: this process stays small.
    if steps is not None and not 1 <= steps <= 1000:
        raise InputError(f"--timesteps is {steps}; expected an integer from 1 to 1000")
    if not 0 <= strength <= 1:
        raise InputError(f"--strength is {strength}; expected a number from 0 (keep the estimate) to 1")
    if address is not None and engine is not Engine.ray:
        raise InputError("--address names a Ray cluster and --engine is local; add --engine ray")
    only_ground = {"--mask": mask, "--correction-mode": correction_mode}
    only_pipeline = {"--stage1-checkpoint": stage1_checkpoint, "--stage2-checkpoint": stage2_checkpoint}
    wrong = [option for option, value in (only_ground if pipeline else only_pipeline).items() if value]
    if wrong:
        raise InputError(f"--stage {stage.value} has no {wrong[0]}; leave it out, or choose the other --stage")
    share = _gpu_share(device, gpus_per_worker)
    folders = {"uncertainty": uncertainty, "gate": gate, "sar_contribution": sar_contribution, "stac": stac}
    maps = {key: str(folder.resolve()) for key, folder in folders.items() if folder is not None}

    # 2. List the items; find the weights, once for all workers.
    items = list_items(inputs, stage.value, (out, *map(Path, maps.values())))
    how: dict[str, Any] = {"path": None}
    if mask is not None or mask_kind is not MaskKind.auto or mask_invert or drop or mask_buffer:
        named = mask or next((Path(item.mask) for item in items if item.mask), None)
        trust = options.mask_file(named, mask_kind, mask_invert, drop, mask_buffer)
        if trust is not None:
            dropped = None if trust.drop is None else list(trust.drop)
            how |= {"kind": trust.kind, "invert": trust.invert, "buffer": trust.buffer, "drop": dropped}
    if mask is not None and str(mask).lower() == "scl" and not mask.exists():
        how["path"] = "scl"
    elif mask is not None:
        items = [replace(item, mask=item.mask or str(mask.resolve())) for item in items]
    if date is not None:
        items = [replace(item, metadata={"date": date, **item.metadata}) for item in items]
    settings: dict[str, Any] = {
        "stage": stage.value,
        "variant": name,
        "timesteps": steps,
        "seed": seed,
        "s1_product": s1_product.value,
        "s1_unit": s1_unit.value,
        "boa_offset": boa_offset.value,
        "bands": parse_bands(bands),
        "same_grid": same_grid,
        "strength": strength,
        "ensemble_size": ensemble_size or (options.DEFAULT_ENSEMBLE if uncertainty or pipeline else 1),
        "hold_colour": hold_colour,
        "correction_mode": correction_mode and correction_mode.value,
        "dtype": dtype.value,
        "mask": how,
    }
    given = {
        "checkpoint": checkpoint,
        "adapter": adapter,
        "stage1_checkpoint": stage1_checkpoint,
        "stage2_checkpoint": stage2_checkpoint,
    }
    checkpoints = {key: str(value.resolve()) for key, value in given.items() if value is not None}
    job = Job(
        make_runner=runners.build_runner,
        settings=settings,
        weights=runners.find_weights(settings, checkpoints),
        out=str(out.resolve()),
        maps=maps,
        checkpoints=checkpoints,
        force=force,
        format=format.value,
        device="cuda" if share > 0 else "cpu",
        threads=threads,
    )

    # 3. Run.
    pool = _pool(engine, job, workers, share, address)
    summary = run_batch(job, items, pool, fail_fast=fail_fast, overwrite=overwrite, progress=not quiet)

    # 4. Say what became of them.
    _report(summary, out)
    if summary.failed:
        raise typer.Exit(SOME_FAILED)


def _gpu_share(device: str | None, share: float | None) -> float:
    """Share of a GPU that each worker takes, by ``--device`` and ``--gpus-per-worker``."""
    from axs_lib.errors import InputError

    if device not in (None, "cpu", "cuda"):
        raise InputError(
            f"--device is {device}; expected cpu or cuda: choose GPUs by CUDA_VISIBLE_DEVICES, and workers on each by"
            " --gpus-per-worker"
        )
    if device == "cpu" and share:
        raise InputError(f"--device is cpu and --gpus-per-worker {share:g}; expected one of them")
    return share if share is not None else float(device == "cuda")


def _pool(engine: Engine, job: Job, workers: int | None, gpus_per_worker: float, address: str | None) -> WorkerPool:
    if engine is Engine.ray:
        from axs_lib.batch.ray_engine import RayPool

        return RayPool(job, workers, gpus_per_worker, address)
    from axs_lib.batch.local import LocalPool

    return LocalPool(job, workers, gpus_per_worker)


def _report(summary: Summary, out: Path) -> None:
    counts = [f"{summary.done} done"]
    counts += [f"{summary.kept} done before"] if summary.kept else []
    counts += [f"{len(summary.failed)} failed"] if summary.failed else []
    counts += [f"{summary.left} left"] if summary.left else []
    typer.echo(printable(f"{summary.total} items: {', '.join(counts)}; {out / 'manifest.parquet'}"))
    for record in summary.failed[:SHOWN_FAILURES]:
        typer.echo(printable(f"{record.status}: {record.id}: {record.error}"), err=True)
    if len(summary.failed) > SHOWN_FAILURES:
        typer.echo(f"... and {len(summary.failed) - SHOWN_FAILURES} more in the manifest", err=True)
