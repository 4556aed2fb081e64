"""``axs demo``: run nano on the packaged real tiles and show what happened.

In: the sample tiles of BigEarthNet (SAR and clear optical truth). First Stage 3 by itself: its opt_v2 is simulated from
the truth, so the figures say how well the correction undoes a documented damage. Then the whole pipeline, from the SAR
and what is known of day and place. Out: a folder with GeoTIFFs, an NPZ and a picture panel a tile and part, the figures
as JSON, one page to look at, and two tables on the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from axs_lib.pipeline import Pipeline
    from axs_lib.stage3_tm_ground import Stage3GroundingModel

VARIANT = "nano"
ENSEMBLE = 4
PIPELINE_ENSEMBLE = 1  # one run, hence no uncertainty: the whole demo stays under a minute
PRESET: Final = "test"
RECORD = "demo.json"
PAGE = "report.html"
CREATED_BY = "axs demo"
PIPELINE_FOLDER = "pipeline"

# key of axs_lib.metrics, heading, digits; all of it fits a terminal of 80 columns
COLUMNS = (
    ("mse", "MSE\nx1000", 3),
    ("mae", "MAE\n", 4),
    ("psnr", "PSNR\ndB", 2),
    ("ssim", "SSIM\n", 4),
    ("sam", "SAM\ndeg", 2),
    ("ndvi", "NDVI\nerror", 4),
    ("edge_truth", "edge\nmatch", 3),
)
PIPELINE_COLUMNS = COLUMNS[:5]

# suffix of the figures, name of the image
IMAGES = {"v2": "opt_v2", "v3": "opt_v3"}
PIPELINE_IMAGES = {"v1": "opt_v1", "v2": "opt_v2", "v3": "opt_v3", "mean_colour": "mean colour"}

Figures = Mapping[str, Mapping[str, float]]


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("demo_output"),
    timesteps: Annotated[int, typer.Option(help="Network evaluations, 1 to 1000.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the simulated damage and of the noise.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Use a folder that holds other files, too.")
    ] = False,
) -> None:
    """Run nano on the packaged real tiles, Stage 3 by itself and the whole pipeline, and show the results."""
    from rich.console import Console

    from axs_lib.data.samples import sample_names
    from axs_lib.evaluate.html.page import write_report
    from axs_lib.progress import track

    check_folder(out, overwrite)
    console = Console(highlight=False)
    with Console(stderr=True).status(f"loading {VARIANT}"):
        from axs_lib import pipeline as stages

        pipeline = stages.build_pipeline(
            variant=VARIANT, stage1_timesteps=timesteps, stage3_timesteps=timesteps
        )
    settings = {"timesteps": timesteps, "seed": seed, "ensemble_size": ENSEMBLE}
    alone = settings | {"ensemble_size": PIPELINE_ENSEMBLE}
    figures: dict[str, dict[str, float]] = {}
    pipeline_figures: dict[str, dict[str, float]] = {}

    def record() -> None:
        _write_record(out / RECORD, pipeline, (settings, figures), (alone, pipeline_figures))

    record()  # from now on the folder is known as a demo's
    for name in track(sample_names(), "tiles", enabled=console.is_terminal):
        figures[name] = run_tile(name, pipeline.stage3, out / name, settings)
        pipeline_figures[name] = run_pipeline(name, pipeline, out / name / PIPELINE_FOLDER, alone)
    record()
    write_report(
        out / PAGE,
        [out / name for name in figures],
        title=f"What {VARIANT} makes of real tiles",
        overwrite=True,
    )

    _show_table(console, "Stage 3 on a simulated opt_v2", figures, COLUMNS, IMAGES)
    _show_wins(console, figures, "v2", "opt_v2")
    console.print(
        f"opt_v2 is simulated: the truth, damaged by the {PRESET!r} preset of axs_lib.data.degrade.\n"
    )
    _show_table(
        console, "The whole pipeline, from SAR and date", pipeline_figures, PIPELINE_COLUMNS, PIPELINE_IMAGES
    )
    _show_wins(console, pipeline_figures, "mean_colour", "the mean colour")
    console.print(
        f"From SAR alone, {VARIANT} is a demonstration that the stages work together, not a product: SAR does not"
        " determine colour, and nano is small. The mean colour is that of the tile's own truth, which the pipeline"
        " does not know; an image with a larger error is no better than one flat colour.\n"
    )
    console.print(
        f"Look at them: {out / PAGE}\nResults: {out}/TILE/ and {out}/TILE/{PIPELINE_FOLDER}/, each with panel.png,"
        f" GeoTIFFs and an NPZ; figures: {out / RECORD}",
        soft_wrap=True,
    )


def check_folder(out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds anything but an earlier demo.

    Raises:
        OutputError: it does, and ``overwrite`` is false; or it is a file.
    """
    from axs_lib.errors import OutputError

    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; expected the name of a folder: choose another --out")
    if overwrite or not out.is_dir() or not any(out.iterdir()):
        return
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        ours = record["created_by"] == CREATED_BY
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise OutputError(
            f"{out} holds files that are not of an earlier demo; expected an empty or new folder: choose another"
            " --out, or pass --overwrite"
        )


def run_tile(
    name: str, model: Stage3GroundingModel, folder: Path, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Damage, ground, measure and write one sample tile.

    Args:
        name: of the sample.
        model: Stage 3.
        folder: for this tile's files, which replace those of an earlier run.
        settings: keyword arguments of ``model.ground``.

    Returns:
        The figures of ``compute_stage3_metrics``.
    """
    import torch

    from axs_lib.data.degrade import degrade
    from axs_lib.data.samples import load_sample
    from axs_lib.evaluate.panel import save_panel
    from axs_lib.io.raster import Raster, Tile
    from axs_lib.io.results import write_arrays, write_image, write_tiff, write_uncertainty
    from axs_lib.stage3_tm_ground import compute_stage3_metrics

    sar, optical = load_sample(name)
    s1, truth = torch.from_numpy(sar.batch), torch.from_numpy(optical.batch)
    opt_v2 = degrade(truth, seed=settings["seed"], preset=PRESET)
    with torch.no_grad():
        output = model.ground(s1, opt_v2, **settings)
    figures = compute_stage3_metrics(output.image, opt_v2, truth)

    estimate = Raster(opt_v2[0].numpy(), optical.bands, optical.crs, optical.transform)
    tile = Tile(sar, estimate, truth=optical)
    tags = model.provenance | {f"AXS_{key.upper()}": str(value) for key, value in settings.items()}
    tags |= {"AXS_SAMPLE": name, "AXS_OPT_V2_SOURCE": f"degraded ({PRESET})"}
    write_tiff(folder / "s1.tif", sar.data, sar, overwrite=True)
    write_tiff(folder / "truth.tif", optical.data, optical, overwrite=True)
    write_tiff(folder / "opt_v2.tif", estimate.data, estimate, overwrite=True)
    image = output.image.numpy()
    write_image(folder / "opt_v3.tif", image, tile, tags=tags, overwrite=True)
    arrays = {
        "opt_v3": image[0],
        "opt_v2": estimate.data,
        "s2_real": optical.data,
        "gate": output.gate[0].numpy(),
    }
    arrays |= dict(zip(("s1_vv", "s1_vh"), sar.data, strict=True))
    write_arrays(folder / "tile.npz", arrays, optical, tags=tags, overwrite=True)
    if output.uncertainty is not None:
        write_uncertainty(
            folder / "uncertainty.tif", output.uncertainty.numpy(), tile, tags=tags, overwrite=True
        )
    save_panel(
        folder / "panel.png",
        s1=sar.data,
        opt_v2=estimate.data,
        opt_v3=image[0],
        truth=optical.data,
        uncertainty=None if output.uncertainty is None else output.uncertainty[0].numpy(),
        title=f"{name}: {model.variant}, {settings['timesteps']} steps",
        metrics=figures,
    )
    return figures


def run_pipeline(
    name: str, pipeline: Pipeline, folder: Path, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Run the whole pipeline on the SAR of one sample tile, measure and write it.

    Args:
        name: of the sample.
        pipeline: the three stages.
        folder: for the files, which replace those of an earlier run.
        settings: keyword arguments of ``pipeline``.

    Returns:
        The figures of ``compute_metrics`` for every image of ``PIPELINE_IMAGES``, with its suffix.
    """
    import torch

    from axs_lib.cli.options import shown
    from axs_lib.data.samples import load_sample, sample_metadata, sample_paths
    from axs_lib.evaluate.panel import save_pipeline_panel
    from axs_lib.io.formats import open_npz
    from axs_lib.io.results import write_tiff
    from axs_lib.metrics import compute_metrics
    from axs_lib.scenes.api import ARRAYS, run_scene

    sar, optical = load_sample(name)
    truth = torch.from_numpy(optical.batch)
    metadata = sample_metadata(name)
    tags = {"AXS_SAMPLE": name}
    run_scene(
        pipeline, sample_paths(name)[0], folder, metadata=metadata, tags=tags, overwrite=True, **settings
    )
    with open_npz(folder / ARRAYS) as arrays:
        stages = [torch.from_numpy(arrays.numbers(f"opt_v{number}"))[None] for number in (1, 2, 3)]
    images: dict[str, Tensor] = dict(zip(("v1", "v2", "v3"), stages, strict=True))
    images["mean_colour"] = truth.nanmean((2, 3), keepdim=True).expand_as(truth)
    figures = {
        f"{key}_{suffix}": value
        for suffix, image in images.items()
        for key, value in compute_metrics(image, truth).items()
    }
    write_tiff(folder / "truth.tif", optical.data, optical, overwrite=True)
    known = ", ".join(shown(metadata))
    save_pipeline_panel(
        folder / "panel.png",
        s1=sar.data,
        opt_v1=stages[0],
        opt_v2=stages[1],
        opt_v3=stages[2],
        truth=optical.data,
        title=f"{name} from SAR and date: {pipeline.variant}, {settings['timesteps']} steps, {known}",
        metrics=figures,
    )
    return figures


def _write_record(
    path: Path,
    pipeline: Pipeline,
    grounded: tuple[Mapping[str, Any], Figures],
    alone: tuple[Mapping[str, Any], Figures],
) -> None:
    """Write the figures of both parts, each given as (settings, figures)."""
    from axs_lib.io.atomic import atomic_write

    record = {
        "created_by": CREATED_BY,
        "opt_v2_source": f"degraded ({PRESET})",
        "model": pipeline.stage3.provenance,
        "settings": grounded[0],
        "tiles": grounded[1],
        "pipeline": {
            "opt_v2_source": "stage2",
            "model": pipeline.provenance,
            "settings": alone[0],
            "tiles": alone[1],
        },
    }
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _show_table(
    console: Any,
    title: str,
    figures: Figures,
    columns: Sequence[tuple[str, str, int]],
    images: Mapping[str, str],
) -> None:
    from rich.table import Table

    table = Table("tile", "image", title=title, title_justify="left", box=None, pad_edge=False)
    for _, heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    rows = dict(figures)
    rows["mean"] = {
        key: sum(row[key] for row in figures.values()) / len(figures) for key in next(iter(figures.values()))
    }
    for name, row in rows.items():
        for number, (suffix, image) in enumerate(images.items()):
            cells = [_cell(key, row[f"{key}_{suffix}"], digits) for key, _, digits in columns]
            table.add_row("" if number else name, image, *cells)
    console.print(table)


def _show_wins(console: Any, figures: Figures, suffix: str, what: str) -> None:
    better = sum(row["mse_v3"] < row[f"mse_{suffix}"] for row in figures.values())
    console.print(f"MSE is lower in opt_v3 than in {what} on {better} of {len(figures)} tiles.")


def _cell(key: str, value: float, digits: int) -> str:
    return f"{value * (1000 if key == 'mse' else 1):.{digits}f}"
