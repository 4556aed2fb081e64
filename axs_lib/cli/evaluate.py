"""``axs evaluate``: measure Stage 3 or the pipeline on NPZ pairs, as tables and as JSON (``docs/evaluate_keys.md``)."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from axs_lib.cli import options
from axs_lib.cli.command import printable
from axs_lib.cli.options import option
from axs_lib.errors import InputError, counted

if TYPE_CHECKING:
    from axs_lib.pipeline import Pipeline
    from axs_lib.stage3_tm_ground import Stage3GroundingModel


Stage = Literal["ground", "pipeline"]
OptV2Source = Literal["file", "stage2", "degraded", "cloudy"]


@options.with_shared
def evaluate(
    *,
    data: Annotated[Path, option("Folder of NPZ pairs with s1 (2,H,W) dB, s2 (4,H,W) DN, optionally opt_v2.")],
    variant: Annotated[str, option("nano, or terramind_v1_tiny, _small, _base, _large.")] = "nano",
    model: options.ModelOptions,
    stages: options.StageOptions,
    stage: Annotated[
        Stage, option("ground: Stage 3 by itself; pipeline: all three stages, from SAR alone.")
    ] = "ground",
    opt_v2_source: Annotated[
        OptV2Source | None,
        option(
            "What Stage 3 grounds. file: the pair's own opt_v2, simulated from the truth where it has none;"
            " degraded: simulated; cloudy: the pair's cloudy image; stage2: made by Stages 1 and 2. By default"
            " file, and stage2 of the pipeline."
        ),
    ] = None,
    timesteps: Annotated[
        str | None,
        option(
            "Network evaluations, 1 to 1000; of the pipeline, for Stages 1 and 3 each. Several, as 1,5,10,"
            " are compared. By default what the weights recommend (nano: 1).",
            metavar="N[,N ...]",
        ),
    ] = None,
    correction_mode: options.CorrectionModeOption = None,
    quality: Annotated[Literal["ok", "all"], option("ok: clear tiles; all: clouds, snow and water too.")] = "ok",
    groups: Annotated[str | None, option("Only these groups (places, dates), with commas between.")] = None,
    controls: Annotated[
        bool,
        option("Also with another tile's SAR, another tile's proposal, no SAR, and constant colours.", "--controls"),
    ] = False,
    no_sar_checkpoint: Annotated[
        Path | None, option("Also measure these Stage 3 weights, retrained without SAR.")
    ] = None,
    plain_checkpoint: Annotated[
        Path | None, option("Also measure this plain U-Net; with --gaps, trained to fill gaps.")
    ] = None,
    flood: Annotated[bool, option("Also simulate a flood that only the SAR shows.", "--flood")] = False,
    damages: Annotated[
        bool, option("Also ground the truth itself, and estimates of every kind, trained on and left out.", "--damages")
    ] = False,
    gaps: Annotated[bool, option("Also fill simulated and real cloud gaps.", "--gaps")] = False,
    uncertainty: Annotated[
        bool, option("Also measure the calibration of the uncertainty map.", "--uncertainty")
    ] = False,
    ensemble_size: Annotated[int, option("Members averaged, whose mean is measured as opt_v3.", min=1)] = 1,
    uncertainty_members: Annotated[int, option("Members of the ensemble that --uncertainty measures.", min=1)] = 4,
    json_file: Annotated[Path | None, option("Write the whole report here.", "--json", metavar="FILE")] = None,
    overwrite: options.OverwriteOption = False,
    quiet: Annotated[bool, option("No progress bar and no line per tile.", "--quiet", "-q")] = False,
) -> None:
    """Measure opt_v3 beside opt_v2 on real pairs: per tile, in the mean and in the median.

    Where a pair carries no opt_v2 of its own, Stage 2 is simulated from the truth and the report says so. The pipeline
    makes its own opt_v1 and opt_v2, from the SAR and what the folder's index knows of day and place.
    """
    from rich.console import Console

    from axs_lib.evaluate import EstimateKinds, Estimates, Floods, Gaps, Scenario, Uncertainty
    from axs_lib.evaluate import evaluate as run_evaluation
    from axs_lib.evaluate.estimates import tile_table, timesteps_rows, timesteps_table
    from axs_lib.evaluate.plain import load_plain
    from axs_lib.evaluate.sources import select_pairs
    from axs_lib.io.atomic import check_output, write_json
    from axs_lib.io.files import check_kept

    # 1. What can be refused is refused before the model is loaded.
    steps = [options.recommended_timesteps(variant)] if timesteps is None else _steps(timesteps)
    whole = _is_whole(stage, opt_v2_source, any(asdict(stages).values()))
    source: OptV2Source = opt_v2_source or ("stage2" if whole else "file")
    if json_file is not None:
        check_output(json_file, overwrite)
        weights = (model.checkpoint, model.adapter, no_sar_checkpoint, plain_checkpoint, *asdict(stages).values())
        named = options.environment_weights(variant)
        check_kept([json_file], data / "index.csv", *data.rglob("*.npz"), *weights, named)
    chosen = None if groups is None else [group.strip() for group in groups.split(",") if group.strip()]
    records = select_pairs(data, quality, chosen, source)

    # 2. The model, and those it is measured against.
    common: dict[str, Any] = {"variant": variant, "correction_mode": correction_mode}
    common["device"] = options.torch_device(model.device)
    measured = model.build("pipeline" if whole else "ground", steps[0], **common, **(asdict(stages) if whole else {}))
    if model.hold_colour:
        getattr(measured, "stage3", measured).hold_colour = True
    blind = options.ModelOptions(no_sar_checkpoint, s1_product=model.s1_product)
    no_sar = None if no_sar_checkpoint is None else blind.build("ground", steps[0], **common)
    plain = None if plain_checkpoint is None else load_plain(plain_checkpoint).to(measured.device)

    met = sorted({record.group for record in records} & _groups_of_training(measured))
    if met:
        notice = (
            f"these weights were trained or chosen on the groups of {sum(record.group in met for record in records)} of"
            f" {counted(len(records), 'tile')} ({', '.join(met)}), whose figures tell nothing about new places: choose"
            " others with --groups"
        )
        typer.echo(printable(notice), err=True)

    # 3. Every scenario, in one pass over the tiles for each number of timesteps.
    scenarios: list[Scenario] = [Estimates(controls, ensemble_size, no_sar, plain)]
    scenarios += [Floods()] if flood else []
    scenarios += [EstimateKinds()] if damages else []
    if gaps:
        inpainter = plain if plain is not None and "sar" not in plain.inputs else None
        scenarios.append(Gaps(inpainter or no_sar, None if inpainter else plain))
    scenarios += [Uncertainty(uncertainty_members)] if uncertainty else []
    console = Console()
    written = {}
    settings: dict[str, Any] = {"source": source, "quality": quality, "groups": chosen}
    settings |= {"seed": model.seed, "force": model.force, "progress": not quiet}
    for count in steps:
        report = run_evaluation(measured, data, scenarios, timesteps=count, **settings)
        written[count] = report.to_json() | {"groups_of_training": met}
        for table in [*([] if quiet else [tile_table(written[count])]), *report.tables()]:
            console.print(table, crop=False)

    # 4. Compare the numbers of timesteps, and write.
    rows = timesteps_rows(written)
    if len(steps) > 1:
        console.print(timesteps_table(rows), crop=False)
    if json_file is not None:
        result = written[steps[0]] if len(steps) == 1 else {"timesteps_table": rows, "reports": list(written.values())}
        write_json(json_file, result, overwrite, allow_nan=False)
        console.print(f"report: {json_file}", soft_wrap=True, markup=False, highlight=False)


def _groups_of_training(model: Stage3GroundingModel | Pipeline) -> set[str]:
    """The groups that the weights of a model, or of its stages, were trained or chosen on, as their headers say."""
    from axs_lib.hub import source_header
    from axs_lib.terramind.weights import groups_in

    stages: list[Any] = [getattr(model, "stage2", None), getattr(model, "stage3", model)]
    parts = stages + [getattr(stages[1], name, None) for name in ("terramind_generator", "corrector")]
    return set().union(*(groups_in(source_header(getattr(part, "weights", None))) for part in parts))


def _steps(timesteps: str) -> list[int]:
    """The numbers of network evaluations, each once, in the order given."""
    steps = [int(part) if re.fullmatch(r"\s*\d{1,4}\s*", part) else 0 for part in timesteps.split(",")]
    if not all(1 <= count <= 1000 for count in steps):
        raise InputError(f"--timesteps is {timesteps!r}; expected 1 to 1000, or several with commas between: 1,5,10")
    return list(dict.fromkeys(steps))


def _is_whole(stage: Stage, source: OptV2Source | None, has_checkpoints: bool) -> bool:
    """Whether Stages 1 and 2 make the estimate."""
    whole = stage == "pipeline" or source == "stage2"
    if whole and source not in (None, "stage2"):
        raise InputError(f"--opt-v2-source is {source}, but --stage pipeline makes its own opt_v2; leave --stage out")
    if not whole and has_checkpoints:
        raise InputError(
            "--stage1-checkpoint and --stage2-checkpoint are for opt_v2 made by Stages 1 and 2; add --stage"
            " pipeline or --opt-v2-source stage2"
        )
    return whole
