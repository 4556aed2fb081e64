"""``axs precompute``: a stage's outputs for the next stage's training, each made by a model that never saw its group.

In: a data folder, and a training configuration or one checkpoint a fold. Out: a folder of NPZ pairs for ``axs train``.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Stage(StrEnum):
    """Stages whose output another one learns from."""

    STAGE1 = "stage1"
    STAGE2 = "stage2"


class Format(StrEnum):
    """Data layouts."""

    NPZ = "npz"
    BIGEARTHNET_V1 = "bigearthnet_v1"
    BIGEARTHNET_V2 = "bigearthnet_v2"
    SCENES = "scenes"


def precompute(
    stage: Annotated[Stage, typer.Option(help="stage1 makes opt_v1; stage2 makes opt_v2 from it.")],
    data: Annotated[Path, typer.Option(help="Data folder; for stage2 the output of stage1.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the pairs; what is there already is not computed again.")
    ],
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Train a model for each fold with this `axs train` file."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="Or: the weights of each fold's model, in the order of the folds."),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Variant of the checkpoints, where they do not say it.")
    ] = None,
    format: Annotated[Format, typer.Option(help="Layout of the data folder.")] = Format.NPZ,
    on_bad: Annotated[str, typer.Option(help="Bad files: refuse or skip.")] = "refuse",
    s1_product: Annotated[str, typer.Option(help="S1GRD or S1RTC.")] = "S1GRD",
    timesteps: Annotated[
        int, typer.Option(min=1, max=1000, help="Network evaluations of stage1; 1 is the most accurate.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Deals groups to folds; give both stages the same.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default cuda where there is one.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Write a stage's out-of-fold outputs as pairs for the next stage's training."""
    from rich.console import Console

    from axs_lib.cli.train import parse_stage
    from axs_lib.train.precompute import PrecomputeConfig
    from axs_lib.train.precompute import precompute as run
    from axs_lib.train.readers import DataConfig

    training: Any = None
    flags: dict[str, Any] = {}
    if config is not None:
        arguments = ["-c", str(config), "--data.folder", str(data), "--data.format", format.value]
        arguments += ["--data.on_bad", on_bad, "--out", str(out / "models")]
        training, flags, _ = parse_stage(stage.value, arguments, "axs precompute")
    if on_bad not in ("refuse", "skip"):
        raise typer.BadParameter(f"{on_bad!r} is neither refuse nor skip", param_hint="--on-bad")
    settings = PrecomputeConfig(
        stage=stage.value,
        data=training.data if training else DataConfig(str(data), format=format.value, on_bad=on_bad),  # type: ignore[arg-type]
        out=str(out),
        folds=folds,
        checkpoints=tuple(map(str, checkpoint or ())),
        train=training,
        flags=flags,
        variant=variant,
        s1_product=getattr(training, "s1_product", s1_product),
        timesteps=timesteps,
        seed=seed,
        device=device,
    )
    Console().print(f"pairs: {run(settings, progress=not quiet)}")
