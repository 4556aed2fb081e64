"""``axs precompute``: a stage's outputs for the next stage's training, each by a model that never saw its group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from axs_lib.cli import options
from axs_lib.cli.options import option

if TYPE_CHECKING:
    from axs_lib.train.config import RunConfig


def precompute(
    stage: Annotated[Literal["stage1", "stage2"], option("stage1 makes opt_v1; stage2 makes opt_v2 from it.")],
    data: Annotated[Path, option("Data folder; for stage2 the output of stage1.")],
    out: Annotated[Path, option("Folder for the pairs; what is there already is not computed again.")],
    folds: Annotated[int, option("Number of folds.", min=2)] = 5,
    config: Annotated[
        str | None,
        option("Train a model for each fold: name or file of an `axs train` configuration.", "--config", "-c"),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None, option("Or: the weights of each fold's model, in the order of the folds.")
    ] = None,
    variant: Annotated[str | None, option("Variant of the checkpoints, where they do not say it.")] = None,
    format: Annotated[
        Literal["npz", "bigearthnet_v1", "bigearthnet_v2", "scenes"], option("Layout of the data folder.")
    ] = "npz",
    on_bad: Annotated[Literal["refuse", "skip"], option("What to do about bad files.")] = "refuse",
    s1_product: Annotated[options.Product, option("SAR product.")] = "S1GRD",
    timesteps: Annotated[int, option("Network evaluations of stage1; 1 is the most accurate.", min=1, max=1000)] = 1,
    seed: Annotated[int, option("Deals groups to folds; give both stages the same.", min=0, max=options.MOST_SEED)] = 0,
    device: Annotated[str | None, option("cpu or cuda; default cuda where there is one.")] = None,
    quiet: options.QuietOption = False,
) -> None:
    """Write a stage's out-of-fold outputs as pairs for the next stage's training."""
    from rich.console import Console

    from axs_lib.cli.train import parse
    from axs_lib.train.config import CONFIGS
    from axs_lib.train.precompute import PrecomputeConfig
    from axs_lib.train.precompute import precompute as run
    from axs_lib.train.readers import DataConfig

    training: RunConfig | None = None
    if config is not None:
        arguments = ["-c", config, "--data", str(data), "--data.format", format, "--data.on_bad", on_bad]
        training = parse(CONFIGS[stage], [*arguments, "--out", str(out / "models")], "axs precompute")[0]
    reading = training.data if training else DataConfig(str(data), format=format, on_bad=on_bad)
    given: dict[str, Any] = {"folds": folds, "checkpoints": tuple(map(str, checkpoint or ())), "train": training}
    given |= {"variant": variant, "s1_product": getattr(training, "s1_product", s1_product), "timesteps": timesteps}
    settings = PrecomputeConfig(stage, reading, str(out), seed=seed, device=device, **given)
    pairs = run(settings, progress=not quiet)
    if not quiet:
        Console().print(f"pairs: {pairs}")
