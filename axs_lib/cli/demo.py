"""``axs demo``: ground the packaged real tiles with nano and show what happened.

In: the sample tiles of BigEarthNet (SAR and clear optical truth). The Stage 2 estimate is simulated from the truth,
so the figures say how well the correction undoes a documented damage. Out: a folder with GeoTIFFs, an NPZ and a
picture panel a tile, the figures as JSON, and a table on the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from axs_lib.stage3_tm_ground import Stage3GroundingModel

VARIANT = "nano"
ENSEMBLE = 4
PRESET: Final = "test"
RECORD = "demo.json"
CREATED_BY = "axs demo"

# key of compute_stage3_metrics, heading, digits; all of it fits a terminal of 80 columns
COLUMNS = (
    ("mse", "MSE\nx1000", 3),
    ("mae", "MAE\n", 4),
    ("psnr", "PSNR\ndB", 2),
    ("ssim", "SSIM\n", 4),
    ("sam", "SAM\ndeg", 2),
    ("ndvi", "NDVI\nerror", 4),
    ("edge_truth", "edge\nmatch", 3),
)


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("demo_output"),
    timesteps: Annotated[int, typer.Option(help="Network evaluations, 1 to 1000.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the simulated damage and of the noise.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Use a folder that holds other files, too.")
    ] = False,
) -> None:
    """Ground the packaged real tiles with nano and show the result."""
    from rich.console import Console

    from axs_lib.data.samples import sample_names
    from axs_lib.progress import track

    check_folder(out, overwrite)
    console = Console(highlight=False)
    with Console(stderr=True).status(f"loading {VARIANT}"):
        from axs_lib import stage3_tm_ground

        model = stage3_tm_ground.build_stage3_model(timesteps, variant=VARIANT)
    settings = {"timesteps": timesteps, "seed": seed, "ensemble_size": ENSEMBLE}
    _write_record(out / RECORD, model, settings, {})  # from now on the folder is known as a demo's
    figures = {
        name: run_tile(name, model, out / name, settings)
        for name in track(sample_names(), "grounding", enabled=console.is_terminal)
    }
    _write_record(out / RECORD, model, settings, figures)
    _show_table(console, figures)
    console.print(
        f"opt_v2 is simulated: the truth, damaged by the {PRESET!r} preset of axs_lib.data.degrade."
    )
    console.print(
        f"Results: {out}/TILE/panel.png, GeoTIFFs and tile.npz; figures: {out / RECORD}", soft_wrap=True
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
    from axs_lib.data.raster import Raster, Tile
    from axs_lib.data.results import write_image, write_tiff, write_uncertainty
    from axs_lib.data.samples import load_sample
    from axs_lib.evaluate.panel import save_panel
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
    for target in ("opt_v3.tif", "tile.npz"):
        write_image(folder / target, image, tile, tags=tags, overwrite=True)
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


def _write_record(
    path: Path,
    model: Stage3GroundingModel,
    settings: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, float]],
) -> None:
    from axs_lib.data.atomic import atomic_write

    record = {
        "created_by": CREATED_BY,
        "opt_v2_source": f"degraded ({PRESET})",
        "model": model.provenance,
        "settings": dict(settings),
        "tiles": figures,
    }
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _show_table(console: Any, figures: Mapping[str, Mapping[str, float]]) -> None:
    from rich.table import Table

    table = Table("tile", "image", box=None, pad_edge=False)
    for _, heading, _ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    rows = dict(figures)
    rows["mean"] = {
        key: sum(row[key] for row in figures.values()) / len(figures) for key in next(iter(figures.values()))
    }
    for name, row in rows.items():
        for suffix in ("v2", "v3"):
            cells = [_cell(key, row[f"{key}_{suffix}"], digits) for key, _, digits in COLUMNS]
            table.add_row(name if suffix == "v2" else "", f"opt_{suffix}", *cells)
    console.print(table)
    better = sum(row["mse_v3"] < row["mse_v2"] for row in figures.values())
    console.print(f"MSE is lower in opt_v3 than in opt_v2 on {better} of {len(figures)} tiles.")


def _cell(key: str, value: float, digits: int) -> str:
    return f"{value * (1000 if key == 'mse' else 1):.{digits}f}"
