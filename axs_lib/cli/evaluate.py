"""``axs evaluate``: measure a Stage 3 model, or the whole pipeline, on a folder of real pairs.

In goes a folder of NPZ pairs; out come a table of opt_v2 beside opt_v3 (and opt_v1, of the pipeline) and, with
``--json``, the whole report.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from axs_lib.pipeline import Pipeline
    from axs_lib.stage3_tm_ground import Stage3GroundingModel


class Quality(StrEnum):
    """Which pairs to evaluate."""

    ok = "ok"
    all = "all"


class Stage(StrEnum):
    """What to evaluate."""

    ground = "ground"
    pipeline = "pipeline"


def evaluate(
    data: Annotated[
        Path, typer.Option(help="Folder of NPZ pairs with s1 (2,H,W) dB, s2 (4,H,W) DN, optionally opt_v2.")
    ],
    variant: Annotated[str, typer.Option(help="nano, or terramind_v1_tiny, _small, _base, _large.")] = "nano",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Local weights in place of the variant's own.")
    ] = None,
    stage: Annotated[
        Stage, typer.Option(help="ground: Stage 3 by itself; pipeline: all three stages, from SAR alone.")
    ] = Stage.ground,
    timesteps: Annotated[
        int, typer.Option(help="Network evaluations, 1 to 1000; of the pipeline, for Stages 1 and 3 each.")
    ] = 10,
    quality: Annotated[
        Quality, typer.Option(help="ok: clear tiles; all: clouds, snow and water too.")
    ] = Quality.ok,
    groups: Annotated[
        str | None, typer.Option(help="Only these groups (places, dates), with commas between.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the model's noise.")] = 0,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also ground every tile with another tile's SAR.")
    ] = False,
    s1_product: Annotated[str, typer.Option(help="S1GRD or S1RTC.")] = "S1GRD",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the CPU when left out.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the whole report here.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing report.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Accept values that do not look like dB or DN.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar and no line per tile.")
    ] = False,
) -> None:
    """Measure opt_v3 beside opt_v2 on real pairs: per tile, in the mean and in the median.

    Where a pair carries no opt_v2 of its own, Stage 2 is simulated from the truth and the report says so. The pipeline
    makes its own opt_v1 and opt_v2, from the SAR and what the folder's index knows of day and place.
    """
    import json

    from rich.console import Console

    from axs_lib.data.atomic import atomic_write, check_output
    from axs_lib.data.pairs import list_pairs
    from axs_lib.evaluate.evaluator import evaluate_folder

    # What can be refused is refused before the model is loaded.
    if json_file is not None:
        check_output(json_file, overwrite)
    list_pairs(data, quality.value)

    model = _build(
        stage,
        timesteps,
        variant=variant,
        checkpoint=None if checkpoint is None else str(checkpoint),
        device=device,
        s1_product=s1_product,
    )
    report = evaluate_folder(
        model,
        data,
        quality=quality.value,
        groups=None if groups is None else [group.strip() for group in groups.split(",") if group.strip()],
        seed=seed,
        controls=controls,
        force=force,
        progress=not quiet,
    )
    if json_file is not None:
        with atomic_write(json_file, overwrite) as temporary:
            temporary.write_text(
                json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8"
            )
    console = Console()
    if not quiet:
        console.print(report.tile_table())
    for table in report.tables():
        console.print(table)
    if json_file is not None:
        console.print(f"report: {json_file}", soft_wrap=True, markup=False, highlight=False)


def _build(stage: Stage, timesteps: int, **options: Any) -> Stage3GroundingModel | Pipeline:
    from axs_lib import pipeline, stage3_tm_ground

    if stage is Stage.ground:
        return stage3_tm_ground.build_stage3_model(timesteps, **options)
    return pipeline.build_pipeline(stage1_timesteps=timesteps, stage3_timesteps=timesteps, **options)
