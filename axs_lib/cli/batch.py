"""``axs batch``: work through a folder, a glob or a manifest of tiles, on this machine or on a Ray cluster.

In: paths of tiles. Out: a folder with one output a tile and ``manifest.parquet``. Run again, it does what is missing or
changed. Exit code 0 when every item is done, 1 when some failed, 2 when the job cannot go on, 130 after Ctrl-C.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axs_lib.cli.command import printable
from axs_lib.cli.options import AdapterOption, DtypeOption, Precision, Product

if TYPE_CHECKING:
    from axs_lib.batch.supervise import Summary, WorkerPool
    from axs_lib.batch.work import Job

SOME_FAILED = 1
SHOWN_FAILURES = 10
DEFAULT_VARIANT = "terramind_v1_base"


class Engine(StrEnum):
    """What runs the workers."""

    local = "local"
    ray = "ray"


class BatchStage(StrEnum):
    """What is run on each item."""

    ground = "ground"
    pipeline = "pipeline"


class Format(StrEnum):
    """Output formats."""

    npz = "npz"
    tif = "tif"


def batch(
    inputs: Annotated[
        str,
        typer.Argument(
            metavar="INPUTS",
            help="Folder, quoted glob, or .csv or .parquet manifest with the columns path, or s1 and opt_v2; and as far"
            " as known id, date, lat, lon, biome.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the outputs and manifest.parquet.")],
    stage: Annotated[
        BatchStage, typer.Option(help="ground: Stage 3 on SAR and opt_v2; pipeline: all stages on SAR.")
    ] = BatchStage.ground,
    engine: Annotated[Engine, typer.Option(help="This machine's processes, or Ray.")] = Engine.local,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Workers, one model each; by default one a core, or as GPUs allow."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, such as auto; by default Ray is started here.")
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, max=1, help="GPU share of a worker, such as 1 or 0.5; 0 is the CPU.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each worker.")] = 1,
    variant: Annotated[
        str, typer.Option(help="nano, or terramind_v1_tiny, _small, _base or _large.")
    ] = DEFAULT_VARIANT,
    checkpoint: Annotated[
        Path | None, typer.Option(help="TerraMind weights from this file or folder.")
    ] = None,
    adapter: AdapterOption = None,
    stage1_checkpoint: Annotated[
        Path | None, typer.Option(help="Stage 1 weights, where they are not those of Stage 3.")
    ] = None,
    stage2_checkpoint: Annotated[
        Path | None, typer.Option(help="Stage 2 weights from this file or folder.")
    ] = None,
    timesteps: Annotated[
        int | None,
        typer.Option(help="Network evaluations, 1 to 1000; by default 10, and 12 in the pipeline's Stage 1."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    s1_product: Annotated[Product, typer.Option(help="Kind of Sentinel-1 image.")] = Product.S1GRD,
    dtype: DtypeOption = Precision.float32,
    format: Annotated[
        Format, typer.Option(help="Of the outputs; a .tif holds the last image alone.")
    ] = Format.npz,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first item that fails.")
    ] = False,
    rebuild_manifest: Annotated[
        bool,
        typer.Option(
            "--rebuild-manifest",
            help="The manifest is damaged or gone: make again, and replace, outputs that it does not account for.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Accept values that do not look like dB and DN.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Ground many tiles with many workers; run again, it does only what is missing or changed."""
    from axs_lib.batch import runners
    from axs_lib.batch.items import list_items
    from axs_lib.batch.supervise import run_batch
    from axs_lib.batch.work import Job
    from axs_lib.errors import InputError

    # 1. What can be refused without reading anything.
    if timesteps is not None and not 1 <= timesteps <= 1000:
        raise InputError(f"timesteps is {timesteps}; expected an integer from 1 to 1000")
    if address is not None and engine is not Engine.ray:
        raise InputError("--address names a Ray cluster and --engine is local; add --engine ray")
    given = {
        "checkpoint": checkpoint,
        "adapter": adapter,
        "stage1_checkpoint": stage1_checkpoint,
        "stage2_checkpoint": stage2_checkpoint,
    }
    checkpoints = {key: str(value.resolve()) for key, value in given.items() if value is not None}
    if stage is BatchStage.ground and checkpoints.keys() - {"checkpoint", "adapter"}:
        raise InputError(
            "--stage ground runs Stage 3 alone; expected --checkpoint, --adapter and no other, or --stage pipeline"
        )

    # 2. List the items; find the weights, once for all workers.
    items = list_items(inputs, stage.value, out)
    settings: dict[str, Any] = {
        "stage": stage.value,
        "variant": variant,
        "timesteps": timesteps,
        "seed": seed,
        "s1_product": s1_product.value,
    }
    if dtype is not Precision.float32:  # an old job's outputs, which know of no precision, stay valid
        settings["dtype"] = dtype.value
    job = Job(
        make_runner=runners.build_runner,
        settings=settings,
        weights=runners.find_weights(settings, checkpoints),
        out=str(out.resolve()),
        checkpoints=checkpoints,
        force=force,
        format=format.value,
        device="cuda" if gpus_per_worker > 0 else "cpu",
        threads=threads,
    )

    # 3. Run.
    pool = _pool(engine, job, workers, gpus_per_worker, address)
    summary = run_batch(job, items, pool, fail_fast=fail_fast, rebuild=rebuild_manifest, progress=not quiet)

    # 4. Say what became of them.
    _report(summary, out)
    if summary.failed:
        raise typer.Exit(SOME_FAILED)


def _pool(
    engine: Engine, job: Job, workers: int | None, gpus_per_worker: float, address: str | None
) -> WorkerPool:
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
