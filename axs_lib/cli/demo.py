"""``axs demo``: run nano on the packaged real tiles and show what it is good for, in pictures and figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from axs_lib.cli import options
from axs_lib.cli.options import option
from axs_lib.errors import InputError, OutputError, counted
from axs_lib.io.atomic import atomic_write, write_json
from axs_lib.io.files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

    from axs_lib.io.raster import Raster
    from axs_lib.pipeline import Pipeline

VARIANT = "nano"
ENSEMBLE = 4  # of the grounded estimate, whose uncertainty is shown
PRESET: Final = "test"
RECORD = "demo.json"
PAGE = "report.html"
CREATED_BY = "axs demo"
NOTICE = "estimate, not observation"

# key of axs_lib.metrics, heading, digits; all of it fits a terminal of 80 columns
COLUMNS = (
    ("mse", "MSE\nx1000", 3),
    ("mae", "MAE\n", 4),
    ("ssim", "SSIM\n", 3),
    ("sam", "SAM\ndeg", 2),
    ("ndvi", "NDVI\nerror", 4),
)

Figures = dict[str, dict[str, float]]  # by name of the image
# Of one part for one tile: images (1, C, H, W) by name, figures of some of them, and the tags that say what made them.
Shown = tuple[dict[str, "Tensor | None"], Figures, dict[str, str]]


def demo(
    out: Annotated[Path, option("Folder for the results.", metavar="DIR")] = Path("demo_output"),
    timesteps: options.TimestepsOption = None,
    seed: Annotated[int, option("Seed of the simulated errors and of the noise.", min=0, max=options.MOST_SEED)] = 0,
    overwrite: Annotated[bool, option("Use a folder that holds other files, too.", "--overwrite")] = False,
) -> None:
    """Fill a gap, ground an estimate and run the three stages with nano on real tiles, and show the results."""
    from rich.console import Console

    from axs_lib.data.samples import load_sample, sample_names
    from axs_lib.evaluate.html.page import write_report
    from axs_lib.progress import track

    check_folder(out, overwrite)
    steps = options.recommended_timesteps(VARIANT) if timesteps is None else timesteps
    console = Console(highlight=False)
    with Console(stderr=True).status(f"loading {VARIANT}"):
        import torch

        from axs_lib import pipeline as stages

        pipeline = stages.build_pipeline(variant=VARIANT, stage1_timesteps=steps, stage3_timesteps=steps)
    settings = {"timesteps": steps, "seed": seed}
    parts: dict[str, dict[str, Figures]] = {part: {} for part in PARTS}
    record = {"created_by": CREATED_BY, "model": pipeline.provenance, "settings": settings, "parts": parts}
    write_json(out / RECORD, record, overwrite=True)  # from now on the folder is known as a demo's
    for part, (_, _, make) in PARTS.items():
        for name in track(sample_names(), part, enabled=console.is_terminal):
            sar, optical = load_sample(name)
            s1, truth = torch.from_numpy(sar.batch), torch.from_numpy(optical.batch)
            images, figures, tags = make(name, s1, truth, pipeline, settings)
            tags |= {f"AXS_{key.upper()}": str(value) for key, value in settings.items()}
            _write(out / part / name, sar, optical, images, tags | {"AXS_SAMPLE": name})
            parts[part][name] = figures
    write_json(out / RECORD, record, overwrite=True)
    heading = f"What {VARIANT} makes of real tiles"
    write_report(out / PAGE, [out / part for part in PARTS], title=heading, overwrite=True)

    for part, (title, note, _) in PARTS.items():
        _show_table(console, title, parts[part])
        console.print(f"{note}\n")
    console.print(
        f"Look at them: {out / PAGE}\nResults: {out}/PART/TILE/, with GeoTIFFs and an NPZ; figures: {out / RECORD}",
        soft_wrap=True,
    )


def check_folder(out: Path, overwrite: bool) -> None:
    """Raise ``OutputError`` for a folder that holds anything but an earlier demo, unless ``overwrite``."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; expected the name of a folder: choose another --out")
    if overwrite or not out.is_dir() or not any(out.iterdir()):
        return
    try:
        with open_regular(out / RECORD) as file:
            ours = json.load(file)["created_by"] == CREATED_BY
    except (InputError, OSError, ValueError, RecursionError, KeyError, TypeError):
        ours = False
    if not ours:
        raise OutputError(
            f"{out} holds files that are not of an earlier demo; expected an empty or new folder: choose another"
            " --out, or pass --overwrite"
        )


def fill_gap(name: str, s1: Tensor, truth: Tensor, pipeline: Pipeline, settings: Mapping[str, Any]) -> Shown:
    """The real image with a simulated cloud, filled by Stage 3; figures are inside the gap."""
    import torch

    from axs_lib.evaluate.gaps import simulated_trust
    from axs_lib.metrics import compute_metrics
    from axs_lib.nodata import fill_nodata, valid_pixels

    trust = simulated_trust(truth[0], name)[None]
    clouded = truth.masked_fill(trust == 0, torch.nan)
    output = pipeline.stage3.ground(s1, clouded, trust=trust, **settings)
    colour = clouded.nanmean((2, 3), keepdim=True).expand_as(clouded)
    images = {"mean colour": colour, "smooth fill": fill_nodata(clouded, valid_pixels(clouded)), "opt_v3": output.image}
    figures = {key: compute_metrics(image, truth, mask=trust == 0) for key, image in images.items()}
    changed = (output.image - truth)[(trust == 1).expand_as(truth)].abs().max()
    figures["opt_v3"]["changed_where_clear"] = float(changed)
    tags = pipeline.stage3.provenance | {"AXS_OPT_V2_SOURCE": "observed, with a simulated cloud"}
    maps = {"gate": output.gate, "uncertainty": output.uncertainty}
    return {"opt_v2": clouded, "trust": trust, "opt_v3": output.image, **maps}, figures, tags


def ground_estimate(name: str, s1: Tensor, truth: Tensor, pipeline: Pipeline, settings: Mapping[str, Any]) -> Shown:
    """A Stage 2 estimate, simulated from the truth, grounded by Stage 3."""
    from axs_lib.data.degrade import degrade
    from axs_lib.metrics import compute_metrics

    opt_v2 = degrade(truth, seed=settings["seed"], preset=PRESET)
    output = pipeline.stage3.ground(s1, opt_v2, ensemble_size=ENSEMBLE, **settings)
    images = {"opt_v2": opt_v2, "opt_v3": output.image}
    figures = {key: compute_metrics(image, truth) for key, image in images.items()}
    tags = {"AXS_OPT_V2_SOURCE": f"degraded ({PRESET})", "AXS_ENSEMBLE_SIZE": str(ENSEMBLE)}
    maps = {"gate": output.gate, "uncertainty": output.uncertainty}
    return {**images, **maps}, figures, pipeline.stage3.provenance | tags


def draw_from_sar(name: str, s1: Tensor, truth: Tensor, pipeline: Pipeline, settings: Mapping[str, Any]) -> Shown:
    """The three stages, from the SAR and what is known of day and place."""
    from axs_lib.data.samples import sample_metadata
    from axs_lib.metrics import compute_metrics

    metadata = sample_metadata(name)
    output = pipeline(s1, metadata, ensemble_size=1, **settings)
    images = {"opt_v1": output.opt_v1, "opt_v2": output.opt_v2, "opt_v3": output.opt_v3}
    compared = images | {"mean colour": truth.nanmean((2, 3), keepdim=True).expand_as(truth)}
    figures = {key: compute_metrics(image, truth) for key, image in compared.items()}
    tags = {"AXS_OPT_V2_SOURCE": "stage2", "AXS_NOTICE": NOTICE}
    tags |= {f"AXS_METADATA_{key.upper()}": str(value) for key, value in metadata.items()}
    return {**images}, figures, pipeline.provenance | tags


Make = Callable[[str, "Tensor", "Tensor", "Pipeline", Mapping[str, Any]], Shown]
PARTS: dict[str, tuple[str, str, Make]] = {
    "gap": (
        "1. A cloud gap filled: figures inside the gap",
        "The image is real and its cloud simulated; clear pixels come back bit for bit.",
        fill_gap,
    ),
    "estimate": (
        "2. An estimate grounded in the SAR",
        f"opt_v2 is simulated: the truth with the errors of preset {PRESET!r} of axs_lib.data.degrade.",
        ground_estimate,
    ),
    "from_sar": (
        f"3. The three stages from the SAR: {NOTICE}",
        "SAR does not determine colour, and nano is small: this shows that the stages work together. The mean colour is"
        " that of\nthe tile's own truth, which the stages do not know; an image with a larger error is no better than"
        " one flat colour.",
        draw_from_sar,
    ),
}


def _write(
    folder: Path, sar: Raster, optical: Raster, images: Mapping[str, Tensor | None], tags: Mapping[str, str]
) -> None:
    """GeoTIFFs of the optical images and an NPZ of everything; files of an earlier run are replaced."""
    from axs_lib.io.results import optical_layer, write_arrays, write_layer

    arrays = {name: image[0].numpy() for name, image in images.items() if image is not None}
    layers = {name: image for name, image in arrays.items() if name.startswith("opt_")}
    for name, image in (layers | {"truth": optical.data}).items():
        made = {} if name == "truth" else tags
        write_layer(folder / f"{name}.tif", optical_layer(name), image, optical.grid, made, overwrite=True)
    everything = dict(zip(("s1_vv", "s1_vh"), sar.data, strict=True)) | arrays | {"s2_real": optical.data}
    with atomic_write(folder / "tile.npz", overwrite=True) as temporary:
        write_arrays(temporary, everything, optical.grid, tags)


def _show_table(console: Any, title: str, tiles: Mapping[str, Figures]) -> None:
    from axs_lib.evaluate.tables import over_tiles, rich_table

    images = list(next(iter(tiles.values())))
    mean = {image: over_tiles([figures[image] for figures in tiles.values()]) for image in images}
    rows = []
    for name, figures in (dict(tiles) | {"mean": mean}).items():
        for number, image in enumerate(images):
            cells = (f"{figures[image][key] * (1000 if key == 'mse' else 1):.{digits}f}" for key, _, digits in COLUMNS)
            rows.append(["" if number else name, image, *cells])
    table = rich_table(title, ("tile", "image", *(heading for _, heading, _ in COLUMNS)), rows)
    table.title_justify, table.columns[1].justify = "left", "left"
    console.print(table, crop=False)
    for rival in (image for image in images if image not in ("opt_v1", "opt_v3")):
        better = sum(figures["opt_v3"]["mse"] < figures[rival]["mse"] for figures in tiles.values())
        console.print(f"MSE is lower in opt_v3 than in {rival} on {better} of {counted(len(tiles), 'tile')}.")
