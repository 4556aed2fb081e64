"""``axs batch``: work through a folder, a glob or a manifest of tiles, on this machine or on a Ray cluster.

Exit code 0 when every item is done, 1 when some failed, 2 when the job cannot go on, 130 after Ctrl-C.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from axs_lib.cli import options
from axs_lib.cli.command import printable
from axs_lib.cli.options import option
from axs_lib.errors import InputError, counted, listed

if TYPE_CHECKING:
    from axs_lib.batch.supervise import Summary, WorkerPool

SOME_FAILED = 1
SHOWN_FAILURES = 10


@options.with_shared
def batch(
    *,
    inputs: Annotated[
        str,
        typer.Argument(
            metavar="INPUTS",
            help="Folder, quoted glob, or .csv or .parquet manifest with the columns path, or s1 and opt_v2; and as far"
            " as known id, mask, date, lat, lon, biome.",
        ),
    ],
    out: Annotated[Path, option("Folder for the outputs and the manifest.", metavar="DIR")],
    stage: Annotated[
        Literal["ground", "pipeline"], option("ground: Stage 3 on SAR and opt_v2; pipeline: all stages on SAR.")
    ] = "ground",
    engine: Annotated[Literal["local", "ray"], option("This machine's processes, or Ray.")] = "local",
    workers: Annotated[
        int | None, option("Workers, one model each; by default one a core, or as GPUs allow.", min=1)
    ] = None,
    address: Annotated[str | None, option("Of a Ray cluster, such as auto; by default Ray is started here.")] = None,
    gpus_per_worker: Annotated[
        float | None, option("GPU share of a worker, such as 1 or 0.5; 0 is the CPU.", min=0, max=1)
    ] = None,
    threads: Annotated[int, option("CPU threads of each worker.", min=1)] = 1,
    estimate: options.EstimateOptions,
    scene: options.SceneOptions,
    stages: options.StageOptions,
    deterministic: Annotated[bool, option("One tile at a time: what axs batch always does.", "--deterministic")] = True,
    format: Annotated[Literal["npz", "tif"], option("Of the outputs; a .tif holds the last image alone.")] = "npz",
    fail_fast: Annotated[bool, option("Stop at the first item that fails.", "--fail-fast")] = False,
    overwrite: Annotated[
        bool,
        option("Replace outputs that the manifest does not account for, or where it cannot be read.", "--overwrite"),
    ] = False,
) -> None:
    """Ground many tiles with many workers; run again, it does only what is missing or changed."""
    from axs_lib.batch import runners
    from axs_lib.batch.items import list_items
    from axs_lib.batch.supervise import run_batch
    from axs_lib.batch.work import Job
    from axs_lib.io.results import CALIBRATE
    from axs_lib.io.stac import parse_date
    from axs_lib.terramind.weights import DEFAULT_VARIANT

    # 1. What can be refused without reading anything. Torch is left to the workers: this process stays small.
    pipeline = stage == "pipeline"
    steps = scene.steps()
    if address is not None and engine != "ray":
        raise InputError("--address names a Ray cluster and --engine is local; add --engine ray")
    foreign = estimate if pipeline else stages  # options of the other --stage
    if wrong := [name for name, value in asdict(foreign).items() if value != getattr(type(foreign)(), name)]:
        option = f"--{wrong[0].replace('_', '-')}"
        raise InputError(f"--stage {stage} has no {option}; leave it out, or choose the other --stage")
    if scene.date is not None:
        parse_date(scene.date)
    if pipeline and scene.uncertainty and scene.ensemble_size == 1:
        raise InputError("--uncertainty is that of an ensemble, and --ensemble-size is 1; expected 2 or more")
    if scene.stac and format != "tif":
        raise InputError("--stac links to GeoTIFFs; add --format tif")
    share = _gpu_share(scene.device, gpus_per_worker)
    common = scene.for_scene()
    folders = {name: common[name] for name in ("uncertainty", "gate", "sar_contribution", "stac")}
    maps = {name: str(folder.resolve()) for name, folder in folders.items() if folder}

    # 2. List the items; find the weights, once for all workers.
    items = list_items(inputs, stage, (out, *map(Path, maps.values())))
    first = next((Path(item.mask) for item in items if item.mask), None)
    trust = estimate.mask_file(estimate.mask or first)
    how: dict[str, Any] = {"path": None}
    if trust is not None:
        how |= {name: getattr(trust, name) for name in ("kind", "invert", "drop", "buffer")}
    if str(estimate.mask).lower() == "scl" and not Path(str(estimate.mask)).exists():
        how["path"] = "scl"
    elif estimate.mask is not None:
        items = [replace(item, mask=item.mask or str(estimate.mask.resolve())) for item in items]
    if scene.date is not None:
        items = [replace(item, metadata={"date": scene.date, **item.metadata}) for item in items]
    if scene.stac and (undated := [item.id for item in items if "date" not in item.metadata]):
        raise InputError(f"--stac needs the day of {listed(undated[:5])}; give --date 2021-07-14, or a column date")
    several = scene.uncertainty or pipeline
    settings: dict[str, Any] = {
        **{name: common[name] for name in ("seed", "s1_unit", "bands", "same_grid")},
        **{name: getattr(scene, name) for name in ("s1_product", "hold_colour", "dtype")},
        **{name: getattr(estimate, name) for name in ("boa_offset", "strength", "correction_mode")},
        "stage": stage,
        "variant": scene.variant or DEFAULT_VARIANT,
        "timesteps": steps,
        "ensemble_size": scene.ensemble_size or (options.DEFAULT_ENSEMBLE if several else 1),
        "mask": how,
    }
    given = {"checkpoint": scene.checkpoint, "adapter": scene.adapter, **asdict(stages)}
    checkpoints = {name: str(path.resolve()) for name, path in given.items() if path is not None}
    job = Job(
        make_runner=runners.build_runner,
        settings=settings,
        weights=runners.find_weights(settings, checkpoints),
        out=str(out.resolve()),
        maps=maps,
        checkpoints=checkpoints,
        force=scene.force,
        format=format,
        device="cuda" if share > 0 else "cpu",
        threads=threads,
    )

    # 3. Run.
    pool: WorkerPool
    if engine == "ray":
        from axs_lib.batch.ray_engine import RayPool

        pool = RayPool(job, workers, share, address)
    else:
        from axs_lib.batch.local import LocalPool

        pool = LocalPool(job, workers, share)
    summary = run_batch(job, items, pool, fail_fast=fail_fast, overwrite=overwrite, progress=not scene.quiet)

    # 4. Say what became of them.
    if trust is not None and not scene.quiet:
        typer.echo("what each mask was taken for, and the size of its gap, is in the manifest's column notes", err=True)
    if not scene.quiet and any(CALIBRATE in notes for notes in summary.notes):
        typer.echo(CALIBRATE, err=True)
    _report(summary, out)
    if summary.failed:
        raise typer.Exit(SOME_FAILED)


def _gpu_share(device: str | None, share: float | None) -> float:
    """Share of a GPU that each worker takes, by ``--device`` and ``--gpus-per-worker``."""
    if device not in (None, "cpu", "cuda"):
        raise InputError(
            f"--device is {device}; expected cpu or cuda: choose GPUs by CUDA_VISIBLE_DEVICES, and workers on each by"
            " --gpus-per-worker"
        )
    if device == "cpu" and share:
        raise InputError(f"--device is cpu and --gpus-per-worker {share:g}; expected one of them")
    return share if share is not None else float(device == "cuda")


def _report(summary: Summary, out: Path) -> None:
    others = {"done before": summary.kept, "failed": len(summary.failed)}
    others["left"] = summary.total - summary.done - sum(others.values())  # what the run did not come to
    counts = [f"{summary.done} done", *(f"{number} {what}" for what, number in others.items() if number)]
    typer.echo(printable(f"{counted(summary.total, 'item')}: {', '.join(counts)}; {out / 'manifest.parquet'}"))
    for record in summary.failed[:SHOWN_FAILURES]:
        typer.echo(printable(f"{record.status}: {record.id}: {record.error}"), err=True)
    if len(summary.failed) > SHOWN_FAILURES:
        typer.echo(f"... and {len(summary.failed) - SHOWN_FAILURES} more in the manifest", err=True)
